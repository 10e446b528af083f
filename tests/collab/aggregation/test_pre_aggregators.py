"""Pre-aggregators: rows to rows, and their composition with rules."""

from __future__ import annotations

import pytest
import torch

from collab_helpers import normal
from gradless import rng
from gradless.collab.aggregation.base import aggregate, weights_of
from gradless.collab.aggregation.gram import measure
from gradless.collab.aggregation.receivers import seen_by_all
from gradless.collab.aggregators import (
    PRE_AGGREGATORS,
    arc,
    bucketing,
    bulyan,
    clipping,
    compose,
    geometric_median,
    krum,
    mean,
    nna,
    nnm,
    trimmed_mean,
)
from gradless.errors import BadInput
from gradless.testing import mix_checks

N, F = 9, 2


def naive_nnm(x, f):
    away = (x[:, None] - x).norm(dim=2)
    return torch.stack([x[row.sort(stable=True).indices[: len(x) - f]].mean(0) for row in away])


@pytest.mark.parametrize("f", [0, 1, 4, 8])
def test_nnm_is_its_naive_twin(f):
    x = normal(N, 40)
    assert torch.allclose(nnm(f=f)(x), naive_nnm(x, f))


def test_nnm_leaves_broken_rows_broken_and_others_clean():
    x = normal(N, 3000, dtype=torch.float32)
    clean = naive_nnm(x[:7].double(), 0)
    x[7], x[8, 5] = float("inf"), float("nan")
    mixed = nnm(f=2)(x)
    assert torch.allclose(mixed[:7].double(), clean, atol=1e-6)
    assert bool(mixed[7].isinf().all())
    assert bool(mixed[8].isnan().any())


@pytest.mark.parametrize("n", [6, 7, 11])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_buckets_are_means_of_a_seeded_shuffle(n, size):
    x = normal(n, 5)
    buckets = bucketing(size=size)(x, key=7)
    shuffled = x[torch.from_numpy(rng.permutation(n, 7, "buckets"))]
    assert torch.allclose(buckets, torch.stack([part.mean(0) for part in shuffled.split(size)]))
    assert not torch.equal(buckets, bucketing(size=size)(x, key=8))


@pytest.mark.parametrize("mix", [clipping(norm=1.5), arc(f=3)])
def test_clipping_keeps_directions_and_never_lengthens(mix):
    x = normal(N, 4) * torch.linspace(0.1, 5, N)[:, None].double()
    original = x.clone()
    clipped = mix(x)
    assert torch.equal(x, original)
    lengths, cut = x.norm(dim=1), clipped.norm(dim=1)
    assert bool((cut <= lengths + 1e-12).all())
    assert torch.allclose(clipped / cut[:, None], x / lengths[:, None])
    if mix.name == "clipping":
        assert torch.allclose(cut, lengths.clamp(max=1.5))
    else:  # 2 * 3 * 6 / 9 = 4 rows go to the length of the fifth longest
        assert torch.allclose(cut, lengths.clamp(max=float(lengths.sort().values[4])))


CLAIMS = {
    "nnm": (lambda f: nnm(f=f), {}),
    "bucketing": (lambda f: bucketing(size=2), {"clean": False}),
    "clipping": (lambda f: clipping(norm=1.0), {"translation": False}),
    "arc": (lambda f: arc(f=f), {"translation": False}),
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("check", mix_checks(n=N, f=F), ids=str)
def test_the_mix_keeps_the_contract(name, check):
    make, claims = CLAIMS[name]
    (claimed,) = (c for c in mix_checks(n=N, f=F, **claims) if c.name == check.name)
    claimed(make)


def test_every_mix_is_in_the_table():
    assert set(CLAIMS) == set(PRE_AGGREGATORS)


@pytest.mark.parametrize("mixes", [(nnm(f=2),), (clipping(norm=20.0), nnm(f=2)), (arc(f=2),), (nnm(f=1), nnm(f=2))])
@pytest.mark.parametrize("rule", [krum(f=2), geometric_median(f=2), nna(f=2), trimmed_mean(f=1), bulyan(f=1), mean()])
def test_a_composition_is_its_stages_one_after_the_other(mixes, rule):
    x = normal(N, 700)
    mixed = x
    for mix in mixes:
        mixed = mix(mixed)
    whole = compose(*mixes, rule)
    assert torch.allclose(whole(x, pivot=4), rule(mixed, pivot=4), rtol=1e-7, atol=1e-7)
    if rule.weights is not None:
        weights = weights_of(whole, measure((x,)), seen_by_all(x, [4]))
        assert torch.allclose((weights @ x)[0], rule(mixed, pivot=4), rtol=1e-7, atol=1e-7)


def test_the_key_of_an_exchange_reaches_the_buckets():
    x = normal(N, 20)
    rule = compose(bucketing(size=2), trimmed_mean(f=1))
    assert torch.allclose(rule(x, key=3), trimmed_mean(f=1)(bucketing(size=2)(x, key=3)))
    assert torch.equal(aggregate(rule, seen_by_all(x, [0, 1]), key=3)[1], rule(x, key=3))
    assert not torch.equal(rule(x, key=3), rule(x, key=4))


def test_conditions_are_those_of_every_stage():
    compose(nnm(f=2), trimmed_mean(f=2))(normal(5, 2))
    with pytest.raises(BadInput, match="trimmed-mean with f = 2 needs n > 2 f, that is 5 rows or more, and got 4"):
        compose(nnm(f=2), trimmed_mean(f=2)).check(4)
    with pytest.raises(BadInput, match="got 3"):  # five rows are three buckets
        compose(bucketing(size=2), krum(f=2))(normal(5, 2))
    with pytest.raises(BadInput, match="nnm with f = 4 needs n > f, that is 5"):
        nnm(f=4)(normal(4, 2))
    with pytest.raises(BadInput, match=r"bulyan with f = 1 needs n > 4 f \+ 2"):
        compose(nnm(f=1), bulyan(f=1)).check(6)


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(BadInput, match="must end with a rule"):
        compose(nnm(f=1))
    with pytest.raises(BadInput, match="must end with a rule"):
        compose()
    with pytest.raises(BadInput, match="only the last"):
        compose(krum(f=1), mean())
    with pytest.raises(BadInput, match="receiver's own row"):
        compose(bucketing(size=2), nna(f=1))
    for make, sentence in (
        (lambda: clipping(norm=0), "norm of clipping is 0"),
        (lambda: bucketing(size=0), "size of bucketing is 0"),
        (lambda: nnm(f=-1), "f of nnm is -1"),
        (lambda: arc(f=0.5), "f of arc is 0.5"),
    ):
        with pytest.raises(BadInput, match=sentence):
            make()
