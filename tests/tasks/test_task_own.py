"""Tasks made from a user's own files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gradless import tasks
from gradless.errors import BadInput
from gradless.tasks import Example, custom, read_task_file

ROWS = [{"text": f"film {i}", "label": i % 2, "extra": None} for i in range(10)]


def jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(path: Path, **more: Any) -> tuple[tasks.Task, tasks.Splits]:
    settings = {
        "test": path,
        "template": "{text} It was",
        "label_column": "label",
        "labels": "0=terrible,1=great",
    }
    return custom(**(settings | more))


def test_the_readme_case(tmp_path: Path) -> None:
    task, splits = make(tmp_path / "t.jsonl", train=jsonl(tmp_path / "t.jsonl"), num_dev=3)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (7, 3, 10)
    held = [row["columns"]["text"] for row in splits.train + splits.dev]
    assert sorted(held) == [f"film {i}" for i in range(10)]
    assert task.render is not None
    assert task.render_masked is None
    row = {"columns": {"text": "film 1"}, "label": 1}
    assert row in splits.test
    assert task.render(row) == Example(
        "film 1 It was", (" terrible", " great"), (1,), content_free="It was", contents=((0, 6),)
    )
    assert task.label_words == (" terrible", " great")
    assert (task.kind, task.labels) == ("classification", ("0", "1"))


def test_csv_tsv_gz_and_text_labels(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text('kind,body\npos,"one, ""two""\nthree"\nneg,four\n')
    tsv = tmp_path / "b.tsv.gz"
    tsv.write_bytes(gzip.compress(b"kind\tbody\npos\tfive\n"))
    task, splits = custom(
        train=csv, test=tsv, template="{body}", label_column="kind", labels={"neg": "bad", "pos": "very good"}
    )
    rows = sorted((row["columns"]["body"], row["label"]) for row in splits.train)
    assert rows == [("four", 0), ('one, "two"\nthree', 1)]
    assert splits.test == [{"columns": {"body": "five"}, "label": 1}]
    assert task.label_words == (" bad", " very good")


def test_several_columns_braces_and_numbers(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"a b": 3, "c": 1.5, "y": True}])
    template = "{{x}} {a b}: {c} {a b}\n"
    task, splits = custom(test=path, template=template, label_column="y", labels={"false": "No", "true": "Yes"})
    assert task.render is not None
    contents = ((4, 5), (7, 10), (11, 12))
    expected = Example("{x} 3: 1.5 3\n", ("No", "Yes"), (1,), content_free="{x} :  \n", contents=contents)
    assert task.render(splits.test[0]) == expected


@pytest.mark.parametrize(
    ("template", "label_word", "prompt", "option"),
    [
        ("{text} It was", "great", "film 0 It was", " great"),
        ("{text} It was", " great", "film 0 It was", " great"),
        ("{text} It was ", "great", "film 0 It was", " great"),
        ("{text}\nAnswer:\n", "great", "film 0\nAnswer:\n", "great"),
        ("{text}", "not so great", "film 0", " not so great"),
    ],
)
def test_spaces_belong_to_the_word(tmp_path: Path, template: str, label_word: str, prompt: str, option: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS[:1])
    task, splits = make(path, template=template, labels={"0": label_word, "1": "x"})
    assert task.render is not None
    example = task.render(splits.test[0])
    assert (example.prompt, example.options[0]) == (prompt, option)


@pytest.mark.parametrize(
    ("template", "prompt", "blank"),
    [
        ("{text} It was {mask}.", "film 0 It was<mask>.", "It was<mask>."),
        ("{text} It was{mask}.", "film 0 It was<mask>.", "It was<mask>."),
        ("{mask}: {text}", "<mask>: film 0", "<mask>:"),
    ],
)
def test_masked_template(tmp_path: Path, template: str, prompt: str, blank: str) -> None:
    task, splits = make(jsonl(tmp_path / "a.jsonl", ROWS[:1]), template=template)
    assert task.render is None
    assert task.label_words is None
    assert task.masked_words == (" terrible", " great")
    assert task.render_masked is not None
    example = task.render_masked(splits.test[0])
    ((start, end),) = example.contents
    assert example == Example(prompt, (" terrible", " great"), (0,), content_free=blank, contents=((start, end),))
    assert prompt[start:end] == "film 0"


def test_dev_file_and_k_shot(tmp_path: Path) -> None:
    train, dev = jsonl(tmp_path / "t.jsonl"), jsonl(tmp_path / "d.jsonl", [{"text": "dev", "label": 1}])
    _, splits = make(train, train=train, dev=dev)
    assert splits.dev == [{"columns": {"text": "dev"}, "label": 1}]
    assert len(splits.train) == 10
    _, splits = make(train, train=train, k_shot=2)
    assert (len(splits.train), len(splits.dev)) == (4, 4)
    with pytest.raises(BadInput, match="leave out --dev"):
        make(train, train=train, dev=dev, k_shot=2)
    with pytest.raises(BadInput, match=r"asked for 11 train rows, but .*t.jsonl.* has 10"):
        make(train, train=train, num_train=11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "It was"}, "shows no column"),
        ({"template": "{text"}, "cannot be read"),
        ({"template": "{} was"}, "not just a column's name"),
        ({"template": "{text:>3}"}, "not just a column's name"),
        ({"template": "{text} {mask} {mask}"}, "more than one {mask}"),
        ({"template": "{text} {mask} <mask>"}, "holds '<mask>' beside {mask}: take it out"),
        ({"template": "{text} {label}"}, "shows the label column 'label'"),
        ({"template": "{txt} It was"}, r"a.jsonl: unknown column 'txt': did you mean 'text'"),
        ({"template": "{extra} It was"}, r"a.jsonl, lines 1, 2, .* and 2 more: column 'extra' is null: fill it in"),
        ({"label_column": "stars"}, r"unknown column 'stars'.* \(known: extra, label, text\)"),
        ({"labels": "0=terrible"}, r"1 label\(s\) given"),
        ({"labels": "0=terrible,great"}, "'great' in the labels is not VALUE=WORD"),
        ({"labels": "0=a,0=b"}, "'0' twice"),
        ({"labels": "0=a,1="}, "empty word"),
        ({"labels": "0=a,1= a"}, "labels '0' and '1' have the same word 'a': give each its own"),
        ({"labels": "0=a,2=b"}, r"a.jsonl, lines 2, 4, 6, 8, 10: label '1' is none of 0, 2: add it"),
        ({"test": None}, "no data given"),
    ],
)
def test_bad_input(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl")
    with pytest.raises(BadInput, match=message):
        make(path, **change)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "", "holds no rows"),
        ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text": ', r"a.jsonl, line 3: broken JSON"),
        ("a.csv", "text,label\na,0\nb,1,c\n", r"a.csv, line 3: 3 fields where 2 are expected"),
        ("a.jsonl", '{"text": ["a"], "label": 0}', r"line 1: column 'text' holds a list"),
        ("a.xls", "x", "of no known type"),
        ("a.parquet", "x", "damaged, or of another kind"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BadInput, match=message):
        make(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read .*none.jsonl: No such file"):
        make(tmp_path / "none.jsonl")


def test_task_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl")
    toml = tmp_path / "task.toml"
    toml.write_text(
        'test = "test.jsonl"\ntemplate = "{text} It was"\nlabel_column = "label"\n'
        '[labels]\n0 = "terrible"\n1 = "great"\n'
    )
    settings = read_task_file(toml)
    assert settings["test"] == tmp_path / "test.jsonl"
    task, splits = custom(**settings)
    assert task.label_words == (" terrible", " great")
    assert len(splits.test) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('tempalte = "{text}"', "unknown key 'tempalte': did you mean 'template'"),
        ('template = "{text}"\nlabel_column = "y"', "labels is missing"),
        ("template = 3", "template is 3: give text"),
        ('template = "{text}"\nlabel_column = "y"\nlabels = {0 = 1}', "labels is .*: give text or a table of texts"),
        ('template = "{text}"\nlabel_column = "y"\nlabels = 3', "labels is 3: give text or a table of texts"),
        ("template = ", "is not TOML"),
    ],
)
def test_bad_task_file(tmp_path: Path, content: str, message: str) -> None:
    toml = tmp_path / "task.toml"
    toml.write_text(content)
    with pytest.raises(BadInput, match=message):
        read_task_file(toml)


def test_missing_task_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml cannot be read"):
        read_task_file(tmp_path / "none.toml")
