"""What update rules promise: to be pure functions, with a state that survives a file and runs that replay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from gradless import rng
from gradless.directions import Directions, rademacher
from gradless.errors import BadInput
from gradless.estimators import spsa
from gradless.gradients import Dense, Gradient, Lazy, Leaf, Mixture, Update
from gradless.optimizer import ZerothOrder
from gradless.rules import Rule, chain, like, plain, scale
from gradless.testing import problems
from gradless.testing.checks import Check, demand, generators_untouched, run, suite

STEPS: Final = 6
LR: Final = 1e-3
DOWNHILL: Final = 50  # steps


class Setting(NamedTuple):
    """What a suite of checks is run with."""

    queries: int
    directions: Callable[[], Directions]
    dense: bool


def rule_checks(
    *, queries: int = 4, directions: Callable[[], Directions] = rademacher, dense: bool = True
) -> tuple[Check, ...]:
    """Checks of a `Rule`, each called with it.

    Args:
        queries: coefficients of a step; some rules need several.
        directions: makes the directions, for rules that go with some.
        dense: also try stored gradients, as backpropagation leaves them. A rule that does not take them refuses
            with `BadInput`.
    """
    return suite("rule", CHECKS, Setting(queries, directions, dense))


def check_rule(
    rule: Rule, *, queries: int = 4, directions: Callable[[], Directions] = rademacher, dense: bool = True
) -> None:
    """Run all checks of `rule_checks`.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless import momentum
        >>> check_rule(momentum(0.9))
    """
    run(rule_checks(queries=queries, directions=directions, dense=dense), rule)


def deterministic(rule: Rule, setting: Setting) -> None:
    """The same gradients from the same state give the same updates, bit for bit."""
    for kind, gradients in _inputs(rule, setting).items():
        one, other = (_updates(rule, rule.init(), gradients, setting) for _ in range(2))
        _equal(one, other, f"of {kind} in a second run from init()")


def leaves_its_input_alone(rule: Rule, setting: Setting) -> None:
    """The gradient that it is given is not written to."""
    for kind, gradients in _inputs(rule, setting).items():
        earlier = [{n: t.clone() for n, t in g.tensors.items()} for g in gradients if isinstance(g, Dense)]
        _updates(rule, rule.init(), gradients, setting)
        later = [g.tensors for g in gradients if isinstance(g, Dense)]
        for step, (was, now) in enumerate(zip(earlier, later, strict=True)):
            name = problems.differing(was, dict(now))
            demand(not name, f"the stored gradient of '{name}' was changed at step {step} of {kind}")


def linear_flag(rule: Rule, setting: Setting) -> None:
    """`linear` is set if and only if mixtures become mixtures and stored gradients stay stored."""
    results = [g for gradients in _inputs(rule, setting).values() for g in _results(rule, gradients)]
    kinds = {type(g).__name__ for g in results}
    mixtures = [g for g in _results(rule, _mixtures(setting)) if not isinstance(g, Mixture)]
    if rule.linear:
        demand(
            not mixtures and not any(isinstance(g, Lazy) for g in results),
            f"linear is True, but the results are {', '.join(sorted(kinds))}: fused replay and acceptance would fail",
        )
    else:
        demand(
            bool(mixtures) or any(isinstance(g, Lazy) for g in results),
            f"linear is False, but all results are {', '.join(sorted(kinds))}: replay would go step by step",
        )


def state_round_trip(rule: Rule, setting: Setting) -> None:
    """The state survives plain() and like(): lists, numbers, words and tensors on the way, the same updates after."""
    for kind, gradients in _inputs(rule, setting).items():
        half = len(gradients) // 2
        state = rule.init()
        for g in gradients[:half]:
            state = _made(rule, g, state, setting)[1]
        saved = plain(state)
        _demand_plain(saved)
        if not _has_tensors(saved):
            saved = json.loads(json.dumps(saved))
        restored = like(rule.init(), saved)
        one = _updates(rule, restored, gradients[half:], setting)
        other = _updates(rule, state, gradients[half:], setting)
        _equal(one, other, f"of {kind} after like(init(), plain(state)) at step {half}")


def replays(rule: Rule, setting: Setting) -> None:
    """A run's coefficients and learning rates rebuild its weights bit for bit, in one sweep or several."""
    model = _model()
    opt = _optimizer(rule, model, setting)
    updates = []
    for step in range(STEPS):
        if step == 2:
            updates.append(Update(step, (), opt.learning_rates(), True))
            opt.skip()
        else:
            updates.append(opt.step_with(model)[1])
    for chunk in (2, STEPS):
        again = _model()
        _optimizer(rule, again, setting).replay(updates, chunk=chunk)
        name = problems.differing(_bits(model), _bits(again))
        demand(
            not name, f"'{name}' differs after a replay of {STEPS} steps in chunks of {chunk} (seed 3, step 2 skipped)"
        )


def resumes(rule: Rule, setting: Setting) -> None:
    """An optimizer that is saved and loaded continues to the same weights."""
    whole, stopped, resumed = _model(), _model(), _model()
    opt = _optimizer(rule, whole, setting)
    for _ in range(STEPS):
        opt.step(whole)
    first = _optimizer(rule, stopped, setting)
    for _ in range(STEPS // 2):
        first.step(stopped)
    state = first.state_dict()
    resumed.load_state_dict(stopped.state_dict())
    first.step(stopped)  # what it does now must not reach the state that was taken
    second = _optimizer(rule, resumed, setting)
    second.load_state_dict(state)
    for _ in range(STEPS - STEPS // 2):
        second.step(resumed)
    name = problems.differing(_bits(whole), _bits(resumed))
    demand(not name, f"'{name}' differs after state_dict at step {STEPS // 2} of {STEPS} (seed 3)")


def finite(rule: Rule, setting: Setting) -> None:
    """Zero, tiny and large coefficients give finite updates."""
    for size in (0.0, 1e-20, 1e6):
        gradients = [g._replace(weights=tuple(w * size for w in g.weights)) for g in _mixtures(setting)]
        for step, update in enumerate(_updates(rule, rule.init(), gradients, setting)):
            for name, tensor in update.items():
                sound = bool(tensor.isfinite().all())
                demand(sound, f"the update of '{name}' is not finite at step {step} with coefficients of size {size:g}")


def downhill(rule: Rule, setting: Setting) -> None:
    """Updates point along the gradient on average."""
    model = _model()
    opt = _optimizer(rule, model, setting)
    exact = {n: p.detach() - model.targets[n] for n, p in model.named_parameters()}
    total = {leaf.name: torch.zeros(leaf.param.shape) for leaf in opt.leaves}
    state = rule.init()
    for step in range(DOWNHILL):
        opt.t = step
        g, state = rule.update(opt.probe(model).sketch.mixture(), state)
        for leaf in opt.leaves:
            total[leaf.name] += g.leaf(leaf)
    one, other = (torch.cat([t.flatten() for _, t in sorted(x.items())]) for x in (total, exact))
    cosine = float(torch.cosine_similarity(one, other, dim=0))
    # 200 directions in 76 dimensions: a cosine of about sqrt(200 / 276) = 0.85 for the plain sum.
    demand(cosine > 0.4, f"the sum of {DOWNHILL} updates has a cosine of {cosine:.2f} with the gradient (seed 3)")


def learning_rate(rule: Rule, setting: Setting) -> None:
    """`lr` is None, a positive number, or a schedule of finite rates that are not negative."""
    if rule.lr is None:
        return
    rates = [rule.lr(step) for step in (0, 1, 10, 1000)] if callable(rule.lr) else [rule.lr]
    for rate in rates:
        good = isinstance(rate, int | float) and math.isfinite(rate) and (rate > 0 or (callable(rule.lr) and rate == 0))
        demand(good, f"the learning rate is {rate!r}")


def no_global_generator(rule: Rule, setting: Setting) -> None:
    """Updating does not move the global generators of torch, numpy and random."""
    with generators_untouched():
        for gradients in _inputs(rule, setting).values():
            _updates(rule, rule.init(), gradients, setting)


CHECKS = (
    *(deterministic, leaves_its_input_alone, linear_flag, state_round_trip, replays, resumes, finite, downhill),
    *(learning_rate, no_global_generator),
)


def _model() -> problems.Model:
    return problems.Model(blocks=2, width=4)


def _optimizer(rule: Rule, model: nn.Module, setting: Setting) -> ZerothOrder:
    rated = rule if rule.lr is not None else chain(rule, scale(LR))
    estimator = spsa(eps=1e-3, queries=setting.queries)
    return ZerothOrder(
        model.named_parameters(), seed=3, directions=setting.directions(), estimator=estimator, rule=rated
    )


def _leaves(setting: Setting) -> list[Leaf]:
    named = [(name, nn.Parameter(p)) for name, p in problems.parameters().items()]
    return ZerothOrder(named, seed=3, directions=setting.directions()).leaves


def _mixtures(setting: Setting) -> list[Mixture]:
    """Estimates of some steps."""
    mixtures = []
    key = setting.directions().key
    for step in range(STEPS):
        weights = rng.normal(step, "coefficients", (setting.queries,)).tolist()
        keys = tuple(key(3, step, query) for query in range(setting.queries))
        mixtures.append(Mixture(keys, tuple(w / setting.queries for w in weights)))
    return mixtures


def _inputs(rule: Rule, setting: Setting) -> dict[str, list[Any]]:
    """Gradients by kind; stored ones only if the rule takes them."""
    mixtures = _mixtures(setting)
    kinds: dict[str, list[Any]] = {"mixtures": list(mixtures)}
    stored = [
        Dense({n: rng.normal(20 + t, n, s) for n, s in problems.SHAPES.items() if "layers" in n}, mixture)
        for t, mixture in enumerate(mixtures)
    ]
    if setting.dense:
        try:
            rule.update(stored[0], rule.init())
        except BadInput:
            return kinds
        kinds["stored gradients"] = list(stored)
    return kinds


def _made(rule: Rule, g: Gradient, state: Any, setting: Setting) -> tuple[dict[str, Tensor], Any]:
    """One update of every leaf, each made once, and the state after."""
    result, state = rule.update(g, state)
    return {leaf.name: result.leaf(leaf).clone() for leaf in _leaves(setting)}, state


def _updates(rule: Rule, state: Any, gradients: list[Any], setting: Setting) -> list[dict[str, Tensor]]:
    updates = []
    for g in gradients:
        update, state = _made(rule, g, state, setting)
        updates.append(update)
    return updates


def _results(rule: Rule, gradients: list[Any]) -> list[Gradient]:
    state, results = rule.init(), []
    for g in gradients:
        result, state = rule.update(g, state)
        results.append(result)
    return results


def _equal(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]], what: str) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        name = problems.differing(problems.bits(a), problems.bits(b))
        demand(not name, f"the update of '{name}' at step {step} {what} differs (coefficients of seed {step})")


def _demand_plain(value: Any) -> None:
    """Demand what any serializer can write."""
    if isinstance(value, list):
        for item in value:
            _demand_plain(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            demand(isinstance(name, str), f"the state has a key {name!r} that is no word")
            _demand_plain(item)
    else:
        sound = value is None or isinstance(value, bool | int | float | str | Tensor)
        demand(sound, f"the state holds a {type(value).__name__}: use tuples, numbers, words and tensors by leaf")


def _has_tensors(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(_has_tensors(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


def _bits(model: nn.Module) -> dict[str, Tensor]:
    return problems.bits(dict(model.named_parameters()))
