"""A `ZerothOrder` in the form that training loops expect: losses are handed over first, ``step()`` takes no closure.

Loops that were written for backpropagation call the loss of every micro-batch, then ``optimizer.step()``. Here the
micro-batches of one such window become one closure, the sum of their losses, which is probed when the window is full:
every micro-batch meets the same directions, and what is logged is the estimate for the whole window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradless.errors import BadInput
from gradless.gradients import Probe, Update
from gradless.optimizer import ZerothOrder, contract


class Window(torch.optim.Optimizer):
    """Gathers the losses of a window, probes their sum, and settles the probe in ``step()``.

    Learning-rate schedulers find the parameter groups of the optimizer inside.

    Args:
        inner: the optimizer.
        log: receives every update before it is applied.

    Raises:
        Diverged: from ``step``, after ten non-finite losses in a row.
    """

    def __init__(self, inner: ZerothOrder, log: Callable[[Update], None]) -> None:
        self.inner = inner
        self.log = log
        # Torch's constructor prepares hooks, and makes groups of its own; those inside are shared instead.
        super().__init__([torch.empty(0)], {})
        self._share()
        self._losses: list[Callable[[], Tensor]] = []
        self._probed: tuple[Probe, Callable[[], Tensor]] | None = None
        self._squares: list[float] = []

    def _share(self) -> None:
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, self.inner.defaults

    def gather(self, loss: Callable[[], Tensor]) -> None:
        """Add a micro-batch: a closure that returns its share of the window's loss, or the loss of each of its rows."""
        self._losses.append(loss)

    def clear(self) -> None:
        """Forget what was gathered for a window that an interruption has cut off."""
        self._losses, self._probed, self._squares = [], None, []

    def probe(self) -> Probe:
        """Estimate the gradient of the gathered losses, summed up or row by row; ``step()`` writes the weights."""
        losses, self._losses = self._losses, []
        total = losses[0] if len(losses) == 1 else _Total(losses)
        probe = self.inner.probe(total)
        self._probed = probe, total
        self._squares += [c * c for c in probe.sketch.coeffs] if probe.finite else []
        return probe

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Log and apply the update of the last probe; a probe that was not finite is skipped."""
        if self._probed is None:
            raise BadInput("step() found no probed loss: return the loss of a batch from training_step first")
        (probe, total), self._probed = self._probed, None
        self.inner.settle(probe, total, self.log)

    def figures(self) -> dict[str, float]:
        """Return the forward passes so far, and the root mean square slope along directions since the last call."""
        squares, self._squares = self._squares, []
        slope = {"projected_grad": math.sqrt(sum(squares) / len(squares))} if squares else {}
        return {**slope, "forwards": float(self.inner.forwards)}

    def eval(self) -> None:
        """Write deferred updates. Evaluation loops call this, as they do for averaging optimizers."""
        self.inner.flush()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: there are no gradients."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped `ZerothOrder`."""
        if self.param_groups is getattr(self.inner, "param_groups", None):
            self.inner.add_param_group(param_group)
        else:
            super().add_param_group(param_group)  # torch's constructor

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped `ZerothOrder`; hooks of both are called."""
        with contract.hooks_apart(self, "state_dict") as (before, after):
            for hook in before:
                hook(self)
            return contract.after(self, self.inner.state_dict(), after)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the wrapped `ZerothOrder`; learning-rate schedules see its parameter groups."""
        with contract.hooks_apart(self, "load_state_dict") as (before, after):
            self.inner.load_state_dict(contract.after(self, dict(state_dict), before))
            self._share()
            for hook in after:
                hook(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadInput("a Window belongs to one training loop: copy its .inner, or save its state_dict()")


class _Total:
    """The losses of a window's micro-batches as one closure: their sum, or those of all rows in a row.

    It evaluates all copies of the weights itself if every micro-batch does, see
    `gradless.forward.batched.BatchedForward.losses`.
    """

    def __init__(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        self._closures = losses
        if all(hasattr(loss, "side_by_side") for loss in losses):
            self.side_by_side = self._side_by_side

    def __call__(self) -> Tensor:
        first, *rest = (loss() for loss in self._closures)
        if first.ndim:
            return torch.cat([first, *rest])
        wide = first.dtype if first.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        return sum((loss.to(wide) for loss in rest), first.to(wide))

    def _side_by_side(self, call: Callable[..., Any]) -> Tensor:
        together: Any = self._closures
        return torch.cat([loss.side_by_side(call) for loss in together], dim=1)
