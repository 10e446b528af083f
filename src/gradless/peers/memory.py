"""The option *memory* of agreed peers: rows of peers who disagreed with the others over the last steps are left out.

Whose rows, is a function of the decided log alone (`gradless.collab.aggregation.pair_scores`): all replicas leave out
the same ones, and audits and excisions do so again. Off unless the manifest names a window. docs/concepts/peers.md has
what it gained and lost against liars who know it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregation.pair_scores import FEWEST, left_out, pair_scores
from gradless.collab.network.exchange import Arrivals
from gradless.peers.history import rows as rows_of
from gradless.peers.log import DecidedLog
from gradless.peers.mixing import AgreedRule
from gradless.peers.schema import parse_value


def mix(
    rule: AgreedRule, rows: np.ndarray, earlier: np.ndarray, banned: frozenset[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the mixed coefficients of a step, float32 [K], and the peers whose rows were left out.

    The rule expects one liar fewer for each peer that is banned or left out.

    Args:
        rule: of the run.
        rows: float32 [n, K] of the step; NaN in a row that is not there.
        earlier: float32 [T, n, K], the steps that count; fewer than `FEWEST` leave out nobody.
        banned: peers convicted before the step.
    """
    gone: tuple[int, ...] = ()
    if len(earlier) >= FEWEST:
        scores = [None if peer in banned else score for peer, score in enumerate(pair_scores(earlier))]
        gone = left_out(scores, rule.byzantine - len(banned))
    kept = np.delete(rows, list(gone), 0)
    kept = kept[np.isfinite(kept).all(1)]
    return rule.mix(torch.from_numpy(kept), len(banned) + len(gone)), gone


class MemoryRule:
    """A rule with memory, as a `gradless.collab.learners.loop.Settle`: it reads the log, which holds the step already.

    Args:
        rule: what mixes the rows that are left.
        log: the decided steps; another thread may append to it.
        window: steps to look back.
    """

    def __init__(self, rule: AgreedRule, log: DecidedLog, window: int) -> None:
        self.rule, self.log, self.window = rule, log, window
        self._rows: dict[int, np.ndarray] = {}

    def __call__(self, arrivals: Arrivals, rows: Tensor | None, step: int) -> Tensor:
        """Return the mixed coefficients of a step, [1, K]. Cost: that of the scores, and of reading new values once."""
        step = step if arrivals.step is None else arrivals.step
        earlier = [self._of(past) for past in range(max(0, step - self.window), step)]
        mixed, _ = mix(self.rule, self._of(step), _stacked(earlier), self.log.history.banned_at(step))
        self._rows = {number: held for number, held in self._rows.items() if number > step - self.window}
        return mixed[None]

    def _of(self, step: int) -> np.ndarray:
        """Rows of a decided step, float32 [n, K]."""
        if step not in self._rows:
            matrix, senders = rows_of(parse_value(self.log[step].value))
            group = self.log.group
            held = np.full((group.peers, group.width), np.nan, np.float32)
            held[list(senders)] = matrix
            self._rows[step] = held
        return self._rows[step]


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.empty((0, 0, 0), np.float32)
