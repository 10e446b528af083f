"""The page of a run on a reward: curves of rewards, pass@k, texts before and after."""

from __future__ import annotations

import json

import pytest

from gradless.report.common.table import NOTHING
from gradless.report.run import tables
from gradless.report.run.record import load
from gradless.report.run.verdict import verdict
from report_run_helpers import report_page

STEPS = 12
REWARDS = {"test": ([0.0, 0.25, 0.0, 1.0], [1.0, 1.0, 0.0, 0.5]), "dev": ([0.0, 0.5], [0.5, 1.0])}
TEXTS = (["none", "<answer>", "<b>bold</b>", "<answer>1</answer>"], ["<answer>5</answer>"] * 3 + ["<answer>"])


def _evaluation(split, step, after):
    rewards = REWARDS[split][after]
    known = {"reward": sum(rewards) / len(rewards), "passed": rewards.count(1.0) / len(rewards), "valid": 1.0}
    return {
        **{"event": "eval", "split": split, "step": step, "loss": -known["reward"], **known, "rewards": rewards},
        **{"predictions": TEXTS[after][: len(rewards)], "correct": [int(reward >= 1) for reward in rewards]},
        **{"completion_tokens": 9.0 - step / 4, "forwards": 4, "seconds": 1.0},
    }


def _step(step):
    members = [step / 20, step / 10, None if step == 3 else step / 15, step / 12]
    reward = sum(filter(None, members)) / 4
    return {
        **{"event": "step", "step": step, "coeffs": [1.0 - step, 0.5], "lr": 1e-3, "loss": -reward, "skipped": False},
        **{"forwards": 4, "seconds": 2.0, "peak_memory_bytes": 10**9, "reward": None if step == 5 else reward},
        **{"reward_members": members, "valid": 0.75 if step == 3 else 1.0, "completion_tokens": 20.0 - step},
    }


@pytest.fixture
def folder(tmp_path):
    """The files of a run of twelve steps, in the form that `gradless tune --reward` writes."""
    config = {"model": "tiny-llama", "task": "arithmetic", "method": "es", "steps": STEPS, "lr": 1e-3, "eps": 0.01}
    config |= {"reward": ["/home/me/mine.py:score", "answer_tag"], "reward_weight": [1.0, 0.5], "pass_reward": 1.0}
    config["reward_sha256"] = {"/home/me/mine.py:score": "12ab"}
    lines = [_evaluation("test", 0, 0), _evaluation("dev", 0, 0)]
    lines += [_step(step) for step in range(STEPS)] + [_evaluation(split, STEPS, 1) for split in ("dev", "test")]
    result = {
        **{"status": "done", "steps": STEPS, "selected_step": STEPS, "train_seconds": 24.0, "forwards": 48},
        **{
            part: {"loss": -mean, "reward": mean, "passed": share, "valid": 1.0}
            for part, mean, share in (("zero_shot", 0.3125, 0.25), ("dev", 0.75, 0.5), ("test", 0.625, 0.5))
        },
        "interval": {
            **{"zero_shot": [0.05, 0.7], "test": [0.15, 0.85], "difference": [-0.3, 0.7]},
            **{"reward_zero_shot": [0.1, 0.7], "reward_test": [0.2, 0.9], "reward_difference": [0.02, 0.6]},
        },
        "pass_at": {"test": {"samples": 8, "1": [0.5, 0.2, 0.8], "8": [0.75, 0.4, 0.9]}},
        "rewards": {
            "calls": 30,
            "completions": 120,
            "missing": 2,
            "raised": 1,
            "timed_out": 0,
            "last_error": "the reward /home/me/mine.py:score raised",
        },
    }
    guesses = [
        [
            {"text": text, "right": reward >= 1, "probability": None, "reward": reward}
            for text, reward in zip(*one, strict=True)
        ]
        for one in zip(TEXTS, REWARDS["test"], strict=True)
    ]
    rows = [
        {"row": row, "text": f"prompt {row}", "options": [], "gold": [], "before": before, "after": after}
        for row, (before, after) in enumerate(zip(*guesses, strict=True))
    ]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def _change(folder, **values):
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | values))


def test_the_record_knows_rewards(folder):
    record = load(folder)
    assert (record.rewarded, record.metric, record.share) == (True, "reward", "passed")
    assert record.steps[3].members == (0.15, 0.3, 0.25)  # one member had none
    assert record.steps[5].reward is None
    assert (record.steps[3].valid, record.steps[3].tokens) == (0.75, 17.0)
    assert record.evaluations[0].metrics == {"reward": 0.3125, "passed": 0.25, "valid": 1.0}
    assert record.interval_of("reward", "test") == (0.2, 0.9)
    assert record.interval_of("passed", "test") == (0.15, 0.85)
    assert record.interval_of("valid", "test") is None


def test_the_verdict_is_about_the_mean_reward(folder):
    text = "Tuning helped: the mean reward of 4 test rows went from 0.312 to 0.625 (95 % interval of the difference "
    assert verdict(load(folder)) == ("better", text + "+0.020 to +0.600). It fixed 2 rows and broke 1.", "")
    interval = json.loads((folder / "result.json").read_text())["interval"]
    for ends, kind in (([-0.1, 0.6], "unclear"), ([-0.5, -0.1], "worse")):
        _change(folder, interval=interval | {"reward_difference": ends})
        assert verdict(load(folder)).kind == kind
    _change(folder, zero_shot={}, interval={})
    assert verdict(load(folder))[:2] == (
        "unknown",
        "The mean reward of 4 test rows is 0.625; the untouched model was not evaluated, so there is nothing to "
        "compare with.",
    )


def test_texts_are_sorted_by_what_tuning_did_to_their_reward(folder):
    shown = {table.name: table for table in tables.examples(load(folder))}
    raised = [[item.text for item in row] for row in shown["examples-fixed"].rows]
    assert raised == [
        ["prompt 0", "none", "0.00", "<answer>5</answer>", "1.00"],
        ["prompt 1", "<answer>", "0.25", "<answer>5</answer>", "1.00"],
    ]
    assert [row[0].text for row in shown["examples-broken"].rows] == ["prompt 3"]
    assert [row[0].text for row in shown["examples-others"].rows] == ["prompt 2"]
    assert [column.flat for column in shown["examples-fixed"].columns][:3] == [
        "text",
        "zero-shot, says",
        "zero-shot, reward",
    ]
    assert [item.warn for item in shown["examples-broken"].rows[0]] == [False, False, False, True, False]


def test_the_page_shows_rewards_and_no_folder(folder):
    pytest.importorskip("matplotlib")
    text, page = report_page(folder)
    for name in ("training-reward", "training-metric", "training-valid", "training-length"):
        assert f'<figure id="{name}">' in text
    assert 'id="training-loss"' not in text
    assert "/home/me" not in text
    assert "mine.py:score + 0.5 \u00d7 answer_tag" in text
    assert "120 texts in 30 calls" in text
    assert "<b>bold</b>" not in text
    assert page.tables["table-pass-at"][1:] == [
        ["pass@1", NOTHING, "0.500 (0.200 to 0.800)"],
        ["pass@8", NOTHING, "0.750 (0.400 to 0.900)"],
    ]
    outcome = {row[0]: row[1:] for row in page.tables["table-outcome"]}
    assert outcome["reward"] == ["0.3125", "0.6250", "+0.3125"]
    assert outcome["reward, 95 % interval"] == ["0.100 to 0.700", "0.200 to 0.900", "+0.020 to +0.600"]
    assert outcome["passed, 95 % interval"][0] == "0.050 to 0.700"
    assert "loss" not in outcome


def test_a_run_that_has_not_ended_and_one_without_any_reward_have_pages(folder):
    (folder / "result.json").unlink()
    assert "So far dev reward went from 0.250 at step 0 to 0.750 at step 12." in verdict(load(folder)).text
    report_page(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    empty = {"reward": None, "reward_members": [None, None], "valid": 0.0, "completion_tokens": 0.0}
    lines = [line | (empty if line["event"] == "step" else {"rewards": [None] * 4}) for line in lines[:6]]
    lines = [{name: value for name, value in line.items() if name != "passed"} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "predictions.jsonl").unlink()
    text, _ = report_page(folder)
    assert 'id="training-reward"' not in text
