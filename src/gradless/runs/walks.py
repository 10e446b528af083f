"""How far the weights of a run may walk at random: what bounds its steps with ``--lr auto``.

Steps along fresh random directions are nearly orthogonal, so after T steps of a eps the weights have walked a sqrt(T)
eps, most of which is noise. How much of that a model stands differs: MeZO over LoRA breaks down after 4 eps on Gemma 3
270M and after 14 to 20 eps on a BERT of 4.4M weights (docs/log.md). One point at that distance along a random direction
shows it beforehand, by forward passes alone.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Final

from gradless.errors import NotFinite
from gradless.gradients import Mixture
from gradless.lm import schemes
from gradless.methods import METHODS
from gradless.runs import build
from gradless.runs.context import RunContext, closure_of

RISE: Final = 0.1
"""Share by which the mean loss is higher at the end of the walk than at the untouched weights."""
BATCHES: Final = 8
ROUNDS: Final = 3
FIRST: Final = 4.0
LEAST: Final = 0.5
MOST: Final = 32.0
SMALL_LOSS: Final = 0.1
"""What a smaller loss counts as: of a model that is always right any rise would be too much."""
CODES: Final = "codes"  # a scheme whose eps is a whole number


def settled(run: RunContext) -> RunContext:
    """Return the run with the walk that ``--lr auto`` needs, measured on the batches of its first steps.

    Collective. Cost: `BATCHES` forwards, and 2 `BATCHES` more in each of at most `ROUNDS` rounds, mostly one or two.
    """
    config = run.config
    if config.lr != "auto" or config.walk is not None:
        return run
    rise, forwards = _rise(run)
    walk = float(f"{longest(rise, whole=config.scheme == CODES):.3g}")
    config = dataclasses.replace(config, walk=walk)
    step = METHODS[config.method].auto_step(config.steps, walk)
    run.reporter.say(
        f"--lr auto: steps of {step:.2g} eps, since a random walk of {walk:g} eps raises the loss by {RISE:.0%} "
        f"({forwards()} forwards)"
    )
    opt = build.optimizer(config, schemes.trainable(run.model.lm), run.model.norms, run.model.lm.model)
    opt.evaluator.share(run.ranks)
    return run._replace(config=config, model=run.model._replace(optimizer=opt))


def longest(rise: Callable[[float], float], *, whole: bool = False) -> float:
    """Return the distance at which the loss has risen by `RISE`, in units of eps, from `LEAST` to `MOST`.

    Near the weights the loss rises with the square of the distance, so one measurement at about the right distance
    tells it. What is more than twice as near or as far is measured again.

    Args:
        rise: of the loss at a distance, as a share of the loss; NaN or infinite where the loss is.
        whole: measure at whole distances.
    """
    distance = FIRST
    for _ in range(ROUNDS):
        measured = rise(distance)
        factor = math.sqrt(RISE / measured) if measured > 0 else 4.0
        factor = min(max(factor, 0.25), 4.0) if math.isfinite(measured) else 0.25
        guess = min(max(distance * factor, LEAST), MOST)
        nearest = max(1.0, round(guess)) if whole else guess
        if 0.5 <= factor <= 2.0 or nearest == distance:
            return guess
        distance = nearest
    return guess


def _rise(run: RunContext) -> tuple[Callable[[float], float], Callable[[], int]]:
    """Return a function that measures the rise at a distance, and one that tells the forwards so far."""
    opt, eps = run.model.optimizer, run.config.eps
    assert eps is not None

    def loss(step: int, size: float) -> float:
        mixture = Mixture((opt.key(step, 0),), (1.0,)) if size else Mixture((), ())
        try:
            return opt.evaluator.value(closure_of(run, step), mixture, size)
        except NotFinite:
            return math.inf

    steps = range(BATCHES)
    here = [loss(step, 0.0) for step in steps]

    def rise(distance: float) -> float:
        sides = [(loss(step, distance * eps) + loss(step, -distance * eps)) / 2 for step in steps]
        return (statistics.fmean(sides) - statistics.fmean(here)) / max(statistics.fmean(here), SMALL_LOSS)

    return rise, lambda: opt.evaluator.forwards
