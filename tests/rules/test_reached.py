"""Directions that reach some leaves only: a step that leaves a leaf out is a gradient of zero there, in every rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.directions import Directions
from gradless.directions.blocks import one_by_one, random_blocks
from gradless.directions.masks import sparse
from gradless.gradients import Mixture
from gradless.rules import normalise, stored

SHAPES = {"layers.0.w": (6, 5), "layers.0.b": (6,), "layers.1.w": (6, 6), "layers.2.w": (4, 6), "norm": (4,)}


def drawn() -> Directions:
    """Directions of a user's own."""
    return Directions("own", draw=lambda key, name, p: rng.normal(key & rng.MASK64, name, p.shape))


FAMILIES = {
    "rademacher": gl.rademacher,
    "gaussian": gl.gaussian,
    "low-rank": lambda: gl.low_rank(2, refresh=3),
    "scaled": lambda: gl.scaled(gl.rademacher(), {name: 0.5 + i for i, name in enumerate(SHAPES)}),
    "sparse": lambda: sparse(gl.rademacher(), "magnitude", 0.5),
    "own": drawn,
}
SAMPLERS = {
    "all": lambda base: base,
    "one block": lambda base: random_blocks(base, keep=1),
    "half": lambda base: random_blocks(base, keep=0.5),
    "one by one": lambda base: one_by_one(base, list(SHAPES))[0],
}


def optimizer(directions, rule=None, **options):
    params = [(name, nn.Parameter(rng.normal(0, name, shape))) for name, shape in SHAPES.items()]
    return gl.ZerothOrder(params, seed=6, directions=directions, rule=rule, **options)


def steps_of(opt, queries, steps=12):
    """Mixtures of some steps, with coefficients that grow and shrink."""
    for t in range(steps):
        keys = tuple(opt.key(t, k) for k in range(queries))
        coeffs = rng.normal(t, "coeffs", (queries,)).double() * 10.0 ** (t % 4 - 2)
        yield Mixture(keys, tuple(float(c) / queries for c in coeffs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("queries", [1, 3])
def test_recomputed_adam_is_stored_adam(family, sampler, queries):
    if (family, sampler) == ("low-rank", "one by one"):
        with pytest.raises(gl.BadInput, match="low-rank directions cannot go unit by unit"):
            SAMPLERS[sampler](FAMILIES[family]())
        return
    opt = optimizer(SAMPLERS[sampler](FAMILIES[family]()))
    ours, theirs = gl.adam(0.8, 0.95, window=40), stored.stored_adam(0.8, 0.95)
    state, other = ours.init(), theirs.init()
    for mixture in steps_of(opt, queries):
        (g, state), (h, other) = ours.update(mixture, state), theirs.update(mixture, other)
        for leaf in opt.leaves:
            torch.testing.assert_close(g.leaf(leaf), h.leaf(leaf), rtol=5e-5, atol=5e-5)


RULES = {
    "sign": normalise.sign,
    "scalar sign": normalise.scalar_sign,
    "rms": normalise.rms_normalised,
    "orthogonalise": gl.orthogonalise,
    "adam": gl.adam,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_moves_what_it_reaches_and_nothing_else(rule, family):
    opt = optimizer(random_blocks(FAMILIES[family](), keep=1))
    for mixture in steps_of(opt, 1, steps=6):
        g, _ = RULES[rule]().update(mixture, RULES[rule]().init())
        moved = {leaf.name for leaf in opt.leaves if float(g.leaf(leaf).abs().max()) > 0}
        assert moved == {leaf.name for leaf in opt.leaves if leaf.reached(mixture.keys[0])}
        assert "norm" in moved
        assert len({name.rpartition(".")[0] for name in moved} - {""}) == 1


def test_orthogonalised_estimates_leave_out_the_queries_that_missed():
    opt = optimizer(random_blocks(gl.low_rank(2, refresh=3), keep=1))
    leaf = next(leaf for leaf in opt.leaves if leaf.name == "layers.1.w")
    for mixture in steps_of(opt, 4, steps=6):
        g, _ = gl.orthogonalise("none").update(mixture, None)
        u, s, vt = torch.linalg.svd(mixture.leaf(leaf).double(), full_matrices=False)
        keep = s > 1e-6 * s[0]
        torch.testing.assert_close(g.leaf(leaf).double(), u[:, keep] @ vt[keep] * bool(s[0] > 0), rtol=0, atol=1e-5)
