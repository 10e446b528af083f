"""Shaping of a population's losses: from ``[members, rows]`` to one number a member, before these are compared.

Members 2 k and 2 k + 1 are the two of one direction. A shaping is a function of the losses alone: what it returns goes
into coefficients and so into the ledger, and nothing of it is needed to replay a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

__all__ = ["SHAPINGS", "Shaping", "centred_ranks", "none", "prompt_baseline", "z_score"]


def none(losses: np.ndarray) -> np.ndarray:
    """Return the mean loss of every member: float64 ``[N, B]`` to ``[N]``."""
    means: np.ndarray = losses.mean(axis=1)
    return means


def z_score(losses: np.ndarray) -> np.ndarray:
    """Return mean losses with mean 0 and standard deviation 1 over the members; zeros if they are all the same.

    Qiu et al. 2025 (arXiv 2509.24372).
    """
    return _standardised(losses.mean(axis=1))


def centred_ranks(losses: np.ndarray) -> np.ndarray:
    """Return ranks of mean losses, from -1/2 (lowest) to 1/2; equal ones share the mean of their ranks.

    No single outlier weighs more than another, and equal members give zeros. Salimans et al. 2017 (arXiv 1703.03864).

    Example:
        >>> centred_ranks(np.array([[3.0], [1.0], [2.0], [2.0]])).tolist()
        [0.5, -0.5, 0.0, 0.0]
    """
    means = losses.mean(axis=1)
    lower = (means[None, :] < means[:, None]).sum(axis=1)
    equal = (means[None, :] == means[:, None]).sum(axis=1)
    ranks = lower + (equal - 1) / 2
    shaped: np.ndarray = ranks / max(1, len(means) - 1) - 0.5
    return shaped


def prompt_baseline(losses: np.ndarray) -> np.ndarray:
    """Return the mean over rows of losses that are standardised in each row over the members.

    A prompt counts by how its members differ, not by how hard it is; one on which they agree counts nothing. The
    group baseline of GRPO (Shao et al. 2024, arXiv 2402.03300) over members in place of samples.
    """
    standard = np.stack([_standardised(row) for row in losses.T], axis=1)
    means: np.ndarray = standard.mean(axis=1)
    return means


def _standardised(values: np.ndarray) -> np.ndarray:
    if (values == values[0]).all():  # rounding would make something of it
        return np.zeros_like(values)
    standard: np.ndarray = (values - values.mean()) / values.std()
    return standard


class Shaping(NamedTuple):
    """One row of `SHAPINGS`."""

    shape: Callable[[np.ndarray], np.ndarray]  # losses [N, B], finite, to [N]; lower is better in both
    summary: str
    source: str


SHAPINGS: Final[dict[str, Shaping]] = {
    "centred_ranks": Shaping(centred_ranks, "ranks of the members' means in [-1/2, 1/2]", "arXiv 1703.03864"),
    "z_score": Shaping(z_score, "means over their standard deviation", "arXiv 2509.24372"),
    "prompt_baseline": Shaping(prompt_baseline, "standardised over members in each row", "arXiv 2402.03300"),
    "none": Shaping(none, "mean losses", "arXiv 2305.17333"),
}
"""Shapings by name."""
