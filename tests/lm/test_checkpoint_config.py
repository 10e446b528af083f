"""Configurations of saved models that promise more than any machine holds."""

from __future__ import annotations

import json
import time

import pytest

from gradless import lm
from gradless.cost import meta_models
from gradless.errors import BadInput


@pytest.mark.parametrize("load", [lm.load, meta_models.load])
@pytest.mark.parametrize(
    "size", [("num_hidden_layers", 10**9), ("hidden_size", 10**12), ("num_attention_heads", 10**6)]
)
def test_sizes_that_no_machine_has_memory_for_are_refused_at_once(tmp_path, load, size):
    lm.load("tiny-llama").model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    name, number = size
    assert name in config
    (tmp_path / "config.json").write_text(json.dumps({**config, name: number}))
    begun = time.monotonic()
    with pytest.raises(BadInput, match=f"{name} beyond"):
        load(str(tmp_path))
    assert time.monotonic() - begun < 5
