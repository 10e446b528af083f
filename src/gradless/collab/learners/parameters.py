"""Honest peers: each takes a local step, sends a row, and accepts what the group mixed.

`ParameterPeers` send their models (MoNNA as published); `gradless.collab.learners.coefficients.CoefficientPeers` send
a few scalars. Either holds one peer, on a network, or all honest peers of a simulation, whose gradients are then
computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor

from gradless.collab.algorithms import ALGORITHMS, GRADIENTS, PARAMETERS
from gradless.collab.config import CollabConfig
from gradless.collab.contraction import mixing

if TYPE_CHECKING:
    from gradless.collab.learners.rewarded import Rewarded

LR: Final = 0.5  # as in the published runs (0.75 and 0.5) with momentum 0.99
Schedule = Callable[[int], float]


class Peer(Protocol):
    """One peer or several of one process: ``propose`` and ``accept`` alternate, once for each exchange of a step."""

    def exchanges(self, step: int) -> tuple[str, ...]:
        """Return the tags of a step's exchanges, in order."""

    def propose(self, step: int, tag: str) -> Tensor:
        """Return the rows to send, [P, D]; for the first exchange of a step after the local work."""

    def accept(self, step: int, tag: str, mixed: Tensor) -> None:
        """Take the mixed rows, [P, D]."""

    def state(self) -> dict[str, Any]:
        """Return all that later steps depend on, between two steps; see `gradless.system.tensor_state`."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the configuration must be the same."""


class Learner(Peer, Protocol):
    """All honest peers of a simulation, which also asks what no peer of a real network could tell."""

    peers: int
    samples: int
    """Examples of which each peer has computed a gradient, or a loss, so far."""
    losses: Tensor
    """Loss of each peer's last batch, [P]."""
    texts: Rewarded | None
    """What their texts earned, where they learn from a reward."""

    def poisoned(self, step: int, tag: str) -> Tensor:
        """Return what peers with flipped labels would send, [1, D]; after `propose`."""

    def accuracy(self, rows: int | None = None) -> list[float]:
        """Return every peer's share of right answers on the test data, or on its first ``rows``."""

    def consensus(self) -> float:
        """Return the root mean square distance of a peer's model from the mean one, of models that are finite."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all models, for fingerprints: tensors under names that begin with the peer's number."""


class Workload(Protocol):
    """Models and data of some peers, for learners with gradients."""

    peers: int
    dimension: int

    def start(self) -> Tensor:
        """Return the model that all begin with, [P, D]: a row of its own for each peer."""

    def gradients(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return gradients [P, D] and losses [P] on each peer's batch of a step.

        The caller may write to the gradients; the next call may too.
        """

    def poisoned(self, theta: Tensor, step: int) -> Tensor:
        """Return the gradient [1, D] of one model [1, D] on examples of anybody, with flipped labels."""

    def accuracy(self, theta: Tensor, rows: int | None) -> list[float]:
        """Return each model's share of right answers."""

    def state(self) -> dict[str, Any]:
        """Return what later steps depend on beside parameters."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the configuration must be the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """The local step of a peer: momentum m <- beta m + (1 - beta) g from zero, then theta <- theta - lr m."""

    lr: Schedule
    momentum: float
    weight_decay: float
    batch_size: int
    growing: bool = False
    gradients_first: bool = False
    rounds: int = 1
    """How often models are mixed in a step (K)."""

    def size(self, step: int) -> int:
        """Return the number of examples in a peer's batch."""
        return step + 1 if self.growing else self.batch_size


def local_step(config: CollabConfig) -> Local:
    """Return the local step of a configuration whose peers send parameters."""
    algorithm = ALGORITHMS[config.algorithm]
    return Local(
        lr=lambda step: config.lr_at(LR if config.lr is None else config.lr, step),
        momentum=config.momentum if algorithm.momentum is None else algorithm.momentum,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        growing=algorithm.growing,
        gradients_first=algorithm.gradients_first,
        rounds=config.rounds,
    )


class ParameterPeers:
    """Peers that send parameters [P, D] (Farhadkhani et al. 2023, arXiv 2209.10931).

    Cost of a step: one gradient of a batch for each peer; memory: 3 P D (parameters, momentum, gradient; 2 P D without
    momentum) and what the gradients need.

    Args:
        workload: models and data.
        local: the local step. With ``gradients_first`` the peers exchange gradients, step along what was mixed, and
            exchange models after that (LEARN, El-Mhamdi et al. 2021, arXiv 2008.00742).
        poison: whether attackers will ask what flipped labels lead to.
    """

    def __init__(self, workload: Workload, local: Local, *, poison: bool = False) -> None:
        self.workload, self.local, self.poison = workload, local, poison
        self.peers = workload.peers
        self.theta = workload.start()
        self.samples = 0
        self.losses = torch.zeros(self.peers)
        self.texts: Rewarded | None = None  # a reward has no gradient
        self._momentum = torch.zeros_like(self.theta) if local.momentum else None
        self._centre: Tensor | None = None  # mean model before the step, from which poisoned steps start
        self._last_poison = torch.zeros(1, workload.dimension)  # what poisoned peers sent last, for later rounds
        self._poison_momentum = torch.zeros(1, workload.dimension, dtype=self.theta.dtype, device=self.theta.device)

    def exchanges(self, step: int) -> tuple[str, ...]:
        """Models ``rounds`` times, after gradients if they come first."""
        first = (GRADIENTS,) if self.local.gradients_first else ()
        return first + tuple(PARAMETERS if k == 0 else f"{PARAMETERS} {k + 1}" for k in range(self.local.rounds))

    def propose(self, step: int, tag: str) -> Tensor:
        """Local work where the exchange asks for it, then the rows to send. They must not be written to."""
        if tag == GRADIENTS:
            return self._work(step)
        if tag == PARAMETERS and not self.local.gradients_first:
            self._move(step, self._work(step))
        return self.theta

    def accept(self, step: int, tag: str, mixed: Tensor) -> None:
        """Take mixed gradients as the direction of the step, mixed models as the own one."""
        if tag == GRADIENTS:
            self._move(step, mixed)
        else:
            # Copied: what was mixed once for all peers is one tensor, and each must have its own.
            self.theta.copy_(mixed)

    def adopt(self, rows: Tensor) -> None:
        """Go on from other models, [P, D], with no momentum: what a peer does that comes back to its group."""
        self.theta.copy_(rows)
        if self._momentum is not None:
            self._momentum.zero_()

    def poisoned(self, step: int, tag: str) -> Tensor:
        """Return a step from the honest peers' mean model with labels flipped and with the same momentum."""
        if tag not in (GRADIENTS, PARAMETERS):  # a later round of mixing
            return self._last_poison
        assert self._centre is not None
        if tag == PARAMETERS and self.local.gradients_first:
            self._last_poison = self._centre - self.local.lr(step) * self._poison_momentum
            return self._last_poison
        gradient = self.workload.poisoned(self._centre, step)
        gradient.add_(self._centre, alpha=self.local.weight_decay)
        if tag == GRADIENTS:
            self._poison_momentum = gradient
            return gradient
        beta = self.local.momentum
        self._poison_momentum = self._poison_momentum.mul_(beta).add_(gradient, alpha=1 - beta)
        self._last_poison = self._centre - self.local.lr(step) * self._poison_momentum
        return self._last_poison

    def accuracy(self, rows: int | None = None) -> list[float]:
        """See `Learner`."""
        return self.workload.accuracy(self.theta, rows)

    def consensus(self) -> float:
        """See `Learner`."""
        return mixing(self.theta, self.theta).consensus

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Learner`."""
        yield from ((f"peer {peer}", row) for peer, row in enumerate(self.theta))

    def state(self) -> dict[str, Any]:
        """See `Learner`."""
        tensors = (self.theta, self._momentum, self._poison_momentum)
        return {"tensors": tensors, "samples": self.samples, "workload": self.workload.state()}

    def load(self, state: dict[str, Any]) -> None:
        """See `Learner`."""
        theta, momentum, poison_momentum = state["tensors"]
        self.theta.copy_(theta)
        if self._momentum is not None:
            self._momentum.copy_(momentum)
        self._poison_momentum.copy_(poison_momentum)
        self.samples = state["samples"]
        self.workload.load(state["workload"])

    def _work(self, step: int) -> Tensor:
        if self.poison:
            self._centre = _mean_of_finite(self.theta)
        gradient, self.losses = self.workload.gradients(self.theta, step)
        self.samples += self.local.size(step)
        if self.local.weight_decay:
            gradient.add_(self.theta, alpha=self.local.weight_decay)
        return gradient

    def _move(self, step: int, gradient: Tensor) -> None:
        if self._momentum is not None:
            beta = self.local.momentum
            gradient = self._momentum.lerp_(gradient, 1 - beta)  # beta m + (1 - beta) g in one pass
        self.theta.add_(gradient, alpha=-self.local.lr(step))


def _mean_of_finite(rows: Tensor) -> Tensor:
    """Return the mean row, [1, D]: one honest peer whose model has overflowed must not spoil it for attackers."""
    centre = rows.mean(0, keepdim=True)
    if not bool(centre.isfinite().all()):
        centre = rows[rows.isfinite().all(1)].mean(0, keepdim=True)
    return centre
