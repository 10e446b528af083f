"""The optimizer, and how it keeps what `torch.optim.Optimizer` promises."""

from gradless.accept import always as always
from gradless.forward.engines import ENGINES as ENGINES
from gradless.gradients import Probe as Probe
from gradless.gradients import Update as Update
from gradless.optimizer.zeroth_order import ZerothOrder

__all__ = ["ZerothOrder"]
