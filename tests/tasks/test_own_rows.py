"""Files as people have them: read right and said, or refused in one sentence that names all bad rows."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from gradless.errors import BadInput
from gradless.tasks import custom, text_rows
from gradless.tasks.own import parse_labels, write_labels

PLAIN = "text,label\na joy,1\na bore,0\n"
ROWS = [("a joy", 1), ("a bore", 0)]


def read(path: Path, content: str | bytes, **more: Any) -> tuple[list[tuple[str, int]], list[str]]:
    """Rows by label, and messages."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    messages: list[str] = []
    settings = {"template": "{text} It was", "label_column": "label", "labels": "0=bad,1=good", "say": messages.append}
    _, splits = custom(test=path, **(settings | more))
    rows = [(row["columns"]["text"], row["label"]) for row in splits.test]
    return sorted(rows, key=lambda row: -row[1]), messages


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "\ufeff" + PLAIN.replace("\n", "\r\n"), ""),
        ("a.csv", PLAIN.replace("\n", "\r"), ""),
        ("a.csv", PLAIN.replace("text,label", " text , label\t"), "spaces around names of columns are left out"),
        ("a.csv", PLAIN.replace(",", ";"), "cells are separated by semicolons"),
        ("a.csv", "sep=|\r\n" + PLAIN.replace(",", "|"), "cells are separated by pipes"),
        ("a.csv", PLAIN.replace(",", "\t"), "cells are separated by tabs"),
        ("a.tsv", PLAIN, "cells are separated by commas"),
        ("a.csv", PLAIN.replace("0\n", "0\n\n,\n , \n\n"), "2 blank rows are left out"),
        ("a.csv", PLAIN.replace("1\n", "1,\n"), ""),
        ("a.csv", PLAIN.replace("1\n", "1.0\n"), "the label '1.0' is read as '1'"),
        ("a.csv", PLAIN.encode("utf-16"), "read as UTF-16"),
        ("a.csv", gzip.compress(PLAIN.encode(), mtime=0), ""),
        ("a.csv", "x,text,x,label\n1,a joy,2,1\n1,a bore,2,0\n", ""),
        ("a.json", '[{"text": "a joy", "label": 1},\n {"text": "a bore", "label": 0.0}]', "'0.0' is read as '0'"),
        ("a.jsonl", '{"text": "a joy", "label": "1 "}\r{"text": "a bore", "label": 0}', ""),
    ],
)
def test_what_people_have_is_read_and_said(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    rows, lines = read(tmp_path / name, content)
    assert rows == ROWS
    assert [message in line for line in lines] == ([True] if message else [])


CELL = "text,label\ncaf\xe9 \u2013 a joy,1\n"


@pytest.mark.parametrize(
    ("written", "named", "fix"),
    [
        ("cp1252", "latin1", "line 2 .*U\\+0096.*--encoding cp1252$"),
        ("cp1251", "iso8859-5", "--encoding cp1251$"),
        ("utf-8", "latin1", "line 2 is UTF-8.*leave out --encoding$"),
        ("utf-8", "cp1252", "line 2 is UTF-8.*leave out --encoding$"),
        ("utf-8-sig", "cp437", "line 1 is UTF-8.*leave out --encoding$"),
        ("cp1252", "cp1252", None),
        ("latin1", "latin1", None),
        ("utf-16", "utf-16", None),
    ],
)
def test_text_that_looks_like_another_encoding_is_warned_of_once(tmp_path, written, named, fix):
    cell = CELL if written != "cp1251" else CELL.replace("\xe9", "\u044f")
    cell = cell.replace("\u2013", "-") if written == "latin1" else cell
    path = tmp_path / "a.csv"
    path.write_bytes((cell + cell.split("\n")[1] + "\n").encode(written))
    column = "\xef\xbb\xbftext".encode("latin1").decode(named) if written == "utf-8-sig" else "text"
    content = text_rows.read_text(path, text_rows.Wanted((column,), "label", ("1",), encoding=named))
    assert len(list(content.records)) == 2
    assert [bool(re.search(f"^warning: .*{fix}", note)) for note in content.notes] == [True] * (fix is not None)


@pytest.mark.parametrize(
    ("written", "named", "fix"),
    [
        (CELL.encode("cp1252"), None, "cp1252 .*or utf-16"),
        (CELL.encode("cp1252") + b"x\n", "utf-16", "--encoding utf-8 or cp1252"),
        (CELL.encode("cp1252").replace(b"\x96", b"\x81"), "cp1252", "--encoding utf-8 or utf-16"),
        (CELL.encode("cp1252"), "ascii", "--encoding utf-8 or cp1252"),
        (CELL.encode("utf-16"), "cp1252", "zero byte.*--encoding utf-16"),
    ],
)
def test_what_failed_is_not_recommended(tmp_path, written, named, fix):
    (tmp_path / "a.csv").write_bytes(written)
    with pytest.raises(BadInput, match=fix) as caught:
        text_rows.read_text(tmp_path / "a.csv", text_rows.Wanted(("text",), "label", ("1",), encoding=named))
    assert not re.search(f"encoding.* {named}\\b", str(caught.value))


def test_cells_may_be_long_and_hold_quotes_and_lines(tmp_path: Path) -> None:
    long = "word " * 400_000 + "end"
    rows, _ = read(tmp_path / "a.csv", f'text,label\n{long},1\n"a ""b""; c,\nd\u2028e",0\n')
    assert rows == [(long, 1), ('a "b"; c,\nd\u2028e', 0)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label,label\na,1,0\n", "two columns are named 'label'"),
        ("a.csv", "text,label, label\na,1,0\n", "two columns are named 'label'"),
        ("a.csv", "txt,label\na,1\n", "unknown column 'text': did you mean 'txt'"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "", "holds no rows"),
        (
            "a.csv",
            "text,label\na,1\n,\nb,x\nc,\n,1\nd,x\n",
            r"lines 4, 7: label 'x' is none of 0, 1.*line 5: the label is empty.*line 6: nothing is in 'text'",
        ),
        ("a.csv", "text,label\na,1,2\nb\nc,1,2\n", "lines 2, 4: 3 fields where 2 .* line 3: 1 field where 2"),
        ("a.csv", 'text,label\na,1\n"b,0\nc,1\n', "line 3: a quoted field begins here and never ends"),
        ("a.csv", 'text,label\n"a" b,1\n', "line 2: .*double the quotes"),
        ("a.csv", "text,label\na\0b,1\n", "line 2 holds a zero byte"),
        ("a.csv", PLAIN.encode("utf-16-le"), "line 1 holds a zero byte: .*--encoding"),
        ("a.csv", "text,label\nok,1\nh\xe4,1\n".encode("latin-1"), "line 3: this is no utf-8 text: .*--encoding"),
        ("a.csv", b"PK\x03\x04", "is a spreadsheet"),
        ("a.csv.gz", b"x", "damaged gzip"),
        ("a.xlsx", b"", "of no known type"),
        (
            "a.jsonl",
            '{"text": "a", "label": null}\n{"text": "a"}',
            "line 1: the label is null.*line 2: no column 'label'",
        ),
        ("a.jsonl", '{"text": NaN, "label": 1}\n{"text": 1e999, "label": 1}', "'text' is NaN.*'text' is infinite"),
        ("a.jsonl", '{"text": "a", "label": 1, "label": 0}', "the key 'label' occurs twice"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', "half of a surrogate pair"),
        ("a.jsonl", '{"text": ' + "[" * 9000 + "\n", "too deep"),
        ("a.jsonl", '{"text": 1, "label": ' + "9" * 5000 + "}", "thousands of digits"),
        ("a.jsonl", '{"text": {"a": 1}, "label": 1}', "'text' holds a dict"),
        ("a.jsonl", '{"text": true, "label": true}', "label 'true' is none of 0, 1"),
        ("a.json", '{\n "data": []\n}', "one JSON value over several lines"),
        ("a.json", "[1]", "row 1: not a JSON object"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_bad_rows_are_counted_beyond_the_first(tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"a,{i % 7}\n" for i in range(700))
    with pytest.raises(BadInput, match=r"lines 4, 11, .* and 92 more: label '2' .* label '6'") as caught:
        read(tmp_path / "a.csv", content)
    assert len(str(caught.value)) < 900


def test_delimiter_and_encoding_can_be_given(tmp_path: Path) -> None:
    for delimiter in ("tab", "\\t", "\t"):
        assert read(tmp_path / "a.csv", PLAIN.replace(",", "\t"), delimiter=delimiter) == (ROWS, [])
    text = PLAIN.replace("joy", "j\xf6y")
    assert read(tmp_path / "a.csv", text.encode("cp1252"), encoding="cp1252")[0][0] == ("a j\xf6y", 1)
    for how, words in (
        ({"delimiter": ";;"}, "is not one character"),
        ({"delimiter": ";"}, "unknown column 'text'"),
        ({"encoding": "klingon"}, "unknown encoding 'klingon'"),
        ({"encoding": "hex"}, "unknown encoding 'hex'"),
    ):
        with pytest.raises(BadInput, match=words):
            read(tmp_path / "a.csv", PLAIN, **how)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(BadInput, match="holds no data files: give a file"):
        custom(test=tmp_path / "b.csv", template="{text}", label_column="label", labels="0=a,1=b")


def test_labels_match_without_case_unless_that_is_ambiguous(tmp_path: Path) -> None:
    rows, messages = read(tmp_path / "a.csv", "text,label\na,POS \nb,\xa0neg\n", labels="neg=bad,pos=good")
    assert rows == [("a", 1), ("b", 0)]
    assert len(messages) == 2
    assert read(tmp_path / "a.csv", "text,label\na,A\nb,a\n", labels="a=bad,A=good") == ([("a", 1), ("b", 0)], [])
    with pytest.raises(BadInput, match="label 'c' is none of a, A"):
        read(tmp_path / "a.csv", "text,label\na,c\n", labels="a=bad,A=good")


def test_bad_rows_of_all_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"text,label\n\xe4,1\nfine,0\n\xfc,1\n")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": \n{"text": "a", "label": 7}\n{"label": 1}\n')
    with pytest.raises(BadInput) as caught:
        read(tmp_path / "a.csv", "text,label\na,x\nb,1\nc\n", train=tmp_path / "b.csv", dev=tmp_path / "c.jsonl")
    message = str(caught.value)
    assert "b.csv, lines 2, 4: this is no utf-8 text" in message
    assert "c.jsonl, 4 of 4 lines cannot be used: line 1: no column 'label'" in message
    assert "a.csv, 2 of 3 lines cannot be used: line 2: label 'x' is none of 0, 1" in message
    assert "line 4: 1 field where 2 are expected" in message


@pytest.mark.parametrize(
    "labels",
    [{"0": "bad", "1": "good"}, {"a=b": "yes", "c, d": "no"}, {"x": "1,5", "y": 'say "no"'}, {" a": "b", "c": "d"}],
)
def test_labels_are_written_as_they_are_read(labels: dict[str, str]) -> None:
    assert parse_labels(write_labels(labels)) == labels


@pytest.mark.parametrize("text", ['{"0": "a", "0": "b"}', '{"0": 1, "1": "b"}', '{"0": "a"', '{"0": "a"}', "{}"])
def test_labels_in_broken_json_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="label"):
        parse_labels(text)
