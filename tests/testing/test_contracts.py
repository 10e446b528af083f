"""All directions, estimators, rules and tasks against the public suites of their kind."""

from __future__ import annotations

import inspect

import pytest
import torch

import gradless as gl
from gradless import directions, estimators, rules, tasks
from gradless.directions import DIRECTIONS
from gradless.estimators import ESTIMATORS
from gradless.rules import RULES
from gradless.testing import direction_checks, estimator_checks, rule_checks, task_checks
from gradless.testing.problems import SHAPES, parameters
from repository import SHARED_DATA

HALF = {name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for name, p in parameters().items()}
# A row whose function has defaults for all its arguments is checked with them; others need a case of their name here.
# Further names are further cases.
DIRECTION_CASES = {
    "low_rank": lambda: gl.low_rank(2, refresh=3),
    "wide low_rank": lambda: gl.low_rank(8),
    "scaled": lambda: gl.scaled(gl.rademacher(), dict.fromkeys(SHAPES, 0.5)),
    "masked": lambda: gl.masked(gl.gaussian(), HALF),
    "sparse": lambda: gl.sparse(gl.rademacher(), "magnitude", 0.5, group="global"),
    "ternary": lambda: gl.ternary(0.25),
    "random_blocks": lambda: gl.random_blocks(gl.rademacher(), keep=1),
    "one_by_one": lambda: gl.one_by_one(gl.rademacher(), list(SHAPES))[0],
}
ESTIMATOR_CASES = {"hybrid": lambda: gl.hybrid(gl.spsa(), lambda name: name.startswith("layers.1"))}
RULE_CASES = {
    "scale": lambda: gl.scale(1e-3),
    "adam": lambda: gl.adam(window=8),
    "chain": lambda: gl.chain(gl.momentum(0.5), gl.scale(gl.linear(1e-3, 100, warmup=5))),
    "cosine": lambda: gl.scale(gl.cosine(1e-3, 100)),
    "constant": lambda: gl.scale(gl.constant(1e-3)),
    "clip": lambda: gl.clip(1.0),
    "normalised momentum": lambda: gl.chain(gl.rms_normalised(), gl.momentum(0.9)),
    "on_stored": lambda: gl.on_stored(gl.stored_adam()),
}
OPTIONS = {"orthogonalise": {"directions": lambda: gl.low_rank(2, refresh=3)}}


def cases(table, own):
    """A function without arguments for every row and every further case."""
    return {**{name: part.make for name, part in table.items()}, **own}


@pytest.mark.parametrize(
    ("table", "own"), [(DIRECTIONS, DIRECTION_CASES), (ESTIMATORS, ESTIMATOR_CASES), (RULES, RULE_CASES)]
)
def test_every_row_has_a_case(table, own):
    for name, part in table.items():
        assert part.make.__name__ == name
        required = [p for p in inspect.signature(part.make).parameters.values() if p.default is p.empty]
        assert not required or name in own, f"'{name}' needs arguments: give it a case above"


@pytest.mark.parametrize(
    ("package", "kind", "table"),
    [(directions, "Directions", DIRECTIONS), (estimators, "Estimator", ESTIMATORS), (rules, "Rule", RULES)],
)
def test_every_public_function_has_a_row(package, kind, table):
    functions = {name: getattr(package, name) for name in package.__all__}
    makers = {name for name, make in functions.items() if kind in inspect.signature(make).return_annotation}
    assert makers <= set(table), f"give {makers - set(table)} a row in the table of gradless.{package.__name__}"


@pytest.mark.parametrize("name", cases(DIRECTIONS, DIRECTION_CASES))
@pytest.mark.parametrize("check", direction_checks())
def test_directions(name, check):
    check(cases(DIRECTIONS, DIRECTION_CASES)[name]())


@pytest.mark.parametrize("name", cases(ESTIMATORS, ESTIMATOR_CASES))
@pytest.mark.parametrize("check", estimator_checks())
def test_estimators(name, check):
    check(cases(ESTIMATORS, ESTIMATOR_CASES)[name]())


@pytest.mark.parametrize("name", cases(RULES, RULE_CASES))
@pytest.mark.parametrize("check", rule_checks(), ids=str)
def test_rules(name, check):
    (chosen,) = (c for c in rule_checks(**OPTIONS.get(name, {})) if c.name == check.name)
    chosen(cases(RULES, RULE_CASES)[name]())


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
