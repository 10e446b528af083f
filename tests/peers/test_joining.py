"""Fetching the log: peers are asked in turn, and a liar cannot make it last."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from agreement_helpers import RUN, decided
from gradless.peers import agreed_part
from gradless.peers.agreed_part import join
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog
from gradless.peers.signing import hash_rings
from gradless.peers.wire import pack_decided

GROUP, RINGS = Group(RUN, 4, 1, 1), hash_rings(4)
STEPS, AN_ANSWER = 200, 40
LATE = 20.0  # seconds
CHAIN = decided(GROUP, STEPS + 100, RINGS)


class Others:
    """The link of peer 3, and what the other peers answer: as many steps at once, after so many seconds."""

    me, peers = 3, 4

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[int, tuple[int, float]]) -> None:
        self.answers, self.now, self.asked = answers, 0.0, Counter[int]()
        self.steps = STEPS
        monkeypatch.setattr(agreed_part, "time", SimpleNamespace(monotonic=lambda: self.now))

    def alive(self) -> frozenset[int]:
        return frozenset({self.me, *self.answers})

    def fetch(self, peer: int, since: int) -> list[bytes]:
        count, seconds = self.answers[peer]
        self.asked[peer] += 1
        self.now += seconds
        end = min(since + count, self.steps)
        return [pack_decided(RUN, peer, step, *CHAIN[step]) for step in range(since, end)]


def joined(link: Any) -> int:
    return join(DecidedLog(None, GROUP), RINGS[3], link)  # type: ignore[arg-type]


def test_a_peer_that_sends_one_step_at_a_time_delays_by_one_answer(monkeypatch):
    link = Others(monkeypatch, {0: (1, LATE), 1: (AN_ANSWER, 0.1), 2: (AN_ANSWER, 0.1)})
    assert joined(link) == STEPS
    assert link.asked[0] == 1
    assert link.now < LATE + 2.0


def test_one_peer_with_the_log_is_asked_until_it_has_no_more(monkeypatch):
    link = Others(monkeypatch, {0: (0, LATE), 1: (AN_ANSWER, 0.1), 2: (0, LATE)})
    assert joined(link) == STEPS
    assert link.now < 2 * LATE + 2.0


def test_a_peer_cannot_hold_a_joining_one_with_the_steps_that_are_decided_meanwhile(monkeypatch):
    """The group decides 8 steps until each answer of the liar; the agreement itself catches up with them."""

    class Growing(Others):
        def fetch(self, peer: int, since: int) -> list[bytes]:
            self.steps += 8 if peer == 0 else 0
            return super().fetch(peer, since)

    link = Growing(monkeypatch, {0: (AN_ANSWER, LATE), 1: (AN_ANSWER, 0.1), 2: (AN_ANSWER, 0.1)})
    assert joined(link) >= STEPS
    assert link.asked[0] == 1


def test_a_peer_that_sends_something_else_is_not_asked_again(monkeypatch):
    class Forging(Others):
        def fetch(self, peer: int, since: int) -> list[bytes]:
            records = super().fetch(peer, since)
            return records if peer else [b"no step", *records]

    link = Forging(monkeypatch, {0: (AN_ANSWER, 0.1), 1: (AN_ANSWER, 0.1), 2: (AN_ANSWER, 0.1)})
    assert joined(link) == STEPS
    assert link.asked[0] == 1
