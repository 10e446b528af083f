"""Rules that keep float32 tensors: the baselines whose memory the other rules save, and norm clipping.

They take any gradient, since all they ask of it is ``leaf()``: a mixture of directions, a stored gradient, or what
another element-wise rule made. Their results are `Lazy`, for one use and not to be written to: making a leaf moves its
moments on, so a leaf is made once a step and a second request is refused. The state is referenced and updated in place,
as in torch's own optimizers: copy a state dict that is to outlive the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradless.errors import BadInput
from gradless.gradients import Dense, Gradient, Lazy, Leaf
from gradless.kernels.roots import sqrt_
from gradless.rules.base import Rule

Step = Callable[[int, Tensor, tuple[Tensor, ...]], Tensor]


class Moments(NamedTuple):
    """The state of a rule that keeps tensors."""

    steps: int  # updates so far
    tensors: dict[str, tuple[Tensor, ...]]  # float32, like the leaf of that name; made when it is first met


def heavy_ball(beta: float = 0.9) -> Rule:
    """Heavy-ball momentum m <- beta m + g with a stored m: the ZO-SGD-MMT of ZO-Bench.

    The same sum as `gradless.rules.base.momentum` without its window. State: 4 bytes a tuned weight. Zhang et al.
    2024 (arXiv 2402.11592).
    """
    _check_decays(beta=beta)

    def step(steps: int, g: Tensor, held: tuple[Tensor, ...]) -> Tensor:
        (m,) = held
        return m.mul_(beta).add_(g)

    return _stored("heavy_ball", 1, step)


def stored_adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam with stored moments and bias correction, by the formula of `torch.optim.Adam`: the ZO-Adam of ZO-Bench.

    Rounded the same on every processor, so that a ledger replays; torch's last bits depend on the processor.

    Weight decay is the optimizer's and decoupled, so with it this is AdamW. State: 8 bytes a tuned weight, whatever
    the weights' dtype, and a copy of the largest leaf while it is updated; `gradless.rules.base.adam` trades the state
    for a window of recomputed directions. Kingma & Ba 2015 (arXiv 1412.6980); Zhang et al. 2024 (arXiv 2402.11592).

    Args:
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squares.
        eps: added to the root, after bias correction.

    Raises:
        BadInput: a number out of range.
    """
    _check_decays(beta1=beta1, beta2=beta2)
    if not 0 < eps < math.inf:
        raise BadInput(f"eps is {eps}: Adam's eps must be positive and finite, e.g. 1e-8")

    def step(steps: int, g: Tensor, held: tuple[Tensor, ...]) -> Tensor:
        m, v = held
        # Each product and each sum is rounded on its own: lerp and addcmul fuse them on some processors only.
        part = torch.mul(g, 1 - beta1)
        m.mul_(beta1).add_(part)
        v.mul_(beta2).add_(torch.mul(g, g, out=part).mul_(1 - beta2))
        scale = sqrt_(part.copy_(v)).div_(math.sqrt(1 - beta2**steps)).add_(eps)
        return torch.div(m, scale, out=scale).div_(1 - beta1**steps)

    return _stored("stored_adam", 2, step)


def clip(max_norm: float) -> Rule:
    """Scale a stored gradient to a global L2 norm of at most ``max_norm``, like `torch.nn.utils.clip_grad_norm_`.

    The norm is that of the stored tensors, over all leaves together. Leaves that have only a mixture keep it, and a
    gradient that is a mixture throughout passes unchanged: its norm is known only once every leaf is made (clip its
    coefficients instead). Cost: one pass over the stored gradient; no state.

    Raises:
        BadInput: ``max_norm`` is not positive.
    """
    if not max_norm > 0:
        raise BadInput(f"max_norm is {max_norm}: the largest allowed norm must be positive")

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        if not isinstance(g, Dense) or not g.tensors:
            return g, state
        norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32).cpu() for tensor in g.tensors.values()]
        # The formula, with its 1e-6, is torch's.
        factor = max_norm / (float(torch.linalg.vector_norm(torch.stack(norms))) + 1e-6)
        # Still a stored gradient, so that rules which look for one find it.
        return g if factor >= 1 else g._replace(tensors=_Scaled(g.tensors, factor)), state

    return Rule("clip", lambda: None, update)


class _Scaled(Mapping[str, Tensor]):
    """Tensors times a factor, each made when it is asked for: neither a second gradient nor an overwritten one."""

    def __init__(self, tensors: Mapping[str, Tensor], factor: float) -> None:
        self._tensors, self._factor = tensors, factor

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].float() * self._factor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _stored(name: str, count: int, step: Step) -> Rule:
    """A rule with ``count`` float32 tensors a leaf: ``step(steps, g, tensors)`` updates them and makes the step."""

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        steps, tensors = state.steps + 1, state.tensors
        served: set[str] = set()

        def make(leaf: Leaf) -> Tensor:
            if leaf.name in served:
                raise BadInput(f"{name}: '{leaf.name}' was asked for twice in one step, which would count it twice")
            served.add(leaf.name)
            return step(steps, g.leaf(leaf), _held(tensors, leaf, count))

        return Lazy(make), Moments(steps, tensors)

    return Rule(name, lambda: Moments(0, {}), update, linear=False)


def _held(tensors: dict[str, tuple[Tensor, ...]], leaf: Leaf, count: int) -> tuple[Tensor, ...]:
    """The tensors of one leaf, on its device; zeros when it is met for the first time."""
    held, p = tensors.get(leaf.name), leaf.param
    if held is None:
        held = tuple(torch.zeros(p.shape, dtype=torch.float32, device=p.device) for _ in range(count))
    elif len(held) != count or any(tensor.shape != p.shape for tensor in held):
        raise BadInput(f"the moments of '{leaf.name}' are those of another rule or shape: start without this state")
    held = tuple(tensor.to(p.device) for tensor in held)  # a state that was loaded may come from elsewhere
    tensors[leaf.name] = held
    return held


def _check_decays(**decays: float) -> None:
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise BadInput(f"{name} is {value}: it must lie in [0, 1)")
