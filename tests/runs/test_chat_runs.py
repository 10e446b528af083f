"""A run whose prompts are messages of a chat: trained, replayed, saved and predicted with by the same template."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest

import run_helpers as h
from gradless.bench.grid import run_id
from gradless.errors import BadInput
from gradless.runs import jobs
from gradless.runs.classifier import read_spec
from gradless.runs.config import TuneConfig
from gradless.runs.load_classifier import load_classifier
from save_helpers import QUIET, tuned


def test_training_evaluation_and_prediction_read_the_same_prompts(tmp_path):
    run = tuned(tmp_path, model="tiny-qwen", chat=True)
    result = json.loads((run / "result.json").read_text())
    assert jobs.replay(run, save=tmp_path / "saved", verify=True, reporter=QUIET).agrees
    config = TuneConfig.from_json(json.loads((run / "config.json").read_text()))
    saved = dataclasses.replace(config, model=str(tmp_path / "saved"))
    how = {"mode": "zero-shot", "num_demonstrations": 0, "out": None, "reporter": QUIET}
    again = jobs.evaluate(saved, **how)
    assert again["test"] == {name: result["test"][name] for name in again["test"]}
    with open(config.own["test"], newline="") as file:
        rows = [{"text": row["text"]} for row in csv.DictReader(file)]
    assert read_spec(tmp_path / "saved" / "gradless" / "classifier.json").chat
    by_run, by_saved = (load_classifier(source).predict(rows) for source in (run, tmp_path / "saved"))
    assert by_run == by_saved
    assert load_classifier(run, chat=False).predict(rows) != by_run
    written = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    shares = [max(prediction.probabilities.values()) for prediction in by_run]
    assert {line["after"]["probability"] for line in written} <= {round(share, 4) for share in shares}


def test_a_run_with_a_chat_has_an_id_of_its_own_and_others_keep_theirs(tmp_path):
    config = h.config(tmp_path).resolved()
    assert run_id(config) != run_id(dataclasses.replace(config, chat=True))


def test_a_model_without_a_template_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match="the tokenizer of tiny-llama has no chat template"):
        h.tune(h.config(tmp_path, model="tiny-llama", chat=True), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
