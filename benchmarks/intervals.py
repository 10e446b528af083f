"""How often the intervals of `gradless report` hold, and how wide they are, on simulated studies of equal methods.

    python benchmarks/intervals.py

writes ``benchmarks/results/intervals.json``. Standard deviations of methods are equal, or drawn log-uniformly within a
factor; ``moderated`` intervals are those of the report, ``pairs`` those of two methods alone, ``rows`` the variance
that test rows which seeds share add, over the true one.
"""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

from gradless.report.bench.intervals import interval, moderated, residual_variances, row_variance

OUT = Path(__file__).resolve().parent / "results" / "intervals.json"
SIZE, SEEDS, STUDIES = 0.02, 3, 600


def coverage(methods: int, factor: float, draw: random.Random) -> dict[str, Any]:
    """Return shares of intervals that hold zero, and mean widths."""
    held: dict[str, list[bool]] = {"moderated": [], "pairs": []}
    widths: dict[str, list[float]] = {"moderated": [], "pairs": []}
    for _ in range(STUDIES):
        sizes = [SIZE * factor ** draw.uniform(-1, 1) for _ in range(methods)]
        values = {m: [draw.gauss(0, size) for _ in range(SEEDS)] for m, size in enumerate(sizes)}
        whole = moderated(residual_variances(values))
        for m in range(0, methods, 2):
            both = residual_variances({n: values[n] for n in (m, m + 1)})
            for name, spreads in (("moderated", whole), ("pairs", both)):
                bounds = interval(values[m], values[m + 1], (spreads[m], spreads[m + 1]))
                assert bounds is not None
                held[name].append(bounds.low <= 0 <= bounds.high)
                widths[name].append(bounds.high - bounds.low)
    case: dict[str, Any] = {"methods": methods, "factor": factor}
    for name in held:
        case[name] = {"coverage": statistics.fmean(held[name]), "width": statistics.fmean(widths[name])}
    return case


def rows(draw: random.Random, count: int = 100) -> float:
    """Return the mean of `row_variance` over the true variance, for rows whose answers have chances of their own."""
    estimates = []
    for _ in range(STUDIES):
        chances = [(draw.random() ** 2, draw.random()) for _ in range(count)]
        sides = [
            [{str(n): draw.random() < pair[side] for n, pair in enumerate(chances)} for _ in range(SEEDS)]
            for side in (0, 1)
        ]
        estimates.append(row_variance(*sides))
    return statistics.fmean(estimates) / ((4 / 45 + 1 / 12) / count)


if __name__ == "__main__":
    draw = random.Random(3)
    cases = [coverage(methods, factor, draw) for methods in (8, 16) for factor in (1.0, 1.5, 2.0, 3.0)]
    result = {"seeds": SEEDS, "studies": STUDIES, "size": SIZE, "cases": cases, "rows": rows(draw)}
    OUT.write_text(json.dumps(result, indent=2) + "\n")
