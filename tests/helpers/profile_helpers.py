"""Small profiles."""

from __future__ import annotations

from typing import Any

from gradless.cost import profile as profiling
from gradless.cost import workload
from gradless.cost.workload import Settings
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)


SMALL: dict[str, Any] = {"batch_size": 2, "length": 6, "repeats": 2}


def measured(model: str = "tiny-llama", **choices: Any) -> dict[str, Any]:
    return profiling.profile(model, **{**SMALL, "memory": False, **choices}, reporter=QUIET)


def subject(model: str = "tiny-llama", **choices: Any) -> workload.Subject:
    return workload.subject(Settings(model=model, **{**SMALL, **choices}), print)
