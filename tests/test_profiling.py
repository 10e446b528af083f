"""Profiles: the figures fit together, the baseline is algorithm 1, shapes are built, bad input is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from gradless import rng
from gradless.cli import main
from gradless.cost import eager_mezo, time_shares, workload
from gradless.cost import profile as profiling
from gradless.cost.workload import EAGER, FLOOR, Settings
from gradless.errors import BadInput
from gradless.lm import shapes
from gradless.methods import METHODS
from gradless.optimizer import ENGINES
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
SMALL: dict[str, Any] = {"batch_size": 2, "length": 6, "repeats": 2}
# Published sizes: MeZO's and the model cards' round numbers, exactly as these architectures count them.
WEIGHTS = {
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "roberta-large": 355_412_057,
}


def measured(model: str = "tiny-llama", **choices: Any) -> dict[str, Any]:
    return profiling.profile(model, **{**SMALL, "memory": False, **choices}, reporter=QUIET)


def subject(model: str = "tiny-llama", **choices: Any) -> workload.Subject:
    return workload.subject(Settings(model=model, **{**SMALL, **choices}), print)


# ---------------------------------------------------------------------------------------------------------------
# the profile


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> dict[str, Any]:
    """All there is, on a tiny model, as read back from the file."""
    path = tmp_path_factory.mktemp("profile") / "new" / "profile.json"
    result = measured(json=path, picture=path.with_suffix(".png"), replay_steps=20, seed=3)
    assert json.loads(path.read_text()) == result
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert sorted(p.name for p in path.parent.iterdir()) == ["profile.json", "profile.png"]
    return result


def test_the_contract_is_kept(profile):
    assert profile["floor_seconds"] > 0
    assert profile["eager_mezo_seconds"] > 0
    assert set(profile["engines"]) == set(ENGINES)
    for row in profile["engines"].values():
        assert row["used"] in ENGINES
        assert {"step_seconds", "ratio", "flush_seconds", "peak_memory_bytes", "samples"} <= set(row)
    assert profile["inference_memory_bytes"] is None  # not measured here
    facts = {"model": "tiny-llama", "scheme": "full", "method": "mezo", "batch_size": 2, "length": 6}
    assert facts.items() <= profile.items()
    assert profile["dtype"] == "float32"
    assert profile["device"] == "cpu"
    assert profile["device_name"]
    assert profile["threads"] == torch.get_num_threads()
    assert profile["versions"]["torch"] == torch.__version__
    assert profile["tuned_parameters"] == profile["parameters"] == 46_880


def test_figures_fit_together(profile):
    floor = profile["floor_seconds"]
    rows = {FLOOR: profile["floor"], EAGER: profile["eager_mezo"], **profile["engines"]}
    for row in rows.values():
        assert len(row["samples"]) == profile["repeats"] == 2
        assert row["min"] == min(row["samples"]) <= row["quartiles"][0] <= row["quartiles"][1] <= max(row["samples"])
        # The median of two is their mean; every step pays its part of the flush.
        assert row["step_seconds"] == pytest.approx((sum(row["samples"]) + row["flush_seconds"]) / 2)
        assert row["ratio"] == row["step_seconds"] / floor
    assert rows[FLOOR]["step_seconds"] == floor
    assert rows[EAGER]["step_seconds"] == profile["eager_mezo_seconds"]
    best = min(profile["engines"], key=lambda name: profile["engines"][name]["step_seconds"])
    assert profile["fastest"] == best
    for name, parts in profile["share"].items():
        assert sum(parts.values()) == pytest.approx(rows[name]["step_seconds"])
        assert all(value >= 0 for value in parts.values())
        assert parts[time_shares.PRODUCTS] > 0
        assert (parts[time_shares.SWEEPS] > 0) == (name != FLOOR)
    each = profile["replay_seconds_per_step"]
    assert profile["replay_speedup"] == pytest.approx(profile["engines"][best]["step_seconds"] / each)


def test_what_is_left_out_is_left_out():
    result = measured(eager=False, engines=("stream",), repeats=1, threads=1)
    assert result["eager_mezo_seconds"] is None
    assert list(result["engines"]) == ["stream"]
    assert set(result["share"]) == {FLOOR, "stream"}
    assert result["threads"] == 1
    assert "replay_speedup" not in result


@pytest.mark.parametrize("scheme", ["lora", "prefix", "prompt", "head"])
def test_schemes_and_a_masked_model(scheme):
    """All schemes, also where no tokenizer exists (virtual tokens are drawn from the vocabulary)."""
    result = measured("tiny-roberta", scheme=scheme, engines=("stream",), repeats=1)
    assert 0 < result["tuned_parameters"] < result["parameters"]
    assert result["engines"]["stream"]["ratio"] > 0


def test_an_engine_that_fell_back_is_named(monkeypatch, capsys):
    make = METHODS["mezo"].make

    def stream_only(*args: Any, engine: str, **rest: Any) -> Any:
        return make(*args, **{**rest, "engine": "stream"})

    monkeypatch.setitem(METHODS, "mezo", METHODS["mezo"]._replace(make=stream_only))
    result = measured(eager=False, engines=("dual",), repeats=1)
    assert result["engines"]["dual"]["used"] == "stream"
    profiling.show(result)
    assert "dual (ran as stream)" in capsys.readouterr().out


def test_a_flush_is_paid_for_by_the_steps_before_it():
    row = profiling._row([3.0, 1.0, 2.0], flush=0.6, floor=1.1)
    assert row["step_seconds"] == pytest.approx(2.2)
    assert row["ratio"] == pytest.approx(2.0)
    assert row["quartiles"] == [1.5, 2.5]


def test_plain_lines(profile, capsys):
    profiling.show(profile)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny-llama, full, mezo, 2 x 6 tokens, float32, ")
    assert [line.split("  ")[0] for line in lines[2:4]] == ["two forwards (floor)", "eager MeZO"]
    assert len({line.index(" - ") for line in lines[2:7]}) == 1
    measured = {"peak_memory_bytes": 11 * 10**8, "kernels_memory_bytes": 10**8}
    row = profile["floor"] | measured
    assert profiling._line("stream", row, 10**9)[-3:] == ("1.100 GB", "1.10", "0.100 GB")
    assert lines[-1].startswith(f"fastest: {profile['fastest']}, ")
    assert all(line.isascii() for line in lines[2:])


def test_the_closure_is_a_label_only_loss_and_the_floor_two_of_it(monkeypatch):
    """The batch is that of a training step with single-token labels: two rows of the output layer, one loss."""
    found = subject("tiny-opt")
    with torch.no_grad():
        loss = found.closure()
    words = rng.philox_blocks(0, 12, rng.leaf_id("profile"), rng.fold(0, rng.ORDER))[:, 0] % len(found.lm.tokenizer)
    pad = found.lm.tokenizer.pad_token_id
    tokens = torch.where(words == pad, pad + 1, words).view(2, 6)
    logits = found.lm.model(input_ids=tokens).logits[:, -1, list(workload.CANDIDATE_TOKENS)]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0])).item(), abs=1e-5
    )
    calls: list[bool] = []
    counted = found._replace(closure=lambda: calls.append(torch.is_grad_enabled()))
    workload.candidate(counted, FLOOR).step()
    assert calls == [False, False]


def test_updates_are_deferred_where_a_run_defers_them(monkeypatch):
    given = []
    spy = METHODS["mezo"]._replace(make=lambda params, **choices: given.append(choices))
    monkeypatch.setitem(METHODS, "mezo", spy)
    found = subject()
    for name in ENGINES:
        workload.candidate(found, name)
    assert [(c["engine"], c["defer"]) for c in given] == [("stream", True), ("dual", True), ("in-place", False)]
    assert all(c["lr"] == workload.LR and c["eps"] == 1e-3 for c in given)


# ---------------------------------------------------------------------------------------------------------------
# memory


def test_memory_is_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(profiling, "_names", lambda settings: [FLOOR])
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    peaks = profiling._peaks_of_processes(Settings(model="tiny-llama", threads=1, **SMALL), QUIET)
    assert 5e7 < peaks[FLOOR]["inference_memory_bytes"] < 5e9
    assert peaks[FLOOR]["peak_memory_bytes"] >= 0.9 * peaks[FLOOR]["inference_memory_bytes"]
    assert peaks[FLOOR]["kernels_memory_bytes"] == 0


def test_memory_of_an_engine(tmp_path):
    """What a process for one candidate does; in place, the copy of the model is in the peak."""
    command = ["profile", "--model", "tiny-llama", "--length", "6", "--batch-size", "2"]
    state = torch.random.get_rng_state()
    found = CliRunner().invoke(main, [*command, "--only", "in-place", "--json", str(tmp_path / "peaks.json")])
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.exit_code == 0, found.output
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    assert set(peaks) == set(profiling.PEAKS)
    assert peaks["peak_memory_bytes"] > 5e7


def test_a_process_that_fails_costs_one_figure(monkeypatch, capsys):
    def run(command: list[str], **rest: Any) -> Any:
        name = command[command.index("--only") + 1]
        if name == "stream":
            return SimpleNamespace(returncode=-9, stderr="")
        with open(command[command.index("--json") + 1], "w") as file:
            json.dump({"inference_memory_bytes": 100, "peak_memory_bytes": 110, "kernels_memory_bytes": 3}, file)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(profiling, "_timed", lambda *_: {
        "floor": {}, "eager_mezo": {}, "engines": {name: {} for name in ENGINES}, "floor_seconds": 1.0,
    })  # fmt: skip
    result = profiling.profile("tiny-llama", **SMALL, reporter=Reporter())
    assert "the memory of stream could not be measured: killed, out of memory?" in capsys.readouterr().out
    assert result["inference_memory_bytes"] == 100
    assert result["engines"]["stream"] == dict.fromkeys(profiling.PEAKS)
    assert result["engines"]["dual"]["peak_memory_bytes"] == result["eager_mezo"]["peak_memory_bytes"] == 110


def test_a_child_gets_the_same_choices():
    settings = Settings(model="shape:opt-125m", scheme="lora", dtype="bfloat16", threads=2, seed=5, length=9)
    given = settings.arguments()
    assert " ".join(given) == (
        "--model shape:opt-125m --scheme lora --method mezo --dtype bfloat16 --device cpu --threads 2 "
        "--batch-size 16 --length 9 --seed 5"
    )
    parsed = main.commands["profile"].make_context("profile", list(given)).params
    assert {key: parsed[key] for key in ("scheme", "length", "seed", "threads")} == {
        "scheme": "lora", "length": 9, "seed": 5, "threads": 2,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# eager MeZO


def test_eager_mezo_is_algorithm_1():
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    inputs = torch.linspace(-1, 1, 21).view(3, 7)
    params, lr, eps, seed = list(model.parameters()), 0.1, 1e-2, 11
    before = [p.detach().clone() for p in params]

    def closure() -> torch.Tensor:
        return model(inputs).square().mean()

    found = eager_mezo.step(params, closure, lr=lr, eps=eps, seed=seed)
    after = [p.detach().clone() for p in params]

    draw = torch.Generator().manual_seed(seed)
    zs = [torch.normal(0.0, 1.0, p.shape, generator=draw) for p in params]

    @torch.no_grad()
    def at(size: float) -> float:
        for p, old, z in zip(params, before, zs, strict=True):
            p.copy_(old + size * z)
        return float(closure())

    plus, minus = at(eps), at(-eps)
    expected = [old - lr * (plus - minus) / (2 * eps) * z for old, z in zip(before, zs, strict=True)]
    assert found == pytest.approx((plus + minus) / 2)
    for one, other, old in zip(after, expected, before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
        assert not torch.allclose(one, old, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "drift"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_eager_mezo_returns_to_within_rounding(dtype, drift):
    """With a learning rate of zero nothing is left of a step but the rounding of three moves."""
    params = [torch.linspace(-1, 1, 60).to(dtype).view(6, 10), torch.ones(4).to(dtype), torch.ones(2)]
    before = [p.clone() for p in params]
    seen = []

    def closure() -> float:
        seen.append([p.clone() for p in params])
        return float(len(seen))

    state = torch.random.get_rng_state()
    eager_mezo.step(params, closure, lr=0.0, eps=1e-1, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    for p, old, plus, minus in zip(params, before, *seen, strict=True):
        torch.testing.assert_close(p, old, rtol=0, atol=drift)
        torch.testing.assert_close((plus + minus) / 2, old, rtol=0, atol=drift)
        assert (plus - minus).abs().max() > 0.05
    assert not torch.equal(seen[0][0].flatten()[:4], before[0].flatten()[:4] + (seen[0][1] - before[1]))


# ---------------------------------------------------------------------------------------------------------------
# shapes


@pytest.mark.parametrize("name", WEIGHTS)
def test_shapes_have_the_published_sizes(name):
    model = shapes.load(name, device="meta")
    assert model.num_parameters == WEIGHTS[name]
    assert model.dtype == torch.bfloat16
    assert (model.head.weight is model.model.get_input_embeddings().weight) == (name != "llama-3.1-8b")
    assert set(WEIGHTS) == set(shapes.SHAPES)


@pytest.fixture
def small(monkeypatch) -> str:
    """A shape of the table, scaled down."""
    shape = shapes.SHAPES["qwen3-0.6b"]
    options = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "head_dim": 16, "vocab_size": 500}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 50}
    monkeypatch.setitem(shapes.SHAPES, "small", shape._replace(options={**shape.options, **options, **heads}))
    return "shape:small"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shape_is_a_working_model(small, dtype):
    state = torch.random.get_rng_state()
    model = shapes.load(small, dtype=dtype)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.name == model.source == "shape:small"
    assert not model.model.training
    for name, p in model.model.named_parameters():
        assert p.dtype == getattr(torch, dtype)
        if p.ndim > 1:
            assert p.float().std().item() == pytest.approx(shapes.SCALE, rel=0.05), name
            assert p.unique(dim=0).shape == p.shape
        else:
            assert torch.equal(p, torch.ones_like(p))
    attention = model.model.model.layers[0].self_attn
    assert not torch.equal(attention.k_proj.weight, attention.v_proj.weight)
    with torch.no_grad():
        logits = model.model(torch.arange(20)[None]).logits
    assert logits.isfinite().all()
    assert logits.float().std() > 1e-3
    # Rotary frequencies are computed, not left to chance.
    assert model.model.model.rotary_emb.inv_freq[0] == 1.0
    again = shapes.load(small, dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(model.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["full", "lora", "prefix"])
def test_a_shape_can_be_profiled(small, scheme):
    result = measured(small, scheme=scheme, dtype="bfloat16", engines=("stream",), eager=False, repeats=1)
    assert result["model"] == "shape:small"
    assert result["dtype"] == "bfloat16"


def test_the_tile_covers_large_matrices_without_repeating_rows(monkeypatch):
    monkeypatch.setattr(shapes, "TILE", 101)
    flat, tile = torch.full((1000,), torch.nan), torch.arange(101.0)
    shapes._lay(flat, tile)
    assert torch.equal(flat, torch.arange(1000.0) % 101)


# ---------------------------------------------------------------------------------------------------------------
# where the time goes


def event(name: str, seconds: float = 0.0, parent: Any = None, **more: Any) -> Any:
    return SimpleNamespace(name=name, self_cpu_time_total=seconds * 1e6, cpu_parent=parent, **more)


def test_operations_count_by_the_outermost_of_a_kind():
    sweep, linear = event("gradless.sweep", 1.0), event("aten::linear", 2.0)
    attention = event("aten::scaled_dot_product_attention", 4.0)
    events = [
        sweep, event("aten::normal_", 8.0, sweep), linear, event("aten::addmm", 16.0, linear),
        event("aten::copy_", 32.0, linear), attention, event("aten::bmm", 64.0, attention), event("aten::add", 128.0),
    ]  # fmt: skip
    assert time_shares.of_operations(events) == {
        time_shares.SWEEPS: 9.0,
        time_shares.PRODUCTS: 50.0,
        time_shares.ATTENTION: 68.0,
    }


def test_kernels_count_by_range_and_by_name():
    def kernel(name: str, start: float, end: float, on: str = "CUDA", user: bool = False) -> Any:
        span = SimpleNamespace(start=start * 1e6, end=end * 1e6)
        return SimpleNamespace(
            name=name, time_range=span, device_type=SimpleNamespace(name=on), is_user_annotation=user
        )

    events = [
        kernel("gradless.sweep", 0, 2, user=True), kernel("distribution_elementwise", 0, 1), kernel("add", 1, 2),
        kernel("sm90_xmma_gemm_bf16", 2, 6), kernel("fmha_cutlassF_bf16", 6, 14), kernel("add", 14, 30),
        kernel("aten::mm", 0, 100, on="CPU"), kernel("gradless.sweep", 30, 40, user=True), kernel("fan", 30, 38),
        kernel("something else", 38, 39, user=True),
    ]  # fmt: skip
    assert time_shares.of_kernels(events) == {
        time_shares.SWEEPS: 10.0,
        time_shares.PRODUCTS: 4.0,
        time_shares.ATTENTION: 8.0,
    }


def test_measured_shares_are_shares():
    matrix = torch.ones(300, 300)
    found = time_shares.measure(lambda: matrix @ matrix, lambda: None)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found[time_shares.PRODUCTS] > 0
    assert found[time_shares.SWEEPS] == found[time_shares.ATTENTION] == 0
    assert "KINETO_LOG_LEVEL" not in os.environ


@pytest.mark.parametrize("suffix", [".svg", ".PDF"])
def test_pictures_by_suffix(profile, tmp_path, suffix):
    from gradless.cost.figures import profile_picture

    target = profile_picture(profile, tmp_path / f"share{suffix}")
    content = target.read_bytes()
    assert content.startswith(b"<?xml" if suffix == ".svg" else b"%PDF")
    assert len(content) > 5_000


# ---------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"model": "shape:opt-1.3"}, "unknown shape 'opt-1.3': did you mean 'opt-1.3b'?"),
        ({"model": "tiny-lama"}, "did you mean 'llama'?"),
        ({"method": "mezzo"}, "did you mean 'mezo'?"),
        ({"scheme": "loar"}, "did you mean 'lora'?"),
        ({"engines": ("streem",)}, "unknown engine 'streem': did you mean 'stream'?"),
        ({"engines": ()}, "no engine to measure"),
        ({"batch_size": 0}, "--batch-size is 0: it must be at least 1"),
        ({"length": 0}, "--length is 0"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"replay_steps": -1}, "--replay-steps is -1: it must be at least 0"),
        ({"length": 257}, "--length 257 is more than the 256 tokens that tiny-llama takes"),
        ({"length": 252, "scheme": "prefix"}, "the 251 tokens"),
        ({"dtype": "bf16"}, "did you mean 'bfloat16'?"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
    ],
)
def test_bad_choices_are_one_sentence(choices, sentence):
    with pytest.raises(BadInput) as error:
        measured(**choices)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_timed(small, monkeypatch):
    monkeypatch.setattr(shapes, "SCALE", float("inf"))
    with pytest.raises(BadInput, match="the loss of shape:small in float32 is not finite"):
        measured(small)


def test_files_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    def never(*_: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(workload, "subject", never)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for choices, sentence in (
        ({"json": tmp_path / "file" / "x.json"}, "cannot be written"),
        ({"json": tmp_path}, "cannot be written (it is a folder): choose another file"),
        ({"picture": tmp_path / "folder.png"}, "it is a folder"),
        ({"picture": tmp_path / "x.jpg"}, "end its name with .png, .svg, .pdf"),
    ):
        with pytest.raises(BadInput) as error:
            measured(**choices)
        assert sentence in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_the_command_line(tmp_path):
    path = tmp_path / "p.json"
    command = [
        *("profile", "--model", "tiny-opt", "--batch-size", "2", "--length", "6", "--repeats", "1", "--no-memory"),
        *("--no-eager", "--engine", "stream", "--engine", "in-place", "--json", str(path)),
    ]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    assert "two forwards (floor)" in found.output
    assert list(json.loads(path.read_text())["engines"]) == ["stream", "in-place"]
    wrong = CliRunner().invoke(main, [*command, "--engine", "strem"])
    assert wrong.exit_code == 2
    assert wrong.stderr == (
        "gradless: unknown engine 'strem': did you mean 'stream'? (known: dual, in-place, stream)\n"
    )
    refused = CliRunner().invoke(main, ["profile", "--model", "tiny-opt", "--only", "streams", "--json", str(path)])
    assert (refused.exit_code, "did you mean 'stream'?" in refused.stderr) == (2, True)


def test_the_profiler_is_quiet():
    """Torch's profiler announces itself on stderr unless it is told not to."""
    code = """
from gradless.profiling import Reporter, profile
small = {"batch_size": 2, "length": 6, "repeats": 1, "memory": False, "eager": False}
profile("tiny-opt", **small, engines=("stream",), reporter=Reporter(quiet=True))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout == ""
