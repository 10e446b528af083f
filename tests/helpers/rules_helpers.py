"""A quadratic bowl, and rules written again in NumPy."""

from __future__ import annotations

import math

import torch
from torch import nn

import gradless as gl
from gradless import rng

SHAPES = {"w": (6, 5), "b": (5,)}


class Bowl:
    """Loss = mean over elements of curvature * (theta - target)^2 / 2, for the optimizer and for numpy."""

    def __init__(self, shapes=SHAPES, *, distance=1.0, factor=1.0):
        self.shapes, self.factor = shapes, factor
        self.count = sum(math.prod(shape) for shape in shapes.values())
        self.target = {name: rng.normal(1, name, shape) for name, shape in shapes.items()}
        self.curvature = {name: 0.5 + rng.normal(2, name, shape).abs() for name, shape in shapes.items()}
        self.start = {name: self.target[name] + distance * rng.normal(3, name, shape) for name, shape in shapes.items()}
        self.params = {name: nn.Parameter(value.clone()) for name, value in self.start.items()}

    def named(self):
        return list(self.params.items())

    def closure(self):
        terms = [(self.curvature[n] * (p - self.target[n]).square()).sum() for n, p in self.params.items()]
        return sum(terms) * (0.5 * self.factor / self.count)

    def loss(self, theta):
        """The same in float64."""
        total = 0.0
        for name, value in theta.items():
            for c, x, t in zip(self.curvature[name].flatten(), value.flat, self.target[name].flatten(), strict=True):
                total += float(c) * (x - float(t)) ** 2
        return total * 0.5 * self.factor / self.count

    def gradient(self):
        """At the start, one vector."""
        parts = [self.curvature[n] * (self.start[n] - self.target[n]) for n in self.shapes]
        return torch.cat([part.flatten() for part in parts]) * (self.factor / self.count)

    def values(self):
        return {name: p.detach().numpy() for name, p in self.params.items()}


def signs_of(key, name, shape):
    """+1/-1 of one leaf, from the reference stream."""
    return rng.rademacher(key, rng.leaf_id(name), 0, math.prod(shape)).reshape(shape).double().numpy()


def twin(bowl, step, *, lr, eps, queries, steps, seed, one_sided=False, choose=None):
    """Zeroth-order training in float64 loops; ``step(t, coeffs, zs) -> {name: update}`` is the method."""
    theta = {name: value.double().numpy().copy() for name, value in bowl.start.items()}
    for t in range(steps):
        coeffs, directions = [], []
        for k in range(queries):
            key = rng.direction_key(seed, t, k)
            z = {name: signs_of(key, name, shape) for name, shape in bowl.shapes.items()}
            up = bowl.loss({name: theta[name] + eps * z[name] for name in theta})
            if one_sided:
                coeffs.append((up - bowl.loss(theta)) / eps)
            else:
                coeffs.append((up - bowl.loss({name: theta[name] - eps * z[name] for name in theta})) / (2 * eps))
            directions.append(z)
        update = step(t, coeffs, directions)
        factor = 1.0
        if choose is not None:
            factor = choose(lambda a, u=update: bowl.loss({n: theta[n] - a * lr * u[n] for n in theta}))
        for name in theta:
            theta[name] = theta[name] - factor * lr * update[name]
    return theta


def mean_of(coeffs, directions):
    return {
        name: sum(c * z[name] for c, z in zip(coeffs, directions, strict=True)) / len(coeffs) for name in directions[0]
    }


def train(bowl, rule, *, lr, eps, queries, steps, seed, one_sided=False, **options):
    estimator = (gl.one_sided if one_sided else gl.spsa)(eps=eps, queries=queries)
    opt = gl.ZerothOrder(bowl.named(), seed=seed, estimator=estimator, rule=gl.chain(rule, gl.scale(lr)), **options)
    moved = [opt.step_with(bowl.closure)[1] for _ in range(steps)]
    return opt, moved
