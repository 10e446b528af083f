"""Numbers of results: what is finite, means over seeds, and settings as text."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from gradless import tasks
from gradless.bench.results import FAILED
from gradless.errors import BadInput
from gradless.runs.record import DIVERGED, DONE


class Score(NamedTuple):
    """Mean and sample standard deviation (n - 1; None for one value) over seeds."""

    mean: float
    std: float | None
    n: int


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among values, by name."""
    numbers = {name: number(value) for name, value in values.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def score(values: Iterable[float | None]) -> Score | None:
    """Mean and spread of the values that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Score(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def median(values: Iterable[float | None]) -> float | None:
    """Median of the values that are there."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show(value: Any) -> str:
    """A setting for people: 1e-06 -> 1e-6."""
    if isinstance(value, bool) or value is None:
        return "none" if value is None else str(value).lower()
    if isinstance(value, int | float):
        text = f"{value:g}"
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else text
    return str(value)


def sortable(value: Any) -> tuple[bool, float, str]:
    """A sort key for settings of mixed types: numbers by size, then text."""
    size = number(value)
    return (size is None, size or 0.0, show(value))


def slug(text: str) -> str:
    """Text for names of files: letters, digits, ``.``, ``=``, ``_`` and single hyphens."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._=") else "-" for letter in text)
    return "-".join(part for part in kept.split("-") if part).strip(".-") or "x"


def unique(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order of appearance."""
    return list(dict.fromkeys(values))


def comparable(value: float) -> float:
    """Return a value whose equals are equal: means of the same total differ in their last bits."""
    return round(value, 9)


def counted(count: int, noun: str, plural: str = "") -> str:
    """``1 step``, ``2 steps``; of a noun with a verb the plural is given: ``1 run has``, ``2 runs have``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def count_endings(statuses: Iterable[str]) -> str:
    """How many runs came to which end: ``4 runs: 3 done, 1 failed``."""
    counts = Counter(statuses)
    order = unique([*(status for status in (DONE, DIVERGED, FAILED) if status in counts), *sorted(counts)])
    return f"{counted(counts.total(), 'run')}: {', '.join(f'{counts[status]} {status}' for status in order)}"


def usual_count(scores: Iterable[Score | None]) -> int | None:
    """The number of seeds that most scores have; the larger one of two."""
    counts = Counter(score.n for score in scores if score is not None)
    return max(counts, key=lambda n: (counts[n], n), default=None)


@cache
def metric_of(task: str) -> str:
    """The task's main metric; accuracy for own files and tasks that this release does not know."""
    try:
        return tasks.get(task).metrics[0]
    except BadInput:
        return "accuracy"
