"""``gl.tune``: the command in Python, with rows from memory, and a run that shows itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gradless as gl
import run_helpers as h
from gradless.integrations import tuned_run
from gradless.runs import jobs
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system import keywords

pytest.importorskip("transformers")
ROWS = [{"text": f"{i} was {('bad', 'good')[i % 2]}", "label": i % 2} for i in range(24)]
WORDS: dict[str, Any] = {"template": "{text} so", "label_column": "label", "labels": {0: "terrible", 1: "great"}}
SMALL: dict[str, Any] = {"model": "tiny-llama", "steps": 2, "batch_size": 4, "quiet": True}


def test_it_is_the_run_of_the_command_line(tmp_path):
    files = h.sentiment(tmp_path / "data")
    run = gl.tune(**SMALL, **WORDS, train=files["train"], test=Path(files["test"]), lr=1e-3, out=tmp_path / "run")
    same = h.config(tmp_path, own=files, steps=2, lr=1e-3, num_train=0, num_dev=0, num_test=0)
    assert jobs.tune(same, tmp_path / "other")["weights_sha256"] == run.result["weights_sha256"]
    assert run.status == "done"
    assert run.test == run.result["test"]
    text, page = repr(run), run._repr_html_()
    for part in (str(tmp_path / "run"), "accuracy", f"{run.test['accuracy']:.4f}", f"{run.zero_shot['loss']:.4f}"):
        assert part in text
        assert part in page
    assert "&lt;!DOCTYPE html&gt;" in run.report()._repr_html_()
    assert (run.save(tmp_path / "model", quiet=True) / "model.safetensors").exists()
    assert Path(run) == tmp_path / "run"
    assert gl.TunedRun(tmp_path / "run").result == run.result


def test_no_rows_of_what_is_given_are_refused(tmp_path):
    with pytest.raises(
        gl.BadInput, match=r"num_test = 0 asks for no row of test, and 0 means all: leave it out for all"
    ):
        gl.tune(**SMALL, **WORDS, train=ROWS, test=ROWS, num_test=0, out=tmp_path / "run")


def test_a_reward_needs_no_labels(tmp_path):
    rows = [{"word": f"say {i}"} for i in range(8)]
    reward = {"template": "{word}", "method": "es", "reward": ("length:5",), "max_new_tokens": 2}
    run = gl.tune(**SMALL, **reward, train=rows, test=rows, out=tmp_path / "run")
    assert run.status == "done"
    with pytest.raises(gl.BadInput, match="own rows need labels as well"):
        gl.tune(**SMALL, **reward, label_column="word", train=rows, out=tmp_path / "half")
    with pytest.raises(gl.BadInput, match="own rows need label_column as well, or a reward"):
        gl.tune(**SMALL, template="{word}", train=rows, out=tmp_path / "none")


def _kinds() -> dict[str, Any]:
    import datasets
    import pandas
    import pyarrow

    return {
        "list": lambda: ROWS,
        "pandas": lambda: pandas.DataFrame(ROWS),
        "pyarrow": lambda: pyarrow.Table.from_pylist(ROWS),
        "datasets": lambda: datasets.Dataset.from_list(ROWS),
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["list", "pandas", "pyarrow", "datasets"])
def test_rows_in_memory_are_kept_and_a_run_of_them_goes_on(tmp_path, kind):
    pytest.importorskip("datasets")
    rows = _kinds()[kind]()
    run = gl.tune(**SMALL, **WORDS, train=rows, out=tmp_path / "run")
    again = gl.tune(**SMALL, **WORDS, train=rows, out=tmp_path / "run", resume=True)
    assert again.result == run.result
    assert len(list((tmp_path / "run" / "data").iterdir())) == 1
    with pytest.raises(gl.BadInput, match=r"other (settings|data)"):
        gl.tune(**SMALL, **WORDS, train=ROWS[:20], out=tmp_path / "run", resume=True)
    assert gl.tune(**SMALL, **WORDS, train=rows, out=tmp_path / "run", resume=True).result == run.result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, "unknown setting 'step': did you mean 'steps'"),
        ({"trian": "a.csv"}, "unknown setting 'trian': did you mean 'train'"),
        ({"label_column": None}, "own rows need label_column as well"),
        ({"train": [{"text": "a", "label": 7}]}, "label '7' is none of 0, 1"),
        ({"train": [{"text": {1, 2}, "label": 0}]}, "train is a list that cannot be kept"),
        ({"train": [{"text": "x", "label": torch.zeros(2)}]}, "cannot be kept .a Tensor of several numbers"),
        ({"train": [{"text": "x", "label": torch.zeros(2).numpy()}]}, "cannot be kept .a ndarray of several numbers"),
        ({"train": {"train": ROWS, "test": ROWS}}, "train is a dict of train, test, and no rows: give one split"),
        ({"train": "none.csv"}, "cannot read"),
        ({"steps": "many"}, "steps"),
        ({"task": "sst2"}, "^name a task= or give your own files with train=, test= and template=, not both$"),
        ({"device": "cuda:7"}, 'use device="cpu"'),
        ({"train": str(Path(__file__).parents[2] / "README.md")}, "is of no known type"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, changes, message):
    settings = SMALL | WORDS | {"train": ROWS, "out": tmp_path / "run"} | changes
    with pytest.raises(gl.BadInput, match=message) as raised:
        gl.tune(**settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "python"),
    [
        (
            "add --resume, or choose another --out",
            "add resume=True, or choose another out",
        ),
        ('give --template "{text} ..." and --label-column too', 'give template="{text} ..." and label_column= too'),
        ("pass --data DIR, --num-dev 30 or less", "pass data=DIR, num_dev=30 or less"),
        ("--num-train is -1: pass 0 or more", "num_train is -1: pass 0 or more"),
        ("use --scheme full or lora", 'use scheme="full" or "lora"'),
        ("give --encoding cp1252 (Windows) or utf-16", 'give encoding="cp1252" (Windows) or utf-16'),
        ("--unaligned goes with a --task; leave out --chat", "aligned=False goes with a task=; leave out chat=True"),
        ("needs the option keep: write --set keep=0.5", 'needs the option keep: write options={"keep": 0.5}'),
        ("use gradless tune --resume --out x, or lower --lr", "use gradless tune --resume --out x, or lower lr"),
        ("--until 7 is out of reach, --lr-x", "--until 7 is out of reach, --lr-x"),
    ],
)
def test_sentences_of_the_command_line_are_told_in_python(text, python):
    assert keywords.spoken(text, keywords.names_of(gl.tune, TuneConfig, OwnFiles)) == python


def test_errors_of_a_run_and_of_a_classifier_name_arguments(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    run = gl.tune(**SMALL, **WORDS, train=ROWS, out=tmp_path / "run")
    with pytest.raises(gl.BadInput, match=r"add resume=True .*another out$"):
        gl.tune(**SMALL, **WORDS, train=ROWS, out=tmp_path / "run")
    with pytest.raises(gl.BadInput, match="new folder for folder, or"):
        run.save(tmp_path)
    with pytest.raises(gl.BadInput, match=r'give template="{text} ..." and labels="VALUE=WORD,.*, or task=$'):
        gl.load_classifier("tiny-llama")


def test_a_folder_without_a_result_is_a_run_that_stopped_early(tmp_path):
    assert gl.TunedRun(tmp_path).status == "interrupted"
    assert "resume=True" in repr(gl.TunedRun(tmp_path))
    assert tuned_run.TunedRun(tmp_path).test == {}


def test_an_interrupt_before_the_first_step_ends_in_good_order(tmp_path, monkeypatch, capsys):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "tune", stop)
    run = gl.tune(**SMALL | WORDS | {"train": ROWS, "out": tmp_path / "run", "quiet": False})
    assert run.status == "interrupted"
    assert capsys.readouterr().out == "interrupted: the same call with resume=True goes on\n"
    assert json.loads((next((tmp_path / "run" / "data").iterdir())).read_text().splitlines()[0]) == ROWS[0]


def test_a_frame_may_have_spaces_around_its_columns_and_its_file_is_not_named(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS).rename(columns={"text": " text ", "label": "label "})
    run = gl.tune(**SMALL, **WORDS, train=frame, out=tmp_path / "run")
    assert run.status == "done"
    predicted = gl.load_classifier(tmp_path / "run").predict(frame)
    assert predicted == gl.load_classifier(tmp_path / "run").predict([row["text"] for row in ROWS])
    other = frame.rename(columns={" text ": "review"})
    with pytest.raises(gl.BadInput, match=r"^train \(a DataFrame\): unknown column 'text'"):
        gl.tune(**SMALL, **WORDS, train=other, out=tmp_path / "other")
    with pytest.raises(gl.BadInput, match=r"no column 'text' \(its columns are 'review', 'label'\): rename or add it"):
        gl.load_classifier(tmp_path / "run").predict(other)
