"""A profile with all there is, and a small shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradless.lm import shapes
from profile_helpers import measured


@pytest.fixture(scope="session")
def profile(tmp_path_factory) -> dict[str, Any]:
    """All there is, on a tiny model, as read back from the file."""
    path = tmp_path_factory.mktemp("profile") / "new" / "profile.json"
    result = measured(json=path, picture=path.with_suffix(".png"), replay_steps=20, seed=3)
    assert json.loads(path.read_text()) == result
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert sorted(p.name for p in path.parent.iterdir()) == ["profile.json", "profile.png"]
    return result


@pytest.fixture
def small(monkeypatch) -> str:
    """A shape of the table, scaled down."""
    shape = shapes.SHAPES["qwen3-0.6b"]
    options = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "head_dim": 16, "vocab_size": 500}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 50}
    monkeypatch.setitem(shapes.SHAPES, "small", shape._replace(options={**shape.options, **options, **heads}))
    return "shape:small"
