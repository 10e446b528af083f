"""Peers that send a few numbers: the coefficients of their zeroth-order estimates along directions that all share.

Every peer draws the same directions from the run's seed (`gradless.rng`), so a step's estimate is K float32 numbers
whatever the model's size. A robust rule on the [N, K] matrix of coefficients is a robust rule on gradients: distances
in the span of K directions are distances of coefficients, up to rounding (Johnson-Lindenstrauss, K much below D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.collab.adversary.base import TILE
from gradless.collab.algorithms import COEFFICIENTS, PARAMETERS
from gradless.errors import BadInput
from gradless.forward.losses import Closure
from gradless.gradients import Leaf, Update
from gradless.optimizer import ZerothOrder

if TYPE_CHECKING:
    from gradless.collab.learners.rewarded import Rewarded


class Score(NamedTuple):
    """What an evaluation of a peer gives."""

    accuracy: float
    """The task's main metric, or the share of texts whose reward passes; NaN without test rows."""
    reward: float = math.nan
    """Mean reward of texts; NaN where there is none."""


class Member(NamedTuple):
    """One peer: its optimizer, over its own weights or over weights shared with others, and its data."""

    optimizer: ZerothOrder
    closure: Callable[[int], Closure]  # step -> loss of its batch
    poisoned: Callable[[int], Closure]  # the same with flipped labels
    score: Callable[[int | None], Score]
    log: Callable[[Update], None] | None = None  # receives every update before it is applied, as a ledger does
    observe: Callable[[Closure, int, float], dict[str, Any]] = lambda closure, step, loss: {}
    """(closure, step, loss) -> what is noted of the texts that were written for it; nothing without texts."""


class CoefficientPeers:
    """Peers that send K coefficients a step, and their parameters every ``sync`` steps if asked to.

    Cost of a step and peer: the forwards of the estimator. Bytes: 4 K to each other peer.

    Args:
        members: the peers, in order. Members may share one optimizer: where all hear the same and the rule treats all
            alike, their weights never differ.
        batch_size: examples of a step, for counting.
        sync: steps between exchanges of parameters, which pull models together that a rule with pivots lets drift;
            None: never.
        texts: notes what the members' texts earn, where they learn from a reward.

    Raises:
        BadInput: members whose directions differ, or ``sync`` where weights are shared.
    """

    def __init__(
        self, members: Sequence[Member], *, batch_size: int, sync: int | None = None, texts: Rewarded | None = None
    ) -> None:
        self.texts = texts
        self.members, self.batch_size, self.sync = list(members), batch_size, sync
        self.peers = len(self.members)
        self.samples = 0
        self.losses = torch.zeros(self.peers)
        self._optimizers = list({id(member.optimizer): member.optimizer for member in self.members}.values())
        first = self._optimizers[0]
        if any(other.seed != first.seed for other in self._optimizers):
            raise BadInput("all peers must share directions: give their optimizers one seed")
        if sync is not None and len(self._optimizers) < self.peers:
            raise BadInput("peers with one set of weights have no parameters to exchange: leave sync out")

    @property
    def dimension(self) -> int:
        """K, coefficients of a step."""
        first = self._optimizers[0]
        return first.estimator.queries(first.t)

    def exchanges(self, step: int) -> tuple[str, ...]:
        """Return the tags of a step: coefficients, then parameters in every ``sync``-th."""
        due = self.sync is not None and (step + 1) % self.sync == 0
        return (COEFFICIENTS, PARAMETERS) if due else (COEFFICIENTS,)

    def propose(self, step: int, tag: str) -> Tensor:
        """Probe each peer's loss, or collect parameters; float32 [P, K] or [P, D].

        A loss that is not finite makes a row of NaN, which robust rules take for infinitely far.
        """
        if tag == PARAMETERS:
            return torch.stack([self._flat(optimizer) for optimizer in self._optimizers])
        rows = []
        for peer, member in enumerate(self.members):
            _pass_over(member, step)
            closure = member.closure(step)
            estimate = member.optimizer.probe(closure)
            self.losses[peer] = estimate.loss
            rows.append(estimate.sketch.coeffs if estimate.finite else (math.nan,) * len(estimate.sketch.keys))
            if self.texts is not None:
                self.texts.note(step, peer, member.observe(closure, step, estimate.loss), estimate)
        self.samples += self.batch_size * self._optimizers[0].estimator.forwards(len(rows[0]))
        return torch.tensor(rows, dtype=torch.float32)

    def accept(self, step: int, tag: str, mixed: Tensor) -> None:
        """Step along the mixed coefficients, or take the mixed parameters. What is not finite is passed over.

        Directions follow from ``step``, so peers that passed over a step, or came late, move along the same ones.
        """
        if tag == PARAMETERS:
            for optimizer, row in zip(self._optimizers, mixed, strict=True):
                if bool(row.isfinite().all()):
                    self._write(optimizer, row)
            return
        moved = set()
        for member, row in zip(self.members, mixed.tolist(), strict=True):
            if id(member.optimizer) not in moved:
                moved.add(id(member.optimizer))
                _take(member, step, row)

    def replay(self, updates: Sequence[Update]) -> None:
        """Take the logged updates of the next steps again, in every member's ledger too; see `ZerothOrder.replay`.

        Raises:
            BadInput: updates that do not follow the last step.
        """
        for member in {id(member.optimizer): member for member in self.members}.values():
            if member.log is not None:
                for update in updates:
                    member.log(update)
            member.optimizer.replay(updates)

    def poisoned(self, step: int, tag: str) -> Tensor:
        """Return coefficients of a peer whose labels are flipped, at the first peer's weights, [1, K].

        It sends its parameters unchanged.
        """
        member = self.members[0]
        if tag == PARAMETERS:
            return self._flat(member.optimizer)[None]
        return torch.tensor([member.optimizer.probe(member.poisoned(step)).sketch.coeffs], dtype=torch.float32)

    def accuracy(self, rows: int | None = None) -> list[float]:
        """Share of right answers of every peer; those with the same weights are evaluated once."""
        scores: dict[int, Score] = {}
        for member in self.members:
            member.optimizer.flush()
            if id(member.optimizer) not in scores:
                scores[id(member.optimizer)] = member.score(rows)
        of_peers = [scores[id(member.optimizer)] for member in self.members]
        if self.texts is not None:
            self.texts.rewards = [one.reward for one in of_peers]
        return [one.accuracy for one in of_peers]

    def consensus(self) -> float:
        """See `gradless.collab.learners.parameters.Learner`. Coefficients that are not finite never reach a model.

        Memory: a few columns of all peers.
        """
        squared = 0.0
        for leaves in self._leaves() if len(self._optimizers) > 1 else ():
            for parts in zip(*(leaf.param.detach().reshape(-1).split(TILE) for leaf in leaves), strict=True):
                rows = torch.stack(parts).double()
                rows -= rows[0].clone()  # so that equal models are at no distance at all
                squared += float((rows - rows.mean(0)).square().sum()) / len(rows)
        return math.sqrt(squared)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `gradless.collab.learners.parameters.Learner`. Weights that all share are those of peer 0."""
        for leaves in self._leaves():
            yield from ((f"peer {peer}/{leaf.name}", leaf.param) for peer, leaf in enumerate(leaves))

    def state(self) -> dict[str, Any]:
        """See `gradless.collab.learners.parameters.Learner`."""
        states = [optimizer.state_dict()["gradless"] for optimizer in self._optimizers]  # writes what is deferred
        weights = [[leaf.param for leaf in optimizer.leaves] for optimizer in self._optimizers]
        texts = {} if self.texts is None else {"texts": self.texts.state()}
        return {"optimizers": states, "weights": weights, "samples": self.samples, **texts}

    def load(self, state: dict[str, Any]) -> None:
        """See `gradless.collab.learners.parameters.Learner`."""
        for optimizer, own, weights in zip(self._optimizers, state["optimizers"], state["weights"], strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "gradless": own})
            for leaf, tensor in zip(optimizer.leaves, weights, strict=True):
                leaf.param.detach().copy_(tensor)
        self.samples = state["samples"]
        if self.texts is not None:
            self.texts.load(state["texts"])

    def _leaves(self) -> Iterator[tuple[Leaf, ...]]:
        """Each tuned tensor of all peers with weights of their own."""
        for optimizer in self._optimizers:
            optimizer.flush()
        yield from zip(*(optimizer.leaves for optimizer in self._optimizers), strict=True)

    @staticmethod
    def _flat(optimizer: ZerothOrder) -> Tensor:
        optimizer.flush()
        return torch.cat([leaf.param.detach().reshape(-1).float() for leaf in optimizer.leaves])

    @staticmethod
    def _write(optimizer: ZerothOrder, row: Tensor) -> None:
        optimizer.flush()
        start = 0
        for leaf in optimizer.leaves:
            count = leaf.param.numel()
            leaf.param.detach().copy_(row[start : start + count].view(leaf.param.shape))
            start += count


def _take(member: Member, step: int, row: Sequence[float]) -> None:
    """Log and apply one update of a peer."""
    _pass_over(member, step)
    opt = member.optimizer
    coeffs = tuple(float(np.float32(c)) for c in row)
    finite = all(map(math.isfinite, coeffs))
    update = Update(step, coeffs if finite else (), opt.learning_rates(), not finite)
    if member.log is not None:
        member.log(update)
    if finite:
        opt.apply(opt.sketch(update), lrs=update.lrs)
    else:
        opt.skip()


def _pass_over(member: Member, step: int) -> None:
    """Pass over the steps before ``step``, of which nothing came."""
    opt = member.optimizer
    if opt.t > step:
        raise BadInput(f"step {step} was taken already: go on with step {opt.t}")
    while opt.t < step:
        if member.log is not None:
            member.log(Update(opt.t, (), opt.learning_rates(), True))
        opt.skip()
