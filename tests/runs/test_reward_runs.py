"""Runs that are trained on a reward: from own prompts and a function in a file to predictions, by the command line."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ranks_helpers
import run_helpers
from cli_helpers import call as gradless
from gradless import ledger
from gradless.errors import Diverged
from gradless.runs import jobs, reward_runs, train
from gradless.runs.record import RunLog, read_lines

ROWS = [
    {"question": f"Say {letter}", "letter": letter, "more": [number, {"deep": None}]}
    for number, letter in enumerate("abcdefgh" * 3)
]
FUNCTION = """
import os, signal

calls = 0

def count(prompts, completions, letter, more, **rest):
    assert all(isinstance(one[0], int) for one in more)
    return [min(1.0, text.count(one) / 4) for text, one in zip(completions, letter)]

def nothing(prompts, completions, **rest):
    return [None] * len(prompts)

def same(prompts, completions, **rest):
    return [0.5] * len(prompts)

def broken(prompts, completions, **rest):
    raise ValueError("out of luck")

def deadly(prompts, completions, letter, more, **rest):
    # kills the run once, while it waits for the rewards of a step
    global calls
    calls += 1
    if len(completions) == 16 and calls > 5 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getppid(), signal.SIGKILL)
    return count(prompts, completions, letter, more)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "score.py").write_text(FUNCTION)
    return tmp_path


def line(out, *more, reward="score.py:count", steps=3):
    data = ("--train", "rows.jsonl", "--test", "rows.jsonl", "--template", "{question} :", "--num-dev", 4)
    size = ("--num-test", 6, "--steps", steps, "--batch-size", 4, "--queries", 2, "--max-new-tokens", 6)
    how = ("--model", "tiny-llama", "--scheme", "lora", "--method", "es", "--eps", 0.05, "--lr", 0.05)
    chosen = ("--reward", reward) if reward else ()
    return list(map(str, ["tune", *how, *data, *size, *chosen, *more, "--out", out]))


def tune(out, *more, **settings):
    return gradless(*line(out, *more, **settings))


def result_of(out):
    return json.loads((out / "result.json").read_text())


def test_a_run_notes_rewards_of_steps_evaluations_and_samples(folder):
    assert tune("run", "--samples", 3, "--pass-reward", 0.25).exit_code == 0
    steps = [line for line in read_lines(folder / "run" / "metrics.jsonl") if line["event"] == "step"]
    assert len(steps) == 3
    for line in steps:
        assert len(line["reward_members"]) == 4
        assert line["reward"] == pytest.approx(sum(line["reward_members"]) / 4)
        assert line["reward"] == pytest.approx(-line["loss"])
        assert line["valid"] == 1.0
        assert 0 < line["completion_tokens"] <= 6
    evaluations = [line for line in read_lines(folder / "run" / "metrics.jsonl") if line["event"] == "eval"]
    for line in evaluations:
        assert line["reward"] == pytest.approx(sum(line["rewards"]) / len(line["rewards"]))
        assert line["correct"] == [int(reward >= 0.25) for reward in line["rewards"]]
    result = result_of(folder / "run")
    assert {"reward", "passed", "valid", "loss"} == set(result["test"])
    low, high = result["interval"]["reward_test"]
    assert low <= result["test"]["reward"] <= high
    assert result["pass_at"]["test"]["samples"] == 3
    assert set(result["pass_at"]["zero_shot"]) == {"samples", "1", "2"}
    assert result["rewards"]["raised"] == result["rewards"]["equal_steps"] == 0
    rows = [json.loads(line) for line in (folder / "run" / "predictions.jsonl").read_text().splitlines()]
    assert all(row["after"]["right"] == (row["after"]["reward"] >= 0.25) for row in rows)


def test_a_run_that_was_killed_goes_on_to_the_same_weights(folder):
    assert tune("whole", "--temperature", 0.7).exit_code == 0
    assert tune("parts", "--temperature", 0.7).exit_code == 0
    contents = ledger.read(folder / "parts" / "ledger")
    (folder / "parts" / "result.json").unlink()
    file = ledger.Ledger(folder / "new", contents.header)
    file.append(contents.moves[0])
    file.close()
    (folder / "new").replace(folder / "parts" / "ledger")
    refused = gradless("tune", "--resume", "--out", "parts")
    assert refused.exit_code == 2
    assert "runs only if it is named: add --reward" in refused.output
    assert gradless("tune", "--resume", "--reward", "score.py:count", "--out", "parts").exit_code == 0
    assert result_of(folder / "parts")["weights_sha256"] == result_of(folder / "whole")["weights_sha256"]


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="needs processes that fork")
def test_a_run_killed_in_the_middle_of_a_step_goes_on_to_the_same_weights(folder):
    arguments = line("run", reward="score.py:deadly")
    (end,) = ranks_helpers.together(1, folder, ranks_helpers.command, arguments)
    assert end.code == -9, end
    steps = len(ledger.read(folder / "run" / "ledger").moves)
    assert 0 < steps < 3
    (end,) = ranks_helpers.together(1, folder, ranks_helpers.command, [*arguments, "--resume"])
    assert end.code == 0, end.err
    assert tune("whole").exit_code == 0
    assert result_of(folder / "run")["weights_sha256"] == result_of(folder / "whole")["weights_sha256"]


def test_a_run_is_rebuilt_and_predicts_without_its_reward_function(folder):
    assert tune("run").exit_code == 0
    (folder / "score.py").unlink()
    assert gradless("replay", "run", "--verify", "--save", "model").exit_code == 0
    for source in ("run", "model"):
        done = gradless("predict", source, "--input", "rows.jsonl", "--output", f"{source}.jsonl")
        assert done.exit_code == 0, done.output
    assert (folder / "run.jsonl").read_bytes() == (folder / "model.jsonl").read_bytes()
    saved = b"".join(path.read_bytes() for path in (folder / "model").rglob("*") if path.is_file())
    assert str(folder).encode() not in saved


def test_the_untouched_model_is_evaluated_by_a_reward(folder):
    done = gradless(
        *("eval", "--model", "tiny-llama", "--test", "rows.jsonl", "--template", "{question} :"),
        *("--reward", "score.py:count", "--max-new-tokens", 6, "--samples", 2, "--out", "before"),
    )
    assert done.exit_code == 0, done.output
    measured = result_of(folder / "before")
    assert set(measured["test"]) == {"reward", "passed", "valid"}
    assert "reward_test" in measured["interval"]
    assert measured["pass_at"]["test"]["samples"] == 2


@pytest.mark.sweep
@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform != "linux", reason="needs gloo and forks")
@pytest.mark.parametrize("split", ["directions", "batch"])
def test_two_ranks_take_the_steps_of_one_process(folder, split):
    ended = ranks_helpers.together(2, folder, ranks_helpers.command, line("two", "--split", split))
    assert [end.code for end in ended] == [0, 0], ended
    assert tune("one", "--engine", "stream").exit_code == 0
    moves = [ledger.read(folder / run / "ledger").moves for run in ("two", "one")]
    assert [move.coeffs for move in moves[0]] == [move.coeffs for move in moves[1]]
    assert result_of(folder / "two")["weights_sha256"] == result_of(folder / "one")["weights_sha256"]


def test_members_that_cannot_be_compared_are_said_and_counted(folder):
    done = tune("same", reward="score.py:same")
    assert done.exit_code == 0
    assert "cannot be compared, all have the reward 0.5 (such batches so far: 1)" in done.output
    assert result_of(folder / "same")["rewards"]["equal_steps"] == 3
    moves = ledger.read(folder / "same" / "ledger").moves
    assert all(coefficient == 0 for move in moves for coefficient in move.coeffs)


@pytest.mark.parametrize("kind", ["a reward", "labels"])
def test_a_step_looks_at_no_line_of_earlier_ones(folder, monkeypatch, kind):
    """Else a long run would spend more time on its log than on its steps."""
    step, of, inside = train._step, RunLog.of, [False]

    def marked_step(*args):
        inside[0] = True
        try:
            return step(*args)
        finally:
            inside[0] = False

    def watched(self, event):
        assert not inside[0]
        return of(self, event)

    monkeypatch.setattr(train, "_step", marked_step)
    monkeypatch.setattr(RunLog, "of", watched)
    if kind == "a reward":
        assert tune("same", reward="score.py:same").exit_code == 0
    else:
        config = run_helpers.config(folder, steps=3)
        assert jobs.tune(config, folder / "labels")["status"] == "done"


def test_counts_go_on_where_a_log_ends(folder):
    """Those of a run that is resumed are those of one that was not interrupted."""
    told: list[str] = []
    run: Any = SimpleNamespace(rewards=None, reporter=SimpleNamespace(warn=told.append))
    lines = [
        {"event": "step", "step": step, "coeffs": None if reward is None else [0.0], "reward": reward}
        | {"reward_members": []}
        for step, reward in enumerate([None, 0.5, None, None, None, None, None])
    ]
    for begun in range(len(lines)):
        comparisons = reward_runs.Comparisons(run, SimpleNamespace(of=lambda _, begun=begun: lines[:begun]))
        for one in lines[begun:-1]:
            comparisons.check(one)
        with pytest.raises(Diverged, match="in 5 steps in a row"):
            comparisons.check(lines[-1])
    assert [line.split(":")[0] for line in told[:3]] == ["step 0", "step 1", "step 3"]  # the 1st, 2nd and 4th


@pytest.mark.parametrize("function", ["nothing", "broken"])
def test_a_run_without_any_reward_ends_and_says_why(folder, function):
    done = tune("run", reward=f"score.py:{function}", steps=20)
    assert done.exit_code == 1
    assert "in 5 steps in a row no text had a reward" in done.output
    assert ("out of luck" in done.output) == (function == "broken")
    result = result_of(folder / "run")
    assert result["status"] == "diverged"
    assert result["steps"] <= 6


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--reward-weight", 1, "--reward-weight", 2), "2 --reward-weight for 1 --reward"),
        (("--objective", "gold"), "--objective gold does not use --reward"),
        (("--labels", "0=a,1=b", "--label-column", "letter"), "leave one of them out"),
        (("--template", "{question} {mask}"), "masked models do not generate text"),
        (("--reward", "score.py:missing"), "missing"),
        (("--reward", "nowhere.py:count"), "nowhere.py"),
        (("--k-shot", 4), "--k-shot"),
        (("--method", "fo-adam"), "has no gradient"),
        (("--max-new-tokens", 4000), "too few tokens"),
        (("--temperature", 0, "--samples", 2), "--temperature"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, more, sentence):
    done = tune("run", *more)
    assert done.exit_code == 2
    assert sentence in done.output
    assert not (folder / "run" / "ledger").exists()


def test_own_prompts_need_labels_or_a_reward(folder):
    done = tune("run", reward="")
    assert done.exit_code == 2
    assert "or a --reward" in done.output


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    values = [[1.0, 0.0, 0.0, 0.0], [0.0, None, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    shares = reward_runs.pass_at(values, 1.0)
    assert shares["1"][0] == pytest.approx((1 / 4 + 0 + 3 / 4) / 3)
    assert shares["2"][0] == pytest.approx((3 / 6 + 0 + 1) / 3)
    assert shares["4"][0] == pytest.approx(2 / 3)


def test_intervals_of_rewards_of_any_size():
    before, after = [-3.0, -1.0, None, -2.0], [4.0, 6.5, 5.0, 5.0]
    bounds = reward_runs.intervals(before, after)
    low, high = bounds["reward_difference"]
    assert low < 7.17 < high
    bounded = reward_runs.intervals([0.0] * 8, [0.0] * 8)
    assert bounded["reward_zero_shot"][1] > 0.2  # eight zeros do not show that it is zero
