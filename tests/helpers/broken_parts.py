"""Directions, estimators, rules, methods and tasks that each break one promise, by the check that must notice."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from typing import Any

import numpy as np
import torch

import gradless as gl
from broken_helpers import SIZES, rolling, rows
from gradless import rng, tasks
from gradless.directions import Directions
from gradless.errors import BadInput
from gradless.estimators import Estimate, Estimator
from gradless.gradients import Dense, Mixture
from gradless.optimizer import ZerothOrder
from gradless.rng import direction_key
from gradless.rules import Rule


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
    arguments = {"queries": lambda step: 1, "forwards": lambda k: 2 * k, **more}
    return Estimator("mine", 1e-3, estimate=estimate, **arguments)


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
    (
        "prefers_lower_losses",
        estimating(told(lambda loss, c: (loss, [math.copysign(1.0, -x) for x in c])), shaped=True),
    ),
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
        measured = super().probe(closure)
        with torch.no_grad():
            self.leaves[0].param.mul_(1.01)
        return measured


class Cheap(ZerothOrder):
    """It costs more than it says."""

    def cost(self, step: int) -> int:
        return 1


class Forgetful(ZerothOrder):
    """It begins anew after every load."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.t = 0


def method(kind: Any = ZerothOrder, *, lr: float = 0.4, seed: Any = lambda: 0, prepare: Any = list, **more: Any) -> Any:
    def make(params: Any) -> ZerothOrder:
        return kind(prepare(params), seed=seed(), rule=gl.scale(lr), **more)

    return make


def unfrozen(params: Any) -> Any:
    return [(name, p.requires_grad_(True)) for name, p in params]


METHODS: list[tuple[str, Any]] = [
    ("learns", method(lr=1e-9)),
    ("deterministic", method(seed=lambda: next(SIZES))),
    ("deterministic", method(prepare=lambda params: [(f"{i}", p) for i, (_, p) in enumerate(params)])),
    ("replays_or_says_why_not", method(seed=lambda: next(SIZES))),
    ("restores", method(Damaging)),
    ("counts_its_forwards", method(Cheap)),
    ("resumes", method(Forgetful)),
    ("skips_what_is_not_finite", method(estimator=estimating(told(blind)))),
    ("leaves_frozen_weights_alone", method(prepare=unfrozen)),
    ("no_global_generator", method(prepare=lambda params: rolling(list(params)))),
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
    example = SST2.render(row)
    row.pop("label")
    row["label"] = example.correct[0] + 10
    return example


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
    ("reads_its_files", task(generate=lambda: {"train": rows(f"{next(SIZES)}")}), {}),
    ("splits_are_disjoint", task(read=Reader({**FILES, "test": rows("train", 3)})), {"data": True}),
    ("splits_are_disjoint", task(generate=lambda: {"train": rows("train"), "test": rows("train", 3)}), {}),
    ("splits_are_disjoint", task(read=Reader({**FILES, "train": rows("train", 5) * 3})), {"data": True}),
    ("refuses_missing_files", task(read=Reader(FILES, strict=False)), {}),
]
