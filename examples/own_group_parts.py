r"""An aggregation rule and an attack of your own, each with the row that names it.

    python examples/own_group_parts.py                                                    # checks them
    gradless collab simulate --recipe monna-digits --plugin examples/own_group_parts.py \
        --rule nnm+midrange --attack drag --set strength=1.5 --out runs/mine              # uses them

The rule takes, in each column, the middle between the f+1-th lowest and the f+1-th highest value. The attack sends the
honest mean times 1 - strength, so that strength 0 is harmless and 2 turns the sign round.
"""

import torch
from torch import Tensor

from gradless.collab import aggregators, attacks
from gradless.collab.aggregators import AGGREGATORS, Aggregator, count, more_than
from gradless.collab.attacks import ATTACKS, Attack, mean_of_honest, no_extras, to_all
from gradless.testing import check_aggregator, check_attack


def midrange(*, f: int) -> Aggregator:
    """The middle of what f liars cannot reach. Breakdown: n > 2 f. Cost: n log n D."""
    count("midrange", f)  # a whole number, at least 0

    def function(rows: Tensor, pivot: int) -> Tensor:
        ordered = rows.sort(dim=0).values  # a NaN counts as plus infinity
        return (ordered[f] + ordered[len(rows) - f - 1]) / 2

    return Aggregator.dense("midrange", function, more_than("midrange", 2, f))


def drag(*, strength: float = 1.0) -> Attack:
    """(1 - strength) times the honest mean."""
    return Attack(
        "drag", no_extras, lambda context, s, state: to_all(context, (1 - s) * mean_of_honest(context)), strength
    )


AGGREGATORS["midrange"] = aggregators.Entry(midrange, "middle between trimmed extremes", "", "n > 2 f", "n log n D")
ATTACKS["drag"] = attacks.Entry(
    drag, "drag", "DRG", "(1 - strength) times the honest mean", "-", "sees the honest rows", "none"
)


def main() -> None:
    """Check both, and aggregate eleven rows of which two lie."""
    check_aggregator(lambda f: midrange(f=f), n=11, f=2)
    check_attack(drag())
    rows = torch.cat([torch.randn(9, 1000, generator=torch.Generator().manual_seed(0)), torch.full((2, 1000), 1e6)])
    print(f"all checks hold; largest value {midrange(f=2)(rows).abs().max():.1f} with two liars of 1e6")


if __name__ == "__main__":  # not where it is a plugin
    main()
