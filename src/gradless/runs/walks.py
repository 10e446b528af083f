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
from collections.abc import Callable, Sequence
from typing import Final

import torch

from gradless.errors import BadInput
from gradless.gradients import Mixture
from gradless.lm import schemes
from gradless.methods import METHODS, Method
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


@torch.no_grad()
def settled(run: RunContext) -> RunContext:
    """Return the run with the walk that ``--lr auto`` needs, measured on the batches of its first steps.

    Collective. Cost: `BATCHES` forwards, and 2 `BATCHES` more in each of at most `ROUNDS` rounds, mostly one or two;
    the memory of a forward.

    Raises:
        BadInput: the run writes texts, which are too dear to write for that.
    """
    config = run.config
    if config.lr != "auto" or config.walk is not None:
        return run
    if run.objective.of_texts is not None:
        raise BadInput(
            f"--lr auto would write {BATCHES * (1 + 2 * ROUNDS)} batches of texts before the first step: give --walk, "
            f"for instance {FIRST:g}, or a learning rate"
        )
    rise, forwards = _rise(run)
    walk = float(f"{longest(rise, whole=config.scheme == CODES):.3g}")
    config = dataclasses.replace(config, walk=walk)
    run.reporter.say(f"--lr auto: {sentence(METHODS[config.method], config.steps, walk)} ({forwards()} forwards)")
    opt = build.optimizer(config, schemes.trainable(run.model.lm), run.model.norms, run.model.lm.model)
    opt.evaluator.share(run.ranks)
    return run._replace(config=config, model=run.model._replace(optimizer=opt))


def sentence(method: Method, steps: int, walk: float) -> str:
    """Return how long a run's steps are with ``--lr auto``, and why.

    Example:
        >>> sentence(METHODS["mezo"], 400, 3.0), sentence(METHODS["mezo"], 4, 32.0)
        ('steps of 0.15 eps; the loss is 10% higher after a random walk of 3 eps', 'steps of 0.45 eps, the longest; \
the loss is not yet 10% higher after a random walk of 32 eps')
    """
    step = method.auto_step(steps, walk)
    bound = "" if step * math.sqrt(steps) >= walk * (1 - 1e-9) else ", the longest"
    rise = f"more than {RISE:.0%} higher" if walk <= LEAST else f"{'not yet ' * (walk >= MOST)}{RISE:.0%} higher"
    return f"steps of {step:.2g} eps{bound}; the loss is {rise} after a random walk of {walk:g} eps"


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


def share(here: Sequence[float], there: Sequence[float]) -> float:
    """Return by which share of its size the mean loss is higher there; losses of some objectives are negative."""
    base = statistics.fmean(here)
    return (statistics.fmean(there) - base) / max(abs(base), SMALL_LOSS)


def _rise(run: RunContext) -> tuple[Callable[[float], float], Callable[[], int]]:
    """Return a function that measures the rise at a distance, and one that tells the forwards so far."""
    opt, eps = run.model.optimizer, run.config.eps
    assert eps is not None

    def loss(step: int, size: float) -> float:
        mixture = Mixture((opt.key(step, 0),), (1.0,)) if size else Mixture((), ())
        return opt.evaluator.value(closure_of(run, step), mixture, size)

    steps = range(BATCHES)
    here = [loss(step, 0.0) for step in steps]

    def rise(distance: float) -> float:
        return share(here, [(loss(step, distance * eps) + loss(step, -distance * eps)) / 2 for step in steps])

    return rise, lambda: opt.evaluator.forwards
