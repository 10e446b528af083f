"""How updates reach the parameters: one step at once, or many steps of a linear rule in one sweep over each leaf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from gradless import kernels
from gradless.gradients import Gradient, Leaf, Mixture, combine, finish
from gradless.kernels.program import NOTHING, Fan, Program, idle

NO_BRANCHES = torch.empty(0)


class Step(NamedTuple):
    """One update: p <- decays[g] p - lrs[g] * direction, for the leaves of every parameter group g."""

    direction: Gradient
    lrs: tuple[float, ...]
    decays: tuple[float, ...]
    rounding: int  # key of the stochastic rounding of 16-bit leaves


def program(steps: Sequence[Step], group: int) -> Program:
    """Steps of a linear rule on one parameter group, as the kernels take them."""
    terms = []
    for step in steps:
        assert isinstance(step.direction, Mixture)
        terms.append((step.decays[group], step.direction.keys, [-step.lrs[group] * w for w in step.direction.weights]))
    return kernels.program(terms, rounding=[step.rounding for step in steps])


def run(leaf: Leaf, program: Program) -> None:
    """Run a program over a leaf, in place."""
    p = leaf.param.detach()
    kernels.sweep(
        p,
        p,
        program,
        leaf=leaf.id,
        stream=leaf.stream,
        amplitude=leaf.update,
        mask=leaf.mask,
        highest=leaf.highest,
    )


def run_many(leaves: Sequence[Leaf], programs: Sequence[Program]) -> None:
    """Run a program over each leaf, in place: one call of the kernels for all."""
    fans = []
    for leaf, program in zip(leaves, programs, strict=True):
        if not idle(program):
            p, more = leaf.param.detach(), ((leaf.update, 0.0), leaf.mask, leaf.highest)
            fans.append(Fan(NO_BRANCHES, p, program, NOTHING, leaf.id, True, leaf.stream, *more))
    kernels.fan_many(fans, mirrored=False)


def write(leaves: Iterable[Leaf], step: Step) -> None:
    """Take one step. Cost: one sweep over the parameters."""
    leaves = list(leaves)
    if isinstance(step.direction, Mixture) and not any(leaf.draw for leaf in leaves):
        write_all(leaves, [step])
        return
    for leaf in leaves:
        p, lr, decay = leaf.param.detach(), step.lrs[leaf.group], step.decays[leaf.group]
        if isinstance(step.direction, Mixture):
            combine(p, leaf, step.direction, amplitude=leaf.update, scale=-lr, decay=decay, rounding=step.rounding)
        else:
            finish(p, leaf, step.direction.leaf(leaf) * -lr, decay=decay, rounding=step.rounding)


def write_all(leaves: Sequence[Leaf], steps: Sequence[Step]) -> None:
    """Take many steps of a linear rule. Cost: one sweep over the parameters, however many there are."""
    if steps:
        programs = {group: program(steps, group) for group in {leaf.group for leaf in leaves}}
        run_many(leaves, [leaf.terms(programs[leaf.group]) for leaf in leaves])
