"""Linear probing: features of the right token, a regression that dev rows choose, and what cannot be probed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from gradless.errors import BadInput, NotFinite
from gradless.lm import probe
from gradless.lm.encode import encode_all
from gradless.tasks.base import MASK, Example
from scoring_helpers import shared, task

CLASSES = task("classification", label_words=(" bad", " good"), masked_words=(" bad", " good"))
MODELS = ("llama", "opt", "roberta")


def encoded(lm, count: int, *, seed: int = 0, gold: int | None = None):
    """Rows whose class is their last word, as tokens."""
    generator = np.random.Generator(np.random.Philox(seed))
    end = MASK if lm.masked else ""
    rows = []
    for i in range(count):
        right = int(generator.integers(2)) if gold is None else gold
        prompt = f"{'so ' * (i % 3)}the film was {('bad', 'good')[right]}{end}"
        rows.append(Example(prompt, CLASSES.label_words, (right,)))
    return encode_all(lm, CLASSES, rows, None)


def test_fit_chooses_on_dev(monkeypatch):
    generator = np.random.Generator(np.random.Philox(0))
    X = generator.standard_normal((300, 40)).astype(np.float32)
    y = (X[:, 0] - X[:, 3] + generator.standard_normal(300) > 0).astype(int)
    train, dev, against = (X[:60], y[:60]), (X[60:], y[60:]), (X[60:], 1 - y[60:])
    chosen, worst = probe.fit(train, dev), probe.fit(train, against)
    alone = {}
    for strength in probe.STRENGTHS:
        monkeypatch.setattr(probe, "STRENGTHS", (strength,))
        alone[strength] = probe.fit(train, dev).dev_accuracy
    assert max(alone, key=alone.get) == chosen.C
    assert min(alone, key=alone.get) == worst.C  # dev alone decides
    assert chosen.dev_accuracy == alone[chosen.C] > alone[worst.C]
    with pytest.raises(BadInput, match="cannot be fitted"):
        probe.fit((X[:60], np.zeros(60, dtype=int)), dev)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_output_layer_gets_where_the_answer_goes(name, monkeypatch):
    lm = shared(name)
    train, dev, test = (encoded(lm, n, seed=n) for n in (9, 5, 4))
    fitted: list[np.ndarray] = []
    monkeypatch.setattr(
        probe, "fit", lambda one, two: fitted.extend((one[0], two[0])) or probe.Probe(1.0, 0.5, untrained(one))
    )
    probe.evaluate(lm, CLASSES, train, dev, test)
    inputs: list[torch.Tensor] = []
    handle = lm.head.register_forward_pre_hook(lambda module, tensors: inputs.append(tensors[0].detach()))
    try:
        for row, feature in zip([*train, *dev], np.concatenate(fitted), strict=True):
            inputs.clear()
            with torch.no_grad():
                lm.model(input_ids=torch.tensor([row.prompt]))
            at = len(row.prompt) - 1 if row.mask is None else row.mask
            np.testing.assert_allclose(inputs[0][0, at].numpy(), feature, atol=1e-4, rtol=1e-3)
    finally:
        handle.remove()


def untrained(data):
    return DummyClassifier().fit(*data)


@pytest.mark.parametrize("name", MODELS)
def test_a_class_in_plain_sight_is_learnt_and_the_model_stays(name):
    lm = shared(name)
    original = [p.detach().clone() for p in lm.model.parameters()]
    done: list[tuple[int, int]] = []
    train, dev, test = (encoded(lm, n, seed=n) for n in (60, 30, 41))
    result, chosen = probe.evaluate(lm, CLASSES, train, dev, test, progress=lambda *pair: done.append(pair))
    assert result.metrics["accuracy"] > 0.9
    assert result.metrics["accuracy"] == sum(result.correct) / 41
    assert [p == row.gold for p, row in zip(result.predictions, test, strict=True)] == result.correct
    assert all(0.5 <= share <= 1 for share in result.probabilities)
    assert chosen.dev_accuracy > 0.9
    assert done[-1] == (131, 131)
    assert 0 < result.forwards <= len(done)
    assert all(torch.equal(old, new) for old, new in zip(original, lm.model.parameters(), strict=True))


def test_what_cannot_be_probed():
    lm = shared("llama")
    few = encoded(lm, 8)
    with pytest.raises(BadInput, match="needs fixed classes, which task 'toy' has not"):
        probe.evaluate(lm, task("classification"), few, few, few)
    with pytest.raises(BadInput, match="needs dev rows"):
        probe.evaluate(lm, CLASSES, few, [], few)
    with pytest.raises(BadInput, match="needs training rows"):
        probe.evaluate(lm, CLASSES, [], few, few)
    with pytest.raises(BadInput, match="cannot be fitted"):
        probe.evaluate(lm, CLASSES, encoded(lm, 6, gold=1), few, few)


def test_states_that_are_not_finite_are_refused(monkeypatch):
    lm = shared("llama")
    few = encoded(lm, 4)
    monkeypatch.setattr(probe, "features", lambda lm, batch: torch.full((len(batch.input_ids), 3), float("nan")))
    with pytest.raises(NotFinite, match="use --dtype float32"):
        probe.evaluate(lm, CLASSES, few, few, few)
