"""Metrics and their confidence intervals.

Every metric is ``f(predictions, golds) -> float`` over two sequences of equal length. Classes are ints; a
gold may also be a collection of accepted values (ReCoRD's entities), of which class metrics other than
accuracy use the first. Text metrics take strings and, as golds, the accepted answers, of which the best one
counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradless.errors import pick
from gradless.tasks.answers import normalize as normalize
from gradless.tasks.answers import word_f1
from gradless.tasks.expressions import same_answer

Metric: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], float]


def compute(names: Sequence[str], predictions: Sequence[Any], golds: Sequence[Any]) -> dict[str, float]:
    """Return several metrics by name.

    Raises:
        BadInput: unknown name.
    """
    return {name: pick("metric", name, METRICS)(predictions, golds) for name in names}


def accuracy(predictions: Sequence[Any], golds: Sequence[Any]) -> float:
    """Return the share of predictions that are (among) the gold."""
    return _mean(hits(predictions, golds))


def hits(predictions: Sequence[Any], golds: Sequence[Any]) -> NDArray[np.float64]:
    """Return 1.0 where the prediction is (among) the gold, else 0.0: float64 ``[n]``."""
    return _each(lambda guess, gold: float(guess in _accepted(gold)), predictions, golds)


def f1(predictions: Sequence[Any], golds: Sequence[Any]) -> float:
    """Return the F1 of class 1 (QQP, MRPC); 0.0 if it is neither predicted nor gold."""
    return _class_f1(np.asarray(predictions), _first(golds), 1)


def macro_f1(predictions: Sequence[Any], golds: Sequence[Any]) -> float:
    """Return the unweighted mean of the F1 of every class that is predicted or gold."""
    guesses, truth = np.asarray(predictions), _first(golds)
    _check_lengths(guesses, truth)
    classes = np.union1d(guesses, truth)
    return float(np.mean([_class_f1(guesses, truth, label) for label in classes])) if len(classes) else math.nan


def _class_f1(guesses: NDArray[Any], truth: NDArray[Any], label: Any) -> float:
    _check_lengths(guesses, truth)
    both = np.count_nonzero((guesses == label) & (truth == label))
    total = np.count_nonzero(guesses == label) + np.count_nonzero(truth == label)
    return 2 * both / total if total else 0.0


def mcc(predictions: Sequence[Any], golds: Sequence[Any]) -> float:
    """Return Matthews' correlation for any number of classes (Gorodkin 2004); 0.0 if it is undefined."""
    guesses, truth = np.asarray(predictions), _first(golds)
    _check_lengths(guesses, truth)
    classes = np.union1d(guesses, truth)
    g = np.array([np.count_nonzero(guesses == label) for label in classes], dtype=np.float64)
    t = np.array([np.count_nonzero(truth == label) for label in classes], dtype=np.float64)
    n, right = len(truth), np.count_nonzero(guesses == truth)
    scale = math.sqrt(float(n * n - g @ g) * float(n * n - t @ t))
    return (n * right - float(g @ t)) / scale if scale else 0.0


def exact_match(predictions: Sequence[str], golds: Sequence[Any]) -> float:
    """Return the share of predictions whose normal form equals that of an accepted answer."""
    return _mean(exact_matches(predictions, golds))


def exact_matches(predictions: Sequence[str], golds: Sequence[Any]) -> NDArray[np.float64]:
    """Return 1.0 or 0.0 per prediction: float64 ``[n]``."""

    def one(guess: str, gold: Any) -> float:
        return float(normalize(guess) in {normalize(answer) for answer in _accepted(gold)})

    return _each(one, predictions, golds)


def token_f1(predictions: Sequence[str], golds: Sequence[Any]) -> float:
    """Return the mean of the best word-overlap F1 with an accepted answer (SQuAD, arXiv 1606.05250)."""
    return _mean(token_f1s(predictions, golds))


def token_f1s(predictions: Sequence[str], golds: Sequence[Any]) -> NDArray[np.float64]:
    """Return the best word-overlap F1 per prediction: float64 ``[n]`` in [0, 1]."""
    return _each(lambda guess, gold: max(word_f1(guess, answer) for answer in _accepted(gold)), predictions, golds)


def solved(predictions: Sequence[str], golds: Sequence[Any]) -> float:
    """Return the share of texts whose ``<answer>`` has the numbers and the value of an accepted one (arithmetic)."""
    return _mean(solutions(predictions, golds))


def solutions(predictions: Sequence[str], golds: Sequence[Any]) -> NDArray[np.float64]:
    """Return 1.0 or 0.0 per prediction: float64 ``[n]``."""

    def one(guess: str, gold: Any) -> float:
        return float(any(same_answer(guess, answer) for answer in _accepted(gold)))

    return _each(one, predictions, golds)


METRICS: Final[dict[str, Metric]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "mcc": mcc,
    "exact_match": exact_match,
    "token_f1": token_f1,
    "solved": solved,
}
"""Every metric by name; higher is better in all of them."""

REWARDS: Final = ("reward", "passed", "valid")
"""What `reward_metrics` computes, of which the first is the main one."""


def reward_metrics(rewards: Sequence[float], right: Sequence[bool]) -> dict[str, float]:
    """Return the mean reward of the rows that have one (NaN: none), and the shares of right ones and of valid ones."""
    values = np.asarray(rewards, dtype=np.float64)
    known = values[~np.isnan(values)]
    mean = {"reward": float(known.mean())} if len(known) else {}
    return mean | {"passed": sum(right) / max(1, len(right)), "valid": len(known) / max(1, len(values))}


SCORES: Final[dict[str, Callable[[Sequence[Any], Sequence[Any]], NDArray[np.float64]]]] = {
    "accuracy": hits,
    "exact_match": exact_matches,
    "token_f1": token_f1s,
    "solved": solutions,
}
"""Metrics that are means of a score per example, which `difference_interval` compares."""

SHARES: Final = ("accuracy", "exact_match", "solved")
"""Metrics that are the share of right answers, for which `wilson` is an interval."""


def share_name(scores: Iterable[str]) -> str:
    """Return the name of the share of right answers among the names of metrics, else these words.

    Example:
        >>> share_name(["loss", "accuracy"]), share_name({"token_f1": 0.5}), share_name(["solved", "reward", "passed"])
        ('accuracy', 'share of right answers', 'passed')
    """
    scores = list(scores)
    if "passed" in scores:  # in a run on a reward that is what makes a text right
        return "passed"
    return next((name for name in scores if name in SHARES), "share of right answers")


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, by default at 95 % (Wilson 1927).

    Unlike the normal interval it stays inside [0, 1] and has a width at 0 and n.

    Args:
        correct: Successes, 0 <= correct <= n; need not be whole (a mean score times n).
        n: Trials; with none the interval is (0, 1).
        z: Normal quantile.

    Example:
        >>> [round(bound, 3) for bound in wilson(81, 100)]
        [0.722, 0.875]
    """
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(
    first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any], z: float = 1.96
) -> tuple[float, float]:
    """Return an interval of ``mean(second) - mean(first)`` for scores in [0, 1] on the *same* examples.

    Agresti and Min's paired interval (2005): the normal one after adding two pseudo-examples, half of
    each possible outcome, so that identical scores have an interval with a width. It is narrower than two
    `wilson` intervals allow, because the examples on which both models agree cancel.

    Args:
        first: Scores per example ``[n]``, see `SCORES`.
        second: Scores of the other model, same order.
        z: Normal quantile.
    """
    _check_lengths(first, second)
    gain = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    n = len(gain) + 2
    centre = float(gain.sum()) / n
    # Of the two pseudo-examples one half is a gain of 1 and one half a loss of 1: 1 in the sum of squares.
    variance = (float(gain @ gain) + 1.0) / n - centre * centre
    half = z * math.sqrt(variance / n)
    return max(-1.0, centre - half), min(1.0, centre + half)


def _accepted(gold: Any) -> Collection[Any]:
    return gold if isinstance(gold, tuple | list | set | frozenset) else (gold,)


def _first(golds: Sequence[Any]) -> NDArray[Any]:
    return np.asarray([gold[0] if isinstance(gold, tuple | list) else gold for gold in golds])


def _check_lengths(one: Sequence[Any] | NDArray[Any], other: Sequence[Any] | NDArray[Any]) -> None:
    if len(one) != len(other):
        raise ValueError(f"{len(one)} predictions for {len(other)} golds")


def _each(score: Callable[[Any, Any], float], predictions: Sequence[Any], golds: Sequence[Any]) -> NDArray[np.float64]:
    _check_lengths(predictions, golds)
    pairs = zip(predictions, golds, strict=True)
    return np.array([score(guess, gold) for guess, gold in pairs], dtype=np.float64)


def _mean(scores: NDArray[np.float64]) -> float:
    """Return the mean, or NaN without a warning if there are no scores."""
    return float(scores.mean()) if len(scores) else math.nan
