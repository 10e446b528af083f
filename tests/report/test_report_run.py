"""The page of one run: every number against the run's own files, whatever state they are in."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import run_helpers as h
from gradless import ledger
from gradless.cli import commands
from gradless.lm.evaluate import evaluate
from gradless.report.run import tables as run_tables
from gradless.report.run.figures import drawings
from gradless.report.run.record import Step, load
from gradless.runs import config_io, predictions
from gradless.runs.config import TuneConfig
from gradless.runs.predictions import Guess, Prediction, shorten
from report_run_helpers import ARABIC, NASTY, SECTIONS, report_page, result_of
from scoring_helpers import naive_log_probs, several, shared, task

# ------------------------------------------------------------------------------------------------------------
# what is kept of predictions


def test_the_probability_is_that_of_the_best_option_among_the_options():
    lm = shared("llama")
    examples = several(lm, 7)
    evaluation = evaluate(lm, task("classification"), examples, batch_size=3)
    for example, predicted, share in zip(examples, evaluation.predictions, evaluation.probabilities, strict=True):
        means = torch.tensor([float(naive_log_probs(lm, example.prompt, o).mean()) for o in example.options])
        assert share == pytest.approx(float(means.softmax(0)[predicted]), abs=1e-4)


def test_predictions_are_kept_and_agree_with_the_result(finished):
    rows, result = predictions.read(finished / predictions.FILE), result_of(finished)
    assert [one.row for one in rows] == list(range(24))
    assert sum(one.after.right for one in rows) / 24 == pytest.approx(result["test"]["accuracy"])
    assert sum(one.before.right for one in rows) / 24 == pytest.approx(result["zero_shot"]["accuracy"])
    assert all(one.text.endswith(" so") for one in rows)
    assert all(one.options == ("terrible", "great") for one in rows)
    assert all(one.after.right == (one.after.text in one.gold) for one in rows)
    assert all(0.5 <= one.after.probability <= 1 for one in rows)
    before, *_, after = (line for line in h.notes(finished, "eval") if line["split"] == "test")
    for line, guesses in ((before, [o.before for o in rows]), (after, [o.after for o in rows])):
        assert [guess.probability for guess in guesses] == line["probabilities"]
        assert [("terrible", "great").index(guess.text) for guess in guesses] == line["predictions"]


def test_predictions_survive_their_file(tmp_path):
    rows = [
        Prediction(0, NASTY, ("a", "b"), ("a",), Guess("b", False, 0.75), Guess("a", True, None)),
        Prediction(1, ARABIC + "\u2028\x85 x", (), ("x", "y"), None, Guess("\n", False, None)),
    ]
    predictions.write(tmp_path / "p.jsonl", rows)
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('{"row": 2, "text": "torn')
    assert predictions.read(tmp_path / "p.jsonl") == rows
    assert predictions.read(tmp_path / "none.jsonl") == []


@given(st.text(), st.integers(8, 40))
def test_shortened_texts_keep_both_ends(text, most):
    short = shorten(text, most)
    assert len(short) <= most
    assert short == text if len(text) <= most else short[:1].strip() == text[:1].strip()
    short.encode()


def test_half_a_surrogate_pair_can_be_shown():
    assert shorten("a\ud800b", 10) == "a?b"


# ------------------------------------------------------------------------------------------------------------
# the command


def test_the_command_gives_the_same_configuration(finished, monkeypatch):
    settings = load(finished).settings
    changes = [
        {},
        {"task": "sst2", "own": {}, "data": "/a b/'c'", "freeze": ("embed", "a|b"), "zero_shot": False, "num_dev": 0},
        {"method": "zo-sparse", "options": {"keep": 0.25, "mask": "magnitude"}, "dtype": "bfloat16", "num_train": 0},
        {"scheme": "lora", "targets": ("q_proj", "v_proj"), "lr": "auto", "alpha": 1.5, "micro_batch_size": 2},
        {"task": "rte", "own": {}, "aligned": False, "k_shot": 4, "max_length": 99, "queries": None},
    ]
    seen: list[TuneConfig] = []
    monkeypatch.setattr("gradless.cli.run_ends.tell", lambda *_: None)
    monkeypatch.setattr(commands, "_exit", lambda *_: None)
    monkeypatch.setattr("gradless.runs.jobs.tune", lambda config, *_, **__: seen.append(config) or {"status": "done"})
    for change in changes:
        wanted = dataclasses.replace(settings, **change)
        command = config_io.tune_command(wanted, "runs/a b")
        parts = shlex.split(command)
        assert parts[:2] == ["gradless", "tune"]
        done = CliRunner().invoke(commands.main, parts[1:])
        assert done.exit_code == 0, done.output
        unread = {} if wanted.k_shot is None else {"num_train": 1000, "num_dev": 500}  # not named in the command
        assert dataclasses.replace(seen[-1], eval_every=wanted.eval_every) == dataclasses.replace(wanted, **unread)


# ------------------------------------------------------------------------------------------------------------
# a finished run


def test_the_record_is_what_the_files_say(finished):
    record, moves = load(finished), ledger.read(finished / "ledger").moves
    lines = h.notes(finished, "step")
    assert [(s.step, s.coeffs, s.lr, s.skipped) for s in record.steps] == [
        (m.step, m.coeffs, m.lrs[0], m.skipped) for m in moves
    ]
    assert [(s.loss, s.forwards, s.seconds) for s in record.steps] == [
        (line["loss"], line["forwards"], line["seconds"]) for line in lines
    ]
    assert (record.status, record.metric, record.remarks) == ("done", "accuracy", ())
    assert [e.step for e in record.evaluations if e.split == "dev"] == [0, 2, 4, 6]


def test_the_numbers_of_the_page_are_those_of_the_result(finished):
    text, page = report_page(finished)
    result = result_of(finished)
    rows = {row[0]: row[1:] for row in page.tables["table-outcome"][1:]}
    for name, value in result["test"].items():
        untouched = result["zero_shot"][name]
        assert rows[name] == [f"{untouched:.4f}", f"{value:.4f}", f"{value - untouched:+.4f}"]
    ends = result["interval"]
    assert rows["accuracy, 95 % interval"] == [
        "{:.3f} to {:.3f}".format(*ends["zero_shot"]),
        "{:.3f} to {:.3f}".format(*ends["test"]),
        "{:+.3f} to {:+.3f}".format(*ends["difference"]),
    ]
    cost = dict(page.tables["table-cost"][1:])
    assert cost["forward passes"] == f"{result['forwards']:,}"
    assert cost["training"] == f"{result['train_seconds']:.1f} s"
    assert cost["training, peak"] == run_tables.size_text(result["peak_memory_bytes"])
    assert cost["inference, peak"] == run_tables.size_text(result["inference_memory_bytes"])
    assert cost["tuned weights"] == run_tables.size_text(4 * result["tuned_parameters"])
    assert cost["ledger"] == run_tables.size_text(result["ledger_bytes"])
    for name in ("weights_sha256", "base_sha256", "data_sha256", "engine"):
        assert result[name] in text
    assert all(value in text for value in result["versions"].values())
    assert f"gradless replay {finished.name} --verify" in text
    assert str(finished.parent) not in text
    assert "gradless tune --model tiny-llama" in text
    big = re.findall(r"<strong>(.*?)</strong>", text)
    gain = result["test"]["accuracy"] - result["zero_shot"]["accuracy"]
    assert big == [f"{result['zero_shot']['accuracy']:.3f}", f"{result['test']['accuracy']:.3f}", f"{gain:+.3f}"]


def test_the_page_has_every_section_and_loads_nothing(finished):
    text, page = report_page(finished)
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"script", "iframe", "link", "object", "embed", "form"} & set(page.tags)
    names = ["training-loss", "training-metric", "speed", "memory", "gradients-histogram", "gradients-steps"]
    assert re.findall(r'<figure id="([\w-]+)"><h3>', text) == [*names[:2], "training-rate", *names[2:]]
    assert report_page(finished)[0] == text


def test_pictures_show_every_coefficient(finished):
    record = load(finished)
    pictures = {one.name: one for one in drawings(record)}
    assert "12 coefficients" in pictures["gradients-histogram"].caption
    assert "up to 2 directions" in pictures["gradients-steps"].caption
    assert pictures["gradients-steps"].svg.count("<use ") >= 12
    values = [c for step in record.steps for c in step.coeffs]
    spread = math.sqrt(sum(c * c for c in values) / len(values))
    assert f"root mean square {spread:.3g}" in pictures["gradients-histogram"].caption
    same = dataclasses.replace(record, steps=tuple(step._replace(lr=1e-3) for step in record.steps))
    assert "training-rate" not in {one.name for one in drawings(same)}


@pytest.mark.sweep
def test_long_runs_do_not_make_heavy_pages(finished):
    steps = tuple(
        Step(i, tuple(math.sin(i + k) for k in range(16)), 1e-6, i % 500 == 0, 1 + math.cos(i), 32, 0.1, 1e9)
        for i in range(10_000)
    )
    record = dataclasses.replace(load(finished), steps=steps)
    pictures = {one.name: one for one in drawings(record)}
    assert sum(len(one.svg) for one in pictures.values()) < 3_000_000
    assert "data:image/png;base64," in pictures["gradients-steps"].svg
    assert "20 steps were skipped" in pictures["gradients-steps"].caption


def test_examples_begin_with_what_changed(finished, run):
    guess = {True: Guess("good", True, 0.6), False: Guess("bad", False, 0.7)}
    pairs = [(True, True)] * 30 + [(False, True)] * 14 + [(True, False)] * 2
    rows = [Prediction(i, f"row {i}", (), ("good",), guess[a], guess[b]) for i, (a, b) in enumerate(pairs)]
    predictions.write(run / predictions.FILE, rows)
    _, page = report_page(run)
    shown = {name: [row[0] for row in table[2:]] for name, table in page.tables.items() if "examples" in name}
    assert shown == {
        "table-examples-fixed": [f"row {i}" for i in range(30, 42)],
        "table-examples-broken": ["row 44", "row 45"],
        "table-examples-others": [f"row {i}" for i in range(8)],
    }
    assert page.tables["table-examples-fixed"][2] == ["row 30", "good", "bad", "0.70", "good", "0.60"]


def test_rows_before_and_after_have_labels_and_no_forecast_stays(finished):
    text, page = report_page(finished)
    rows = [row for name, table in page.tables.items() if name.startswith("table-examples") for row in table[2:]]
    assert rows
    assert {row[1] for row in rows} <= {"0", "1"}
    assert "terrible" not in {cell for row in rows for cell in row}
    assert "expected time" not in text
    assert "for 6 steps, without evaluations" in text
    brief = [row[1].text for table in run_tables.examples(load(finished), brief=True) for row in table.rows]
    assert set(brief) <= {"0", "1"}
