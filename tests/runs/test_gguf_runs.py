"""Runs over a GGUF in place: the numbers of the run with decoded weights, replayed, saved and predicted with."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from gradless import ledger, lm
from gradless.errors import BadInput
from gradless.runs import jobs, replay
from gradless.storage.stored import StoredWeight
from gradless.system.hashing import file_sha256
from save_helpers import QUIET, tuned

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    from gguf_helpers import write_gguf

    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(lm.tiny("llama", tied=False), file, form="Q5_1")
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place"])
@pytest.mark.parametrize("scheme", ["lora", "head", "prompt", "prefix"])
def test_a_run_in_place_has_the_numbers_of_decoded_weights(path, tmp_path, scheme, engine):
    runs = {}
    for dtype in (None, "float32"):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        runs[dtype] = tuned(folder, model=str(path), scheme=scheme, engine=engine, dtype=dtype)
    here, there = (ledger.read(run / "ledger") for run in runs.values())
    assert here.moves == there.moves
    assert here.header["base_sha256"] == file_sha256(path)
    assert (here.header["dtype"], there.header["dtype"]) == ("gguf", "float32")
    results = [json.loads((run / "result.json").read_text()) for run in runs.values()]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.parametrize("scheme", ["lora", "head"])
def test_a_run_in_place_is_replayed_and_saved(path, tmp_path, scheme):
    run = tuned(tmp_path, model=str(path), scheme=scheme)
    assert jobs.replay(run, verify=True, reporter=QUIET).agrees
    rebuilt, _ = replay.rebuild(run, until=json.loads((run / "result.json").read_text())["selected_step"])
    assert any(isinstance(weight, StoredWeight) for weight in rebuilt.lm.model.parameters())
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = rebuilt.lm.model(input_ids=ids).logits
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text()) if scheme == "lora" else {}
    if saved:
        shutil.copy(path, tmp_path / path.name)  # an adapter's base is looked for beside it
        assert saved["base_model_name_or_path"] == f"./{path.name}"
    with torch.no_grad():
        again = lm.load(str(tmp_path / "saved")).model(input_ids=ids).logits
    if scheme == "lora":
        assert torch.equal(again, expected)
    else:  # of the head only the label words' rows were tuned
        assert torch.isfinite(again).all()
        assert not any(isinstance(one, StoredWeight) for one in lm.load(str(tmp_path / "saved")).model.parameters())


def test_all_weights_cannot_be_tuned_in_place(path, tmp_path):
    with pytest.raises(BadInput, match=r"GGUF Q5_1.*--scheme lora.*scales.*codes.*--dtype float32"):
        tuned(tmp_path, model=str(path), scheme="full")
    assert tuned(tmp_path, model=str(path), scheme="full", dtype="float32").is_dir()


def test_an_adapter_over_a_gguf_is_merged_where_a_scheme_needs_it(path, tmp_path):
    run = tuned(tmp_path, model=str(path), scheme="lora")
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    shutil.copy(path, tmp_path / path.name)
    (tmp_path / "second").mkdir()
    second = tuned(tmp_path / "second", model=str(tmp_path / "saved"), scheme="head")
    assert jobs.replay(second, verify=True, reporter=QUIET).agrees
