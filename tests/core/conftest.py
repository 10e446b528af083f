"""Files of a task, and a run on them by one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ranks_helpers as r
import run_helpers
from ranks_run_helpers import result


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a task."""
    return run_helpers.sentiment(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(own: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, in the engine of runs that split directions."""
    out = tmp_path_factory.mktemp("whole") / "run"
    (end,) = r.together(1, out.parent, r.command, r.tune_line(own, out, "--split", "directions"))
    assert end.code == 0, end.err
    assert result(out)["engine"] == "stream"
    assert "ranks" not in result(out)
    return out
