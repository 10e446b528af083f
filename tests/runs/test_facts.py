"""What is said of a run's data before it trains, and kept in its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gradless import tasks
from gradless.cli import commands
from gradless.lm import objectives, tiny
from gradless.runs import describe, facts
from gradless.runs.facts import DataFacts, Majority
from gradless.tasks import Splits, custom

LABELS = "0=terrible,1=great"
TRAIN = [("a joy", "1"), ("a bore", "0"), ("a joy", "0"), ("great", "1"), ("dull", "0"), ("slow", "0")]
TEST = [("a joy", "1"), ("lovely", "1"), ("bad", "0")]


def put(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]))
    return path


def of_own(tmp_path: Path, *, max_length: int | None = None, kind: str = "llama", **more: Any) -> DataFacts:
    files = {name: put(tmp_path / f"{name}.csv", rows) for name, rows in (("train", TRAIN), ("test", TEST))}
    settings = {**files, "template": "{text} It was", "label_column": "label", "labels": LABELS} | more
    task, splits = custom(**settings, say=lambda line: None)
    objective = objectives.default_for(task)
    own = {name: str(settings[name]) for name in ("train", "test")}
    return describe.described(tiny(kind), task, splits, objective, own, max_length)[0]


def test_the_most_frequent_tagged_answer_is_text_and_of_no_use_with_a_reward() -> None:
    from gradless import rewards

    task = tasks.get("arithmetic")
    rows = [{"a": 10 + i % 2, "b": 20, "answer": 30 + i % 2} for i in range(5)]
    splits = Splits([], [], rows, "")
    described = describe.described(tiny("llama"), task, splits, objectives.default_for(task), {}, None)[0]
    assert described.majority == {"test": Majority(answer="<answer>30</answer>", share=0.6)}
    with rewards.load(["arithmetic"]) as functions:
        rewarded = objectives.rewarded(functions, 1.0)
        assert describe.described(tiny("llama"), task, splits, rewarded, {}, None)[0].majority == {}


def test_own_rows_are_described(tmp_path: Path) -> None:
    described = of_own(tmp_path)
    assert described.rows == {"train": 6, "dev": 0, "test": 3}
    assert [(one.label, one.word, one.rows) for one in described.classes] == [
        ("0", " terrible", {"train": 4, "test": 1}),
        ("1", " great", {"train": 2, "test": 2}),
    ]
    assert described.majority == {"train": Majority(answer="0", share=4 / 6), "test": Majority(answer="1", share=2 / 3)}
    assert (described.repeated, described.contradictory) == ({"test in train": 1}, 2)
    assert described.cut is not None
    assert described.cut.rows == {"train": 0, "test": 0}
    assert facts.read(json.loads(json.dumps(described.to_json()))) == described
    text = "\n".join(facts.lines(described))
    assert "always answering '1' has 66.7% of the test rows right" in text
    assert " It was\u27e6 " in text


def test_a_prompt_is_shown_as_it_is_read(tmp_path: Path) -> None:
    """Cut, with the tokens that the tokenizer adds, and with the word in place of the mask."""
    long = "word " * 400
    described = of_own(tmp_path, train=put(tmp_path / "long.csv", [(long, "1")] * 4), max_length=40)
    assert described.cut is not None
    assert (described.cut.rows["train"], described.cut.side, described.cut.limit) == (4, "beginning", 40)
    assert described.cut.reason == "--max-length"
    assert described.prompt is not None
    assert described.prompt.before.startswith("<s>")
    assert len(described.prompt.before) < 200
    assert "4 of 4 train rows lose the beginning of their text" in facts.cut_line(described)
    masked = of_own(tmp_path, kind="roberta", template="{text} It was {mask}.").prompt
    assert masked is not None
    assert (masked.scored, masked.after) in {(" great", ".</s>"), (" terrible", ".</s>")}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"labels": f"{LABELS},2=fine"}, "no training row has the label '2'"),
        ({"labels": f"{LABELS},2=fine"}, "no test row has the label '2'"),
        ({"labels": "0=terrible,1=terrible film"}, "' terrible' begins ' terrible film'"),
        (
            {"train": [("x", "1")] * 9 + [("y", "0")]},
            "the training rows are uneven: 9 have the label '1' and 1 have '0'",
        ),
        (
            {"test": [("only", "1")] * 2, "train": [("only", "0")] * 2},
            "'text' holds the same text in all 4 rows",
        ),
        ({"test": "train.csv"}, "6 of 6 test rows are training rows too (--test and --train are the same file)"),
        ({"num_dev": 3, "test": "train.csv"}, "4 of 6 test rows are dev rows too"),
    ],
)
def test_what_makes_a_result_say_less_is_said(tmp_path: Path, changes: dict[str, Any], warning: str) -> None:
    for name in ("train", "test"):
        rows = changes.get(name)
        if isinstance(rows, list):
            changes = changes | {name: put(tmp_path / f"own-{name}.csv", rows)}
        elif rows is not None:
            changes = changes | {name: tmp_path / rows}
    described = of_own(tmp_path, **changes)
    assert any(warning in one for one in described.warnings), described.warnings


def test_choices_and_generated_answers(tmp_path: Path) -> None:
    copa, squad = tasks.get("copa"), tasks.get("squad")
    row = {"premise": "It rained.", "choice1": "I got wet.", "choice2": "I ran.", "question": "effect"}
    splits = Splits([], [], [row | {"label": 0, "choice1": f"{i}."} for i in range(3)] + [row | {"label": 1}], "")
    described = describe.described(tiny("llama"), copa, splits, objectives.default_for(copa), {}, None)[0]
    assert described.majority["test"] == Majority(answer="option 1", share=0.75)
    assert described.chance == 0.5
    question = {"title": "T", "context": "In 1990.", "question": "When?", "answers": {"text": ["1990"]}}
    question |= {"answers": ["1990"]}
    splits = Splits([], [], [question, question | {"question": "What year?"}], "")
    described = describe.described(tiny("llama"), squad, splits, objectives.default_for(squad), {}, None)[0]
    assert described.majority["test"].share == 1.0
    assert described.answers == "1 words (median), 1 at most"
    assert described.prompt is not None
    assert described.prompt.scored == " 1990\n"


@pytest.mark.parametrize(
    ("right", "low", "beaten"), [(0.5, 0.2, False), (0.7, 0.2, None), (0.9, 0.8, True), (None, 0.1, None)]
)
def test_a_result_is_compared_with_the_majority(right: float | None, low: float, beaten: bool | None) -> None:
    described = DataFacts(kind="classification", rows={"test": 9}, majority={"test": Majority(answer="1", share=0.6)})
    result = {"data": described.to_json(), "share_right": {"test": right}, "interval": {"test": [low, 1.0]}}
    compared = facts.baseline(result)
    assert (compared is None) == (right is None)
    assert compared is None or compared.beaten is beaten


@pytest.mark.parametrize("value", [None, 3, [], {}, {"kind": 1, "rows": {}}, {"kind": "x", "rows": {"test": -1}}])
def test_what_is_no_facts_is_none(value: object) -> None:
    assert facts.read(value) is None
    assert facts.baseline({"data": value, "test": {"accuracy": 0.5}}) is None


def test_a_run_says_it_first_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In result.json, and in data.json from before the first step, which the page of a killed run is made from."""
    monkeypatch.chdir(tmp_path)
    put(Path("train.csv"), TRAIN)
    put(Path("test.csv"), TEST)
    own = ["--train", "train.csv", "--test", "test.csv", "--template", "{text} It was", "--label-column", "label"]
    own += ["--labels", LABELS, "--model", "tiny-llama"]
    done = CliRunner().invoke(commands.main, ["tune", *own, "--steps", "2", "--batch-size", "2", "--out", "run"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "data: 6 training, 3 test rows"
    time = next(number for number, line in enumerate(lines) if line.startswith("expected time: "))
    assert time < next(number for number, line in enumerate(lines) if line.startswith("zero-shot test"))
    result = json.loads(Path("run/result.json").read_text())
    kept = facts.read(json.loads(Path("run/data.json").read_text()))
    assert facts.of_run(Path("run"), result) == kept
    for name in ("result.json", "predictions.jsonl"):
        Path("run", name).unlink()
    shown = CliRunner().invoke(commands.main, ["report", "run"])
    assert shown.exit_code == 0, shown.output
    assert '<section id="data">' in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"train": 250, "dev": 0}, "the last step is kept; --num-dev 50 would hold some training rows out"),
        ({"train": 90_000}, "--num-dev 500 would"),
        ({"train": 4}, "no dev rows: the last step is kept"),
        ({"train": 4, "dev": 2}, ""),
        ({"test": 9}, ""),
    ],
)
def test_training_without_dev_rows_is_said(rows: dict[str, int], line: str) -> None:
    described = DataFacts(kind="classification", rows=rows)
    assert line in facts.no_dev_line(described)
    assert bool(line) == any(one.startswith("no dev rows") for one in facts.lines(described))


def test_a_difference_has_a_point_and_the_name_of_its_metric() -> None:
    result = {"zero_shot": {"accuracy": 0.5}, "test": {"loss": 1.0, "accuracy": 0.75}}
    result |= {"interval": {"difference": [-0.1, 0.6]}}
    assert facts.difference_line(result) == "difference in accuracy: +0.250, -0.100 to +0.600 (95 %, paired)"
    assert facts.difference_line({**result, "interval": {}}) == ""
