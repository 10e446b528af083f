"""All aggregation rules through one contract, and each against a naive float64 twin."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from collab_helpers import normal
from gradless.collab.aggregation.base import aggregate, weights_of
from gradless.collab.aggregation.gram import measure
from gradless.collab.aggregation.receivers import Received, seen_by_all
from gradless.collab.aggregators import (
    AGGREGATORS,
    PRE_AGGREGATORS,
    Aggregator,
    geometric_median,
    mda,
    mean,
    median,
    multi_krum,
    named,
    nna,
    self_centred_clipping,
    trimmed_mean,
)
from gradless.errors import BadInput
from gradless.testing import aggregator_checks

F, N = 2, 11
EYE = torch.eye(N, dtype=torch.float64)


def squared(x):
    return ((x[:, None] - x) ** 2).sum(2)


def mean_of_nearest(x, distances, keep):
    return x[np.argsort(distances, kind="stable")[:keep]].mean(0)


def twin_krum_order(x, f):
    scores = np.sort(squared(x), 1)[:, 1 : len(x) - f].sum(1)
    return np.argsort(scores, kind="stable")


def twin_weiszfeld(x, iterations, nu, z):
    for _ in range(iterations):
        pull = 1 / np.maximum(np.linalg.norm(x - z, axis=1), nu)
        z = (x * pull[:, None]).sum(0) / pull.sum()
    return z


def twin_clipping(x, z, iterations, radius):
    for _ in range(iterations):
        away = x - z
        lengths = np.linalg.norm(away, axis=1)
        tau = radius(lengths)
        z = z + (away * np.minimum(1, tau / np.maximum(lengths, 1e-300))[:, None]).mean(0)
    return z


def twin_best_subset(x, f, score):
    subsets = itertools.combinations(range(len(x)), len(x) - f)
    return x[list(min(subsets, key=lambda chosen: score(x[list(chosen)])))].mean(0)


def twin_caf(x, f):
    n, c, least, best = len(x), np.ones(len(x)), math.inf, None
    while True:
        mu = (c[:, None] * x).sum(0) / c.sum()
        away = x - mu
        _, values, directions = np.linalg.svd(np.sqrt(c / c.sum())[:, None] * away, full_matrices=False)
        if values[0] ** 2 < least:
            least, best = values[0] ** 2, mu
        tau = (away @ directions[0]) ** 2
        c = c * np.maximum(0, 1 - tau / tau[c > 0].max())
        if c.sum() <= n - 2 * f:
            return best


def twin_around(x, keep):
    away = np.abs(x - np.median(x, 0))
    return np.take_along_axis(x, np.argsort(away, 0, kind="stable")[:keep], 0).mean(0)


def twin_bulyan(x, f):
    left, picked = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        picked.append(left.pop(twin_krum_order(x[left], f)[0]))
    return twin_around(x[picked], len(x) - 4 * f)


def twin_nnm(x, f):
    return np.stack([mean_of_nearest(x, d, len(x) - f) for d in squared(x)])


def twin_cut(x, norm):
    return x * np.minimum(1, norm / np.linalg.norm(x, axis=1))[:, None]


def twin_arc(x, f):
    norms = np.sort(np.linalg.norm(x, axis=1))
    return twin_cut(x, norms[len(x) - 2 * f * (len(x) - f) // len(x) - 1])


def adaptive(lengths, f=F):
    return math.sqrt((np.sort(lengths)[: len(lengths) - f] ** 2).sum() / f)


class Row(NamedTuple):
    """A rule as the contract sees it."""

    twin: Callable[[np.ndarray, int], np.ndarray]  # (x, pivot) in float64
    options: dict[str, Any] = {}  # noqa: RUF012
    moves: bool = True  # along with a translation of all rows
    zero: bool = True  # f = 0 is the mean
    boxed: bool = False  # every column stays within its honest values
    stays: float | None = 1.0  # robust: within so many honest diameters of the honest mean; None: promises nothing
    ordered: bool = False  # the order of rows matters: ties are the rule, or it shuffles
    many: bool = False  # needs n > 4 f + 2


ROWS: dict[str, Row] = {
    "mean": Row(lambda x, p: x.mean(0), stays=None),
    "nna": Row(lambda x, p: mean_of_nearest(x, squared(x)[p], N - F)),
    "trimmed-mean": Row(lambda x, p: np.sort(x, 0)[F : N - F].mean(0), boxed=True, stays=None),
    "median": Row(lambda x, p: np.median(x, 0), zero=False, boxed=True, stays=None),
    "meamed": Row(lambda x, p: twin_around(x, N - F), stays=3.0),
    "krum": Row(lambda x, p: x[twin_krum_order(x, F)[0]], zero=False),
    "multi-krum": Row(lambda x, p: x[twin_krum_order(x, F)[: N - F]].mean(0)),
    "geometric-median": Row(lambda x, p: twin_weiszfeld(x, 3000, 1e-12, np.median(x, 0)), zero=False),
    "centred-clipping": Row(
        lambda x, p: twin_clipping(x, 0 * x[0], 3, lambda lengths: 2.0),
        {"radius": 2.0},
        moves=False,
        zero=False,
        stays=None,
    ),
    "self-centred-clipping": Row(lambda x, p: twin_clipping(x, x[p], 2, adaptive), {"iterations": 2}, stays=2.0),
    "mda": Row(lambda x, p: twin_best_subset(x, F, lambda s: squared(s).max()), ordered=True),
    "smea": Row(lambda x, p: twin_best_subset(x, F, lambda s: np.linalg.svd(s - s.mean(0))[1][0])),
    "caf": Row(lambda x, p: twin_caf(x, F)),
    "cge": Row(lambda x, p: mean_of_nearest(x, np.linalg.norm(x, axis=1), N - F), moves=False),
    "bulyan": Row(lambda x, p: twin_bulyan(x, F), many=True, stays=2.0),
    "nnm+nna": Row(lambda x, p: mean_of_nearest(twin_nnm(x, F), squared(twin_nnm(x, F))[p], N - F)),
    # Mixed rows often coincide, and two pairs of equal rows have equal Krum scores: order or rounding decides.
    "nnm+krum": Row(lambda x, p: twin_nnm(x, F)[twin_krum_order(twin_nnm(x, F), F)[0]], ordered=True, moves=False),
    "nnm+trimmed-mean": Row(lambda x, p: np.sort(twin_nnm(x, F), 0)[F : N - F].mean(0)),
    "nnm+bulyan": Row(lambda x, p: twin_bulyan(twin_nnm(x, F), F), many=True, ordered=True, moves=False),
    "clipping+mean": Row(lambda x, p: twin_cut(x, 2.5).mean(0), {"norm": 2.5}, moves=False, zero=False, stays=None),
    "arc+multi-krum": Row(
        lambda x, p: twin_arc(x, F)[twin_krum_order(twin_arc(x, F), F)[: N - F]].mean(0), moves=False
    ),
    "arc+median": Row(lambda x, p: np.median(twin_arc(x, F), 0), moves=False, zero=False, stays=None),
    "bucketing+median": Row(None, {"size": 1}, zero=False, stays=None, ordered=True),
    "bucketing+geometric-median": Row(None, {"size": 2}, zero=False, stays=None, ordered=True),
}
PLAIN = [name for name in ROWS if "+" not in name]
RULES = pytest.mark.parametrize("name", ROWS)


def rule_of(name: str, f: int = F) -> Aggregator:
    return named(name, f=f, **ROWS[name].options)


@pytest.fixture(params=["compiled", "reference"])
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    else:
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    return request.param


def test_every_rule_and_pre_aggregator_is_in_the_table():
    assert set(PLAIN) == set(AGGREGATORS)
    assert {part for name in ROWS for part in name.split("+")} == {*AGGREGATORS, *PRE_AGGREGATORS}


# Bucketing shuffles, and is compared in test_pre_aggregators.py.
@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("bucketing+")])
@pytest.mark.parametrize("seed", range(3))
def test_the_rule_is_its_naive_twin(backend, name, seed):
    x = normal(N, 6, seed=seed)
    x[[2, 9]] += normal(6, seed=seed + 100) * 3  # two that stand out, near enough to matter
    for pivot in (0, 9):
        result = rule_of(name)(x, pivot=pivot).numpy()
        assert np.allclose(result, ROWS[name].twin(x.numpy(), pivot), rtol=1e-7, atol=1e-7)


@RULES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_precision(backend, name, dtype):
    x = (normal(N, 700) + 2 * normal(1, 700, seed=1)).to(dtype)
    original = x.clone()
    result = rule_of(name)(x, pivot=3)
    assert result.dtype == dtype
    assert torch.equal(x, original)
    true = rule_of(name)(x.double(), pivot=3)
    # The result is rounded once to 16 bits; in float32 it is as good as the issue asks.
    error = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * 1.01
    assert float((result.double() - true).abs().max() / true.abs().max()) < error


@RULES
@pytest.mark.parametrize("check", aggregator_checks(n=N, f=F), ids=str)
def test_the_rule_keeps_the_contract(backend, name, check):
    row = ROWS[name]
    claims = {"translation": row.moves, "permutation": not row.ordered, "mean": row.zero, "box": row.boxed}
    (claimed,) = (c for c in aggregator_checks(n=N, f=F, bound=row.stays, **claims) if c.name == check.name)
    claimed(lambda f: rule_of(name, f))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e25])
def test_the_mean_hides_nothing(backend, bad):
    x = normal(N, 300)
    x[4] = bad
    assert not bool((mean()(x).abs() < 1e20).any())


def test_ties_go_to_the_first_row():
    x = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    assert torch.allclose(nna(f=2)(x, pivot=0), torch.zeros(2))  # rows 0, 1, 2
    assert torch.allclose(nna(f=2)(x[[0, 3, 1, 2, 4]], pivot=0), torch.tensor([1 / 3, 1 / 3]))
    assert torch.allclose(nna(f=2)(x.roll(1, 0), pivot=1), torch.tensor([1 / 3, -1 / 3]))  # rows 1, 0 and 2
    pair = torch.tensor([[5.0], [0.0], [0.0], [5.0], [0.0], [5.0]])
    assert torch.allclose(named("krum", f=2)(pair), torch.tensor([5.0]))
    assert torch.allclose(multi_krum(f=2, k=3)(pair), torch.tensor([5 / 3]))
    assert torch.allclose(mda(f=2)(torch.tensor([[0.0], [1], [2], [3], [4]])), torch.tensor([1.0]))
    assert torch.allclose(named("cge", f=1)(torch.tensor([[1.0], [-1.0], [1.0]])), torch.tensor([0.0]))
    assert torch.allclose(named("meamed", f=2)(torch.tensor([[0.0], [1], [2], [3], [4]])), torch.tensor([2.0]))


def test_the_two_readings_of_keep():
    x = torch.tensor([[0.0], [1], [2], [4], [8], [16]])
    assert float(nna(f=1)(x)) == 15 / 5  # n = 6 rows: n - f
    assert float(nna(f=1)(x[:5])) == 7 / 4  # n - f rows of 6 received: n - 2 f
    assert float(nna(f=1, keep="all", n=6)(x[:5])) == 15 / 5
    assert float(nna(f=1, keep=2)(x)) == 1 / 2
    with pytest.raises(BadInput, match="needs n"):
        nna(f=1, keep="all")
    with pytest.raises(BadInput, match="only 4 were received"):
        nna(f=1, keep="all", n=6)(x[:4])


def test_the_pivot_is_its_own_nearest_even_among_copies():
    x = torch.zeros(7, 2)
    x[6] = 1
    weights = weights_of(nna(f=3), measure((x,)), seen_by_all(x, [5]))
    assert weights[0].nonzero().flatten().tolist() == [0, 1, 2, 5]


def test_a_peer_whose_own_row_is_broken_keeps_it():
    x = normal(N, 4)
    x[3] = float("nan")
    for name in ("nna", "self-centred-clipping", "nnm+nna"):
        assert bool(rule_of(name)(x, pivot=3).isnan().all())


def test_the_geometric_median_is_one():
    for x in (normal(9, 20), torch.cat((normal(8, 3), 1e8 * normal(1, 3))), normal(7, 1)):
        z = geometric_median()(x)
        away = x - z
        lengths = away.norm(dim=1)
        off = lengths > 1e-5  # of a row that it lies on, any pull up to 1 is allowed
        pull = (away[off] / lengths[off, None]).sum(0).norm()
        assert float(pull) < 1e-4 + int((~off).sum())
    x = normal(6, 3).repeat_interleave(2, 0)
    x[:7] = x[0]  # most rows are the same
    assert torch.equal(geometric_median(f=2)(x), x[0])


def test_adaptive_clipping_of_nobody_is_the_mean():
    x = normal(N, 5)
    assert torch.allclose(self_centred_clipping(f=0)(x, pivot=3), x.mean(0))
    far = x.clone()
    far[8] *= 1e6
    assert float((self_centred_clipping(f=1)(far, pivot=3) - x.mean(0)).norm()) < 3
    assert torch.equal(self_centred_clipping(f=1, radius=1e-9)(far, pivot=3).round(decimals=6), x[3].round(decimals=6))


@pytest.mark.parametrize("name", [name for name in ROWS if "mean" not in name.split("+") and "bucketing" not in name])
def test_too_many_liars_are_refused_with_the_condition(name):
    factor, extra = (4, 2) if ROWS[name].many else (2, 0)
    least = factor * F + extra + 1
    rule_of(name)(normal(least, 3))
    with pytest.raises(BadInput, match=re.escape(f"needs n > {factor} f" + (f" + {extra}" if extra else ""))):
        rule_of(name)(normal(least - 1, 3))


@RULES
def test_receivers_together_are_receivers_alone(backend, name):
    # Half of the rows reach half of the receivers as somebody else's; numbers of rows differ.
    x = normal(N, 600, dtype=torch.float32)
    extra = normal(2, 600, seed=1, dtype=torch.float32)
    basis = torch.eye(N + 2, dtype=torch.float64)
    lies = torch.tensor([[0.5] * 2 + [0.0] * (N - 2) + [1.0, -2.0]], dtype=torch.float64)
    received = (basis[:N], torch.cat((basis[: N - 1], lies, lies)), basis[[3, 0, 1, 2, *range(4, N)]])
    views = Received((x, extra), received, (0, 5, 3))
    together = aggregate(rule_of(name), views)
    wide = torch.cat((x, extra)).double()
    alone = [rule_of(name)(view @ wide, pivot=pivot) for view, pivot in zip(received, views.pivots, strict=True)]
    assert torch.allclose(together.double(), torch.stack(alone), atol=2e-6)
    if rule_of(name).weights is not None:
        weights = weights_of(rule_of(name), measure(views.basis), views)
        assert torch.allclose(weights @ wide, torch.stack(alone), atol=1e-5)


def test_what_all_see_is_computed_once(monkeypatch):
    x = normal(N, 50)
    calls = []
    rule = trimmed_mean(f=2)
    counting = rule._replace(column=lambda tile: calls.append(1) or rule.column(tile))
    out = aggregate(counting, seen_by_all(x, range(N)))
    assert len(calls) == 1
    assert out.shape == (N, 50)
    assert out.stride(0) == 0
    assert torch.equal(aggregate(nna(f=0), seen_by_all(x, [4]))[0], nna(f=0)(x, pivot=4))


def test_views_that_do_not_fit_are_refused():
    x = normal(4, 3)
    with pytest.raises(BadInput, match="2 views for 3 receivers"):
        aggregate(mean(), Received((x,), (EYE[:4, :4],) * 2, (0, 1, 2)))
    with pytest.raises(BadInput, match="over 5 rows"):
        aggregate(mean(), Received((x,), (EYE[:4, :5],), (0,)))
    with pytest.raises(BadInput, match="has no weights"):
        weights_of(median(), measure((x,)), seen_by_all(x, [0]))


PEAK = """
import sys, torch
from gradless.collab.aggregators import named, nnm
torch.set_num_threads(1)
def peak():
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
def work(name, rows):
    return nnm(f=5)(rows) if name == "nnm" else named(name, f=5)(rows)
x = torch.zeros(26, 431_080).add_(torch.arange(26.0)[:, None])
for name in sys.argv[1:]:
    work(name, x[:, :600])
for name in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    out = work(name, x)
    print(name, (peak() - before - out.nbytes) / x.nbytes)
    del out
"""


@pytest.mark.sweep
def test_extra_memory_is_far_below_one_input():
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak from /proc")
    names = ("nnm", "krum", "geometric-median", "trimmed-mean", "nnm+krum", "nnm+trimmed-mean")
    run = subprocess.run([sys.executable, "-c", PEAK, *names], capture_output=True, text=True, timeout=120)
    if "PermissionError" in run.stderr:
        pytest.skip("the peak of a process cannot be reset here")
    assert run.returncode == 0, run.stderr
    extra_memory = dict(line.split() for line in run.stdout.splitlines())
    assert set(extra_memory) == set(names)
    assert all(float(share) < 0.4 for share in extra_memory.values()), extra_memory
