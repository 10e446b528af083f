"""The search for a cell's point: what wins, which points go on, how axes grow, and that order does not matter."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_helpers import GRID, Place
from gradless.bench import grid, grid_file, results
from gradless.bench.runner import Outcome
from gradless.bench.search import HIGHEST, LOWEST, Search
from gradless.errors import BadInput
from grid_helpers import SMALL, cost, read

ONE = SMALL.replace('["mezo", "fo-adam"]', '["mezo"]').replace('["full", "lora"]', '["full"]')
ONE = ONE.replace('"accuracy"', '"loss"')
CELL = "mezo/full/sst2/tiny-llama"
RATES = "[1e-6, 3e-6, 1e-5]"
Loss = Callable[[grid.Request], float]


def line(one: grid.Request, *losses: float | None, status: str = "done", **dev: float) -> dict[str, Any]:
    """A finished run with these dev losses after its evaluations."""
    told = {name: value for name, value in one.to_json().items() if name != "config"}
    curve = [{"step": number, "loss": loss, **dev} for number, loss in enumerate(losses, 1)]
    best = min((loss for loss in losses if loss is not None), default=None)
    return json.loads(json.dumps({**told, "status": status, "dev": {"loss": best, **dev}, "curve": curve}))


def asked(text: str, folder: Path) -> Search:
    return Search(read(folder, text), cost)


def finish(search: Search, loss: Loss, *, seed: int = 0, order: int = 0) -> list[dict[str, Any]]:
    """Lines of all runs that the search asks for until it has what it wants, in some order of finishing."""
    shuffled = random.Random(order)
    lines: dict[str, dict[str, Any]] = {}
    while left := [one for one in search.standing(lines.values()).wanted if one.id not in lines]:
        shuffled.shuffle(left)
        for one in left[: 1 + order % 3]:
            value = loss(one) if one.phase == grid.SEARCH else 1.0
            lines[one.id] = line(one, value, value) if math.isfinite(value) else line(one, status="diverged")
    return list(lines.values())


def bowl(best: float) -> Loss:
    """A loss that is least at a rate."""
    return lambda one: 1 + abs(math.log10(one.point["lr"] / best))


def rates(lines: list[dict[str, Any]], rung: int = 0) -> list[float]:
    return sorted({one["point"]["lr"] for one in lines if one["phase"] == "search" and one["rung"] == rung})


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

FIVE = "[1e-7, 3e-7, 1e-6, 3e-6, 1e-5]"
HALVED = ONE.replace(RATES, FIVE).replace("{ forwards = 200 }", "{ forwards = 200, search = [20, 50] }")


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


# ---------------------------------------------------------------------------------------------------------------
# axes that grow

GROWING = "extend = true" + ONE


@pytest.mark.parametrize(
    ("best", "tried", "edge"),
    [
        (3e-6, [1e-6, 3e-6, 1e-5], None),
        (1e-5, [1e-6, 3e-6, 1e-5, 3.2e-5], None),
        (3e-5, [1e-6, 3e-6, 1e-5, 3.2e-5, 1e-4], None),
        (1e-3, [1e-6, 3e-6, 1e-5, 3.2e-5, 1e-4], HIGHEST),
        (1e-6, [3.2e-7, 1e-6, 3e-6, 1e-5], None),
        (1e-9, [1e-7, 3.2e-7, 1e-6, 3e-6, 1e-5], LOWEST),
    ],
)
def test_an_axis_grows_until_its_best_value_is_inside(tmp_path, best, tried, edge):
    search = asked(GROWING, tmp_path)
    lines = finish(search, bowl(best))
    assert rates(lines) == tried
    state = search.states(lines)[CELL]
    assert state.finished
    assert state.edges == ({"lr": edge} if edge else {})
    assert len(search.standing(lines).edges) == bool(edge)
    assert {one["extended"] for one in lines if one["point"].get("lr") in (1e-6, 3e-6, 1e-5)} == {False}
    assert all(one["extended"] for one in lines if one["point"].get("lr") not in (None, 1e-6, 3e-6, 1e-5))


def test_a_limit_of_ones_own(tmp_path):
    lines = finish(asked(GROWING.replace("true", "4"), tmp_path), bowl(1.0))
    assert rates(lines)[3:] == [3.2e-5, 1e-4, 3.2e-4, 1e-3]


def test_no_axis_grows_unless_asked_nor_one_with_a_single_value(tmp_path):
    assert rates(finish(asked(ONE, tmp_path), bowl(1e-3))) == [1e-6, 3e-6, 1e-5]
    single = GROWING.replace(RATES, '[1e-6]\neps = [1e-3, "auto"]'.replace(', "auto"', ""))
    assert all(one.phase != grid.SEARCH for one in asked(single, tmp_path).possible)


def test_a_plateau_does_not_grow_an_axis(tmp_path):
    """Of equal points the one that was asked first wins, so that the file's order decides."""
    lines = finish(asked(GROWING, tmp_path), lambda one: 1.0 if one.point["lr"] >= 3e-6 else 2.0)
    assert rates(lines) == [1e-6, 3e-6, 1e-5]


def test_where_all_diverge_the_rate_falls(tmp_path):
    search = asked(GROWING, tmp_path)
    lines = finish(search, lambda one: math.inf if one.point["lr"] > 5e-7 else 1.0)
    assert search.choose(lines) == {CELL: {"lr": 3.2e-7}}
    assert rates(finish(search, lambda one: math.inf))[:2] == [1e-7, 3.2e-7]
    assert search.choose(finish(search, lambda one: math.inf)) == {CELL: None}


def test_axes_that_are_not_positive_or_whole_grow_in_their_own_way(tmp_path):
    text = GROWING.replace(f"lr = {RATES}", "weight_decay = [0.0, 0.1]\nqueries = [1, 2]")
    tried = {(one.point["weight_decay"], one.point["queries"]) for one in asked(text, tmp_path).possible if one.point}
    assert sorted({decay for decay, _ in tried}) == [0.0, 0.1, 0.2, 0.3]  # no decay below 0
    assert sorted({queries for _, queries in tried}) == [1, 2, 4, 8]  # nor half a query
    assert all(isinstance(queries, int) for _, queries in tried)


def test_only_the_line_through_the_best_point_grows(tmp_path):
    text = GROWING.replace(RATES, f"{RATES}\neps = [1e-3, 1e-2]")

    def loss(one: grid.Request) -> float:
        return bowl(3e-5)(one) + abs(math.log10(one.point["eps"]) + 2.6)

    lines = finish(asked(text, tmp_path), loss)
    added = {(one["point"]["lr"], one["point"]["eps"]) for one in lines if one.get("extended")}
    # The best are in turn (1e-5, 1e-3), (3.2e-5, 1e-3); 1e-2 is better than 1e-4 and was tried at 1e-5.
    assert added == {(1e-5, 1e-4), (3.2e-5, 1e-3), (1e-4, 1e-3), (3.2e-5, 1e-4), (3.2e-5, 1e-2)}


def test_a_later_rung_grows_too_and_new_points_join_there(tmp_path):
    def loss(one: grid.Request) -> float:
        return bowl(1e-6 if one.rung == 0 else 1e-3)(one)

    text = "extend = 1" + HALVED.replace(FIVE, "[1e-7, 3e-7, 1e-6]").replace("20, 50", "40, 50")
    search = asked(text, tmp_path)
    lines = finish(search, loss)
    assert rates(lines) == [1e-7, 3e-7, 1e-6, 3.2e-6]
    assert rates(lines, 1) == [3e-7, 1e-6, 3.2e-6]
    late = asked(text.replace("3e-7, 1e-6]", "3e-7, 1e-6, 3e-6]").replace("40, 50", "30, 50"), tmp_path)
    lines = finish(late, lambda one: bowl(1e-6 if one.rung == 0 else 1e-3)(one))
    assert 9.3e-6 in rates(lines, 1)
    assert 9.3e-6 not in rates(lines)


# ---------------------------------------------------------------------------------------------------------------
# the same, whoever runs it


WHOLE = "extend = true" + HALVED.replace("[0]", "[0, 100]").replace('["mezo"]', '["mezo", "lozo"]')


@pytest.mark.parametrize("best", [1e-6, 1e-4, 1e-9])
def test_any_order_of_finishing_asks_for_the_same_runs(tmp_path, best):
    search = asked(WHOLE, tmp_path)

    def loss(one: grid.Request) -> float:
        noise = random.Random(one.id).gauss(0, 0.05)
        return math.inf if one.point["lr"] > 40 * best else bowl(best)(one) + noise

    ended = [{one["id"] for one in finish(search, loss, order=order)} for order in range(12)]
    assert all(ids == ended[0] for ids in ended)
    assert ended[0] <= {one.id for one in search.possible}


def test_every_run_that_may_be_asked_for_is_known(tmp_path):
    text = WHOLE.replace(FIVE, "[1e-6, 1e-5]\neps = [1e-3, 1e-2]").replace(', "lozo"', "")
    search = asked(text, tmp_path)
    known = {one.id for one in search.possible}
    assert len(known) == 3 + 36 * (2 * 2 + 3)  # (2 + 2 + 2)^2 points, two rungs of two seeds, three final runs
    for lr, eps in itertools.product((1e-9, 1e-6, 1e-3), (1e-6, 3e-3, 1.0)):

        def loss(one: grid.Request, lr: float = lr, eps: float = eps) -> float:
            return bowl(lr)(one) + abs(math.log10(one.point["eps"] / eps))

        assert {one["id"] for one in finish(search, loss)} <= known


def test_what_is_expected_covers_the_rungs_to_come(tmp_path):
    search = asked(HALVED, tmp_path)
    standing = search.standing([])
    assert len([one for one in standing.wanted if one.phase == grid.SEARCH]) == 5
    assert [(one.phase, one.rung) for one in standing.expected] == [("search", 1)] * 2 + [("final", 0)] * 3
    assert search.standing(finish(search, bowl(1e-6))).expected == []


# The fake runs of these have their best rate at 1e-3.
LADDER = "extend = true" + GRID.replace("[0]", "[0, 100]").replace("= 20 }", "= 60, search = [20, 40] }").replace(
    "1e-4, 1e-3, 1e-2", "1e-5, 1e-4"
)


def test_workers_search_and_extend_to_the_same_results(tmp_path):
    alone, place = Place(tmp_path / "alone", LADDER), Place(tmp_path / "shared", LADDER)
    outcome = alone.bench()
    # Each cell: 1e-5 to 1e-2 on the first rung, two of them on the second.
    assert outcome.total == outcome.done == 2 + 2 * (4 * 2 + 2 * 2 + 2)
    assert {one["point"]["lr"] for one in alone.lines if one["phase"] == "final"} == {1e-3}
    ends: list[Outcome] = []
    others = [threading.Thread(target=lambda: ends.append(place.bench(workers=2))) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert ends == [outcome] * 2
    assert place.table() == alone.table()
    assert len(place.started) == len(set(place.started)) == outcome.total


def test_an_extended_search_is_resumed_reused_and_grows_in_place(tmp_path):
    place = Place(tmp_path / "a", LADDER)
    total = place.bench().total
    before = place.started
    assert place.bench().total == total
    assert place.started == before
    other = Place(tmp_path / "b", LADDER)
    assert other.bench(known=[place.out / results.RESULTS]).total == total
    assert other.started == []
    # With 1e-2 and 2e-3 in the file the axis has another ratio, so that what it added is none of the new grid's.
    place.grid.write_text(LADDER.replace("1e-5, 1e-4", "1e-5, 1e-4, 2e-3"))
    grown = place.bench()
    assert grown.failed == 0
    assert {one["id"] for one in place.lines} == {path.stem for path in (place.out / "requests").iterdir()}
    place.grid.write_text(LADDER.replace("1e-5, 1e-4", "1e-5, 1e-4").replace("evaluations = 2", "evaluations = 1"))
    with pytest.raises(BadInput, match="holds another grid"):
        place.bench()


def test_a_dry_run_says_what_the_search_costs(tmp_path):
    place = Place(tmp_path, GRID.replace("= 20 }", "= 80, search = 20 }"))
    place.bench()
    place.said.clear()
    place.bench(dry_run=True)
    assert "forwards of the search: 120, of the final runs: 320" in place.said
    place = Place(tmp_path / "dear", GRID.replace("[0]", "[0, 100, 200]"))
    place.bench()
    place.said.clear()
    place.bench(dry_run=True)
    (said,) = (one for one in place.said if one.startswith("forwards of"))
    assert said.startswith("forwards of the search: 360, of the final runs: 80: the search costs more")


def test_a_best_value_at_the_edge_after_the_limit_is_told(tmp_path):
    place = Place(tmp_path, "extend = 1" + GRID.replace("1e-4, 1e-3, 1e-2", "1e-6, 1e-5").replace(', "lozo"', ""))
    place.bench()
    told = "mezo/full/sst2/tiny-llama: the best lr, 0.0001, is the highest tried after 1 added values"
    assert place.said.count(told) == 1
    place.bench(dry_run=True)
    assert place.said.count(told) == 2


def test_a_directory_from_before_the_key_was_a_list_goes_on(tmp_path):
    place = Place(tmp_path)
    total = place.bench().total
    copy = place.out / "grid.toml"
    copy.write_text(copy.read_text().replace("search_seeds = [0]", "search_seed = 0"))
    before = place.started
    assert place.bench().total == total
    assert place.started == before
    assert grid_file.parse(copy).search_seeds == (0,)
