"""Frozen blocks are computed once a step, whatever the number of points, and the bits are those of every forward."""

from __future__ import annotations

import pytest

import run_helpers as h
from gradless.forward import prefix_cache
from gradless.forward.model_blocks import Reuse


@pytest.fixture
def computed(monkeypatch):
    """How many calls of blocks each step computed."""
    counts = []

    class Counted(Reuse):
        def __exit__(self, *error):
            counts.append(self.computed)
            super().__exit__(*error)

    monkeypatch.setattr(prefix_cache, "Reuse", Counted)
    return counts


SETTINGS = {
    "head": {"model": "tiny-llama", "scheme": "head"},
    "head of a masked model": {"model": "tiny-roberta", "scheme": "head"},
    "all weights of the last block": {"model": "tiny-llama", "freeze": ("embed", r"layers\.0")},
    "adapters of the last block": {"model": "tiny-llama", "scheme": "lora", "freeze": (r"layers\.0",)},
}
HEAD, LAST_BLOCK = [2, 2, 2], [7, 7, 7]  # of two blocks: both once; the first one once, the last one for six points


@pytest.mark.parametrize(("setting", "calls"), [*zip(SETTINGS, (HEAD, HEAD, LAST_BLOCK, LAST_BLOCK), strict=True)])
def test_what_is_frozen_is_computed_once_and_nothing_else_changes(tmp_path, computed, setting, calls):
    settings = {**SETTINGS[setting], "steps": 3, "queries": 3, "num_dev": 0, "num_test": 0}
    results = [
        h.tune(h.config(tmp_path, **settings, engine=engine), tmp_path / engine) for engine in ("stream", "in-place")
    ]
    survey = 2  # the first forward of a run looks at what is read, and is not kept
    assert computed == [calls[0] + survey, *calls[1:]]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
