"""The report of a benchmark, on written results: every number is checked against one worked out by hand."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import statistics
import sys
import tomllib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradless.errors import BadInput
from gradless.report import load, report, show_tables
from gradless.report.bench import tables
from gradless.report.bench.figures import pareto
from gradless.report.bench.selection import choose, key, literal, names
from gradless.report.bench.study import Cell, slug
from gradless.report.common.label_layout import Box, place, spread
from gradless.report.common.table import NOTHING, Column, Item, Table, as_html, escape_latex, latex, markdown, plain
from gradless.runs.config import TuneConfig

MODEL = "gemma-3-270m"
GRID = """name = "small & <b>bold</b>"
search_seed = 0
seeds = [1, 2, 3]
budget = { forwards = 200 }
select = "accuracy"
[axes]
method = ["lozo", "mezo", "fo-adam"]
"""


class Bench:
    """Writes results as a bench does."""

    def __init__(self, folder: Path, *, grid: str = GRID) -> None:
        self.folder, self.records = folder, []
        (folder / "requests").mkdir(parents=True)
        (folder / "grid.toml").write_text(grid)

    def request(self, phase: str, cell: dict, point: dict, seed: int | None, **config) -> str:
        name = f"r{len(list((self.folder / 'requests').iterdir())):04d}"
        asked = {"model": cell["model"], "task": cell["task"], "method": cell.get("method", "mezo"), "batch_size": 16}
        asked |= {"lr": point.get("lr"), "seed": seed, "scheme": cell.get("scheme", "full"), **config}
        request = {"id": name, "phase": phase, "cell": cell, "point": point, "seed": seed, "config": asked}
        (self.folder / "requests" / f"{name}.json").write_text(json.dumps(request))
        return name

    def run(self, phase: str, cell: dict, point: dict, seed: int | None, *, config=None, **record) -> None:
        name = self.request(phase, cell, point, seed, **(config or {}))
        base = {"id": name, "phase": phase, "cell": cell, "point": point, "seed": seed, "status": "done", "reason": ""}
        self.records.append(base | {"test": {}, "dev": {}, "zero_shot": {}, "curve": [], "threads": 2} | record)
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        (self.folder / "results.jsonl").write_text(text)


def cell(method: str = "mezo", scheme: str = "full", task: str = "sst2", *, aligned: bool = True, **more) -> dict:
    return {"model": MODEL, "task": task, "scheme": scheme, "method": method, "aligned": aligned, **more}


def curve(*values: float, forwards: float = 40, seconds: float = 10.0, metric: str = "accuracy") -> list[dict]:
    return [
        {"step": 10 * n, "forwards": forwards * n, "seconds": seconds * n, "loss": 1.0 / n, metric: value}
        for n, value in enumerate(values, start=1)
    ]


def costs(forwards: float, seconds: float, peak: float, floor: float = 1e9) -> dict:
    return {
        "steps": 100, "forwards_per_step": forwards, "seconds_per_step": seconds, "peak_memory_bytes": peak,
        "inference_memory_bytes": floor, "tuned_parameters": 1000,
    }  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three methods, two schemes, one of them diverged in lora; test values of search runs must never be shown."""
    bench = Bench(tmp_path / "bench")
    for seed in (1, 2, 3):
        untouched = {"model": MODEL, "task": "sst2", "aligned": True}
        bench.run("zero-shot", untouched, {}, seed, test={"accuracy": 0.5}, dev={"accuracy": 0.52})
    spec = {"mezo": (0.80, 2, 1.0, 1.05e9), "lozo": (0.84, 2, 1.5, 1.1e9), "fo-adam": (0.88, 3, 2.0, 4e9)}
    for scheme in ("full", "lora"):
        for method, (level, *cost) in spec.items():
            bad = (method, scheme) == ("lozo", "lora")
            for lr in (1e-6, 3e-6, 1e-5):
                lost = bad or lr == 1e-5
                dev = {} if lost else {"accuracy": level - 0.1 * (lr == 1e-6), "loss": 0.4}
                status = "diverged" if lost else "done"
                bench.run(
                    "search", cell(method, scheme), {"lr": lr}, 0, status=status, dev=dev, test={"accuracy": 0.999}
                )
            for seed in () if bad else (1, 2, 3):
                test = {"accuracy": level + 0.01 * (seed - 2)}
                line = curve(level - 0.1, level - 0.05, level, forwards=20 * cost[0], seconds=10 * cost[1])
                bench.run(
                    "final", cell(method, scheme), {"lr": 3e-6}, seed, test=test, dev=test, curve=line, **costs(*cost)
                )
    return bench.folder


def named(folder: Path, name: str) -> Table:
    return next(table for table in tables(folder) if table.name == name)


def row(table: Table, *labels: str) -> list[str]:
    (found,) = [r for r in table.rows if tuple(i.text for i in r[: len(labels)]) == labels]
    return [item.text for item in found[table.labels :]]


# --- accuracy ---


def test_accuracy_is_test_over_final_seeds_with_zero_shot_first(small):
    table = named(small, "accuracy")
    assert [r[0].text for r in table.rows] == ["zero-shot", "lozo", "mezo", "fo-adam"]  # the grid's order
    assert [column.flat for column in table.columns[1:]] == ["sst2, full", "sst2, lora"]
    assert row(table, "zero-shot") == ["0.500 ± 0.000", "0.500 ± 0.000"]
    assert row(table, "mezo") == ["0.800 ± 0.010", "0.800 ± 0.010"]
    assert row(table, "lozo") == ["0.840 ± 0.010", "diverged"]
    assert "3 seeds" in table.caption
    marks = {r[0].text: [(i.best, i.best_zo) for i in r[1:]] for r in table.rows}
    assert marks["fo-adam"] == [(True, False), (True, False)]
    assert marks["lozo"] == [(False, True), (False, False)]
    assert marks["mezo"] == [(False, False), (False, True)]
    assert "0.999" not in markdown(table)


def test_accuracy_says_fewer_seeds_and_diverged_finals(tmp_path):
    bench = Bench(tmp_path / "b")
    for method in ("mezo", "lozo"):
        for seed in (1, 2, 3):
            lost = (method, seed) == ("lozo", 3)
            test = {} if lost else {"accuracy": 0.7}
            bench.run("final", cell(method), {}, seed, test=test, status="diverged" if lost else "done")
    table = named(bench.folder, "accuracy")
    assert row(table, "mezo") == ["0.700 ± 0.000"]
    assert row(table, "lozo") == ["0.700 ± 0.000 (2 of 3)"]
    assert row(table, "zero-shot") == [NOTHING]


@pytest.mark.parametrize(
    ("phase", "ends", "text"),
    [
        ("search", ("diverged", "diverged"), "diverged"),
        ("search", ("diverged", "failed"), "diverged"),
        ("search", ("failed", "failed"), "failed"),
        ("search", ("done", "diverged"), NOTHING),
        ("final", ("diverged", "diverged"), "diverged"),
        ("final", ("failed", "failed"), "failed"),
    ],
)
def test_accuracy_says_why_there_is_none(tmp_path, phase, ends, text):
    bench = Bench(tmp_path / "b")
    for seed, status in enumerate(ends):
        bench.run(phase, cell(), {"lr": 10.0**-seed} if phase == "search" else {}, seed, status=status)
    assert row(named(bench.folder, "accuracy"), "mezo") == [text]


def test_the_first_metric_of_the_task_counts(tmp_path):
    bench = Bench(tmp_path / "b")
    for task, metric in (("squad", "token_f1"), ("own", "accuracy"), ("no-such-task", "accuracy")):
        test = {"accuracy": 0.1, "token_f1": 0.2, "exact_match": 0.3, metric: 0.6}
        bench.run("final", cell(task=task), {}, 1, test=test)
    table = named(bench.folder, "accuracy")
    assert row(table, "mezo") == ["0.600"] * 3
    assert "token_f1 (squad)" in table.caption


def test_zero_shot_falls_back_on_the_final_runs(tmp_path):
    bench = Bench(tmp_path / "b")
    for seed, value in ((1, 0.5), (2, 0.6)):
        bench.run("final", cell(), {}, seed, zero_shot={"accuracy": value}, test={"accuracy": 0.7})
        bench.run("final", cell("lozo"), {}, seed, zero_shot={"accuracy": value}, test={"accuracy": 0.7})
    assert row(named(bench.folder, "accuracy"), "zero-shot") == [f"0.550 ± {statistics.stdev([0.5, 0.6]):.3f}"]


def test_models_get_tables_of_their_own(tmp_path):
    bench = Bench(tmp_path / "b")
    for model, value in (("org/a", 0.6), ("b", 0.7)):
        bench.run("final", cell() | {"model": model}, {}, 1, test={"accuracy": value})
    assert row(named(bench.folder, "accuracy-org-a"), "mezo") == ["0.600"]
    assert row(named(bench.folder, "accuracy-b"), "mezo") == ["0.700"]


# --- cost ---


def test_cost_is_in_ratios_to_mezo_and_to_inference(small):
    table = named(small, "cost")
    assert [column.flat for column in table.columns][:2] == ["Scheme", "Method"]
    assert row(table, "full", "fo-adam") == ["16", "100", "3", "2.00", "2.00", "4.00", "4.00"]
    assert row(table, "full", "mezo") == ["16", "100", "2", "1.00", "1.00", "1.05", "1.05"]


def test_cost_without_mezo_or_memory_has_gaps(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("search", cell("lozo"), {}, 0, **costs(2, 1.0, 0, 0))
    assert row(named(bench.folder, "cost"), "lozo") == ["16", "100", "2", "1.00", NOTHING, NOTHING, NOTHING]


# --- hyper-parameters ---


def test_chosen_points_count_what_was_tried(small):
    table = named(small, "hyper-parameters")
    assert row(table, "full", "mezo") == ["3e-6", "0.800", "0.400", "3", "1"]
    assert row(table, "lora", "lozo") == [NOTHING, NOTHING, NOTHING, "3", "3"]
    assert not any(item.warn for r in table.rows for item in r)  # 1e-5 was tried, and diverged


@pytest.mark.parametrize(
    ("axis", "values", "best", "edge"),
    [
        ("lr", (1e-6, 1e-5), 1e-6, "lowest tried"),
        ("lr", (1e-6, 1e-5), 1e-5, "highest tried"),
        ("lr", (1e-6, 3e-6, 1e-5), 3e-6, None),
        ("lr", (1e-6,), 1e-6, None),
        ("options.queries", (1, 4), 1, None),
        ("options.queries", (1, 4), 4, "highest tried"),
        ("options.mask", ("random", "wanda"), "random", None),
    ],
)
def test_a_best_point_on_an_edge_is_marked(tmp_path, axis, values, best, edge):
    bench = Bench(tmp_path / "b")
    for value in values:
        bench.run("search", cell(), {axis: value}, 0, dev={"accuracy": 0.5 + 0.1 * (value == best)})
    choice = choose(load(bench.folder), Cell(MODEL, "sst2", "full", "mezo"))
    assert choice.point == {axis: best}
    assert choice.edges == ({axis: edge} if edge else {})
    (found,) = named(bench.folder, "hyper-parameters").rows
    assert found[1].warn == bool(edge)
    assert (edge or "tried") in found[1].text or not edge


def test_without_finals_the_grid_says_what_selects(tmp_path):
    for select, lr in (("loss", 1e-6), ("accuracy", 1e-5), ("metric", 1e-5)):
        bench = Bench(tmp_path / select, grid=f'select = "{select}"\n')
        bench.run("search", cell(), {"lr": 1e-6}, 0, dev={"accuracy": 0.5, "loss": 0.1})
        bench.run("search", cell(), {"lr": 1e-5}, 0, dev={"accuracy": 0.6, "loss": 0.2})
        bench.run("search", cell(), {"lr": 1e-4}, 0, dev={"accuracy": math.nan, "loss": None})
        assert choose(load(bench.folder), Cell(MODEL, "sst2", "full", "mezo")).point == {"lr": lr}


# --- options and alignment ---


def test_an_axis_of_the_grid_gets_its_table(tmp_path):
    bench = Bench(tmp_path / "b")
    for keep, value in ((0.5, 0.7), (0.1, 0.8)):
        for seed in (1, 2):
            bench.run("final", cell("zo-sparse", **{"options.keep": keep}), {}, seed, test={"accuracy": value})
    bench.run("final", cell(), {}, 1, test={"accuracy": 0.75})
    table = named(bench.folder, "effect-keep")
    assert [column.name for column in table.columns] == ["Method", "0.1", "0.5"]
    assert row(table, "zo-sparse") == ["0.800 ± 0.000", "0.700 ± 0.000"]
    assert [item.best for item in table.rows[0]] == [False, True, False]
    assert {r[0].text for r in named(bench.folder, "accuracy").rows} >= {"zo-sparse (keep 0.1)", "mezo"}


def test_alignment_is_paired_by_seed(tmp_path):
    bench = Bench(tmp_path / "b")
    for seed, (with_, without) in enumerate([(0.8, 0.6), (0.9, 0.6), (0.7, None)], start=1):
        bench.run("final", cell(), {}, seed, test={"accuracy": with_})
        bench.run("final", cell(aligned=False), {}, seed, test={"accuracy": without})
    table = named(bench.folder, "alignment")
    gains = [0.2, 0.3]
    assert row(table, "mezo")[2] == f"+{statistics.mean(gains):.3f} ± {statistics.stdev(gains):.3f}"
    assert {"accuracy", "accuracy-unaligned"} <= {t.name for t in tables(bench.folder)}


def test_without_unaligned_cells_there_is_no_alignment_table(small):
    assert "alignment" not in {table.name for table in tables(small)}


# --- views ---


def test_views_take_the_last_evaluation_within_the_smallest_total(tmp_path):
    bench = Bench(tmp_path / "b")
    for seed in (1, 2):
        bench.run("final", cell(), {}, seed, curve=curve(0.5, 0.6, 0.7, 0.8 + 0.02 * seed, forwards=20, seconds=5))
        bench.run("final", cell("fo-adam"), {}, seed, curve=curve(0.6, 0.9, forwards=60, seconds=20))
    forwards, seconds, steps = (named(bench.folder, f"views-{view}") for view in ("forwards", "seconds", "steps"))
    # mezo ends at 80 forwards and 20 s, fo-adam at 120 and 40 s; steps: 40 against 20.
    assert forwards.rows[0][0].text == "sst2 · full, 80 forwards"
    assert row(forwards, "sst2 · full, 80 forwards", "mezo")[:2] == ["0.500 ± 0.000", "0.600 ± 0.000"]
    assert row(forwards, "sst2 · full, 80 forwards", "mezo")[2].startswith("0.830 ± 0.014")
    assert row(forwards, "sst2 · full, 80 forwards", "fo-adam") == [NOTHING, NOTHING, "0.600 ± 0.000"]
    assert row(seconds, "sst2 · full, 20 seconds", "fo-adam") == [NOTHING, NOTHING, "0.600 ± 0.000"]
    assert row(steps, "sst2 · full, 20 steps", "fo-adam") == [NOTHING, "0.600 ± 0.000", "0.900 ± 0.000"]
    assert row(steps, "sst2 · full, 20 steps", "mezo") == [NOTHING, "0.500 ± 0.000", "0.600 ± 0.000"]
    assert "Dev numbers, not test" in forwards.caption


def test_diverged_runs_do_not_shrink_the_budget(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("final", cell(), {}, 1, curve=curve(0.5, 0.6))
    bench.run("final", cell("lozo"), {}, 1, curve=curve(0.5), status="diverged")
    assert [r[0].text for r in named(bench.folder, "views-steps").rows] == ["sst2 · full, 20 steps"]


# --- forms of a table ---


def nasty() -> Table:
    rows = ((Item("a_b|c & <i>*50%*</i> $x$ {y}~^\\"), Item("0.5 ± 0.1", best=True)), (Item("z"), Item(best_zo=True)))
    columns = (Column("Method"), Column("x < y", "group #1"))
    return Table("n", "T & <t>", "c_1", 1, columns, rows, ({"a": 'x,"y"', "b": 0.1 + 0.2}, {"a": None, "c": 1}))


def test_latex_is_escaped():
    text = latex(nasty())
    assert r"a\_b\textbar{}c \& \textless{}i\textgreater{}" in text
    assert r"\$x\$ \{y\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"\textbf{0.5 $\pm$ 0.1}" in text
    assert r"\multicolumn{1}{c}{group \#1}" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){2-2}"))
    inside = text[text.index("\\toprule") : text.index("\\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in inside.splitlines() if line.endswith(r"\\")} == {1}


@given(st.text())
def test_latex_leaves_no_special_letter_bare(text):
    left = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", escape_latex(text)
    )
    left = re.sub(r"\$(\\pm|\\times|\^\\dagger|\\cdot)\$", "", left)
    left = re.sub(r"\\[&%$#_{}]", "", left)
    assert not set(left) & set("\\&%$#_{}~^<>|\n\r")


def test_markdown_keeps_its_columns():
    lines = [line for line in markdown(nasty()).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "**0.5 ± 0.1**" in markdown(nasty())
    assert "<i>" not in markdown(nasty())


def test_csv_holds_unrounded_numbers(small):
    report(small, say=lambda line: None)
    rows = list(csv.DictReader(io.StringIO((small / "tables/accuracy.csv").read_text())))
    (found,) = [r for r in rows if (r["method"], r["scheme"]) == ("mezo", "full")]
    assert float(found["mean"]) == statistics.fmean([0.79, 0.8, 0.81])
    assert float(found["std"]) == statistics.stdev([0.8 - 0.01, 0.8, 0.8 + 0.01])
    assert (found["seeds"], found["metric"], found["kind"]) == ("3", "accuracy", "zo")


def test_html_table_is_escaped():
    text = as_html(nasty())
    assert "<i>" not in text
    assert "&lt;i&gt;" in text


@pytest.mark.parametrize("live", [False, True])
def test_tables_are_printed(small, capsys, live):
    made = tables(small)
    show_tables(made, live=live)
    out = capsys.readouterr().out
    assert "Test results" in out
    assert "0.800 ± 0.010" in out
    assert "diverged" in out
    assert "0.880 ± 0.010*" in plain(made[0])
    assert "0.840 ± 0.010†" in plain(made[0])


# --- best.toml ---


def test_best_toml_is_read_back(tmp_path):
    own = {"train": 'C:\\data\\"x".csv', "template": "{text}\nIt\twas \x7f\x01 ü", "labels": "0=a,1=b"}
    bench = Bench(tmp_path / "b")
    for seed in (1, 2):
        config = {"own": own, "task": None, "targets": ["q.*", 'v"'], "eps": 1e-3, "num_train": 0, "weight_decay": 0.0}
        bench.run("final", cell(task="own"), {"lr": 3e-6}, seed, config=config, test={"accuracy": 0.5})
    report(bench.folder, say=lambda line: None)
    text = (bench.folder / "best.toml").read_text()
    found = tomllib.loads(text)["cell"][f"mezo/full/own/{MODEL}"]
    assert found == {
        "model": MODEL, "own": own, "targets": ["q.*", 'v"'], "eps": 1e-3, "num_train": 0, "lr": 3e-6, "seed": 1,
    }  # fmt: skip
    config = TuneConfig.from_json(found).resolved()
    assert (config.lr, config.targets, config.own["train"]) == (3e-6, ("q.*", 'v"'), own["train"])
    assert "test 0.500" in text


def test_best_toml_without_requests_tells_what_results_tell(small):
    for path in (small / "requests").iterdir():
        path.unlink()
    report(small, say=lambda line: None)
    cells = tomllib.loads((small / "best.toml").read_text())["cell"]
    assert cells[f"mezo/lora/sst2/{MODEL}"] == {"model": MODEL, "task": "sst2", "scheme": "lora", "lr": 3e-6}
    assert f"lozo/lora/sst2/{MODEL}" not in cells  # all diverged: there is no best


def test_names_of_cells_are_unique(tmp_path):
    bench = Bench(tmp_path / "b")
    for model in ("/a/m", "/b/m", "/c/n", "org/n"):
        for aligned in (True, False):
            for keep in (0.1, 0.5):
                bench.run("search", cell(aligned=aligned, **{"options.keep": keep}) | {"model": model}, {}, 0)
    found = names(load(bench.folder))
    assert len(found) == 16
    assert "mezo/full/sst2/n/keep=0.1" in found
    assert "mezo/full/sst2//a/m/unaligned/keep=0.5" in found


PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(blacklist_categories=("Cs",))), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.text(st.characters(blacklist_categories=("Cs",))), PLAIN)
def test_toml_round_trip(name, value):
    assert tomllib.loads(f"{key(name)} = {literal(value)}") == {name: value}


# --- pictures ---


def test_pareto_front():
    assert pareto([(2, 0.9), (1, 0.5), (1, 0.6), (3, 0.8), (1.5, 0.6)]) == [(1, 0.6), (2, 0.9)]


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=12))
def test_spread_keeps_order_gap_and_bounds(wanted):
    places = spread(wanted, 10.0, 0.0, 120.0)
    ordered = sorted(places)
    assert all(b - a >= 10 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert min(places) >= -1e-6
    assert max(places) <= 120 + 1e-6
    assert [places[i] for i in sorted(range(len(wanted)), key=lambda i: (wanted[i], i))] == ordered


def test_spread_leaves_free_places_alone():
    assert spread([30.0, 5.0, 90.0], 10.0, 0.0, 100.0) == [30.0, 5.0, 90.0]
    assert spread([1.0, 1.0, 1.0], 10.0, 0.0, 10.0) == [-5.0, 5.0, 15.0]  # no room: beyond both ends


def test_labels_do_not_overlap_in_a_crowd():
    anchors = [(40 + 3 * (i % 5), 150 + 6 * (i // 5)) for i in range(20)]
    area = Box(0, 0, 450, 300)
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    boxes = place(anchors, [(70.0, 12.0)] * 20, area, marks)
    assert all(box.inside(area) for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in [*boxes[:i], *marks])


def test_pictures_are_written_and_reproducible(small):
    first = report(small, say=lambda line: None)
    pictures = [path for path in first if path.parent.name == "figures"]
    assert {path.name for path in pictures if path.suffix == ".svg"} == {
        "front-sst2.svg", "curves-sst2-full-forwards.svg", "curves-sst2-full-seconds.svg",
        "curves-sst2-lora-forwards.svg", "curves-sst2-lora-seconds.svg",
    }  # fmt: skip
    before = {path: path.read_bytes() for path in pictures}
    assert all(data.startswith(b"\x89PNG") for path, data in before.items() if path.suffix == ".png")
    report(small, say=lambda line: None)
    assert {path: path.read_bytes() for path in pictures} == before


def test_without_matplotlib_the_rest_is_written(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = []
    written = report(small, say=said.append)
    assert written[-1] == small / "report.html"
    assert any("pip install 'gradless[plots]'" in line for line in said)
    assert not list((small / "figures").iterdir())


# --- the page ---


class Tags(HTMLParser):
    """Checks that tags nest, and collects ids and what would be loaded."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.loaded, self.names, self.links = [], [], [], Counter(), []

    def handle_startendtag(self, tag, attrs):
        self.attributes(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self.attributes(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def attributes(self, tag, attrs):
        self.names[tag] += 1
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.links += [value] if name in ("href", "xlink:href") else []
            self.loaded += [value] if name in ("src", "srcset", "data", "poster") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(path: Path) -> tuple[str, Tags]:
    text, tags = path.read_text(), Tags()
    tags.feed(text)
    tags.close()
    return text, tags


def test_the_page_is_self_contained_and_escaped(small):
    lines = (small / "results.jsonl").read_text().splitlines()
    evil = json.loads(lines[-1]) | {"id": "evil", "status": "failed", "reason": "<script>alert(1)</script>"}
    evil["cell"] = cell("<img src=x onerror=alert(1)>", task='"><b>task')
    (small / "results.jsonl").write_text("\n".join([*lines, json.dumps(evil)]) + "\n")
    report(small, say=lambda line: None)
    text, tags = parsed(small / "report.html")
    assert tags.open == []
    assert not {"script", "img", "link", "b", "iframe", "object"} & set(tags.names)
    assert tags.loaded == []
    assert "http" not in text
    assert "@import" not in text
    assert all(link.startswith("#") for link in tags.links)
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert tags.names["svg"] == 5
    assert "&lt;script&gt;" in text
    assert "small &amp; &lt;b&gt;bold&lt;/b&gt;" in text
    assert "[axes]" in text  # the grid
    assert "counts as two" in text


def test_the_page_tells_versions(small):
    folder = small / "runs" / "r0005"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"versions": {"torch": "9.9.9", "machine": "a <b> machine"}}))
    report(small, say=lambda line: None)
    text = (small / "report.html").read_text()
    assert "9.9.9" in text
    assert "a &lt;b&gt; machine" in text


# --- what is missing or broken ---


def test_missing_runs_are_counted(small):
    bench_requests = small / "requests"
    request = json.loads((bench_requests / "r0003.json").read_text())
    for n in (1, 2):
        (bench_requests / f"more{n}.json").write_text(json.dumps(request | {"id": f"more{n}"}))
    records = [json.loads(line) for line in (small / "results.jsonl").read_text().splitlines()]
    last = records.pop()
    (bench_requests / f"{last['id']}.json").unlink()  # a final run that was never begun
    (small / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    said = []
    report(small, say=said.append)
    assert "not complete: 3 runs have no result yet" in said
    assert "3 runs have no result yet" in (small / "report.html").read_text()


def test_a_complete_study_says_so(small):
    said = []
    report(small, say=said.append)
    assert said == ["36 runs: 28 done, 8 diverged"]


def test_an_empty_directory_is_refused(tmp_path):
    for prepare in (lambda: None, lambda: (tmp_path / "results.jsonl").write_text("\n")):
        prepare()
        with pytest.raises(BadInput, match="gradless bench") as caught:
            report(tmp_path, say=lambda line: None)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "tables").exists()


def test_a_damaged_grid_is_refused(small):
    (small / "grid.toml").write_text("name = ")
    with pytest.raises(BadInput, match=r"grid\.toml cannot be read"):
        report(small, say=lambda line: None)


def test_a_damaged_line_is_left_out(small):
    with (small / "results.jsonl").open("a") as file:
        file.write('{"id": "torn", "pha\n[]\n{"id": 1, "phase": "final"}\n')
    said = []
    report(small, say=said.append)
    assert any("3 damaged lines" in line for line in said)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", [], {}])
def test_odd_values_do_not_crash(tmp_path, value):
    bench = Bench(tmp_path / "b")
    odd = {name: value for name in (*costs(1, 1, 1), "curve", "threads", "reason")}
    for phase in ("search", "final", "zero-shot"):
        for part in (
            {"test": {"accuracy": value}, "dev": {"accuracy": value, "loss": value}},
            {"test": value, "dev": value},
        ):
            bench.run(phase, cell(), {"lr": 1e-6, "eps": None}, 1, **odd, **part, zero_shot=value)
    bench.run("final", cell("lozo"), {"lr": math.nan}, None, curve=[value, {"step": 1, "accuracy": value}, *curve(0.5)])
    report(bench.folder, say=lambda line: None)
    assert row(named(bench.folder, "accuracy"), "mezo") == [NOTHING]
    tomllib.loads((bench.folder / "best.toml").read_text())


def test_a_search_alone_is_reported(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("search", cell(), {"lr": 1e-6}, 0, dev={"accuracy": 0.6}, test={"accuracy": 0.9}, **costs(2, 1, 1e9))
    said = []
    report(bench.folder, say=said.append)
    assert "not complete: 3 runs have no result yet" in said
    assert row(named(bench.folder, "accuracy"), "mezo") == [NOTHING]
    assert tomllib.loads((bench.folder / "best.toml").read_text())["cell"][f"mezo/full/sst2/{MODEL}"]["lr"] == 1e-6


@given(st.text())
def test_slugs_are_safe_names(text):
    assert re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9._=-]*", slug(text))
