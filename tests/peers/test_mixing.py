"""What all peers make of a decided value."""

from __future__ import annotations

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


def test_all_peers_of_a_process_get_the_same_and_none_gets_its_own_back():
    rule = AgreedRule("median", peers=4, byzantine=1)
    rows = torch.arange(8.0).view(4, 2)
    arrivals = ReplayedNetwork({(0, "coefficients"): [[0, 1, 2]] * 4}).exchange(0, "coefficients", rows)
    assert torch.equal(rule(arrivals, rows, 0), rows[1].expand(4, -1))
    assert torch.equal(rule(arrivals, None, 0), rows[1:2])
    assert rule(Arrivals(None, ()), rows, 0).isnan().all()


def test_updates_carry_the_rate_of_their_step_and_pass_over_what_is_not_finite():
    optimizer = member(0).optimizer
    mixed = [torch.ones(4), torch.full((4,), torch.nan), torch.full((4,), 0.5)]
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
