"""The loss at points near the weights: every evaluation of a closure goes through here and is counted.

Three engines find the same numbers, to rounding:

- ``stream``: one forward for each point, served with weights perturbed in scratch (`gradless.forward.perturbed`);
- ``dual``: one walk through the model for all points of a step, +eps and -eps side by side
(`gradless.forward.batched`);
- ``in-place``: one forward for each point, weights perturbed in place and restored from a copy.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from gradless import rng
from gradless.errors import BadInput, pick
from gradless.estimators import BACKPROP, FORWARD_MODE
from gradless.forward import autodiff
from gradless.forward.batched import BatchedForward
from gradless.forward.deferred import Deferred
from gradless.forward.low_rank import LowRankLinear
from gradless.forward.perturbed import PerturbedWeights, Pool, ReadSurvey
from gradless.forward.points import Point, Points, Scale
from gradless.forward.prefix_cache import PrefixCache
from gradless.forward.read_order import ReadOrder
from gradless.gradients import Leaf, Mixture
from gradless.ranks import BATCH, DIRECTIONS, Ranks

Closure = Callable[[], Tensor | float]
T = TypeVar("T")

STREAM, DUAL, IN_PLACE = ENGINES = ("stream", "dual", "in-place")
MOST_COPIES = 8  # points of one walk: their activations are in memory together


class LossEvaluator:
    """Evaluates closures at points near theta; theta is never changed, but for updates that are due.

    Args:
        leaves: the tuned parameters.
        engine: one of `ENGINES`; ``dual`` gives way to ``stream``, with a warning, where a closure cannot be walked.
        deferred: updates to write on the way.
        ranks: processes that find the losses together; all of them get the same numbers.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        *,
        engine: str = STREAM,
        deferred: Deferred | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.forwards = 0  # a loss that ranks found together is one
        self.engine = pick("engine", engine, {name: name for name in ENGINES})
        self.share(ranks)
        self._leaves = {id(leaf.param): leaf for leaf in leaves}
        self._in_place: frozenset[int] | None = frozenset(self._leaves) if engine == IN_PLACE else None
        self._deferred = deferred or Deferred(leaves)
        self._thin = LowRankLinear(self._deferred)
        self._pool, self._order = Pool(), ReadOrder()
        self._walked = False
        self.prefix: PrefixCache | None = None  # for directions that reach some blocks only

    def share(self, ranks: Ranks | None) -> None:
        """Find the losses together with other processes from now on."""
        self.ranks = ranks
        if self.engine == DUAL and ranks is not None and ranks.split == DIRECTIONS:
            self._give_way("its last bits depend on how many points a rank walks at once")

    def values(self, closure: Closure, points: Sequence[Point]) -> list[float]:
        """The loss at every point.

        Cost: one forward for each; in the dual engine they are made together, with the activations of all. Ranks take
        one message together.

        Raises:
            BadInput: the closure reads none of the parameters.
        """
        return self._together(points, lambda own: self._values(closure, own))

    def _together(self, points: Sequence[T], evaluate: Callable[[Sequence[T]], list[float]]) -> list[float]:
        """What ``evaluate`` finds at the points: the mean over shards, or each point by one rank."""
        if self.ranks is None:
            return evaluate(points)
        if self.ranks.split == BATCH:
            return self.ranks.mean(evaluate(points))
        before = self.forwards
        found = self.ranks.spread(points, lambda own: evaluate(own) if own else [])
        self.forwards = before + len(points)
        return found

    def _values(self, closure: Closure, points: Sequence[Point]) -> list[float]:
        """The loss of this rank's closure at every point."""
        if self.engine == DUAL and not self._in_place:
            chunks = [Points(points[i : i + MOST_COPIES]) for i in range(0, len(points), MOST_COPIES)]
            try:
                losses = [loss for chunk in chunks for loss in self._walk(closure, chunk)]
            except Exception as error:
                if self._walked or isinstance(error, BadInput):
                    raise
                # The plain engine decides whether it was the walk that failed or the closure itself.
                losses = [self._one(closure, Points((point,))) for point in points]
                self._give_way(str(error).splitlines()[0] if str(error) else type(error).__name__)
                return losses
            if not self._in_place:
                self._walked = True
                return losses
            self._give_way("some weights are read below the level of torch functions")
        return [self._one(closure, Points((point,))) for point in points]

    def value(
        self,
        closure: Closure,
        mixture: Mixture,
        size: Scale,
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
        if rounding is None:
            rounding = rng.probe_rounding_key(mixture.keys[0]) if mixture.keys else 0
        points = Points((Point(mixture, size, rounding),), update=update)
        return self._together([points], lambda own: [self._one(closure, own[0], only)])[0]

    def slopes(self, closure: Closure, keys: Sequence[int]) -> tuple[float, list[float]]:
        """The loss at theta and its slope along every z(key); see `gradless.forward.autodiff.slopes`."""
        self.forwards += FORWARD_MODE * len(keys)
        self._deferred.flush()
        leaves, ranks = list(self._leaves.values()), self.ranks
        if ranks is None:
            return autodiff.slopes(closure, leaves, keys)
        if ranks.split == BATCH:
            loss, found = autodiff.slopes(closure, leaves, keys)
            loss, *found = ranks.mean([loss, *found])
            return loss, found
        own = [autodiff.slopes(closure, leaves, [key]) for key in ranks.own(keys)]
        (loss,) = ranks.spread(keys[:1], lambda first: [own[0][0] for _ in first])
        return loss, ranks.spread(keys, lambda _: [slope for _, (slope,) in own])

    def gradients(self, closure: Closure, deep: Callable[[str], bool] | None) -> tuple[float, dict[str, Tensor]]:
        """The loss at theta and its gradient for the leaves that ``deep`` names; None: for all."""
        self.forwards += BACKPROP
        self._deferred.flush()
        deep = deep or (lambda name: True)
        wanted = [leaf for leaf in self._leaves.values() if deep(leaf.name)]
        return autodiff.gradients(closure, wanted, [leaf for leaf in self._leaves.values() if not deep(leaf.name)])

    def _one(self, closure: Closure, points: Points, only: Leaf | None = None) -> float:
        """The loss at the single one of the points."""
        only = None if only is None else only._replace(active=None)  # whatever else its directions would reach
        self.forwards += 1
        if not points.points[0].mixture.keys or only is not None:
            self._deferred.flush()
        if not points.points[0].mixture.keys:
            return float(closure())
        if self._in_place is None:
            serving = self._serving(points)
            loss = float(self._surveyed(serving, closure))
            if not self._in_place and only is None:
                return loss
            self.forwards += 1
        leaves = self._touched(points) if only is None else {id(only.param): only}
        begun = self.prefix.forward(leaf.name for leaf in leaves.values()) if self.prefix else contextlib.nullcontext()
        with begun, self._serving(points, leaves=leaves):
            return float(closure())

    def _walk(self, closure: Closure, points: Points) -> list[float]:
        """The loss at all of the points, side by side."""
        self.forwards += len(points)
        walk = BatchedForward(len(points))
        if self._in_place is None:
            serving = self._serving(points, walk=walk)
            losses: Any = self._surveyed(serving, lambda: walk.losses(closure))
            return list(map(float, losses))
        with self._serving(points, walk=walk, leaves=self._touched(points)):
            return list(map(float, walk.losses(closure)))

    def _touched(self, points: Points) -> dict[int, Leaf]:
        """The leaves that some point perturbs. All others are read as they are, so nothing of them may be pending."""
        keys = [key for point in points.points for key in point.mixture.keys]
        rest = [leaf for leaf in self._leaves.values() if leaf.active is not None and not any(map(leaf.active, keys))]
        if not rest:
            return self._leaves
        self._deferred.flush(rest)
        spared = {id(leaf.param) for leaf in rest}
        return {key: leaf for key, leaf in self._leaves.items() if key not in spared}

    def _give_way(self, reason: str) -> None:
        self.engine = STREAM
        warnings.warn(f"the dual engine cannot be used here ({reason}): using the engine 'stream'", stacklevel=4)

    def _serving(
        self, points: Points, *, walk: BatchedForward | None = None, leaves: dict[int, Leaf] | None = None
    ) -> PerturbedWeights:
        return PerturbedWeights(
            self._leaves if leaves is None else leaves, points, walk=walk, in_place=self._in_place or frozenset(),
            pool=self._pool, deferred=self._deferred, thin=self._thin, order=self._order,
        )  # fmt: skip

    def _surveyed(self, serving: PerturbedWeights, evaluate: Callable[[], Tensor | float]) -> Tensor | float:
        """The first served forward also finds out which leaves cannot be served; its loss is good if all can."""
        serving.survey = ReadSurvey(self._leaves)
        with serving.survey, serving:
            loss = evaluate()
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
