"""Rules that give every peer the same bits."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import pytest
import torch

from gradless.collab import aggregators
from gradless.collab.aggregation import exact
from gradless.collab.network.exchange import agreed
from gradless.errors import BadInput

NAMES = [*exact.RULES, *(f"nnm+{name}" for name in exact.RULES)]
# SHA-256 of `bits`: another processor, library or number of threads that gives others is what these rules exclude.
BITS = "e600e01b6ba4d3a330d3a3441fb1747e35afdc4fd987dadda91c65a604393de7"


def rows(n: int = 7, k: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 5)


def bits() -> str:
    outputs = b"".join(
        exact.named(name, f=2)(rows(n, k, seed)).numpy().astype("<f4").tobytes()
        for name in NAMES
        for n in (5, 7, 10)
        for k in (1, 4, 33)
        for seed in range(3)
    )
    return hashlib.sha256(outputs).hexdigest()


def test_bits_are_those_of_every_machine_and_number_of_threads():
    initial = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert bits() == BITS
    finally:
        torch.set_num_threads(initial)


@pytest.mark.parametrize("name", NAMES)
def test_exact_rules_are_the_usual_ones_up_to_rounding(name):
    for seed in range(20):
        sent = rows(9, 6, seed)
        usual = aggregators.named(name, f=2)
        exact_rule = exact.named(name, f=2)
        assert (exact_rule.exact, exact_rule.uses_pivot, exact_rule.name) == (True, False, usual.name)
        assert torch.allclose(exact_rule(sent), usual(sent), rtol=1e-5, atol=1e-6)
        assert exact_rule(sent).dtype == torch.float32
    if "mean" not in (name, name.removeprefix("nnm+")):
        with pytest.raises(BadInput, match="5 rows or more"):
            exact_rule.check(4)


def test_means_of_neighbours_are_rounded_once():
    """Against rational numbers: a sum in another order, or a fused product, would differ somewhere here."""
    for seed in range(30):
        sent = rows(8, 3, seed).tolist()
        squared = [
            [
                sum((Fraction(float(Fraction(a) - Fraction(b))) ** 2 for a, b in zip(x, y, strict=True)), Fraction(0))
                for y in sent
            ]
            for x in sent
        ]
        for i, row in enumerate(exact.mix_nearest(sent, 2)):
            near = sorted(range(8), key=lambda j: (j != i, squared[i][j]))[:6]
            sums = [float(sum((Fraction(sent[j][k]) for j in near), Fraction(0))) for k in range(3)]
            assert row == [total / 6 for total in sums]


@pytest.mark.parametrize("name", NAMES)
def test_liars_far_away_do_not_matter_where_few_are_expected(name):
    if name in ("mean", "nnm+mean"):
        pytest.skip("a mean is moved by anybody")
    honest = rows(8, 4)
    for lie in (torch.full((2, 4), 1e30), torch.full((2, 4), math.nan), torch.full((2, 4), -math.inf)):
        mixed = exact.named(name, f=2)(torch.cat([honest, lie]))
        assert bool(mixed.isfinite().all())
        assert bool((mixed.abs() <= honest.abs().max()).all())


def test_ties_fall_to_the_first_rows_and_numbers_too_large_to_sum_are_far():
    same = torch.tensor([[1.0], [1.0], [1.0], [2.0]])
    assert exact.krum(f=1)(same).tolist() == [1.0]
    assert exact.mix_nearest([[0.0], [1.0], [-1.0], [9.0]], 2)[0] == [0.5]
    huge = torch.full((3, 2), 1e308, dtype=torch.float64)
    huge[1] = -1e308
    assert exact.krum(f=1)(huge).tolist() == huge[0].tolist()
    assert not math.isnan(float(exact.named("nnm+median", f=1)(huge)[0]))


@pytest.mark.parametrize("name", ["nna", "geometric-median", "bucketing+mean", "nnm+nnm+mean", "multi-krum", "mad"])
def test_a_rule_without_an_exact_form_is_refused_with_those_that_have_one(name):
    with pytest.raises(BadInput, match=r"take mean, median, trimmed-mean, meamed, krum, or nnm\+ one of them"):
        exact.named(name, f=1)


def test_only_exact_rules_say_so():
    says = {name for name in aggregators.AGGREGATORS if _rule(name).exact}
    assert says == {"mean", "median", "trimmed-mean", "meamed"}
    assert not aggregators.named("nnm+median", f=1).exact
    assert not aggregators.named("bulyan", f=1).exact


def _rule(name: str) -> aggregators.Aggregator:
    radius = {"radius": 1.0} if "clipping" in name else {}
    return aggregators.named(name, f=1, n=11, **radius)


def test_too_few_agreed_rows_give_nothing_and_no_own_row_is_put_back():
    rule = exact.named("trimmed-mean", f=2)
    assert agreed(rule, rows(4)).isnan().all()
    assert agreed(rule, rows(0)).isnan().all()
    assert torch.equal(agreed(rule, rows(5)), rule(rows(5)))
    with pytest.raises(AssertionError, match="nna"):
        agreed(aggregators.nna(f=1), rows())
