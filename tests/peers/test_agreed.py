"""Coefficients over a network: the weights of a simulation, bit for bit, and what liars and latecomers change."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from agreement_helpers import decided
from gradless import ledger
from gradless.collab.learners.coefficients import CoefficientPeers
from gradless.collab.learners.loop import take_steps
from gradless.collab.learners.side_by_side import SideBySide
from gradless.collab.network.exchange import Recorded
from gradless.collab.network.simulated import ReplayedNetwork
from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.ledger import Ledger
from gradless.peers.agreed import Agreed, arrivals_of, catch_up, mixed_steps
from gradless.peers.agreement import Agreement, Timing
from gradless.peers.history import Group
from gradless.peers.liars import LIARS, liar
from gradless.peers.link import LocalGroup
from gradless.peers.log import DecidedLog
from gradless.peers.mixing import AgreedRule
from gradless.peers.signing import hash_rings
from gradless.peers.votes import Votes
from gradless.system.hashing import weights_sha256
from peer_groups import RUN, in_threads, one

WIDTH = 4
RULE = AgreedRule("nnm+trimmed-mean", peers=4, byzantine=1)


def test_an_answer_waits_for_no_vote():
    """The log is read without the lock under which the agreement works."""
    with Peers() as peers:
        transport = peers.transport(0)
        for value, certificate in decided(peers.group, 3, peers.rings):
            transport.log.append(value, certificate)
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(len(peers.links.link(1).fetch(0, 0))))
        with transport._changed:
            asking.start()
            asking.join(5.0)
            assert answers == [3]


class Peers:
    """A group on one link group; each peer's transport is closed at the end."""

    def __init__(self, *, grace: float = 0.5, lies: dict[int, str] | None = None, **options) -> None:
        self.links, self.rings = LocalGroup(4, **options), hash_rings(4)
        self.group, self.grace, self.lies = Group(RUN, 4, 1, WIDTH), grace, lies or {}
        self.logs: list[DecidedLog] = []
        self.open: list[Agreed] = []

    def transport(self, me: int) -> Agreed:
        log, ring = DecidedLog(None, self.group), self.rings[me]
        agreement = Agreement(
            *(me, self.group),
            **{
                "ring": ring,
                "votes": Votes(None, RUN, complete=True),
                "log": log,
                "timing": Timing(grace=self.grace, base=2.0),
            },
            now=time.monotonic(),
        )
        lie = liar(self.lies[me], me, self.group, ring) if me in self.lies else None
        self.logs.append(log)
        self.open.append(Agreed(self.links.link(me), agreement, log, liar=lie))
        return self.open[-1]

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error: object) -> None:
        for transport in self.open:
            transport.close()


def hash_of(peer: CoefficientPeers) -> str:
    opt = peer.members[0].optimizer
    opt.flush()
    return weights_sha256((leaf.name, leaf.param) for leaf in opt.leaves)


def simulated(steps: int, ears: dict | None = None) -> set[str]:
    """Hashes of four peers of one process, who all hear the same."""
    peers = [one(me) for me in range(4)]
    ears = ears or {(step, "coefficients"): [range(4)] * 4 for step in range(steps)}
    take_steps(SideBySide(peers), ReplayedNetwork(ears), RULE, steps)
    return {hash_of(peer) for peer in peers}


def test_with_every_row_in_every_value_the_weights_are_those_of_the_simulation():
    with Peers(grace=30.0) as peers:
        learners, transports = [one(me) for me in range(4)], [peers.transport(me) for me in range(4)]
        in_threads([lambda me=me: take_steps(learners[me], transports[me], RULE, 12) for me in range(4)])
        assert {hash_of(learner) for learner in learners} == simulated(12)
        assert all(one.facts[step].heard == (0, 1, 2, 3) for one in transports for step in range(12))
        assert all(one.facts[step].seconds >= 0 for one in transports for step in range(12))


def test_recorded_arrivals_give_a_simulation_the_weights_of_the_network():
    """One peer is always late, so its row is in no value, or in some."""
    with Peers(grace=0.001, seed=2, delay=0.01) as peers:
        learners, transports = [one(me) for me in range(4)], [Recorded(peers.transport(me)) for me in range(4)]

        def slowly(tag, rows, arrivals, mixed) -> bool:
            time.sleep(0.02)
            return True

        work = [
            lambda me=me: take_steps(learners[me], transports[me], RULE, 12, watch=slowly if me == 3 else None)
            for me in range(4)
        ]
        in_threads(work)
        heard = transports[0].heard
        assert all(one.heard == heard for one in transports)
        assert any(len(senders) < 4 for senders in heard.values())  # else this is the test before
        ears = {key: [senders] * 4 for key, senders in heard.items()}
        hashes = {hash_of(learner) for learner in learners}
        assert hashes == simulated(12, ears)
        assert hashes != simulated(12)


def test_a_latecomer_takes_everything_at_once_and_then_takes_part(tmp_path):
    with Peers() as peers:
        learners, transports = [one(me) for me in range(4)], [peers.transport(me) for me in range(3)]
        in_threads([lambda me=me: take_steps(learners[me], transports[me], RULE, 8) for me in range(3)])
        log = DecidedLog(None, peers.group)
        log.join([(one.value, one.certificate) for one in peers.logs[0]], peers.rings[3])
        file = Ledger(tmp_path / "ledger", {"groups": 1})
        learners[3].members[0] = learners[3].members[0]._replace(log=file.append)
        assert catch_up(log, RULE, learners[3], start=0) == 8
        assert learners[3].samples == 0
        assert hash_of(learners[3]) == hash_of(learners[0])
        file.close()
        assert len(ledger.read(tmp_path / "ledger").moves) == 8


def test_decided_steps_are_mixed_at_once_as_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("gradless.peers.agreed.AT_ONCE", 8)
    group, rings = Group(RUN, 4, 1, 2), hash_rings(4)
    chain = [*decided(group, 20, rings)]
    for log in (DecidedLog(None, group), DecidedLog(tmp_path / "peers.log", group)):
        log.join(chain, rings[0])
        one_by_one = [RULE(arrivals_of(log, step), None, step)[0].tolist() for step in range(3, 20)]
        assert list(mixed_steps(log, RULE, 3, 20)) == one_by_one
        assert list(log.values(17)) == [value for value, _ in chain[17:]]
        log.close()


def test_a_restarted_transport_gives_decided_steps_without_asking_for_a_row():
    with Peers() as peers:
        learners, transports = [one(me) for me in range(3)], [peers.transport(me) for me in range(3)]
        in_threads([lambda me=me: take_steps(learners[me], transports[me], RULE, 5) for me in range(3)])
        logged: list[Update] = []
        again = one(2, log=logged.append)
        assert take_steps(again, transports[2], RULE, 5) == 5
        assert again.samples == 0
        assert hash_of(again) == hash_of(learners[0])
        assert [update.step for update in logged] == list(range(5))


@pytest.mark.parametrize("name", LIARS)
def test_a_liar_changes_nobodys_agreement(name):
    with Peers(grace=0.05, lies={3: name}, delay=0.001) as peers:
        learners, transports = [one(me) for me in range(4)], [peers.transport(me) for me in range(4)]
        most = 3 if name == "mute" else 4
        work = [lambda me=me: take_steps(learners[me], transports[me], RULE, 8) for me in range(3)]
        if name != "mute":
            work.append(lambda: take_steps(learners[3], transports[3], RULE, 8))
        in_threads(work)
        assert len({hash_of(learner) for learner in learners[:3]}) == 1
        banned = {one.agreement.banned for one in transports[:3]}
        assert banned == {frozenset({3}) if name in ("equivocate", "propose") else frozenset()}
        if name == "flip":
            assert all(3 in one.facts[7].heard for one in transports[:most])


def test_a_row_that_is_not_finite_abstains():
    with Peers(grace=30.0) as peers:
        transports = [peers.transport(me) for me in range(4)]
        rows = [torch.full((1, WIDTH), float(me) if me else torch.nan) for me in range(4)]
        work = [lambda me=me: transports[me].exchange(0, "coefficients", rows[me]) for me in range(4)]
        arrivals = in_threads(work)
        assert {one.heard for one in arrivals} == {((1, 2, 3),)}
        assert transports[1].facts[0].heard == (0, 1, 2, 3)
        assert transports[1].facts[0].left_out == transports[1].facts[0].late == ()


def test_what_ends_the_agreement_is_told_to_who_waits(monkeypatch):
    with Peers() as peers:
        transport = peers.transport(0)
        monkeypatch.setattr(transport.agreement, "tick", lambda now: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            transport.exchange(0, "coefficients", torch.zeros(1, WIDTH))
        with pytest.raises(BadInput, match="leave sync out"):
            transport.exchange(0, "parameters", torch.zeros(1, WIDTH))
        other = peers.transport(1)
        other.close()
        with pytest.raises(BadInput, match="was closed"):
            other.exchange(0, "coefficients", torch.zeros(1, WIDTH))


def test_a_step_without_a_round_left_is_told_to_who_waits(monkeypatch):
    with Peers() as peers:
        transport = peers.transport(0)
        monkeypatch.setattr(transport.agreement.instance, "exhausted", True)
        with pytest.raises(BadInput, match=r"step 0 was not decided in 65,536 rounds.*begin a new run"):
            transport.exchange(0, "coefficients", torch.zeros(1, WIDTH))
