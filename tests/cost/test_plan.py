"""The planner against runs of the real engines, and the published formula."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers

from gradless import lm
from gradless.cost import footprint, meta_models, plan, workload
from gradless.cost.footprint import Batch
from gradless.cost.plan import Settings
from gradless.errors import BadInput
from gradless.forward.live_memory import FusedAttention, Live
from gradless.lm import assets, gguf_file, gguf_layout, shapes
from gradless.system import cache

ROWS, LENGTH = 8, 64
STATED = 0.2  # how far a plan may be off what tensors of a run take; docs/how-to/memory.md states it
ALONE = 320_000  # bytes that do not grow with the model: a table of normal quantiles, sizes of a batch


def counted(model: str, method: str, scheme: str, engine: str) -> tuple[int, int]:
    """Bytes that tensors take beside the weights: in a forward, and in three steps, of a real run on the CPU."""
    settings = workload.Settings(model=model, method=method, scheme=scheme, batch_size=ROWS, length=LENGTH)
    subject = workload.subject(settings, print)
    known = [*subject.lm.model.parameters(), *subject.lm.model.buffers()]
    with torch.no_grad(), Live(known) as live:
        subject.closure()
    optimizer = workload.optimizer(subject, engine=engine, defer=True)
    masks = [leaf.mask for leaf in optimizer.leaves if leaf.mask is not None]
    with Live([*known, *masks]) as stepping, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            optimizer.step(subject.closure)
    return live.peak, stepping.peak + sum(mask.numel() for mask in masks)


def planned(model: str, method: str, scheme: str, engine: str) -> tuple[int, int]:
    """The same from shapes alone."""
    settings = Settings(model=model, method=method, scheme=scheme, batch_size=ROWS, length=LENGTH)
    subject = plan.subject(settings, scheme)
    need = plan.of_method(subject, method, engine, "")
    return plan.inference(subject).activations, need.total - need.weights


# ---------------------------------------------------------------------------------------------------------------
# against runs


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("model", "method", "scheme", "engine"),
    [
        ("tiny-llama", "mezo", "full", "stream"),
        ("tiny-llama", "mezo", "full", "dual"),
        ("tiny-llama", "mezo", "full", "in-place"),
        ("tiny-llama", "fzoo", "full", "dual"),
        ("tiny-llama", "zo-sparse", "full", "stream"),
        ("tiny-llama", "zo-momentum", "full", "dual"),
        ("tiny-llama", "zo-adam", "full", "stream"),
        ("tiny-opt", "lozo", "full", "dual"),
        ("tiny-opt", "mezo", "lora", "stream"),
        ("tiny-opt", "mezo", "prefix", "stream"),
        ("tiny-opt", "mezo", "head", "stream"),
        ("tiny-opt", "fo-adam", "full", "stream"),
        ("tiny-opt", "hybrid", "full", "stream"),
        ("tiny-gemma", "mezo", "prompt", "dual"),
        ("tiny-gemma", "fo-adam", "lora", "stream"),
        ("tiny-mistral", "mezo", "full", "stream"),
        ("tiny-qwen", "fo-sgd", "full", "stream"),
        ("tiny-roberta", "mezo", "full", "stream"),
        ("tiny-roberta", "mezo", "lora", "dual"),
        ("tiny-roberta", "fo-adam", "full", "stream"),
    ],
)
def test_a_plan_agrees_with_the_tensors_of_a_run(model, method, scheme, engine):
    forward, step = counted(model, method, scheme, engine)
    guessed_forward, guessed_step = planned(model, method, scheme, engine)
    assert guessed_forward == pytest.approx(forward, rel=STATED)
    alone = ALONE if method == "zo-adam" else 0
    assert guessed_step == pytest.approx(step, rel=STATED, abs=alone)


def test_a_leaf_that_is_large_is_buffered_and_a_table_is_not():
    settings = Settings(model="shape:opt-125m", batch_size=2, length=8)
    subject = plan.subject(settings, "full")
    need = plan.of_method(subject, "mezo", "stream", "")
    row = 7 * 768 * 768 * 4  # the second half of a feed-forward layer and three projections: up to 4M elements
    small = sum(p.numel() * 4 for _, p in subject.tuned if p.numel() <= 1 << 16)
    assert need.scratch == row + small
    table = 50272 * 768 * 4
    assert need.scratch < table
    whole = plan.of_method(subject._replace(batch=subject.batch._replace(every_token=True)), "mezo", "stream", "")
    assert whole.scratch == table + small  # language modelling multiplies with all of it


def test_two_points_at_once_take_twice_the_memory_of_one():
    subject = plan.subject(Settings(model="tiny-llama", batch_size=ROWS, length=LENGTH), "full")
    one, two = (plan.of_method(subject, "mezo", engine, "") for engine in ("stream", "dual"))
    assert two.scratch == 2 * one.scratch
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01)


@pytest.mark.parametrize("stored", [{"quantise": "nf4"}, {"quantise": "int8"}, {"offload": "disk"}])
def test_ways_that_share_a_scheme_share_the_storage_of_its_weights(stored):
    planned = plan.plan(Settings(model="tiny-llama", scheme="lora", batch_size=ROWS, length=LENGTH, **stored))
    need = {one.name: one for one in planned.needs}
    frozen = need["inference"].weights
    own = plan.subject(planned.settings, "lora")
    for name in ("mezo, lora", "adam, lora", "adam, lora, checkpointed"):
        assert need[name].weights == frozen
        assert need[name].scratch >= own.stored.buffer > 0  # the largest weight, decoded
        assert need[name].total > need["inference"].total
    assert need["adam, all weights"].weights > frozen


# ---------------------------------------------------------------------------------------------------------------
# against formulas


def test_activations_of_a_layer_are_those_of_the_published_formula():
    # Korthikanti et al. 2022, equation 2, B L h (34 + 5 a L / h) in 16 bits. Without dropout, its three masks
    # (1 + 1 + a L / h bytes) do not exist; ReLU keeps its output, which the next product keeps anyway, and not, as GELU
    # does, its input beside it (8 h).
    batch, length, hidden, heads = 2, 128, 768, 12
    saved_bytes = {}
    for attention in ("eager", "flash"):
        for layers in (1, 2):
            lm = _opt(hidden, layers, heads, attention)
            tuned = list(lm.model.parameters())
            saved = footprint.backward(lm, tuned, Batch(batch, length, False), checkpoint=False).saved
            saved_bytes[attention, layers] = saved
    eager = saved_bytes["eager", 2] - saved_bytes["eager", 1]
    fused = saved_bytes["flash", 2] - saved_bytes["flash", 1]
    linear = batch * length * hidden * (34 - 2 - 8)
    scores = batch * heads * length * length
    assert fused == pytest.approx(linear, rel=0.05)
    # A softmax in float32 and its copy in 16 bits, where the fused kernel keeps a float32 sum for each row.
    assert eager - fused == scores * (4 + 2) - batch * heads * length * 4
    # Forwards keep nothing: the peak does not grow with depth.
    peaks = [footprint.forward_peak(_opt(hidden, n, heads, "flash"), Batch(batch, length, False)) for n in (1, 4)]
    assert peaks[0] == peaks[1]


def _opt(hidden: int, layers: int, heads: int, attention: str) -> lm.LanguageModel:
    shape = shapes._opt(hidden, layers, heads)
    config, _ = meta_models._built(shape)
    config._attn_implementation = "eager" if attention == "eager" else "sdpa"
    model = meta_models._empty(config, False, torch.bfloat16, "opt").eval()
    return lm.LanguageModel(model, shapes.Vocabulary(size=9, model_max_length=9, pad_token_id=1), False, "opt", "opt")


def test_checkpoints_are_one_hidden_state_a_block_and_one_block_at_a_time():
    lm = _opt(768, 6, 12, "flash")
    tuned, batch = list(lm.model.parameters()), Batch(2, 128, False)
    plain, saving = (footprint.backward(lm, tuned, batch, checkpoint=flag) for flag in (False, True))
    state = 2 * 128 * 768 * 2
    assert 6 * state <= saving.saved <= 10 * state
    assert plain.saved > 2.5 * saving.saved
    assert plain.gradients == saving.gradients == sum(p.numel() * 2 for p in tuned)


def test_fused_attention_gives_the_shapes_and_gradients_of_attention():
    q, k = (torch.empty(2, heads, 5, 8, device="meta", requires_grad=True) for heads in (4, 2))
    with FusedAttention():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    assert out.shape == (2, 4, 5, 8)
    assert out.transpose(1, 2).is_contiguous()
    gradients = torch.autograd.grad(out.sum(), [q, k])
    assert [g.shape for g in gradients] == [q.shape, k.shape]


def test_live_counts_storages_and_not_views():
    x = torch.zeros(1000)
    with Live([x]) as live:
        view = x[10:20]
        y = x + 1
        half = y[:500]
        assert live.now == 4000
        del y
        assert live.now == 4000  # the view holds it
        del half
    assert (live.now, live.peak) == (0, 4000)
    assert view.sum() == 0


# ---------------------------------------------------------------------------------------------------------------
# the table


def test_state_of_adam_is_sixteen_bytes_a_weight_in_mixed_precision():
    for dtype, weight, state in (("bfloat16", 2, 12), ("float32", 4, 8)):
        estimate = plan.plan(Settings(model="tiny-llama", dtype=dtype, batch_size=2, length=8))
        adam = estimate.need("adam, all weights")
        assert (adam.weights, adam.gradients, adam.state) == tuple(
            estimate.parameters * size for size in (weight, weight, state)
        )
    order = [need.total for need in estimate.needs]
    assert order[0] < order[1] < order[4]
    assert order[3] <= order[4]


@pytest.mark.parametrize("scheme", ["lora", "prefix", "prompt", "head"])
def test_schemes_tune_what_they_tune_in_a_run(scheme):
    need = plan.plan(Settings(model="tiny-opt", scheme=scheme, batch_size=2, length=8)).needs[1]
    subject = workload.subject(workload.Settings(model="tiny-opt", scheme=scheme, batch_size=2, length=8), print)
    assert need.tuned == sum(p.numel() for _, p in subject.named)
    assert need.weights == sum(p.numel() * 4 for p in subject.lm.model.parameters())


def test_known_configurations_are_those_of_the_files():
    for name in meta_models.KNOWN:
        asset = next((p for p in (cache.cache_root() / "gguf").glob("*/config.json") if _is(p, name)), None)
        if asset is None:
            continue
        theirs = json.loads(asset.read_text())
        ours = meta_models.load(name).model.config.to_dict()
        for key in ("hidden_size", "intermediate_size", "layer_types", "vocab_size", "tie_word_embeddings", "head_dim"):
            assert ours.get(key) == theirs.get(key, ours.get(key)), (name, key)
    counts = {"gemma-3-270m": 268_098_176, "smollm2-135m": 134_515_008}  # as lm.load counts them
    assert all(meta_models.load(name).num_parameters == count for name, count in counts.items())
    assert set(meta_models.KNOWN) == {name for name in lm.sources() if not name.startswith("tiny-")}


@pytest.mark.parametrize("name", sorted(gguf_layout.KNOWN))
def test_known_names_are_planned_as_their_files(name):
    asset = assets.ASSETS[name]
    file = assets.cached_folder(asset, name, cache.cache_root()) / asset.entry
    if not file.is_file():
        pytest.skip(f"{name} is not in the cache")
    layout = gguf_layout.of_file(gguf_file.read(file))
    matrices = {tensor: form for tensor, form in layout.formats.items() if form.name != "F32"}
    assert gguf_layout.KNOWN[name] == (layout.architecture, matrices)


@pytest.mark.parametrize("scheme", ["lora", "scales", "codes"])
def test_known_names_need_no_file(scheme, monkeypatch):
    monkeypatch.setattr(cache, "cache_root", lambda: Path("/nonexistent"))
    estimate = plan.plan(Settings(model="smollm2-135m", scheme=scheme, batch_size=2, length=8))
    assert estimate.dtype == "gguf"
    row, read = estimate.need(f"mezo, {scheme}"), estimate.need("inference")
    table, others, norms = 28_311_552, 106_168_320, 35_136  # in Q8_0, Q4_1 and F32
    matrices, blocks, file = table + others, (table + others) // 32, table // 32 * 34 + others // 32 * 20 + 4 * norms
    own = {"lora": row.tuned * 4, "scales": 2 * blocks, "codes": matrices}[scheme]
    assert row.tuned == {"lora": 460_800, "scales": blocks, "codes": matrices}[scheme]
    assert row.weights == file + own
    assert read.weights == file + 4 * 460_800
    assert plan.plan(Settings(model="smollm2-135m", batch_size=2, length=8)).dtype == "float32"


@pytest.mark.parametrize("settings", [{"quantise": "nf4"}, {"offload": "disk"}], ids=str)
def test_a_gguf_is_neither_quantised_again_nor_offloaded(settings):
    with pytest.raises(BadInput, match=f"smollm2-135m is a GGUF file.*--{next(iter(settings))}"):
        plan.plan(Settings(model="smollm2-135m", scheme="lora", **settings))


def _is(path: Path, name: str) -> bool:
    return json.loads(path.read_text())["hidden_size"] == meta_models.KNOWN[name].options["hidden_size"]


@pytest.mark.sweep
def test_no_weights_are_made_and_nothing_is_asked_of_a_network():
    # In a process of its own, to see its peak.
    code = """
import resource, socket
def refuse(*_):
    raise AssertionError("a connection")
socket.socket.connect = refuse
from gradless.cost.plan import Settings, plan
found = plan(Settings(model="shape:opt-13b", batch_size=1, length=8))
print(found.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    parameters, peak = map(int, run.stdout.split())
    assert parameters == 12_853_473_280
    assert peak < 2e9  # 51 GB in float32


@pytest.mark.few(2)
@pytest.mark.parametrize("family", ["GPT2", "Bloom", "Gemma2", "Bert", "ModernBert"])
def test_architectures_need_no_formula_of_their_own(family, tmp_path):
    small = {
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
        **{"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "head_dim": 16, "num_key_value_heads": 2},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    }
    kind = getattr(transformers, f"{family}Config")
    usual = kind()
    kind(**{name: value for name, value in small.items() if hasattr(usual, name)}).save_pretrained(tmp_path)
    totals = [need.total for need in plan.plan(Settings(model=str(tmp_path), batch_size=2, length=16)).needs]
    assert totals[0] < totals[1] < totals[-1]


def test_a_folder_needs_only_its_config(tmp_path):
    lm.tiny("llama").model.config.save_pretrained(tmp_path)  # type: ignore[operator]
    estimate = plan.plan(Settings(model=str(tmp_path), batch_size=2, length=8))
    same = plan.plan(Settings(model="tiny-llama", batch_size=2, length=8))
    assert [n.total for n in estimate.needs] == [n.total for n in same.needs]
