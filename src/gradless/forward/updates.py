"""How updates reach the parameters: one step at once, or many steps of a linear rule in one sweep over each leaf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradless import kernels
from gradless.gradients import Gradient, Leaf, Mixture, combine, finish
from gradless.kernels.program import Program


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
    kernels.sweep(p, p, program, leaf=leaf.id, stream=leaf.stream, amplitude=leaf.update, mask=leaf.mask)


def write(leaves: Iterable[Leaf], step: Step) -> None:
    """Take one step. Cost: one sweep over the parameters."""
    for leaf in leaves:
        p, lr, decay = leaf.param.detach(), step.lrs[leaf.group], step.decays[leaf.group]
        if isinstance(step.direction, Mixture):
            combine(p, leaf, step.direction, amplitude=leaf.update, scale=-lr, decay=decay, rounding=step.rounding)
        else:
            finish(p, leaf, step.direction.leaf(leaf) * -lr, decay=decay, rounding=step.rounding)


def write_all(leaves: Sequence[Leaf], steps: Sequence[Step]) -> None:
    """Take many steps of a linear rule. Cost: one sweep over the parameters, however many there are."""
    programs = {group: program(steps, group) for group in {leaf.group for leaf in leaves}} if steps else {}
    for leaf in leaves:
        if steps:
            run(leaf, leaf.terms(programs[leaf.group]))
