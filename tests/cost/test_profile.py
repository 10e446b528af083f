"""Profiles: the figures fit together, the baseline is algorithm 1, shapes are built, bad input is one sentence."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from gradless import rng
from gradless.cli import main
from gradless.cost import memory, time_shares, turns, workload
from gradless.cost import profile as profiling
from gradless.cost.turns import Candidate
from gradless.cost.workload import EAGER, FLOOR, Settings
from gradless.methods import METHODS
from gradless.optimizer import ENGINES
from gradless.system.progress import Reporter
from profile_helpers import QUIET, SMALL, measured, subject


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
    assert profile["processor"]["name"] == profile["device_name"]
    assert profile["processor"]["cores"] >= 1
    assert isinstance(profile["bfloat16_products"], bool)
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
        assert (parts[time_shares.INTERCEPTION] > 0) == (name in profile["engines"])
        assert profile["share_overhead"][name] > 0
    each = profile["replay_seconds_per_step"]
    assert profile["replay_speedup"] == pytest.approx(profile["engines"][best]["step_seconds"] / each)


def test_what_is_left_out_is_left_out():
    result = measured(eager=False, engines=("stream",), repeats=1, threads=1)
    assert result["eager_mezo_seconds"] is None
    assert list(result["engines"]) == ["stream"]
    assert set(result["share"]) == {FLOOR, "stream"}
    assert result["threads"] == 1
    assert "replay_speedup" not in result


@pytest.mark.few(1)
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


def test_the_floor_is_measured_with_either_heap_and_the_faster_one_counts(monkeypatch):
    """Inside a turn the heap is that of a process without engines, and a step puts the pages back."""
    kept, calls = [True], []

    @contextlib.contextmanager
    def elsewhere():
        kept[0] = False
        yield
        kept[0] = True

    monkeypatch.setattr(profiling.heap, "is_kept", lambda: True)
    monkeypatch.setattr(profiling.heap, "as_elsewhere", elsewhere)
    result = measured(eager=False, engines=("stream",), repeats=3)
    heaps = result["floor_heaps"]
    assert len(heaps["kept"]) == len(heaps["system"]) == 3
    assert result["floor"]["samples"] == heaps[result["floor_heap"]]
    assert result["floor_seconds"] == min(statistics.median(samples) for samples in heaps.values())
    floor = Candidate(FLOOR, lambda: calls.append(("floor", kept[0])), None)
    engine = Candidate("stream", lambda: calls.append(("stream", kept[0])), object())
    system = profiling._SystemHeap([floor, engine], torch.device("cpu"))
    for number in range(4):
        system.turn(number)
    assert calls == [("floor", False), ("floor", False), ("stream", True)] * 2


def test_fresh_pages_are_counted():
    faults = turns.counted()[0]
    torch.ones(1 << 26, dtype=torch.uint8)
    assert turns.counted()[0] >= faults + (100 if turns.resource else 0)


def test_plain_lines(profile, capsys):
    profiling.show(profile)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny-llama, full, mezo, 2 x 6 tokens, float32, ")
    assert [line.split("  ")[0] for line in lines[2:4]] == ["two forwards (floor)", "eager MeZO"]
    assert len({line.index(" - ") for line in lines[2:7]}) == 1
    measured = {"peak_memory_bytes": 11 * 10**8, "kernels_memory_bytes": 10**8}
    row = profile["floor"] | measured
    assert profiling._line("stream", row, 10**9)[-3:] == ("1.100 GB", "1.10", "0.100 GB")
    assert "interception" in lines[8]
    assert [line.split("  ")[0] for line in lines[9:14]] == [line.split("  ")[0] for line in lines[2:7]]
    assert lines[-1].startswith(f"fastest: {profile['fastest']}, ")
    assert all(line.isascii() for line in lines[2:])


def test_the_closure_is_a_label_only_loss_and_the_floor_two_of_it(monkeypatch):
    """The batch is that of a training step with single-token labels: two rows of the output layer, one loss."""
    profiled = subject("tiny-opt")
    with torch.no_grad():
        loss = profiled.closure()
    words = rng.philox_blocks(0, 12, rng.leaf_id("profile"), rng.fold(0, rng.ORDER))[:, 0] % len(profiled.lm.tokenizer)
    pad = profiled.lm.tokenizer.pad_token_id
    tokens = torch.where(words == pad, pad + 1, words).view(2, 6)
    logits = profiled.lm.model(input_ids=tokens).logits[:, -1, list(workload.CANDIDATE_TOKENS)]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0])).item(), abs=1e-5
    )
    calls: list[bool] = []
    counted = profiled._replace(closure=lambda: calls.append(torch.is_grad_enabled()))
    workload.candidate(counted, FLOOR).step()
    assert calls == [False, False]


def test_updates_are_deferred_where_a_run_defers_them(monkeypatch):
    choices_seen = []
    spy = METHODS["mezo"]._replace(make=lambda params, **choices: choices_seen.append(choices))
    monkeypatch.setitem(METHODS, "mezo", spy)
    profiled = subject()
    for name in ENGINES:
        workload.candidate(profiled, name)
    assert [(c["engine"], c["defer"]) for c in choices_seen] == [("stream", True), ("dual", True), ("in-place", False)]
    assert all(c["lr"] == workload.LR and c["eps"] == 1e-3 for c in choices_seen)


# ---------------------------------------------------------------------------------------------------------------
# memory


def test_memory_is_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(Settings, "candidates", lambda settings: [FLOOR])
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    peaks = memory.in_processes(Settings(model="tiny-llama", threads=1, **SMALL), QUIET)
    assert 5e7 < peaks[FLOOR]["inference_memory_bytes"] < 5e9
    assert peaks[FLOOR]["peak_memory_bytes"] >= 0.9 * peaks[FLOOR]["inference_memory_bytes"]
    assert peaks[FLOOR]["kernels_memory_bytes"] == 0


def test_memory_of_an_engine(tmp_path):
    """What a process for one candidate does; in place, the copy of the model is in the peak."""
    command = ["profile", "--model", "tiny-llama", "--length", "6", "--batch-size", "2"]
    state = torch.random.get_rng_state()
    result = CliRunner().invoke(main, [*command, "--only", "in-place", "--json", str(tmp_path / "peaks.json")])
    assert torch.equal(state, torch.random.get_rng_state())
    assert result.exit_code == 0, result.output
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    assert set(peaks) == set(memory.PEAKS)
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
    monkeypatch.setattr(
        profiling,
        "_timed",
        lambda *_: {
            "floor": {},
            "eager_mezo": {},
            "engines": {name: {} for name in ENGINES},
            "floor_seconds": 1.0,
        },
    )
    result = profiling.profile("tiny-llama", **SMALL, reporter=Reporter())
    assert "the memory of stream could not be measured: killed, out of memory?" in capsys.readouterr().out
    assert result["inference_memory_bytes"] == 100
    assert result["engines"]["stream"] == dict.fromkeys(memory.PEAKS)
    assert result["engines"]["dual"]["peak_memory_bytes"] == result["eager_mezo"]["peak_memory_bytes"] == 110


def test_a_child_gets_the_same_choices():
    settings = Settings(model="shape:opt-125m", scheme="lora", dtype="bfloat16", threads=2, seed=5, length=9)
    arguments = settings.arguments()
    assert " ".join(arguments) == (
        "--model shape:opt-125m --scheme lora --method mezo --dtype bfloat16 --device cpu --threads 2 "
        "--batch-size 16 --length 9 --seed 5"
    )
    parsed = main.commands["profile"].make_context("profile", list(arguments)).params
    assert {key: parsed[key] for key in ("scheme", "length", "seed", "threads")} == {
        "scheme": "lora",
        "length": 9,
        "seed": 5,
        "threads": 2,
    }
