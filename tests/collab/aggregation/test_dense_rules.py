"""A rule that is one function on rows works wherever the built-in ones do; all receivers at once get the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradless import rng
from gradless.collab import aggregators, attacks
from gradless.collab.adversary.base import AttackContext
from gradless.collab.adversary.line_search import strongest
from gradless.collab.aggregation.base import aggregate
from gradless.collab.aggregation.receivers import Received, seen_by_all
from gradless.collab.aggregators import (
    AGGREGATORS,
    Aggregator,
    arc,
    bucketing,
    clipping,
    compose,
    mean,
    median,
    more_than,
    named,
    nna,
    nnm,
)
from gradless.collab.config import CollabConfig
from gradless.collab.recipes import TABLES
from gradless.collab.simulation.simulate import simulate
from gradless.errors import BadInput
from gradless.testing import check_aggregator

F = 2


def nearest(rows: torch.Tensor, pivot: int) -> torch.Tensor:
    distances = (rows - rows[pivot]).square().sum(1).nan_to_num(nan=torch.inf)
    distances[pivot] = -1
    return rows[distances.sort(stable=True).indices[: len(rows) - F]].mean(0)


def dense_nna(f: int = F) -> Aggregator:
    return Aggregator.dense("dense-nna", nearest, more_than("dense-nna", 2, aggregators.count("dense-nna", f)), True)


def dense_median() -> Aggregator:
    return Aggregator.dense("dense-median", lambda rows, pivot: rows.quantile(0.5, dim=0))


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return rng.normal(seed, "rows", (rows, width))


def options(name: str) -> dict[str, float]:
    needs = {"radius": 2.0, "norm": 3.0, "size": 2}
    return {option: needs[option] for option in aggregators.options_of(name) if option in needs}


NAMES = [*AGGREGATORS, *(f"{first}+{last}" for first in ("nnm", "arc", "clipping") for last in AGGREGATORS)]
NAMES += ["bucketing+median", "bucketing+krum", "nnm+arc+nna"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_receivers_at_once_get_the_bits_that_each_gets_alone(name, dtype):
    f = 1 if "bucketing" in name or "bulyan" in name else 2
    rule = named(name, f=f, n=11, **options(name))
    rows = normal(11, 1500).to(dtype)
    rows[8], rows[9, 3] = torch.nan, torch.inf
    for matrix in (rows, normal(11, 1500, seed=1).to(dtype) + 5):
        together = rule.for_all(matrix, range(11), key=7)
        assert together.shape == (11, 1500)
        for pivot, result in enumerate(together):
            alone = rule(matrix, pivot=pivot, key=7)
            assert torch.equal(result.nan_to_num(nan=7.0), alone.nan_to_num(nan=7.0)), pivot


def test_all_receivers_at_once_without_compiled_kernels(monkeypatch):
    monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    rows = normal(9, 700)
    for rule in (nna(f=2), compose(nnm(f=2), nna(f=2)), dense_nna()):
        for pivot, result in enumerate(rule.for_all(rows, range(9))):
            assert torch.equal(result, rule(rows, pivot=pivot))


def test_a_dense_rule_keeps_the_promises_of_an_aggregator():
    check_aggregator(dense_nna, n=11, f=F, permutation=False)


@pytest.mark.parametrize("pre_aggregators", [(), (nnm(f=F),), (arc(f=F),), (clipping(norm=2.0), nnm(f=F))], ids=len)
@pytest.mark.parametrize("pair", [(dense_nna(), nna(f=F)), (dense_median(), median())], ids=["nna", "median"])
def test_a_dense_rule_composes_like_the_built_in_one(pre_aggregators, pair):
    rows = normal(9, 300)
    rows[8] = 1e6
    mine, known = (compose(*pre_aggregators, rule) for rule in pair)
    assert mine.name == "+".join([*(stage.name for stage in pre_aggregators), pair[0].name])
    assert torch.allclose(mine.for_all(rows, range(8)), known.for_all(rows, range(8)), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match="does not keep"):
        compose(bucketing(size=2), dense_nna())


def test_a_dense_rule_gets_what_each_receiver_got():
    basis, unit = normal(6, 200), torch.eye(6, dtype=torch.float64)
    lie = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    views = tuple(
        torch.cat([unit[torch.tensor(order)], lie]) for order in ([0, 1, 2, 3, 4], [3, 1, 5, 0], [2, 3, 4, 5])
    )
    received = Received((basis[:4], basis[4:]), views, (0, 1, 3))
    for mine, known in ((dense_nna(), nna(f=F)), (dense_median(), median())):
        results = aggregate(mine, received)
        assert torch.allclose(results, aggregate(known, received), rtol=1e-5, atol=1e-5)


def test_a_receiver_whose_own_row_is_broken_keeps_it():
    rows = normal(7, 30)
    rows[2, 5] = torch.inf
    results = dense_nna().for_all(rows, range(7))
    assert torch.equal(results[2], rows[2])
    assert bool(results[[0, 1, 3, 4, 5, 6]].isfinite().all())


def test_a_result_of_another_shape_is_refused():
    with pytest.raises(BadInput, match=r"wrong gave \[\] for rows \[3, 4\]: return one vector"):
        Aggregator.dense("wrong", lambda rows, pivot: rows.sum())(normal(3, 4))
    with pytest.raises(BadInput, match="needs n > 2 f"):
        dense_nna()(normal(4, 4))


@pytest.mark.parametrize("attack", ["alie", "foe", "dissensus"])
@pytest.mark.parametrize("pair", [(dense_nna(), nna(f=F)), (dense_median(), median())], ids=["nna", "median"])
def test_attackers_find_the_same_strength_against_a_dense_rule(attack, pair):
    honest = normal(9, 400).double() + 3
    context = AttackContext(honest, None, F, F, 0, 0)

    def views_of(extras, sent):
        unit = torch.eye(9, 9 + len(extras), dtype=torch.float64)
        views = tuple(torch.cat([unit, sent[p if len(sent) > 1 else 0]]) for p in range(9 if len(sent) > 1 else 1))
        return Received((honest, extras) if len(extras) else (honest,), views, tuple(range(9)))

    searched = [strongest(attacks.named(attack), context, rule, views_of, None).strength for rule in pair]
    assert searched[0] == pytest.approx(searched[1], rel=1e-6)


def test_a_sample_of_the_columns_has_the_lengths_of_whole_rows():
    lengths = []

    def noting(rows, pivot):
        lengths.append(float(rows.norm(dim=1).mean()))
        return rows.mean(0)

    honest = normal(7, 5000)
    context = AttackContext(honest, None, 1, 1, 0, 0)
    rule = Aggregator.dense("noting", noting)

    def views_of(extras, sent):
        return Received((honest,), (torch.cat([torch.eye(7, dtype=torch.float64), sent[0]]),), tuple(range(7)))

    strongest(attacks.named("foe", bounds=[0.0, 1e-6]), context, rule, views_of, None, columns=1000)
    assert np.mean(lengths) == pytest.approx(float(honest.norm(dim=1).mean()) * 7 / 8, rel=0.1)


def test_one_function_and_one_row_are_a_rule_of_a_simulation(monkeypatch, tmp_path):
    row = aggregators.Entry(dense_nna, "mean of the nearest", "-", "n > 2 f", "n D")
    monkeypatch.setitem(AGGREGATORS, "dense-nna", row)
    assert "mean of the nearest (n > 2 f; cost n D)" in TABLES["aggregators"]()["dense-nna"]
    config = CollabConfig(peers=7, byzantine=F, attack="foe", steps=3, batch_size=4, eval_rows=50)
    results = {}
    for rule in ("nna", "dense-nna", "nnm+dense-nna"):
        mine = CollabConfig(**{**config.to_json(), "rule": rule, "delivery": config.delivery, "freeze": ()})
        results[rule] = simulate(mine, tmp_path / rule)
    assert results["dense-nna"]["worst_accuracy"] == pytest.approx(results["nna"]["worst_accuracy"], abs=0.05)
    assert results["nnm+dense-nna"]["status"] == "done"


def test_seen_by_all_is_what_a_mean_needs():
    rows = normal(5, 8)
    assert torch.allclose(aggregate(mean(), seen_by_all(rows, (0, 3)))[1], rows.mean(0))
