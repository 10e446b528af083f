"""Ranks of methods over tasks, and forwards to MeZO's end, on results worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy import stats

from gradless.report import load, report, tables
from gradless.report.bench.ranks import critical_difference, friedman, full_block, rankings
from report_bench_helpers import METHODS, Bench, cell, costs, curve, grid, named, study

# --- ranks ---


def test_ranks_agree_with_scipy_and_demsar(tmp_path):
    # Demšar 2006, table 5: q of 4 and 10 classifiers at 5 % are 2.569 and 3.164.
    assert critical_difference(4, 14) == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), rel=1e-3)
    assert critical_difference(10, 5) == pytest.approx(3.164 * math.sqrt(10 * 11 / 30), rel=1e-3)
    blocks = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}, {"a": 1.5, "b": 1.5, "c": 3}]
    assert friedman(blocks) == pytest.approx(
        stats.friedmanchisquare(*zip(*(b.values() for b in blocks), strict=True)).pvalue
    )
    assert friedman([{"a": 1.5, "b": 1.5}] * 3) is None


def test_equals_share_their_ranks_and_the_table_names_the_tasks(tmp_path):
    bench = study(tmp_path, {"mezo": 0.7, "lozo": 0.7, "fzoo": 0.9, "fo-adam": 0.95}, noise=0.0)
    table = named(bench.folder, "ranks-forwards-full")
    assert [(r[0].text, r[1].text) for r in table.rows] == [
        ("fo-adam", "1.00"),
        ("fzoo", "2.00"),
        ("lozo", "3.50"),
        ("mezo", "3.50"),
    ]
    assert "tasks: cr, mr, sst2" in table.caption
    assert "p = " in table.caption


def test_means_of_one_total_are_equal_whatever_their_last_bits(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1, 2, 3))
    right = {"mezo": (615, 626, 694), "lozo": (612, 628, 695), "fo-adam": (700, 700, 700)}
    means = [statistics.fmean(count / 872 for count in counts) for counts in right.values()]
    assert means[0] != means[1]
    for task in ("sst2", "mr", "cr"):
        for method, counts in right.items():
            for seed, count in enumerate(counts, 1):
                extra = costs(2, 1.0, 1e9) | {"forwards": 120}
                test, line = {"accuracy": count / 872}, curve(count / 872)
                bench.run("final", cell(method, task=task), {}, seed, test=test, curve=line, **extra)
    (ranking,) = rankings(load(bench.folder), *load(bench.folder).sections, "forwards")
    assert ranking.ranks == {"fo-adam": 1.0, "mezo": 2.5, "lozo": 2.5}
    marks = {r[0].text: r[1].best_zo for r in named(bench.folder, "accuracy").rows}
    assert marks["mezo"] == marks["lozo"] is True


@pytest.mark.parametrize(
    ("levels", "tasks"),
    [({"mezo": 0.7, "lozo": 0.8}, ("sst2", "mr", "cr")), (dict.fromkeys(METHODS, 0.7) | {"mezo": 0.6}, ("sst2", "mr"))],
)
def test_too_few_tasks_or_methods_are_said_and_not_drawn(tmp_path, levels, tasks):
    bench = study(tmp_path, levels, tasks=tasks)
    caption = named(bench.folder, "ranks-forwards-full").caption
    assert "too few, Friedman's test needs three of both" in caption
    written = report(bench.folder, say=lambda line: None)
    assert not [path for path in written if path.name.startswith("ranks-") and path.suffix == ".png"]
    assert "too few" in (bench.folder / "report.html").read_text()


def test_the_largest_full_block_is_ranked():
    everything = {task: dict.fromkeys("abcd", 0.0) for task in ("x", "y", "z")}
    assert full_block(everything) == (["x", "y", "z"], ["a", "b", "c", "d"])
    assert full_block(everything | {"new": {"a": 0.0}}) == (["x", "y", "z"], ["a", "b", "c", "d"])
    some = {task: {label: 0.0 for label in "abcd" if (task, label) != ("y", "c")} for task in ("x", "y", "z")}
    assert full_block(some) == (["x", "y", "z"], ["a", "b", "d"])
    assert full_block({}) == ([], [])


def test_a_diagram_is_drawn_with_its_groups(tmp_path):
    levels = {"mezo": 0.60, "lozo": 0.61, "fzoo": 0.7, "fo-adam": 0.9}
    tasks = ("sst2", "mr", "cr", "sst5", "agnews", "mnli")
    bench = study(tmp_path, levels, tasks=tasks, noise=0.0)
    loaded = load(bench.folder)
    (ranking,) = rankings(loaded, loaded.sections[0], "forwards")
    assert ranking.order == ["fo-adam", "fzoo", "lozo", "mezo"]
    assert ranking.critical == pytest.approx(1.915, abs=1e-3)
    assert ranking.alike == [["fo-adam", "fzoo"], ["fzoo", "lozo"], ["lozo", "mezo"]]
    written = report(bench.folder, say=lambda line: None)
    (svg,) = [path for path in written if path.name == "ranks-forwards-full.svg"]
    text = svg.read_text()
    assert all(f"{label}  {rank:.2f}" in text for label, rank in ranking.ranks.items())
    assert "critical difference 1.91" in text


# --- forwards to MeZO's end ---


def test_the_first_evaluation_that_reaches_mezo_counts(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1, 2))
    lines = {
        "mezo": (0.5, 0.7, 0.6, 0.65),
        "lozo": (0.4, 0.64, 0.66, 0.5),
        "fzoo": (0.65, 0.1, 0.1, 0.1),
        "lezo": (0.1, 0.2, 0.3, 0.4),
    }
    for method, values in lines.items():
        for seed in (1, 2):
            shift = 0.01 * (-1) ** seed
            bench.run(
                "final",
                cell(method),
                {},
                seed,
                curve=curve(*(value + shift for value in values)),
                test={"accuracy": 0.6},
            )
    table = named(bench.folder, "reach-mezo")
    assert {r[1].text: [i.text for i in r[2:]] for r in table.rows} == {
        "lozo": ["0.75", "0 of 1"],
        "mezo": ["0.50", "1 of 1"],
        "fzoo": ["0.25", "1 of 1"],
        "lezo": ["not reached", "0 of 1"],
    }
    shares = {record["label"]: record["share_of_mezo"] for record in table.records}
    assert shares == {"lozo": 0.75, "mezo": 0.5, "fzoo": 0.25, "lezo": None}


def test_without_mezo_there_is_no_such_table(tmp_path):
    bench = study(tmp_path, {"lozo": 0.7, "fzoo": 0.8})
    assert "reach-mezo" not in {table.name for table in tables(bench.folder)}
