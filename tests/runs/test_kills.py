"""Killed at moments drawn over all its phases, a command that is started again ends as if nothing had happened."""

from __future__ import annotations

import pytest

import run_helpers as h
from kill_helpers import jobs, killed

JOBS = ("tune", "save", "replay", "eval", "collab")


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.sweep), pytest.param(34, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", JOBS)
def test_killed_and_started_again_it_ends_the_same(tmp_path, name, kills, record_property):
    if name == "replay":
        h.tune(h.config(tmp_path, lr=1e-3), tmp_path / "data" / "run")
    outcome = killed(dict(jobs(tmp_path / "data"))[name], tmp_path / "killed", kills, seed=kills)
    record_property("outcome", str(outcome))
    assert outcome.kills == kills
    assert outcome.same == outcome.runs, outcome.differences
