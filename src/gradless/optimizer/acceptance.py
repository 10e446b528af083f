"""An update tried out before it is made: what an acceptance policy sees of it, and what it does to the rates."""

from __future__ import annotations

import math
from typing import Any

import torch

from gradless import rng
from gradless.errors import BadInput
from gradless.forward.losses import Closure, checked
from gradless.gradients import Mixture, Probe


@torch.no_grad()
def accepted(opt: Any, closure: Closure, probe: Probe, lrs: tuple[float, ...]) -> tuple[float, ...]:
    """Learning rates times what the policy of a `gradless.ZerothOrder` makes of the update.

    A refused step does not decay either.
    """
    direction, _ = opt.rule.update(probe.sketch.mixture(), opt._rule_state)
    if not isinstance(direction, Mixture):
        raise BadInput("acceptance needs a linear rule: element-wise updates cannot be tried out")
    mixture, rounding = direction, rng.rounding_key(opt.seed, opt.t)
    random = probe.random or opt.evaluator.random_state()
    closure = checked(random.pinned(closure))

    def value(a: float) -> float:
        evaluate = opt.evaluator.value
        if not a:
            unmoved: float = evaluate(closure, Mixture((), ()), 0.0)
            return unmoved
        size = tuple(-a * lr for lr in lrs)
        moved: float = evaluate(closure, mixture, size, rounding=rounding, update=True, decay=opt._decays(size))
        return moved

    with random.revisited():
        factor = opt.accept(value)
    if not math.isfinite(factor):
        raise BadInput(f"the acceptance policy returned {factor}: return the factor of the update, 0 to refuse it")
    return tuple(lr * factor for lr in lrs)
