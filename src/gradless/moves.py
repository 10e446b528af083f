"""What one step found, and what one step did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from gradless.gradients import Sketch


class Probe(NamedTuple):
    """What one estimate found; the weights are as before."""

    step: int
    loss: float  # mean of the evaluated losses
    sketch: Sketch
    forwards: int
    finite: bool
    tensors: Mapping[str, Tensor] | None = None  # stored gradients by leaf name, of estimators that make some


class Move(NamedTuple):
    """One update, as a ledger holds it."""

    step: int
    coeffs: tuple[float, ...]
    lrs: tuple[float, ...]  # per parameter group, times what acceptance made of the update
    skipped: bool
