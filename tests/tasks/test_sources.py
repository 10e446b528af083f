"""Data as people have it: Parquet, Arrow, folders, patterns, the hub and objects give the rows that a CSV gives."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gradless.errors import BadInput
from gradless.system import hub_requests
from gradless.tasks import custom, hub

pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
from pyarrow import feather, parquet  # noqa: E402

ROWS = [{"text": "a joy", "label": 1}, {"text": "a bore", "label": 0}]
TABLE = pa.Table.from_pylist(ROWS)
CLASSES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"]), "photo": datasets.Image()}
)
COMMIT = "0123456789abcdef" * 2 + "01234567"


def read(source: Any, **more: Any) -> tuple[list[tuple[str, int]], list[str]]:
    """Rows by label, and messages."""
    messages: list[str] = []
    settings = {"template": "{text} It was", "label_column": "label", "labels": "0=bad,1=good", "say": messages.append}
    _, splits = custom(**{"test": source, **settings, **more})
    rows = [(row["columns"]["text"], row["label"]) for row in splits.test]
    return sorted(rows, key=lambda row: -row[1]), messages


def dataset(*texts: str) -> Any:
    rows = {"text": list(texts), "label": [i % 2 for i in range(len(texts))], "photo": [None] * len(texts)}
    return datasets.Dataset.from_dict(rows, features=CLASSES)


def arrow_file(path: Path) -> None:
    with pa.ipc.new_file(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=1)


def arrow_stream(path: Path) -> None:
    with pa.ipc.new_stream(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", lambda path: parquet.write_table(TABLE, path)),
        ("a.feather", lambda path: feather.write_feather(TABLE, path)),
        ("a.arrow", arrow_file),
        ("stream.arrow", arrow_stream),
    ],
    ids=["parquet", "feather", "file", "stream"],
)
def test_a_file_gives_the_rows_of_a_csv(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert read(tmp_path / name) == ([("a joy", 1), ("a bore", 0)], [])


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        ({"label": [1.0, 0.0]}, "0=bad,1=good", "the label '1.0' is read as '1'"),
        ({"label": [True, False]}, "False=bad,True=good", "the label 'true' is read as 'True'"),
        ({"label": pa.array(["y", "n"]).dictionary_encode()}, "n=bad,y=good", ""),
        ({"label": pa.array(["y", "n"], pa.large_string())}, "n=bad,y=good", ""),
        ({"label": pa.array([1, 0], pa.uint8())}, "0=bad,1=good", ""),
        ({"label": [Decimal(1), Decimal(0)]}, "0=bad,1=good", ""),
        ({"label": [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)]}, "2020-01-01=bad,2020-01-02=good", ""),
        ({"label": [1, 0], "photo": [{"bytes": b"x"}, None], "more": [[1], None]}, "0=bad,1=good", ""),
    ],
)
def test_types_of_columns(tmp_path: Path, columns: dict[str, Any], labels: str, message: str) -> None:
    parquet.write_table(pa.table({"text": ["a joy", "a bore"], **columns}), tmp_path / "a.parquet")
    rows, lines = read(tmp_path / "a.parquet", labels=labels)
    assert rows == [("a joy", 1), ("a bore", 0)]
    assert sum(message in line for line in lines) == bool(message)  # every line holds the empty message


def test_narrow_numbers_are_read_as_written() -> None:
    table = pa.table({"text": pa.array([0.1], pa.float32()), "label": [1]})
    assert read(table) == ([("0.1", 1)], [])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"text": ["a", None, "c", "d"], "label": [0, 1, None, 7]},
            "row 2: column 'text' is null.*row 3: the label.*4",
        ),
        ({"text": ["a"], "label": [float("nan")]}, "row 1: the label is NaN"),
        ({"text": [["a"]], "label": [0]}, "column 'text' holds lists: give"),
        ({"text": [{"en": "a"}], "label": [0]}, "column 'text' holds structs: give"),
        ({"text": [b"a"], "label": [0]}, "column 'text' holds bytes: give"),
        ({"txt": ["a"], "label": [0]}, "unknown column 'text': did you mean 'txt'"),
        ({"text": ["a", "b"], "label": [-1, -1]}, r"no labels \(-1 in every row\): .* validation"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int8())}, "holds no rows"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=words) as caught:
        read(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.parquet", "cut.arrow", "empty.arrow", "empty.parquet", "text.parquet"])
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    parquet.write_table(TABLE, tmp_path / "a.parquet")
    arrow_file(tmp_path / "a.arrow")
    whole = (tmp_path / f"a{Path(name).suffix}").read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"text,label\na,1\n"}
    (tmp_path / name).write_bytes(contents[Path(name).stem])
    with pytest.raises(BadInput, match="is damaged, or of another kind than its name says"):
        read(tmp_path / name)


def test_classes_are_named_by_number_or_name(tmp_path: Path) -> None:
    dataset("a bore", "a joy").to_parquet(str(tmp_path / "a.parquet"))
    rows = [("a joy", 1), ("a bore", 0)]
    for labels, what in (("0=bad,1=good", "numbers"), ("neg=bad,pos=good", "names")):
        loaded, messages = read(tmp_path / "a.parquet", labels=labels)
        assert loaded == rows
        assert messages == [f"a.parquet: labels are {what} of classes: 0 is 'neg', 1 is 'pos'"]
    with pytest.raises(BadInput, match="labels neg, good are neither names nor numbers of its classes: 0 is 'neg'"):
        read(tmp_path / "a.parquet", labels="neg=bad,good=good")
    with pytest.raises(BadInput, match="column 'photo' holds the type Image"):
        read(tmp_path / "a.parquet", template="{photo}")


def test_saved_data_sets_take_the_split_of_the_option(tmp_path: Path) -> None:
    every = datasets.DatasetDict(train=dataset("t"), validation=dataset("v"), test=dataset("e"))
    every.save_to_disk(tmp_path / "all")
    dataset("o").save_to_disk(tmp_path / "one")
    assert read(tmp_path / "all")[0] == [("e", 0)]
    assert read(f"{tmp_path}/all:validation")[0] == read(f"{tmp_path}/all:val")[0] == [("v", 0)]
    assert read(tmp_path / "one")[0] == [("o", 0)]
    folder = str(tmp_path / "all")
    with pytest.raises(BadInput, match="no split 'foo': take one of train, validation, test"):
        read(f"{folder}:foo")
    with pytest.raises(BadInput, match="one data set without splits: leave out ':train'"):
        read(f"{tmp_path}/one:train")
    _, splits = custom(train=folder, dev=folder, test=folder, template="{text}", label_column="label", labels="0=a,1=b")
    assert [rows[0]["columns"]["text"] for rows in splits[:3]] == ["t", "v", "e"]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(BadInput, match="save the data set again"):
        read(tmp_path / "one")


def test_folders_and_patterns_of_files(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        dataset(f"s{number}").to_parquet(str(shards / f"train-0000{number}-of-00002.parquet"))
    dataset("e").to_parquet(str(shards / "test-00000-of-00001.parquet"))
    (shards / "README.md").write_text("---")
    (shards / "dataset_infos.json").write_text("{}")
    assert read(shards)[0] == [("e", 0)]
    assert sorted(read(f"{shards}:train")[0]) == sorted(read(shards / "train-*.parquet")[0]) == [("s0", 0), ("s1", 0)]
    with pytest.raises(BadInput, match="no split 'validation': take one of test, train"):
        read(f"{shards}:validation")
    with pytest.raises(BadInput, match=r"has no validation split: write .*:SPLIT with one of test, train"):
        read(None, dev=shards)
    with pytest.raises(BadInput, match="no file matches"):
        read(shards / "dev-*.parquet")
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in "ab":
        (tables / f"{name}.csv").write_text(f"text,label\n{name},0\n")
    assert sorted(read(tables)[0]) == [("a", 0), ("b", 0)]
    (tables / "b.csv").write_text("text,label\nb,0\nc,7\n")
    with pytest.raises(BadInput, match=r"line 3 of b.csv: label '7' is none of 0, 1"):
        read(tables / "*.csv")
    (tables / "c.jsonl").write_text("{}")
    with pytest.raises(BadInput, match="files of several kinds"):
        read(tables)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no/such", "No such file or directory: for a data set on the hub write hub:no/such"),
        (Path("https://huggingface.co/datasets/a/b"), "write hub:a/b"),
        ("hub:", "is no name of a data set on the hub"),
        (3, r"test \(a int\): pass a path"),
        ({"text": ["a"]}, r"test \(a dict\): pass a path"),
        (datasets.DatasetDict(train=TABLE), r"test \(a DatasetDict\): pass one of its splits, 'train'"),
        ([("a", 1)], "row 1: it is a tuple: give a dictionary"),
        ([], "holds no rows"),
    ],
    ids=["hub id", "address", "no name", "number", "table", "splits", "tuples", "nothing"],
)
def test_what_is_no_source_is_one_sentence(source: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read(source)


def test_objects_are_sources(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [("a joy", 1), ("a bore", 0)]
    frame = pandas.DataFrame(ROWS)
    named = frame.assign(label=pandas.Categorical(["pos", "neg"]))
    listed = datasets.Dataset.from_list(ROWS)
    for source in (ROWS, iter(ROWS), TABLE, frame, listed, listed.shuffle(seed=1), listed.with_format("numpy")):
        assert read(source)[0] == rows
    assert read(listed.to_iterable_dataset())[0] == rows
    assert read(named, labels="neg=bad,pos=good")[0] == rows
    with pytest.raises(BadInput, match=r"test \(a DataFrame\), row 2: column 'text' is null"):
        read(pandas.DataFrame({"text": ["a", float("nan")], "label": [1, 0]}))


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("pyarrow", "a.parquet", r"a.parquet needs the package 'pyarrow': pip install 'gradless\[data\]'"),
        ("datasets", "saved", r"saved needs the package 'datasets': pip install 'gradless\[data\]', or give a CSV"),
        ("datasets", "hub:a/b", r"hub:a/b needs the package 'datasets': pip install 'gradless\[data\]', or give local"),
    ],
)
def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, source: str, words: str
) -> None:
    dataset("o").save_to_disk(tmp_path / "saved")
    parquet.write_table(TABLE, tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=words):
        read(source if ":" in source else tmp_path / source)


# ---------------------------------------------------------------------------------------------------------------
# the hub, without a network


def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception | None = None) -> list[dict[str, Any]]:
    """A hub whose data sets lie in a cache like that of `datasets`: the last folder is the commit."""
    calls: list[dict[str, Any]] = []
    loaded = datasets.DatasetDict()
    for split, text in (("train", "t"), ("test", "e")):
        dataset(text).save_to_disk(tmp_path / split / COMMIT)
        loaded[split] = datasets.load_from_disk(tmp_path / split / COMMIT)

    def load_dataset(repo: str, config: str | None, **more: Any) -> Any:
        calls.append({"repo": repo, "config": config, **more})
        if error is not None:
            raise error
        return loaded["train"] if "split" in more else loaded

    monkeypatch.setattr(hub_requests, "has_file", lambda *_, **__: False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_names_are_fetched_and_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_hub(monkeypatch, tmp_path)
    assert read("hub:owner/name")[0] == [("e", 0)]
    assert read("hub:owner/name/config@v1:train")[0] == [("t", 0)]
    assert read("hub:owner/name:train[:10%]")[0] == [("t", 0)]
    assert calls == [
        {"repo": "owner/name", "config": None},
        {"repo": "owner/name", "config": "config", "revision": "v1"},
        {"repo": "owner/name", "config": None, "split": "train[:10%]"},
    ]
    with pytest.raises(BadInput, match="no split 'dev': take one of train, test"):
        read("hub:owner/name:dev")
    pinned = f"hub:owner/name@{COMMIT}:train"
    assert hub.pinned("hub:owner/name:train") == hub.pinned("hub:owner/name@v1:train") == pinned
    del calls[:]
    assert hub.pinned(pinned) == hub.pinned("hub:owner/name:train", pinned) == pinned
    assert hub.pinned("a.csv", pinned) == "a.csv"
    assert not calls
    with pytest.raises(BadInput, match=f"cache holds revision {COMMIT}: go online"):
        read(f"hub:owner/name@{'f' * 40}")


def test_a_folder_of_the_same_name_is_not_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_hub(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    read("hub:owner/name")
    assert calls[0]["repo"] == "hf://datasets/owner/name"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ConnectionError("Couldn't reach it"),
            "the hub cannot be reached: connect to the network, or give local files",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."),
            "gated dataset on the Hub: check the name; a private or gated one needs 'hf auth login'",
        ),
        (ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"), "one of a, b"),
        (ValueError("BuilderConfig 'x' not found. Available: ['a']"), "no configuration 'x'.*with one of a"),
        (ValueError("Unknown split \"x\". Should be one of ['train', 'test']."), "write one of train, test"),
        (RuntimeError("Dataset scripts are no longer supported"), "made by a script, which is not run"),
        (OSError("disk\nfull"), r"cannot read hub:owner/name/x from the hub \(OSError: disk full\)"),
    ],
    ids=["network", "gated", "configurations", "configuration", "split", "script", "other"],
)
def test_hub_troubles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: str) -> None:
    fake_hub(monkeypatch, tmp_path, error)
    with pytest.raises(BadInput, match=words) as caught:
        read("hub:owner/name/x")
    assert "\n" not in str(caught.value)


def test_hub_offline_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_hub(monkeypatch, tmp_path, ConnectionError("Couldn't reach it"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="not in the cache and HF_HUB_OFFLINE is set: unset it"):
        read("hub:owner/name")


@pytest.mark.parametrize("kind", ["list", "table", "parquet", "jsonl"])
def test_spaces_around_names_of_columns_are_left_out(kind: str, tmp_path: Path) -> None:
    spaced = [{" text": row["text"], "label ": row["label"]} for row in ROWS]
    table = pa.Table.from_pylist(spaced)
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in spaced))
    sources = {"list": spaced, "table": table, "parquet": tmp_path / "a.parquet", "jsonl": tmp_path / "a.jsonl"}
    rows, notes = read(sources[kind])
    assert rows == [("a joy", 1), ("a bore", 0)]
    assert any("spaces around names of columns are left out (' text', 'label ')" in note for note in notes)
