"""A run from configuration to result.json: what it writes, learns and selects, for every choice."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from safetensors.torch import load_file

import run_helpers as h
from gradless import ledger, lm
from gradless.errors import BadInput
from gradless.lm import evaluate, rewarded, schemes
from gradless.lm.generation import greedy
from gradless.methods import METHODS
from gradless.runs import build, jobs, replay
from gradless.runs.config import TuneConfig
from gradless.runs.scheme_settings import STORED
from gradless.system.hashing import weights_sha256
from gradless.system.progress import Reporter

CONTRACT = (
    *("zero_shot", "dev", "test", "steps", "forwards", "train_seconds", "seconds_per_step", "peak_memory_bytes"),
    *("inference_memory_bytes", "weights_sha256", "ledger_bytes", "status", "versions"),
)


MODELS = ("tiny-llama", "tiny-roberta")
GENERAL = sorted(name for name in schemes.SCHEMES if name not in STORED)  # of models of any kind


# ---------------------------------------------------------------------------------------------------------------
# what a run leaves


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    settings = h.config(tmp_path, model="tiny-opt")
    result = h.tune(settings, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json",
        "data.json",
        "ledger",
        "metrics.jsonl",
        "predictions.jsonl",
        "result.json",
    ]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(CONTRACT) <= set(result)
    assert result["status"] == "done"
    assert result["steps"] == 3
    assert result["forwards"] == 6
    assert result["skipped_steps"] == 0
    for split in ("zero_shot", "dev", "test"):
        assert set(result[split]) == {"loss", "accuracy", "macro_f1"}
    assert all(isinstance(result[key], int) and result[key] > 0 for key in CONTRACT if key.endswith("_bytes"))
    assert len(result["weights_sha256"]) == 64
    assert result["ledger_bytes"] == (tmp_path / "run" / "ledger").stat().st_size
    assert 0 < result["seconds_per_step"] <= result["train_seconds"]
    chosen = dataclasses.replace(settings.resolved(), engine="stream")
    assert TuneConfig.from_json(json.loads((tmp_path / "run" / "config.json").read_text())) == chosen
    assert result["interval"]["test"][0] <= result["test"]["accuracy"] <= result["interval"]["test"][1]
    assert len(result["examples"]) == 3

    steps = h.notes(tmp_path / "run", "step")
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert all(math.isfinite(line["loss"]) and line["lr"] == 1e-6 for line in steps)
    moves = ledger.read(tmp_path / "run" / "ledger").moves
    assert [list(move.coeffs) for move in moves] == [line["coeffs"] for line in steps]
    seen = [(line["split"], line["step"]) for line in h.notes(tmp_path / "run", "eval")]
    assert seen == [("test", 0), ("dev", 0), ("dev", 1), ("dev", 2), ("dev", 3), ("test", result["selected_step"])]


@pytest.mark.sweep
def test_learning_happens_and_is_the_same_every_time(tmp_path):
    own = h.sentiment(tmp_path / "data", train_rows=240, test_rows=100)
    changes = {"own": own, "model": "tiny-opt", "steps": 400, "batch_size": 16, "lr": 1e-3, "eps": 1e-3, "seed": 1}
    changes |= {"num_train": 0, "num_dev": 12, "num_test": 0}
    result = h.tune(h.config(tmp_path, **changes), tmp_path / "one")
    assert result["zero_shot"]["accuracy"] < 0.65
    assert result["test"]["accuracy"] > 0.85
    losses = [line["loss"] for line in h.notes(tmp_path / "one", "step")]
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])
    assert result["interval"]["difference"][0] > 0
    again = h.tune(h.config(tmp_path, **changes), tmp_path / "two")
    assert again["weights_sha256"] == result["weights_sha256"]
    assert again["selected_step"] == result["selected_step"]


def test_equal_seeds_give_equal_weights_and_other_seeds_other_ones(tmp_path):
    hashes = [
        h.tune(h.config(tmp_path, seed=seed), tmp_path / f"run{i}")["weights_sha256"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# ---------------------------------------------------------------------------------------------------------------
# every choice


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", GENERAL)
def test_every_scheme_runs_and_rebuilds(tmp_path, scheme, model):
    settings = h.config(tmp_path, model=model, scheme=scheme)
    result = h.tune(settings, tmp_path / "run")
    assert result["status"] == "done"
    base = lm.load(model)
    if scheme == "full":
        assert result["tuned_parameters"] == base.num_parameters
    else:
        assert 0 < result["tuned_parameters"] < base.num_parameters / 4
    assert ("baseline_logistic_regression" in result) == (scheme == "head")
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]
    untouched, _ = replay.rebuild(tmp_path / "run", until=0)
    assert build.tuned_sha256(untouched) != result["weights_sha256"]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_method_runs_and_rebuilds(tmp_path, method, dtype):
    queries = 2 if "queries" in METHODS[method].options() else None
    options = {"deep_units": 1} if method == "hybrid" else {}  # the tiny model has two blocks
    settings = h.config(
        tmp_path, method=method, options=options, queries=queries, scheme="lora", dtype=dtype, steps=4, eval_every=1
    )
    result = h.tune(settings, tmp_path / "run")
    assert result["status"] == "done"
    assert result["forwards"] == 4 * build.step_cost(settings)
    assert result["test"]
    if METHODS[method].replays:
        rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
        assert build.tuned_sha256(rebuilt) == result["weights_sha256"]
        assert not (tmp_path / "run" / build.BEST).exists()
    else:
        kept = load_file(tmp_path / "run" / build.BEST)
        assert weights_sha256(kept.items()) == result["weights_sha256"]


@pytest.mark.parametrize("method", ["fo-adam", "hybrid"])
def test_a_run_that_no_ledger_rebuilds_starts_over(tmp_path, monkeypatch, method):
    settings = h.config(tmp_path, method=method, options={"deep_units": 2} if method == "hybrid" else {}, steps=6)
    whole = h.tune(settings, tmp_path / "whole")

    def stop(step, forward, loss):
        if step == 3:
            raise KeyboardInterrupt
        return loss

    with monkeypatch.context() as patch:
        h.patch_loss(patch, stop)
        assert h.tune(settings, tmp_path / "run")["status"] == "interrupted"
    again = h.tune(settings, tmp_path / "run", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["steps"] == 6
    rebuilt, _ = replay.rebuild(tmp_path / "run")
    assert build.tuned_sha256(rebuilt) == whole["weights_sha256"]


@pytest.mark.parametrize("objective", ["option_ce", "gold", "lm", "accuracy"])
def test_every_objective_over_options_runs(tmp_path, objective):
    result = h.tune(h.config(tmp_path, objective=objective, eps=0.1, batch_size=16), tmp_path / "run")
    assert result["status"] == "done"
    (first, *_) = h.notes(tmp_path / "run", "step")
    assert -1 <= first["loss"] <= 0 if objective == "accuracy" else first["loss"] > 0
    # Selection looks at the objective that was trained.
    assert (result["dev"]["loss"] < 0) == (objective == "accuracy")


@pytest.mark.few(2)
@pytest.mark.parametrize("objective", [None, "gold", "lm", "f1"])
def test_generation_tasks_train_on_loss_and_on_f1(tmp_path, objective):
    sizes = {"num_train": 8, "num_dev": 2, "num_test": 2, "batch_size": 2}
    settings = h.config(tmp_path, task="squad", data=str(h.squad(tmp_path / "squad")), objective=objective, **sizes)
    result = h.tune(settings, tmp_path / "run")
    assert result["status"] == "done"
    assert {"token_f1", "exact_match"} <= set(result["test"])
    assert (result["dev"]["loss"] <= 0) == (objective == "f1")


@pytest.mark.parametrize("method", ["mezo", "es"])
def test_f1_is_of_greedy_answers(tmp_path, monkeypatch, method):
    temperatures = []
    monkeypatch.setattr(rewarded, "sampler", lambda temperature, *_: temperatures.append(temperature) or greedy)
    data = {"task": "squad", "data": str(h.squad(tmp_path / "squad")), "num_train": 6, "num_dev": 2, "num_test": 2}
    h.tune(h.config(tmp_path, **data, objective="f1", method=method, steps=1, max_new_tokens=4), tmp_path / "run")
    assert set(temperatures) == {0.0}


def test_an_objective_of_another_kind_of_task_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not fit the classification task"):
        h.tune(h.config(tmp_path, objective="f1"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["option_ce", "gold", "lm"])
def test_micro_batches_measure_the_same_loss(tmp_path, objective):
    whole = h.config(tmp_path, batch_size=6, steps=2, objective=objective)
    parts = h.config(tmp_path, batch_size=6, steps=2, objective=objective, micro_batch_size=4)
    h.tune(whole, tmp_path / "whole")
    h.tune(parts, tmp_path / "parts")
    a, b = (h.notes(tmp_path / name, "step")[0] for name in ("whole", "parts"))
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert a["coeffs"] == pytest.approx(b["coeffs"], rel=5e-3)
    assert a["forwards"] == b["forwards"] == 2


def test_queries_rise_and_learning_rates_fall_as_scheduled(tmp_path):
    settings = h.config(
        tmp_path, steps=4, queries=4, query_schedule="linear", schedule="linear", warmup=1, lr=0.1, scheme="prompt"
    )
    result = h.tune(settings, tmp_path / "run")
    moves = ledger.read(tmp_path / "run" / "ledger").moves
    assert [len(move.coeffs) for move in moves] == [1, 1, 2, 3]
    assert [move.lrs[0] for move in moves] == pytest.approx([0.1, 0.1, 0.2 / 3, 0.1 / 3])
    assert result["forwards"] == 2 * 7


def test_cosine_schedule_ends_near_zero(tmp_path):
    h.tune(h.config(tmp_path, steps=4, schedule="cosine", lr=1e-3), tmp_path / "run")
    lrs = [move.lrs[0] for move in ledger.read(tmp_path / "run" / "ledger").moves]
    assert lrs[0] == 1e-3
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] < 0.2e-3


def test_weight_decay_shrinks_matrices_only(tmp_path):
    settings = h.config(tmp_path, model="tiny-opt", steps=1, lr=1e-4, weight_decay=1000.0, num_dev=0)
    h.tune(settings, tmp_path / "run")
    before, after = replay.rebuild(tmp_path / "run", until=0)[0], replay.rebuild(tmp_path / "run")[0]
    assert len(after.optimizer.param_groups) == 2
    (move,) = ledger.read(tmp_path / "run" / "ledger").moves
    step = move.lrs[0] * abs(move.coeffs[0])  # the largest change that z = +-1 makes
    for a, b in zip(before.optimizer.leaves, after.optimizer.leaves, strict=True):
        kept = 0.9 if a.param.ndim > 1 else 1.0
        assert (b.param - kept * a.param).abs().max() <= 1.01 * step + 1e-7, a.name


@pytest.mark.parametrize("layer_scale", ["variance", "expectation"])
def test_layer_scales_change_the_run_and_rebuild(tmp_path, layer_scale):
    plain = h.tune(h.config(tmp_path), tmp_path / "plain")
    result = h.tune(h.config(tmp_path, layer_scale=layer_scale), tmp_path / "run")
    assert result["weights_sha256"] != plain["weights_sha256"]
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", GENERAL)
def test_zero_shot_is_that_of_the_base_model(tmp_path, scheme, model):
    settings = h.config(tmp_path, model=model, scheme=scheme, steps=1, num_test=20)
    base = jobs.evaluate(settings, mode="zero-shot", num_demonstrations=0, out=None, reporter=Reporter(quiet=True))
    result = h.tune(settings, tmp_path / "run")
    assert {name: result["zero_shot"][name] for name in base["test"]} == base["test"]
    assert build.tuned_sha256(replay.rebuild(tmp_path / "run")[0]) == result["weights_sha256"]  # adapters are on again


@pytest.mark.parametrize("scheme", ["lora", "prefix"])
def test_zero_shot_generation_is_that_of_the_base_model(tmp_path, scheme):
    changes = {"task": "squad", "data": str(h.squad(tmp_path / "squad")), "num_train": 4, "num_dev": 2, "num_test": 3}
    settings = h.config(tmp_path, scheme=scheme, steps=1, batch_size=2, **changes)
    h.tune(settings, tmp_path / "run")
    task, splits = build.load_task(settings)
    texts = evaluate.evaluate(lm.load("tiny-llama"), task, splits.test).predictions
    first, *_ = h.notes(tmp_path / "run", "eval")
    assert (first["split"], first["step"]) == ("test", 0)
    assert first["predictions"] == texts


def test_frozen_parameters_stay(tmp_path):
    result = h.tune(h.config(tmp_path, freeze=("embed", "lm_head")), tmp_path / "run")
    assert result["tuned_parameters"] < lm.load("tiny-llama").num_parameters
    model = replay.rebuild(tmp_path / "run")[0]
    assert not [leaf.name for leaf in model.optimizer.leaves if "embed" in leaf.name]


@pytest.mark.parametrize("model", MODELS)
def test_the_head_scheme_is_compared_with_logistic_regression(tmp_path, model):
    settings = h.config(tmp_path, model=model, scheme="head", num_train=24, num_dev=12, num_test=16)
    baseline = h.tune(settings, tmp_path / "run")["baseline_logistic_regression"]
    assert baseline.keys() == {"accuracy", "dev_accuracy", "C"}
    assert baseline["accuracy"] > 0.6  # the last word is in plain sight


@pytest.mark.parametrize("changes", [{"num_dev": 0}, {"num_train": 1, "batch_size": 1}])
def test_a_run_does_not_fail_for_its_baseline(tmp_path, changes):
    result = h.tune(h.config(tmp_path, scheme="head", **changes), tmp_path / "run")
    assert result["status"] == "done"
    assert result["baseline_logistic_regression"] is None


# ---------------------------------------------------------------------------------------------------------------
# selection


@pytest.mark.parametrize("select", ["loss", "metric"])
def test_the_step_that_was_best_on_dev_is_tested(tmp_path, select):
    # A learning rate that does harm: the last step is not the best one.
    settings = h.config(tmp_path, steps=12, eval_every=2, lr=1e-2, eps=1e-3, select=select, seed=3)
    result = h.tune(settings, tmp_path / "run")
    dev = {line["step"]: line for line in h.notes(tmp_path / "run", "eval") if line["split"] == "dev" and line["step"]}
    assert sorted(dev) == [2, 4, 6, 8, 10, 12]
    best = min(dev, key=lambda t: (dev[t]["loss"] if select == "loss" else -dev[t]["accuracy"], t))
    assert result["selected_step"] == best
    assert result["steps"] == 12
    assert result["dev"]["loss"] == dev[best]["loss"]
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=best)
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]
    last, _ = replay.rebuild(tmp_path / "run")
    assert (build.tuned_sha256(last) == result["weights_sha256"]) == (best == 12)
    if select == "loss":
        assert best != 12  # else this test shows little


def test_without_dev_rows_the_last_step_counts(tmp_path):
    result = h.tune(h.config(tmp_path, num_dev=0), tmp_path / "run")
    assert result["dev"] == {}
    assert result["selected_step"] == 3
    assert {line["split"] for line in h.notes(tmp_path / "run", "eval")} == {"test"}


def test_without_test_rows_a_run_ends_well(tmp_path):
    settings = h.config(tmp_path)
    own = {key: value for key, value in settings.own.items() if key != "test"}
    result = h.tune(h.config(tmp_path, own=own, num_test=0), tmp_path / "run")
    assert result["status"] == "done"
    assert result["test"] == result["zero_shot"] == result["interval"] == {}
