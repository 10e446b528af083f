"""What all peers make of a decided value: the same mixed coefficients, bit for bit, at every one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradless.collab.aggregation import exact, exact_batches
from gradless.collab.network.exchange import Arrivals, agreed, enough
from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.optimizer import ZerothOrder


def usual(width: int) -> str:
    """Return the rule of a run that names none, for K = ``width`` coefficients a step: the same for every K.

    Behind nearest-neighbour mixing it does better against known attacks, but a liar who searches the worst row for the
    rule in use pushes it further.
    """
    return "trimmed-mean"


class AgreedRule:
    """A robust rule on the rows of a decided value; it expects so many liars fewer as are banned.

    An instance is a `gradless.collab.learners.loop.Settle`.

    Args:
        name: of an exact rule (`gradless.collab.aggregation.exact.named`).
        peers: n.
        byzantine: f; n > 3 f.

    Raises:
        BadInput: a rule that is not exact, or cannot take the n - f rows that a value holds at least.
    """

    def __init__(self, name: str, *, peers: int, byzantine: int) -> None:
        if not 0 <= 3 * byzantine < peers:
            raise BadInput(
                f"{peers} peers can agree with at most {(peers - 1) // 3} liars among them, not {byzantine}: lower f "
                "or add peers"
            )
        self.name, self.peers, self.byzantine = name, peers, byzantine
        self._rules = [exact.named(name, f=f) for f in range(byzantine + 1)]
        self._rules[-1].check(peers - byzantine)

    def mix(self, rows: Tensor, banned: int = 0) -> Tensor:
        """Return the mixed coefficients of a step, float32 [K]; all NaN if the rows are too few: all pass it over.

        Args:
            rows: float32 [n', K], those of the decided value that do not abstain, in the order of their senders.
            banned: peers convicted before this step.
        """
        return agreed(self._rules[max(0, self.byzantine - banned)], rows)

    def mix_steps(self, rows: NDArray[np.float32], banned: Sequence[int]) -> NDArray[np.float32]:
        """Return what `mix` makes of the rows of every step, float32 [T, K]: equal bits, in a twentieth of the time.

        Args:
            rows: float32 [T, n, K], by sender; NaN in a row that is not in the value, or abstains.
            banned: peers convicted before each of the T steps, or left out of them.
        """
        here: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(rows), axis=2)
        alike: dict[tuple[int, int], list[int]] = {}
        for step, (count, gone) in enumerate(zip(here.sum(1).tolist(), banned, strict=True)):
            alike.setdefault((count, max(0, self.byzantine - gone)), []).append(step)
        mixed = np.full((len(rows), rows.shape[2]), np.nan, np.float32)
        for (count, f), steps in alike.items():
            if enough(self._rules[f], count):
                present = rows[steps][here[steps]].reshape(len(steps), count, -1)
                mixed[steps] = exact_batches.mix_steps(self._rules[f], present, f=f)
        return mixed

    def __call__(self, arrivals: Arrivals, rows: Tensor | None, step: int) -> Tensor:
        """Return the mixed coefficients of an exchange, [P, K]: the P peers of this process get the same."""
        if arrivals.received is None:
            assert rows is not None
            return torch.full_like(rows, math.nan)
        (basis,), view = arrivals.received.basis, arrivals.received.view(0)
        mixed = self.mix(basis[view.argmax(1)] if len(view) else basis, len(arrivals.banned))
        return mixed.expand(1 if rows is None else len(rows), -1)


def updates_of(mixed: Iterable[Sequence[float]], optimizer: ZerothOrder, *, start: int) -> Iterator[Update]:
    """Yield mixed coefficients as updates of consecutive steps, for a ledger and for `ZerothOrder.replay`.

    Args:
        mixed: K numbers of each step, as `AgreedRule.mix` returns them.
        optimizer: whose learning rates count.
        start: the first step.
    """
    for step, row in enumerate(mixed, start):
        yield update_of(row, optimizer, step)


def update_of(coefficients: Sequence[float], optimizer: ZerothOrder, step: int) -> Update:
    """Return one step's update; coefficients that are not finite make it one that is passed over."""
    finite = all(map(math.isfinite, coefficients))
    return Update(step, tuple(coefficients) if finite else (), optimizer.learning_rates(step), not finite)
