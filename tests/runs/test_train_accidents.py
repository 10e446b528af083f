"""Runs that diverge, crash or are interrupted, and how they are resumed."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from click.testing import CliRunner

import run_helpers as h
from gradless import ledger
from gradless.cli import main
from gradless.errors import BadInput
from gradless.forward import perturbed
from gradless.lm import evaluate
from gradless.optimizer import ZerothOrder
from gradless.runs import build, replay
from gradless.runs.config import TuneConfig

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
    done = CliRunner().invoke(main, arguments(h.config(tmp_path, steps=40), tmp_path / "run"))
    assert done.exit_code == 1
    assert "diverged: 10 losses in a row were not finite: lower the learning rate" in done.output
    assert "Traceback" not in done.output
    assert '"status": "diverged"' in done.output


def test_a_loss_that_is_not_finite_on_dev_leaves_valid_files(tmp_path):
    # A leap so far that the model overflows after one step.
    settings = h.config(tmp_path, model="tiny-opt", steps=14, lr=1e37, eps=1e-3, eval_every=2)
    result = h.tune(settings, tmp_path / "run")
    assert result["status"] == "diverged"
    assert "loss" not in result["test"]
    h.notes(tmp_path / "run", "eval")  # refuses NaN
    assert "NaN" not in (tmp_path / "run" / "result.json").read_text()


# (0, 1): before the first step. In the dual engine a step has one call.
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("engine", "when"),
    [("stream", (0, 1)), ("stream", (0, 2)), ("stream", (2, 2)), ("dual", (0, 1)), ("dual", (3, 1))],
)
def test_ctrl_c_interrupts_and_resume_ends_at_the_same_weights(tmp_path, monkeypatch, engine, when):
    settings = h.config(tmp_path, steps=7, lr=1e-3, eval_every=2, engine=engine)
    whole = h.tune(settings, tmp_path / "whole")

    def interrupt(step, call, loss):
        if (step, call) == when:
            raise KeyboardInterrupt
        return loss

    h.patch_loss(monkeypatch, interrupt)
    result = h.tune(settings, tmp_path / "run")
    monkeypatch.undo()
    assert result["status"] == "interrupted"
    assert result["steps"] == when[0]
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
    """Before an update is taken in, or while the next probe writes it: some of the leaves have it then."""
    settings = h.config(tmp_path, steps=5, lr=1e-3, eval_every=5)
    true_apply, true_branch, applied, written = ZerothOrder.apply, perturbed.branch_many, [], []
    stop_at = {"apply": None, "branch": None}

    def apply(*args, **kwargs):
        applied.append(None)
        if len(applied) == stop_at["apply"]:
            raise KeyboardInterrupt
        return true_apply(*args, **kwargs)

    def branch_many(visits, points):
        true_branch(visits, points)
        written.extend(visit for visit in visits if visit.update.decays.size)
        if stop_at["branch"] and len(written) >= stop_at["branch"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(ZerothOrder, "apply", apply)
    monkeypatch.setattr(perturbed, "branch_many", branch_many)
    whole = h.tune(settings, tmp_path / "whole")
    each = len(written) // 4  # leaves that the probe of every step but the first writes
    assert each > 10
    stop_at = {"apply": 3, "branch": None} if where == "before" else {"apply": None, "branch": 2 * each + 1}
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
    done = CliRunner().invoke(main, arguments(h.config(tmp_path), tmp_path / "run"))
    assert done.exit_code == 1
    assert "--resume" in done.output
    assert "Traceback" not in done.output


@contextlib.contextmanager
def interrupted_at_the_second_evaluation(folder, monkeypatch):
    """Inside, a run is interrupted when it has noted one evaluation of the untouched model."""
    true = evaluate.evaluate

    def interrupt(model, task, rows, **settings):
        if len(rows) == 8 and not settings["predict"]:
            raise AssertionError("training began")
        if (folder / "metrics.jsonl").read_text():
            raise KeyboardInterrupt
        return true(model, task, rows, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", interrupt)
        yield


def test_ctrl_c_before_the_first_step_leaves_a_run_to_resume(tmp_path, monkeypatch):
    settings = h.config(tmp_path)
    with interrupted_at_the_second_evaluation(tmp_path / "run", monkeypatch):
        done = CliRunner().invoke(main, arguments(settings, tmp_path / "run"))
    assert done.exit_code == 1
    assert done.stderr == "gradless: interrupted\n"
    done = CliRunner().invoke(main, [*arguments(settings, tmp_path / "run"), "--resume"])
    assert done.exit_code == 0
    assert done.output.count("zero-shot") == 1  # the other one was noted


def test_rows_that_change_before_the_first_step_are_not_compared_with_the_old_ones(tmp_path, monkeypatch):
    settings = h.config(tmp_path)
    with interrupted_at_the_second_evaluation(tmp_path / "run", monkeypatch), pytest.raises(KeyboardInterrupt):
        h.tune(settings, tmp_path / "run")
    assert '"split": "test"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    h.write_csv(tmp_path / "data" / "test.csv", 48, seed=9)
    with pytest.raises(BadInput, match="the data differ"):
        h.tune(settings, tmp_path / "run", resume=True)
    for name in ("config.json", "ledger"):  # somebody clears the folder, but for this
        (tmp_path / "run" / name).unlink()
    result = h.tune(settings, tmp_path / "run")
    fresh = h.tune(settings, tmp_path / "fresh")
    assert result["zero_shot"] == fresh["zero_shot"]
    assert result["interval"] == fresh["interval"]


# ---------------------------------------------------------------------------------------------------------------
# resume


def test_a_finished_run_is_not_repeated(tmp_path):
    settings = h.config(tmp_path)
    result = h.tune(settings, tmp_path / "run")
    files = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()}
    assert h.tune(settings, tmp_path / "run", resume=True) == json.loads(json.dumps(result))
    assert files == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()}


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
