"""How an optimizer comes to where another one was: by its state, as its copy, or by taking logged updates again."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch

from gradless import rng
from gradless.errors import BadInput
from gradless.forward import parameters
from gradless.forward.engines import AUTO, ENGINES, EngineChoice
from gradless.forward.evaluator import LossEvaluator
from gradless.forward.prefix_cache import PrefixCache
from gradless.forward.updates import Step, write_all
from gradless.gradients import Update
from gradless.optimizer import contract
from gradless.rules import like, plain

Optimizer = Any  # `gradless.ZerothOrder`, which is made of this
COUNTERS: Final = ("seed", "t", "forwards", "skipped", "skipped_row", "rule", "masks")
NAMED: Final = ("rule", "directions")
"""Parts of an optimizer whose names a state has under ``<part>_name``; states of older releases do not tell them."""
SAME_METHOD: Final = "create the optimizer by the method that the state was saved from"


def counters(opt: Optimizer) -> dict[str, Any]:
    """The part of a state that torch does not know, all plain lists, numbers and tensors."""
    return {
        "seed": opt.seed,
        "t": opt.t,
        "forwards": opt.evaluator.forwards,
        "skipped": opt.skipped,
        "skipped_row": opt._skipped_row,
        "rule": plain(opt._rule_state),
        "masks": {leaf.name: leaf.mask.clone() for leaf in opt.leaves if leaf.mask is not None},
        "engine": opt.engine,
        **{f"{part}_name": getattr(opt, part).name for part in NAMED},
    }


def check(opt: Optimizer, state: dict[str, Any]) -> Any:
    """Refuse a state that is not one of such an optimizer; returns the state of the rule, for `load`.

    Raises:
        BadInput: it is of another optimizer, method or seed, or of other parameters.
    """
    own = state.get("gradless")
    if not isinstance(own, dict) or not own.keys() >= set(COUNTERS) or not state.keys() >= {"state", "param_groups"}:
        raise BadInput("this state dict was not written by a gradless optimizer")
    if own["seed"] != opt.seed:
        raise BadInput(f"this state belongs to seed {own['seed']}, not {opt.seed}: create the optimizer with it")
    contract.check_names(opt.param_groups, state["param_groups"])
    shapes = {leaf.name: leaf.mask.shape for leaf in opt.leaves if leaf.mask is not None}
    if {name: mask.shape for name, mask in own["masks"].items()} != shapes:
        raise BadInput("this state has masks of other parameters: create the optimizer from the base weights")
    for part in NAMED:
        then, now = own.get(f"{part}_name"), getattr(opt, part).name
        if then is not None and then != now:
            raise BadInput(f"this state is of a method whose {part} is '{then}', not '{now}': {SAME_METHOD}")
    first = opt.rule.init()
    try:
        return like(first, own["rule"])
    except (TypeError, ValueError, LookupError, AttributeError):
        raise BadInput(f"this state is not one of the rule '{opt.rule.name}': {SAME_METHOD}") from None


def load(opt: Optimizer, own: dict[str, Any], rule_state: Any) -> None:
    """Take over what `counters` returned, and what `check` made of it. Deferred updates are dropped."""
    opt._deferred.drop()
    opt.evaluator.unchecked = opt.check
    opt.t, opt.evaluator.forwards, opt.skipped = own["t"], own["forwards"], own["skipped"]
    opt._skipped_row = own["skipped_row"]
    opt._rule_state = rule_state
    if opt.engine == AUTO and own.get("engine") in ENGINES:  # states of older releases do not tell
        opt.evaluator.settle(EngineChoice(own["engine"], reason="that of the state that was loaded", step=own["t"]))
    for leaf in opt.leaves:
        if leaf.mask is not None:  # made anew, from weights that may have been trained already
            leaf.mask.copy_(own["masks"][leaf.name])


def twin(opt: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy that goes on by itself, over copies of the parameters: those of a model that is copied with it.

    Hooks, and the wrapper that torch's schedulers put around ``step``, stay behind. Processes are shared.
    """
    other: Optimizer = object.__new__(opt.__class__)
    memo[id(opt)] = other
    for name, value in vars(opt).items():
        if name.startswith("_optimizer_"):
            setattr(other, name, OrderedDict())
        elif name not in ("step", "evaluator", "leaves", "_deferred", "_signature"):
            setattr(other, name, copy.deepcopy(value, memo))
    other.leaves = [
        leaf._replace(param=copy.deepcopy(leaf.param, memo), mask=copy.deepcopy(leaf.mask, memo)) for leaf in opt.leaves
    ]
    other._deferred = opt._deferred.copied(other.leaves)
    other._signature = parameters.signature(other.param_groups)
    old = opt.evaluator
    new = LossEvaluator(other.leaves, engine=old.engine, deferred=other._deferred, ranks=old.ranks, check=old.unchecked)
    new.forwards, new.check_forwards, new.trial_forwards = old.forwards, old.check_forwards, old.trial_forwards
    new.choice = old.choice
    new.prefix = None if old.prefix is None else PrefixCache(copy.deepcopy(old.prefix.model, memo))
    other.evaluator = new
    return other


@torch.no_grad()
def replay(opt: Optimizer, updates: Sequence[Update], chunk: int) -> None:
    """See `gradless.ZerothOrder.replay`."""
    if opt.estimator.deep is not None:
        raise BadInput(
            f"steps of {opt.estimator.name} cannot be replayed: gradients of backpropagation are in no ledger"
        )
    opt.follow()
    fused = opt.rule.linear and all(leaf.draw is None for leaf in opt.leaves)
    for begin in range(0, len(updates), chunk):
        part = updates[begin : begin + chunk]
        if part[0].step != opt.t or part[-1].step != opt.t + len(part) - 1:
            raise BadInput(f"updates {part[0].step}..{part[-1].step} do not follow step {opt.t}: replay them in order")
        if fused:
            _fused(opt, part)
            continue
        for update in part:
            if update.skipped:
                opt.skip()
            else:
                opt.apply(opt.sketch(update), lrs=update.lrs)
    opt.flush()


def _fused(opt: Optimizer, updates: Sequence[Update]) -> None:
    """Updates of a linear rule, in one sweep."""
    steps = []
    for update in updates:
        if update.skipped:
            opt.skip()
            continue
        check_groups(opt, update.lrs)
        opt.t, opt._skipped_row = update.step + 1, 0
        mixture, opt._rule_state = opt.rule.update(opt.sketch(update).mixture(), opt._rule_state)
        steps.append(Step(mixture, update.lrs, opt._decays(update.lrs), rng.rounding_key(opt.seed, update.step)))
    with opt._writing():
        write_all(opt.leaves, steps)


def check_groups(opt: Optimizer, lrs: Sequence[float]) -> None:
    """Refuse learning rates of another number of groups."""
    if len(lrs) != len(opt.param_groups):
        raise BadInput(
            f"the update has learning rates for {len(lrs)} parameter groups, and the optimizer has "
            f"{len(opt.param_groups)}: make it with the groups of the run"
        )
