"""Rows of liars that hold anything a float can: the result of every rule and chain is where the honest rows are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from collab_helpers import normal
from gradless.collab import attacks
from gradless.collab.adversary.base import AttackContext
from gradless.collab.adversary.line_search import strongest
from gradless.collab.aggregation.base import aggregate
from gradless.collab.aggregation.gram import combine, measure
from gradless.collab.aggregation.receivers import Received
from gradless.collab.aggregators import AGGREGATORS, PRE_AGGREGATORS, arc, clipping, compose, mean, named
from gradless.errors import BadInput

N, D = 11, 5
OPTIONS = {"radius": 2.0, "norm": 3.0, "size": 2}
# Rules that a liar can draw away by nature, within a length that is known, and the mean.
PROMISES_NOTHING = {"mean"}


def options(name):
    return {option: value for option, value in OPTIONS.items() if option in _options_of(name)}


def _options_of(name):
    parts = name.split("+")
    table = {**AGGREGATORS, **PRE_AGGREGATORS}
    return {option for part in parts for option in table[part].options()}


CHAINS = [
    "+".join(parts)
    for length in (0, 1, 2)
    for pre in itertools.product(PRE_AGGREGATORS, repeat=length)
    for parts in [(*pre, rule) for rule in AGGREGATORS]
    if not ("bucketing" in parts and AGGREGATORS[parts[-1]].make.__name__ in ("nna", "self_centred_clipping"))
]


def extremes(dtype):
    info = torch.finfo(dtype)
    return {
        "the largest": info.max,
        "minus the largest": -info.max,
        "a square that overflows": math.sqrt(info.max) * 2,
        "a square that barely fits": math.sqrt(info.max) / 100,
        "a quarter of the exponents": info.max**0.25,
        "three quarters": info.max**0.75,
        "NaN": math.nan,
        "infinity": math.inf,
        "minus infinity": -math.inf,
        "a denormal": info.tiny / 8,
        "minus zero": -0.0,
    }


def rows(dtype, kind, f, seed):
    """Honest rows around 1 and liars, whose places, signs and columns are drawn."""
    draw = np.random.default_rng(seed)
    x = 1 + 0.5 * normal(N, D, seed=seed)
    liars = draw.permutation(N)[:f]
    if kind == "mixed":
        values = [list(extremes(dtype).values())[i] for i in draw.integers(len(extremes(dtype)), size=f * D)]
        x[liars] = torch.tensor(values, dtype=torch.float64).view(f, D)
    elif kind == "one column":
        x[liars, draw.integers(D)] = extremes(dtype)["the largest"]
    elif kind == "both signs":
        x[liars] = torch.tensor(draw.choice([-1.0, 1.0], size=(f, D)) * torch.finfo(dtype).max)
    else:
        x[liars] = extremes(dtype)[kind]
    honest = np.setdiff1d(np.arange(N), liars)
    return x.to(dtype), honest


def most(name):
    """The largest f that the chain takes for N rows."""
    for f in range(N, -1, -1):
        try:
            named(name, f=f, **options(name)).check(N)
        except BadInput:
            continue
        return f
    raise AssertionError(name)


def check(name, dtype, kind, f, seed):
    x, honest = rows(dtype, kind, f, seed)
    original = x.clone()
    parts = name.split("+")
    rule = named(name, f=f, **options(name))
    pivots = honest[[0, -1]].tolist() if len(honest) else [0, 1]
    results = rule.for_all(x, pivots)
    assert torch.equal(original.nan_to_num(0.5), x.nan_to_num(0.5))
    assert torch.equal(results[1].nan_to_num(0.5), rule(x, pivot=pivots[1]).nan_to_num(0.5))
    assert results.dtype == dtype
    if parts[-1] in PROMISES_NOTHING or f == 0 or not len(honest):
        return
    assert bool(results.isfinite().all()), results
    good = x[honest].double()
    spread = float((good - good.mean(0)).norm(dim=1).max())
    reach = 4 * spread + 3 * OPTIONS["radius"]
    # What looks at the origin may lie between it and the honest rows.
    away = float((results.double() - good.mean(0)).norm(dim=1).max())
    towards = float(good.mean(0).norm()) if {"clipping", "arc", "centred-clipping", "cge"} & set(parts) else 0.0
    assert away <= reach + towards, (away, reach, towards)


KINDS = ["mixed", "one column", "both signs", *extremes(torch.float64)]


@pytest.mark.few(8)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_liars_of_any_numbers_end_in_honest_weights(name, dtype):
    top, long = most(name), name.count("+") == 2
    for kind, f in itertools.product(KINDS[:5] if long else KINDS, (top,) if long else sorted({0, min(1, top), top})):
        check(name, dtype, kind, f, seed=f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e3, 1e25, 1e38, 1e77, 1e160, 1e300])
def test_rows_too_long_to_square_are_cut_all_the_same(dtype, size):
    if size > torch.finfo(dtype).max:
        pytest.skip("infinite")
    x = normal(9, 40).to(dtype)
    x[4] = (normal(40, seed=1) * 0.1 * size).to(dtype)
    direction = x[4].double() / size
    expected = x.double().clone()
    expected[4] = direction
    lengths = expected.norm(dim=1)
    lengths[4] = torch.inf
    expected = expected * torch.where(lengths > 3, 3 / expected.norm(dim=1), 1.0)[:, None]
    cut = clipping(norm=3.0)
    assert torch.allclose(cut(x).double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(compose(cut, mean())(x).double(), expected.mean(0), rtol=1e-6, atol=1e-6)
    robust = compose(cut, named("krum", f=2))(x)
    assert torch.allclose(robust.double(), named("krum", f=2)(expected), rtol=1e-6, atol=1e-6)
    longest = x.double()[[0, 1, 2, 3, 5, 6, 7, 8]].norm(dim=1).sort().values[-3]  # k = floor(2 * 2 * 7 / 9) = 3 are cut
    assert bool((arc(f=2)(x).double().norm(dim=1) <= longest * (1 + 1e-6)).all())


@pytest.mark.parametrize("power", [30, 200, 500, 1000])
def test_combinations_by_huge_factors_keep_what_can_be_kept(power):
    """What attackers who search for a strength ask for: honest rows plus a huge multiple, cut back by the rule."""
    x = normal(5, 20)
    gram = measure((x,))
    huge = torch.eye(5, dtype=torch.float64)
    huge[0, 1] = 2.0**power
    far = combine(gram, huge)
    assert far.finite.tolist() == [power < 64, True, True, True, True]
    lengths = (huge @ x).norm(dim=1) if power < 400 else None
    back = combine(far, far.cut(1.5).diag())
    assert bool(back.finite.all())
    assert torch.allclose(back.norms()[1:], x[1:].norm(dim=1).clamp(max=1.5))
    assert float(back.norms()[0]) == pytest.approx(1.5)
    if lengths is not None:
        assert torch.allclose(far.norms()[far.finite], lengths[far.finite])


def test_caf_takes_rows_whose_fourth_powers_overflow():
    x = normal(11, 5)
    x[[2, 7]] = 1e77
    assert torch.allclose(named("caf", f=2)(x), x[[0, 1, 3, 4, 5, 6, 8, 9, 10]].mean(0), atol=2.0)


ATTACKS = {
    "IPM of 1e20": ("ipm", {"strength": 1e20}),
    "IPM of 1e200": ("ipm", {"strength": 1e200}),
    "IPM of -1e300": ("ipm", {"strength": -1e300}),
    "ALIE of 1e300": ("alie", {"strength": 1e300}),
    "noise of 1e300": ("gaussian", {"strength": 1e300}),
    "FOE up to 1e300": ("foe", {"bounds": (-1e300, 1e300)}),
    "IPM up to 1e200": ("ipm", {"bounds": (0.0, 1e200)}),
    "dissensus of 1e200": ("dissensus", {"strength": 1e200}),
}


@pytest.mark.few(8)
@pytest.mark.parametrize("name", [name for name in CHAINS if name.count("+") <= 1 and name != "bucketing+bulyan"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attackers_of_any_strength_end_in_honest_weights(name, attack, dtype):
    honest, liars = (1 + 0.5 * normal(9, D)).to(dtype), 2

    def received(extras, coefficients):
        eye = torch.eye(9, 9 + len(extras), dtype=torch.float64)
        views = tuple(torch.cat((eye, own)) for own in coefficients)
        return Received((honest, extras) if len(extras) else (honest,), views, tuple(range(9)))

    rule, adversary = named(name, f=liars, **options(name)), attacks.named(ATTACKS[attack][0], **ATTACKS[attack][1])
    context = AttackContext(honest, None, attackers=liars, declared=liars, step=0, seed=0)
    sent = strongest(adversary, context, rule, received, adversary.start(), evaluations=8)
    results = aggregate(rule, received(sent.extras, sent.coefficients)).double()
    if name.split("+")[-1] not in PROMISES_NOTHING:
        assert float((results - honest.double().mean(0)).norm(dim=1).max()) < 25.0  # NaN and infinity fail, too
