"""Classifiers: what is saved for them, where they are loaded from, and that they predict what the run predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gradless as gl
import run_helpers as h
from gradless.errors import BadInput
from gradless.lm import evaluate
from gradless.runs import build, jobs
from gradless.runs.classifier import read_spec
from gradless.runs.config import read_config
from save_helpers import QUIET, tuned

OWN = {"template": "{text} so", "labels": "0=terrible,1=great"}


def saved(run: Path, folder: Path) -> Path:
    jobs.replay(run, save=folder, reporter=QUIET)
    return folder


@pytest.mark.few(2)
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-roberta"])
@pytest.mark.parametrize("scheme", ["full", "lora", "prefix", "prompt", "head"])
def test_it_predicts_what_the_run_predicted(tmp_path, scheme, model):
    """From the run bit for bit, and from the saved folder with the same weights."""
    template = "{text} so {mask} ." if model == "tiny-roberta" else "{text} so"
    run = tuned(tmp_path, model=model, scheme=scheme, own={**h.sentiment(tmp_path / "data"), "template": template})
    task, splits = build.load_task(read_config(run))
    rows = [{**row["columns"], "label": row["label"]} for row in splits.test]
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["event"] == "eval" and line["split"] == "test"][-1]
    for source in (run, saved(run, tmp_path / "saved")):
        classifier = gl.load_classifier(source)
        predictions = classifier.predict(rows)
        assert [one.index for one in predictions] == logged["predictions"]
        shares = [one.probabilities[one.label] for one in predictions]
        assert shares == pytest.approx(logged["probabilities"], abs=6e-5)  # which are rounded there
        assert shares == list(evaluate.evaluate(classifier.lm, task, splits.test).probabilities)
        right = sum(one.label == str(row["label"]) for one, row in zip(predictions, rows, strict=True))
        assert right / len(rows) == result["test"]["accuracy"]


def test_what_is_saved_says_how_to_predict_and_names_no_folder(tmp_path):
    folder = saved(tuned(tmp_path, scheme="lora", max_length=64), tmp_path / "saved")
    spec = read_spec(folder / "gradless/classifier.json")
    assert (spec.template, spec.labels, spec.label_column) == (
        OWN["template"],
        {"0": "terrible", "1": "great"},
        "label",
    )
    assert (spec.columns, spec.words, spec.max_length, spec.cut_side) == (
        ("text",),
        (" terrible", " great"),
        64,
        "beginning",
    )
    assert str(tmp_path) not in (folder / "gradless/classifier.json").read_text()
    predictions = gl.load_classifier(folder).predict(["a joy"])
    (folder / "gradless/classifier.json").unlink()  # as earlier releases saved
    assert gl.load_classifier(folder).predict(["a joy"]) == predictions


def test_rows_of_many_kinds(tmp_path):
    classifier = gl.load_classifier("tiny-llama", **OWN)
    texts = [f"row {i} was good" for i in range(9)]
    expected = classifier.predict(texts)
    assert classifier.predict([{"text": text, "other": None} for text in texts]) == expected
    assert list(classifier.predict_iter(iter(texts))) == expected
    assert [one.label for one in classifier.predict(texts, batch_size=2)] == [one.label for one in expected]
    assert all(abs(sum(one.probabilities.values()) - 1) < 1e-6 for one in expected)

    class Frame:  # what is asked of a pandas.DataFrame
        itertuples = None

        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        @property
        def iloc(self):
            rows = self.rows

            class At:
                def __getitem__(self, at):
                    return Frame(rows[at])

            return At()

        def to_dict(self, how):
            assert how == "records"
            return self.rows

    assert classifier.predict(Frame([{"text": text} for text in texts])) == expected
    datasets = pytest.importorskip("datasets")
    assert classifier.predict(datasets.Dataset.from_dict({"text": texts})) == expected


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a joy", "put this one into a list"),
        ({"text": "a joy"}, "put this one into a list"),
        ([3], "a row is int: give dictionaries with 'text'"),
        (
            [{"text": ""}, {"tex": "a"}, {"text": "a"}, {"text": None}],
            "row 1: nothing is in 'text'.*row 2: no column 'text'.*row 4",
        ),
    ],
)
def test_rows_that_cannot_be_predicted(rows, sentence):
    with pytest.raises(BadInput, match=sentence):
        gl.load_classifier("tiny-llama", **OWN).predict(rows)


@pytest.mark.parametrize(
    ("source", "how", "sentence"),
    [
        ("tiny-llama", {}, "tiny-llama has no prompt of its own: give template=.* and labels="),
        ("tiny-llama", {"template": "{text} so"}, "give labels= too"),
        ("tiny-llama", {"labels": "0=a,1=b"}, "give template= too"),
        ("tiny-llama", {"template": "so", "labels": "0=a,1=b"}, "shows no column"),
        ("tiny-llama", {**OWN, "task": "sst2"}, "not both"),
        ("tiny-llama", {"template": "{text} so {mask}", "labels": "0=a,1=b"}, "no prompt for causal models"),
        ("tiny-llama", {"task": "squad", "calibrated": True}, "answers are free text"),
        ("tiny-llama", {**OWN, "model": "tiny-opt"}, "leave out model$"),
        ("no/such/model.gguf", OWN, "there is no model at"),
        (".", {}, "has no config.json"),
    ],
)
def test_what_cannot_be_loaded(source, how, sentence):
    with pytest.raises(BadInput, match=sentence):
        gl.load_classifier(source, **how)


def test_a_prompt_that_is_given_replaces_the_saved_one_and_is_said(tmp_path):
    folder, lines = saved(tuned(tmp_path), tmp_path / "saved"), []
    classifier = gl.load_classifier(folder, labels={"no": "bad", "yes": "good"}, say=lines.append)
    assert classifier.labels == ("no", "yes")
    assert classifier.spec.template == OWN["template"]
    assert any("replaces it" in line for line in lines)


def test_an_unfinished_run_says_which_step_it_is(tmp_path):
    run, lines = tuned(tmp_path), []
    (run / "result.json").unlink()
    steps = read_config(run).steps
    assert gl.load_classifier(run, say=lines.append).predict(["a joy"])
    assert any(f"not finished: these are the weights after step {steps} of {steps}" in line for line in lines)


def test_other_weights_than_the_result_tells_are_refused(tmp_path):
    run = tuned(tmp_path)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "weights_sha256": "0" * 64}))
    with pytest.raises(BadInput, match="not those in"):
        gl.load_classifier(run)


def test_a_later_or_broken_record_is_refused_with_the_fix(tmp_path):
    folder = saved(tuned(tmp_path), tmp_path / "saved")
    path = folder / "gradless/classifier.json"
    for text, sentence in (
        ('{"format": 2}', "later release"),
        ("{", "is not JSON"),
        ('{"format": 1, "template": 3}', "give template= and labels="),
        ('{"format": 1}', "neither a task nor a template"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=sentence):
            gl.load_classifier(folder)


def test_an_evaluation_predicts_as_it_was_evaluated(tmp_path):
    config = h.config(tmp_path)
    scores = jobs.evaluate(config, mode="calibrated", num_demonstrations=0, out=tmp_path / "eval", reporter=QUIET)
    rows = [{**row["columns"], "label": row["label"]} for row in build.load_task(config)[1].test]
    classifier = gl.load_classifier(tmp_path / "eval")
    assert classifier.spec.calibrated
    predictions = classifier.predict(rows)
    right = sum(one.label == str(row["label"]) for one, row in zip(predictions, rows, strict=True))
    assert right / len(rows) == scores["test"]["accuracy"]
    plain = gl.load_classifier(tmp_path / "eval", calibrated=False).predict(rows)
    assert [one.probabilities for one in plain] != [one.probabilities for one in predictions]


@pytest.mark.parametrize(
    ("task", "row", "labels"),
    [
        ("sst2", {"sentence": "a joy ."}, {"negative", "positive"}),
        ("sst2", {"sentence": "a joy .", "label": -1}, {"negative", "positive"}),
        (
            "copa",
            {"premise": "It rained.", "question": "effect", "choice1": "I stayed.", "choice2": "I left."},
            {"I stayed.", "I left."},
        ),
        ("winogrande", {"sentence": "A _ ran.", "option1": "cat", "option2": "dog"}, {"cat ran.", "dog ran."}),
        (
            "record",
            {"passage": "A and B met.\n@highlight\nC", "query": "@placeholder left", "entities": ["A", "B"]},
            {"A left", "B left"},
        ),
        ("multirc", {"paragraph": "P", "question": "Q", "answer": "A"}, {"false", "true"}),
    ],
)
def test_rows_of_built_in_tasks_need_no_label(task, row, labels):
    (prediction,) = gl.load_classifier("tiny-llama", task=task).predict([row])
    assert set(prediction.probabilities) == labels
    assert prediction.label in labels


def test_generated_answers():
    row = {"context": "The number is 3.", "question": "What is it?"}
    (prediction,) = gl.load_classifier("tiny-llama", task="squad").predict([row])
    assert prediction.probabilities == {}
    assert prediction.index is None
