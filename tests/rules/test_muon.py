"""Orthogonalised updates against the singular value decomposition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.gradients import Mixture
from gradless.rules import muon
from rules_helpers import Bowl, signs_of


def low_rank_leaves(shapes, *, rank=2, refresh=3, **options):
    params = [(name, nn.Parameter(rng.normal(0, name, shape))) for name, shape in shapes.items()]
    opt = gl.ZerothOrder(params, seed=6, directions=gl.low_rank(rank, refresh=refresh), **options)
    return opt, {leaf.name: leaf for leaf in opt.leaves}


def mixture_of(opt, steps, queries=3):
    keys = tuple(opt.key(step, query) for step in range(steps) for query in range(queries))
    return Mixture(keys, tuple(float(w) for w in rng.normal(1, "weights", (len(keys),)).double()))


def svd_polar(matrix, *, tail=1e-6):
    """U V^T over the singular values that are not rounding, and their number; float64."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64), full_matrices=False)
    keep = s > tail * s[0]
    return u[:, keep] @ vt[keep], int(keep.sum())


@pytest.mark.parametrize("steps", [1, 5])  # one V, and two
def test_factors_are_the_mixture(steps):
    opt, leaves = low_rank_leaves({"w": (40, 24), "conv": (18, 3, 4, 2)})
    mixture = mixture_of(opt, steps)
    for leaf in leaves.values():
        left, right = muon.factors(leaf, mixture)
        assert left.shape == (leaf.param.shape[0], 2 * (1 if steps == 1 else 2))
        whole = mixture.leaf(leaf)
        torch.testing.assert_close(
            (left @ right.T).view(whole.shape) * leaf.stream.unit * leaf.update, whole, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (5, 4), (300, 3), (18, 3, 4, 2)])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_orthogonalised_estimates_have_the_polar_factor_of_svd(shape, steps):
    opt, leaves = low_rank_leaves({"w": shape})
    mixture = mixture_of(opt, steps)
    g, _ = muon.orthogonalise("none").update(mixture, None)
    update = g.leaf(leaves["w"])
    assert update.shape == shape
    assert update.dtype == torch.float32
    matrix = mixture.leaf(leaves["w"]).reshape(shape[0], -1)
    expected, rank = svd_polar(matrix)
    np.testing.assert_allclose(update.reshape(shape[0], -1).numpy(), expected, rtol=0, atol=2e-4)
    assert float(update.square().sum()) == pytest.approx(rank, rel=1e-4)
    for scale, norm in (("rms", math.sqrt(matrix.numel())), ("muon", 0.2 * math.sqrt(max(matrix.shape) * rank))):
        g, _ = muon.orthogonalise(scale).update(mixture, None)
        assert float(g.leaf(leaves["w"]).norm()) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("singular", [(3.0, 2.0, 1e-3), (3.0, 2.0, 0.0), (1e-9, 1e-10, 1e-11)])
def test_polar_factors_of_badly_scaled_products(singular):
    q = [torch.linalg.qr(rng.normal(i, "q", (rows, 3)).double())[0] for i, rows in enumerate((30, 20, 3))]
    left = (q[0] * torch.tensor(singular).double()) @ q[2].T
    right = 7 * q[1] @ q[2].T
    polar, rank = muon.thin_polar(left.float(), right.float())
    keep = [s > 0 for s in singular]
    assert rank == sum(keep)
    np.testing.assert_allclose(polar.numpy(), (q[0][:, keep] @ q[1][:, keep].T).numpy(), rtol=0, atol=2e-3)
    for matrix in (left.float() @ right.float().T, right.float() @ left.float().T):
        expected, count = svd_polar(matrix)
        factor, rank = muon.dense_polar(matrix)
        if singular[-1] != 0.0:  # else the smallest singular value is float32 rounding, on either side of the line
            assert rank == count
            np.testing.assert_allclose(factor.numpy(), expected, rtol=0, atol=2e-3)


def test_columns_of_v_that_coincide_are_one_direction():
    left, right = rng.normal(0, "left", (30, 4)), rng.normal(0, "right", (20, 4))
    right[:, 3] = right[:, 1]
    expected, rank = svd_polar((left @ right.T).numpy())
    polar, kept = muon.thin_polar(left, right)
    assert rank == kept == 3
    np.testing.assert_allclose(polar.numpy(), expected, rtol=0, atol=1e-5)


def test_nothing_stays_nothing():
    opt, leaves = low_rank_leaves({"w": (10, 8), "b": (8,)})
    for scale in muon.SCALES:
        g, _ = muon.orthogonalise(scale).update(Mixture((opt.key(0, 0), opt.key(7, 0)), (0.0, 0.0)), None)
        assert all(not g.leaf(leaf).any() for leaf in leaves.values())


@pytest.mark.parametrize(("scale", "rms"), [("rms", 1.0), ("muon", 0.2), ("none", None)])
def test_what_is_not_low_rank_is_normalised_as_a_whole(scale, rms):
    opt, leaves = low_rank_leaves({"b": (50,), "narrow": (30, 2), "masked": (20, 10)})
    mask = rng.normal(3, "mask", (20, 10)) > 0
    leaves["masked"] = leaves["masked"]._replace(mask=mask)
    mixture = mixture_of(opt, 2)
    g, _ = muon.orthogonalise(scale).update(mixture, None)
    for name, leaf in leaves.items():
        whole, part = mixture.leaf(leaf), g.leaf(leaf)
        torch.testing.assert_close(part / part.norm(), whole / whole.norm(), rtol=0, atol=1e-6)
        count = int(mask.sum()) if name == "masked" else whole.numel()
        assert float(part.norm()) == pytest.approx(1.0 if rms is None else rms * math.sqrt(count), rel=1e-5)
    assert not g.leaf(leaves["masked"])[~mask].any()


def twin_z(key, name, shape, rank):
    """U V^T / sqrt(rank), from words of the reference stream; full signs for vectors."""
    if len(shape) == 1:
        return signs_of(key & rng.MASK64, name, shape)
    u = rng.signs(rank, key & rng.MASK64, rng.leaf_id(name), 0, shape[0]).double().numpy()
    v = rng.signs(rank, key >> 64, rng.leaf_id(name), 0, shape[1]).double().numpy()
    return np.array([[sum(u[i] * v[j]) / math.sqrt(rank) for j in range(shape[1])] for i in range(shape[0])])


def test_zo_muon_with_momentum_follows_its_twin():
    """Refreshes fall inside the momentum's window, so several V meet in one estimate."""
    bowl = Bowl({"w": (12, 9), "b": (9,)})
    lr, eps, queries, steps, seed, beta = 0.05, 0.1, 3, 8, 4, 0.5
    opt = gl.ZerothOrder(
        bowl.named(),
        seed=seed,
        directions=gl.low_rank(2, refresh=3),
        estimator=gl.spsa(eps=eps, queries=queries),
        rule=gl.chain(gl.momentum(beta, tail=1e-8), muon.orthogonalise(), gl.scale(lr)),
    )
    moved = [opt.step_with(bowl.closure)[1] for _ in range(steps)]
    theta = {name: value.double().numpy().copy() for name, value in bowl.start.items()}
    total = {name: np.zeros(shape) for name, shape in bowl.shapes.items()}
    for t in range(steps):
        total = {name: beta * value for name, value in total.items()}
        for k in range(queries):
            key = rng.basis_key(seed, t // 3) << 64 | rng.direction_key(seed, t, k)
            z = {name: twin_z(key, name, shape, 2) for name, shape in bowl.shapes.items()}
            plus = bowl.loss({n: theta[n] + eps * z[n] for n in theta})
            minus = bowl.loss({n: theta[n] - eps * z[n] for n in theta})
            for name in total:
                total[name] = total[name] + (plus - minus) / (2 * eps) * z[name] / queries
        polar, rank = svd_polar(total["w"], tail=1e-5)
        theta["w"] = theta["w"] - lr * math.sqrt(polar.size / rank) * polar
        theta["b"] = theta["b"] - lr * total["b"] / np.sqrt(np.mean(total["b"] ** 2))
    for name, value in bowl.values().items():
        np.testing.assert_allclose(value, theta[name], rtol=0, atol=1e-3, err_msg=name)
    assert bowl.loss(theta) < bowl.loss({n: v.double().numpy() for n, v in bowl.start.items()})
    again = Bowl(bowl.shapes)
    replay = gl.ZerothOrder(
        again.named(),
        seed=seed,
        directions=opt.directions,
        estimator=opt.estimator,
        rule=gl.chain(gl.momentum(beta, tail=1e-8), muon.orthogonalise(), gl.scale(lr)),
    )
    replay.replay(moved)
    assert all(torch.equal(again.params[name], bowl.params[name]) for name in bowl.shapes)
