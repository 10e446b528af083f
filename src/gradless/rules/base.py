"""Update rules: pure functions from gradients to gradients, chained by composition.

A rule has a state and one function ``update(g, state) -> (g, state)``. Linear rules map a `Mixture` to a `Mixture`:
their state is a window of past keys and weights, so a momentum run needs no tensor beyond the weights and replays from
its ledger. Element-wise rules (`adam`) return a `Lazy` gradient that each leaf makes when its turn comes.

The learning rate is the last factor and belongs to the optimizer's parameter groups, where torch schedulers and the
Hugging Face Trainer look for it; `scale` only says what it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradless.errors import BadInput, real
from gradless.gradients import Dense, Gradient, Lazy, Leaf, Mixture
from gradless.kernels.roots import sqrt_
from gradless.rng import RADEMACHER
from gradless.rules.schedules import Schedule


class Rule(NamedTuple):
    """``init() -> state``; ``update(g, state) -> (g, state)``; ``lr`` if the rule sets the learning rate."""

    name: str
    init: Callable[[], Any]
    update: Callable[[Gradient, Any], tuple[Gradient, Any]]
    lr: float | Schedule | None = None
    linear: bool = True  # maps mixtures to mixtures: many steps replay in one sweep


class Window(NamedTuple):
    """The most recent mixtures, newest last: the whole state of a rule that recomputes its moments."""

    mixtures: tuple[Mixture, ...] = ()

    def push(self, mixture: Mixture, length: int) -> Window:
        """Append one mixture and keep the last ``length``."""
        return Window((*self.mixtures, mixture)[-length:])


def plain(state: Any) -> Any:
    """A rule's state as nested lists and copies of tensors, which any serializer can write."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: plain(item) for name, item in state.items()}
    return [plain(item) for item in state] if isinstance(state, tuple) else state


def like(example: Any, values: Any) -> Any:
    """`plain`'s result as the state that ``example`` (from ``init``) is a small instance of."""
    if isinstance(example, Window):
        mixtures = values[0]
        return Window(tuple(Mixture(tuple(keys), tuple(weights)) for keys, weights in mixtures))
    if isinstance(example, tuple):
        parts = [like(part, value) for part, value in zip(example, values, strict=True)]
        return type(example)(*parts) if hasattr(example, "_fields") else tuple(parts)
    if isinstance(example, dict):  # tensors by leaf
        return {name: tuple(tensor.clone() for tensor in tensors) for name, tensors in values.items()}
    return values


def scale(lr: float | Schedule) -> Rule:
    """Multiply by the learning rate, a number or a schedule ``step -> lr`` (`linear`, `cosine`). Cost: none.

    Raises:
        BadInput: a number that is negative or not finite.
    """
    if not callable(lr):
        real("the learning rate", lr, least=0.0)
    return Rule("scale", lambda: None, lambda g, state: (g, state), lr=lr)


def chain(*rules: Rule) -> Rule:
    """Apply rules in order; the last learning rate given counts. Cost and state: those of the rules.

    Example:
        >>> rule = chain(momentum(0.9), scale(1e-3))
        >>> g, state = rule.update(Mixture((7,), (1.0,)), rule.init())
        >>> g, state = rule.update(Mixture((8,), (1.0,)), state)
        >>> g
        Mixture(keys=(7, 8), weights=(0.9, 1.0))
    """
    lrs = [rule.lr for rule in rules if rule.lr is not None]

    def update(g: Gradient, states: Any) -> tuple[Gradient, Any]:
        after = []
        for rule, state in zip(rules, states, strict=True):
            g, state = rule.update(g, state)
            after.append(state)
        return g, tuple(after)

    return Rule(
        name="+".join(rule.name for rule in rules),
        init=lambda: tuple(rule.init() for rule in rules),
        update=update,
        lr=lrs[-1] if lrs else None,
        linear=all(rule.linear for rule in rules),
    )


def momentum(beta: float = 0.9, *, tail: float = 1e-3) -> Rule:
    """Heavy-ball momentum m <- beta m + g, recomputed from past keys instead of stored.

    m_t = sum_j beta^(t-j) g_j over the window where beta^(t-j) >= ``tail``; the neglected part of the sum is at most
    ``tail`` of its bound. Cost: the update sweep draws window * K directions instead of K (66 at beta = 0.9) and no
    memory beyond the weights; figures in docs/log.md. Malladi et al. 2023 (arXiv 2305.17333), appendix B.2.
    """
    _check_decay("beta", beta)
    length = _window(beta, tail)
    powers = _powers(beta, length)

    def update(g: Gradient, window: Window) -> tuple[Gradient, Window]:
        window = window.push(_mixture(g, "momentum"), length)
        terms = [
            (key, weight * powers[len(window.mixtures) - 1 - age])
            for age, past in enumerate(window.mixtures)
            for key, weight in zip(past.keys, past.weights, strict=True)
        ]
        return Mixture(tuple(key for key, _ in terms), tuple(weight for _, weight in terms)), window

    return Rule("momentum", Window, update)


def adam(beta1: float = 0.9, beta2: float = 0.999, *, eps: float = 1e-8, window: int = 64) -> Rule:
    """Adam whose two moments are recomputed from past keys instead of stored (MeZO-Adam, appendix B.2).

    m and v are the exponential averages of g and g^2 over the last ``window`` steps, each divided by the sum of its
    weights (Adam's bias correction, which also makes up for the cut window). With one +1/-1 query a step, g^2 is the
    same for every weight and Adam is momentum with one adaptive step size.

    For the first ``window`` steps this is Adam. After that m misses beta1^window of its weights (0.1 % at 0.9 and 64),
    but v at beta2 = 0.999 is nearly the plain mean of the last ``window`` squares, where Adam's looks back a thousand
    steps. While gradients keep their size, steps are 1.1 times as long as Adam's at a window of 64 and 1.05 times at
    256; where they shrink a hundredfold in 300 steps, 13 to 19 and 2 times, since Adam still divides by the early ones.

    Cost: per leaf, ``window`` directions for m and, unless K = 1, as many again for v; three float32 copies of the
    largest leaf. Not a linear rule: its replay repeats this work step by step. Malladi et al. 2023
    (arXiv 2305.17333); Kingma & Ba 2015 (arXiv 1412.6980).

    Args:
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squares.
        eps: added to the root of v.
        window: steps that are looked back.

    Raises:
        BadInput: a number out of range.
    """
    _check_decay("beta1", beta1)
    _check_decay("beta2", beta2)
    if window < 1:
        raise BadInput(f"window is {window}: Adam needs at least one step of history")

    def update(g: Gradient, past: Window) -> tuple[Gradient, Window]:
        past = past.push(_mixture(g, "adam"), window)
        return Lazy(lambda leaf: _adam_leaf(past.mixtures, leaf, beta1, beta2, eps)), past

    return Rule("adam", Window, update, linear=False)


def on_stored(rule: Rule) -> Rule:
    """Apply a rule to stored gradients only; the mixture beside them passes as it is. For hybrids. Cost: the rule's."""

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        if not isinstance(g, Dense):
            return g, state
        stored, state = rule.update(Dense(g.tensors, Mixture((), ())), state)
        return Lazy(lambda leaf: (stored if leaf.name in g.tensors else g.rest).leaf(leaf)), state

    return Rule(f"on_stored({rule.name})", rule.init, update, linear=False)


def _adam_leaf(past: tuple[Mixture, ...], leaf: Leaf, beta1: float, beta2: float, eps: float) -> Tensor:
    """M / (sqrt(v) + eps) of one leaf: float32."""
    first = [beta1**age for age in reversed(range(len(past)))]
    second = [beta2**age for age in reversed(range(len(past)))]
    total1, total2 = sum(first), sum(second)
    mean = Mixture(
        tuple(key for mixture in past for key in mixture.keys),
        tuple(a / total1 * w for a, mixture in zip(first, past, strict=True) for w in mixture.weights),
    )
    m = mean.leaf(leaf)
    if leaf.draw is None and leaf.stream == RADEMACHER and all(len(mixture.keys) == 1 for mixture in past):
        terms = zip(second, past, strict=True)  # a step that did not reach the leaf adds a zero
        square = sum(b / total2 * mix.weights[0] ** 2 for b, mix in terms if leaf.reached(mix.keys[0]))
        return m / (math.sqrt(square) * leaf.update + eps)
    v = torch.zeros_like(m)
    for b, mixture in zip(second, past, strict=True):
        v += mixture.leaf(leaf).square_().mul_(b / total2)
    return m / sqrt_(v).add_(eps)


def _mixture(g: Gradient, rule: str) -> Mixture:
    if not isinstance(g, Mixture):
        raise BadInput(f"{rule} needs the estimate itself: put it before element-wise rules in the chain")
    return g


@functools.cache
def _powers(beta: float, count: int) -> tuple[float, ...]:
    """Return beta^0 .. beta^(count - 1): exact products, rounded once, so that all machines have the same bits.

    `math.pow` is that of the C library, which differs in its last bit between libraries.
    """
    power, factor, powers = Fraction(1), Fraction(float(beta)), []
    for _ in range(count):
        powers.append(float(power))
        power *= factor
    return tuple(powers)


def _window(beta: float, tail: float) -> int:
    """Number of steps after which beta^n falls below ``tail``."""
    if not 0 < tail < 1:
        raise BadInput(f"tail is {tail}: it must lie between 0 and 1")
    return 1 if beta == 0 else 1 + math.floor(math.log(tail) / math.log(beta))


def _check_decay(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise BadInput(f"{name} is {value}: it must lie in [0, 1)")
