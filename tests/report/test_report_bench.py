"""The report of a benchmark, on written results: every number is checked against one worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest

from gradless.report import load, tables
from gradless.report.bench.selection import choose
from gradless.report.bench.study import Cell
from gradless.report.common.table import NOTHING, markdown
from report_bench_helpers import MODEL, Bench, cell, costs, curve, grid, named, row

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
    assert row(table, "lozo") == ["0.700 ± 0.000 (2 of 3 seeds, 1 diverged)"]
    assert row(table, "zero-shot") == [NOTHING]


def test_the_untouched_model_alone_is_the_best_of_nothing(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("zero-shot", {**cell(), "method": "zero-shot", "scheme": "none"}, {}, 1, zero_shot={"accuracy": 0.5})
    bench.run("search", cell(), {}, 0)
    table = named(bench.folder, "accuracy")
    assert row(table, "zero-shot")[0].startswith("0.500")
    assert not table.rows[0][1].best


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
    bench = Bench(tmp_path / "b", grid=grid(1))
    for task, metric in (("squad", "token_f1"), ("own", "accuracy"), ("no-such-task", "accuracy")):
        test = {"accuracy": 0.1, "token_f1": 0.2, "exact_match": 0.3, metric: 0.6}
        bench.run("final", cell(task=task), {}, 1, test=test)
    table = named(bench.folder, "accuracy")
    assert row(table, "mezo") == ["0.600"] * 3
    assert "token_f1 (squad)" in table.caption


def test_zero_shot_falls_back_on_the_final_runs(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1, 2))
    for seed, value in ((1, 0.5), (2, 0.6)):
        bench.run("final", cell(), {}, seed, zero_shot={"accuracy": value}, test={"accuracy": 0.7})
        bench.run("final", cell("lozo"), {}, seed, zero_shot={"accuracy": value}, test={"accuracy": 0.7})
    assert row(named(bench.folder, "accuracy"), "zero-shot") == [f"0.550 ± {statistics.stdev([0.5, 0.6]):.3f}"]


def test_zero_shot_has_a_row_for_each_way_of_asking(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1))
    for chat, value in ((True, 0.6), (False, 0.5)):
        bench.run("zero-shot", cell("zero-shot", "none", chat=chat), {}, 1, test={"accuracy": value})
        bench.run("final", cell(chat=chat), {}, 1, test={"accuracy": value + 0.1})
    table = named(bench.folder, "accuracy")
    assert row(table, "zero-shot (chat true)") == ["0.600"]
    assert row(table, "zero-shot (chat false)") == ["0.500"]
    assert row(table, "mezo (chat true)") == ["0.700"]


@pytest.mark.parametrize("told", ["by the line", "by its request"])  # lines of older releases lack the axis
def test_every_untouched_model_of_an_axis_has_a_row(tmp_path, told):
    bench = Bench(tmp_path / "b", grid=grid(1))
    for dtype, value in (("float32", 0.6), ("bfloat16", 0.5)):
        untouched = cell("zero-shot", "none", **({"dtype": dtype} if told == "by the line" else {}))
        bench.run("zero-shot", untouched, {}, 1, test={"accuracy": value}, config={"dtype": dtype})
        bench.run("final", cell(dtype=dtype), {}, 1, test={"accuracy": value + 0.1})
    table = named(bench.folder, "accuracy")
    assert row(table, "zero-shot (dtype float32)") == ["0.600"]
    assert row(table, "zero-shot (dtype bfloat16)") == ["0.500"]


def test_models_get_tables_of_their_own(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1))
    for model, value in (("org/a", 0.6), ("b", 0.7)):
        bench.run("final", cell() | {"model": model}, {}, 1, test={"accuracy": value})
    assert row(named(bench.folder, "accuracy-org-a"), "mezo") == ["0.600"]
    assert row(named(bench.folder, "accuracy-b"), "mezo") == ["0.700"]


# --- cost ---


def test_cost_is_in_ratios_to_inference_and_of_steps_timed_side_by_side_to_mezo(small, tmp_path):
    table = named(small, "cost")
    assert [column.flat for column in table.columns][:2] == ["Scheme", "Method"]
    assert row(table, "full", "fo-adam") == ["16", "100", "3", "2.00", NOTHING, "4.00", "4.00"]
    assert row(table, "full", "mezo") == ["16", "100", "2", "1.00", NOTHING, "1.05", "1.05"]
    bench = Bench(tmp_path / "b")
    for method, seconds in (("mezo", 1.0), ("fo-adam", 2.0)):
        bench.run("search", cell(method), {}, 0, **costs(2, seconds, 0, 0), side_by_side=True)
    table = named(bench.folder, "cost")
    assert row(table, "fo-adam") == ["16", NOTHING, "2", "2.00", "2.00", NOTHING, NOTHING]
    assert row(table, "mezo") == ["16", NOTHING, "2", "1.00", "1.00", NOTHING, NOTHING]


def test_cost_without_mezo_or_memory_has_gaps(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("search", cell("lozo"), {}, 0, **costs(2, 1.0, 0, 0))
    assert row(named(bench.folder, "cost"), "lozo") == ["16", NOTHING, "2", "1.00", NOTHING, NOTHING, NOTHING]


def test_a_ratio_to_mezo_needs_both_timed_side_by_side(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("final", cell(), {}, 1, **costs(2, 9.0, 0, 0))
    bench.run("final", cell("fo-adam"), {}, 1, **costs(2, 1.0, 0, 0), side_by_side=True)
    assert row(named(bench.folder, "cost"), "fo-adam")[4] == NOTHING


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
    bench.request("final", cell(), {axis: best}, 1)  # the search has ended
    choice = choose(load(bench.folder), Cell(MODEL, "sst2", "full", "mezo"))
    assert choice.point == {axis: best}
    assert choice.edges == ({axis: edge} if edge else {})
    (row,) = named(bench.folder, "hyper-parameters").rows
    assert row[1].warn == bool(edge)
    assert (edge or "") in row[1].text
    assert ("tried" in row[1].text) == bool(edge)


def test_without_finals_the_grid_says_what_selects(tmp_path):
    for select, lr in (("loss", 1e-6), ("accuracy", 1e-5), ("metric", 1e-5)):
        bench = Bench(tmp_path / select, grid=f'select = "{select}"\n')
        bench.run("search", cell(), {"lr": 1e-6}, 0, dev={"accuracy": 0.5, "loss": 0.1})
        bench.run("search", cell(), {"lr": 1e-5}, 0, dev={"accuracy": 0.6, "loss": 0.2})
        bench.run("search", cell(), {"lr": 1e-4}, 0, dev={"accuracy": math.nan, "loss": None})
        assert choose(load(bench.folder), Cell(MODEL, "sst2", "full", "mezo")).point == {"lr": lr}


# --- options and alignment ---


def test_an_axis_of_the_grid_gets_its_table(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1, 2))
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
    bench = Bench(tmp_path / "b", grid=grid(1, 2))
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
