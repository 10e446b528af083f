"""Several processes that tune one model: the same bits on all of them, and a clear end when one is lost."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

import ranks_helpers as r
from gradless import ranks
from ranks_run_helpers import METHODS, SIZES, core

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"), reason="needs gloo, and processes that fork"
)


@pytest.fixture(scope="module")
def results(own: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """The results of every rank, by the number of processes."""
    folder = tmp_path_factory.mktemp("core")
    ended = {size: r.together(size, folder / str(size), core, own) for size in SIZES}
    for size in SIZES:
        assert [end.code for end in ended[size]] == [0] * size, [end.err for end in ended[size]]
    return {size: [end.value for end in ended[size]] for size in SIZES}


def test_messages_arrive_in_rank_order(results):
    seen = [value["messages"] for value in results[4]]
    assert all(each["gather"] == [(float(i), 0.1 * i) for i in range(4)] for each in seen)
    for each in seen:
        assert each["mean"] == pytest.approx([(10 + 40 + 90) / 6, 7.0])
        assert math.isnan(each["nan"][0])
        assert each["spread"] == [float(i * i) for i in range(10)]
        assert each["fewer"] == [3.0]
        assert each["exchange"] == [b"", b"\0x", b"\0x\0x", b"\0x\0x\0x"]
        assert each["nothing"] == ([b""] * 4, b"")
        assert each["broadcast"] == b"from rank 0"
        assert each["two numbers"] == 2 * 8 * 3
    assert {each["skipped"] for each in seen} == {(1, 3, seen[0]["skipped"][2])}
    assert [each["refused"] for each in seen] == [("2 is too many (on rank 2)", told) for told in (False, *[True] * 3)]
    assert all("continue with --resume" in each["apart"] for each in seen)


@pytest.mark.parametrize("method", METHODS)
def test_split_directions_end_with_the_bits_of_one_process(results, method):
    (alone,) = results[1]
    for size in (2, 4):
        for value in results[size]:
            there = value["directions"][method]
            assert there["sha"] == alone["directions"][method]["sha"]
            assert there["coeffs"] == alone["directions"][method]["coeffs"]
            assert there["forwards"] == alone["directions"][method]["forwards"]


@pytest.mark.parametrize("method", METHODS)
def test_a_split_batch_gives_the_coefficients_of_the_whole_up_to_rounding(results, method):
    (alone,) = results[1]
    for size in (2, 4):
        hashes = {value["batch"][method]["sha"] for value in results[size]}
        assert len(hashes) == 1
        for value in results[size]:
            there, here = value["batch"][method], alone["batch"][method]
            assert there["losses"] == pytest.approx(here["losses"], rel=2e-6)
            # A loss near 7 in float32 has steps of 5e-7, which 2 eps = 2e-3 makes 2e-4 of.
            assert there["coeffs"][0] == pytest.approx(here["coeffs"][0], abs=3e-3)
            assert there["forwards"] == here["forwards"]


def test_bytes_of_a_step_are_counted(results):
    for size in (2, 4):
        sent = {split: results[size][0][split]["mezo"]["sent"] for split in ranks.SPLITS}
        # Six losses and a weight, or as many losses as a rank finds, to every other rank, in each step but the first.
        assert sent == {"batch": 2 * 7 * 8 * (size - 1), "directions": 2 * -(-6 // size) * 8 * (size - 1)}


def test_ranks_that_split_the_points_draw_the_same_random_numbers(results):
    """Weights, and the generators afterwards, are those of one process, also where a rank has no point of its own."""
    (alone,) = results[1]
    for size in (2, 4):
        for value in results[size]:
            assert value["drawing"] == alone["drawing"]


def test_token_weights_make_uneven_shards_the_batch(results):
    loss, coeffs, seen = results[1][0]["tokens"]
    for size in (2, 4):
        for value in results[size]:
            assert value["tokens"][0] == pytest.approx(loss, rel=1e-6)
            assert value["tokens"][1] == pytest.approx(coeffs, abs=2e-3)
            assert value["tokens"][2] == seen  # an evaluation has the same bits


def test_a_population_is_that_of_one_process(results):
    """Also where ranks have different numbers of rows, or each has one number for its shard."""
    (alone,) = results[1]
    for size in (2, 4):
        for value in results[size]:
            for case, expected in alone["population"].items():
                assert value["population"][case] == pytest.approx(expected, rel=1e-5), case


def test_what_does_not_go_with_ranks(results):
    for value in results[2]:
        stored, walked, engine = value["refusals"]
        assert "use one process" in stored
        assert engine == "stream"
        assert "'stream'" in walked


def test_an_optimizer_that_knows_of_no_other_process_is_warned_of_once(results):
    assert results[1][0]["told"] == [[], []]
    for size in (2, 4):
        for value in results[size]:
            shared, alone = value["told"]
            assert shared == []
            assert len(alone) == 1
            assert f"torch.distributed has {size} processes" in alone[0]
            assert "ranks=gradless.ranks.group()" in alone[0]


def test_rank_0_chooses_the_engine_and_directions_are_split_in_stream(results):
    for size in (2, 4):
        seen = [value["engine"] for value in results[size]]
        assert all(each == seen[0] for each in seen)
        assert [each[:2] for each in seen[0]] == [("dual", True), ("stream", False)]
