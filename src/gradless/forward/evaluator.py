"""The loss at points near the weights: every evaluation of a closure goes through here and is counted.

Three engines compute the same numbers, to rounding (``auto`` is one of the first two, by
`gradless.forward.engine_trial`):

- ``stream``: one forward for each point, with weights perturbed in scratch buffers (`gradless.forward.perturbed`);
- ``dual``: one forward for all points of a step, +eps and -eps side by side (`gradless.forward.batched`);
- ``in-place``: one forward for each point, weights perturbed in place and restored from a copy.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.errors import BadInput, pick
from gradless.estimators import BACKPROP, FORWARD_MODE, Oracle
from gradless.forward import autodiff, graphs, heap, parameters, populations
from gradless.forward.batched import BatchedForward, unbatchable
from gradless.forward.deferred import Deferred
from gradless.forward.engines import AUTO, CHOICES, DUAL, IN_PLACE, MOST_COPIES, STREAM, EngineChoice
from gradless.forward.losses import Closure, checked, numbers, same, unread
from gradless.forward.low_rank import LowRankLinear
from gradless.forward.perturbed import PerturbedWeights
from gradless.forward.points import Point, Points, Scale, probe_point
from gradless.forward.prefix_cache import PrefixCache
from gradless.forward.random_state import RandomState, SharedRandom
from gradless.forward.read_order import ReadOrder
from gradless.forward.read_survey import Looks, ReadSurvey
from gradless.forward.scratch import Pool
from gradless.gradients import Leaf, Mixture
from gradless.kernels import products
from gradless.ranks import BATCH, DIRECTIONS, Ranks, unshared

T = TypeVar("T")


class LossEvaluator:
    """Evaluates closures at points near theta; theta is never changed, but for updates that are due.

    Args:
        leaves: the tuned parameters.
        engine: one of `CHOICES`; ``dual`` becomes ``stream``, with a warning, where a closure cannot be batched, and
            ``auto`` is ``stream`` until it is settled.
        deferred: pending updates, written when a forward visits their leaf.
        ranks: processes that share the evaluations; all of them get the same numbers.
        check: whether the first step evaluates one point twice, to refuse a closure that is not a function of the
            weights and of the random numbers that it draws.

    Attributes:
        forwards: evaluations so far; a loss that ranks evaluate together counts once.
        check_forwards, trial_forwards: those for the check and for choosing the engine, which are not among them.
        choice: what ``auto`` became; None: not yet, or the engine was named.
        refusal: why ``dual`` became ``stream``.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        *,
        engine: str = STREAM,
        deferred: Deferred | None = None,
        ranks: Ranks | None = None,
        check: bool = True,
    ) -> None:
        self.forwards = self.check_forwards = self.trial_forwards = 0
        self.unchecked = check  # no step has shown yet that the closure is a function
        self._begun = False
        self.engine = pick("engine", engine, {name: name for name in CHOICES})
        self.choice: EngineChoice | None = None
        self.refusal = ""
        self.prefix: PrefixCache | None = None  # for directions that reach some blocks only
        self.tune(leaves, deferred or Deferred(leaves))
        self.share(ranks)

    def tune(self, leaves: Sequence[Leaf], deferred: Deferred) -> None:
        """Perturb these leaves from now on; nothing is known of how a closure reads them."""
        self.leaves = list(leaves)
        self._leaves = {id(leaf.param): leaf for leaf in leaves}
        self._random = SharedRandom({leaf.param.device for leaf in leaves})
        self._on_cpu = any(leaf.param.device.type == "cpu" for leaf in leaves)
        self._in_place: frozenset[int] | None = frozenset(self._leaves) if self.engine == IN_PLACE else None
        self._deferred = deferred
        self._low_rank = LowRankLinear(self._deferred)
        self._pool, self._order = Pool(), ReadOrder(leaves)
        self._graphs = graphs.asked_for(self._leaves, deferred, self._order)
        self._batched = False  # whether a batched forward has succeeded
        self._unread: frozenset[int] = frozenset()  # leaves that no forward has read so far
        self._sparse = False  # some forward did not read all leaves
        self._looks = Looks()  # for these

    def share(self, ranks: Ranks | None) -> None:
        """Share the evaluations with other processes from now on."""
        self.ranks = ranks
        if ranks is None or ranks.split != DIRECTIONS:
            return
        reason = "its last bits depend on how many points a rank evaluates at once"
        if self.engine == DUAL:
            self._use_stream(reason)
        elif self.engine == AUTO:
            self.settle(EngineChoice(STREAM, reason=f"ranks split the directions, and with dual {reason}"))

    def settle(self, choice: EngineChoice) -> None:
        """Take the engine that ``auto`` stands for; none was used so far."""
        self.engine, self.choice = choice.engine, choice
        if self.engine == IN_PLACE:
            self._in_place = frozenset(self._leaves)

    @contextlib.contextmanager
    def asked(self, closure: Closure, deep: Callable[[str], bool] | None, start: RandomState) -> Iterator[Oracle]:
        """Around one estimate: what an estimator may ask of the closure's loss, drawing from ``start`` each time.

        ``deep`` as in `gradients`.
        """
        if self._graphs:
            self._graphs.closure = closure
        rows = populations.Rows(closure, start)
        closure = checked(start.pinned(closure))
        self._looks.begin_step()
        if not self._begun and (sentence := unshared(self.ranks)):
            warnings.warn(sentence, stacklevel=2)
        self._begun = True
        if self._on_cpu:
            heap.keep(self)
        with products.faster(), self.prefix.step() if self.prefix else contextlib.nullcontext():
            yield Oracle(
                values=lambda points: self.values(closure, [probe_point(*point) for point in points]),
                slopes=lambda keys: self.slopes(closure, keys),
                gradients=lambda: self.gradients(closure, deep),
                rows=lambda points: self.rows(rows, [probe_point(*point) for point in points]),
            )
        self._random.end(self.ranks, start)
        if self._graphs:
            self._graphs.closure = None  # which holds a batch

    def random_state(self) -> RandomState:
        """The state that the evaluations of a step start from; ranks that split the points take that of rank 0."""
        return self._random.begin(self.ranks)

    def values(self, closure: Closure, points: Sequence[Point]) -> list[float]:
        """The loss at every point.

        Cost: one forward for each; in the dual engine they are made together, with the activations of all. Ranks take
        one message together.

        Raises:
            BadInput: the closure reads none of the parameters, or gives another loss when a point is evaluated again.
        """
        losses = self._together(points, lambda own: self._values(closure, own))
        self._evaluate_again(losses[0], lambda: self._together(points[:1], lambda own: self._values(closure, own))[0])
        return losses

    def rows(self, closure: Closure, points: Sequence[Point]) -> np.ndarray:
        """The loss of every row of the batch at every point, float64 ``[points, B]``; see `populations.over_ranks`.

        Cost and errors are those of `values`.
        """

        def evaluate(points: Sequence[Point]) -> np.ndarray:
            self.forwards += populations.elsewhere(self.ranks, points)
            return populations.over_ranks(self.ranks, points, lambda own: self._values(closure, own))

        losses = evaluate(points)
        if not hasattr(closure, "side_by_side"):  # such a closure draws from counters only
            self._evaluate_again(populations.mean(losses[0]), lambda: populations.mean(evaluate(points[:1])))
        return losses

    def _evaluate_again(self, loss: float, again: Callable[[], float]) -> None:
        """Compare the loss at one point with what it is when evaluated again, until that was done once."""
        if self.unchecked:
            earlier = self.forwards
            self._check((loss, again()))
            self.check_forwards += self.forwards - earlier
            self.forwards = earlier

    def _check(self, losses: Sequence[float]) -> None:
        """Compare losses at one point; where some are not finite, the next step is checked instead."""
        self.unchecked = not same(losses, {leaf.param.dtype for leaf in self.leaves})

    def _together(self, points: Sequence[T], evaluate: Callable[[Sequence[T]], list[float]]) -> list[float]:
        """The results of ``evaluate`` over all ranks: the mean over shards, or each point from one rank."""
        if self.ranks is None:
            return evaluate(points)
        if self.ranks.split == BATCH:
            return self.ranks.mean(evaluate(points))
        earlier = self.forwards
        losses = self.ranks.spread(points, lambda own: evaluate(own) if own else [])
        self.forwards = earlier + len(points)
        return losses

    def _values(self, closure: Closure, points: Sequence[Point]) -> list[float]:
        """The loss of this rank's closure at every point."""
        if self.engine == DUAL and not self._in_place:
            chunks = [Points(points[i : i + MOST_COPIES]) for i in range(0, len(points), MOST_COPIES)]
            reason = ""
            try:
                losses: list[float] = torch.cat(
                    [self._replayed(self._side_by_side, closure, c) for c in chunks]
                ).tolist()
            except Exception as error:
                full = self.choice is not None and isinstance(error, torch.OutOfMemoryError)
                refused = isinstance(error, BadInput) and error.__context__ is None  # not by torch, of a batched value
                if (self._batched and not full) or refused:
                    raise
                reason = unbatchable(error)
            if reason:  # outside of the handler, which would keep the activations alive
                # The plain engine decides whether it was the batching that failed or the closure itself.
                losses = self._one_by_one(closure, points)
                self._use_stream(reason)
                return losses
            if not self._in_place:
                self._batched = True
                return losses
            self._use_stream("some weights are read below the level of torch functions")
        return self._one_by_one(closure, points)

    def _one_by_one(self, closure: Closure, points: Sequence[Point]) -> list[float]:
        return numbers([self._replayed(self._one, closure, Points((point,))) for point in points])

    def _replayed(self, evaluate: Callable[[Closure, Points], T], closure: Closure, points: Points) -> T:
        """What ``evaluate`` returns, from a CUDA graph where there is one."""
        varies = self._in_place != frozenset() or self._unread or self.prefix or isinstance(closure, populations.Rows)
        if not self._graphs or varies:
            return evaluate(closure, points)
        forwards = self.forwards + len(points)
        losses: T = self._graphs.evaluate(points, evaluate == self._side_by_side, lambda: evaluate(closure, points))
        self.forwards = forwards
        return losses

    def value(
        self,
        closure: Closure,
        mixture: Mixture,
        size: Scale,
        *,
        rounding: int | None = None,
        update: bool = False,
        only: Leaf | None = None,
        decay: Scale = 1.0,
    ) -> float:
        """The loss at decay * theta + size * mixture; one evaluation of the closure.

        Args:
            closure: the loss.
            mixture: directions; an empty one evaluates theta itself.
            size: factor of the mixture, or one for each parameter group.
            rounding: key of stochastic rounding of 16-bit leaves; by default that of a probe along the first direction.
            update: scale each leaf by its update amplitude instead of its probe amplitude.
            only: perturb this leaf alone.
            decay: factor of the weights, or one for each parameter group; pending updates are written first.

        Raises:
            BadInput: the closure reads none of the parameters.
        """
        if rounding is None:
            rounding = rng.probe_rounding_key(mixture.keys[0]) if mixture.keys else 0
        points = Points((Point(mixture, size, rounding, decay),), update=update)
        if points.decayed:
            self._deferred.flush()
        with products.faster():
            return self._together([points], lambda own: [float(self._one(closure, own[0], only))])[0]

    def slopes(self, closure: Closure, keys: Sequence[int]) -> tuple[float, list[float]]:
        """The loss at theta and its slope along every z(key); see `gradless.forward.autodiff.slopes`."""
        self.forwards += FORWARD_MODE * len(keys)
        self._deferred.flush()
        leaves, ranks = list(self._leaves.values()), self.ranks
        own = ranks.own(keys) if ranks is not None and ranks.split == DIRECTIONS else keys
        losses, slopes = autodiff.slopes(closure, leaves, own)
        loss, losses, slopes = autodiff.over_ranks(ranks, keys, losses, slopes, every=self.unchecked)
        if self.unchecked and len(losses) > 1:  # all of them are the loss at theta
            self._check(losses)
        return loss, slopes

    def gradients(self, closure: Closure, deep: Callable[[str], bool] | None) -> tuple[float, dict[str, Tensor]]:
        """The loss at theta and its gradient for the leaves that ``deep`` names; None: for all."""
        self.forwards += BACKPROP
        self._deferred.flush()
        deep = deep or (lambda name: True)
        wanted = [leaf for leaf in self._leaves.values() if deep(leaf.name)]
        return autodiff.gradients(closure, wanted, [leaf for leaf in self._leaves.values() if not deep(leaf.name)])

    def _one(self, closure: Closure, points: Points, only: Leaf | None = None) -> Tensor | float:
        """The loss at the single one of the points, not read yet."""
        only = None if only is None else only._replace(active=None)  # whatever else its directions would reach
        self.forwards += 1
        if not points.points[0].mixture.keys or only is not None:
            self._deferred.flush()
        if not points.points[0].mixture.keys:
            return unread(closure())
        if self._in_place is None or (only is None and self._looks_again()):
            earlier = self._in_place
            loss = unread(self._surveyed(self._perturbed(points), closure))
            if (not self._in_place or self._in_place == earlier) and only is None:
                return loss
            self.forwards += 1
        leaves = self._touched(points) if only is None else {id(only.param): only}
        names = (leaf.name for leaf in leaves.values())
        reused = self.prefix.forward(names) if self.prefix else contextlib.nullcontext()
        weights = self._perturbed(points, leaves=leaves)
        with reused, weights:
            loss = unread(closure())
        if leaves is self._leaves and self.prefix is None:
            self._still_read(weights)
        return loss

    def _side_by_side(self, closure: Closure, points: Points) -> Tensor:
        """The loss at all of the points, side by side and not read yet: ``[C]``."""
        self.forwards += len(points)
        batched = BatchedForward(len(points))
        if self._in_place is None or self._looks_again():
            weights = self._perturbed(points, batched=batched)
            return torch.as_tensor(self._surveyed(weights, lambda: batched.losses(closure)))
        leaves = self._touched(points)
        weights = self._perturbed(points, batched=batched, leaves=leaves)
        with weights:
            losses = batched.losses(closure)
        if leaves is self._leaves:
            self._still_read(weights)
        return losses

    def _touched(self, points: Points) -> dict[int, Leaf]:
        """The leaves that some point moves. All others are read as they are, so nothing of them may be pending."""
        unperturbed = [] if points.decayed else points.untouched(self._leaves.values())
        if not unperturbed:
            return self._leaves
        self._deferred.flush(unperturbed)
        ids = {id(leaf.param) for leaf in unperturbed}
        return {key: leaf for key, leaf in self._leaves.items() if key not in ids}

    def _use_stream(self, reason: str) -> None:
        self.engine, self.refusal = STREAM, reason
        warnings.warn(
            f"the dual engine cannot be used here ({reason}): using the engine 'stream', one forward for each point",
            stacklevel=4,
        )

    def _perturbed(
        self, points: Points, *, batched: BatchedForward | None = None, leaves: dict[int, Leaf] | None = None
    ) -> PerturbedWeights:
        return PerturbedWeights(
            self._leaves if leaves is None else leaves,
            points,
            batched=batched,
            in_place=self._in_place or frozenset(),
            pool=self._pool,
            deferred=self._deferred,
            low_rank=self._low_rank,
            order=self._order,
        )

    def _looks_again(self) -> bool:
        """Whether this forward, the first of a step, looks for leaves that no forward has read so far."""
        return bool(self._unread) and self._looks.due()

    def _surveyed(self, weights: PerturbedWeights, evaluate: Callable[[], Tensor | float]) -> Tensor | float:
        """The result of a forward that also tells the leaves that must be perturbed in place.

        The loss is right if there are no new ones.
        """
        weights.survey = ReadSurvey({key: leaf for key, leaf in self._leaves.items() if key not in weights.in_place})
        with weights.survey, weights:
            loss = evaluate()
        below = weights.survey.direct
        first = self._in_place is None
        read = below | weights.served | weights.in_place
        unread = (self._leaves.keys() if first else self._unread) - read
        if len(unread) == len(self._leaves):
            raise BadInput(parameters.READS_NONE)
        self._in_place, self._unread = frozenset(below) | weights.in_place, frozenset(unread)
        self._sparse = self._sparse or bool(unread)
        if unread and first:
            names = parameters.some(self._leaves, unread)
            warnings.warn(f"{names} not read by the closure and would only drift: freeze them", stacklevel=2)
        if below:
            names = parameters.some(self._leaves, below)
            how = "read below the level of torch functions, so perturbed in place from a copy"
            warnings.warn(f"{names} {how}", stacklevel=2)
        return loss

    def _still_read(self, weights: PerturbedWeights) -> None:
        """Tell of leaves that a forward does not read any more, where the first one read all of them."""
        if self._sparse or len(weights.served) + len(weights.in_place) == len(self._leaves):
            return
        gone = self._leaves.keys() - weights.served - weights.in_place
        if len(gone) == len(self._leaves):
            raise BadInput(parameters.READS_NONE)
        self._sparse = True
        warnings.warn(
            f"{parameters.some(self._leaves, gone)} not read by the closure any more: where the model has got new ones "
            "(by a load or an assignment, say), make the optimizer anew",
            stacklevel=2,
        )
