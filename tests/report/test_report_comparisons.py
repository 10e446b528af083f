"""Comparisons of methods: intervals, and equal budgets, on results worked out by hand."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys

import pytest
from scipy import stats

from gradless.report import load, report, tables
from gradless.report.bench import intervals
from gradless.report.bench.contests import contests, memory_contests, row_reader, spreads
from gradless.report.bench.intervals import Spread, interval, moderated, residual_variances, row_variance
from gradless.report.bench.study import Cell
from gradless.report.common.table import NOTHING
from report_bench_helpers import MODEL, Bench, cell, costs, curve, grid, named, row, study

# --- intervals ---


def test_two_methods_alone_have_the_paired_t_interval():
    a, b = [0.80, 0.85, 0.83], [0.78, 0.80, 0.74]
    spreads = residual_variances({"a": a, "b": b})
    computed = interval(a, b, (spreads["a"], spreads["b"]))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    low, high = stats.t.interval(0.95, 2, statistics.fmean(differences), stats.sem(differences))
    expected = (statistics.fmean(differences), low, high)
    assert (computed.difference, computed.low, computed.high) == pytest.approx(expected)
    assert computed.pairs == "seeds"


def test_a_seed_that_helps_all_alike_is_no_noise():
    rows = {name: [base, base + 0.1, base - 0.2] for name, base in (("a", 0.5), ("b", 0.6), ("c", 0.7))}
    assert max(spread.variance for spread in residual_variances(rows).values()) < 1e-12


def test_equal_variances_are_pooled_and_unequal_ones_stay_apart():
    draw = random.Random(1)
    alike = {n: Spread(0.0004 * draw.gammavariate(1, 1), 2.0) for n in range(200)}
    pooled = moderated(alike)
    assert max(s.variance for s in pooled.values()) < 2.5 * min(s.variance for s in pooled.values())
    assert min(s.freedom for s in pooled.values()) > 8
    unlike = {n: Spread(10.0 ** draw.uniform(-8, -1), 2.0) for n in range(200)}
    kept = moderated(unlike)
    assert max(s.freedom for s in kept.values()) < 3
    assert kept[max(unlike, key=lambda n: unlike[n].variance)].variance > 1e-2
    assert moderated({1: Spread(0.1, 2), 2: Spread(0.2, 2)}) == {1: Spread(0.1, 2), 2: Spread(0.2, 2)}


@pytest.mark.few(2)
@pytest.mark.parametrize("unequal", [1.0, 2.0])
def test_intervals_hold_in_nineteen_of_twenty_studies(unequal):
    draw, held, every = random.Random(3), 0, 0
    for _ in range(300):
        sizes = [0.02 * unequal ** draw.uniform(-1, 1) for _ in range(12)]
        values = {m: [draw.gauss(0, size) for _ in range(3)] for m, size in enumerate(sizes)}
        spreads = moderated(residual_variances(values))
        for m in range(0, 12, 2):
            computed = interval(values[m], values[m + 1], (spreads[m], spreads[m + 1]))
            held, every = held + (computed.low <= 0 <= computed.high), every + 1
    assert 0.91 < held / every < 0.98


def test_rows_that_seeds_share_widen_the_interval_and_rows_of_their_own_do_not():
    draw = random.Random(5)
    easy = {f"row {n}": draw.random() < 0.6 for n in range(200)}
    first = [{text: right or draw.random() < 0.2 for text, right in easy.items()} for _ in range(3)]
    second = [{text: draw.random() < 0.5 for text in easy} for _ in range(3)]
    shared = row_variance(first, second)
    each = [[one[text] - other[text] for one, other in zip(first, second, strict=True)] for text in easy]
    within = statistics.fmean(statistics.variance(row) for row in each)
    by_row = statistics.variance(statistics.fmean(row) for row in each)
    assert shared == pytest.approx((by_row - within / 3) / 200, rel=0.02)  # the variance between rows
    own = [
        [{f"{seed} {text}": right for text, right in one.items()} for seed, one in enumerate(part)]
        for part in (first, second)
    ]
    assert row_variance(*own) == pytest.approx(0.0, abs=1e-9)
    spread = Spread(1e-4, 2)
    narrow = interval([0.7] * 3, [0.5] * 3, (spread, spread))
    wide = interval([0.7] * 3, [0.5] * 3, (spread, spread), (first, second))
    freedom = (1e-4 / 3 * 2 + shared) ** 2 / (2 * (1e-4 / 3) ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(2e-4 / 3 + shared)
    assert wide.high - wide.difference == pytest.approx(half)
    assert narrow.high - narrow.difference == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(2e-4 / 3))
    assert wide.pairs == "seeds and test rows"


def test_without_any_spread_there_is_no_interval():
    assert interval([0.5] * 3, [0.4] * 3, (Spread(0.0, 2), Spread(0.0, 2))) is None


# --- contests ---


def test_test_counts_at_equal_forwards_and_dev_at_equal_seconds(tmp_path):
    bench = study(tmp_path, {"mezo": 0.7, "fo-adam": 0.9})
    loaded = load(bench.folder)
    (section,) = loaded.sections
    assert {one.split for one in contests(loaded, section, "forwards")} == {"test"}
    assert {one.split for one in contests(loaded, section, "seconds")} == {"dev"}
    assert row(named(bench.folder, "compare-forwards"), "sst2 · full, 120 forwards, test", "mezo")[3] == "yes"


def test_unequal_forwards_are_compared_on_dev_within_the_smallest(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1, 2))
    for seed in (1, 2):
        bench.run("final", cell(), {}, seed, curve=curve(0.5, 0.6, 0.7), test={"accuracy": 0.7}, forwards=120)
        bench.run("final", cell("lozo"), {}, seed, curve=curve(0.6, 0.62), test={"accuracy": 0.9}, forwards=80)
    (contest,) = contests(load(bench.folder), load(bench.folder).sections[0], "forwards")
    assert (contest.split, contest.budget) == ("dev", "80 forwards")
    assert contest.means[Cell(MODEL, "sst2", "full", "mezo")] == 0.6


def test_a_slow_method_is_compared_at_its_first_evaluation(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1))
    bench.run("final", cell(), {}, 1, curve=curve(0.5, 0.6, seconds=5), forwards=80)
    bench.run("final", cell("fzoo"), {}, 1, curve=curve(0.7, 0.8, seconds=50), forwards=80)
    (contest,) = contests(load(bench.folder), load(bench.folder).sections[0], "seconds")
    assert contest.budget == "50 seconds"
    assert sorted(contest.means.values()) == [0.6, 0.7]


def test_cells_that_lack_seeds_are_shown_and_not_ranked(tmp_path):
    bench = study(tmp_path, {"mezo": 0.7, "lozo": 0.8, "fo-adam": 0.9}, skip={("fo-adam", "sst2", 3)})
    table = named(bench.folder, "compare-forwards")
    label = "sst2 · full, 120 forwards, test"
    assert row(table, label, "fo-adam") == ["2 of 3 seeds", NOTHING, NOTHING, NOTHING]
    ranked = [(r[1].text, r[2].best) for r in table.rows if r[0].text == label]
    assert ranked == [("lozo", True), ("mezo", False), ("fo-adam", False)]  # the last is not ranked
    accuracy = named(bench.folder, "accuracy")
    assert accuracy.columns[3].group == "sst2"
    assert not next(r[3] for r in accuracy.rows if r[0].text == "fo-adam").best
    assert row(named(bench.folder, "reach-mezo"), "full", "fo-adam")[2] == "2 of 3 seeds"
    assert "fo-adam (sst2: 2 of 3 seeds)" in named(bench.folder, "ranks-forwards-full").caption
    assert "fo-adam · full on sst2: 2 of 3 seeds" in named(bench.folder, "compare-memory").caption


def test_cells_that_have_not_begun_are_counted_where_they_are_missing(tmp_path):
    bench = study(tmp_path, {"mezo": 0.7, "lozo": 0.8, "fo-adam": 0.9})
    bench.request("search", cell("fzoo"), {"lr": 1e-4}, 0)
    bench.request("final", cell("lezo"), {}, 1)
    assert "2 cells have no result yet and no row" in named(bench.folder, "compare-forwards").caption
    assert "fzoo, lezo (no result on any task)" in named(bench.folder, "ranks-forwards-full").caption
    whole = load(bench.folder)
    assert len(whole.waiting) == 2
    assert whole.missing() == 1 + 3 + 3  # a search and three finals of one cell, three finals of the other


def test_a_grid_without_seeds_has_the_usual_ones(tmp_path):
    bench = Bench(tmp_path / "b", grid='[base]\nmodel = "m"\n')
    bench.run("final", cell(), {}, 1, test={"accuracy": 0.9})
    whole = load(bench.folder)
    assert whole.seeds == [1, 2, 3]
    assert not any(map(whole.complete, whole.cells.values()))
    assert whole.missing() == 2


def test_lines_alone_say_which_seeds_there_are(tmp_path):
    bench = study(tmp_path, {"mezo": 0.7, "lozo": 0.8}, skip={("lozo", "mr", 2)})
    (tmp_path / "lines").mkdir()
    (bench.folder / "results.jsonl").rename(tmp_path / "lines" / "results.jsonl")
    table = named(tmp_path / "lines", "compare-forwards")
    assert row(table, "mr · full, 120 forwards, test", "lozo")[0] == "2 of 3 seeds"


def test_memory_counts_what_fits_whatever_its_scheme(tmp_path):
    bench = Bench(tmp_path / "b", grid=grid(1, 2))
    spec = {
        ("mezo", "full"): (0.6, 1.05),
        ("mezo", "lora"): (0.7, 1.04),
        ("fo-adam", "full"): (0.9, 3.0),
        ("lozo", "full"): (0.8, 0),
    }
    for (method, scheme), (level, peak) in spec.items():
        for seed in (1, 2):
            test = {"accuracy": level + 0.01 * seed}
            bench.run("final", cell(method, scheme), {}, seed, test=test, **costs(2, 1.0, peak * 1e9))
    table = named(bench.folder, "compare-memory")
    within = "1.1 \u00d7 inference"
    assert row(table, "sst2", within)[:4] == ["2", "mezo · lora", "0.715 ± 0.007", "mezo · full (+10.0)"]
    assert row(table, "sst2", "any memory")[:2] == ["3", "fo-adam · full"]
    assert len(table.rows) == 2  # as many fit in twice the memory as in 1.1 times
    assert "lozo · full on sst2: no memory measured" in table.caption
    assert [len(one.values) for one in memory_contests(load(bench.folder), load(bench.folder).sections[0])] == [2, 3]


def test_a_cell_within_several_multiples_of_memory_has_one_variance(tmp_path):
    levels = {"mezo": 0.70, "lozo": 0.72, "fzoo": 0.74, "lezo": 0.71, "zo-sign": 0.69, "fo-adam": 0.80}
    bench = study(tmp_path, levels, tasks=("sst2",), more=0.1)
    whole = load(bench.folder)
    section = whole.sections[0]
    nested, flat = memory_contests(whole, section), contests(whole, section, "forwards")
    assert [len(one.values) for one in nested] == [1, 3, 5, 6]
    *_, widest = spreads(nested)
    assert widest == spreads(flat)[0]  # not of more degrees of freedom than the runs have
    for one, variances in zip(nested, spreads(nested), strict=True):
        assert variances == {key: widest[key] for key in one.values}


def test_pairs_count_what_differs_and_is_not_told_apart(tmp_path):
    steady = study(tmp_path / "steady", {"mezo": 0.7, "lozo": 0.75, "fzoo": 0.76}, noise=0.001)
    noisy = study(tmp_path / "noisy", {"mezo": 0.7, "lozo": 0.75, "fzoo": 0.76}, noise=0.2)
    for bench, apart in ((steady, ["3", "3", "3", "2", "2", NOTHING]), (noisy, None)):
        got = row(named(bench.folder, "compare-pairs"), "equal forwards", "sst2 · full, test")
        assert got == apart if apart else int(got[4]) < int(got[3]) and got[5] != NOTHING


def predictions(bench: Bench, right, *, damage=None) -> None:
    for record in bench.records:
        folder = bench.folder / "runs" / record["id"]
        folder.mkdir(parents=True)
        lines = [
            json.dumps({"row": n, "text": f"row {n}", "gold": ["yes"], "after": {"right": one}})
            for n, one in enumerate(right(record))
        ]
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n" + (damage or ""))


def test_rows_are_paired_where_runs_keep_them(tmp_path):
    def bench_of(folder) -> Bench:
        bench = Bench(tmp_path / folder, grid=grid(1, 2, 3))
        for method, level in (("mezo", 6), ("lozo", 7), ("fzoo", 8)):
            for seed in (1, 2, 3):
                bench.run(
                    "final",
                    cell(method),
                    {},
                    seed,
                    test={"accuracy": (level + (seed + level) % 2) / 10},
                    forwards=80,
                    curve=curve(0.5),
                )
        return bench

    def right(record):
        return [n < round(10 * record["test"]["accuracy"]) for n in range(10)]

    kept, lost, damaged, other = (bench_of(name) for name in ("kept", "lost", "damaged", "other"))
    predictions(kept, right)
    predictions(damaged, right, damage='{"row": 9, "te')
    predictions(other, lambda record: [*right(record)[:-1], not right(record)[-1]])
    captions = [named(bench.folder, "compare-forwards").caption for bench in (kept, lost, damaged, other)]
    assert "paired over seeds and test rows." in captions[0]
    assert ["paired over seeds." in text for text in captions] == [False, True, True, True]
    rows = row_reader(load(kept.folder))(Cell(MODEL, "sst2", "full", "mezo"))
    assert [sum(one.values()) for one in rows] == [7, 6, 7]


# --- what is missing ---


def test_without_scipy_the_rest_is_written_and_said(small, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert not intervals.available()
    lines = []
    written = report(small, say=lines.append)
    assert any("scipy is not installed: pip install 'gradless[bench]'" in line for line in lines)
    assert "accuracy.md" in {path.name for path in written}
    assert not [path for path in written if path.name.startswith(("compare-", "ranks-"))]


def test_an_empty_study_has_no_comparisons(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("search", cell(), {"lr": 1e-6}, 0, dev={"accuracy": 0.6})
    names = {table.name for table in tables(bench.folder)}
    assert not [name for name in names if name.startswith(("ranks-", "reach-", "compare-pairs", "compare-memory"))]
    assert row(named(bench.folder, "compare-forwards"), "sst2 · full, dev", "mezo")[0] == "0 of 3 seeds"
