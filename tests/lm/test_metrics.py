"""Metrics against scikit-learn, known values, and the intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradless.errors import BadInput
from gradless.lm import metrics
from gradless.lm.metrics import METRICS, compute, difference_interval, normalize, wilson


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_class_metrics_equal_scikit_learn(classes: int, seed: int) -> None:
    from sklearn import metrics as reference

    rng = np.random.default_rng(seed)
    gold = rng.integers(classes, size=60)
    guess = np.where(rng.random(60) < 0.5, gold, rng.integers(classes, size=60))
    guesses, golds = guess.tolist(), gold.tolist()
    assert METRICS["accuracy"](guesses, golds) == pytest.approx(reference.accuracy_score(gold, guess))
    assert METRICS["mcc"](guesses, golds) == pytest.approx(reference.matthews_corrcoef(gold, guess))
    assert METRICS["macro_f1"](guesses, golds) == pytest.approx(reference.f1_score(gold, guess, average="macro"))
    if classes == 2:
        assert METRICS["f1"](guesses, golds) == pytest.approx(reference.f1_score(gold, guess))


def test_degenerate_classes() -> None:
    assert metrics.f1([0, 0], [0, 0]) == 0.0
    assert metrics.mcc([1, 1], [0, 1]) == 0.0
    assert metrics.macro_f1([1, 1], [1, 1]) == 1.0
    assert metrics.mcc([0, 1], [1, 0]) == -1.0


def test_several_golds() -> None:
    assert metrics.accuracy([1, 2, 0], [(1, 3), (0,), 0]) == pytest.approx(2 / 3)
    assert metrics.macro_f1([1, 0], [(1,), (0,)]) == 1.0


def test_text_metrics() -> None:
    golds = [("the Denver Broncos", "Broncos"), ("50",), ("a",)]
    assert metrics.exact_matches(["Broncos!", "fifty", "the"], golds).tolist() == [1.0, 0.0, 1.0]
    # "broncos of denver" against "denver broncos": 2 common words, 2 * 2 / (3 + 2).
    assert metrics.token_f1s(["Broncos of Denver", "50 50", "b"], golds).tolist() == pytest.approx([0.8, 2 / 3, 0.0])
    assert metrics.token_f1(["x", "50"], [("y",), ("50", "5")]) == 0.5
    assert metrics.exact_match("x", ["x"]) == 1.0
    assert normalize(" An  apple, the pear; THEN a fig.") == "apple pear then fig"


def test_text_metrics_beside_dashes_and_quotes() -> None:
    """Articles go wherever a word ends, as in SQuAD's evaluation; two answers of nothing else share no word."""
    assert normalize("the\u2014house") == "\u2014house"
    assert normalize("\u201cThe Beatles\u201d, a\u2019s") == "\u201c beatles\u201d \u2019s"
    assert metrics.token_f1s(["the", "", "a!"], ["the", "", "an"]).tolist() == [0.0, 0.0, 0.0]
    assert metrics.exact_matches(["the", ""], ["a", "."]).tolist() == [1.0, 1.0]
    assert metrics.token_f1s(["1914\u20131918"], ["the 1914\u20131918"]).tolist() == [1.0]


def test_compute_and_errors() -> None:
    assert compute(("accuracy", "mcc"), [1, 0], [1, 0]) == {"accuracy": 1.0, "mcc": 1.0}
    with pytest.raises(BadInput, match="unknown metric 'acuracy': did you mean 'accuracy'"):
        compute(("acuracy",), [1], [1])
    for metric in METRICS.values():
        with pytest.raises(ValueError, match="1 predictions for 2 golds"):
            metric(["1"], ["1", "0"])


def test_nothing_to_average_is_nan() -> None:
    assert all(math.isnan(METRICS[name]([], [])) for name in ("accuracy", "exact_match", "token_f1", "macro_f1"))


def test_wilson_known_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers() -> None:
    rng = np.random.default_rng(0)
    covered = [low <= 0.8 <= high for low, high in (wilson(int(k), 60) for k in rng.binomial(60, 0.8, 2000))]
    assert 0.93 < np.mean(covered) < 0.97


def test_difference_interval_covers_and_is_paired() -> None:
    rng = np.random.default_rng(1)
    covered, widths = [], []
    for _ in range(1000):
        before = rng.random(150) < 0.6
        # One in five examples flips from wrong to right, one in twenty from right to wrong.
        after = np.where(before, rng.random(150) >= 0.05, rng.random(150) < 0.2)
        low, high = difference_interval(before, after)
        covered.append(low <= 0.4 * 0.2 - 0.6 * 0.05 <= high)
        widths.append(high - low)
    assert 0.93 < np.mean(covered) < 0.98
    low, high = wilson(90, 150)
    assert np.mean(widths) < high - low


def test_difference_interval_is_never_empty() -> None:
    low, high = difference_interval([1.0] * 20, [1.0] * 20)
    assert low < 0 < high
    assert difference_interval([0.0] * 400, [1.0] * 400)[0] > 0.98
