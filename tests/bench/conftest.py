"""A benchmark in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench_helpers import BenchDirectory


@pytest.fixture
def directory(tmp_path: Path) -> BenchDirectory:
    return BenchDirectory(tmp_path)
