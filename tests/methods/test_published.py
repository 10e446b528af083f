"""Published hyper-parameters and ours: twins at the published scale give the updates of ours at converted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.errors import BadInput
from gradless.gradients import Mixture
from gradless.methods import METHODS
from gradless.runs.config import TuneConfig

ROWS, COLUMNS = 12, 7


def problem():
    """A matrix and a loss whose value at any matrix is known in float64."""
    target = rng.normal(1, "target", (ROWS, COLUMNS)).double()
    w = nn.Parameter(rng.normal(0, "w", (ROWS, COLUMNS)))
    return w, lambda matrix: float((matrix.double() - target).square().mean()), target


def trained(preset, steps, **options):
    """The weights after some steps, and z of every step and query."""
    w, _, target = problem()
    opt = preset([("w", w)], seed=3, **options)
    zs = []
    for step in range(steps):
        keys = [opt.key(step, query) for query in range(opt.estimator.queries(step))]
        zs.append([Mixture((key,), (1.0,)).leaf(opt.leaves[0]).double() for key in keys])
        opt.step(lambda: (w - target.float()).square().mean())
    return w.detach().double(), zs


def test_lozo_at_the_published_scale():
    """The code of LOZO perturbs by eps U V^T and moves by lr c U V^T: eps sqrt(r) and lr r of unit variance."""
    rank, lr, eps = 4, 2e-3, 1e-2
    options = {"rank": rank, "refresh": 3, "lr": lr * rank, "eps": eps * math.sqrt(rank)}
    ours, zs = trained(gl.lozo, 8, **options)
    w, loss, _ = problem()
    theta = w.detach().double()
    for (z,) in zs:
        whole = z * math.sqrt(rank)  # U V^T
        coeff = (loss(theta + eps * whole) - loss(theta - eps * whole)) / (2 * eps)
        theta = theta - lr * coeff * whole
    np.testing.assert_allclose(ours, theta, rtol=0, atol=2e-5)
    assert float((ours - w.detach()).norm()) > 0.05


def test_lozo_of_a_rank_that_a_matrix_does_not_exceed_is_mezo():
    options = {"lr": 2e-3, "eps": 1e-2}
    wide, thin = (trained(gl.lozo, 4, rank=rank, **options)[0] for rank in (COLUMNS, COLUMNS - 1))
    mezo = trained(gl.mezo, 4, **options)[0]
    assert torch.equal(wide, mezo)
    assert not torch.equal(thin, mezo)


def test_zo_muon_at_the_published_scale():
    """z has variance r/m, differences are forward, and the update is the polar factor of the estimate itself."""
    rank, lr, eps = 2, 1e-2, 1e-1
    shrink = math.sqrt(rank / ROWS)
    options = {"rank": rank, "refresh": 100, "sides": 1, "update": "none", "lr": lr, "eps": eps * shrink}
    ours, zs = trained(gl.zo_muon, 8, queries=4, **options)
    w, loss, _ = problem()
    theta = w.detach().double()
    for directions in zs:
        published = [z * shrink for z in directions]
        g = sum((loss(theta + eps * z) - loss(theta)) / eps * z for z in published) / len(published)
        u, s, vt = torch.linalg.svd(g, full_matrices=False)
        keep = s > 1e-6 * s[0]
        theta = theta - lr * u[:, keep] @ vt[keep]
    np.testing.assert_allclose(ours, theta, rtol=0, atol=2e-4)
    assert float((ours - w.detach()).norm()) > 0.05


@pytest.mark.parametrize("population", [False, True])
def test_fzoo_of_the_paper_and_of_its_code(population):
    """The paper divides by the deviation of a sample; its code by that of a population: lr sqrt(K / (K - 1))."""
    lr, eps, queries = 1e-3, 1e-2, 8
    factor = math.sqrt(queries / (queries - 1)) if population else 1.0
    ours, zs = trained(gl.fzoo, 6, lr=lr * factor, eps=eps, queries=queries)
    w, loss, _ = problem()
    theta = w.detach().double()
    for directions in zs:
        losses = np.array([loss(theta + eps * z) for z in directions])
        deviation = losses.std(ddof=0 if population else 1)
        shifts = (losses - loss(theta)) / deviation
        theta = theta - lr * sum(s * z for s, z in zip(shifts, directions, strict=True)) / queries
    np.testing.assert_allclose(ours, theta, rtol=0, atol=1e-4)
    assert float((ours - w.detach()).norm()) > 3e-3


@pytest.mark.parametrize(("scheme", "lr"), [("full", 1e-3), ("lora", 1e-2), ("prefix", 1e-1)])
def test_fzoos_rate_follows_eps(scheme, lr):
    config = TuneConfig(model="tiny-llama", task="sst2", method="fzoo", scheme=scheme)
    assert config.resolved().lr == pytest.approx(lr)
    wider = TuneConfig(model="tiny-llama", task="sst2", method="fzoo", scheme=scheme, eps=0.5)
    assert wider.resolved().lr == pytest.approx(0.5)
    assert METHODS["fzoo"].make([("w", problem()[0])]).rule.lr == pytest.approx(1e-3)


def adams(window, size, steps=300):
    """Lengths of windowed steps against Adam's, by numpy, for gradients of size(t)."""
    draws = [
        rng.normal(t, "g", (200,)).double().numpy() * size(t) * float(rng.normal(t, "c", (1,))) for t in range(steps)
    ]
    leaf = (
        gl.ZerothOrder([("w", nn.Parameter(torch.zeros(200)))])
        .leaves[0]
        ._replace(draw=lambda key, name, p: torch.tensor(draws[key], dtype=torch.float32))
    )
    rule = gl.adam(window=window)
    state, m, v = rule.init(), np.zeros(200), np.zeros(200)
    for t, g in enumerate(draws):
        update, state = rule.update(Mixture((t,), (1.0,)), state)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    true = m / (1 - 0.9**steps) / (np.sqrt(v / (1 - 0.999**steps)) + 1e-8)
    return float(np.linalg.norm(update.leaf(leaf).double()) / np.linalg.norm(true))


@pytest.mark.parametrize(
    ("window", "fall", "low", "high"),
    [(300, 100, 0.9999, 1.0001), (64, 1, 1.0, 1.25), (64, 100, 9, 22), (256, 100, 1.5, 2.5)],
)
def test_the_window_of_recomputed_adam_costs_what_its_docstring_says(window, fall, low, high):
    assert low < adams(window, lambda t: fall ** (-t / 300)) < high


def test_mezo_adam_takes_window_and_betas():
    w = problem()[0]
    opt = gl.mezo_adam([("w", w)], lr=1e-2, beta1=0.5, beta2=0.9, window=2)
    for _ in range(4):
        opt.step(lambda: w.square().mean())
    assert len(opt._rule_state[0].mixtures) == 2
    for bad in ({"window": 0}, {"beta1": 1.0}, {"beta2": -0.1}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            gl.mezo_adam([("w", w)], **bad)


def test_zo_muon_has_one_or_two_sides():
    with pytest.raises(BadInput, match="sides is 3: give 2"):
        gl.zo_muon([("w", problem()[0])], sides=3)
    with pytest.raises(BadInput, match="unknown update 'rmss': did you mean 'rms'"):
        gl.zo_muon([("w", problem()[0])], update="rmss")
