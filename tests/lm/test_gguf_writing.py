"""Out again: tuned blocks in a GGUF file, and LoRA as an adapter of llama.cpp."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import run_helpers as h
from gguf_helpers import IN_ORDER, split, write_gguf
from gradless import BadInput, lm
from gradless.lm import gguf_file, gguf_schemes, gguf_writing, schemes
from gradless.runs import jobs
from gradless.runs.replay import rebuild
from gradless.storage.stored import StoredWeight, decoded
from gradless.system.progress import Reporter

gguf = pytest.importorskip("gguf")
QUIET = Reporter(quiet=True)
OPTIONS: dict[str, dict[str, Any]] = {"codes": {"density": 0.2}, "scales": {"eps": 1e-4}, "lora": {}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, tiny = tmp_path_factory.mktemp("gguf"), lm.tiny("llama")
    for form in ("Q4_1", "Q8_0"):
        write_gguf(tiny, folder / f"{form}.gguf", form=form)
    write_gguf(tiny, folder / "F32.gguf")
    return folder


def run(folder, file, scheme, **changes):
    settings = h.config(folder, model=str(file), scheme=scheme, lr="auto", **OPTIONS[scheme], **changes)
    return h.tune(settings, folder / "run")


def tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(("scheme", "form"), [("codes", "Q4_1"), ("scales", "Q8_0")])
def test_the_file_is_the_base_with_tuned_blocks_and_loads_again(tmp_path, files, scheme, form):
    base, target = files / f"{form}.gguf", tmp_path / "x.gguf"
    result = run(tmp_path, base, scheme)
    replayed = jobs.replay(tmp_path / "run", save=target, until=3, verify=False, reporter=QUIET)
    built, _ = rebuild(tmp_path / "run", say=lambda line: None)
    before, after = tensors(base), tensors(target)
    assert before.keys() == after.keys()
    assert base.stat().st_size == target.stat().st_size
    start = min(one.data_offset for one in before.values())
    assert base.read_bytes()[:start] == target.read_bytes()[:start]
    changed = [name for name in before if before[name].data.tobytes() != after[name].data.tobytes()]
    assert changed
    assert {before[name].tensor_type.name for name in changed} == {form}
    for (name, store), weight in _weights(built.lm):
        kind = after[name].tensor_type
        values = torch.from_numpy(gguf.quants.dequantize(after[name].data, kind).astype(np.float32))
        assert torch.equal(values if store.base.order is None else values[store.base.order], decoded(weight))
    again = lm.load(str(target))
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, built.lm.model(input_ids=ids).logits)
    assert replayed.step == 3
    assert result["status"] == "done"


def _weights(model):
    by_store = {id(w.store): w for _, _, w in gguf_schemes._stored(model.model)}
    return [((store.base.tensor, store), by_store[id(store)]) for store in gguf_schemes.stores(model)]


def test_a_run_goes_on_and_replays(tmp_path, files):
    settings = h.config(tmp_path, model=str(files / "Q4_1.gguf"), scheme="codes", lr="auto", engine="dual")
    whole = h.tune(settings, tmp_path / "whole")
    (tmp_path / "whole" / "result.json").unlink()
    ledger = tmp_path / "whole" / "ledger"
    ledger.write_bytes(ledger.read_bytes()[:-20])  # a torn last record
    again = h.tune(settings, tmp_path / "whole", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert jobs.replay(tmp_path / "whole", verify=True, reporter=QUIET).agrees


def test_lora_is_an_adapter_that_says_what_peft_says(tmp_path, files):
    base, target = files / "Q4_1.gguf", tmp_path / "adapter.gguf"
    run(tmp_path, base, "lora", rank=4, alpha=6.0)
    jobs.replay(tmp_path / "run", save=target, until=3, reporter=QUIET)
    reader = gguf.GGUFReader(target)
    assert gguf_file.field(reader, "general.type") == "adapter"
    assert gguf_file.field(reader, "adapter.type") == "lora"
    assert gguf_file.field(reader, "general.architecture") == "llama"
    alpha = float(gguf_file.field(reader, "adapter.lora.alpha"))
    built, _ = rebuild(tmp_path / "run", until=3, say=lambda line: None)
    arrays = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
    assert len(arrays) == 8
    for number in range(2):
        layer = built.lm.model.get_base_model().model.layers[number].self_attn
        for ours, theirs in (("q_proj", "attn_q"), ("v_proj", "attn_v")):
            a, b = (arrays[f"blk.{number}.{theirs}.weight.lora_{one}"] for one in "ab")
            delta, module = b @ a * (alpha / len(a)), getattr(layer, ours)
            order = module.get_base_layer().weight.store.order
            expected = module.get_delta_weight("default")
            assert expected.abs().max() > 0
            assert torch.allclose(delta if order is None else delta[order], expected, atol=1e-7)
            assert (order is None) == (ours == "v_proj")
    with pytest.raises(BadInput, match="LoRA adapter"):
        lm.load(str(target))


def test_what_has_no_such_form_is_refused_in_one_sentence(tmp_path, files):
    for scheme, save, words in (
        ("codes", tmp_path / "folder", "ends in .gguf"),
        ("scales", tmp_path / "folder", "ends in .gguf"),
        ("head", tmp_path / "x.gguf", "give --save DIR"),
    ):
        settings = h.config(tmp_path, model=str(files / "Q4_1.gguf"), scheme=scheme)
        with pytest.raises(BadInput, match=words):
            jobs.tune(settings, tmp_path / "none", save=save, reporter=QUIET)
        assert not (tmp_path / "none").exists()
    h.tune(h.config(tmp_path, scheme="lora"), tmp_path / "float")
    with pytest.raises(BadInput, match="not read from a GGUF file in place"):
        jobs.replay(tmp_path / "float", save=tmp_path / "x.gguf", until=3, reporter=QUIET)
    assert not (tmp_path / "x.gguf").exists()
    (tmp_path / "taken.gguf").write_bytes(b"")
    with pytest.raises(BadInput, match="exists already"):
        jobs.replay(tmp_path / "float", save=tmp_path / "taken.gguf", reporter=QUIET)


def test_a_resumed_run_knows_the_file_that_it_wrote(tmp_path, files, capsys):
    settings = h.config(tmp_path, model=str(files / "Q4_1.gguf"), scheme="codes", lr="auto", density=0.2)
    out, target, reporter = tmp_path / "run", tmp_path / "x.gguf", Reporter()
    for resume in (False, True):
        result = jobs.tune(settings, out, resume=resume, save=target, reporter=reporter)
    assert [line for line in capsys.readouterr().out.splitlines() if "x.gguf" in line] == [
        f"saved to {target}",
        f"{target} holds the weights of step {result['selected_step']} already",
    ]
    data = target.read_bytes()
    for other in (data + b"\0", data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"GGUF"):
        target.write_bytes(other)
        with pytest.raises(BadInput, match=r"x\.gguf exists already"):
            jobs.tune(settings, out, resume=True, save=target, reporter=reporter)
        assert target.read_bytes() == other
    with pytest.raises(BadInput, match=r"x\.gguf exists already"):
        jobs.tune(settings, tmp_path / "new", resume=True, save=target, reporter=reporter)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("scheme", "begin"),
    [("codes", IN_ORDER), ("scales", ((), ("token_embd.", *IN_ORDER[1]), IN_ORDER[2])), ("lora", IN_ORDER)],
)
def test_a_split_base_is_saved_as_one_file(tmp_path, scheme, begin):
    base = split(lm.tiny("llama"), tmp_path, begin=begin, form="Q4_1")
    run(tmp_path, base[1], scheme)
    jobs.replay(tmp_path / "run", save=tmp_path / "x.gguf", until=3, reporter=QUIET)
    built, _ = rebuild(tmp_path / "run", until=3, say=lambda line: None)
    assert gguf_writing.holds(built.lm, tmp_path / "x.gguf")
    if scheme == "lora":
        return
    after, parts = tensors(tmp_path / "x.gguf"), {name: one for file in base for name, one in tensors(file).items()}
    assert {*after} == {*parts}
    assert all(after[name].tensor_type == one.tensor_type for name, one in parts.items())
    assert any((after[name].data != one.data).any() for name, one in parts.items())
    assert all((after[name].data == one.data).all() for name, one in parts.items() if one.tensor_type.name == "F32")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert not [name for name in reader.fields if name.startswith("split.")]
    again, ids = lm.load(str(tmp_path / "x.gguf")), torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, built.lm.model(input_ids=ids).logits)
    assert again.tokenizer("good film").input_ids == built.lm.tokenizer("good film").input_ids


@pytest.mark.parametrize("scheme", ["scales", "codes"])
def test_only_models_of_gguf_files_have_such_numbers(files, scheme):
    for source, dtype in (("tiny-llama", None), (str(files / "Q4_1.gguf"), "float32"), (str(files / "F32.gguf"), None)):
        with pytest.raises(BadInput, match=f"scheme {scheme} tunes the blocks of a GGUF file"):
            schemes.apply(lm.load(source, dtype=dtype), scheme)


def test_patterns_freeze_codes(files):
    model = schemes.apply(lm.load(str(files / "Q4_1.gguf")), "codes", freeze=("embed_tokens", r"\.mlp\."))
    names = [name for name, _ in schemes.trainable(model)]
    assert names
    assert all("self_attn" in name or "lm_head" in name for name in names)
    assert not any(isinstance(p, StoredWeight) for _, p in schemes.trainable(model))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "fo-adam"}, "no derivatives"),
        ({"weight_decay": 0.1}, "--weight-decay"),
        ({"layer_scale": "variance"}, "--layer-scale"),
        ({"density": 0.0}, "density"),
    ],
)
def test_settings_that_codes_cannot_have(tmp_path, changes, words):
    with pytest.raises(BadInput, match=words):
        h.config(tmp_path, scheme="codes", **changes).resolved()


def test_other_runs_say_nothing_of_density(tmp_path):
    assert "density" not in h.config(tmp_path).to_json()
    assert json.loads(json.dumps(h.config(tmp_path, scheme="codes").to_json()))["density"] == 0.02


@pytest.mark.sweep
@pytest.mark.parametrize("scheme", ["scales", "codes"])
def test_profile_takes_such_models(files, scheme):
    profile = pytest.importorskip("gradless.cost.profile").profile
    result = profile(
        str(files / "Q4_1.gguf"), scheme=scheme, batch_size=2, length=8, repeats=1, memory=False, reporter=QUIET
    )
    assert all(row["step_seconds"] > 0 for row in result["engines"].values())
    assert (result["eager_mezo"] is None) == (scheme == "codes")


def test_groups_of_peers_do_not_take_them(files):
    from gradless.collab.config import CollabConfig
    from gradless.collab.learners.language import Text

    with pytest.raises(BadInput, match="use --scheme lora"):
        Text(CollabConfig(model=str(files / "Q4_1.gguf"), scheme="codes"), 3)


def test_a_plan_counts_what_is_tuned(files):
    plan = pytest.importorskip("gradless.cost.plan")
    settings = plan.Settings(model=str(files / "Q4_1.gguf"), scheme="codes", batch_size=2, length=8)
    codes = plan.plan(settings).need("mezo, codes")
    loaded = schemes.apply(lm.load(str(files / "Q4_1.gguf")), "codes")
    assert codes.tuned == sum(p.numel() for _, p in schemes.trainable(loaded))
    scales = plan.plan(plan.Settings(model=str(files / "Q4_1.gguf"), scheme="scales", batch_size=2, length=8))
    assert scales.need("inference").total < scales.need("mezo, scales").total < codes.total
