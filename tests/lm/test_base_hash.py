"""The hash of a folder's weights is remembered while its files stay as they are, for the type that they are kept in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradless import lm
from gradless.lm import base_hash
from gradless.system import file_hashes


def test_a_folder_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "RECENT", -1.0)
    folder, tiny, passes = tmp_path / "model", lm.tiny("llama"), []
    tiny.model.save_pretrained(folder)  # type: ignore[operator]
    tiny.tokenizer.save_pretrained(folder)
    whole = base_hash.weights_sha256

    def counted(named: list) -> str:
        passes.append(1)
        return whole(named)

    monkeypatch.setattr(base_hash, "weights_sha256", counted)
    model, half = lm.load(str(folder)), lm.load(str(folder), dtype="bfloat16")
    expected = whole(model.model.named_parameters())
    assert [base_hash.base_sha256(model) for _ in range(3)] == [expected] * 3
    assert len(passes) == 1
    assert base_hash.base_sha256(half) == whole(half.model.named_parameters()) != expected
    assert base_hash.base_sha256(lm.load(str(folder), offload="disk")) == expected
    assert len(passes) == 2
    assert base_hash.base_sha256(model, anew=True) == expected
    assert len(passes) == 3
    os.utime(folder / "model.safetensors", ns=(1, 1))
    base_hash.base_sha256(model)
    assert len(passes) == 4
