"""Stored moments, signs, normalised steps, orthogonalised updates, acceptance: each against a twin in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import accept, rng
from gradless.gradients import Dense, Mixture
from gradless.optimizer import Update
from gradless.rules import muon, normalise, on_stored
from gradless.rules import stored as moments

SHAPES = {"w": (6, 5), "b": (5,)}


def stored(grads):
    """A gradient that is there as tensors: what backpropagation leaves."""
    return Dense(grads, Mixture((), ()))


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


def heavy_ball_step():
    held = {}

    def step(t, coeffs, directions):
        g = mean_of(coeffs, directions)
        for name in g:
            held[name] = 0.8 * held.get(name, 0.0) + g[name]
        return dict(held)

    return step


def adam_step():
    m, v = {}, {}

    def step(t, coeffs, directions):
        g = mean_of(coeffs, directions)
        for name in g:
            m[name] = 0.8 * m.get(name, 0.0) + 0.2 * g[name]
            v[name] = 0.95 * v.get(name, 0.0) + 0.05 * g[name] ** 2
        return {n: (m[n] / (1 - 0.8 ** (t + 1))) / (np.sqrt(v[n] / (1 - 0.95 ** (t + 1))) + 1e-8) for n in g}

    return step


def sign_step():
    return lambda t, coeffs, directions: {n: np.sign(u) for n, u in mean_of(coeffs, directions).items()}


def scalar_sign_step():
    return lambda t, coeffs, directions: mean_of([math.copysign(1.0, c) for c in coeffs], directions)


def std_step():
    return lambda t, coeffs, directions: mean_of([c / np.std(coeffs, ddof=1) for c in coeffs], directions)


def rms_step():
    squares = []

    def step(t, coeffs, directions):
        squares.append(np.mean(np.square(coeffs)))
        powers = 0.7 ** np.arange(len(squares))[::-1]
        return mean_of([c / np.sqrt(powers @ squares / powers.sum()) for c in coeffs], directions)

    return step


METHODS = {
    "heavy_ball": (lambda: moments.heavy_ball(0.8), heavy_ball_step, {"lr": 0.2}),
    "stored_adam": (lambda: moments.stored_adam(0.8, 0.95), adam_step, {"lr": 0.05}),
    "sign": (normalise.sign, sign_step, {"lr": 0.05}),
    "scalar_sign": (normalise.scalar_sign, scalar_sign_step, {"lr": 0.05}),
    "std_normalised": (normalise.std_normalised, std_step, {"lr": 0.05, "one_sided": True}),
    "rms_normalised": (lambda: normalise.rms_normalised(0.7), rms_step, {"lr": 0.05}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("queries", [1, 4])
def test_rules_follow_their_twins(name, queries):
    rule, step, options = METHODS[name]
    if name == "std_normalised" and queries == 1:
        pytest.skip("needs two queries")
    settings = {"eps": 0.1, "queries": queries, "steps": 12, "seed": 5, **options}
    bowl = Bowl()
    opt, moved = train(bowl, rule(), **settings)
    expected = twin(bowl, step(), **settings)
    for leaf, value in bowl.values().items():
        np.testing.assert_allclose(value, expected[leaf], rtol=0, atol=2e-4, err_msg=leaf)
    assert bowl.loss(expected) < bowl.loss({n: v.double().numpy() for n, v in bowl.start.items()})
    assert opt.forwards == 12 * (queries + 1 if "one_sided" in options else 2 * queries)
    assert all(not move.skipped for move in moved)


# ---------------------------------------------------------------------------------------------------------------
# stored moments


def test_stored_adam_is_torchs_adam_on_stored_gradients():
    bowl, theirs = Bowl(), Bowl()
    leaves = gl.ZerothOrder(bowl.named()).leaves
    adam = torch.optim.Adam(theirs.params.values(), lr=1e-2, betas=(0.9, 0.99), eps=1e-7)
    rule = moments.stored_adam(0.9, 0.99, 1e-7)
    state = rule.init()
    for t in range(40):
        grads = {name: rng.normal(10 + t, name, shape) * 10.0 ** (t % 5 - 2) for name, shape in SHAPES.items()}
        g, state = rule.update(stored(grads), state)
        with torch.no_grad():
            for leaf in leaves:
                bowl.params[leaf.name] -= 1e-2 * g.leaf(leaf)
        for name, p in theirs.params.items():
            p.grad = grads[name].clone()
        adam.step()
        assert all(torch.equal(grads[name], theirs.params[name].grad) for name in SHAPES)  # not overwritten
    for name in SHAPES:
        torch.testing.assert_close(bowl.params[name], theirs.params[name], rtol=0, atol=1e-6)
    assert state.steps == 40
    assert {name: [m.shape for m in held] for name, held in state.tensors.items()} == {
        name: [torch.Size(shape)] * 2 for name, shape in SHAPES.items()
    }


def test_heavy_ball_is_torchs_momentum():
    bowl, theirs = Bowl(), Bowl()
    leaves = gl.ZerothOrder(bowl.named()).leaves
    sgd = torch.optim.SGD(theirs.params.values(), lr=1e-2, momentum=0.9)
    rule = moments.heavy_ball(0.9)
    state = rule.init()
    for t in range(20):
        grads = {name: rng.normal(10 + t, name, shape) for name, shape in SHAPES.items()}
        g, state = rule.update(stored(grads), state)
        with torch.no_grad():
            for leaf in leaves:
                bowl.params[leaf.name] -= 1e-2 * g.leaf(leaf)
        for name, p in theirs.params.items():
            p.grad = grads[name].clone()
        sgd.step()
    for name in SHAPES:
        torch.testing.assert_close(bowl.params[name], theirs.params[name], rtol=0, atol=1e-6)


def test_stored_and_windowed_moments_agree():
    """Two ways to the same average, up to the window's tail."""
    settings = {"lr": 0.05, "eps": 0.1, "queries": 2, "steps": 15, "seed": 2}
    stored, windowed = Bowl(), Bowl()
    train(stored, moments.heavy_ball(0.5), **settings)
    train(windowed, gl.momentum(0.5, tail=1e-9), **settings)
    for name in SHAPES:
        torch.testing.assert_close(stored.params[name], windowed.params[name], rtol=0, atol=1e-5)


def test_moments_pass_through_a_file_as_plain_tensors(tmp_path):
    settings = {"lr": 0.05, "eps": 0.1, "queries": 1, "seed": 2}
    bowl = Bowl()
    opt, _ = train(bowl, moments.stored_adam(), steps=3, **settings)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    other = Bowl()
    later, _ = train(other, moments.stored_adam(), steps=0, **settings)
    later.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        for name, p in other.params.items():
            p.copy_(bowl.params[name])
    opt.step(bowl.closure)
    later.step(other.closure)
    assert all(torch.equal(bowl.params[name], other.params[name]) for name in SHAPES)


def test_a_leaf_is_made_once_a_step():
    leaf = gl.ZerothOrder(Bowl().named()).leaves[0]
    rule = moments.heavy_ball()
    g, _ = rule.update(Mixture((3,), (1.0,)), rule.init())
    g.leaf(leaf)
    with pytest.raises(gl.BadInput, match="twice"):
        g.leaf(leaf)


def test_moments_of_another_shape_are_refused():
    leaf = gl.ZerothOrder(Bowl().named()).leaves[0]
    rule = moments.heavy_ball()
    g, _ = rule.update(Mixture((3,), (1.0,)), (4, {leaf.name: (torch.zeros(2),)}))
    with pytest.raises(gl.BadInput, match="another rule or shape"):
        g.leaf(leaf)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_is_torchs_clip(max_norm):
    leaves = gl.ZerothOrder(Bowl().named()).leaves
    grads = {name: rng.normal(4, name, shape) for name, shape in SHAPES.items()}
    theirs = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for name, p in theirs.items():
        p.grad = grads[name].clone()
    torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)
    rule = moments.clip(max_norm)
    g, _ = rule.update(stored(grads), rule.init())
    for leaf in leaves:
        torch.testing.assert_close(g.leaf(leaf), theirs[leaf.name].grad, rtol=1e-6, atol=0)
    total = math.sqrt(sum(float(g.leaf(leaf).square().sum()) for leaf in leaves))
    assert total == pytest.approx(min(max_norm, math.sqrt(sum(float(x.square().sum()) for x in grads.values()))), 1e-5)


def test_clipped_gradients_are_still_stored_and_mixtures_beside_them_as_they_were():
    """Rules for stored gradients only must find them after a clip."""
    leaves = {leaf.name: leaf for leaf in gl.ZerothOrder(Bowl().named()).leaves}
    grads = {"w": torch.full((6, 5), 2.0, dtype=torch.bfloat16)}
    rest = Mixture((1,), (3.0,))
    rule = gl.chain(moments.clip(1.0), on_stored(moments.stored_adam()))
    clipped, _ = moments.clip(1.0).update(Dense(grads, rest), None)
    assert list(clipped.tensors) == ["w"]
    assert len(clipped.tensors) == 1
    assert "b" not in clipped.tensors
    assert clipped.leaf(leaves["w"]).norm() == pytest.approx(1.0, rel=1e-5)
    assert grads["w"].eq(2).all()
    g, _ = rule.update(Dense(grads, rest), rule.init())
    torch.testing.assert_close(g.leaf(leaves["w"]), torch.ones(6, 5), rtol=0, atol=1e-5)  # Adam's first step
    for found in (clipped, g):
        assert torch.equal(found.leaf(leaves["b"]), rest.leaf(leaves["b"]))


def test_clip_leaves_mixtures_alone():
    rule = moments.clip(1e-6)
    mixture = Mixture((1, 2), (5.0, -3.0))
    assert rule.update(mixture, rule.init()) == (mixture, None)


# ---------------------------------------------------------------------------------------------------------------
# signs and normalised steps


def test_one_query_makes_both_signs_the_same():
    settings = {"lr": 0.05, "eps": 0.1, "queries": 1, "steps": 20, "seed": 8}
    one, other = Bowl(), Bowl()
    train(one, normalise.sign(), **settings)
    train(other, normalise.scalar_sign(), **settings)
    for name in SHAPES:
        torch.testing.assert_close(one.params[name], other.params[name], rtol=0, atol=1e-6)
        assert not torch.equal(one.params[name], one.start[name])


def test_the_sign_of_nothing_is_nothing():
    rule = normalise.scalar_sign()
    assert rule.update(Mixture((1, 2, 3), (0.0, -0.0, 2.0)), None)[0].weights == (0.0, 0.0, 1 / 3)
    leaf = gl.ZerothOrder(Bowl().named()).leaves[0]
    assert not normalise.sign().update(Mixture((1,), (0.0,)), None)[0].leaf(leaf).any()


@pytest.mark.parametrize("make", [normalise.scalar_sign, normalise.std_normalised, normalise.rms_normalised])
def test_normalised_steps_point_along_the_gradient_on_average(make):
    bowl = Bowl()
    opt = gl.ZerothOrder(bowl.named(), seed=3, estimator=gl.spsa(eps=1e-2, queries=4))
    rule = make()
    total, state = torch.zeros(bowl.count), rule.init()
    for step in range(400):
        opt.t = step
        g, state = rule.update(opt.probe(bowl.closure).sketch.mixture(), state)
        total += torch.cat([g.leaf(leaf).flatten() for leaf in opt.leaves])
    # 35 dimensions, 1600 directions: noise of about sqrt(35 / 1600) = 0.15 of the signal.
    assert torch.cosine_similarity(total, bowl.gradient(), dim=0) > 0.95


@pytest.mark.parametrize("make", [normalise.scalar_sign, normalise.std_normalised, normalise.rms_normalised])
def test_normalised_steps_do_not_know_the_scale_of_the_loss(make):
    settings = {"lr": 0.05, "eps": 0.1, "queries": 4, "steps": 6, "seed": 1, "one_sided": True}
    plain, loud = Bowl(), Bowl(factor=1024.0)
    train(plain, make(), **settings)
    train(loud, make(), **settings)
    for name in SHAPES:
        torch.testing.assert_close(plain.params[name], loud.params[name], rtol=0, atol=1e-6)


def test_std_normalised_does_not_know_eps():
    """(L_k - L_0) / std(L): on a linear loss the step is the same for any eps."""
    rows = []
    for eps in (0.5, 0.125):
        theta = nn.Parameter(torch.zeros(8))
        opt = gl.ZerothOrder(
            [("theta", theta)],
            estimator=gl.one_sided(eps=eps, queries=8),
            rule=gl.chain(normalise.std_normalised(), gl.scale(0.1)),
        )
        opt.step(lambda theta=theta: (theta * torch.arange(8.0)).sum())
        rows.append(theta.detach())
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
    assert rows[0].abs().max() > 0


def test_equal_coefficients_are_no_reason_for_a_leap():
    rule = normalise.std_normalised()
    assert rule.update(Mixture((1, 2), (0.5, 0.5)), None)[0].weights == (0.0, 0.0)
    rule = normalise.rms_normalised()
    g, state = rule.update(Mixture((1, 2), (0.0, 0.0)), rule.init())
    assert g.weights == (0.0, 0.0)
    assert rule.update(Mixture((1,), (-2.0,)), state)[0].weights[0] == pytest.approx(-math.sqrt(1.9))


def test_the_scale_of_a_run_is_two_numbers():
    rule = normalise.rms_normalised()
    state = rule.init()
    for step in range(5):
        _, state = rule.update(Mixture((step, step + 9), (0.1 * step, 0.3)), state)
    assert all(type(value) is float for value in state)
    assert len(state) == 2


# ---------------------------------------------------------------------------------------------------------------
# orthogonalised updates


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
    found = g.leaf(leaves["w"])
    assert found.shape == shape
    assert found.dtype == torch.float32
    matrix = mixture.leaf(leaves["w"]).reshape(shape[0], -1)
    expected, rank = svd_polar(matrix)
    np.testing.assert_allclose(found.reshape(shape[0], -1).numpy(), expected, rtol=0, atol=2e-4)
    assert float(found.square().sum()) == pytest.approx(rank, rel=1e-4)
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
        found, rank = muon.dense_polar(matrix)
        if singular[-1] != 0.0:  # else the smallest singular value is float32 rounding, on either side of the line
            assert rank == count
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-3)


def test_columns_of_v_that_coincide_are_one_direction():
    left, right = rng.normal(0, "left", (30, 4)), rng.normal(0, "right", (20, 4))
    right[:, 3] = right[:, 1]
    expected, rank = svd_polar((left @ right.T).numpy())
    found, kept = muon.thin_polar(left, right)
    assert rank == kept == 3
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


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
        whole, found = mixture.leaf(leaf), g.leaf(leaf)
        torch.testing.assert_close(found / found.norm(), whole / whole.norm(), rtol=0, atol=1e-6)
        count = int(mask.sum()) if name == "masked" else whole.numel()
        assert float(found.norm()) == pytest.approx(1.0 if rms is None else rms * math.sqrt(count), rel=1e-5)
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


# ---------------------------------------------------------------------------------------------------------------
# acceptance


@pytest.mark.parametrize(
    ("losses", "choice"),
    [
        ({0.0: 1.0, 1.0: 0.5, -1.0: 2.0}, 1.0),
        ({0.0: 1.0, 1.0: 1.5, -1.0: 2.0}, 0.0),
        ({0.0: 1.0, 1.0: 1.5, -1.0: 0.7}, -1.0),
        ({0.0: 1.0, 1.0: 1.0, -1.0: 1.0}, 1.0),
        ({0.0: 1.0, 1.0: 1.5, -1.0: 1.0}, 0.0),
        ({0.0: 1.0, 1.0: math.nan, -1.0: 2.0}, 0.0),
        ({0.0: math.nan, 1.0: 3.0, -1.0: math.inf}, 1.0),
        ({0.0: math.nan, 1.0: math.nan, -1.0: 9.0}, -1.0),
        ({0.0: math.nan, 1.0: math.nan, -1.0: math.nan}, 0.0),
        ({0.0: 1.0, 1.0: -math.inf, -1.0: 2.0}, 0.0),
    ],
)
def test_conservative_takes_the_lowest_finite_loss(losses, choice):
    asked = []

    def value(a):
        asked.append(a)
        return losses[a]

    assert accept.conservative(value) == choice
    assert len(asked) == accept.FORWARDS[accept.conservative] == 3


@pytest.mark.parametrize("lr", [0.5, 20.0])
def test_conservative_training_follows_its_twin(lr):
    settings = {"lr": lr, "eps": 0.1, "queries": 1, "steps": 15, "seed": 3}
    bowl = Bowl()
    opt, moved = train(bowl, gl.chain(), accept=accept.conservative, **settings)
    chosen = []

    def choose(value):
        losses = [value(-1.0), value(0.0), value(1.0)]
        chosen.append(float(np.argmin(losses)) - 1.0)
        return chosen[-1]

    expected = twin(bowl, lambda t, coeffs, zs: mean_of(coeffs, zs), choose=choose, **settings)
    assert [move.lrs[0] / lr for move in moved] == chosen
    for name, value in bowl.values().items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4)
    assert opt.forwards == 15 * (2 + accept.FORWARDS[accept.conservative])
    assert (0.0 in chosen) is (lr == 20.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_refused_update_leaves_every_bit(dtype):
    theta = nn.Parameter(rng.normal(0, "theta", (64,)).to(dtype))
    before = theta.detach().clone()
    opt = gl.ZerothOrder(
        [("theta", theta)], estimator=gl.spsa(eps=0.1), rule=gl.scale(1e6), accept=accept.conservative, weight_decay=0.1
    )
    for _ in range(3):
        _, move = opt.step_with(lambda: theta.float().square().mean())
        assert move.lrs == (0.0,)
    assert torch.equal(theta.detach().view(torch.uint8), before.view(torch.uint8))
    assert opt.forwards == 15


# ---------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: moments.heavy_ball(1.0), "beta is 1.0"),
        (lambda: moments.stored_adam(beta1=-0.1), "beta1"),
        (lambda: moments.stored_adam(beta2=1.0), "beta2"),
        (lambda: moments.stored_adam(eps=0.0), "eps"),
        (lambda: moments.clip(0.0), "max_norm"),
        (lambda: moments.clip(math.nan), "max_norm"),
        (lambda: normalise.std_normalised(-1.0), "floor"),
        (lambda: normalise.rms_normalised(1.0), "beta"),
        (lambda: normalise.rms_normalised(floor=math.inf), "floor"),
        (lambda: normalise.std_normalised().update(Mixture((1,), (1.0,)), None), "two queries"),
        (lambda: normalise.scalar_sign().update(stored({}), None), "first in the chain"),
        (lambda: normalise.rms_normalised().update(Mixture((), ()), normalise.Square()), "coefficients"),
        (lambda: muon.orthogonalise("moun"), "did you mean 'muon'"),
        (lambda: muon.orthogonalise().update(stored({}), None), "before element-wise rules"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(gl.BadInput, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_rules_say_whether_they_keep_mixtures_mixtures():
    linear = [normalise.scalar_sign(), normalise.std_normalised(), normalise.rms_normalised(), moments.clip(1.0)]
    other = [normalise.sign(), moments.heavy_ball(), moments.stored_adam(), muon.orthogonalise()]
    for rule in linear + other:
        g, _ = rule.update(Mixture((1, 2), (1.0, 2.0)), rule.init())
        assert isinstance(g, Mixture) is rule.linear, rule.name
    assert [rule.linear for rule in linear + other] == [True] * 4 + [False] * 4


def test_a_move_of_a_scalar_rule_is_replayed_many_steps_at_once():
    """The fused replay: one sweep for all steps."""
    settings = {"lr": 0.05, "eps": 0.1, "queries": 2, "seed": 5}
    trained, replayed = Bowl(), Bowl()
    _, moved = train(trained, gl.chain(normalise.rms_normalised(), gl.momentum(0.5)), steps=9, **settings)
    moved = [Update(*move) for move in moved]
    opt, _ = train(replayed, gl.chain(normalise.rms_normalised(), gl.momentum(0.5)), steps=0, **settings)
    opt.replay(moved, chunk=4)
    assert all(torch.equal(trained.params[name], replayed.params[name]) for name in SHAPES)
