"""Parts that break one promise each, by the check that must notice."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from typing import Any

import numpy as np
import torch

import gradless as gl
from gradless import rng, tasks
from gradless.collab.adversary.base import Attack, to_all
from gradless.collab.adversary.identical import alie, nan, none
from gradless.collab.aggregation.base import any_number
from gradless.collab.aggregators import Aggregator, PreAggregator, krum, mean, median
from gradless.directions import Directions
from gradless.errors import BadInput
from gradless.estimators import Estimate, Estimator
from gradless.gradients import Dense, Mixture
from gradless.optimizer import ZerothOrder
from gradless.rng import direction_key
from gradless.rules import Rule

SIZES = itertools.count()


def good_draw(key: int, name: str, p: torch.Tensor) -> torch.Tensor:
    """Three values, -sqrt(3/2), 0 and sqrt(3/2), with probability 1/3 each."""
    dice = rng.halves(key & rng.MASK64, rng.leaf_id(name), 0, p.numel()) % 3 - 1
    return (dice.float() * math.sqrt(1.5)).view(p.shape)


def drawing(draw: Any, **more: Any) -> Directions:
    return Directions("three-valued", draw=draw, **more)


def by_place() -> Directions:
    """Leaves are told apart by their place among the parameters."""
    places: dict[str, int] = {}

    def freeze(params: Any) -> Any:
        places.clear()
        places.update({name: i for i, name in enumerate(params)})
        return gl.rademacher().freeze(params)

    return drawing(lambda key, name, p: good_draw(key, str(places[name]), p), freeze=freeze)


def meddling(key: int, name: str, p: torch.Tensor) -> torch.Tensor:
    p.mul_(1.001)
    return good_draw(key, name, p)


def rolling(value: Any) -> Any:
    """The value, after a throw of the global dice."""
    torch.rand(1)
    return value


DIRECTIONS: list[tuple[str, Any]] = [
    ("deterministic", drawing(lambda key, name, p: good_draw(key + next(SIZES), name, p))),
    ("of_names_alone", by_place()),
    ("of_shape_alone", drawing(lambda key, name, p: good_draw(key, name, p).to(p.dtype))),
    ("of_shape_alone", drawing(lambda key, name, p: good_draw(key, name, p) * (1 + p.float().mean()))),
    ("of_shape_alone", drawing(lambda key, name, p: good_draw(key, name, p).view(-1))),
    ("distinct_keys", drawing(good_draw, key=lambda seed, step, query: direction_key(seed, step, 0))),
    ("distinct_keys", drawing(good_draw, key=lambda seed, step, query: direction_key(seed, step % 50, query))),
    ("no_global_generator", drawing(lambda key, name, p: rolling(good_draw(key, name, p)))),
    ("restores", drawing(meddling)),
    ("zero_mean", drawing(lambda key, name, p: good_draw(key, name, p).abs())),
    ("zero_mean", drawing(lambda key, name, p: good_draw(key, name, p) + 0.5)),
    ("unit_variance", drawing(lambda key, name, p: good_draw(key, name, p) * 1.08)),
    ("unit_variance", drawing(lambda key, name, p: good_draw(key, name, p).sign())),
    ("uncorrelated", drawing(lambda key, name, p: good_draw(key, "the same", p))),
    (
        "uncorrelated",
        drawing(lambda key, name, p: good_draw(key, name, p).view(-1)[:1].expand(p.numel()).view(p.shape)),
    ),
    (
        "uncorrelated",
        drawing(good_draw, key=lambda seed, step, query: direction_key(seed, step, 0) + (query << 64)),
    ),
    ("uncorrelated", drawing(good_draw, key=lambda seed, step, query: direction_key(seed, 0, query) + (step << 64))),
]


def estimating(estimate: Any, **more: Any) -> Estimator:
    given = {"queries": lambda step: 1, "forwards": lambda k: 2 * k, **more}
    return Estimator("mine", 1e-3, estimate=estimate, **given)


def pairs(oracle: Any, keys: Any) -> tuple[float, list[float]]:
    losses = oracle.values([(key, size) for key in keys for size in (1e-3, -1e-3)])
    return sum(losses) / len(losses), [(up - down) / 2e-3 for up, down in zip(losses[::2], losses[1::2], strict=True)]


def told(change: Any) -> Any:
    """An estimate with ``change`` made to the loss and the coefficients."""

    def estimate(oracle: Any, keys: Any) -> Estimate:
        loss, coeffs = change(*pairs(oracle, keys))
        return Estimate(loss, tuple(coeffs))

    return estimate


def as_it_is(loss: float, coeffs: list[float]) -> tuple[float, list[float]]:
    return loss, coeffs


def blind(loss: float, coeffs: list[float]) -> tuple[float, list[float]]:
    return (loss, coeffs) if math.isfinite(loss) else (0.0, [0.0] * len(coeffs))


ESTIMATORS: list[tuple[str, Any]] = [
    ("unbiased", estimating(told(lambda loss, c: (loss, [x * 1.5 for x in c])))),
    ("unbiased", estimating(told(lambda loss, c: (loss, [-x for x in c])))),
    ("forwards_are_counted", estimating(told(as_it_is), forwards=lambda k: k)),
    ("one_coefficient_a_key", estimating(told(lambda loss, c: (loss, c[:1])))),
    ("one_coefficient_a_key", estimating(told(as_it_is), deep=lambda name: name.startswith("norm"))),
    ("schedule_of_queries", estimating(told(as_it_is), queries=lambda step: step)),
    ("schedule_of_queries", estimating(told(as_it_is), queries=lambda step: 1.5)),
    ("deterministic", estimating(told(lambda loss, c: (loss, [x + 1e-9 * next(SIZES) for x in c])))),
    ("reports_the_loss", estimating(told(lambda loss, c: (0.0, c)))),
    ("shows_what_is_not_finite", estimating(told(blind))),
    ("no_global_generator", estimating(told(lambda loss, c: (loss + 0 * np.random.rand(), c)))),  # noqa: NPY002
]


def ruling(change: Any, **more: Any) -> Rule:
    """A rule without a state that changes the weights of mixtures."""

    def update(g: Any, state: Any) -> Any:
        if not isinstance(g, Mixture):
            raise BadInput("mixtures only")
        return g._replace(weights=tuple(change(list(g.weights)))), state

    return Rule("mine", lambda: None, update, **more)


def overwriting() -> Rule:
    def update(g: Any, state: Any) -> Any:
        if isinstance(g, Dense):
            for tensor in g.tensors.values():
                tensor.mul_(2)
        return g, state

    return Rule("mine", lambda: None, update)


class Count:
    """A state that nothing can write."""

    steps = 1


def counting() -> Rule:
    return Rule("mine", Count, lambda g, state: (g, state))


def forgetting() -> Rule:
    """A state of words, whose place is lost on the way through a file."""

    def update(g: Any, state: Any) -> Any:
        seen = state[0]
        seen[0] += 1.0
        return g._replace(weights=tuple(w * seen[0] for w in g.weights)), state

    return Rule("mine", lambda: ([0.0],), update)


def remembering() -> Rule:
    """What it has seen is not in its state."""
    seen = [0.0]

    def change(weights: list[float]) -> list[float]:
        seen[0] += 1.0
        return [w * seen[0] for w in weights]

    return ruling(change)


RULES: list[tuple[str, Any]] = [
    ("deterministic", remembering()),
    ("leaves_its_input_alone", overwriting()),
    ("linear_flag", gl.sign()._replace(linear=True)),
    ("linear_flag", gl.scale(1e-3)._replace(linear=False)),
    ("state_round_trip", counting()),
    ("state_round_trip", forgetting()),
    ("replays", remembering()),
    ("resumes", remembering()),
    ("finite", ruling(lambda weights: [w / max(map(abs, weights)) if any(weights) else math.nan for w in weights])),
    ("downhill", ruling(lambda weights: [-w for w in weights])),
    ("learning_rate", gl.scale(1.0)._replace(lr=-1.0)),
    ("learning_rate", gl.scale(1.0)._replace(lr=lambda step: math.nan)),
    ("no_global_generator", ruling(lambda weights: [w + 0 * random.random() for w in weights])),
]


class Damaging(ZerothOrder):
    """Its probe does not restore."""

    def probe(self, closure: Any) -> Any:
        found = super().probe(closure)
        with torch.no_grad():
            self.leaves[0].param.mul_(1.01)
        return found


class Cheap(ZerothOrder):
    """It costs more than it says."""

    def cost(self, step: int) -> int:
        return 1


class Forgetful(ZerothOrder):
    """It begins anew after every load."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.t = 0


def method(kind: Any = ZerothOrder, *, lr: float = 0.4, seed: Any = lambda: 0, before: Any = list, **more: Any) -> Any:
    def make(params: Any) -> ZerothOrder:
        return kind(before(params), seed=seed(), rule=gl.scale(lr), **more)

    return make


def unfrozen(params: Any) -> Any:
    return [(name, p.requires_grad_(True)) for name, p in params]


METHODS: list[tuple[str, Any]] = [
    ("learns", method(lr=1e-9)),
    ("deterministic", method(seed=lambda: next(SIZES))),
    ("deterministic", method(before=lambda params: [(f"{i}", p) for i, (_, p) in enumerate(params)])),
    ("replays_or_says_why_not", method(seed=lambda: next(SIZES))),
    ("restores", method(Damaging)),
    ("counts_its_forwards", method(Cheap)),
    ("resumes", method(Forgetful)),
    ("skips_what_is_not_finite", method(estimator=estimating(told(blind)))),
    ("leaves_frozen_weights_alone", method(before=unfrozen)),
    ("no_global_generator", method(before=lambda params: rolling(list(params)))),
]


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
    ("no_global_generator", by_column(lambda x: rolling(x.mean(0))), {}),
]


def mixing(weights: Any, **more: Any) -> Any:
    return lambda f: PreAggregator("mine", lambda geometry, key: weights(geometry.rows, key), any_number, **more)


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
    given = {"strength": 0.0, **more}
    return Attack("mine", extras or good.extras, send or good.send, **given)


def whole_mean(scene: Any) -> torch.Tensor:
    """Coefficients of the mean of all honest rows, broken ones included."""
    return torch.full((len(scene.honest),), 1 / len(scene.honest), dtype=torch.float64)


def tampering(scene: Any, state: Any) -> Any:
    scene.honest.mul_(2)
    return scene.honest[:0], state


def appending(scene: Any, state: Any) -> Any:
    state.append(1)
    return scene.honest[:0], state


def eavesdropping(scene: Any, state: Any) -> Any:
    return (scene.honest[:0] if scene.flipped is None else scene.flipped), state


def last_or_mean(scene: Any, strength: float, state: Any) -> torch.Tensor:
    row = whole_mean(scene)
    return to_all(scene, row if scene.flipped is None else torch.cat([0 * row, torch.ones(1).double()]))


ATTACKS: list[tuple[str, Any, dict[str, Any]]] = [
    ("well_formed", attacking(lambda scene, s, state: to_all(scene, whole_mean(scene).float())), {}),
    ("well_formed", attacking(lambda scene, s, state: whole_mean(scene).expand(2, scene.attackers, -1)), {}),
    ("well_formed", attacking(extras=lambda scene, state: (scene.honest[:0].double(), state)), {}),
    ("says_what_it_is", attacking(equivocates=True), {}),
    ("says_what_it_is", attacking(goal="harm"), {}),
    ("says_what_it_is", attacking(bounds=(3.0, 1.0), strength=None), {}),
    ("deterministic", attacking(lambda scene, s, state: to_all(scene, whole_mean(scene) * next(SIZES))), {}),
    (
        "state_is_a_value",
        attacking(lambda scene, s, state: to_all(scene, whole_mean(scene) * len(state)), appending, start=list),
        {},
    ),
    ("leaves_rows_alone", attacking(extras=tampering), {}),
    ("sends_finite_rows", nan(), {}),
    (
        "affine_in_the_strength",
        attacking(lambda scene, s, _: to_all(scene, whole_mean(scene) * s**2), strength=None),
        {},
    ),
    ("sees_only_what_it_may", attacking(last_or_mean, eavesdropping), {}),
    ("sees_only_what_it_may", alie(), {"sees": False}),
    (
        "known_geometry_changes_nothing",
        attacking(lambda scene, s, _: to_all(scene, whole_mean(scene) * (1 + (scene.geometry is not None)))),
        {},
    ),
    ("passes_over_diverged_peers", attacking(lambda scene, s, _: to_all(scene, whole_mean(scene))), {}),
    ("no_global_generator", attacking(lambda scene, s, _: to_all(scene, rolling(whole_mean(scene)))), {}),
]

SST2 = tasks.get("sst2")
WORDS = ("a joy to watch .", "a bore .", "so so .", "great fun .", "too long .")
ROWS = [{"sentence": words, "label": i % 2} for i, words in enumerate(WORDS)]


def task(**change: Any) -> tasks.Task:
    return dataclasses.replace(SST2, **change)


def rendering(**change: Any) -> tasks.Task:
    """SST-2 with examples that were changed."""
    return task(render=lambda row: SST2.render(row)._replace(**change), label_words=None)


def emptying(row: Any) -> tasks.Example:
    found = SST2.render(row)
    row.pop("label")
    row["label"] = found.correct[0] + 10
    return found


class Reader:
    """Files without files: what it is told."""

    def __init__(self, *answers: dict[str, list[dict[str, Any]]], strict: bool = True) -> None:
        self.answers = itertools.cycle(answers)
        self.strict = strict

    def __call__(self, folder: Any) -> dict[str, list[dict[str, Any]]]:
        if self.strict and not folder.is_dir():
            raise BadInput(f"{folder} is not a folder: pass --data with the folder that holds the files")
        return next(self.answers)

    def expects(self, split: str) -> tuple[str, ...]:
        return (f"{split}.tsv",)


def rows(split: str, count: int = 12) -> list[dict[str, Any]]:
    return [{"sentence": f"{split} {i}", "label": i % 2} for i in range(count)]


FILES = {"train": rows("train"), "test": rows("test")}
TASKS: list[tuple[str, Any, dict[str, Any]]] = [
    ("record", task(name="SST2"), {}),
    ("record", task(metrics=("acuracy",)), {}),
    ("record", task(label_words=(" terrible",)), {}),
    ("record", task(kind="classify"), {}),
    ("record", task(labels=None), {}),
    ("renders", rendering(prompt="It was "), {}),
    ("renders", task(render=lambda row: "It was"), {}),
    ("has_options", rendering(options=(" great", " great")), {}),
    ("has_options", rendering(options=()), {}),
    ("has_options", task(kind="generation"), {}),
    ("gold_in_range", rendering(correct=(2,)), {}),
    ("gold_in_range", rendering(correct=()), {}),
    ("words_are_the_options", task(label_words=(" great", " terrible")), {}),
    ("words_are_the_options", task(render=lambda row: SST2.render(row)._replace(correct=(0,))), {}),
    ("deterministic", task(render=emptying), {}),
    ("deterministic", task(render=lambda row: SST2.render(row)._replace(prompt=f"{next(SIZES)} was")), {}),
    ("one_mask", task(render_masked=SST2.render), {}),
    ("one_mask", rendering(first=(3, 1)), {}),
    ("has_a_target", rendering(options=(" ", " great"), correct=(0,)), {}),
    ("rows_are_plain", SST2, {"rows": [{**row, "label": str(row["label"])} for row in ROWS]}),
    ("rows_are_plain", SST2, {"rows": [{**row, "label": 7} for row in ROWS]}),
    ("reads_its_files", task(read=Reader(FILES, {**FILES, "train": rows("other")})), {"data": True}),
    ("reads_its_files", task(read=Reader({**FILES, "test": [{"sentence": "x", "label": 3}]})), {"data": True}),
    ("splits_are_disjoint", task(read=Reader({**FILES, "test": rows("train", 3)})), {"data": True}),
    ("splits_are_disjoint", task(read=Reader({**FILES, "train": rows("train", 5) * 3})), {"data": True}),
    ("refuses_missing_files", task(read=Reader(FILES, strict=False)), {}),
]
