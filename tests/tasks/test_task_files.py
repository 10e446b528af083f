"""Every reader against a tiny file of its format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gradless import tasks
from gradless.errors import BadInput
from gradless.tasks import Row

COPA = {"premise": "p", "choice1": "a", "choice2": "b", "question": "effect", "label": 1}
WINOGRANDE = {"sentence": "Ann beat Bo so _ smiled.", "option1": "x", "option2": "y", "answer": "2"}


def put(folder: Path, **files: Any) -> Path:
    """Write files; a double underscore in a keyword stands for a dot. Lists become JSONL, dicts JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, content in files.items():
        name = key.replace("__", ".")
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        elif isinstance(content, dict):
            content = json.dumps(content)
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder


def read(name: str, folder: Path) -> dict[str, list[Row]]:
    reader = tasks.get(name).read
    assert reader is not None
    return reader(folder)


def test_sst2_glue(tmp_path: Path) -> None:
    train = 'label\tsentence\r\n0\thide "new" secretions \r\n1\t"great\r\n'
    put(tmp_path, train__tsv__gz=train, dev__tsv="label\tcontent\n1\tgood .\n")
    assert read("sst2", tmp_path) == {
        "train": [{"sentence": 'hide "new" secretions', "label": 0}, {"sentence": '"great', "label": 1}],
        "test": [{"sentence": "good .", "label": 1}],
    }


def test_sst2_standard_glue_column_order_and_subfolder(tmp_path: Path) -> None:
    put(tmp_path / "SST-2", train__tsv="sentence\tlabel\na \t1\n", dev__tsv="sentence\tlabel\nb \t0\n")
    assert read("sst2", tmp_path)["train"] == [{"sentence": "a", "label": 1}]


def test_sst2_stsa_fallback_and_line_ends_inside_text(tmp_path: Path) -> None:
    text = "1 one \u2028 two\x85\n"
    put(
        tmp_path,
        **{"stsa__binary__train__gz": text, "stsa__binary__dev": "0 no\n", "stsa__binary__test": "1 y\n"},
    )
    assert read("sst2", tmp_path) == {
        "train": [{"sentence": "one \u2028 two\x85", "label": 1}],
        "dev": [{"sentence": "no", "label": 0}],
        "test": [{"sentence": "y", "label": 1}],
    }


def test_sst5(tmp_path: Path) -> None:
    put(tmp_path, stsa__fine__train="4 wow\n", stsa__fine__test="0 ugh\n")
    assert read("sst5", tmp_path) == {
        "train": [{"sentence": "wow", "label": 4}],
        "test": [{"sentence": "ugh", "label": 0}],
    }


def test_mr_is_latin1_and_split_by_a_fixed_permutation(tmp_path: Path) -> None:
    positive = b"".join(f"caf\xe9 {i} . \n".encode("latin-1") for i in range(6))
    put(tmp_path, **{"rt-polarity__pos__gz": positive, "rt-polarity__neg": "bad\n\n\nworse\nworst\n"})
    rows = read("mr", tmp_path)
    assert rows == read("mr", tmp_path)
    assert (len(rows["train"]), len(rows["test"])) == (5, 4)
    everything = [(row["sentence"], row["label"]) for split in rows.values() for row in split]
    assert sorted(everything) == sorted(
        [(f"café {i} .", 1) for i in range(6)] + [("bad", 0), ("worse", 0), ("worst", 0)]
    )


def test_cr_mpqa_subj(tmp_path: Path) -> None:
    put(tmp_path / "a", custrev__pos="good\nfine\n", custrev__neg="bad\n\nworse\n")
    assert sum(map(len, read("cr", tmp_path / "a").values())) == 4
    put(tmp_path / "b", mpqa__all="1 benefit\n0 blame\n")
    rows = read("mpqa", tmp_path / "b")
    assert sorted((r["sentence"], r["label"]) for s in rows.values() for r in s) == [
        ("benefit", 1),
        ("blame", 0),
    ]
    put(
        tmp_path / "c",
        **{"quote__tok__gt9__5000": "i liked it\n", "plot__tok__gt9__5000": "he leaves town\n"},
    )
    rows = read("subj", tmp_path / "c")
    labels = {row["sentence"]: row["label"] for split in rows.values() for row in split}
    assert labels == {"i liked it": 0, "he leaves town": 1}


def test_trec_original_lm_bff_and_hub(tmp_path: Path) -> None:
    put(
        tmp_path / "a",
        train_5500__label="ABBR:exp What is NATO ?\n",
        TREC_10__label="DESC:def What is it ?\n",
    )
    assert read("trec", tmp_path / "a") == {
        "train": [{"sentence": "What is NATO ?", "label": 2}],
        "test": [{"sentence": "What is it ?", "label": 0}],
    }
    put(tmp_path / "b", train__csv='3,"Who, ""exactly"" ?"\n', test__csv="5,How many ?\n")
    assert read("trec", tmp_path / "b")["train"] == [{"sentence": 'Who, "exactly" ?', "label": 3}]
    reader = tasks.get("trec").read
    assert reader is not None
    ours = [next(iter(reader.tidy({"text": "q", "coarse_label": i})))["label"] for i in range(6)]
    names = [tasks.TASKS["trec"].labels[i] for i in ours]  # type: ignore[index]
    assert names == ["Expression", "Entity", "Description", "Human", "Location", "Number"]


def test_cola_without_header(tmp_path: Path) -> None:
    put(tmp_path, train__tsv="gj04\t1\t\tHe ran.\n", dev__tsv="gj04\t0\t*\tRan he.\n")
    assert read("cola", tmp_path) == {
        "train": [{"sentence": "He ran.", "label": 1}],
        "test": [{"sentence": "Ran he.", "label": 0}],
    }


def test_imdb(tmp_path: Path) -> None:
    put(tmp_path, train__tsv='Sentiment\tText\nPositive\t"A ""fine"" film.<br /><br />See it."\n')
    assert read("imdb", tmp_path) == {"train": [{"sentence": 'A "fine" film. See it.', "label": 1}]}


def test_agnews(tmp_path: Path) -> None:
    put(
        tmp_path,
        dev__tsv__gz='"Bo ""B"" won"\tSports\nChips\tSci/Tech\n',
        test__jsonl=[{"sentence": "War", "label": "1"}, {"sentence": "Chips", "label": "4"}],
    )
    assert read("agnews", tmp_path) == {
        "train": [{"sentence": 'Bo "B" won', "label": 1}, {"sentence": "Chips", "label": 3}],
        "test": [{"sentence": "War", "label": 0}, {"sentence": "Chips", "label": 3}],
    }
    put(tmp_path, test__jsonl=[{"text": "War", "label": 0}, {"text": "Shares", "label": 2}])  # saved from the hub
    assert [row["label"] for row in read("agnews", tmp_path)["test"]] == [0, 2]
    reader = tasks.get("agnews").read
    assert reader is not None
    for label in (2, "2", "Business"):  # as on the hub, and in tables of its rows
        assert next(iter(reader.tidy({"text": "Shares", "label": label})))["label"] == 2


PAIR = {"premise": "p", "hypothesis": "h"}


@pytest.mark.parametrize("nested", [True, False])
def test_rte_in_its_folder_and_in_the_parent(tmp_path: Path, nested: bool) -> None:
    train = [PAIR | {"label": "not_entailment", "idx": 0}]
    put(tmp_path / "RTE", train__jsonl__gz=train, val__jsonl=[PAIR | {"label": "entailment"}])
    put(tmp_path / "CB", train__jsonl=[PAIR | {"label": "neutral"}])
    folder = tmp_path if nested else tmp_path / "RTE"
    assert read("rte", folder) == {"train": [PAIR | {"label": 1}], "test": [PAIR | {"label": 0}]}
    if nested:
        assert read("cb", folder) == {"train": [PAIR | {"label": 2}]}


def test_glue_pairs(tmp_path: Path) -> None:
    put(
        tmp_path / "RTE",
        train__tsv="index\tsentence1\tsentence2\tlabel\n0\tp\th\tnot_entailment\n",
        dev__tsv="index\tsentence1\tsentence2\tlabel\n0\tp\th\tentailment\n",
    )
    assert read("rte", tmp_path)["train"] == [PAIR | {"label": 1}]
    put(
        tmp_path / "MNLI",
        dev_matched__tsv="sentence1\tsentence2\tlabel1\tgold_label\np\th\tneutral\tcontradiction\n",
    )
    assert read("mnli", tmp_path) == {"test": [PAIR | {"label": 2}]}
    put(tmp_path / "QNLI", train__tsv="index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n")
    assert read("qnli", tmp_path) == {"train": [{"question": "q", "sentence": "s", "label": 0}]}
    qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\nbroken\tline\n"
    put(tmp_path / "QQP", dev__tsv=qqp)
    assert read("qqp", tmp_path) == {"test": [{"question1": "a", "question2": "b", "label": 1}]}
    put(tmp_path / "MRPC", dev__tsv='\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t"a\tb\n')
    assert read("mrpc", tmp_path) == {"test": [{"sentence1": '"a', "sentence2": "b", "label": 1}]}


def test_nli_folder(tmp_path: Path) -> None:
    put(
        tmp_path,
        mnli_dev__jsonl__gz=[PAIR | {"label": "neutral"}],
        snli_dev__jsonl=[PAIR | {"label": "contradiction"}],
        snli_cad_original_train__tsv='sentence1\tsentence2\tgold_label\n"p ""q"""\th\tentailment\n',
    )
    assert read("mnli", tmp_path) == {"test": [PAIR | {"label": 1}]}
    assert read("snli", tmp_path) == {
        "train": [{"premise": 'p "q"', "hypothesis": "h", "label": 0}],
        "test": [PAIR | {"label": 2}],
    }


def test_snli_original_leaves_out_pairs_without_agreement(tmp_path: Path) -> None:
    rows = [
        {"sentence1": "p", "sentence2": "h", "gold_label": "-"},
        {"sentence1": "p", "sentence2": "h", "gold_label": "neutral"},
    ]
    put(tmp_path, **{"snli_1__0_dev__jsonl": rows})
    assert read("snli", tmp_path) == {"test": [PAIR | {"label": 1}]}


def test_superglue(tmp_path: Path) -> None:
    put(tmp_path / "BoolQ", train__jsonl=[{"passage": "p", "question": "q", "label": True, "idx": 1}])
    assert read("boolq", tmp_path) == {"train": [{"passage": "p", "question": "q", "label": 0}]}
    target = {"span1_text": "Ann", "span1_index": 0, "span2_text": "She", "span2_index": 4}
    put(tmp_path / "WSC", val__jsonl=[{"text": "t", "target": target, "label": False}])
    assert read("wsc", tmp_path) == {
        "test": [{"text": "t", "span1_text": "Ann", "span2_text": "She", "label": 0}],
    }
    wic = {"word": "w", "sentence1": "a", "sentence2": "b"}
    put(tmp_path / "WiC", val__jsonl=[wic | {"label": True, "start1": 3}])
    assert read("wic", tmp_path) == {"test": [wic | {"label": 1}]}
    answers = [{"text": "x", "label": 1}, {"text": "y", "label": 0}]
    put(
        tmp_path / "MultiRC",
        val__jsonl=[{"passage": {"text": "t", "questions": [{"question": "q", "answers": answers}]}}],
    )
    assert read("multirc", tmp_path)["test"] == [
        {"paragraph": "t", "question": "q", "answer": "x", "label": 1},
        {"paragraph": "t", "question": "q", "answer": "y", "label": 0},
    ]
    put(tmp_path / "COPA", val__jsonl=[COPA | {"idx": 4}])
    assert read("copa", tmp_path) == read("copa-bare", tmp_path) == {"test": [COPA]}


def test_boolq_few_shot_files_stand_in_for_train_and_dev(tmp_path: Path) -> None:
    def rows(question: str) -> list[Row]:
        return [{"passage": "p", "question": question, "label": False}]

    put(tmp_path, val__jsonl=rows("v"), fewglue_train__jsonl=rows("t"), fewglue_dev32__jsonl=rows("d"))
    questions = {split: rows[0]["question"] for split, rows in read("boolq", tmp_path).items()}
    assert questions == {"test": "v", "train": "t", "dev": "d"}
    put(tmp_path, train__jsonl=rows("full"))
    assert read("boolq", tmp_path)["train"][0]["question"] == "full"


def test_record(tmp_path: Path) -> None:
    text = "Bo saw Ann. Bo left."
    spans = [{"start": 12, "end": 13}, {"start": 7, "end": 9}, {"start": 0, "end": 1}]
    qas = [{"query": "@placeholder ran", "answers": [{"start": 12, "end": 13, "text": "Bo"}] * 2}]
    put(tmp_path, dev32__jsonl=[{"source": "CNN", "passage": {"text": text, "entities": spans}, "qas": qas}])
    row = {"passage": text, "query": "@placeholder ran", "entities": ["Bo", "Ann"], "answers": ["Bo"]}
    assert read("record", tmp_path) == {"test": [row]}
    reader = tasks.get("record").read
    assert reader is not None
    assert list(reader.tidy(row | {"idx": {"passage": 0}})) == [row]


def test_winogrande(tmp_path: Path) -> None:
    instruction = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: Ann beat Bo "
        "so _ smiled.\n\nOption1: Ann Option2: Bo Lee Answer format: option1/option2"
    )
    put(
        tmp_path / "a",
        llm_adapters_test__json=json.dumps([{"instruction": instruction, "answer": "option2"}]),
    )
    row = {"sentence": "Ann beat Bo so _ smiled.", "option1": "Ann", "option2": "Bo Lee", "label": 1}
    assert read("winogrande", tmp_path / "a") == {"test": [row]}
    original = {"sentence": row["sentence"], "option1": "Ann", "option2": "Bo Lee", "answer": "2", "qID": "x"}
    put(tmp_path / "b", dev__jsonl=[original])
    assert read("winogrande", tmp_path / "b") == {"test": [row]}


def test_squad(tmp_path: Path) -> None:
    qa = {"id": "1", "question": "q", "answers": [{"text": "x", "answer_start": 0}] * 2 + [{"text": "y"}]}
    article = {"title": "T", "paragraphs": [{"context": "c", "qas": [qa]}]}
    put(
        tmp_path,
        xquad__en__json__gz={"data": [article]},
        routerlens_dev__json=json.dumps([{"context": "c", "question": "q", "answer": "x"}]),
    )
    assert read("squad", tmp_path) == {
        "train": [{"title": "", "context": "c", "question": "q", "answers": ["x"]}],
        "test": [{"title": "T", "context": "c", "question": "q", "answers": ["x", "y"]}],
    }
    reader = tasks.get("squad").read
    assert reader is not None
    hub = {
        "title": "T",
        "context": "c",
        "question": "q",
        "answers": {"text": ["x", "x"], "answer_start": [0, 0]},
    }
    assert next(iter(reader.tidy(hub)))["answers"] == ["x"]


def test_drop(tmp_path: Path) -> None:
    date = {"day": "", "month": "", "year": ""}
    cases = [
        ({"number": "50", "date": date, "spans": []}, []),
        ({"number": "", "date": date | {"day": "3", "year": "1999"}, "spans": []}, []),
        (
            {"number": "", "date": date, "spans": ["a", "b"]},
            [{"number": "", "date": date, "spans": ["b", "c"]}],
        ),
    ]
    pairs = [{"question": "q", "answer": answer, "validated_answers": more} for answer, more in cases]
    put(tmp_path, drop_contrast_sets_test__json={"id_1": {"passage": "p", "qa_pairs": pairs}})
    answers = [row["answers"] for row in read("drop", tmp_path)["test"]]
    assert answers == [["50"], ["3 1999"], ["a", "b", "c"]]
    reader = tasks.get("drop").read
    assert reader is not None
    hub = {"passage": "p", "question": "q", "answers_spans": {"spans": ["x", "y"], "types": ["span", "span"]}}
    assert next(iter(reader.tidy(hub)))["answers"] == ["x", "y"]


def test_missing_folder_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere is not a folder: name the folder "):
        read("sst2", tmp_path / "nowhere")
    with pytest.raises(BadInput, match=rf"no data file found in {tmp_path}: expected train.tsv, dev.tsv; or stsa"):
        read("sst2", tmp_path)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("rte", {"val__jsonl": '{"premise": "p"\n'}, r"val.jsonl, line 1: broken JSON"),
        ("rte", {"val__jsonl": "\n[1]\n"}, r"val.jsonl, line 2: not a JSON object"),
        ("rte", {"val__jsonl": ""}, r"val.jsonl is empty"),
        (
            "rte",
            {"val__jsonl": [{"premise": "p", "label": 0}]},
            r"val.jsonl, record 1: no field 'hypothesis'",
        ),
        ("rte", {"val__jsonl": [PAIR | {"label": "maybe"}]}, r"record 1: label 'maybe' is none of 0..1"),
        ("rte", {"val__jsonl": [PAIR | {"label": 7}]}, r"record 1: label 7 is none of"),
        ("rte", {"val__jsonl__gz": b""}, r"val.jsonl.gz is empty"),
        (
            "sst2",
            {"dev__tsv": "label\tsentence\n1\ta\tb\n"},
            r"dev.tsv, line 2: 3 fields where 2 are expected",
        ),
        ("sst2", {"dev__tsv": "label\tsentence\n-1\thidden\n"}, r"dev.tsv, record 2: label '-1'"),
        ("sst2", {"dev__tsv": b"label\tsentence\n1\t\xff\n"}, r"dev.tsv, line 2: this is no UTF-8 text"),
        ("imdb", {"test__tsv": 'Sentiment\tText\nPositive\t"open\n'}, r"test.tsv, line 2: unexpected end"),
        ("squad", {"dev-v1__1__json": "{"}, r"dev-v1.1.json: broken JSON"),
        ("squad", {"dev-v1__1__json": '{"a": 1}'}, r"has no 'data'"),
        ("squad", {"dev-v1__1__json": '{"data": [{"title": "T"}]}'}, r"no field 'paragraphs'"),
        ("winogrande", {"llm_adapters_test__json": '{"a": 1}'}, r"not a JSON list"),
        ("winogrande", {"dev__jsonl": [{"sentence": "no gap", "answer": "1"}]}, r"no gap"),
        ("copa", {"val__jsonl": [{"question": "why"}]}, r"neither 'cause' nor 'effect'"),
        ("copa", {"val__jsonl": [COPA | {"choice2": "a "}]}, r"record 1: both choices are 'a' \(correct or remove"),
        ("copa", {"val__jsonl": [COPA | {"choice1": "B c", "choice2": "b c"}]}, r"both choices are 'b c'"),
        ("winogrande", {"dev__jsonl": [WINOGRANDE | {"option2": "x"}]}, r"record 1: both choices are 'x'"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, files: dict[str, Any], message: str) -> None:
    put(tmp_path, **files)
    with pytest.raises(BadInput, match=message):
        read(name, tmp_path)


def test_all_damage_is_told_together(tmp_path: Path) -> None:
    """Every kind of bad row, in all files at once."""
    bad = "label\tsentence\n1\ta\tb\nx\tc\n1\tfine\n-1\td\n0\ta\tb\n1\t\xff\n".encode("latin-1")
    put(tmp_path, train__tsv=bad, dev__tsv="label\tsentence\n7\ta\n")
    with pytest.raises(BadInput) as caught:
        read("sst2", tmp_path)
    message = str(caught.value)
    assert "train.tsv, 5 of 6 lines cannot be used: lines 2, 6: 3 fields where 2" in message
    for bad_row in ("record 3: label 'x'", "record 5: label '-1'", "line 7: this is no"):
        assert bad_row in message
    assert "dev.tsv, record 2: label 7 is" in message


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(PAIR | {"label": 0}).encode() * 50)
    for damaged in (whole[:-9], b"plain text\n"):
        (tmp_path / "val.jsonl.gz").write_bytes(damaged)
        with pytest.raises(BadInput, match=r"val.jsonl.gz is a damaged gzip file"):
            read("rte", tmp_path)
