"""Weights that stay in their files until their layer runs: the bits of a model that was loaded whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import run_helpers as h
from gradless import lm
from gradless.errors import BadInput
from gradless.lm import schemes
from gradless.lm.base_hash import base_sha256
from gradless.methods import METHODS
from gradless.runs import replay
from gradless.storage.floats import FloatStore
from gradless.storage.stored import StoredWeight


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in one of two types; both are computed with in float32."""
    path = tmp_path_factory.mktemp(request.param)
    tiny = lm.load("tiny-llama", dtype=request.param)
    tiny.model.save_pretrained(path)
    tiny.tokenizer.save_pretrained(path)
    return path


def coefficients(model: lm.LanguageModel, engine: str, watch: Any = None) -> list[float]:
    """Those of three steps of MeZO over LoRA."""
    tuned = schemes.apply(model, "lora", seed=3)
    make: Any = METHODS["mezo"].make
    opt = make(schemes.trainable(tuned), lr=1e-2, eps=1e-2, seed=5, engine=engine)
    ids, net = torch.arange(24).view(4, 6) + 7, tuned.model
    got: list[float] = []
    for _ in range(3):
        opt.step_with(lambda: net(input_ids=ids, labels=ids).loss, lambda move: got.extend(move.coeffs))
        if watch is not None:
            watch()
    return got


@pytest.mark.parametrize("engine", ["stream", "dual"])
def test_coefficients_and_hash_have_the_bits_of_the_loaded_model(folder: Path, engine: str) -> None:
    offloaded, loaded = lm.load(str(folder), offload="disk"), lm.load(str(folder))
    matrices = [p for p in offloaded.model.parameters() if p.ndim > 1]
    assert matrices
    assert all(isinstance(p, StoredWeight) for p in matrices)
    assert base_sha256(offloaded) == base_sha256(loaded)
    got = coefficients(offloaded, engine)
    assert got == coefficients(loaded, engine)
    assert all(got)


def test_a_dual_step_reads_each_weight_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[int] = Counter()
    decode, rows = FloatStore.decode, FloatStore.decode_rows

    def counted(original: Any) -> Any:
        def read(self: FloatStore, *arguments: Any) -> None:
            reads[id(self)] += 1
            original(self, *arguments)

        return read

    monkeypatch.setattr(FloatStore, "decode", counted(decode))
    monkeypatch.setattr(FloatStore, "decode_rows", counted(rows))
    steps: list[Counter[int]] = []

    def note() -> None:
        steps.append(Counter(reads))
        reads.clear()

    model = lm.load(str(folder), offload="disk")
    stores = {id(p.store) for p in model.model.parameters() if isinstance(p, StoredWeight)}
    coefficients(model, "dual", note)
    assert steps[-1] == dict.fromkeys(stores, 1)


def test_a_run_goes_on_and_is_replayed_with_and_without(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": str(folder), "scheme": "lora", "lr": 1e-2, "zero_shot": False}
    whole = h.tune(h.config(tmp_path, steps=4, **settings), tmp_path / "whole")
    part = tmp_path / "part"
    h.tune(h.config(tmp_path, steps=2, offload="disk", **settings), part)
    ended = h.tune(h.config(tmp_path, steps=4, **settings), part, resume=True)
    assert ended["weights_sha256"] == whole["weights_sha256"]
    built, _ = replay.rebuild(part, say=lambda line: None)
    assert replay.build.tuned_sha256(built) == whole["weights_sha256"]


def test_full_tuning_of_offloaded_weights_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="cannot write: use --scheme lora, or leave out --offload"):
        schemes.apply(lm.load(str(folder), offload="disk"), "full")


@pytest.mark.parametrize(
    ("source", "offload", "words"),
    [
        ("tiny-llama", "disk", "no file that they could stay in"),
        ("smollm2-135m", "disk", "stays on disk by itself"),
        ("mine.gguf", "disk", "stays on disk by itself"),
        ("tiny-llama", "cpu", "the device is the cpu: use --offload disk"),
        ("tiny-llama", "tape", "unknown offload"),
    ],
)
def test_what_cannot_be_offloaded_is_refused(source: str, offload: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        lm.load(source, offload=offload)
