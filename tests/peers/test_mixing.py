"""What all peers make of a decided value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradless.collab.network.exchange import Arrivals
from gradless.collab.network.simulated import ReplayedNetwork
from gradless.errors import BadInput
from gradless.peers.mixing import AgreedRule, updates_of, usual
from peer_groups import member


def test_the_usual_rule_is_one_that_all_can_take():
    for width in (1, 4, 16):
        AgreedRule(usual(width), peers=4, byzantine=1)


def test_a_rule_expects_one_liar_less_for_each_that_is_banned():
    rule = AgreedRule("trimmed-mean", peers=7, byzantine=2)
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [104.0]])
    assert [float(rule.mix(rows, banned)) for banned in (0, 1, 2, 3)] == [2.0, 2.0, 22.0, 22.0]
    assert rule.mix(rows[:4]).isnan().all()
    assert float(rule.mix(rows[:4], 1)) == 1.5


@pytest.mark.parametrize("name", ["trimmed-mean", "nnm+median", "krum"])
def test_many_steps_are_mixed_as_one_after_the_other(name):
    rule, draw = AgreedRule(name, peers=7, byzantine=2), np.random.default_rng(1)
    rows = draw.standard_normal((80, 7, 3)).astype(np.float32)
    rows[draw.random((80, 7)) < 0.2] = np.nan  # not in the value: too few of them in some steps
    banned = draw.integers(0, 4, 80).tolist()
    one_by_one = [
        rule.mix(torch.from_numpy(step[np.isfinite(step).all(1)]), gone).numpy()
        for step, gone in zip(rows, banned, strict=True)
    ]
    mixed = rule.mix_steps(rows, banned)
    assert np.array_equal(mixed.view(np.int32), np.stack(one_by_one).view(np.int32))
    assert 0 < np.isnan(mixed).all(1).sum() < 80


def test_all_peers_of_a_process_get_the_same_and_none_gets_its_own_back():
    rule = AgreedRule("median", peers=4, byzantine=1)
    rows = torch.arange(8.0).view(4, 2)
    arrivals = ReplayedNetwork({(0, "coefficients"): [[0, 1, 2]] * 4}).exchange(0, "coefficients", rows)
    assert torch.equal(rule(arrivals, rows, 0), rows[1].expand(4, -1))
    assert torch.equal(rule(arrivals, None, 0), rows[1:2])
    assert rule(Arrivals(None, ()), rows, 0).isnan().all()


def test_updates_carry_the_rate_of_their_step_and_pass_over_what_is_not_finite():
    optimizer = member(0).optimizer
    mixed = [[1.0] * 4, [math.nan] * 4, [0.5] * 4]
    updates = list(updates_of(mixed, optimizer, start=5))
    assert [update.step for update in updates] == [5, 6, 7]
    assert [update.skipped for update in updates] == [False, True, False]
    assert updates[1].coeffs == ()
    assert updates[2].coeffs == (0.5,) * 4
    assert {update.lrs for update in updates} == {(0.02,)}


@pytest.mark.parametrize(
    ("name", "peers", "byzantine", "match"),
    [
        ("nna", 4, 1, "take mean, median"),
        ("trimmed-mean", 6, 2, "at most 1 liars"),
        ("nothing", 4, 1, "take mean, median"),
    ],
)
def test_rules_and_groups_that_cannot_agree_are_refused(name, peers, byzantine, match):
    with pytest.raises(BadInput, match=match):
        AgreedRule(name, peers=peers, byzantine=byzantine)
