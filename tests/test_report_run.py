"""The page of one run: every number against the run's own files, whatever state they are in."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import run_helpers as h
from browser_helpers import look, needs_browser
from gradless import ledger
from gradless.cli import commands
from gradless.errors import BadInput
from gradless.lm.evaluate import evaluate
from gradless.report import report
from gradless.report.bench import tables
from gradless.report.common.table import plain
from gradless.report.run import tables as run_tables
from gradless.report.run.figures import drawings
from gradless.report.run.record import Evaluated, RunRecord, Step, is_run, load
from gradless.report.run.verdict import shares, verdict
from gradless.runs import config_io, predictions
from gradless.runs.config import TuneConfig
from gradless.runs.predictions import Guess, Prediction, shorten
from scoring_helpers import naive_log_probs, several, shared, task

SECTIONS = ["result", "training", "cost", "gradients", "examples", "provenance"]
NASTY = "<script>alert(\"1\")</script> & 'quoted' </td></table> ± 5"
ARABIC = "\u0641\u064a\u0644\u0645 \u0631\u0627\u0626\u0639 (2002)"


class Page(HTMLParser):
    """Text of the cells of every table, and what a page must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._table, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name.endswith(("href", "src", "srcset", "action"))]
        if tag == "figure":
            self._table = given.get("id", "")
        elif tag == "tr":
            self.tables.setdefault(self._table, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.tables[self._table][-1][-1] += data


def made(folder: Path) -> tuple[str, Page]:
    """The page of a run."""
    (path,) = report(folder, say=lambda line: None)
    assert path == folder / "report.html"
    text = path.read_text()
    return text, Page(text)


def said(folder: Path) -> list[str]:
    lines: list[str] = []
    report(folder, say=lines.append)
    return lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with two directions a step, a schedule, and dev evaluations."""
    place = tmp_path_factory.mktemp("finished")
    settings = h.config(
        place, steps=6, queries=2, schedule="linear", lr=1e-3, eval_every=2, num_test=24, select="metric", seed=3
    )  # fmt: skip
    h.tune(settings, place / "run")
    return place / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


# ------------------------------------------------------------------------------------------------------------
# what is kept of predictions


def test_the_probability_is_that_of_the_best_option_among_the_options():
    lm = shared("llama")
    examples = several(lm, 7)
    found = evaluate(lm, task("classification"), examples, batch_size=3)
    for example, predicted, share in zip(examples, found.predictions, found.probabilities, strict=True):
        means = torch.tensor([float(naive_log_probs(lm, example.prompt, o).mean()) for o in example.options])
        assert share == pytest.approx(float(means.softmax(0)[predicted]), abs=1e-4)


def test_predictions_are_kept_and_agree_with_the_result(finished):
    found, result = predictions.read(finished / predictions.FILE), result_of(finished)
    assert [one.row for one in found] == list(range(24))
    assert sum(one.after.right for one in found) / 24 == pytest.approx(result["test"]["accuracy"])
    assert sum(one.before.right for one in found) / 24 == pytest.approx(result["zero_shot"]["accuracy"])
    assert all(one.text.endswith(" so") for one in found)
    assert all(one.options == ("terrible", "great") for one in found)
    assert all(one.after.right == (one.after.text in one.gold) for one in found)
    assert all(0.5 <= one.after.probability <= 1 for one in found)
    before, *_, after = (line for line in h.notes(finished, "eval") if line["split"] == "test")
    for line, guesses in ((before, [o.before for o in found]), (after, [o.after for o in found])):
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
    ]  # fmt: skip
    seen: list[TuneConfig] = []
    monkeypatch.setattr(commands, "_summary", lambda *_: None)
    monkeypatch.setattr(commands, "_exit", lambda *_: None)
    monkeypatch.setattr("gradless.runs.train.tune", lambda config, *_, **__: seen.append(config) or {"status": "done"})
    for change in changes:
        wanted = dataclasses.replace(settings, **change)
        command = config_io.tune_command(wanted, "runs/a b")
        parts = shlex.split(command)
        assert parts[:2] == ["gradless", "tune"]
        done = CliRunner().invoke(commands.main, parts[1:])
        assert done.exit_code == 0, done.output
        assert seen[-1] == wanted


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
    text, page = made(finished)
    result = result_of(finished)
    rows = {row[0]: row[1:] for row in page.tables["table-outcome"][1:]}
    for name, value in result["test"].items():
        before = result["zero_shot"][name]
        assert rows[name] == [f"{before:.4f}", f"{value:.4f}", f"{value - before:+.4f}"]
    ends = result["interval"]
    assert rows["share right, 95 % interval"] == [
        "{:.3f} to {:.3f}".format(*ends["zero_shot"]), "{:.3f} to {:.3f}".format(*ends["test"]),
        "{:+.3f} to {:+.3f}".format(*ends["difference"]),
    ]  # fmt: skip
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
    assert f"gradless replay {finished} --verify" in text
    assert "gradless tune --model tiny-llama" in text
    big = re.findall(r"<strong>(.*?)</strong>", text)
    gain = result["test"]["accuracy"] - result["zero_shot"]["accuracy"]
    assert big == [f"{result['zero_shot']['accuracy']:.3f}", f"{result['test']['accuracy']:.3f}", f"{gain:+.3f}"]


def test_the_page_has_every_section_and_loads_nothing(finished):
    text, page = made(finished)
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"script", "iframe", "link", "object", "embed", "form"} & set(page.tags)
    names = ["training-loss", "training-metric", "speed", "memory", "gradients-histogram", "gradients-steps"]
    assert re.findall(r'<figure id="([\w-]+)"><h3>', text) == [*names[:2], "training-rate", *names[2:]]
    assert made(finished)[0] == text


def test_pictures_show_every_coefficient(finished):
    record = load(finished)
    found = {one.name: one for one in drawings(record)}
    assert "12 coefficients" in found["gradients-histogram"].caption
    assert "up to 2 directions" in found["gradients-steps"].caption
    assert found["gradients-steps"].svg.count("<use ") >= 12
    values = [c for step in record.steps for c in step.coeffs]
    spread = math.sqrt(sum(c * c for c in values) / len(values))
    assert f"root mean square {spread:.3g}" in found["gradients-histogram"].caption
    same = dataclasses.replace(record, steps=tuple(step._replace(lr=1e-3) for step in record.steps))
    assert "training-rate" not in {one.name for one in drawings(same)}


def test_long_runs_do_not_make_heavy_pages(finished):
    steps = tuple(
        Step(i, tuple(math.sin(i + k) for k in range(16)), 1e-6, i % 500 == 0, 1 + math.cos(i), 32, 0.1, 1e9)
        for i in range(10_000)
    )
    record = dataclasses.replace(load(finished), steps=steps)
    found = {one.name: one for one in drawings(record)}
    assert sum(len(one.svg) for one in found.values()) < 3_000_000
    assert "data:image/png;base64," in found["gradients-steps"].svg
    assert "20 steps were skipped" in found["gradients-steps"].caption


def test_examples_begin_with_what_changed(finished, run):
    guess = {True: Guess("good", True, 0.6), False: Guess("bad", False, 0.7)}
    pairs = [(True, True)] * 30 + [(False, True)] * 14 + [(True, False)] * 2
    rows = [Prediction(i, f"row {i}", (), ("good",), guess[a], guess[b]) for i, (a, b) in enumerate(pairs)]
    predictions.write(run / predictions.FILE, rows)
    _, page = made(run)
    shown = {name: [row[0] for row in found[2:]] for name, found in page.tables.items() if "examples" in name}
    assert shown == {
        "table-examples-fixed": [f"row {i}" for i in range(30, 42)],
        "table-examples-broken": ["row 44", "row 45"],
        "table-examples-others": [f"row {i}" for i in range(8)],
    }
    assert page.tables["table-examples-fixed"][2] == ["row 30", "good", "bad", "0.70", "good", "0.60"]


# ------------------------------------------------------------------------------------------------------------
# text of users


def nasty(run: Path) -> None:
    texts = [NASTY, ARABIC, "tab\tnew\nline \x1b[31mred \x00 \u202e rtl", "word " * 4000, "x" * 5000, "a\ud800"]
    rows = [
        Prediction(i, shorten(text, predictions.LONGEST_TEXT), (NASTY,), (NASTY,), Guess(NASTY, True, 0.5),
                   Guess(ARABIC, False, 0.5))
        for i, text in enumerate(texts)
    ]  # fmt: skip
    predictions.write(run / predictions.FILE, rows)
    for name in ("config.json", "result.json"):
        found = json.loads((run / name).read_text())
        found |= {"model": f"/models/{NASTY.replace('/', '|')}"} if name == "config.json" else {"engine": NASTY}
        (run / name).write_text(json.dumps(found))


def test_text_of_users_is_only_text(run):
    nasty(run)
    text, page = made(run)
    assert "script" not in page.tags
    assert "<script" not in text
    assert html.escape(ARABIC) in text
    shown = [row for name, found in page.tables.items() if "examples" in name for row in found[2:]]
    assert [row[0] for row in shown][:2] == [NASTY, ARABIC]
    assert {row[2] for row in shown} == {NASTY}
    assert max(len(row[0]) for row in shown) < 1000
    brief = [plain(table) for table in tables(run)]
    assert all(letter.isprintable() for letter in "".join(brief).replace("\n", ""))


# ------------------------------------------------------------------------------------------------------------
# what came of it, in words


def record(**changes: Any) -> RunRecord:
    """A finished run, 40 -> 60 of 100 right, by hand."""
    before, after = [i < 40 for i in range(100)], [i >= 30 and i < 90 for i in range(100)]
    result = {
        "status": "done", "selected_step": 8, "zero_shot": {"accuracy": 0.4}, "test": {"accuracy": 0.6},
        "interval": {"zero_shot": [0.3, 0.5], "test": [0.5, 0.7], "difference": [0.05, 0.33]},
    }  # fmt: skip
    given: dict[str, Any] = {
        "folder": Path("runs/x"), "config": {"model": "m", "task": "sst2", "method": "mezo", "steps": 10},
        "result": result | changes.pop("result", {}), "header": {}, "ledger_bytes": 0,
        "steps": tuple(Step(i, (1.0,), 1e-6, False) for i in range(10)),
        "evaluations": (Evaluated("test", 0, 1.0, {}, tuple(before)), Evaluated("test", 8, 1.0, {}, tuple(after))),
        "inference_bytes": None, "predictions": (), "remarks": (),
    }  # fmt: skip
    return RunRecord(**(given | changes))


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
    found = verdict(run)
    assert found.kind == kind
    assert all(part in found.text for part in parts), found.text


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
    text, page = made(run)
    assert "has not finished: 5 of 6 steps taken" in text
    assert "1 damaged line of metrics.jsonl left out" in text
    assert "bytes of an unfinished step" in text
    assert "So far dev accuracy went from" in text
    assert "table-outcome" not in page.tables
    assert f"gradless replay {run}\n" in text
    assert (run / "ledger").read_bytes() == kept[:-5], "a report changes nothing"


def test_damaged_files_are_told_and_left_out(run):
    data = bytearray((run / "ledger").read_bytes())
    data[-3] ^= 1
    (run / "ledger").write_bytes(bytes(data))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    odd = ["3", "null", "[]", '{"event": 1, "step": 2}', '{"event": "step"}', '{"event": "eval", "step": 1}']
    (run / "metrics.jsonl").write_text("\n".join([*odd, *lines]))
    found = load(run)
    assert any("The ledger is left out" in remark for remark in found.remarks)
    assert any("5 damaged lines" in remark for remark in found.remarks)
    assert [step.coeffs for step in found.steps] == [
        tuple(line["coeffs"]) for line in map(json.loads, lines) if line["event"] == "step"
    ]
    made(run)
    (run / "result.json").write_text("{")
    assert "result.json cannot be read" in made(run)[0]


def test_a_ledger_alone_is_enough(run):
    for name in ("config.json", "metrics.jsonl", "result.json", predictions.FILE):
        (run / name).unlink()
    text, _ = made(run)
    assert "tiny-llama on train.csv" in text
    assert "There is no metrics.jsonl" in text
    assert 'id="gradients-histogram"' in text


def test_a_run_from_before_predictions_were_kept(run):
    (run / predictions.FILE).unlink()
    text = re.sub(r', "probabilities": \[[^]]*\]', "", (run / "metrics.jsonl").read_text())
    (run / "metrics.jsonl").write_text(text)
    text, page = made(run)
    assert "keeps no predictions.jsonl" in text
    assert len(page.tables["table-outcome"]) >= 4


def test_a_configuration_of_a_later_release(run):
    found = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(found | {"method": "from-the-future", "novelty": 1}))
    text, _ = made(run)
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
    h.patch_loss(monkeypatch, lambda step, place, loss: loss * math.nan if step >= 2 else loss)
    result = h.tune(h.config(tmp_path, steps=30, eval_every=1), tmp_path / "run")
    assert result["status"] == "diverged"
    text, _ = made(tmp_path / "run")
    assert "The run diverged after 12 steps of 30" in text
    assert "10 steps were skipped" in text
    assert "Status: diverged." in text


def test_a_run_that_is_interrupted_and_resumed(tmp_path, monkeypatch):
    def stop(step: int, place: int, loss: torch.Tensor) -> torch.Tensor:
        if step == 2:
            raise KeyboardInterrupt
        return loss

    settings = h.config(tmp_path, steps=4)
    with monkeypatch.context() as patched:
        h.patch_loss(patched, stop)
        h.tune(settings, tmp_path / "run")
    assert "was interrupted: 2 of 4 steps taken" in made(tmp_path / "run")[0]
    assert not (tmp_path / "run" / predictions.FILE).exists()
    h.tune(settings, tmp_path / "run", resume=True)
    text, page = made(tmp_path / "run")
    assert "was interrupted" not in text
    assert dict(page.tables["table-cost"][1:])["steps"].startswith("4 of 4")
    assert sum(len(found) - 2 for name, found in page.tables.items() if "examples" in name) == 8


def test_the_result_of_an_earlier_interrupt_is_not_that_of_a_run_at_work(run):
    result = result_of(run) | {"status": "interrupted", "steps": 2, "selected_step": 2, "test": {}, "interval": {}}
    (run / "result.json").write_text(json.dumps(result | {"forwards": 7}))
    (run / predictions.FILE).unlink()
    text, page = made(run)
    assert "has not finished: 6 of 6 steps" in text
    cost = dict(page.tables["table-cost"][1:])
    assert cost["forward passes"] == f"{sum(line['forwards'] for line in h.notes(run, 'step'))}"
    assert "dev chose" not in text


def test_backpropagation_has_no_coefficients(tmp_path):
    h.tune(h.config(tmp_path, method="fo-sgd", zero_shot=False), tmp_path / "run")
    text, page = made(tmp_path / "run")
    assert "There are none: fo-sgd differentiates by backpropagation." in text
    assert "No ledger rebuilds the steps of fo-sgd" in text
    assert "the untouched model was not evaluated" in text
    assert page.tables["table-examples-others"][1] == ["text", "gold", "says", "p"]


def test_generated_texts(tmp_path):
    data = h.squad(tmp_path / "data")
    settings = h.config(tmp_path, task="squad", data=str(data), num_train=4, num_dev=2, num_test=3, max_length=256)
    h.tune(settings, tmp_path / "run")
    text, page = made(tmp_path / "run")
    (shown,) = (found for name, found in page.tables.items() if "examples" in name)
    assert shown[1] == ["text", "gold", "says", "says"]
    assert "What is the number?" in shown[2][0]
    assert page.tables["table-outcome"][1][0] == load(tmp_path / "run").metric
    assert "softmax" not in text


def test_without_matplotlib_there_is_a_page(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    lines = said(run)
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
    made(run)
    seen = look(run / "report.html", tmp_path, width=width, dark=dark)
    assert seen.console == []
    assert seen.requests == []
    found = seen.found
    assert found["resources"] == []
    assert found["scripts"] == 0
    assert [name for name, height in found["sections"] if height > 60] == SECTIONS
    assert len(found["svgs"]) == 7
    assert all(min(sizes) > 20 for sizes in found["svgs"])
    assert all(width > 0 for width in found["images"])
    assert found["outside"] == []
    assert len(set(found["ids"])) == len(found["ids"])
    assert found["wide"][0] <= found["wide"][1], "the page scrolls sideways"
    assert [cell[0] for cell in found["cells"][:2]] == [NASTY, ARABIC]
    assert {cell[1] for cell in found["cells"]} == {"plaintext"}
    light = [sum(map(int, re.findall(r"\d+", found[name])[:3])) > 384 for name in ("ink", "paper")]
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
    assert seen.found["images"] == [0]
