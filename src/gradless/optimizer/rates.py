"""Learning rates of parameter groups: numbers that torch's schedulers change, or a schedule that the rule holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradless.errors import BadInput, real
from gradless.rules import Rule

Group = dict[str, Any]


class LearningRates:
    """What the groups' learning rates are, and who may set them.

    Args:
        rule: its rate is a number, with which the groups' own "lr" is what counts, or a schedule ``step -> lr``, which
            is written to the groups, each times its "lr_scale".
    """

    def __init__(self, rule: Rule) -> None:
        assert rule.lr is not None
        self._lr = rule.lr
        self._written: dict[int, float] = {}  # by id(group), as the schedule set them

    @property
    def first(self) -> float:
        """The rate of groups that set none, at step 0."""
        return self._lr(0) if callable(self._lr) else self._lr

    def begin(self, group: Group) -> None:
        """Prepare a new group: without a schedule its "lr_scale" is a factor of its rate, now.

        Raises:
            BadInput: it sets a rate beside the rule's schedule.
        """
        if callable(self._lr):
            if "lr" in group:
                raise BadInput(
                    "the rule's schedule sets the learning rate: give groups an 'lr_scale' instead of an 'lr'"
                )
        elif group.get("lr_scale", 1.0) != 1.0:
            group["lr"] = group.get("lr", self._lr) * group["lr_scale"]

    def at(self, step: int, groups: Sequence[Group]) -> tuple[float, ...]:
        """The rate of every group.

        Raises:
            BadInput: a rate that is negative or not finite, or that somebody else sets beside the rule's schedule.
        """
        if callable(self._lr):
            for group in groups:
                if "initial_lr" in group or group["lr"] != self._written.get(id(group), group["lr"]):
                    raise BadInput(
                        "the rule has a learning-rate schedule of its own, so a scheduler, or a change of a group's "
                        "'lr', would do nothing: give the method a number as lr, or leave the scheduler out"
                    )
            for group in groups:
                group["lr"] = self._lr(step) * group["lr_scale"]
            self._written = {id(group): group["lr"] for group in groups}
        return tuple(real("the learning rate", group["lr"], least=0.0) for group in groups)
