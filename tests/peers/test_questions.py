"""Who asks for the log again and again is answered less often, the longer its answers take."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from gradless.peers import questions
from gradless.peers.questions import LEAST, MOST, SHARE, Questions


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(questions, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_one_question_of_each_peer_waits():
    waiting: Questions[str] = Questions(3)
    assert waiting.put(2, "first") is None
    assert waiting.put(1, "other") is None
    assert waiting.put(2, "second") == "first"
    assert [waiting.get(0.0) for _ in range(3)] == [(1, "other"), (2, "second"), None]


@pytest.mark.parametrize(("took", "pause"), [(0.0, LEAST), (0.4, 0.4 * SHARE), (60.0, MOST)])
def test_an_answer_that_took_long_makes_its_asker_wait_and_nobody_else(clock, took, pause):
    waiting: Questions[str] = Questions(3)
    waiting.answered(1, took)
    waiting.put(1, "again")
    waiting.put(2, "other")
    assert waiting.get(0.0) == (2, "other")
    clock.now += pause - 0.01
    assert waiting.get(0.0) is None
    clock.now += 0.02
    assert waiting.get(0.0) == (1, "again")


def test_a_peer_that_reads_nothing_holds_the_others_up_for_a_tenth_of_the_time_at_most(clock):
    waiting: Questions[int] = Questions(2)
    stalled, begun = 0.0, clock.now
    while clock.now - begun < 600:
        waiting.put(1, 0)
        if waiting.get(0.0) is None:
            clock.now += 0.05
            continue
        clock.now += 0.4
        stalled += 0.4
        waiting.answered(1, 0.4)
    assert stalled <= 600 / 10


def test_who_waits_for_a_question_is_woken():
    waiting: Questions[str] = Questions(2)
    results: list[object] = []
    worker = threading.Thread(target=lambda: results.extend((waiting.get(), waiting.get())))
    worker.start()
    waiting.put(1, "question")
    waiting.close()
    worker.join(10.0)
    assert results in ([(1, "question"), None], [None, None])
