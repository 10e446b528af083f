"""The loss at points near the weights: every evaluation of a closure goes through here and is counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from gradless import rng
from gradless.errors import BadInput
from gradless.gradients import Leaf, Mixture
from gradless.streaming import Pool, Serving, Survey

Closure = Callable[[], Tensor | float]


class Landscape:
    """Evaluates closures at theta + size * mixture; theta is never changed.

    Args:
        leaves: the tuned parameters.
        in_place: perturb all of them in place and restore copies, instead of serving perturbed values.
    """

    def __init__(self, leaves: Sequence[Leaf], *, in_place: bool = False) -> None:
        self.forwards = 0
        self._leaves = {id(leaf.param): leaf for leaf in leaves}
        self._in_place: frozenset[int] | None = frozenset(self._leaves) if in_place else None
        self._pool = Pool()

    def value(
        self,
        closure: Closure,
        mixture: Mixture,
        size: float | tuple[float, ...],
        *,
        rounding: int | None = None,
        update: bool = False,
        only: Leaf | None = None,
    ) -> float:
        """The loss at theta + size * mixture; one evaluation of the closure.

        Args:
            closure: the loss.
            mixture: directions; an empty one evaluates theta itself.
            size: factor of the mixture, or one for each parameter group.
            rounding: key of stochastic rounding of 16-bit leaves; by default that of a probe along the first direction.
            update: scale each leaf by its update amplitude instead of its probe amplitude.
            only: perturb this leaf alone.

        Raises:
            BadInput: the closure reads none of the parameters.
        """
        self.forwards += 1
        if not mixture.keys:
            return float(closure())
        rounding = rng.probe_rounding_key(mixture.keys[0]) if rounding is None else rounding

        def serving(leaves: dict[int, Leaf]) -> Serving:
            exposed = self._in_place or frozenset()
            return Serving(leaves, exposed, mixture, size, rounding=rounding, pool=self._pool, update=update)

        if self._in_place is None:
            loss = self._survey(closure, serving(self._leaves))
            if not self._in_place and only is None:
                return loss
            self.forwards += 1
        with serving(self._leaves if only is None else {id(only.param): only}):
            return float(closure())

    def _survey(self, closure: Closure, serving: Serving) -> float:
        """The first served forward also finds out which leaves cannot be served; its loss is good if all can."""
        serving.survey = Survey(self._leaves)
        with serving.survey, serving:
            loss = float(closure())
        below = serving.survey.direct
        unread = self._leaves.keys() - below - serving.served
        if len(unread) == len(self._leaves):
            raise BadInput(
                "the closure reads none of the tuned parameters: give the optimizer the parameters of the model "
                "that the closure calls, after any .to() or wrapping, and call the model in this thread"
            )
        self._in_place = frozenset(below)
        if unread:
            warnings.warn(
                f"{self._some(unread)} not read by the closure and would only drift: freeze them", stacklevel=2
            )
        if below:
            warnings.warn(
                f"{self._some(below)} read below the level of torch functions, so perturbed in place from a copy",
                stacklevel=2,
            )
        return loss

    def _some(self, ids: set[int]) -> str:
        """A few names, with the verb."""
        names = [leaf.name for key, leaf in self._leaves.items() if key in ids]
        return f"{len(names)} parameter(s) ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) are"
