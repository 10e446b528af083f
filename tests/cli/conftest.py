"""Options of a small run."""

from __future__ import annotations

import pytest

import run_helpers as h


@pytest.fixture
def own(tmp_path) -> list[str]:
    """Options for small own files."""
    files = h.sentiment(tmp_path / "data")
    return [
        *("--train", files["train"], "--test", files["test"], "--template", files["template"]),
        *("--label-column", "label", "--labels", files["labels"]),
    ]


@pytest.fixture
def tune(tmp_path, own) -> list[str]:
    """A run of three steps into ``run``; later options override earlier ones."""
    return [
        *("tune", "--model", "tiny-llama", *own, "--steps", "3", "--batch-size", "4"),
        *("--num-train", "16", "--num-dev", "8", "--out", str(tmp_path / "run")),
    ]
