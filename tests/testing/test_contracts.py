"""All directions, estimators, rules and tasks against the public suites of their kind."""

from __future__ import annotations

import pytest
import torch

import gradless as gl
from gradless import rules, tasks
from gradless.directions import blocks
from gradless.rules import muon, normalise, stored
from gradless.testing import direction_checks, estimator_checks, rule_checks, task_checks
from gradless.testing.problems import SHAPES, parameters
from repository import SHARED_DATA

HALF = {name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for name, p in parameters().items()}
DIRECTIONS = {
    "rademacher": gl.rademacher,
    "gaussian": gl.gaussian,
    "low_rank": lambda: gl.low_rank(2, refresh=3),
    "wide low_rank": lambda: gl.low_rank(8),
    "scaled": lambda: gl.scaled(gl.rademacher(), dict.fromkeys(SHAPES, 0.5)),
    "masked": lambda: gl.masked(gl.gaussian(), HALF),
    "sparse": lambda: gl.sparse(gl.rademacher(), "magnitude", 0.5, group="global"),
    "random_blocks": lambda: blocks.random_blocks(gl.rademacher(), keep=1),
    "one_by_one": lambda: blocks.one_by_one(gl.rademacher(), list(SHAPES))[0],
}
ESTIMATORS = {
    "spsa": gl.spsa,
    "one_sided": gl.one_sided,
    "forward_grad": gl.forward_grad,
    "backprop": gl.backprop,
    "hybrid": lambda: gl.hybrid(gl.spsa(), lambda name: name.startswith("layers.1")),
}
RULES = {
    "scale": lambda: gl.scale(1e-3),
    "momentum": lambda: gl.momentum(0.9),
    "adam": lambda: gl.adam(window=8),
    "chain": lambda: gl.chain(gl.momentum(0.5), gl.scale(gl.linear(1e-3, 100, warmup=5))),
    "cosine": lambda: gl.scale(gl.cosine(1e-3, 100)),
    "constant": lambda: gl.scale(gl.constant(1e-3)),
    "heavy_ball": stored.heavy_ball,
    "stored_adam": stored.stored_adam,
    "clip": lambda: stored.clip(1.0),
    "sign": normalise.sign,
    "scalar_sign": normalise.scalar_sign,
    "std_normalised": normalise.std_normalised,
    "rms_normalised": normalise.rms_normalised,
    "normalised momentum": lambda: gl.chain(normalise.rms_normalised(), gl.momentum(0.9)),
    "on_stored": lambda: rules.on_stored(stored.stored_adam()),
    "orthogonalise": muon.orthogonalise,
}
OPTIONS = {"orthogonalise": {"directions": lambda: gl.low_rank(2, refresh=3)}}


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("check", direction_checks())
def test_directions(name, check):
    check(DIRECTIONS[name]())


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("check", estimator_checks())
def test_estimators(name, check):
    check(ESTIMATORS[name]())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("check", rule_checks(), ids=str)
def test_rules(name, check):
    (chosen,) = (c for c in rule_checks(**OPTIONS.get(name, {})) if c.name == check.name)
    chosen(RULES[name]())


FOLDERS = {"sst2": "sst2", "cb": "superglue", "copa": "superglue", "squad": "squad", "mr": "mr"}
OVERLAP = 0.05  # of published test rows that are training rows as well


@pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent; set GRADLESS_SHARED_DATA to the folder with the data"
)
@pytest.mark.parametrize("name", FOLDERS)
def test_tasks_with_their_files(name):
    task = tasks.get(name)
    folder = SHARED_DATA / FOLDERS[name]
    rows = task.read(folder)["test"][:20]
    for check in task_checks(rows=rows, data=folder, overlap=OVERLAP):
        check(task)
