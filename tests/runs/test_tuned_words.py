"""A saved model keeps how its rows were written and what it was asked: evaluation and prediction take that up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradless.runs.classifier import Spec, write_spec
from gradless.runs.tuned_words import completed, limits
from gradless.tasks.text_rows import Wanted
from gradless.tasks.written_before import as_before

TUNED: dict[str, Any] = {"template": "{text} so", "label_column": "label", "labels": {"0": "bad", "1": "good"}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model" / "gradless").mkdir(parents=True)
    write_spec(tmp_path / "model" / "gradless", Spec(**TUNED, encoding="cp1252"))
    return str(tmp_path / "model")


def test_an_evaluation_takes_the_words_of_the_tuning(model: str, tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "new.csv").write_bytes("text,label\nça va,1\n".encode("cp1252"))
    own = {"test": str(tmp_path / "new.csv")}
    assert completed(own, model, lines.append) == own | TUNED | {"encoding": "cp1252"}
    assert 'was tuned with these, which are taken: template "{text} so", label column "label"' in lines[0]
    assert "is no UTF-8 text: it is read as cp1252" in lines[1]


def test_other_words_than_those_of_the_tuning_are_said(model: str) -> None:
    lines: list[str] = []
    own = {"test": "none.csv", **TUNED, "labels": "0=terrible,1=great"}
    assert completed(own, model, lines.append) == own
    assert lines == [f'{model} was tuned with other words than these, so its figures may be low: labels "0=bad,1=good"']
    assert completed(own | {"labels": "0=bad,1=good"}, model, lines.append)["labels"] == "0=bad,1=good"
    assert completed({"test": "none.csv"}, "tiny-llama", lines.append) == {"test": "none.csv"}
    assert completed({}, model, lines.append) == {}
    assert len(lines) == 1


def test_a_record_of_an_earlier_release_has_no_encoding(model: str) -> None:
    path = Path(model) / "gradless" / "classifier.json"
    values = json.loads(path.read_text())
    del values["encoding"], values["delimiter"]
    path.write_text(json.dumps(values))
    assert completed({"test": "none.csv"}, model, lambda line: None) == {"test": "none.csv", **TUNED}


@pytest.mark.parametrize(
    ("content", "encoding", "delimiter", "expected"),
    [
        ("text,n\né,1\n".encode(), "cp1252", None, (None, None)),
        ("text,n\né,1\n".encode("cp1252"), "cp1252", None, (None, "cp1252")),
        ("text,n\né,1\n".encode("utf-16"), "cp1252", None, (None, None)),
        (b"text^n\na^1\n", None, "^", ("^", None)),
        (b"text,n\na,1\n", None, "^", (None, None)),
    ],
)
def test_new_rows_are_read_as_those_of_the_tuning_if_they_must(
    tmp_path: Path, content: bytes, encoding: str | None, delimiter: str | None, expected: tuple[str | None, str | None]
) -> None:
    path, lines = tmp_path / "new.csv", list[str]()
    path.write_bytes(content)
    wanted = as_before(path, Wanted(("text", "n"), "", ()), encoding, delimiter, lines.append)
    assert (wanted.delimiter, wanted.encoding) == expected
    assert len(lines) == sum(one is not None for one in expected)


def test_limits_and_the_task_of_the_tuning_are_taken_where_none_are_given(model: str) -> None:
    path, lines = Path(model) / "gradless" / "classifier.json", list[str]()
    values = json.loads(path.read_text()) | {"template": None, "labels": {}, "task": "sst2", "chat": True}
    path.write_text(json.dumps(values | {"max_length": 40}))
    settings = {"task": None, "aligned": True, "chat": False, "max_length": None}
    filled = limits(model, False, ["model"], settings, lines.append)
    assert filled == {"task": "sst2", "chat": True, "max_length": 40}
    assert lines == [f"{model} was tuned with these, which are taken: task sst2, chat yes, max length 40"]
    assert limits(model, True, ["chat", "max_length"], settings, lines.append) == {}
    assert limits("tiny-llama", False, [], settings, lines.append) == {}
