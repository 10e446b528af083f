"""Aggregators, pre-aggregators and attacks that each break one promise, by the check that must notice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from broken_helpers import SIZES, rolling
from gradless.collab.adversary.identical import alie, nan, none
from gradless.collab.aggregators import Aggregator, PreAggregator, any_number, krum, mean, median, together
from gradless.collab.attacks import Attack, to_all


def by_column(column: Any, check: Any = any_number) -> Any:
    return lambda f: Aggregator("mine", None, column, check)


def unchecked(f: int) -> Aggregator:
    return krum(f=max(0, int(f)))._replace(check=any_number)


def doubling(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2).mean(0)


def rough(x: torch.Tensor) -> torch.Tensor:
    """Exact in float64 alone."""
    return (x if x.dtype == torch.float64 else x.bfloat16().double()).mean(0).to(x.dtype)


def off_at_ties(x: torch.Tensor) -> torch.Tensor:
    tied = (x[0] == x[1]) & (x[0] != x[2])
    return torch.where(tied, x.max(0).values + 1.0, x.mean(0))


def two_minded(f: int) -> Aggregator:
    """Weights and columns are not the same rule."""
    return mean()._replace(column=median().column)


def crowded(f: int) -> Aggregator:
    """The more receivers there are, the less it gives."""
    return together(
        "mine", lambda grams: np.full(grams.finite.shape, 1 / grams.finite.size), any_number, uses_pivot=True
    )


AGGREGATORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("deterministic", by_column(lambda x: x.mean(0) + 1e-3 * next(SIZES)), {}),
    ("keeps_dtype", by_column(rough), {}),
    ("leaves_rows_alone", by_column(doubling), {}),
    ("permutation_moves_nothing", by_column(lambda x: x[0]), {}),
    ("translation_moves_along", by_column(lambda x: x.mean(0) * 0.9), {}),
    ("without_liars", lambda f: median(), {"mean": True}),
    ("without_liars", by_column(lambda x: x.mean(0) / 0), {}),
    ("equal_rows", by_column(lambda x: x.mean(0) * 1.01), {}),
    ("ties", by_column(off_at_ties), {}),
    ("no_columns", by_column(lambda x: x.mean(0) + 0 * x.std(0) / (x.shape[1] - 1)), {}),
    ("garbage", lambda f: mean(), {}),
    ("garbage", lambda f: mean(), {"bound": None, "box": True}),
    ("liars", lambda f: mean(), {}),
    ("liars", by_column(lambda x: x.nan_to_num(0, 0, 0).clamp(-30, 30).mean(0)), {"bound": 0.5}),
    ("refuses_what_it_cannot_stand", unchecked, {}),
    ("refuses_what_it_cannot_stand", lambda f: median(), {}),
    ("receivers_together_are_receivers_alone", two_minded, {}),
    ("all_receivers_get_the_same_bits", crowded, {}),
    ("no_global_generator", by_column(lambda x: rolling(x.mean(0))), {}),
]


def mixing(weights: Any, **more: Any) -> Any:
    return lambda f: PreAggregator("mine", lambda gram, key: weights(gram.rows, key), any_number, **more)


class Rude(PreAggregator):
    """It writes to the rows."""

    __slots__ = ()

    def __call__(self, rows: torch.Tensor, key: int = 0) -> torch.Tensor:
        rows[0, 0] += 1
        return super().__call__(rows, key)


class Late(PreAggregator):
    """Alone it does something else."""

    __slots__ = ()

    def __call__(self, rows: torch.Tensor, key: int = 0) -> torch.Tensor:
        return super().__call__(rows, key) * 2


def eye(n: int, key: int = 0) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64)


def first_two(n: int, key: int) -> torch.Tensor:
    out = eye(n)
    out[0, :2] = 0.5
    return out


def uneven(n: int, key: int) -> torch.Tensor:
    return eye(n) * (1 + 0.1 * next(SIZES))


MIXES: list[tuple[str, Any, dict[str, Any]]] = [
    ("deterministic", mixing(uneven), {}),
    ("keeps_shape_and_dtype", mixing(lambda n, key: eye(n)[:3]), {}),
    ("keeps_shape_and_dtype", mixing(lambda n, key: eye(n)[:3], rows=lambda n: 3), {}),
    ("leaves_rows_alone", lambda f: Rude("mine", lambda g, key: eye(g.rows), any_number), {}),
    ("permutation_moves_along", mixing(first_two), {}),
    ("translation_moves_along", mixing(lambda n, key: eye(n) * 0.5), {}),
    ("equal_rows", mixing(lambda n, key: eye(n) * 2.0), {}),
    ("garbage", mixing(lambda n, key: torch.full((n, n), 1.0 / n, dtype=torch.float64)), {}),
    ("composes", lambda f: Late("mine", lambda g, key: eye(g.rows), any_number), {}),
    ("no_global_generator", mixing(lambda n, key: rolling(eye(n))), {}),
]


def attacking(send: Any = None, extras: Any = None, **more: Any) -> Attack:
    good = none()
    arguments = {"strength": 0.0, **more}
    return Attack("mine", extras or good.extras, send or good.send, **arguments)


def whole_mean(context: Any) -> torch.Tensor:
    """Coefficients of the mean of all honest rows, broken ones included."""
    return torch.full((len(context.honest),), 1 / len(context.honest), dtype=torch.float64)


def tampering(context: Any, state: Any) -> Any:
    context.honest.mul_(2)
    return context.honest[:0], state


def appending(context: Any, state: Any) -> Any:
    state.append(1)
    return context.honest[:0], state


def eavesdropping(context: Any, state: Any) -> Any:
    return (context.honest[:0] if context.flipped is None else context.flipped), state


def last_or_mean(context: Any, strength: float, state: Any) -> torch.Tensor:
    row = whole_mean(context)
    return to_all(context, row if context.flipped is None else torch.cat([0 * row, torch.ones(1).double()]))


ATTACKS: list[tuple[str, Any, dict[str, Any]]] = [
    ("well_formed", attacking(lambda context, s, state: to_all(context, whole_mean(context).float())), {}),
    ("well_formed", attacking(lambda context, s, state: whole_mean(context).expand(2, context.attackers, -1)), {}),
    ("well_formed", attacking(extras=lambda context, state: (context.honest[:0].double(), state)), {}),
    ("says_what_it_is", attacking(equivocates=True), {}),
    ("says_what_it_is", attacking(goal="harm"), {}),
    ("says_what_it_is", attacking(bounds=(3.0, 1.0), strength=None), {}),
    ("deterministic", attacking(lambda context, s, state: to_all(context, whole_mean(context) * next(SIZES))), {}),
    (
        "state_is_a_value",
        attacking(lambda context, s, state: to_all(context, whole_mean(context) * len(state)), appending, start=list),
        {},
    ),
    ("leaves_rows_alone", attacking(extras=tampering), {}),
    ("sends_finite_rows", nan(), {}),
    (
        "affine_in_the_strength",
        attacking(lambda context, s, _: to_all(context, whole_mean(context) * s**2), strength=None),
        {},
    ),
    ("sees_only_what_it_may", attacking(last_or_mean, eavesdropping), {}),
    ("sees_only_what_it_may", alie(), {"sees": False}),
    (
        "known_gram_changes_nothing",
        attacking(lambda context, s, _: to_all(context, whole_mean(context) * (1 + (context.gram is not None)))),
        {},
    ),
    ("passes_over_diverged_peers", attacking(lambda context, s, _: to_all(context, whole_mean(context))), {}),
    ("no_global_generator", attacking(lambda context, s, _: to_all(context, rolling(whole_mean(context)))), {}),
]
