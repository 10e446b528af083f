"""What methods promise: they learn, cost what they say, leave weights alone that are not theirs, and can be rebuilt."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gradless.errors import BadInput
from gradless.estimators import BACKPROP, FORWARD_MODE
from gradless.forward.engines import AUTO, STREAM, EngineChoice
from gradless.optimizer import ZerothOrder
from gradless.testing import problems
from gradless.testing.checks import Check, demand, generators_untouched, run, suite

Make = Callable[[Iterable[Any]], ZerothOrder]
STEPS: Final = 8


class Setting(NamedTuple):
    """What a suite of checks is run with."""

    steps: int
    factor: float
    model: Callable[[], nn.Module]


def method_checks(
    *, steps: int = 100, factor: float = 0.7, model: Callable[[], nn.Module] = problems.Model
) -> tuple[Check, ...]:
    """Checks of a method: a function from named parameters to an optimizer, each called with it.

    Args:
        steps: how long the method may take...
        factor: ...to bring the loss below this share of its start.
        model: makes the problem, a module whose call returns the loss, with the same values every time. By default a
            quadratic over 116 weights in a model's clothes, with a loss of about 1.
    """
    return suite("method", CHECKS, Setting(steps, factor, model))


def check_method(
    make: Make, *, steps: int = 100, factor: float = 0.7, model: Callable[[], nn.Module] = problems.Model
) -> None:
    """Run all checks of `method_checks`; a few seconds.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless import mezo
        >>> check_method(lambda params: mezo(params, lr=0.4, eps=1e-3, seed=1))
    """
    run(method_checks(steps=steps, factor=factor, model=model), make)


def _one_engine(check: Callable[[Make, Setting], None]) -> Callable[[Make, Setting], None]:
    """The check, in which the engine ``auto`` is not measured: two runs must not differ by how fast they were."""

    @functools.wraps(check)
    def checked(make: Make, setting: Setting) -> None:
        def make_on_stream(params: Iterable[Any]) -> ZerothOrder:
            opt = make(params)
            if opt.engine == AUTO:
                opt.evaluator.settle(EngineChoice(STREAM, reason="that of checks"))
            return opt

        check(make_on_stream, setting)

    return checked


def learns(make: Make, setting: Setting) -> None:
    """It brings the loss of a small problem down."""
    model = setting.model()
    opt, start = make(model.named_parameters()), _loss(model)
    for _ in range(setting.steps):
        opt.step(model)
    opt.flush()
    end = _loss(model)
    demand(
        math.isfinite(end) and end < setting.factor * start,
        f"the loss went from {start:.4f} to {end:.4f} in {setting.steps} steps, not below {setting.factor:g} of it",
    )


def deterministic(make: Make, setting: Setting) -> None:
    """Two runs from the same weights end with the same bits, in any order of parameters without stored gradients."""
    ends = []
    for order in (1, 1, -1):
        model = setting.model()
        opt = make(list(model.named_parameters())[::order])
        if order < 0 and opt.estimator.deep is not None:
            return  # norms over stored gradients are sums, which are rounded in order
        for _ in range(STEPS):
            opt.step(model)
        opt.flush()
        ends.append(_bits(model))
    name = problems.differing(ends[0], ends[1])
    demand(not name, f"'{name}' differs after {STEPS} steps of a second run")
    name = problems.differing(ends[0], ends[2])
    demand(not name, f"'{name}' differs after {STEPS} steps with the parameters in reverse order")


def replays_or_says_why_not(make: Make, setting: Setting) -> None:
    """A replay of its moves gives the same bits, or is refused with a sentence."""
    model, again = setting.model(), setting.model()
    opt = make(model.named_parameters())
    updates = [opt.step_with(model)[1] for _ in range(STEPS)]
    opt.flush()
    try:
        make(again.named_parameters()).replay(updates)
    except BadInput as error:
        demand("\n" not in str(error) and bool(str(error)), "a replay is refused without a sentence")
        return
    name = problems.differing(_bits(model), _bits(again))
    demand(not name, f"'{name}' differs after a replay of {STEPS} moves, and nothing says that it cannot be replayed")


def restores(make: Make, setting: Setting) -> None:
    """A probe leaves the weights bit for bit as they were, in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        model = setting.model().to(dtype)
        opt, earlier = make(model.named_parameters()), _bits(model)
        opt.probe(model)
        name = problems.differing(earlier, _bits(model))
        demand(not name, f"'{name}' in {dtype} was changed by a probe")
        demand(all(p.requires_grad for p in model.parameters()), "requires_grad was taken away by a probe")


def counts_its_forwards(make: Make, setting: Setting) -> None:
    """`forwards` and `cost` are the calls of the closure, a slope counted as two and a gradient as three."""
    model = setting.model()
    opt = make(model.named_parameters())
    called = [0]

    def closure() -> Tensor:
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            called[0] += BACKPROP
        else:
            called[0] += FORWARD_MODE if forward_ad._current_level >= 0 else 1  # type: ignore[attr-defined, unused-ignore]
        loss: Tensor = model()
        return loss

    for step in range(3):
        earlier, checked, called[0] = opt.forwards, opt.check_forwards, 0
        opt.step(closure)
        called[0] -= opt.check_forwards - checked
        spent, declared = opt.forwards - earlier, opt.cost(step)
        demand(spent == declared, f"step {step} counts {spent} forwards, but cost({step}) is {declared}")
        fair = called[0] == spent or opt.engine == "dual"  # which makes one call of many
        demand(fair, f"step {step} counts {spent} forwards, but calls the closure for {called[0]}")


def resumes(make: Make, setting: Setting) -> None:
    """A state that is saved and loaded continues to the same weights."""
    whole, stopped, resumed = setting.model(), setting.model(), setting.model()
    opt = make(whole.named_parameters())
    for _ in range(STEPS):
        opt.step(whole)
    opt.flush()
    first = make(stopped.named_parameters())
    for _ in range(STEPS // 2):
        first.step(stopped)
    state = first.state_dict()
    resumed.load_state_dict(stopped.state_dict())
    first.step(stopped)  # what it does now must not reach the state that was taken
    second = make(resumed.named_parameters())
    second.load_state_dict(state)
    for _ in range(STEPS - STEPS // 2):
        second.step(resumed)
    second.flush()
    name = problems.differing(_bits(whole), _bits(resumed))
    demand(not name, f"'{name}' differs when a run of {STEPS} steps was saved and loaded after {STEPS // 2}")


def skips_what_is_not_finite(make: Make, setting: Setting) -> None:
    """A step whose loss is not a number leaves the weights alone and is counted as skipped."""
    model = setting.model()
    opt = make(model.named_parameters())
    opt.step(model)
    opt.flush()
    earlier = _bits(model)
    opt.step(lambda: model() * math.nan)
    opt.flush()
    name = problems.differing(earlier, _bits(model))
    demand(not name, f"'{name}' was changed by a step whose losses were nan")
    demand(opt.skipped == 1 and opt.t == 2, f"after one such step of two, skipped is {opt.skipped} and t is {opt.t}")


def leaves_frozen_weights_alone(make: Make, setting: Setting) -> None:
    """Parameters that do not require grad keep their bits."""
    model = setting.model()
    frozen = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    earlier = _bits(model)
    opt = make(model.named_parameters())
    for _ in range(3):
        opt.step(model)
    opt.flush()
    later = _bits(model)
    moved = [name for name in frozen if not torch.equal(earlier[name], later[name])]
    demand(not moved, f"'{moved[0] if moved else ''}' was changed, though it does not require grad")


def no_global_generator(make: Make, setting: Setting) -> None:
    """Steps do not move the global generators of torch, numpy and random."""
    model = setting.model()
    with generators_untouched():
        opt = make(model.named_parameters())
        opt.step(model)


CHECKS = tuple(
    _one_engine(check)
    for check in (
        *(learns, deterministic, replays_or_says_why_not, restores, counts_its_forwards, resumes),
        *(skips_what_is_not_finite, leaves_frozen_weights_alone, no_global_generator),
    )
)


def _loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model())


def _bits(model: nn.Module) -> dict[str, Tensor]:
    return problems.bits(dict(model.named_parameters()))
