"""The search for a cell's point: what wins, and which points go on to the next rung."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import pytest

from gradless.bench import grid
from gradless.bench.search import Search
from gradless.errors import BadInput
from grid_helpers import cost, read
from search_helpers import CELL, HALVED, ONE, RATES, asked, bowl, finish, line, rates

# ---------------------------------------------------------------------------------------------------------------
# what wins


def losses(search: Search, values: dict[tuple[float, int], list[float | None]]) -> dict[str, grid.Point | None]:
    runs = [one for one in search.possible if one.phase == grid.SEARCH]
    return search.choose([line(one, *values[one.point["lr"], one.seed]) for one in runs])


TWO = ONE.replace("search_seeds = [0]", "search_seeds = [0, 100]").replace(RATES, "[1e-6, 3e-6]")


def test_two_search_seeds_unless_the_grid_says_otherwise(tmp_path):
    assert read(tmp_path, ONE.replace("search_seeds = [0]\n", "")).search_seeds == (0, 100)
    assert {one.seed for one in asked(TWO, tmp_path).possible if one.phase == grid.SEARCH} == {0, 100}


def test_a_point_is_the_mean_of_the_last_two_evaluations_over_all_search_seeds(tmp_path):
    values = {
        (1e-6, 0): [0.1, 2.0, 2.0],  # the best evaluation of all, which does not last
        (1e-6, 100): [2.0, 2.0, 2.0],
        (3e-6, 0): [9.0, 1.0, 3.0],
        (3e-6, 100): [9.0, 2.0, 1.8],
    }
    assert losses(asked(TWO, tmp_path), values) == {CELL: {"lr": 3e-6}}
    values[3e-6, 100] = [9.0, 2.0, 2.1]
    assert losses(asked(TWO, tmp_path), values) == {CELL: {"lr": 1e-6}}
    best = TWO.replace("\nbudget", '\njudge = "best"\nbudget')
    values[1e-6, 0] = [3.0, 0.1, 9.0]
    assert losses(asked(best, tmp_path), values) == {CELL: {"lr": 1e-6}}


def test_no_choice_before_every_seed_is_finished(tmp_path):
    search = asked(TWO, tmp_path)
    runs = [one for one in search.possible if one.phase == grid.SEARCH]
    lines = [line(one, 1.0) for one in runs]
    assert search.choose(lines)
    for missing in runs:
        assert search.choose([one for one in lines if one["id"] != missing.id]) == {}


@pytest.mark.parametrize("judge", ["last", "best"])
@pytest.mark.parametrize(
    "bad",
    [{"status": "diverged"}, {"status": "failed"}, {"values": [0.1, None]}, {"values": [0.1, math.inf]}],
    ids=["diverged", "failed", "no loss at the end", "infinite at the end"],
)
def test_one_bad_run_keeps_a_point_from_winning(tmp_path, judge, bad):
    search = asked(TWO.replace("\nbudget", f'\njudge = "{judge}"\nbudget'), tmp_path)
    runs = [one for one in search.possible if one.phase == grid.SEARCH]
    lines = {(one.point["lr"], one.seed): line(one, 0.1 if one.point["lr"] == 1e-6 else 5.0) for one in runs}
    assert search.choose(lines.values()) == {CELL: {"lr": 1e-6}}
    (one,) = (one for one in runs if (one.point["lr"], one.seed) == (1e-6, 100))
    lines[1e-6, 100] = line(one, 0.1, 0.1)
    lines[1e-6, 100] |= (
        {"status": bad["status"]} if "status" in bad else {"curve": [{"loss": v} for v in bad["values"]]}
    )
    assert search.choose(lines.values()) == {CELL: {"lr": 3e-6}}


def test_metrics_are_judged_like_losses_and_equal_ones_by_loss(tmp_path):
    search = asked(ONE.replace('"loss"', '"accuracy"'), tmp_path)
    runs = [one for one in search.possible if one.phase == grid.SEARCH]
    assert search.choose([line(one, 1.0, accuracy=a) for one, a in zip(runs, (0.5, 0.7, 0.6), strict=True)]) == {
        CELL: {"lr": 3e-6}
    }
    assert search.choose([line(one, loss, accuracy=0.5) for one, loss in zip(runs, (2.0, 1.5, 1.0), strict=True)]) == {
        CELL: {"lr": 1e-5}
    }
    assert search.choose([line(one, 1.0, accuracy=0.5) for one in runs]) == {CELL: {"lr": 1e-6}}


PUBLISHED = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["study", "frontier", "auto", "checkpointed", "lora-rate"])
def test_published_grids_choose_what_they_chose(name):
    """Against the final runs of the result file, and against best.toml."""
    search = Search(grid.read(PUBLISHED / "grids" / f"{name}.toml"), cost)
    lines = [json.loads(text) for text in (PUBLISHED / "results" / f"{name}.jsonl").read_text().splitlines()]
    chosen = search.choose(lines)
    ran = {grid.cell_name(one["cell"]): one["point"] for one in lines if one["phase"] == "final"}
    assert {cell: point for cell, point in chosen.items() if point is not None} == ran
    assert ran
    best = tomllib.loads((PUBLISHED / "results" / f"{name}-best.toml").read_text())["cell"]
    for cell, point in ran.items():
        assert all(best[cell].get(key, value) == value for key, value in point.items() if "." not in key)


# ---------------------------------------------------------------------------------------------------------------
# successive halving


def test_as_many_go_on_as_cost_no_more_and_at_least_two(tmp_path):
    search = asked(HALVED, tmp_path)
    lines = finish(search, bowl(1e-6))
    assert len(rates(lines)) == 5
    assert rates(lines, 1) == [1e-6, 3e-6]  # 5 * 20 // 50
    assert {one.config.steps for one in search.possible if one.rung == 1} == {25}
    lines = finish(asked(HALVED.replace("[20, 50]", "[10, 12, 100]"), tmp_path), bowl(1e-6))
    assert [len(rates(lines, rung)) for rung in range(3)] == [5, 4, 2]


def test_the_last_rung_has_the_last_word(tmp_path):
    def loss(one: grid.Request) -> float:
        return bowl(3e-6 if one.rung == 0 else 1e-6)(one)

    search = asked(HALVED.replace("20, 50", "30, 50"), tmp_path)
    lines = finish(search, loss)
    assert rates(lines, 1) == [1e-6, 3e-6, 1e-5]
    assert search.choose(lines) == {CELL: {"lr": 1e-6}}


def test_the_next_ones_step_in_where_all_that_went_on_diverged(tmp_path):
    def loss(one: grid.Request) -> float:
        return math.inf if one.rung and one.point["lr"] > 5e-7 else bowl(1e-5)(one)

    search = asked(HALVED, tmp_path)
    lines = finish(search, loss)
    assert rates(lines, 1) == [3e-7, 1e-6, 3e-6, 1e-5]
    assert search.choose(lines) == {CELL: {"lr": 3e-7}}
    assert search.choose(finish(search, lambda one: math.inf)) == {CELL: None}


def test_a_rung_of_one_amount_is_the_search_as_it_was(tmp_path):
    one, two = (asked(ONE.replace("= 200", f"= 200, search = {search}"), tmp_path) for search in ("50", "[50]"))
    assert [run.id for run in one.possible] == [run.id for run in two.possible]


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("[50, 20]", "give amounts that rise"),
        ("[20, 20]", "give amounts that rise"),
        ("[]", "give amounts that rise"),
        ("0", "search is 0: give a whole number of at least 1"),
        ("[20, 21]", r"cell mezo/full.*search has 20 and 21, which are 10 steps both"),
    ],
)
def test_rungs_that_are_none(tmp_path, search, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        asked(ONE.replace("= 200", f"= 200, search = {search}"), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("search_seed = 7", r"search_seed is now a list: write search_seeds = \[7, 100\]"),
        ("search_seeds = [1, 1]", "one seed is there twice"),
        ("search_seeds = []", "search_seeds is .*: give a list"),
        ('judge = "lats"', "unknown judge 'lats': did you mean 'last'"),
        ("extend = 0", "extend is 0: give"),
        ('extend = "yes"', "extend is 'yes': give"),
    ],
)
def test_bad_keys_of_the_search(tmp_path, key, sentence):
    text = ONE.replace("search_seeds = [0]\n", "")
    with pytest.raises(BadInput, match=sentence):
        asked(key + text, tmp_path)
