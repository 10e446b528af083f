"""Pre-aggregators: rows to rows, so that what liars can still do to a rule after them is bounded better.

Symbols: n rows received, f of them perhaps Byzantine, x_i row i. A row that is not finite stays as it is: the rule
after the pre-aggregator counts it as infinitely far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.aggregation import passes
from gradless.collab.aggregation.gram import CentredGram, measure, measure_lengths, smallest, unmeasured
from gradless.collab.aggregation.row_kinds import Rows, matrix_of, shares_memory
from gradless.collab.aggregation.span_rules import krum_scores
from gradless.collab.option_checks import any_number, count, more_than, positive
from gradless.errors import BadInput


class PreAggregator(NamedTuple):
    """A stage from rows to rows, each a weighted sum of those before."""

    name: str
    weights: Callable[[CentredGram, int], Tensor]  # (gram, key) -> float64 [N', N]; the key seeds rules that shuffle
    check: Callable[[int], None]  # refuse a number of rows
    keeps_rows: bool = True  # whether row i of the result still belongs to peer i
    rows: Callable[[int], int] = lambda n: n  # N -> N'
    blind: bool = False  # whether weights do not depend on the Gram matrix
    cuts: bool = False  # whether weights depend on the lengths of rows alone, and cut the long ones

    def __call__(self, rows: Rows, key: int = 0, in_place: bool = False) -> Any:
        """Return mixed rows ``[N', ...]`` of rows in any form that an aggregator takes; the same kind and dtype.

        Args:
            rows: one vector for each peer; not written to, unless ``in_place`` is set.
            key: seed of pre-aggregators that shuffle.
            in_place: cut the rows themselves, a tensor or an array, and return them: new memory takes longer than the
                work. Only for those that cut rows (`clipping`, `arc`).

        Raises:
            BadInput: for rows that are no vectors, a number of them that it cannot take, with the condition, or rows
                that cannot be written to.
        """
        matrix, restore = matrix_of(rows)
        n = passes.shape_of((matrix,)).rows
        self.check(n)
        if in_place and not (self.cuts and shares_memory(matrix, rows)):
            raise BadInput(f"{self.name} cannot change these rows in place: leave in_place out")
        if self.blind:
            return restore(passes.product(self.weights(unmeasured(n), key), (matrix,)))
        gram = measure_lengths((matrix,)) if self.cuts else measure((matrix,))
        weights = self.weights(gram.points(), key)
        out = matrix if in_place else None
        result = passes.product(weights, (matrix,), gram.centre, gram.near, gram.finite, out)
        return rows if in_place else restore(result)


def nnm(*, f: int) -> PreAggregator:
    """Nearest-neighbour mixing: every row becomes the mean of the n - f rows nearest to it, itself included.

    y_i = 1/(n-f) sum of x_j over the n - f smallest |x_j - x_i|. Makes any rule after it robust to the best order,
    kappa <= 8 f/(n-f) (kappa_rule + 1). Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, "Fixing by mixing"
    (arXiv 2302.01772).

    Breakdown: n > f; what comes after it usually needs n > 2 f. Cost: n^2 D / 2 for the Gram matrix and n^2 D for the
    product if the mixed rows themselves are wanted; before a rule in the span, n^2 scalars more than that rule.
    """
    count("nnm", f)

    def weights(gram: CentredGram, key: int) -> Tensor:
        n = gram.rows
        squared = gram.squared().fill_diagonal_(-1.0)
        out = torch.zeros(n, n, dtype=torch.float64)
        out.scatter_(1, smallest(squared, n - f), 1 / (n - f))
        return torch.where(gram.finite[:, None], out, torch.eye(n, dtype=torch.float64))

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

    def weights(gram: CentredGram, key: int) -> Tensor:
        n = gram.rows
        order = torch.from_numpy(rng.permutation(n, key, "buckets"))
        out = torch.zeros(-(-n // size), n, dtype=torch.float64)
        for bucket, members in enumerate(order.split(size)):
            out[bucket, members] = 1 / len(members)
        return out

    return PreAggregator("bucketing", weights, any_number, keeps_rows=False, rows=lambda n: -(-n // size), blind=True)


def clipping(*, norm: float) -> PreAggregator:
    """Static clipping: x_i min(1, norm / |x_i|).

    For gradients and momenta, not for parameters: it pulls towards the origin. A row with a NaN or an infinity stays as
    it is. Breakdown: that of the next rule. Cost: one read of the rows and, if they themselves are wanted, one write.
    """
    positive("clipping", norm, "norm")

    def weights(gram: CentredGram, key: int) -> Tensor:
        return gram.cut(norm).diag()

    return PreAggregator("clipping", weights, any_number, cuts=True)


def arc(*, f: int) -> PreAggregator:
    """Adaptive robust clipping: the k = floor(2 f (n-f) / n) longest rows are cut to the length of the next one.

    Keeps the robustness of the rule after it, which static clipping does not. Allouah, Guerraoui, Gupta, Jellouli,
    Rizk, Stephan 2024 (arXiv 2405.14432). Breakdown: n > 2 f. Cost: that of `clipping`.
    """
    count("arc", f)

    def weights(gram: CentredGram, key: int) -> Tensor:
        n = gram.rows
        cut = 2 * f * (n - f) // n
        return gram.cut(float(gram.norms().sort().values[n - cut - 1])).diag()

    return PreAggregator("arc", weights, more_than("arc", 2, f), cuts=True)


def krum_selection(*, f: int) -> PreAggregator:
    """The n - 2 f rows that Krum picks one after the other from those that are left: the first half of Bulyan."""
    count("bulyan", f)

    def weights(gram: CentredGram, key: int) -> Tensor:
        squared, left = gram.squared(), list(range(gram.rows))
        picked = []
        for _ in range(gram.rows - 2 * f):
            index = torch.tensor(left)
            best = int(smallest(krum_scores(squared[index][:, index], f), 1))
            picked.append(left.pop(best))
        return torch.eye(gram.rows, dtype=torch.float64)[sorted(picked)]

    return PreAggregator(
        "krum-selection", weights, more_than("bulyan", 4, f, 2), keeps_rows=False, rows=lambda n: n - 2 * f
    )
