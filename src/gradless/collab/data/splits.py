"""Who has which training rows, and which of them a peer reads in a step.

Every split is a pure function of labels, number of peers and seed; the random numbers come from the counter streams of
`gradless.rng`, so a split is the same on every machine. The two Dirichlet splits of the literature differ, so both are
named after what is drawn: `dirichlet_workers` (for each class a distribution over the workers: a partition, sizes
differ) and `dirichlet_classes` (for each worker a distribution over the classes: sizes are equal).

Shapes: N rows, P peers, C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.errors import BadInput, pick

ATTEMPTS: Final = 100  # draws of a Dirichlet split until no worker is left without rows
_normal: Final = NormalDist().inv_cdf


# ---------------------------------------------------------------------------------------------------------------
# splits


def iid(labels: Tensor, peers: int, *, seed: int = 0) -> list[Tensor]:
    """Shuffle and cut into equal parts: ``peers`` sorted int64 index tensors, sizes differ by at most one."""
    _check(labels, peers)
    return _tidy(torch.tensor_split(_shuffled(labels, seed), peers))


def extreme(labels: Tensor, peers: int, *, seed: int = 0) -> list[Tensor]:
    """Sort by label and cut into equal contiguous parts, so that most peers know one or two classes.

    The seed only decides which rows of a class go where.
    """
    _check(labels, peers)
    return _tidy(torch.tensor_split(_by_label(labels, _shuffled(labels, seed)), peers))


def gamma_similarity(labels: Tensor, peers: int, *, seed: int = 0, gamma: float) -> list[Tensor]:
    """Deal a share ``gamma`` of the rows like `iid`, the rest like `extreme`.

    ``gamma=1`` is `iid` and ``gamma=0`` is `extreme`.
    """
    _check(labels, peers)
    if not 0 <= gamma <= 1:
        raise BadInput(f"gamma is the share of i.i.d. rows, from 0 to 1, not {gamma:g}")
    order = _shuffled(labels, seed)
    shared = round(gamma * len(order))
    alike = torch.tensor_split(order[:shared], peers)
    # Of this part the last peers get the odd rows, of the other the first: so nobody is left without any.
    sizes = [len(order) - shared + peer for peer in range(peers)]
    apart = torch.split(_by_label(labels, order[shared:]), [size // peers for size in sizes])
    return _tidy(torch.cat(both) for both in zip(alike, apart, strict=True))


def dirichlet_workers(labels: Tensor, peers: int, *, seed: int = 0, alpha: float) -> list[Tensor]:
    """For each class a draw of Dirichlet(alpha) over the workers says how its rows are dealt: a true partition.

    Sizes differ between workers. This is what ByzFL calls the Dirichlet split (Yurochkin et al., arXiv 1905.12022). It
    is drawn anew, up to 100 times, while a worker is left without any row.

    Raises:
        BadInput: alpha is not positive, or is so small that a worker was left without rows every time.
    """
    _check(labels, peers, alpha)
    order = _shuffled(labels, seed)
    buckets = [order[labels[order] == label] for label in labels.unique()]
    for attempt in range(ATTEMPTS):
        shares = _dirichlet(alpha, len(buckets), peers, _key(seed, "dirichlet-workers", attempt))
        dealt = [torch.tensor_split(rows, _cuts(share, len(rows))) for rows, share in zip(buckets, shares, strict=True)]
        parts = _tidy(torch.cat(of_peer) for of_peer in zip(*dealt, strict=True))
        if all(len(part) for part in parts):
            return parts
    raise BadInput(f"alpha={alpha:g} left one of {peers} peers without rows {ATTEMPTS} times: take a larger alpha")


def dirichlet_classes(
    labels: Tensor, peers: int, *, seed: int = 0, alpha: float, with_overlap: bool = False
) -> list[Tensor]:
    """For each worker a draw of Dirichlet(alpha) over the classes says what it knows; all get equally many rows.

    This is MoNNA's split (arXiv 2209.10931; first in Hsu, Qi and Brown, arXiv 1909.06335). The published code gives
    every worker N/P rows drawn from the whole pool, so two workers may hold the same row and others are held by nobody
    (MNIST, 26 peers, alpha = 1: a third of the rows): ``with_overlap=True``.

    By default no row is held twice. Then a class that many workers ask for cannot give all of them what they ask of
    N/P rows. Rather than bend the drawn distributions, all workers get fewer rows, equally many, as many as the
    scarcest class allows, and the rest stays unused (MNIST, 26 peers: 23 % at alpha = 1, 12 % at alpha = 5).

    Sizes are equal to within the rounding of C class counts.

    Raises:
        BadInput: alpha is not positive, or the scarcest class is too small to give every worker a row.
    """
    _check(labels, peers, alpha)
    order = _shuffled(labels, seed)
    buckets = [order[labels[order] == label] for label in labels.unique()]
    for attempt in range(1 if with_overlap else ATTEMPTS):
        shares = _dirichlet(alpha, peers, len(buckets), _key(seed, "dirichlet-classes", attempt))
        draw = _overlapping if with_overlap else _disjoint
        parts = _tidy(draw(buckets, shares, len(labels) // peers, seed))
        if all(len(part) for part in parts):
            return parts
    raise BadInput(
        f"alpha={alpha:g} needs more rows of one class than there are to serve {peers} peers: "
        "take a larger alpha, fewer peers, or allow overlap"
    )


def _overlapping(buckets: Sequence[Tensor], shares: Sequence[Sequence[float]], size: int, seed: int) -> list[Tensor]:
    """Each worker draws from the whole of every class, without replacement within the worker."""
    parts = []
    for peer, share in enumerate(shares):
        counts = _apportion(share, size)
        picked = [
            rows[torch.from_numpy(rng.permutation(len(rows), _key(seed, "overlap", peer, label), "rows"))[:count]]
            for label, (rows, count) in enumerate(zip(buckets, counts, strict=True))
        ]
        parts.append(torch.cat(picked))
    return parts


def _disjoint(buckets: Sequence[Tensor], shares: Sequence[Sequence[float]], size: int, _seed: int) -> list[Tensor]:
    """Each worker takes the next rows of every class; the common size is what the scarcest class allows."""
    wanted = [math.fsum(share[label] for share in shares) for label in range(len(buckets))]
    fits = min(len(rows) / demand for rows, demand in zip(buckets, wanted, strict=True) if demand > 0)
    left, parts = [0] * len(buckets), []
    for share in shares:
        counts = _apportion(share, min(size, math.floor(fits)))
        pieces = []
        for label, (rows, count) in enumerate(zip(buckets, counts, strict=True)):
            pieces.append(rows[left[label] : left[label] + count])  # rounding up may meet the end of the class
            left[label] += len(pieces[-1])
        parts.append(torch.cat(pieces))
    return parts


# ---------------------------------------------------------------------------------------------------------------
# the table


class Split(NamedTuple):
    """One way to deal the rows."""

    make: Callable[..., list[Tensor]]  # (labels, peers, *, seed, parameter)
    parameter: str | None  # its degree of similarity: "alpha", "gamma" or nothing
    title: str  # as a page shows it
    summary: str
    paper: str


SPLITS: Final[dict[str, Split]] = {
    "iid": Split(iid, None, "i.i.d.", "shuffled, equal parts", ""),
    "extreme": Split(extreme, None, "extreme", "sorted by label, equal contiguous parts", ""),
    "gamma-similarity": Split(
        gamma_similarity,
        "gamma",
        "\u03b3-similarity",
        "a share gamma i.i.d., the rest sorted by label",
        "arXiv 1910.06378",
    ),
    "dirichlet-workers": Split(
        dirichlet_workers,
        "alpha",
        "Dirichlet over workers",
        "for each class Dirichlet(alpha) over workers; a partition",
        "arXiv 1905.12022",
    ),
    "dirichlet-classes": Split(
        dirichlet_classes,
        "alpha",
        "Dirichlet over classes",
        "for each worker Dirichlet(alpha) over classes; no row twice",
        "arXiv 2209.10931",
    ),
    "dirichlet-classes-overlap": Split(
        functools.partial(dirichlet_classes, with_overlap=True),
        "alpha",
        "Dirichlet over classes, rows shared",
        "the same as MoNNA's code draws it: workers may share rows",
        "arXiv 2209.10931",
    ),
}


def split(name: str, labels: Tensor, peers: int, *, seed: int = 0, **parameter: float) -> list[Tensor]:
    """Return the split ``name`` of `SPLITS`: ``peers`` sorted int64 index tensors, none of them empty.

    Args:
        name: row of `SPLITS`.
        labels: int64 ``[N]``.
        peers: how many parts.
        seed: which draw.
        parameter: ``alpha=`` or ``gamma=``, as the split asks.

    Raises:
        BadInput: unknown name, missing or surplus parameter, or fewer rows than peers.

    Example:
        >>> [part.tolist() for part in split("extreme", torch.tensor([1, 0, 1, 0]), 2)]
        [[1, 3], [0, 2]]
    """
    row = pick("split", name, SPLITS)
    wanted = {row.parameter} - {None}
    if set(parameter) != wanted:
        needs = f"{row.parameter}, its degree of similarity" if row.parameter else "no parameter"
        raise BadInput(f"the split '{name}' takes {needs}, not {', '.join(sorted(parameter)) or 'nothing'}")
    return row.make(labels, peers, seed=seed, **parameter)


def histogram(labels: Tensor, parts: Sequence[Tensor], classes: int) -> Tensor:
    """How many rows of each class every peer has: int64 ``[P, C]``."""
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])


# ---------------------------------------------------------------------------------------------------------------
# batches


class Batches(NamedTuple):
    """The rows a peer reads in each step: an endless stream of shuffled epochs, addressed by step without any state.

    Within an epoch no row comes twice. A batch may reach over the end of an epoch, so that every batch of a step has
    the same size for all peers (a batch larger than the peer's data wraps around more than once).
    """

    indices: Tensor  # int64 [R], the peer's rows
    size: int  # rows of step 0
    growth: int  # additional rows each further step: 0, or 1 for LEARN's t + 1 rows
    seed: int
    peer: int

    def rows(self, step: int) -> int:
        """Batch size of a step."""
        return self.size + self.growth * step

    def read(self, steps: int) -> int:
        """Return rows read before step ``steps``: the sample counter of a peer after so many steps."""
        return self.size * steps + self.growth * (steps * (steps - 1) // 2)

    def at(self, step: int) -> Tensor:
        """Row indices of the batch of ``step``: int64 ``[rows(step)]``."""
        position, count, parts = self.read(step), self.rows(step), []
        while count > 0:
            epoch, offset = divmod(position, len(self.indices))
            part = _epoch(len(self.indices), self.seed, self.peer, epoch)[offset : offset + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return self.indices[torch.cat(parts)]


def batches(indices: Tensor, batch_size: int, seed: int, peer: int, *, growth: int = 0) -> Batches:
    """Return the batches of one peer over its rows ``indices``; ``growth=1, batch_size=1`` is LEARN's schedule.

    Raises:
        BadInput: no rows or no batch.
    """
    if len(indices) == 0:
        raise BadInput(f"peer {peer} has no rows to learn from: take fewer peers or another split")
    if batch_size < 1 or growth < 0:
        raise BadInput(f"a batch needs at least one row and cannot shrink, not {batch_size} rows growing by {growth}")
    return Batches(indices, batch_size, growth, seed, peer)


def gather(streams: Sequence[Batches], step: int) -> Tensor:
    """Return the batches of all peers in one step: int64 ``[P, rows]``."""
    return torch.stack([stream.at(step) for stream in streams])


@functools.lru_cache(maxsize=128)
def _epoch(count: int, seed: int, peer: int, epoch: int) -> Tensor:
    return torch.from_numpy(rng.permutation(count, _key(seed, "batches", peer, epoch), "rows"))


# ---------------------------------------------------------------------------------------------------------------
# parts


def _check(labels: Tensor, peers: int, alpha: float = 1.0) -> None:
    if labels.dim() != 1:
        raise BadInput(f"a split needs one label for each row, not labels of shape {list(labels.shape)}")
    if not 1 <= peers <= len(labels):
        raise BadInput(f"{len(labels)} rows cannot be dealt to {peers} peers: at least one each, and one peer")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise BadInput(f"alpha of a Dirichlet distribution is a positive number, not {alpha:g}")


def _key(seed: int, purpose: str, *words: int) -> int:
    return rng.fold(seed, rng.leaf_id(f"collab/{purpose}"), *words)


def _shuffled(labels: Tensor, seed: int) -> Tensor:
    return torch.from_numpy(rng.permutation(len(labels), seed, "collab/split"))


def _by_label(labels: Tensor, order: Tensor) -> Tensor:
    return order[torch.argsort(labels[order], stable=True)]


def _tidy(parts: Iterable[Tensor]) -> list[Tensor]:
    return [part.sort().values for part in parts]


def _cuts(share: Sequence[float], count: int) -> list[int]:
    """Return where to cut ``count`` rows so that the pieces have these shares."""
    ends = [round(math.fsum(share[: end + 1]) * count) for end in range(len(share) - 1)]
    return [min(end, count) for end in ends]


def _apportion(share: Sequence[float], count: int) -> list[int]:
    """Whole numbers with these shares that sum to ``count``: the largest remainders are rounded up."""
    exact = [part * count for part in share]
    whole = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(share)), key=lambda index: whole[index] - exact[index])
    for index in by_remainder[: max(0, count - sum(whole))]:
        whole[index] += 1
    return whole


def _dirichlet(alpha: float, rows: int, columns: int, key: int) -> list[list[float]]:
    """``rows`` draws of a symmetric Dirichlet over ``columns``."""
    logs = [[_log_gamma(alpha, rng.fold(key, row, column)) for column in range(columns)] for row in range(rows)]
    # In logarithms, since at a small alpha every Gamma draw of a row may underflow.
    tops = [max(row) for row in logs]
    weights = [[math.exp(value - top) for value in row] for row, top in zip(logs, tops, strict=True)]
    return [[value / math.fsum(row) for value in row] for row in weights]


def _log_gamma(alpha: float, key: int) -> float:
    """Logarithm of a Gamma(alpha) variate: rejection from a cubed normal (Marsaglia and Tsang 2000)."""
    boost = math.log(_uniforms(key, 0)[0]) / alpha if alpha < 1 else 0.0
    d = (alpha + 1 if alpha < 1 else alpha) - 1 / 3
    for trial in range(1, 1 << 16):
        first, second = _uniforms(key, trial)
        x = _normal(first)
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(second) < x * x / 2 + d - d * v + d * math.log(v):
            return math.log(d * v) + boost
    raise AssertionError("a Gamma variate is accepted with probability above 0.95")


def _uniforms(key: int, block: int) -> tuple[float, float]:
    """Two numbers inside (0, 1), of 52 random bits each."""
    a, b, c, d = rng.philox((block, 0, 0, 0), (key & rng.MASK32, key >> 32))
    return ((a << 20 | b >> 12) + 0.5) / 2**52, ((c << 20 | d >> 12) + 0.5) / 2**52
