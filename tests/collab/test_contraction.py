"""How far apart liars who tell each peer something else can hold the honest peers of nearest-neighbour averaging."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradless.collab.aggregators import nna
from gradless.collab.geometry import measure
from gradless.collab.views import Views, weights_of

PUSHES: dict[str, Callable[..., Tensor]] = {  # (unit rows, mean, strength) -> what each peer hears
    "outwards": lambda own, mean, s: own + s * (own - mean),
    "beyond the mean": lambda own, mean, s: mean - s * (own - mean),
    "flipped": lambda own, mean, s: (-s * mean).expand_as(own),
    "after one of them": lambda own, mean, s: (mean + s * (own[0] - mean)).expand_as(own),
}


def everybody(x: Tensor, f: int, p: int) -> list[int]:
    return [i for i in range(len(x)) if i != p]


def without(x: Tensor, f: int, p: int, *, late: slice) -> list[int]:
    """A peer that waits for n - f rows, all liars' among them: the liars pick who is late, by distance."""
    others = everybody(x, f, p)
    order = (x[others] - x[p]).norm(dim=1).sort(stable=True).indices.tolist()
    del order[late]
    return [others[i] for i in sorted(order)]


def alike(x: Tensor, f: int, p: int) -> list[int]:
    """As many late peers among the even as among the odd ones, the receiver not counted."""
    others = everybody(x, f, p)
    late = [i for i in others if i % 2 == p % 2][: f // 2] + [i for i in others if i % 2 != p % 2][: f - f // 2]
    return [i for i in others if i not in late]


DELIVERIES: dict[str, Callable[[Tensor, int, int], list[int]]] = {
    "all": everybody,
    "alike": alike,
    "the nearest late": lambda x, f, p: without(x, f, p, late=slice(0, f)),
    "the farthest late": lambda x, f, p: without(x, f, p, late=slice(len(x) - 1 - f, None)),
}


def contraction(x: Tensor, told: Tensor, f: int, delivery: str) -> float:
    """Spread of the rows [H, D] after one round of NNA, over that before.

    Args:
        x: honest rows.
        told: what the f liars tell each peer, [H, D].
    """
    rows = torch.cat((x, told))
    unit = torch.eye(len(rows), dtype=torch.float64)
    received = tuple(
        unit[[p, *DELIVERIES[delivery](x, f, p), *[len(x) + p] * f]]  # own row first, so that it is the pivot
        for p in range(len(x))
    )
    weights = weights_of(nna(f=f), measure((rows,)), Views((rows,), received, (0,) * len(x)))
    y = weights @ rows
    return float((y - y.mean(0)).square().sum() / (x - x.mean(0)).square().sum())


def on_normal_rows(n: int, f: int, delivery: str, push: str) -> float:
    """The largest of some strengths and draws."""
    own = torch.eye(n - f, dtype=torch.float64)
    found = []
    for seed in range(2):
        x = torch.randn(n - f, 200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for strength in (0.1, 0.3, 0.5, 0.8, 1.2, 2.0):
            found.append(contraction(x, PUSHES[push](own, own.mean(0), strength) @ x, f, delivery))
    return max(found)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(("n", "f"), [(6, 1), (11, 2), (16, 3), (26, 5)])
def test_nna_contracts_normal_rows_where_less_than_a_fifth_lies(n, f, delivery):
    assert 0.2 < on_normal_rows(n, f, delivery, "outwards") < 1  # and the attack works


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(("n", "f"), [(12, 1), (34, 3)])
@pytest.mark.parametrize("push", PUSHES)
def test_nna_contracts_as_proved_where_an_eleventh_lies(n, f, delivery, push):
    assert on_normal_rows(n, f, delivery, push) <= 9.88 * f / (n - f)


NEARLY = 1 - 1e-6  # nearer than the honest rows that liars displace


def two_camps(n: int, f: int) -> tuple[Tensor, Tensor]:
    """Half of the honest peers at +1 and half at -1; each hears that its own camp is at +3 or -3."""
    x = torch.ones(n - f, 1, dtype=torch.float64)
    x[::2] = -1
    return x, x * (1 + 2 * NEARLY)


def three_camps(n: int, f: int) -> tuple[Tensor, Tensor]:
    """f honest peers at +1, f at -1, the others just beside the middle; all hear that there is more on their side."""
    middle = torch.full((n - 3 * f, 1), 1e-3, dtype=torch.float64)
    middle[::2] *= -1
    ends = torch.ones(f, 1, dtype=torch.float64)
    return torch.cat((ends, -ends, middle)), torch.cat((3 * NEARLY * ends, -3 * NEARLY * ends, middle.sign() * NEARLY))


# Liars win f of the places that a peer averages, of the farthest of its honest neighbours. Per camp and by hand:
CAMPS = {"all": 4, "the nearest late": 3, "the farthest late": 5}


GROUPS = [(9, 1), (11, 1), (22, 2), (35, 3), (26, 4), (30, 4), (55, 5)]


@pytest.mark.parametrize(("delivery", "n", "f"), [("all", 13, 3), *((name, n, f) for name in CAMPS for n, f in GROUPS)])
def test_what_is_left_of_two_camps(delivery, n, f):
    """sqrt(alpha) = 4 f / (n - f) in a synchronous group; 5 f / (n - 2 f) if liars decide who is late.

    So two camps come together only if n > 5 f and n > 7 f.
    """
    kept = n - f if delivery == "all" else n - 2 * f
    found = contraction(*two_camps(n, f), f, delivery)
    assert found == pytest.approx((CAMPS[delivery] * f / kept) ** 2, rel=1e-4)
    assert (found < 1) == (n > {"all": 5, "the nearest late": 5, "the farthest late": 7}[delivery] * f)
    if n >= 11 * f:
        assert found <= 9.88 * f / (n - f)


@pytest.mark.parametrize(("n", "f"), [(10, 2), (14, 2), (22, 2), (26, 4), (22, 4), (56, 10)])
def test_two_camps_of_which_as_many_are_late(n, f):
    """sqrt(alpha) = 4 f / (n - 2 f), so n > 6 f: not met by the published 26 and 5."""
    found = contraction(*two_camps(n, f), f, "alike")
    assert found == pytest.approx((4 * f / (n - 2 * f)) ** 2, rel=1e-4)
    assert (found < 1) == (n > 6 * f)


@pytest.mark.parametrize(("n", "f"), [(7, 1), (12, 2), (16, 3), (26, 5), (31, 5), (36, 6), (56, 5)])
def test_n_of_5_f_plus_1_is_not_enough_for_all_rows(n, f):
    """alpha = 2 f (n + 5 f) / (n - f)^2 of three camps where everybody hears everybody: above 1 at n = 26, f = 5."""
    found = contraction(*three_camps(n, f), f, "all")
    assert found == pytest.approx(2 * f * (n + 5 * f) / (n - f) ** 2, rel=0.01)
    assert (found < 1) == (n >= 6 * f)
    if n >= 11 * f:
        assert found <= 9.88 * f / (n - f)
