"""What directions promise: the same bits for the same question, and elements of mean 0, variance 1, uncorrelated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from gradless import kernels, rng
from gradless.directions import Directions
from gradless.estimators import spsa
from gradless.gradients import Leaf, Mixture, combine
from gradless.kernels import reference
from gradless.kernels.program import Region, on
from gradless.optimizer import ZerothOrder
from gradless.testing import problems
from gradless.testing.checks import Check, chance_bound, demand, generators_untouched, run, suite

SAMPLES: Final = 200
TRIES: Final = 64  # queries until one reaches a leaf
EPS: Final = 1e-3


class Setting(NamedTuple):
    """What a suite of checks is run on."""

    params: Mapping[str, Tensor]


def direction_checks(*, params: Mapping[str, Tensor] | None = None) -> tuple[Check, ...]:
    """Checks of `Directions`, each called with them.

    Args:
        params: named parameters, for directions that belong to some (scales, masks); a few hundred elements at most,
            with two leaves of the same shape. By default an embedding, three numbered blocks and a norm.
    """
    return suite("direction", CHECKS, Setting(dict(params or problems.parameters())))


def check_direction(directions: Directions, *, params: Mapping[str, Tensor] | None = None) -> None:
    """Run all checks of `direction_checks`; a second or two.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless import rademacher
        >>> check_direction(rademacher())
    """
    run(direction_checks(params=params), directions)


# ---------------------------------------------------------------------------------------------------------------
# the same question, the same answer


def deterministic(directions: Directions, setting: Setting) -> None:
    """The same seed, step, query and name give the same bits, whatever was drawn in between."""
    first, again = _leaves(directions, setting.params), _leaves(directions, setting.params)
    asked = [(seed, step, query) for seed in (0, 7) for step in (0, 3) for query in (0, 1)]
    drawn = {at: _drawn(first, directions.key(*at)) for at in asked}
    for at in reversed(asked):
        name = problems.differing(drawn[at], _drawn(again, directions.key(*at)))
        demand(not name, f"z of '{name}' differs when it is drawn again (seed, step, query = {at})")


def of_names_alone(directions: Directions, setting: Setting) -> None:
    """Neither the order of the parameters nor frozen neighbours change a leaf's z."""
    keys = {seed: directions.key(seed, 1, 0) for seed in range(3)}
    whole = {leaf.name: leaf for leaf in _leaves(directions, setting.params)}
    drawn = {seed: _drawn(list(whole.values()), key) for seed, key in keys.items()}
    cases = {"in reverse order": dict(list(setting.params.items())[::-1])}
    for out in setting.params if len(setting.params) > 1 else ():
        cases[f"with '{out}' frozen"] = {name: p for name, p in setting.params.items() if name != out}
    for case, params in cases.items():
        for leaf in _leaves(directions, params):
            for seed, key in keys.items():
                other = whole[leaf.name]
                # Which leaves and elements are reached may depend on the company; what z is there may not.
                if _reaches(leaf, key) and _reaches(other, key):
                    both = _mask(leaf) & _mask(other)
                    same = torch.equal(_z(leaf, key)[both], drawn[seed][leaf.name][both])
                    demand(
                        same, f"z of '{leaf.name}' {_shape(leaf)} is another one {case} (seed {seed}, step 1, query 0)"
                    )


def _mask(leaf: Leaf) -> Tensor:
    return torch.ones(leaf.param.shape, dtype=torch.bool) if leaf.mask is None else leaf.mask


def of_shape_alone(directions: Directions, setting: Setting) -> None:
    """A draw is float32 of the parameter's shape and depends neither on its values nor on its dtype."""
    key, draw = directions.key(5, 2, 0), directions.draw
    for name, p in setting.params.items():
        leaf = _leaf(directions, setting.params, name)
        if leaf is None or not _reaches(leaf, key):
            continue
        leaf = leaf._replace(mask=None)
        for dtype in kernels.DTYPES if draw is not None else ():
            assert draw is not None
            z = draw(key, name, rng.normal(9, name, p.shape).to(dtype))
            mismatch = f"draw gives {z.dtype} {[*z.shape]} for a {dtype} parameter {[*p.shape]}, not float32"
            demand(z.dtype == torch.float32 and z.shape == p.shape, mismatch)
            demand(bool(z.isfinite().all()), f"z of '{name}' is not finite (seed 5, step 2, query 0)")
            same = torch.equal(z, draw(key, name, torch.zeros_like(p)))
            demand(same, f"z of '{name}' {[*p.shape]} is another one for {dtype} or other values (seed 5, step 2)")
        expected = _z(leaf, key)
        for dtype in kernels.DTYPES:
            zero = torch.zeros(p.shape, dtype=dtype)
            combined = combine(zero, leaf._replace(param=zero), Mixture((key,), (1.0,)), amplitude=1.0)
            demand(torch.equal(combined, expected.to(dtype)), f"z of '{name}' {[*p.shape]} in {dtype} is another one")


def distinct_keys(directions: Directions, setting: Setting) -> None:
    """Every seed, step and query has a key of its own."""
    asked = [(seed, step, query) for seed in range(3) for step in range(60) for query in range(4)]
    keys = {at: directions.key(*at) for at in asked}
    demand(all(isinstance(key, int) and key >= 0 for key in keys.values()), "a key is no whole number of at least 0")
    seen: dict[int, tuple[int, int, int]] = {}
    for at, key in keys.items():
        demand(key not in seen, f"(seed, step, query) = {at} and {seen.get(key)} have the same key")
        seen[key] = at


def no_global_generator(directions: Directions, setting: Setting) -> None:
    """Drawing z does not move the global generators of torch, numpy and random."""
    with generators_untouched():
        for leaf in _leaves(directions, setting.params):
            _z(leaf, directions.key(0, 0, 0))


def same_bits_on_every_kernel(directions: Directions, setting: Setting) -> None:
    """The kernel in use gives the bits of the torch reference."""
    key = directions.key(1, 4, 0)
    for leaf in _leaves(directions, setting.params):
        if leaf.draw is not None:
            return  # not fused: there is one implementation
        for dtype in kernels.DTYPES:
            p = (rng.normal(6, leaf.name, leaf.param.shape) * 0.1).to(dtype)
            program = kernels.program([(0.99, [key], [1e-2])], rounding=[3])
            expected = torch.empty_like(p)
            region = Region(leaf.id, torch.zeros(1, dtype=torch.int64), p.numel(), max(1, p.numel() // p.shape[0]))
            flat_mask = None if leaf.mask is None else leaf.mask.reshape(-1)
            reference.sweep(expected.view(-1), p.view(-1), region, on(program, leaf.stream, leaf.update), flat_mask)
            computed = kernels.sweep(
                torch.empty_like(p), p, program, leaf=leaf.id, stream=leaf.stream, amplitude=leaf.update, mask=leaf.mask
            )
            same = not problems.differing(problems.bits({"p": computed}), problems.bits({"p": expected}))
            demand(same, f"an update of '{leaf.name}' {_shape(leaf)} in {dtype} has other bits (seed 1, step 4)")


def restores(directions: Directions, setting: Setting) -> None:
    """A probe leaves the weights bit for bit as they were, in every dtype and with every way to perturb."""
    for dtype in (torch.float32, torch.bfloat16):
        for engine in ("stream", "in-place"):
            params = [(name, nn.Parameter(p.to(dtype))) for name, p in setting.params.items()]
            earlier = problems.bits(dict(params))
            estimator = spsa(eps=EPS, queries=2)
            opt = ZerothOrder(params, seed=2, directions=directions, estimator=estimator, engine=engine, check=False)
            opt.probe(lambda params=params: sum((p.float() * 1.5 - 1).square().sum() for _, p in params))  # type: ignore[misc]
            name = problems.differing(earlier, problems.bits(dict(params)))
            demand(not name, f"'{name}' in {dtype} was changed by a probe (engine {engine}, eps {EPS}, seed 2)")


# ---------------------------------------------------------------------------------------------------------------
# statistics, over SAMPLES seeds


def zero_mean(directions: Directions, setting: Setting) -> None:
    """Every element of z has mean 0 over the seeds."""
    for leaf in _leaves(directions, setting.params):
        z = _samples(directions, leaf)
        sums = torch.cat([z.sum(0), z.sum().view(1)])
        squares = torch.cat([z.square().sum(0), z.square().sum().view(1)])
        far = sums.abs() / squares.sqrt().clamp_min(1e-30)
        index = int(far[:-1].argmax())
        demand(
            float(far[:-1].max()) <= chance_bound(len(far)),
            f"'{leaf.name}' {_shape(leaf)} has a mean of {float(sums[index]) / len(z):.3f} at element {index} over "
            f"{len(z)} seeds (step 0, first query that reaches it)",
        )


def unit_variance(directions: Directions, setting: Setting) -> None:
    """Every element of z that is reached has variance 1, before amplitudes."""
    for leaf in _leaves(directions, setting.params):
        z = _samples(directions, leaf)
        if leaf.mask is not None:
            z = z[:, leaf.mask.reshape(-1)]
        squares = z.square()
        whole = squares.mean(1, keepdim=True)  # a second look at all elements together, for small errors
        for values, what in ((squares, "element"), (whole, "mean of all elements, by column")):
            error = (values.mean(0) - 1).abs()
            allowed = 7 * values.std(0) / len(z) ** 0.5 + 1e-6  # 7 sigma, for the skewness of squares
            index = int((error - allowed).argmax())
            demand(
                bool((error <= allowed).all()),
                f"'{leaf.name}' {_shape(leaf)} has a variance of {float(values.mean(0)[index]):.3f} ({what} {index}) "
                f"over {len(z)} seeds (step 0, first query that reaches it)",
            )


def uncorrelated(directions: Directions, setting: Setting) -> None:
    """Different elements, leaves, queries and steps are uncorrelated."""
    leaves = _leaves(directions, setting.params)
    names = [leaf.name for leaf in leaves for _ in range(leaf.param.numel())]
    at = {
        query: torch.stack([_row(leaves, directions.key(seed, *query)) for seed in range(SAMPLES)])
        for query in ((0, 0), (0, 1), (1, 0))
    }
    for query, other in at.items():
        base = at[0, 0]
        far = (base.T @ other).abs() / (base.square().T @ other.square()).sqrt().clamp_min(1e-30)
        if query == (0, 0):
            far.fill_diagonal_(0.0)
        i, j = divmod(int(far.argmax()), far.shape[1])
        what = "in one draw" if query == (0, 0) else f"between (step, query) = (0, 0) and {query}"
        demand(
            float(far.max()) <= chance_bound(3 * far.numel()),
            f"element {i} (of '{names[i]}') and element {j} (of '{names[j]}') of all {len(names)} are correlated "
            f"{what} over seeds 0 to {SAMPLES - 1}",
        )


CHECKS = (
    *(deterministic, of_names_alone, of_shape_alone, distinct_keys, no_global_generator, same_bits_on_every_kernel),
    *(restores, zero_mean, unit_variance, uncorrelated),
)


def _leaves(directions: Directions, params: Mapping[str, Tensor]) -> list[Leaf]:
    """What an optimizer makes of parameters."""
    named = [(name, nn.Parameter(p.clone())) for name, p in params.items()]
    return ZerothOrder(named, directions=directions).leaves


def _leaf(directions: Directions, params: Mapping[str, Tensor], name: str) -> Leaf | None:
    return next((leaf for leaf in _leaves(directions, params) if leaf.name == name), None)


def _shape(leaf: Leaf) -> list[int]:
    return [*leaf.param.shape]


def _reaches(leaf: Leaf, key: int) -> bool:
    return leaf.reached(key)


def _z(leaf: Leaf, key: int) -> Tensor:
    """z(key) on a leaf at unit amplitude; zeros where it does not reach."""
    z = Mixture((key,), (1.0,)).leaf(leaf._replace(update=1.0))
    return z if leaf.mask is None else torch.where(leaf.mask, z, 0.0)


def _drawn(leaves: list[Leaf], key: int) -> dict[str, Tensor]:
    return {leaf.name: _z(leaf, key) for leaf in leaves}


def _row(leaves: list[Leaf], key: int) -> Tensor:
    """All leaves as one vector, float64."""
    return torch.cat([_z(leaf, key).reshape(-1) for leaf in leaves]).double()


def _samples(directions: Directions, leaf: Leaf) -> Tensor:
    """One draw for each seed, of the first query that reaches the leaf: float64 [S, numel]."""
    rows = []
    for seed in range(SAMPLES):
        keys = (directions.key(seed, 0, query) for query in range(TRIES))
        key = next((key for key in keys if _reaches(leaf, key)), None)
        if key is not None:
            rows.append(_z(leaf, key).reshape(-1).double())
    demand(len(rows) > SAMPLES // 2, f"'{leaf.name}' is reached in {len(rows)} of {SAMPLES} steps of {TRIES} queries")
    return torch.stack(rows)
