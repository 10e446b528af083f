"""``gradless predict`` on files: rows go out as they came in; what cannot be used is refused at once."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from click.testing import CliRunner

from cli_helpers import call, refused
from gradless.cli import main
from gradless.runs import predict, row_files

MODEL = ("tiny-llama", "--template", "{text} so", "--labels", "0=bad,1=good")
NEW = ["predicted_label", "p_0", "p_1"]


def predicted(tmp_path, name, content, out, *more):
    source = tmp_path / name
    source.write_bytes(content)
    done = call("predict", *MODEL, "--input", source, "--output", tmp_path / out, *more)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    return (tmp_path / out).read_bytes()


@pytest.mark.parametrize(
    ("content", "more"),
    [
        ('id;text;note\r\n7;"a ""joy""; really";=SUM(A1)\r\n8;é;"two\r\nlines"\r\n'.encode(), ()),
        ("\ufeffid,text\n1, spaced \n\n2,'x'\n".encode(), ()),
        ("text\tprix\nça va\t3 €\n".encode("cp1252"), ("--encoding", "cp1252", "--delimiter", "tab")),
        ("text|b\na|1\n".encode("utf-16"), ()),
        (b"sep=;\ntext;b\na;1\n", ()),
        (gzip.compress(b"text,b\na,1\n", mtime=0), ()),
        (b"text,text2 ,x,x\na,b,1,2\n", ()),
    ],
)
def test_tables_keep_cells_separators_encoding_and_line_ends(tmp_path, content, more):
    data = predicted(tmp_path, "in.csv", content, "out.csv", *more)
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    encoding = more[1] if more else "utf-16" if plain[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    before, after = plain.decode(encoding), data.decode(encoding)
    assert after.startswith("\ufeff") == before.startswith("\ufeff")
    assert ("\r\n" in after) == ("\r\n" in before)
    if before.startswith("sep="):
        assert after.startswith("sep=;\n")
        before, after = before[6:], after[6:]
    character = next(one for one in ";\t|," if one in before.splitlines()[0])
    rows, new = (list(csv.reader(io.StringIO(text, newline=""), delimiter=character)) for text in (before, after))
    assert [row[:-3] for row in new] == [row for row in rows if row]
    assert new[0][-3:] == NEW


def test_json_lines_keep_their_very_text(tmp_path):
    lines = [
        '{"text": "a\\u00e9", "n": 0.10000000000000000001,  "deep": {"x": [1, null]}}',
        '{"other": 1e5, "text": "b"}',
    ]
    data = predicted(tmp_path, "in.jsonl", ("\n".join(lines) + "\n\n").encode(), "out.jsonl").decode().splitlines()
    assert [text[: len(line) - 1] for text, line in zip(data, lines, strict=True)] == [line[:-1] for line in lines]
    assert [set(json.loads(text)) & {*NEW} for text in data] == [{*NEW}] * 2


@pytest.mark.parametrize("out", ["out.json", "out.jsonl.gz", "out.tsv", "out.parquet"])
def test_formats_become_each_other(tmp_path, out):
    if out.endswith("parquet"):
        pytest.importorskip("pyarrow")
    predicted(tmp_path, "in.csv", b'id,text\n007,"a, b"\n8,c\n', out)
    again = call("predict", *MODEL, "--input", tmp_path / out, "--id-column", "id", "--prefix", "second_")
    if out.endswith("parquet"):
        rows = [json.loads(line) for line in again.stdout.splitlines()]
    elif out.endswith("tsv"):
        rows = list(csv.DictReader(io.StringIO(again.stdout), delimiter="\t"))
    else:
        rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert [row["id"] for row in rows] == ["007", "8"]
    assert list(rows[0]) == ["id", *("second_" + name for name in NEW)]


@pytest.mark.parametrize(("out", "separator"), [("out.csv", ","), ("out.tsv", "\t")])
@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "-"])
def test_any_rows_become_a_table(tmp_path, name, out, separator):
    rows, text = [{"id": "007", "text": "a, b"}, {"id": "8", "text": "c"}], 'id;text\n007;"a, b"\n8;c\n'
    if name.endswith("parquet"):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name != "-":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = name if name == "-" else str(tmp_path / name)
    done = CliRunner().invoke(main, ["predict", *MODEL, "--input", source, "--output", str(tmp_path / out)], input=text)
    assert done.exit_code == 0, done.output
    written = list(csv.DictReader(io.StringIO((tmp_path / out).read_text()), delimiter=separator))
    assert [{name: row[name] for name in ("id", "text")} for row in written] == rows
    assert list(written[0])[2:] == NEW


@pytest.mark.parametrize("more", [(), ("--id-column", "x")])
@pytest.mark.parametrize("out", ["out.parquet", "out.jsonl"])
def test_two_columns_of_one_name_are_not_made_one(tmp_path, out, more):
    if out.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / "in.csv").write_text("text,x,x\na,b,1\n")
    done = call("predict", *MODEL, "--input", tmp_path / "in.csv", "--output", tmp_path / out, *more)
    refused(done, "two columns are named 'x'", "write to a .csv file")
    assert not (tmp_path / out).exists()


def test_an_input_that_is_missing_is_told_also_where_the_output_exists(tmp_path):
    (tmp_path / "out.csv").write_text("kept")
    asked = ("--input", tmp_path / "no.csv", "--output", tmp_path / "out.csv", "--force")
    refused(call("predict", *MODEL, *asked), "no.csv: No such file")
    assert (tmp_path / "out.csv").read_text() == "kept"


def test_parquet_keeps_types_and_row_order(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(predict, "CHUNK", 3)
    table = arrow.table({"n": arrow.array(range(8), arrow.int16()), "text": [f"row {i} " * i + "x" for i in range(8)]})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=5)
    done = call("predict", *MODEL, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet")
    assert done.exit_code == 0, done.output
    back = parquet.read_table(tmp_path / "out.parquet")
    assert back.select(["n", "text"]).equals(table)
    assert back.column_names[2:] == NEW


def test_a_number_that_is_none_is_null_in_json(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a", "b"], "n": [1.5, float("nan")]}), tmp_path / "in.parquet")
    lines = call("predict", *MODEL, "--input", tmp_path / "in.parquet").stdout.splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["n"] for line in lines] == [1.5, None]


def test_spaces_around_names_of_columns_do_not_matter(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{" text ": "a joy", "n": 1}]), tmp_path / "in.parquet")
    done = call("predict", *MODEL, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet")
    assert done.exit_code == 0, done.output
    assert parquet.read_table(tmp_path / "out.parquet").column_names == [" text ", "n", *NEW]
    assert b"predicted_label" in predicted(tmp_path, "in.jsonl", b'{" text": "a joy"}\n', "out.jsonl")


def test_rows_of_a_pipe(tmp_path):
    for text, form in (
        ("id,text\n1,a\n", ()),
        ('{"text": "a", "id": 1}\n', ()),
        ("text;id\na;1\n", ("--format", "csv")),
    ):
        done = CliRunner().invoke(main, ["predict", *MODEL, "--input", "-", *form], input=text)
        assert done.exit_code == 0, done.output
        assert len(done.stdout.splitlines()) == len(text.splitlines())
        assert "predicted_label" in done.stdout


def test_rows_in_chunks_keep_their_order_and_known_labels_are_measured(tmp_path, monkeypatch):
    rows = [f"{'long ' * (i % 5)}text {i},{i % 2}" for i in range(23)]
    content = ("text,label\n" + "\n".join(rows) + "\n").encode()
    whole = predicted(tmp_path, "in.csv", content, "whole.csv")
    monkeypatch.setattr(predict, "CHUNK", 4)
    (tmp_path / "in.csv").write_bytes(content)
    done = call("predict", *MODEL, "--label-column", "label", "--input", tmp_path / "in.csv")
    assert [line.split(",")[:3] for line in done.stdout.splitlines()] == [
        line.split(",")[:3] for line in whole.decode().splitlines()
    ]
    right = sum(line.split(",")[1] == line.split(",")[2] for line in whole.decode().splitlines()[1:])
    assert f"accuracy {right / 23:.4f} (column 'label' of the input)" in done.stderr


AG_NEWS = [(f"news of {i}", i % 4) for i in range(9)]
TOPICS = ("World", "Sports", "Business", "Sci/Tech")


def accuracy(path):
    done = call("predict", "tiny-llama", "--task", "agnews", "--input", path)
    assert done.exit_code == 0, done.output
    said = done.stderr.splitlines()
    return next((line.partition(" (column")[0] for line in said if line.startswith("accuracy")), ""), done.stderr


def test_labels_of_a_whole_table_that_count_from_1_are_read_so(tmp_path):
    """From 0 a 4 is no topic, and all others are another one; a 0 tells that it counts from 0."""
    path, lines = tmp_path / "in.csv", tmp_path / "in.jsonl"
    path.write_text("text,label\n" + "".join(f"{text},{TOPICS[label]}\n" for text, label in AG_NEWS))
    right, said = accuracy(path)
    assert right
    assert "counting from" not in said
    for first in (0, 1):
        path.write_text("text,label\n" + "".join(f"{text},{label + first}\n" for text, label in AG_NEWS))
        lines.write_text("".join(json.dumps({"text": text, "label": label + first}) + "\n" for text, label in AG_NEWS))
        for one in (path, lines):
            again, said = accuracy(one)
            assert again == right
            sentence = f"{one}: the labels, numbers from 1 to 4, are read as counting from 1"
            assert (sentence in said) == bool(first)


@pytest.mark.parametrize(
    ("labels", "known"),
    [
        ((1, 2, 3), 3),  # which may be numbers from 0
        ((0, 1, 4), 2),
        ((1, 4, "Sports"), 2),
        ((1, 4, 5), 1),
    ],
)
def test_labels_that_need_not_count_from_1_count_from_0(tmp_path, labels, known):
    path = tmp_path / "in.csv"
    path.write_text("text,label\n" + "".join(f"news {i},{label}\n" for i, label in enumerate(labels)))
    done = call("predict", "tiny-llama", "--task", "agnews", "--input", path)
    assert "counting from" not in done.stderr
    assert (f" of the {known} rows whose label is known" in done.stderr) == (known < 3)


def test_a_pipe_is_not_seen_whole_and_says_so(tmp_path):
    text = "text,label\n" + "".join(f"{text},{label + 1}\n" for text, label in AG_NEWS)
    done = CliRunner().invoke(main, ["predict", "tiny-llama", "--task", "agnews", "--input", "-"], input=text)
    assert done.exit_code == 0, done.output
    assert "the labels, numbers from 1 to 4, seem to count from 1: give a file instead of - for accuracy" in done.stderr
    assert "accuracy 0" not in done.stderr


BAD = b'text,id\na,1\n,2\nb,3,4\n"  ",5\nc,6\n'


def test_all_bad_rows_are_told_before_anything_is_written(tmp_path):
    (tmp_path / "in.csv").write_bytes(BAD)
    done = call("predict", *MODEL, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    refused(done, "3 of 5 lines", "lines 3, 5: nothing is in 'text'", "line 4: 3 fields", "--skip-bad")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    done = call("predict", *MODEL, "--input", tmp_path / "in.csv", "--skip-bad")
    assert [line.split(",")[1] for line in done.stdout.splitlines()] == ["id", "1", "6"]
    assert "3 bad rows are left out" in done.stderr


def test_rows_that_hold_a_mask_are_bad_rows_of_a_masked_model(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"sentence": "a joy"}\n{"sentence": "so <mask> ."}\n')
    done = call("predict", "tiny-roberta", "--task", "sst2", "--input", source, "--output", tmp_path / "out.jsonl")
    refused(done, f"{source}, line 2: the text holds '<mask>'", "take it out")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "more", "parts"),
    [
        ("in.csv", b"txt,id\na,1\n", (), ("unknown column 'text': did you mean 'txt'?", "id, txt")),
        ("in.csv", b"text,predicted_label\na,1\n", (), ("a column 'predicted_label' already", "--prefix")),
        ("in.jsonl", b'{"text": "a", "p_1": 1}\n', (), ("line 1 has a column 'p_1' already",)),
        ("in.csv", b"text\na\n", ("--id-column", "id"), ("unknown column 'id'",)),
        ("in.csv", b"text\n\xe9\n", (), ("line 2: this is no utf-8 text", "--encoding cp1252")),
        ("in.xlsx", b"PK\x03\x04", (), ("of no known type",)),
        ("in.csv", b"PK\x03\x04", (), ("spreadsheet",)),
        ("in.jsonl", b'{"text": "a"\n', (), ("broken JSON",)),
        ("in.csv", b"text\na\n", ("--output", "out.xlsx"), ("out.xlsx is of no known type",)),
        ("in.csv", b"text\na\n", ("--output", "in.csv"), ("the input itself",)),
        ("in.csv", b"text\na\n", ("--output", "there.csv"), ("there.csv exists already", "--force")),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, name, content, more, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "there.csv").write_text("kept")
    monkeypatch.setattr("gradless.lm.load", lambda *_, **__: pytest.fail("loaded"))
    refused(call("predict", *MODEL, "--input", name, *more), *parts)
    assert (tmp_path / "there.csv").read_text() == "kept"


def test_an_output_that_exists_is_replaced_with_force_and_kept_when_interrupted(tmp_path, monkeypatch):
    (tmp_path / "out.csv").write_text("old")
    assert predicted(tmp_path, "in.csv", b"text\na\n", "out.csv", "--force").startswith(b"text,predicted_label")
    (tmp_path / "out.csv").write_text("old")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradless.runs.classifier.Classifier.answers", stop)
    done = call("predict", *MODEL, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv", "--force")
    refused(done, "interrupted: 0 rows were predicted", "out.csv is not written", code=1)
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_a_table_without_rows_gets_its_header(tmp_path):
    assert predicted(tmp_path, "in.csv", b"text,id\n", "out.csv").decode().splitlines() == ["text,id," + ",".join(NEW)]


def test_a_label_that_an_encoding_lacks_is_refused(tmp_path):
    (tmp_path / "in.csv").write_bytes("text\né\n".encode("cp1252"))
    model = (*MODEL[:3], "--labels", "坏=bad,好=good")
    done = call(
        "predict", *model, "--encoding", "cp1252", "--input", tmp_path / "in.csv", "--output", tmp_path / "o.csv"
    )
    assert done.exit_code == 2
    assert "is no letter of" in done.stderr
    assert not (tmp_path / "o.csv").exists()


def test_new_columns_by_kind_of_task():
    from gradless.runs.classifier import Spec

    assert [one.name for one in predict.new_columns(Spec(task="sst2"))] == [
        "predicted_label",
        "p_negative",
        "p_positive",
    ]
    assert predict.new_columns(Spec(task="copa"), "x_")[0].name == "x_predicted_index"
    assert predict.new_columns(Spec(task="squad")) == [row_files.Column("predicted_text", str)]
