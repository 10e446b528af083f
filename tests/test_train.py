"""A run from configuration to result.json: what it writes, learns, selects, survives and repeats."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import run_helpers as h
from gradless import ledger, lm
from gradless.cli import main
from gradless.errors import BadInput
from gradless.forward import perturbed
from gradless.lm import evaluate, objectives, schemes
from gradless.methods import METHODS
from gradless.optimizer import ZerothOrder
from gradless.runs import build, jobs, record, replay
from gradless.runs.config import TuneConfig
from gradless.system.hashing import weights_sha256
from gradless.system.progress import Reporter

CONTRACT = (
    *("zero_shot", "dev", "test", "steps", "forwards", "train_seconds", "seconds_per_step", "peak_memory_bytes"),
    *("inference_memory_bytes", "weights_sha256", "ledger_bytes", "status", "versions"),
)
MODELS = ("tiny-llama", "tiny-roberta")


# ---------------------------------------------------------------------------------------------------------------
# what a run leaves


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    settings = h.config(tmp_path, model="tiny-opt")
    result = h.tune(settings, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json", "ledger", "metrics.jsonl", "predictions.jsonl", "result.json",
    ]  # fmt: skip
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
    assert TuneConfig.from_json(json.loads((tmp_path / "run" / "config.json").read_text())) == settings.resolved()
    assert result["interval"]["test"][0] <= result["test"]["accuracy"] <= result["interval"]["test"][1]
    assert len(result["examples"]) == 3

    steps = h.notes(tmp_path / "run", "step")
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert all(math.isfinite(line["loss"]) and line["lr"] == 1e-6 for line in steps)
    moves = ledger.read(tmp_path / "run" / "ledger").moves
    assert [list(move.coeffs) for move in moves] == [line["coeffs"] for line in steps]
    seen = [(line["split"], line["step"]) for line in h.notes(tmp_path / "run", "eval")]
    assert seen == [("test", 0), ("dev", 0), ("dev", 1), ("dev", 2), ("dev", 3), ("test", result["selected_step"])]


@pytest.mark.slow
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
@pytest.mark.parametrize("scheme", sorted(schemes.SCHEMES))
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


@pytest.mark.parametrize("objective", [None, "gold", "lm", "f1"])
def test_generation_tasks_train_on_loss_and_on_f1(tmp_path, objective):
    sizes = {"num_train": 8, "num_dev": 2, "num_test": 2, "batch_size": 2}
    settings = h.config(tmp_path, task="squad", data=str(h.squad(tmp_path / "squad")), objective=objective, **sizes)
    result = h.tune(settings, tmp_path / "run")
    assert result["status"] == "done"
    assert {"token_f1", "exact_match"} <= set(result["test"])
    assert (result["dev"]["loss"] <= 0) == (objective == "f1")


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
@pytest.mark.parametrize("scheme", sorted(schemes.SCHEMES))
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


# ---------------------------------------------------------------------------------------------------------------
# accidents


def test_a_step_with_a_loss_that_is_not_finite_is_skipped_logged_and_counted(tmp_path, monkeypatch):
    h.patch_loss(monkeypatch, lambda step, call, loss: loss * math.nan if step in (1, 3) else loss)
    result = h.tune(h.config(tmp_path, steps=6), tmp_path / "run")
    monkeypatch.undo()
    assert result["status"] == "done"
    assert result["steps"] == 6
    assert result["skipped_steps"] == 2
    moves = ledger.read(tmp_path / "run" / "ledger").moves
    assert [move.skipped for move in moves] == [False, True, False, True, False, False]
    lines = h.notes(tmp_path / "run", "step")
    assert [line["skipped"] for line in lines] == [move.skipped for move in moves]
    assert lines[1]["loss"] is None
    assert lines[1]["coeffs"] is None
    before, after = (build.tuned_sha256(replay.rebuild(tmp_path / "run", until=t)[0]) for t in (1, 2))
    assert before == after  # the skipped step changed nothing
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]


def test_ten_such_losses_in_a_row_end_the_run_as_diverged(tmp_path, monkeypatch):
    h.patch_loss(monkeypatch, lambda step, call, loss: loss * math.inf if step > 1 else loss)
    result = h.tune(h.config(tmp_path, steps=40, eval_every=2), tmp_path / "run")
    monkeypatch.undo()
    assert result["status"] == "diverged"
    assert result["steps"] == 12
    assert result["skipped_steps"] == 10
    assert result["forwards"] == 24
    assert len(h.notes(tmp_path / "run", "step")) == 12
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]


@pytest.mark.parametrize("crash", [8, 13])
def test_a_crash_in_a_row_of_such_losses_changes_nothing(tmp_path, monkeypatch, crash):
    settings = h.config(tmp_path, steps=30, lr=1e-3, num_dev=0)

    def nan(step, call, loss):
        return loss * math.nan if step > 2 else loss

    def nan_and_stop(step, call, loss):
        if step == crash:
            raise KeyboardInterrupt
        return nan(step, call, loss)

    with monkeypatch.context() as patch:
        h.patch_loss(patch, nan)
        whole = h.tune(settings, tmp_path / "whole")
    assert (whole["status"], whole["steps"]) == ("diverged", 13)
    with monkeypatch.context() as patch:
        h.patch_loss(patch, nan_and_stop)  # 13: after the last step, before the result
        h.tune(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with monkeypatch.context() as patch:
        h.patch_loss(patch, nan)
        resumed = h.tune(settings, tmp_path / "run", resume=True)
    for key in ("status", "steps", "skipped_steps", "forwards", "weights_sha256"):
        assert resumed[key] == whole[key], key


def arguments(settings: TuneConfig, out) -> list[str]:
    own = settings.own
    return [
        *("tune", "--model", settings.model, "--train", own["train"], "--test", own["test"]),
        *("--template", own["template"], "--label-column", own["label_column"], "--labels", own["labels"]),
        *("--steps", str(settings.steps), "--batch-size", str(settings.batch_size)),
        *("--num-train", "16", "--num-dev", "8", "--num-test", "8", "--out", str(out)),
    ]


def test_divergence_through_the_command_line_gives_advice_and_exit_code_1(tmp_path, monkeypatch):
    h.patch_loss(monkeypatch, lambda step, call, loss: loss * math.nan)
    found = CliRunner().invoke(main, arguments(h.config(tmp_path, steps=40), tmp_path / "run"))
    assert found.exit_code == 1
    assert "diverged: 10 losses in a row were not finite: lower the learning rate" in found.output
    assert "Traceback" not in found.output
    assert '"status": "diverged"' in found.output


def test_a_loss_that_is_not_finite_on_dev_leaves_valid_files(tmp_path):
    # A leap so far that the model overflows after one step.
    settings = h.config(tmp_path, model="tiny-opt", steps=14, lr=1e37, eps=1e-3, eval_every=2)
    result = h.tune(settings, tmp_path / "run")
    assert result["status"] == "diverged"
    assert "loss" not in result["test"]
    h.notes(tmp_path / "run", "eval")  # refuses NaN
    assert "NaN" not in (tmp_path / "run" / "result.json").read_text()


# (0, 1): before the first step. In the dual engine a step has one call.
@pytest.mark.parametrize(
    ("engine", "place"),
    [("stream", (0, 1)), ("stream", (0, 2)), ("stream", (2, 2)), ("dual", (0, 1)), ("dual", (3, 1))],
)
def test_ctrl_c_interrupts_and_resume_ends_at_the_same_weights(tmp_path, monkeypatch, engine, place):
    settings = h.config(tmp_path, steps=7, lr=1e-3, eval_every=2, engine=engine)
    whole = h.tune(settings, tmp_path / "whole")

    def interrupt(step, call, loss):
        if (step, call) == place:
            raise KeyboardInterrupt
        return loss

    h.patch_loss(monkeypatch, interrupt)
    result = h.tune(settings, tmp_path / "run")
    monkeypatch.undo()
    assert result["status"] == "interrupted"
    assert result["steps"] == place[0]
    assert result["selected_step"] == result["steps"]
    assert result["test"] == {}
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]

    resumed = h.tune(settings, tmp_path / "run", resume=True)
    assert resumed["status"] == "done"
    for key in ("weights_sha256", "selected_step", "test", "dev", "zero_shot", "forwards", "steps"):
        assert resumed[key] == whole[key], key
    assert resumed["peak_memory_bytes"] > 0
    assert resumed["inference_memory_bytes"] > 0
    assert (tmp_path / "run" / "ledger").read_bytes() == (tmp_path / "whole" / "ledger").read_bytes()


@pytest.mark.parametrize("where", ["before", "halfway"])
def test_ctrl_c_between_log_and_update_loses_nothing(tmp_path, monkeypatch, where):
    """Before an update is taken in, or while the next probe writes it: half of the leaves have it then."""
    settings = h.config(tmp_path, steps=5, lr=1e-3, eval_every=5)
    true_apply, true_branch, applied, written = ZerothOrder.apply, perturbed.branch, [], []
    stop_at = {"apply": None, "branch": None}

    def apply(*args, **kwargs):
        applied.append(None)
        if len(applied) == stop_at["apply"]:
            raise KeyboardInterrupt
        return true_apply(*args, **kwargs)

    def branch(*args, **kwargs):
        found = true_branch(*args, **kwargs)
        written.extend([None] * kwargs["keep"])
        if len(written) == stop_at["branch"]:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(ZerothOrder, "apply", apply)
    monkeypatch.setattr(perturbed, "branch", branch)
    whole = h.tune(settings, tmp_path / "whole")
    each = len(written) // 4  # leaves that the probe of every step but the first writes
    assert each > 10
    stop_at = {"apply": 3, "branch": None} if where == "before" else {"apply": None, "branch": 2 * each + each // 2}
    applied.clear()
    written.clear()
    result = h.tune(settings, tmp_path / "run")
    monkeypatch.undo()
    assert result["status"] == "interrupted"
    assert result["steps"] == 3
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=3)
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]
    assert h.tune(settings, tmp_path / "run", resume=True)["weights_sha256"] == whole["weights_sha256"]


def test_ctrl_c_through_the_command_line(tmp_path, monkeypatch):
    def interrupt(step, call, loss):
        raise KeyboardInterrupt

    h.patch_loss(monkeypatch, interrupt)
    found = CliRunner().invoke(main, arguments(h.config(tmp_path), tmp_path / "run"))
    assert found.exit_code == 1
    assert "--resume" in found.output
    assert "Traceback" not in found.output


def test_ctrl_c_before_the_first_step_leaves_a_run_to_resume(tmp_path, monkeypatch):
    true = evaluate.evaluate

    def interrupt(model, task, rows, **settings):
        if len(rows) == 8 and not settings["predict"]:
            raise AssertionError("training began")
        if (tmp_path / "run" / "metrics.jsonl").read_text():
            raise KeyboardInterrupt  # at the second evaluation
        return true(model, task, rows, **settings)

    settings = h.config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", interrupt)
        found = CliRunner().invoke(main, arguments(settings, tmp_path / "run"))
    assert found.exit_code == 1
    assert found.stderr == "gradless: interrupted\n"
    found = CliRunner().invoke(main, [*arguments(settings, tmp_path / "run"), "--resume"])
    assert found.exit_code == 0
    assert found.output.count("zero-shot") == 1  # the other one was noted


# ---------------------------------------------------------------------------------------------------------------
# resume


def test_a_finished_run_is_not_repeated(tmp_path):
    settings = h.config(tmp_path)
    result = h.tune(settings, tmp_path / "run")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()}
    assert h.tune(settings, tmp_path / "run", resume=True) == json.loads(json.dumps(result))
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()}


def test_resume_starts_a_run_that_never_began(tmp_path):
    assert h.tune(h.config(tmp_path), tmp_path / "run", resume=True)["status"] == "done"


def test_a_run_without_its_result_is_completed_from_the_ledger(tmp_path):
    settings = h.config(tmp_path, steps=5)
    result = h.tune(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    again = h.tune(settings, tmp_path / "run", resume=True)
    for key in ("weights_sha256", "test", "forwards", "peak_memory_bytes", "inference_memory_bytes", "train_seconds"):
        assert again[key] == result[key], key


def test_a_run_without_its_metrics_is_completed_too(tmp_path):
    settings = h.config(tmp_path, steps=5, num_dev=0)
    result = h.tune(settings, tmp_path / "run")
    for name in ("result.json", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    again = h.tune(settings, tmp_path / "run", resume=True)
    for key in ("weights_sha256", "test", "zero_shot", "forwards", "steps"):
        assert again[key] == result[key], key


def test_other_data_are_refused(tmp_path, monkeypatch):
    settings = h.config(tmp_path)
    h.tune(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    h.write_csv(tmp_path / "data" / "train.csv", 48, seed=9)
    with pytest.raises(BadInput, match="the data differ"):
        h.tune(settings, tmp_path / "run", resume=True)


def test_the_ledger_of_another_run_of_the_same_model_is_refused(tmp_path):
    settings = h.config(tmp_path)
    h.tune(settings, tmp_path / "run")
    h.tune(h.config(tmp_path, lr=1e-3), tmp_path / "other")
    (tmp_path / "run" / "ledger").write_bytes((tmp_path / "other" / "ledger").read_bytes())
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(BadInput, match="another run"):
        h.tune(settings, tmp_path / "run", resume=True)
    with pytest.raises(BadInput, match="another run"):
        replay.rebuild(tmp_path / "run")


# ---------------------------------------------------------------------------------------------------------------
# data


def test_splits_share_no_row(tmp_path):
    own = h.sentiment(tmp_path / "data", train_rows=48)
    _, splits = build.load_task(h.config(tmp_path, own=own, num_train=30, num_dev=18, num_test=0))
    train_rows, dev_rows = ({json.dumps(row) for row in rows} for rows in (splits.train, splits.dev))
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (30, 18, 24)
    assert not train_rows & dev_rows
    assert not (train_rows | dev_rows) & {json.dumps(row) for row in splits.test}


@pytest.mark.parametrize(("num", "batch"), [(12, 4), (10, 4), (3, 7), (5, 5), (1, 2)])
def test_batches_take_every_row_once_an_epoch(num, batch):
    steps = math.lcm(num, batch) // batch * 2
    taken = [i for step in range(steps) for i in build.batch_indices(num, batch, 5, step)]
    epochs = [taken[start : start + num] for start in range(0, len(taken), num)]
    assert len(epochs) >= 2
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    if num > 4:
        assert epochs[0] != epochs[1]
        assert taken != [i for step in range(steps) for i in build.batch_indices(num, batch, 6, step)]
    assert set(Counter(taken).values()) == {len(epochs)}


def test_training_shows_the_rows_that_batch_indices_names(tmp_path, monkeypatch):
    settings = h.config(tmp_path, steps=4, batch_size=5, num_train=16)
    task, splits = build.load_task(settings)
    shown, true = [], objectives.prepare

    def prepare(model, objective, encoded, micro=None):
        shown.append([row.prompt for row in encoded])
        return true(model, objective, encoded, micro)

    monkeypatch.setattr(objectives, "prepare", prepare)
    h.tune(settings, tmp_path / "run")
    rows = [row.prompt for row in build.encode_rows(lm.load("tiny-llama"), task, splits.train, None)]
    assert shown[2:] == [[rows[i] for i in build.batch_indices(16, 5, 0, step)] for step in range(4)]


# ---------------------------------------------------------------------------------------------------------------
# what it says


def test_plain_progress_is_at_most_ten_lines_a_job(capsys):
    for jumps in (range(1, 101), range(7, 101, 31), [100]):
        with Reporter().job("tune", 100) as show:
            for done in jumps:
                show(done, "loss 1")
        lines = capsys.readouterr().out.splitlines()
        assert 1 <= len(lines) <= 10
        assert lines[-1].startswith(f"tune {max(jumps)}/100  loss 1")


def test_a_live_bar_takes_lines_beside_it(capsys):
    reporter = Reporter()
    reporter.live = True
    with reporter.job("tune", 4, done=1) as show:
        show(2, "loss [1]")
        reporter.say("dev at 2: [bold]accuracy[/bold]")
        show(4, "loss 2")
    reporter.say("done")
    out = capsys.readouterr().out
    assert "dev at 2: [bold]accuracy[/bold]" in out  # no markup in what is said
    assert "4/4" in out
    assert out.endswith("done\n")


def test_nothing_touches_the_global_generator(tmp_path):
    before = torch.get_rng_state()
    h.tune(h.config(tmp_path, scheme="lora"), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_versions_name_what_computed():
    assert {"gradless", "torch", "transformers", "python", "machine"} <= set(record.versions())


# ---------------------------------------------------------------------------------------------------------------
# other places, other processes


def test_a_prefix_is_rebuilt_from_kept_values_and_not_from_a_new_forward(tmp_path, monkeypatch):
    """Its initial values come from a forward pass, whose last bits another processor may not reproduce."""
    settings = h.config(tmp_path, scheme="prefix", steps=3)
    result = h.tune(settings, tmp_path / "run")
    true = schemes._keys_and_values
    monkeypatch.setattr(
        schemes, "_keys_and_values", lambda *args: [(key * 1.0001, value) for key, value in true(*args)]
    )
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]
    (tmp_path / "run" / build.INITIAL).unlink()
    with pytest.raises(BadInput, match="initial adapter"):
        replay.rebuild(tmp_path / "run", until=result["selected_step"])


def test_a_run_is_replayed_where_its_model_has_moved(tmp_path):
    model = lm.load("tiny-llama")
    model.model.save_pretrained(tmp_path / "here")
    model.tokenizer.save_pretrained(tmp_path / "here")
    settings = h.config(tmp_path, model=str(tmp_path / "here"), steps=3)
    result = h.tune(settings, tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(BadInput):
        jobs.replay(tmp_path / "run", verify=True)
    assert jobs.replay(tmp_path / "run", verify=True, model=str(tmp_path / "there"), device="cpu").agrees
    assert result["status"] == "done"


def test_two_processes_cannot_work_on_one_run(tmp_path):
    settings = h.config(tmp_path, steps=3)
    h.tune(settings, tmp_path / "run")
    contents = ledger.read(tmp_path / "run" / "ledger")
    first = ledger.Ledger(tmp_path / "run" / "ledger", {}, contents=contents)
    with pytest.raises(BadInput, match="another process"):
        ledger.Ledger(tmp_path / "run" / "ledger", {}, contents=contents)
    first.close()
    ledger.Ledger(tmp_path / "run" / "ledger", {}, contents=contents).close()


def test_backpropagation_without_dev_rows_keeps_its_last_weights(tmp_path):
    result = h.tune(h.config(tmp_path, method="fo-adam", num_dev=0), tmp_path / "run")
    found = jobs.replay(tmp_path / "run", verify=True, reporter=Reporter(quiet=True))
    assert found.agrees
    assert found.step == result["steps"]
    with pytest.raises(BadInput, match="only step 3 is kept"):
        jobs.replay(tmp_path / "run", until=2, reporter=Reporter(quiet=True))


def test_a_finished_run_is_not_taken_for_one_on_other_data(tmp_path):
    sizes = {"num_train": 8, "num_dev": 2, "num_test": 2, "batch_size": 2, "task": "squad"}
    settings = h.config(tmp_path, data=str(h.squad(tmp_path / "one")), **sizes)
    result = h.tune(settings, tmp_path / "run")
    moved = h.config(tmp_path, data=str(h.squad(tmp_path / "two")), **sizes)
    assert h.tune(moved, tmp_path / "run", resume=True) == json.loads(json.dumps(result))
    other = h.config(tmp_path, data=str(h.squad(tmp_path / "three", rows=11)), **sizes)
    with pytest.raises(BadInput, match="holds a run on other data"):
        h.tune(other, tmp_path / "run", resume=True)


def test_blocks_that_generate_text_share_no_prefix(tmp_path):
    data = str(h.squad(tmp_path / "squad"))
    settings = h.config(
        tmp_path, task="squad", data=data, objective="f1", method="zo-blockwise", num_train=8, num_dev=2
    )
    model, _ = build.build_for(settings.resolved(), tmp_path, *_task_and_rows(settings))
    assert model.optimizer.landscape.prefix is None
    model, _ = build.build_for(
        h.config(tmp_path, method="zo-blockwise").resolved(), tmp_path, *_task_and_rows(h.config(tmp_path))
    )
    assert model.optimizer.landscape.prefix is not None


def _task_and_rows(settings):
    task, splits = build.load_task(settings)
    return task, splits.train
