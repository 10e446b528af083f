"""The card of a saved model says what the hub reads, what was measured, and how to make the model again."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from typing import Any

import pytest
from click.testing import CliRunner

import run_helpers as h
from gradless import lm
from gradless.cli import main
from gradless.runs import card, jobs
from gradless.runs.classifier import spec_of
from gradless.runs.replay import shared
from gradless.runs.usage import usage
from save_helpers import QUIET, facts_of, tuned


def test_the_hub_can_read_the_card(tmp_path):
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    run = tuned(tmp_path, model="tiny-opt", scheme="lora")
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    result = json.loads((run / "result.json").read_text())
    shown = ModelCard.load(tmp_path / "saved" / "README.md")
    data = shown.data.to_dict()
    assert data["library_name"] == "peft"
    assert {"gradless", "mezo", "lora", "zeroth-order"} <= set(data["tags"])
    assert "base_model" not in data  # the hub refuses what is no id there
    name, scores = model_index_to_eval_results(data["model-index"])
    assert name == "saved"
    assert {score.metric_type: score.metric_value for score in scores} == {
        key: round(value, 4) for key, value in result["test"].items()
    }
    low, high = result["interval"]["test"]
    assert f"95 % interval {low:.3f} to {high:.3f}" in "".join(score.metric_name for score in scores)
    assert f"{low:.3f} to {high:.3f}" in shown.text
    assert result["weights_sha256"] in shown.text
    assert f"{result['ledger_bytes']:,} bytes" in shown.text
    assert "on 8 test rows" in shown.text
    for example in result["examples"]:  # rows of the data stay at home
        assert example["prompt"] not in shown.content
    assert "examples" not in json.loads((tmp_path / "saved" / "gradless" / "result.json").read_text())


def test_the_card_tells_of_a_run_that_did_not_end(tmp_path):
    facts = facts_of(tuned(tmp_path))
    assert "did not come to its end" not in card.render(facts)
    assert facts.result is not None
    diverged = dataclasses.replace(facts, result={**facts.result, "status": "diverged"})
    assert "The run did not come to its end (diverged)." in card.render(diverged)


@pytest.mark.parametrize("unknown", [{}, {"train_seconds": None}, {"train_seconds": 0.0}])
def test_the_card_tells_no_time_that_is_not_known(tmp_path, unknown):
    facts = facts_of(tuned(tmp_path))
    assert facts.result is not None
    steps = f"{facts.result['steps']} steps"
    timed = dataclasses.replace(facts, result={**facts.result, "train_seconds": 1234.5})
    assert f"{steps} and 1,234 s on " in card.render(timed)
    result = {name: value for name, value in facts.result.items() if name != "train_seconds"} | unknown
    assert f"{steps} on " in card.render(dataclasses.replace(facts, result=result))


@pytest.mark.parametrize(
    ("model", "base", "code"),
    [
        ("facebook/opt-1.3b", "facebook/opt-1.3b", 'from_pretrained("facebook/opt-1.3b", dtype="float32")'),
        ("a/b@v2", "a/b", 'from_pretrained("a/b", revision="v2", dtype="float32")'),
        ("gemma-3-270m", "google/gemma-3-270m", "lm.load('gemma-3-270m', dtype='float32')"),
        ("./model.gguf", None, "lm.load('./model.gguf', dtype='float32')"),
    ],
)
def test_the_card_names_the_base_model(model, base, code):
    from huggingface_hub import ModelCard

    config = h.TuneConfig(model=model, task="rte", scheme="lora").resolved()
    header = {"dtype": "bfloat16", "base_sha256": "a", "data_sha256": "b", "gradless": "0.1.0", "tuned_parameters": 3}
    facts = card.Facts(
        name="x",
        location="me/x",
        config=config,
        step=3,
        header=header,
        result=None,
        ledger_bytes=9,
        sha256="c",
        masked=False,
        use=usage(lm.tiny("llama"), spec_of(config), location="me/x", adapter=True, base=card.loaded_from(model)),
    )
    shown = ModelCard(card.render(facts))
    assert shown.data.get("base_model") == base
    assert shown.data.get("base_model_relation") == ("adapter" if base else None)
    assert shown.data.datasets == ["aps/super_glue"]
    assert code in shown.text
    assert 'from_pretrained(base, "me/x"' in shown.text
    if model == "gemma-3-270m":
        assert "Gemma Terms of Use" in shown.text
        assert shown.data.license == "gemma"


def test_the_card_tells_of_rewards():
    from huggingface_hub import ModelCard

    own = {"train": "/x/train.jsonl", "test": "/x/test.jsonl", "template": "Where is {city}?"}
    rewards = {"reward": ("/home/me/mine.py:concise", "length:20"), "reward_weight": (1.0, 0.5)}
    config = h.TuneConfig(model="tiny-llama", own=own, method="es", **rewards).resolved()
    config = shared(config)
    result = {
        **{"status": "done", "steps": 3, "train_seconds": 9.0, "versions": {"machine": "x"}, "dev": {}},
        "zero_shot": {"loss": -0.25, "reward": 0.25, "passed": 0.0, "valid": 1.0},
        "test": {"loss": -0.5, "reward": 0.5, "passed": 0.25, "valid": 1.0},
        "interval": {"test": [0.1, 0.4], "reward_test": [0.3, 0.7], "reward_difference": [0.1, 0.4]},
        "pass_at": {part: {"samples": 4, "1": [0.1, 0.0, 0.2], "4": [0.2, 0.1, 0.3]} for part in ("zero_shot", "test")},
    }
    base = card.loaded_from("tiny-llama")
    facts = card.Facts(
        **{"name": "x", "location": "me/x", "config": config, "step": 3, "ledger_bytes": 9, "sha256": "c"},
        header={"base_sha256": "a", "data_sha256": "b", "gradless": "0.1.0", "tuned_parameters": 3},
        result=result,
        masked=False,
        use=usage(lm.tiny("llama"), spec_of(config), location="me/x", adapter=False, base=base),
    )
    shown = ModelCard(card.render(facts))
    assert "to raise the reward 1 x `mine.py:concise` + 0.5 x `length:20` of generated text" in shown.text
    assert "/home/me" not in shown.text
    assert "| reward | 0.2500 | 0.5000 |" in shown.text
    assert "| loss" not in shown.text
    assert "Mean reward, 95 % intervals: tuned 0.300 to 0.700, their paired difference (+0.250) +0.100" in shown.text
    assert "Passed, 95 % intervals: tuned 0.100 to 0.400." in shown.text
    assert "pass@4 of sampled texts, 95 % intervals: before 0.200 (0.100 to 0.300), tuned 0.200" in shown.text
    evaluated = {one.metric_type: one for one in shown.data.eval_results}
    assert evaluated["reward"].task_type == "text-generation"
    assert evaluated["reward"].metric_name == "test reward (95 % interval 0.300 to 0.700)"
    assert evaluated["valid"].metric_name == "test valid"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scheme": "lora", "targets": ("q_proj", "k_proj"), "rank": 2, "alpha": 3.5, "lr": "auto", "weight_decay": 0.1},
        {"method": "zo-sparse", "options": {"mask": "magnitude", "keep": 0.25}, "freeze": ("embed.*", "a b")},
        {"zero_shot": False, "select": "metric", "eval_every": 2, "schedule": "cosine", "warmup": 1, "queries": 3},
        {"task": "rte", "own": {}, "num_train": 0, "num_dev": 5},
        {"task": "rte", "own": {}, "aligned": False, "num_test": 7, "k_shot": 4, "device": "cuda:1"},
        {
            "own": {"name": "mine", "train": "/a b/t.jsonl", "test": "/u.jsonl", "template": "Where is {x}?\\n"},
            **{"method": "es", "reward": ("exact_match", "format:[a-z ]+"), "reward_weight": (1.0, 0.5)},
            **{"stop": ("\n", "END"), "max_new_tokens": 9, "temperature": 0.5, "samples": 4, "pass_reward": 0.5},
        },
        {
            "own": {
                "name": "mine",
                "train": "/a b/t.csv",
                "template": 'say "{x}"\n',
                "label_column": "y",
                "labels": {"0": "so, so", "1": "a=b \\ `c`"},
            }
        },
    ],
)
def test_the_command_in_the_card_makes_the_same_configuration(tmp_path, monkeypatch, changes):
    own = {
        "train": "/x/train.csv",
        "test": "/x/it's.csv",
        "template": "{text} so",
        "label_column": "label",
        "labels": "0=terrible,1=great",
    }
    config = h.TuneConfig(**{"model": "tiny-llama", "own": own, "steps": 7, **changes}).resolved()
    text = card.task_file(config)
    if text is not None:
        (tmp_path / "gradless").mkdir()
        (tmp_path / "gradless" / "task.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    caught: list[Any] = []
    monkeypatch.setattr(jobs, "tune", lambda config, *_, **__: caught.append(config) or sys.exit(0))
    done = CliRunner().invoke(main, shlex.split(card.command(config))[1:])
    assert done.exit_code == 0, done.output
    assert caught[0].resolved() == config
    several = card.command(config, {"size": 4, "split": config.split})
    assert several == f"torchrun --nproc-per-node 4 -m {card.command(config)}"
