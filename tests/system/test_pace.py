"""The pace of a job and the time left agree, wherever they are shown."""

from __future__ import annotations

import time

import pytest

from gradless.system.pace import Pace
from gradless.system.progress import Reporter


@pytest.fixture
def at(monkeypatch):
    """A clock that stands where it is put."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_from_the_seconds_a_part(at):
    pace = Pace(60, 10, "step")
    assert pace.text(10) == "0 s"
    at[0] += 24
    assert pace.text(12) == "12 s a step  0:09:36 left"
    assert pace.text(58) == "0.5 s a step  1 s left"
    assert pace.text(60) == "0.48 s a step  24 s"
    assert Pace(None).text(3) == "0 s"


def test_plain_lines(at, capsys):
    with Reporter().job("tune", 4, done=2, part="step") as show:
        at[0] += 3
        show(3, "loss 1")
    with Reporter().job("rows", 2) as show:
        at[0] += 3
        show(1, "")
    assert capsys.readouterr().out.splitlines() == ["tune 3/4  loss 1  3 s a step  3 s left", "rows 1/2  3 s left"]
