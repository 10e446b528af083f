"""Weights of all receivers at once are those that each would find alone; picked rows are rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradless import rng
from gradless.collab.aggregation import receivers
from gradless.collab.aggregation.base import aggregate, weights_of
from gradless.collab.aggregation.gram import measure
from gradless.collab.aggregation.receivers import Received, seen_by_all
from gradless.collab.aggregation.span_rules import batch_of, least_eigenvalue
from gradless.collab.aggregators import (
    Aggregator,
    centred_clipping,
    geometric_median,
    median,
    nna,
    self_centred_clipping,
)

RULES = {
    "nna": nna(f=2),
    "geometric-median": geometric_median(f=2),
    "geometric-median, published": geometric_median(nu=0.1, iterations=3, start="origin"),
    "centred-clipping": centred_clipping(radius=2.0),
    "self-centred-clipping": self_centred_clipping(radius=2.0, iterations=3),
    "self-centred-clipping, adaptive": self_centred_clipping(f=2, radius=None, iterations=2),
}


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return rng.normal(seed, "rows", (rows, width))


def groups() -> list[torch.Tensor]:
    """Rows of receivers that have little in common: spread, ties, all equal, some and all rows broken."""
    spread = normal(7, 40)
    tied = spread[torch.tensor([0, 0, 0, 0, 0, 1, 2])]
    broken = spread.clone()
    broken[2], broken[5, 0] = torch.nan, torch.inf
    far = normal(7, 40, seed=1) * 1e-3 + 100.0
    return [spread, tied, torch.ones(7, 40), broken, torch.full((7, 40), torch.nan), far, normal(7, 40, seed=2) * 9]


@pytest.mark.parametrize("name", RULES)
def test_weights_of_a_batch_are_those_of_each_receiver_alone(name):
    rule = RULES[name]
    geometries = [measure((rows,)) for rows in groups()]
    pivots = [1, 6, 0, 3, 2, 4, 5]
    together = rule.together(batch_of(geometries, pivots))
    assert together.dtype == np.float64
    for weights, geometry, pivot in zip(together, geometries, pivots, strict=True):
        alone = rule.weights(geometry, pivot).numpy()
        assert np.allclose(weights, alone, rtol=1e-13, atol=1e-15)
        assert np.isfinite(weights).all()


def test_a_median_that_has_converged_stays_while_others_move_on():
    quick, slow = torch.ones(5, 3), normal(5, 3)
    quick[4] = 2.0
    geometries = [measure((rows,)) for rows in (quick, slow)]
    weights = geometric_median().together(batch_of(geometries, [0, 0]))
    assert weights[0].tolist() == [0.25, 0.25, 0.25, 0.25, 0.0]
    point = torch.from_numpy(weights[1]).float() @ slow
    pull = ((slow - point) / (slow - point).norm(dim=1, keepdim=True)).sum(0)
    assert float(pull.norm()) < 1e-3


@pytest.mark.parametrize("tile", [1 << 20, 2000], ids=["one tile", "six tiles, a receiver at a time"])
@pytest.mark.parametrize("sizes", [(5, 5, 5), (5, 4, 6)])
def test_rows_are_picked_and_combinations_made_once(monkeypatch, sizes, tile):
    basis = normal(6, 3000)
    draw = torch.from_numpy(np.random.default_rng(0).permuted(np.tile(np.arange(6), (3, 1)), axis=1))
    sent = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    unit = torch.eye(6, dtype=torch.float64)
    received = tuple(torch.cat([unit[draw[p, : size - 2]], sent, sent]) for p, size in enumerate(sizes))
    combinations = []

    def counting(weights, *arguments):
        combinations.append(len(weights))
        return combined(weights, *arguments)

    combined = receivers.passes.combined
    monkeypatch.setattr(receivers.passes, "combined", counting)
    monkeypatch.setattr(receivers.passes, "TILE", tile)
    results = aggregate(median(), Received((basis[:4], basis[4:]), received, (0, 0, 0)))
    assert combinations == [1] * (1 if tile > 2000 else 6), "what two attackers tell three receivers is one combination"
    for p, view in enumerate(received):
        rows = view @ basis.double()
        assert torch.allclose(results[p].double(), rows.quantile(0.5, dim=0), atol=1e-6)


@pytest.mark.parametrize("rule", [nna(f=1), median()], ids=lambda rule: rule.name)
def test_a_result_may_lie_in_given_memory(rule):
    basis = normal(6, 3000)
    unit = torch.eye(6, dtype=torch.float64)
    received = Received((basis,), tuple(unit[torch.tensor([p, 3, 4, 5])] for p in range(3)), (0, 0, 0))
    out = torch.full((5, 3000), torch.nan)
    results = aggregate(rule, received, out=out)
    assert results.data_ptr() == out.data_ptr()
    assert torch.equal(results, aggregate(rule, received))
    assert bool(out[3:].isnan().all())


@pytest.mark.parametrize("rule", [nna(f=1), median()], ids=lambda rule: rule.name)
def test_memory_that_does_not_fit_is_left_alone(rule):
    basis = normal(6, 3000)
    unit = torch.eye(6, dtype=torch.float64)
    received = Received((basis,), tuple(unit[torch.tensor([p, 3, 4, 5])] for p in range(3)), (0, 0, 0))
    others = (
        torch.zeros(2, 3000),
        torch.zeros(3, 2999),
        torch.zeros(3, 3000, dtype=torch.float64),
        torch.zeros(3000, 3).T,
    )
    for out in others:
        assert torch.equal(aggregate(rule, received, out=out), aggregate(rule, received))
        assert not bool(out.any())


def test_a_batch_of_receivers_with_the_same_rows_does_not_copy_them():
    geometry = measure((normal(40, 100),))
    batch = batch_of([geometry] * 40, range(40))
    assert batch.inner.strides[0] == 0
    assert np.array_equal(nna(f=3).together(batch)[7], nna(f=3).weights(geometry, 7).numpy())


def test_no_rule_is_asked_about_a_receiver_whose_own_row_is_broken():
    def weights(geometry, pivot):
        assert bool(geometry.finite[pivot])
        return torch.full((geometry.rows,), 1 / geometry.rows, dtype=torch.float64)

    mine = Aggregator("mine", weights, None, lambda rows: None, uses_pivot=True)
    rows = normal(4, 9)
    rows[1] = torch.inf
    coefficients = weights_of(mine, measure((rows,)), seen_by_all(rows, range(4)))
    assert coefficients[1].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert coefficients[0].tolist() == [0.25] * 4


@pytest.mark.parametrize("kernels", ["compiled", "reference"])
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(3, 9),
    width=st.integers(1, 12),
    seed=st.integers(0, 999),
    kind=st.sampled_from(["ties", "far", "odd"]),
)
def test_the_search_finds_what_looking_at_all_subsets_finds(kernels, n, width, seed, kind):
    f = 1 + seed % max(1, (n - 1) // 2)
    rows = rng.normal(seed, "rows", (n, width)).double()
    if kind == "ties":
        rows = rows.round()
    elif kind == "far":
        rows = rows * 1e-3 + 1e3
        rows[:f] *= 10.0 ** (seed % 60)
    else:
        rows[seed % n], rows[(seed + 1) % n, 0] = torch.inf, (torch.nan, 1.0, 1e300)[seed % 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADLESS_KERNELS", "reference") if kernels == "reference" else None
        weights = least_eigenvalue(measure((rows,)), 0, f)
    chosen = tuple(weights.nonzero().flatten().tolist())
    finite = measure((rows,)).finite.tolist()
    values = {
        subset: float(np.linalg.svd((rows[list(subset)] - rows[list(subset)].mean(0)).numpy())[1][0] ** 2)
        for subset in itertools.combinations(range(n), n - f)
        if all(finite[i] for i in subset)
    }
    assert len(chosen) == n - f
    if values:
        least = min(values.values())
        best = [subset for subset, value in values.items() if value <= least * (1 + 1e-6) + 1e-18]
        assert chosen in best
