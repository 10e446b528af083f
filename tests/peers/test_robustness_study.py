"""The study of liars: its rules are those of gradless, its search finds known worst cases."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from repository import ROOT


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_rules_of_the_study_are_those_of_gradless():
    from robustness_parts import rules

    rules.compare()
    broken = dict(rules.RULES, median=rules.mean)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "RULES", broken)
        with pytest.raises(AssertionError, match="median"):
            rules.compare()


def test_the_search_finds_the_worst_liar_where_it_is_known():
    """Trimmed mean of four: a liar beyond all others costs the far one, so the two nearer to it are averaged."""
    from robustness_parts import push
    from robustness_parts.rules import mean, trimmed_mean

    random = np.random.default_rng(0)
    honest, signs = push.honest_rows(random, "like", 60, 3, 1), np.ones((60, 1))
    ranks = np.sort(honest[:, :, 0], 1)
    known = ((ranks[:, 1] + ranks[:, 2]) / 2 - ranks.mean(1)) / push.spread(honest)
    damages, rows = push.worst(trimmed_mean, 1, honest, signs, random)
    assert rows.shape == (60, 1, 1)
    np.testing.assert_allclose(damages, known, atol=1e-9)
    assert push.worst(mean, 1, honest, signs, random)[0].mean() > push.UNBOUNDED


def test_scores_of_the_toy_are_those_of_the_log():
    from robustness_parts import toy

    from gradless.collab.aggregation.pair_scores import pair_scores

    log, random = toy.Log(5), np.random.default_rng(0)
    rows = random.standard_normal((130, toy.SEEDS, 5, toy.WIDTH)).astype(np.float32)
    for step in rows:
        log.append(step)
    scores = log.scores()
    for seed in (0, toy.SEEDS - 1):
        np.testing.assert_allclose(scores[seed], pair_scores(rows[30:, seed]), rtol=1e-9)
