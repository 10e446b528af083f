"""A peer that was away while many rounds of a step failed: the others pull it along, a liar does not."""

from __future__ import annotations

import pytest

from agreement_helpers import Circle
from agreement_world import run_many
from gradless.peers.agreement.core import ROUNDS_AHEAD
from gradless.peers.agreement.instance import LEFT_AT_ONCE
from gradless.peers.schema import LAST_ROUND, NO_DIGEST, SIGNATURE

AWAY, LIAR = 2, 3


def far_timeout(circle: Circle, peer: int, round: int) -> bytes:
    body = circle.cores[peer].instance.validity.timeout_body(peer, round, -1, NO_DIGEST)
    return body + circle.rings[peer].sign(body)


def stalled(round: int) -> Circle:
    """Peers 0 and 1 are in a late round of step 0, where a liar brought them who says TIMEOUTs and no votes."""
    circle = Circle()
    for peer in (0, 1):
        circle.votes[peer].append(far_timeout(circle, peer, round))
        circle.restart(peer)
    circle.up = {0, 1, AWAY}
    return circle


@pytest.mark.parametrize("round", [62, 70, 140, 1000, 1003, LAST_ROUND - 3])
def test_a_peer_that_missed_many_rounds_comes_after_the_others(round):
    circle = stalled(round)
    circle.rows()
    circle.wait(40.0 if round % 4 == LIAR else 1.5)  # the leader of round 1003 is the liar, who has gone
    assert circle.lengths()[:3] == [1, 1, 1]
    assert not any(core.evidence or core.muted for core in circle.cores.values())


def test_following_far_takes_few_signatures():
    circle = stalled(1000)
    circle.rows()
    circle.wait(0.5)
    assert 0 < circle.cores[AWAY].counts["timeouts"] <= LEFT_AT_ONCE + 2


def test_one_liar_moves_nobody():
    circle = Circle()
    core = circle.cores[0]
    for round in (LAST_ROUND, 1000, 100):
        core.handle(far_timeout(circle, LIAR, round), 0.0, sent_by=LIAR)
    assert core.instance.books.latest == {LIAR: LAST_ROUND}
    assert not len(core.instance.books)
    assert (core.instance.round, core.instance.promised) == (0, 0)
    circle.steps(2)
    assert circle.lengths() == [2] * 4


def test_a_forged_round_is_a_fault_and_a_known_one_costs_no_signature_check():
    circle = Circle()
    core = circle.cores[0]
    data = far_timeout(circle, LIAR, 1000)
    core.handle(data[:-SIGNATURE] + bytes(SIGNATURE), 0.0, sent_by=LIAR)
    assert core.faults[LIAR] == 1
    assert not core.instance.books.latest
    for round in range(1000, 1000 + ROUNDS_AHEAD):
        core.handle(far_timeout(circle, LIAR, round), 0.0, sent_by=LIAR)
    assert core.counts["checks"] == 2
    assert core.faults[LIAR] == 1


def test_schedules_that_begin_after_many_failed_rounds():
    for failed in (70, 140):
        counts = run_many(range(5000, 5003), 4, 1, failed=failed, steps=2)
        assert not counts.unsafe
        assert not counts.stuck


@pytest.mark.sweep
@pytest.mark.parametrize(("peers", "byzantine", "count"), [(4, 1, 20), (5, 1, 6), (7, 2, 6)])
def test_more_schedules_that_begin_after_many_failed_rounds(peers, byzantine, count):
    for failed in (3, 60, 66, 75, 300):
        for flaws in ((), ("no-ban",)):
            counts = run_many(range(5100, 5100 + count), peers, byzantine, flaws, failed=failed)
            assert not counts.unsafe
            assert not counts.stuck
