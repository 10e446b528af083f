"""Pre-aggregators: rows to rows, so that what liars can still do to a rule after them is bounded better.

Symbols: n rows received, f of them perhaps Byzantine, x_i row i. A row that is not finite stays as it is: the rule
after the mix counts it as infinitely far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.aggregation.base import PreAggregator, any_number, count, more_than, positive
from gradless.collab.aggregation.gram import CentredGram, nearest
from gradless.collab.aggregation.span_rules import krum_scores


def nnm(*, f: int) -> PreAggregator:
    """Nearest-neighbour mixing: every row becomes the mean of the n - f rows nearest to it, itself included.

    y_i = 1/(n-f) sum of x_j over the n - f smallest |x_j - x_i|. Makes any rule after it robust to the best order,
    kappa <= 8 f/(n-f) (kappa_rule + 1). Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, "Fixing by mixing"
    (arXiv 2302.01772).

    Breakdown: n > f; what comes after it usually needs n > 2 f. Cost: n^2 D / 2 for the Gram matrix and n^2 D for the
    product if the mixed rows themselves are wanted; before a rule in the span, n^2 scalars more than that rule.
    """
    count("nnm", f)

    def weights(geometry: CentredGram, key: int) -> Tensor:
        n = geometry.rows
        squared = geometry.squared().fill_diagonal_(-1.0)
        out = torch.zeros(n, n, dtype=torch.float64)
        out.scatter_(1, nearest(squared, n - f), 1 / (n - f))
        return torch.where(geometry.finite[:, None], out, torch.eye(n, dtype=torch.float64))

    return PreAggregator("nnm", weights, more_than("nnm", 1, f))


def bucketing(*, size: int) -> PreAggregator:
    """Means of ``size`` rows at a time, after a seeded shuffle; the last bucket may be smaller.

    Fewer, less diverse rows, of which at most f hold a Byzantine one. Karimireddy, He, Jaggi 2022 (arXiv 2006.09365).
    The shuffle follows from ``key`` alone. In a simulation attackers who search for their strength are given the key
    that peers will use, so they know the buckets beforehand: the strongest adversary. Of the secret shuffle that the
    paper assumes, results under such an attack are a lower bound.

    Breakdown: that of the next rule for ceil(n / size) rows, f of them bad. Cost: n D if the buckets are wanted,
    nothing before a rule in the span. Rows do not belong to peers any more, so no rule that needs a pivot may follow.
    """
    count("bucketing", size, "size", 1)

    def weights(geometry: CentredGram, key: int) -> Tensor:
        n = geometry.rows
        order = torch.from_numpy(rng.permutation(n, key, "buckets"))
        out = torch.zeros(-(-n // size), n, dtype=torch.float64)
        for bucket, members in enumerate(order.split(size)):
            out[bucket, members] = 1 / len(members)
        return out

    return PreAggregator("bucketing", weights, any_number, keeps_rows=False, rows=lambda n: -(-n // size), blind=True)


def clipping(*, norm: float) -> PreAggregator:
    """Static clipping: x_i min(1, norm / |x_i|).

    For gradients and momenta, not for parameters: it pulls towards the origin. A row too large to square stays as it
    is. Breakdown: that of the next rule. Cost: the diagonal of the Gram matrix.
    """
    positive("clipping", norm, "norm")

    def weights(geometry: CentredGram, key: int) -> Tensor:
        return shortened(geometry, norm)

    return PreAggregator("clipping", weights, any_number)


def arc(*, f: int) -> PreAggregator:
    """Adaptive robust clipping: the k = floor(2 f (n-f) / n) longest rows are cut to the length of the next one.

    Keeps the robustness of the rule after it, which static clipping does not. Allouah, Guerraoui, Gupta, Jellouli,
    Rizk, Stephan 2024 (arXiv 2405.14432). Breakdown: n > 2 f. Cost: the diagonal of the Gram matrix.
    """
    count("arc", f)

    def weights(geometry: CentredGram, key: int) -> Tensor:
        n = geometry.rows
        cut = 2 * f * (n - f) // n
        return shortened(geometry, float(geometry.norms().sort().values[n - cut - 1]))

    return PreAggregator("arc", weights, more_than("arc", 2, f))


def krum_selection(*, f: int) -> PreAggregator:
    """The n - 2 f rows that Krum picks one after the other from those that are left: the first half of Bulyan."""
    count("bulyan", f)

    def weights(geometry: CentredGram, key: int) -> Tensor:
        squared, left = geometry.squared(), list(range(geometry.rows))
        picked = []
        for _ in range(geometry.rows - 2 * f):
            index = torch.tensor(left)
            best = int(nearest(krum_scores(squared[index][:, index], f), 1))
            picked.append(left.pop(best))
        return torch.eye(geometry.rows, dtype=torch.float64)[sorted(picked)]

    return PreAggregator(
        "krum-selection", weights, more_than("bulyan", 4, f, 2), keeps_rows=False, rows=lambda n: n - 2 * f
    )


def shortened(geometry: CentredGram, norm: float) -> Tensor:
    """Weights ``[N, N]`` that cut finite rows to a length."""
    norms = geometry.norms()
    return torch.where(geometry.finite & (norms > norm), norm / norms, 1.0).diag()
