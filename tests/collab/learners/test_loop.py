"""One loop for simulation and network, and peers that are built alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.coefficients import CoefficientPeers
from gradless.collab.learners.loop import take_step, take_steps
from gradless.collab.learners.side_by_side import SideBySide
from gradless.collab.network.exchange import Arrivals, settle_alone
from gradless.collab.network.simulated import ReplayedNetwork
from gradless.collab.recipes import RECIPES
from gradless.collab.simulation.build import build, mixing_rule
from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.peers.mixing import AgreedRule, update_of
from gradless.system.hashing import weights_sha256
from peer_groups import one

RULE = AgreedRule("trimmed-mean", peers=4, byzantine=1)


class Script:
    """A transport that says what was decided before anybody asks."""

    def __init__(self, rows: dict[int, Tensor]) -> None:
        self.rows = rows

    def known(self, step: int, tag: str) -> Arrivals | None:
        network = ReplayedNetwork({(step, tag): [range(len(self.rows[step]))] * len(self.rows[step])})
        return network.exchange(step, tag, self.rows[step])._replace(reached=(0,))

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        raise AssertionError("nobody needs to propose what is decided")


def hash_of(peer: CoefficientPeers) -> str:
    opt = peer.members[0].optimizer
    opt.flush()
    return weights_sha256((leaf.name, leaf.param) for leaf in opt.leaves)


def test_a_step_that_is_over_costs_no_forward_and_directions_follow_from_its_number():
    decided = {step: torch.randn(4, 4, generator=torch.Generator().manual_seed(step)) for step in range(6)}
    decided[3] = decided[3][:2]  # too few for the rule: everybody passes it over
    on_time, logged = one(0), list[Update]()
    assert take_steps(on_time, Script(decided), RULE, 6) == 6
    assert on_time.samples == 0
    # A peer that comes late takes all of it at once, in one that missed nothing but step 3.
    late = one(2, log=logged.append)
    mixed = [RULE.mix(decided[step]) for step in range(6)]
    late.replay([update_of(row.tolist(), late.members[0].optimizer, step) for step, row in enumerate(mixed)])
    assert hash_of(late) == hash_of(on_time)
    assert [update.skipped for update in logged] == [False, False, False, True, False, False]
    # A peer that never heard of step 3 passes over it when step 4 comes.
    jumped, noted = one(1, log=(jumps := list[Update]()).append), None
    for step in (0, 1, 2, 4, 5):
        noted = take_step(jumped, Script(decided), RULE, step)
    assert noted == (6, True)
    assert hash_of(jumped) == hash_of(on_time)
    assert jumps == logged
    with pytest.raises(BadInput, match="step 2 was taken already"):
        jumped.accept(2, "coefficients", mixed[2][None])


def test_watching_ends_the_loop_after_the_step_is_taken():
    decided = {step: torch.ones(4, 4) for step in range(6)}
    peer = one(0)
    assert take_steps(peer, Script(decided), RULE, 6, watch=lambda tag, rows, got, mixed: False) == 1
    assert peer.members[0].optimizer.t == 1


def digits(**change):
    usual = {"attack": "none", "byzantine": 1, "peers": 6, "steps": 5, "eval_rows": 50}
    return dataclasses.replace(RECIPES["monna-digits"].base, **{**usual, **change})


def test_a_peer_alone_computes_what_it_computes_in_a_simulation():
    config = digits()
    together = build(config).learner
    alone = [one_peer(config, me) for me in range(6)]
    for step in range(3):
        rows = together.propose(step, "parameters")
        own = [peer.learner.propose(step, "parameters") for peer in alone]
        assert torch.allclose(torch.cat(own), rows, atol=1e-6)
        together.accept(step, "parameters", rows)
        for one_of, row in zip(alone, rows, strict=True):
            one_of.learner.accept(step, "parameters", row[None])
    sizes = {peer.rows for peer in alone}
    assert sizes == {len(part) for part in together.workload.shares.parts}


def test_recorded_ears_are_heard_again_and_nothing_else():
    config = digits()
    peers = SideBySide([one_peer(config, me).learner for me in range(6)])
    ears = [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [1, 2, 3, 4, 5], (), [0, 2, 3, 4, 5], [0, 1, 2, 4, 5]]
    network = ReplayedNetwork({(0, "parameters"): ears})
    rows = peers.propose(0, "parameters").clone()
    arrivals = network.exchange(0, "parameters", rows)
    assert arrivals.heard == tuple(tuple(own) for own in ears if own)
    mixed = settle_alone(rule := mixing_rule(config), arrivals, rows)
    assert torch.equal(mixed[3], rows[3])
    for peer, own in enumerate(ears):
        if own:
            assert torch.equal(mixed[peer], rule(rows[list(own)], pivot=list(own).index(peer)))
    for wrong in ((1, "parameters"), (0, "coefficients")):
        with pytest.raises(BadInput, match="was not recorded"):
            network.exchange(*wrong, rows)
    with pytest.raises(BadInput, match="was not recorded"):
        ReplayedNetwork({(0, "parameters"): [[0, 9]] * 6}).exchange(0, "parameters", rows)


def test_impossible_peers_and_rows_are_refused():
    config = digits()
    with pytest.raises(BadInput, match="no peer 6"):
        one_peer(config, 6)
    with pytest.raises(BadInput, match="give 'data'"):
        one_peer(config, 0, own={"train": "x.csv"})
