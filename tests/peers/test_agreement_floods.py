"""What one peer can make the others compute, and when it is not heard any more."""

from __future__ import annotations

import random

import pytest

from agreement_helpers import RUN, Circle
from gradless.peers.history import MOST_STRIKES, Group, History, lost_rounds
from gradless.peers.log import DecidedLog
from gradless.peers.schema import (
    LAST_ROUND,
    Kind,
    Malformed,
    Value,
    digest,
    pack_certificate,
    pack_head,
    pack_value,
)
from gradless.peers.scores import records
from gradless.peers.wire import pack_decided

LIAR = 3


def empty_value(history: History, round: int = LAST_ROUND) -> bytes:
    """A value without rows that continues a history and names the last round."""
    return pack_value(Value(history.step, history.digest, round, 0, history.group.width, (), ()))


def test_who_claims_a_decision_that_no_quorum_made_is_not_heard_after_twenty_times():
    circle = Circle()
    circle.steps(1)
    core = circle.cores[0]
    claim = pack_decided(RUN, LIAR, core.step, empty_value(core.log.history), pack_certificate(0, {}))
    assert len(claim) == 79
    for _ in range(30):
        core.handle(claim, circle.now, sent_by=LIAR)
    assert core.counts["muted"] == 10
    assert core.muted == {LIAR}
    assert core.faults == {0: 0, 1: 0, 2: 0, LIAR: 20}
    circle.up.remove(LIAR)
    circle.steps(2)
    assert circle.lengths()[:3] == [3, 3, 3]


def test_a_peer_of_another_run_is_heard_again_once_it_has_the_right_manifest():
    circle = Circle()
    core = circle.cores[0]
    for _ in range(30):
        core.handle(pack_head(bytes(16), Kind.HELLO, LIAR, 0), circle.now, sent_by=LIAR)
    assert core.counts["malformed"] == 30
    assert not core.muted
    circle.steps(2)
    assert circle.lengths() == [2, 2, 2, 2]


def test_a_value_is_not_looked_at_before_its_certificate_holds(monkeypatch):
    circle = Circle()
    core = circle.cores[0]
    claim = pack_decided(RUN, LIAR, 0, empty_value(core.log.history), pack_certificate(0, {}))
    looked: list[bytes] = []
    monkeypatch.setattr(History, "append", lambda history, data: looked.append(data))
    core.handle(claim, circle.now, sent_by=LIAR)
    assert core.counts["malformed"] == 1
    assert not looked


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(pack_head(RUN, Kind.HELLO, 1, 0) + bytes(8), id="another sender"),
        pytest.param(pack_head(RUN, Kind.HELLO, LIAR, 0), id="too short"),
    ],
)
def test_the_owner_of_the_channel_is_blamed(data):
    core = Circle().cores[0]
    for _ in range(20):
        core.handle(data, 1.0, sent_by=LIAR)
    assert core.muted == {LIAR}
    assert core.faults[1] == 0


def test_a_value_of_the_last_round_costs_a_joining_peer_no_loop_over_rounds(monkeypatch):
    group = Group(RUN, 4, 1, 2)
    strikes: list[int] = []
    strike = History._strike

    def counting(self, leader, *lost):
        strikes.append(leader)
        strike(self, leader, *lost)

    monkeypatch.setattr(History, "_strike", counting)
    log, history, values = DecidedLog(None, group), History(group), []
    for _ in range(5):
        values.append(empty_value(history))
        history.append(values[-1])
    assert len(strikes) <= 5 * group.peers
    with pytest.raises(Malformed):
        log.join([(values[0], pack_certificate(0, {}))], Circle().rings[0])
    lost = records(values, group).failed
    assert sum(lost.values()) == 5 * LAST_ROUND


def test_lost_rounds_add_up_as_one_after_the_other():
    rng = random.Random(3)
    for _ in range(100):
        group = Group(RUN, rng.choice((4, 5, 7, 10)), 1, 2)
        history, reference = History(group), History(group)
        for _ in range(3):
            rounds = rng.choice((0, 1, 2, 3, 5, 8, 9, 30, 300))
            value = empty_value(history, rounds)
            for round in range(rounds):  # as the rule says: each failed round is one strike
                leader = reference.leader(round)
                strikes = min(reference._strikes.get(leader, 0) + 1, MOST_STRIKES)
                reference._strikes[leader] = strikes
                reference._stands_back[leader] = reference.step + 1 + group.peers * 2**strikes
            assert sum(lost_rounds(history.order, rounds).values()) == rounds
            history.append(value)
            reference.append(empty_value(reference, 0))
            reference.digest = history.digest
            assert (history._strikes, history._stands_back) == (reference._strikes, reference._stands_back)
            assert history.order == reference.order
            assert history.digest == digest(RUN, value)
