"""Linear probing: logistic regression on what a frozen model makes of a prompt. Forward passes only, one for each row.

The strongest thing that many models can do without a gradient, and so what forward-only tuning is to be compared with;
MeZO (Malladi et al. 2023, arXiv 2305.17333) lists it in every table. Features are the hidden state in front of the
output layer at the position that answers: the last token of the prompt, or the mask. scikit-learn fits the regression.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradless.errors import BadInput, NotFinite
from gradless.lm.batching import collate_ends, groups
from gradless.lm.encode import length_limit
from gradless.lm.encoded import Encoded
from gradless.lm.evaluate import Evaluation, Progress
from gradless.lm.loading import LanguageModel
from gradless.lm.metrics import compute, hits
from gradless.lm.predict import default_batch_tokens, quiet
from gradless.lm.scoring import features
from gradless.tasks.base import Task

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Inverse strengths of regularisation, C, that a probe chooses from."""


class Probe(NamedTuple):
    """A logistic regression, and how it was chosen."""

    C: float
    dev_accuracy: float
    fitted: Any
    """Of scikit-learn: features of any scale to classes."""


def evaluate(
    lm: LanguageModel,
    task: Task,
    train: Sequence[Encoded],
    dev: Sequence[Encoded],
    test: Sequence[Encoded],
    *,
    progress: Progress | None = None,
) -> tuple[Evaluation, Probe]:
    """Fit a probe to training rows, choose C by the accuracy on dev rows, and evaluate it on test rows.

    Args:
        lm: the model, which stays as it is.
        task: with classes that have the same words in all rows.
        train: rows as tokens.
        dev: rows to choose C on.
        test: rows to report on.
        progress: called with the numbers of finished and of all rows.

    Raises:
        BadInput: no such classes, no training or dev rows, or only one class among the training rows.
        NotFinite: features that are NaN or infinite.

    Cost: one forward without logits for each batch of rows.
    """
    begun = time.perf_counter()
    if not (task.masked_words if lm.masked else task.label_words):
        raise BadInput(f"a linear probe needs fixed classes, which task '{task.name}' has not: use another mode")
    for name, rows, option in (("training", train, "train"), ("dev", dev, "dev")):
        if not rows:
            raise BadInput(f"a linear probe needs {name} rows: give --{option}, or raise --num-{option}")
    whole = [*train, *dev, *test]
    with quiet(lm) as calls:
        X = _features(lm, whole, progress)
    y = np.asarray([row.gold for row in whole])
    first, last = len(train), len(train) + len(dev)
    probe = fit((X[:first], y[:first]), (X[first:last], y[first:last]))
    shares = probe.fitted.predict_proba(X[last:])
    predictions = probe.fitted.classes_[shares.argmax(1)].tolist()
    golds = [row.correct for row in test]
    evaluation = Evaluation(
        metrics=compute(task.metrics, predictions, golds),
        loss=None,
        predictions=predictions,
        correct=(hits(predictions, golds) == 1.0).tolist(),
        forwards=calls[0],
        seconds=time.perf_counter() - begun,
        probabilities=shares.max(1).tolist(),
        cut=sum(row.cut for row in test),
        limit=length_limit(lm),
    )
    return evaluation, probe


def _features(lm: LanguageModel, rows: Sequence[Encoded], progress: Progress | None) -> NDArray[np.float32]:
    """Return the features of rows in their order, ``[N, H]``."""
    states: dict[int, NDArray[np.float32]] = {}
    for group in groups(lm, rows, batch_tokens=default_batch_tokens(lm)):
        hidden = features(lm, collate_ends(lm, [rows[i] for i in group])).cpu().numpy()
        if not np.isfinite(hidden).all():
            raise NotFinite(f"hidden states of {lm.name} are not finite: use --dtype float32 or bfloat16")
        states.update(zip(group, hidden, strict=True))
        if progress is not None:
            progress(len(states), len(rows))
    return np.stack([states[i] for i in range(len(rows))])


def fit(train: tuple[Any, Any], dev: tuple[Any, Any]) -> Probe:
    """Return the probe whose C has the best accuracy on dev rows, the smallest of equals.

    Features are standardised by the training rows.

    Args:
        train: features ``[N, H]`` and classes ``[N]``.
        dev: those to choose C on.

    Raises:
        BadInput: scikit-learn cannot fit it, for instance because there is only one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best: Probe | None = None
    for strength in STRENGTHS:
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # not yet converged after 1000 iterations: dev decides
                fitted.fit(*train)
        except ValueError as error:
            raise BadInput(f"the linear probe cannot be fitted ({error}): check the training examples") from error
        accuracy = float(fitted.score(*dev))
        if best is None or accuracy > best.dev_accuracy:
            best = Probe(strength, accuracy, fitted)
    assert best is not None
    return best
