"""The search for a cell's point: how axes grow, and that order and workers do not matter."""

from __future__ import annotations

import itertools
import math
import random
import threading

import pytest

from bench_helpers import GRID, BenchDirectory
from gradless.bench import grid, grid_file, results
from gradless.bench.runner import Outcome
from gradless.bench.search import HIGHEST, LOWEST
from gradless.errors import BadInput
from search_helpers import CELL, FIVE, HALVED, ONE, RATES, asked, bowl, finish, rates

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
    assert [one.rpartition(", is the ")[2] for one in search.standing(lines).edges] == (
        [f"{edge} after 2 added values"] if edge else []
    )
    assert {one["extended"] for one in lines if one["point"].get("lr") in (1e-6, 3e-6, 1e-5)} == {False}
    assert all(one["extended"] for one in lines if one["point"].get("lr") not in (None, 1e-6, 3e-6, 1e-5))


def test_a_limit_of_ones_own(tmp_path):
    lines = finish(asked(GROWING.replace("true", "4"), tmp_path), bowl(1.0))
    assert rates(lines)[3:] == [3.2e-5, 1e-4, 3.2e-4, 1e-3]


def test_no_axis_grows_unless_asked_nor_one_with_a_single_value(tmp_path):
    assert rates(finish(asked(ONE, tmp_path), bowl(1e-3))) == [1e-6, 3e-6, 1e-5]
    single = GROWING.replace(RATES, "[1e-6]\neps = [1e-3]")
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
    alone, directory = BenchDirectory(tmp_path / "alone", LADDER), BenchDirectory(tmp_path / "shared", LADDER)
    outcome = alone.bench()
    # Each cell: 1e-5 to 1e-2 on the first rung, two of them on the second.
    assert outcome.total == outcome.done == 2 + 2 * (4 * 2 + 2 * 2 + 2)
    assert {one["point"]["lr"] for one in alone.lines if one["phase"] == "final"} == {1e-3}
    ends: list[Outcome] = []
    others = [threading.Thread(target=lambda: ends.append(directory.bench(workers=2))) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert ends == [outcome] * 2
    assert directory.table() == alone.table()
    assert len(directory.started) == len(set(directory.started)) == outcome.total


def test_an_extended_search_is_resumed_reused_and_grows_in_place(tmp_path):
    directory = BenchDirectory(tmp_path / "a", LADDER)
    total = directory.bench().total
    started = directory.started
    assert directory.bench().total == total
    assert directory.started == started
    other = BenchDirectory(tmp_path / "b", LADDER)
    assert other.bench(known=[directory.out / results.RESULTS]).total == total
    assert other.started == []
    # With 1e-2 and 2e-3 in the file the axis has another ratio, so that what it added is none of the new grid's.
    directory.grid.write_text(LADDER.replace("1e-5, 1e-4", "1e-5, 1e-4, 2e-3"))
    grown = directory.bench()
    assert grown.failed == 0
    assert {one["id"] for one in directory.lines} == {path.stem for path in (directory.out / "requests").iterdir()}
    directory.grid.write_text(LADDER.replace("evaluations = 2", "evaluations = 1"))
    with pytest.raises(BadInput, match="holds another grid"):
        directory.bench()


def test_a_dry_run_says_what_the_search_costs(tmp_path):
    directory = BenchDirectory(tmp_path, GRID.replace("= 20 }", "= 80, search = 20 }"))
    directory.bench()
    directory.messages.clear()
    directory.bench(dry_run=True)
    assert "forwards of the search: 120, of the final runs: 320" in directory.messages
    directory = BenchDirectory(tmp_path / "dear", GRID.replace("[0]", "[0, 100, 200]"))
    directory.bench()
    directory.messages.clear()
    directory.bench(dry_run=True)
    (sentence,) = (one for one in directory.messages if one.startswith("forwards of"))
    assert sentence.startswith("forwards of the search: 360, of the final runs: 80: the search costs more")


def test_a_best_value_at_the_edge_after_the_limit_is_told(tmp_path):
    directory = BenchDirectory(
        tmp_path, "extend = 1" + GRID.replace("1e-4, 1e-3, 1e-2", "1e-6, 1e-5").replace(', "lozo"', "")
    )
    directory.bench()
    sentence = "mezo/full/sst2/tiny-llama: the best lr, 0.0001, is the highest tried after 1 added value"
    assert directory.messages.count(sentence) == 1
    directory.bench(dry_run=True)
    assert directory.messages.count(sentence) == 2


def test_a_directory_from_before_the_key_was_a_list_goes_on(tmp_path):
    directory = BenchDirectory(tmp_path)
    total = directory.bench().total
    copy = directory.out / "grid.toml"
    copy.write_text(copy.read_text().replace("search_seeds = [0]", "search_seed = 0"))
    started = directory.started
    assert directory.bench().total == total
    assert directory.started == started
    assert grid_file.parse(copy).search_seeds == (0,)
