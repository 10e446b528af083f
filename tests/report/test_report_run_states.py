"""The page of a run that did not end well, in words, and in a browser."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import run_helpers as h
from browser_helpers import look, needs_browser
from gradless.cli import commands, run_ends
from gradless.errors import BadInput
from gradless.report import report, tables
from gradless.report.common.table import plain
from gradless.report.run.record import is_run, load
from gradless.report.run.verdict import shares, verdict
from gradless.runs import predictions
from gradless.runs.predictions import Guess, Prediction, shorten
from report_run_helpers import ARABIC, NASTY, SECTIONS, record, report_page, result_of


def messages_of(folder: Path) -> list[str]:
    lines: list[str] = []
    report(folder, say=lines.append)
    return lines


# ------------------------------------------------------------------------------------------------------------
# text of users


def nasty(run: Path) -> None:
    texts = [NASTY, ARABIC, "tab\tnew\nline \x1b[31mred \x00 \u202e rtl", "word " * 4000, "x" * 5000, "a\ud800"]
    rows = [
        Prediction(
            i,
            shorten(text, predictions.LONGEST_TEXT),
            (NASTY,),
            (NASTY,),
            Guess(NASTY, True, 0.5),
            Guess(ARABIC, False, 0.5),
        )
        for i, text in enumerate(texts)
    ]
    predictions.write(run / predictions.FILE, rows)
    for name in ("config.json", "result.json"):
        content = json.loads((run / name).read_text())
        content |= {"model": f"/models/{NASTY.replace('/', '|')}"} if name == "config.json" else {"engine": NASTY}
        (run / name).write_text(json.dumps(content))


def test_text_of_users_is_only_text(run):
    nasty(run)
    text, page = report_page(run)
    assert "script" not in page.tags
    assert "<script" not in text
    assert html.escape(ARABIC) in text
    shown = [row for name, table in page.tables.items() if "examples" in name for row in table[2:]]
    assert [row[0] for row in shown][:2] == [NASTY, ARABIC]
    assert {row[2] for row in shown} == {NASTY}
    assert max(len(row[0]) for row in shown) < 1000
    brief = [plain(table) for table in tables(run)]
    assert all(letter.isprintable() for letter in "".join(brief).replace("\n", ""))


def worse(low: float, high: float) -> dict[str, Any]:
    return {"zero_shot": {"accuracy": 0.6}, "test": {"accuracy": 0.57}, "interval": {"difference": [low, high]}}


@pytest.mark.parametrize(
    ("run", "kind", "parts"),
    [
        (record(), "better", ["helped: +20.0 points on 100 test rows", "+5.0 to +33.0", "fixed 50 rows and broke 30"]),
        (record(result=worse(-0.05, -0.01)), "worse", ["made the model worse: -3.0 points"]),
        (record(result=worse(-0.05, 0.01)), "unclear", ["No clear change: -3.0 points", "includes zero"]),
        (record(result=worse(0.0, 0.01)), "unclear", ["includes zero"]),
        (record(result={"zero_shot": {}, "interval": {}}), "unknown", ["60.0% of 100 test rows", "nothing to compare"]),
        (record(result={"zero_shot": {}, "test": {}, "interval": {}}), "unknown", ["no test rows"]),
        (record(result={"status": "diverged"}), "better", ["diverged after 10 steps of 10", "step 8", "helped"]),
        (record(result={"status": "interrupted"}), "unknown", ["was interrupted: 10 of 10 steps", "--resume"]),
    ],
)
def test_the_verdict_is_honest(run, kind, parts):
    judgement = verdict(run)
    assert judgement.kind == kind
    assert all(part in judgement.text for part in parts), judgement.text


def test_shares_count_rows():
    assert shares(record()) == (100, 0.4, 0.6, 50, 30)


# ------------------------------------------------------------------------------------------------------------
# other states of a run


def test_a_run_that_was_killed(run):
    (run / "result.json").unlink()
    (run / predictions.FILE).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    kept = (run / "ledger").read_bytes()
    (run / "ledger").write_bytes(kept[:-5])
    text, page = report_page(run)
    assert "has not finished: 5 of 6 steps taken" in text
    assert "1 damaged line of metrics.jsonl left out" in text
    assert "bytes of an unfinished step" in text
    assert "So far dev accuracy went from" in text
    assert "table-outcome" not in page.tables
    assert f"gradless replay {run.name}\n" in text
    assert (run / "ledger").read_bytes() == kept[:-5], "a report changes nothing"


def test_damaged_files_are_told_and_left_out(run):
    data = bytearray((run / "ledger").read_bytes())
    data[-3] ^= 1
    (run / "ledger").write_bytes(bytes(data))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    odd = ["3", "null", "[]", '{"event": 1, "step": 2}', '{"event": "step"}', '{"event": "eval", "step": 1}']
    (run / "metrics.jsonl").write_text("\n".join([*odd, *lines]))
    damaged = load(run)
    assert any("The ledger is left out" in remark for remark in damaged.remarks)
    assert any("5 damaged lines" in remark for remark in damaged.remarks)
    assert [step.coeffs for step in damaged.steps] == [
        tuple(line["coeffs"]) for line in map(json.loads, lines) if line["event"] == "step"
    ]
    report_page(run)
    (run / "result.json").write_text("{")
    assert "result.json cannot be read" in report_page(run)[0]


def test_a_ledger_alone_is_enough(run):
    for name in ("config.json", "metrics.jsonl", "result.json", predictions.FILE):
        (run / name).unlink()
    text, _ = report_page(run)
    assert "tiny-llama on train.csv" in text
    assert "There is no metrics.jsonl" in text
    assert 'id="gradients-histogram"' in text


def test_a_run_from_before_predictions_were_kept(run):
    (run / predictions.FILE).unlink()
    text = re.sub(r', "probabilities": \[[^]]*\]', "", (run / "metrics.jsonl").read_text())
    (run / "metrics.jsonl").write_text(text)
    text, page = report_page(run)
    assert "keeps no predictions.jsonl" in text
    assert len(page.tables["table-outcome"]) >= 4


def costs(run: Path) -> dict[str, float]:
    return {row["what"]: row["value"] for table in tables(run) if table.name == "cost" for row in table.records}


@pytest.mark.parametrize("unknown", [{}, {"train_seconds": None}, {"train_seconds": 0.0}])
def test_a_time_that_is_not_known_is_left_out(run, unknown):
    assert "training" in costs(run)
    result = json.loads((run / "result.json").read_text())
    del result["train_seconds"], result["seconds_per_step"]
    (run / "result.json").write_text(json.dumps(result | unknown))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not {"training", "speed", "a step (median)"} & costs(run).keys()
    assert not re.search(r"\b(0|0\.0|< 1) s\b", "".join(map(plain, tables(run))))
    assert f"{run}: 6 steps, " in run_ends.run(run, again=list).where


def test_a_configuration_of_a_later_release(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"method": "from-the-future", "novelty": 1}))
    text, _ = report_page(run)
    assert "from-the-future" in text
    assert "<h3>The command</h3>" not in text


def test_what_is_no_run_is_refused(tmp_path):
    assert not is_run(tmp_path)
    with pytest.raises(BadInput, match="holds no"):
        report(tmp_path)
    (tmp_path / "ledger").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="no run that can be read"):
        report(tmp_path)


def test_a_run_that_diverged(tmp_path, monkeypatch):
    h.patch_loss(monkeypatch, lambda step, forward, loss: loss * math.nan if step >= 2 else loss)
    result = h.tune(h.config(tmp_path, steps=30, eval_every=1), tmp_path / "run")
    assert result["status"] == "diverged"
    text, _ = report_page(tmp_path / "run")
    assert "The run diverged after 12 steps of 30" in text
    assert "10 steps were skipped" in text
    assert "Status: diverged." in text


def test_a_run_that_is_interrupted_and_resumed(tmp_path, monkeypatch):
    def stop(step: int, forward: int, loss: torch.Tensor) -> torch.Tensor:
        if step == 2:
            raise KeyboardInterrupt
        return loss

    settings = h.config(tmp_path, steps=4)
    with monkeypatch.context() as patched:
        h.patch_loss(patched, stop)
        h.tune(settings, tmp_path / "run")
    assert "was interrupted: 2 of 4 steps taken" in report_page(tmp_path / "run")[0]
    assert not (tmp_path / "run" / predictions.FILE).exists()
    h.tune(settings, tmp_path / "run", resume=True)
    text, page = report_page(tmp_path / "run")
    assert "was interrupted" not in text
    assert dict(page.tables["table-cost"][1:])["steps"].startswith("4 of 4")
    assert sum(len(table) - 2 for name, table in page.tables.items() if "examples" in name) == 8


def test_the_result_of_an_earlier_interrupt_is_not_that_of_a_run_at_work(run):
    result = result_of(run) | {"status": "interrupted", "steps": 2, "selected_step": 2, "test": {}, "interval": {}}
    (run / "result.json").write_text(json.dumps(result | {"forwards": 7}))
    (run / predictions.FILE).unlink()
    text, page = report_page(run)
    assert "has not finished: 6 of 6 steps" in text
    cost = dict(page.tables["table-cost"][1:])
    assert cost["forward passes"] == f"{sum(line['forwards'] for line in h.notes(run, 'step'))}"
    assert "dev chose" not in text


def test_backpropagation_has_no_coefficients(tmp_path):
    h.tune(h.config(tmp_path, method="fo-sgd", zero_shot=False), tmp_path / "run")
    text, page = report_page(tmp_path / "run")
    assert "There are none: fo-sgd differentiates by backpropagation." in text
    assert "No ledger rebuilds the steps of fo-sgd" in text
    assert "the untouched model was not evaluated" in text
    assert page.tables["table-examples-others"][1] == ["text", "gold", "says", "p"]


def test_generated_texts(tmp_path):
    data = h.squad(tmp_path / "data")
    settings = h.config(tmp_path, task="squad", data=str(data), num_train=4, num_dev=2, num_test=3, max_length=256)
    h.tune(settings, tmp_path / "run")
    text, page = report_page(tmp_path / "run")
    (shown,) = (table for name, table in page.tables.items() if "examples" in name)
    assert shown[1] == ["text", "gold", "says", "says"]
    assert "What is the number?" in shown[2][0]
    assert page.tables["table-outcome"][1][0] == load(tmp_path / "run").metric
    assert "softmax" not in text


def test_without_matplotlib_there_is_a_page(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    lines = messages_of(run)
    assert any("gradless[plots]" in line for line in lines)
    text = (run / "report.html").read_text()
    assert "<svg" not in text
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS


def test_the_terminal_shows_it_in_brief(run):
    done = CliRunner().invoke(commands.main, ["report", str(run)])
    assert done.exit_code == 0, done.output
    result = result_of(run)
    assert f"{result['test']['accuracy']:.4f}" in done.output
    assert verdict(load(run)).text in done.output
    assert done.output.splitlines()[-1] == str(run / "report.html")
    assert max(map(len, done.output.splitlines())) < 200


# ------------------------------------------------------------------------------------------------------------
# in a browser


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_the_page_in_a_browser(run, tmp_path, width, dark):
    nasty(run)
    report_page(run)
    seen = look(run / "report.html", tmp_path, width=width, dark=dark)
    assert seen.console == []
    assert seen.requests == []
    measured = seen.measured
    assert measured["resources"] == []
    assert measured["scripts"] == 0
    assert [name for name, height in measured["sections"] if height > 60] == SECTIONS
    assert len(measured["svgs"]) == 7
    assert all(min(sizes) > 20 for sizes in measured["svgs"])
    assert all(width > 0 for width in measured["images"])
    assert measured["outside"] == []
    assert len(set(measured["ids"])) == len(measured["ids"])
    assert measured["wide"][0] <= measured["wide"][1], "the page scrolls sideways"
    assert [cell[0] for cell in measured["cells"][:2]] == [NASTY, ARABIC]
    assert {cell[1] for cell in measured["cells"]} == {"plaintext"}
    light = [sum(map(int, re.findall(r"\d+", measured[name])[:3])) > 384 for name in ("ink", "paper")]
    assert light == [dark, not dark]


@needs_browser
def test_the_browser_would_notice(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><html><body><img src="https://example.invalid/x.png"><script>console.error("no")</script></body>'
    )
    seen = look(page, tmp_path)
    assert len(seen.console) >= 1
    assert seen.requests == ["https://example.invalid/x.png"]
    assert seen.measured["images"] == [0]
