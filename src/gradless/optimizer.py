"""One optimizer: ``step = probe (estimate, weights untouched) + apply (rule, acceptance, update)``.

Everything else attaches at that seam: the ledger logs what `ZerothOrder.probe` returns, replay feeds it back to
`ZerothOrder.apply`, and a group of peers exchanges it in between.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradless import kernels, rng
from gradless.accept import FORWARDS, Accept
from gradless.accept import always as always
from gradless.directions import Directions, rademacher
from gradless.errors import BadInput, Diverged
from gradless.estimators import Estimator, Oracle, check_stored, spsa
from gradless.forward import parameters
from gradless.forward.autodiff import all_finite
from gradless.forward.deferred import Deferred
from gradless.forward.evaluator import ENGINES as ENGINES
from gradless.forward.evaluator import STREAM, Closure, LossEvaluator
from gradless.forward.points import probe_point
from gradless.forward.prefix_cache import PrefixCache
from gradless.gradients import Dense, Gradient, Mixture, Sketch, combine, finish
from gradless.gradients import Probe as Probe
from gradless.gradients import Update as Update
from gradless.ranks import Ranks
from gradless.rules import Rule, chain, like, plain, scale

__all__ = ["ZerothOrder"]

PATIENCE = 10  # non-finite losses in a row that end a run
ZERO_WARNING = 5  # estimates of exactly zero in a row that are worth a word


class ZerothOrder(torch.optim.Optimizer):
    """Train with forward passes only.

    ``step(closure)`` evaluates the forward-only closure at perturbed weights and updates the parameters in place. The
    closure must be deterministic (``model.eval()``: no dropout) and return the mean loss; micro-batches are
    accumulated inside it, by returning the mean of their losses.

    Args:
        params: ``model.named_parameters()``, or parameter groups whose "params" are named: names identify the random
            streams. Groups may set "weight_decay" and "lr", or "lr_scale", the factor of the rule's schedule if it has
            one. Parameters that do not require grad are left alone.
        seed: run seed. With it, the parameters' names, and the coefficients of every step, the run can be rebuilt.
        directions: what z is; `rademacher` by default.
        estimator: `spsa` or `one_sided`, with eps and the number of queries.
        rule: what becomes of the estimate, e.g. ``chain(momentum(0.9), scale(1e-6))``.
        accept: takes, scales or refuses an update after looking at the loss; `always` by default.
        weight_decay: decoupled, p <- (1 - lr * weight_decay) p, as in AdamW; also a group option.
        engine: how losses at perturbed weights are found; the numbers agree to rounding. ``stream`` (default) runs the
            closure once for each point. ``dual`` runs it once for all points of a step, under `torch.func.vmap`: less
            work, but twice the activations, and the closure must do without ``.item()`` and the like; where it does
            not, the engine becomes ``stream`` with a warning. ``in-place`` perturbs the parameters and restores them
            from a copy, for closures that do not call torch functions under Python's eyes. Memory: one copy.
        defer: let an update wait until its leaf is visited by the next probe. Saves a pass over the weights; until
            `flush` is called the parameters hold older values. The weights in the end are the same, bit for bit.
        ranks: `gradless.ranks.group()`: processes that split the batch, or the points, and keep the same weights.

    Raises:
        BadInput: unnamed parameters, two names for one memory, integer or float64 parameters, impossible numbers.
        Diverged: after ten non-finite losses in a row; single ones are skipped and counted in ``skipped``.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> opt = ZerothOrder(model.named_parameters(), rule=scale(0.1))
        >>> x = torch.eye(2)
        >>> losses = [float(opt.step(lambda: (model(x) - 1).square().mean())) for _ in range(100)]
        >>> losses[-1] < 1e-3
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        seed: int = 0,
        directions: Directions | None = None,
        estimator: Estimator | None = None,
        rule: Rule | None = None,
        accept: Accept = always,
        weight_decay: float = 0.0,
        engine: str = STREAM,
        defer: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.rule = rule if rule is not None else scale(1e-6)
        if self.rule.lr is None:
            self.rule = chain(self.rule, scale(1e-6))
        if weight_decay < 0:
            raise BadInput(f"weight_decay is {weight_decay}: it must not be negative")
        lr = self.rule.lr
        initial = lr(0) if callable(lr) else lr
        given = parameters.named(params)
        if callable(lr) and any(isinstance(group, dict) and "lr" in group for group in given):
            raise BadInput("the rule's schedule sets the learning rate: give groups an 'lr_scale' instead of an 'lr'")
        super().__init__(given, {"lr": initial, "weight_decay": weight_decay, "lr_scale": 1.0})
        self.seed = seed
        self.directions = directions or rademacher()
        self.estimator = estimator or spsa()
        check_stored(self.estimator, tried=accept is not always, shared=ranks is not None)
        self.accept = accept
        self.t = 0  # steps taken, skipped ones included
        self.skipped = 0
        self._skipped_row = 0  # non-finite losses in a row
        self._zero_row = 0  # estimates of exactly zero in a row
        self._rule_state = self.rule.init()
        self.leaves = parameters.freeze(self.param_groups, self.directions, self.estimator.deep)
        self.defer = defer
        self._deferred = Deferred(self.leaves)
        self._torn = False  # an interrupt came while weights were written
        self.landscape = LossEvaluator(self.leaves, engine=engine, deferred=self._deferred, ranks=ranks)

    @property
    def engine(self) -> str:
        """The engine in use."""
        return self.landscape.engine

    @property
    def torn(self) -> bool:
        """Whether an interrupt left the parameters between two steps: rebuild them from their moves."""
        return self._torn or self._deferred.torn

    @property
    def forwards(self) -> int:
        """Evaluations of closures so far."""
        return self.landscape.forwards

    def reuse_prefixes(self, model: torch.nn.Module) -> None:
        """Let the forwards of a step share what lies before the first perturbed block of the model.

        For directions that reach some blocks only, in the engine ``stream``. The losses stay the same; the closure must
        call the model on the same inputs every time: generating text does not.
        """
        self.landscape.prefix = PrefixCache(model)

    @torch.no_grad()
    def probe(self, closure: Closure) -> Probe:
        """Estimate the gradient; the weights are left bit for bit as they were.

        Cost: ``estimator.forwards(K)`` evaluations of the closure and as many sweeps over the parameters.
        """
        keys = tuple(self.key(self.t, k) for k in range(self.estimator.queries(self.t)))
        before = self.landscape.forwards

        oracle = Oracle(
            values=lambda points: self.landscape.values(closure, [probe_point(key, size) for key, size in points]),
            slopes=lambda keys: self.landscape.slopes(closure, keys),
            gradients=lambda: self.landscape.gradients(closure, self.estimator.deep),
        )
        with self.landscape.prefix.step() if self.landscape.prefix else contextlib.nullcontext():
            loss, coeffs, tensors = self.estimator.estimate(oracle, keys)
        # What is logged and sent is float32, so that is also what is applied here.
        coeffs = tuple(float(np.float32(c)) for c in coeffs)
        finite = math.isfinite(loss) and all(map(math.isfinite, coeffs)) and all_finite(tensors)
        self._zero_row = 0 if any(coeffs) or not keys else self._zero_row + 1
        if self._zero_row == ZERO_WARNING:
            warnings.warn(
                f"{ZERO_WARNING} estimates in a row were exactly zero: the loss does not feel the perturbation; raise "
                "eps, or check that the closure reads the tuned parameters anew in every call",
                stacklevel=2,
            )
        return Probe(self.t, loss, Sketch(keys, coeffs), self.landscape.forwards - before, finite, tensors)

    def key(self, step: int, query: int) -> int:
        """Key of one query's direction."""
        return self.directions.key(self.seed, step, query)

    @torch.no_grad()
    def apply(
        self,
        sketch: Sketch,
        *,
        lrs: tuple[float, ...] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> tuple[float, ...]:
        """Run the rule on an estimate and update the parameters; returns the learning rate of every group.

        Deterministic: the same weights, seed, step, coefficients and learning rates give the same bits on any device.
        Cost: one sweep over the parameters.

        Args:
            sketch: the estimate.
            lrs: learning rate of every group; by default what the groups or the rule's schedule say.
            tensors: stored gradients of some leaves.
        """
        lrs = self.learning_rates() if lrs is None else lrs
        gradient: Gradient = sketch.mixture() if tensors is None else Dense(tensors, sketch.mixture())
        direction, self._rule_state = self.rule.update(gradient, self._rule_state)
        rounding = rng.rounding_key(self.seed, self.t)
        if self.defer and isinstance(direction, Mixture) and self.directions.draw is None:
            steps = [self._step_of(direction, lrs, group) for group in range(len(self.param_groups))]
            self._deferred.push([kernels.program([step], rounding=[rounding]) for step in steps])
        else:
            self._write(direction, lrs, rounding)
        self.t += 1
        self._skipped_row = 0
        return lrs

    def _write(self, direction: Gradient, lrs: tuple[float, ...], rounding: int) -> None:
        """Update the parameters now."""
        self.flush()
        self._torn = True
        for leaf in self.leaves:
            lr, p, decay = lrs[leaf.group], leaf.param.detach(), self._decay(lrs[leaf.group], leaf.group)
            if isinstance(direction, Mixture):
                combine(p, leaf, direction, amplitude=leaf.update, scale=-lr, decay=decay, rounding=rounding)
            else:
                finish(p, leaf, direction.leaf(leaf) * -lr, decay=decay, rounding=rounding)
        self._torn = False

    @torch.no_grad()
    def flush(self) -> None:
        """Write all deferred updates: the parameters are then those of step ``t``. Cost: at most one sweep."""
        self._deferred.flush()

    def _step_of(
        self, mixture: Mixture, lrs: tuple[float, ...], group: int
    ) -> tuple[float, tuple[int, ...], list[float]]:
        """An update of one parameter group as a step of a program."""
        return self._decay(lrs[group], group), mixture.keys, [-lrs[group] * w for w in mixture.weights]

    def cost(self, step: int) -> int:
        """Forward passes of a step, a backward counted as two."""
        return self.estimator.forwards(self.estimator.queries(step)) + FORWARDS.get(self.accept, 0)

    def _decay(self, lr: float, group: int) -> float:
        """Factor of the weights; what acceptance turned round decays all the same."""
        return 1.0 - abs(lr) * float(self.param_groups[group]["weight_decay"])

    def skip(self) -> None:
        """Pass over a step whose loss was not finite: directions move on, weights and rule state do not."""
        self.t += 1
        self.skipped += 1
        self._skipped_row += 1

    def learning_rates(self) -> tuple[float, ...]:
        """The learning rate of every group at this step; a schedule given to the rule is written to the groups."""
        if callable(self.rule.lr):
            for group in self.param_groups:
                group["lr"] = self.rule.lr(self.t) * group["lr_scale"]
        return tuple(float(group["lr"]) for group in self.param_groups)

    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """One probe and one update; returns the mean of the evaluated losses."""
        if closure is None:
            raise BadInput("step needs a closure that returns the loss: opt.step(lambda: model(**batch).loss)")
        return self.step_with(closure)[0].loss

    def step_with(self, closure: Closure, log: Callable[[Update], None] | None = None) -> tuple[Probe, Update]:
        """`step`, returning what was found and what was done; ``log`` gets the update before it is made.

        Raises:
            Diverged: after the tenth non-finite loss in a row, also if some of them were replayed.
        """
        if self._skipped_row >= PATIENCE:
            raise Diverged(self._advice())
        probe = self.probe(closure)
        return probe, self.settle(probe, closure, log)

    def settle(self, probe: Probe, closure: Closure, log: Callable[[Update], None] | None = None) -> Update:
        """The other half of `step_with`: log and apply what a probe of the closure found, or skip it."""
        lrs = self.learning_rates()
        if probe.finite and self.accept is not always:
            lrs = self._accepted(closure, probe, lrs)
        move = Update(probe.step, probe.sketch.coeffs if probe.finite else (), lrs, not probe.finite)
        if log is not None:
            log(move)
        if move.skipped:
            self.skip()
            if self._skipped_row >= PATIENCE:
                raise Diverged(self._advice())
        else:
            self.apply(probe.sketch, lrs=lrs, tensors=probe.tensors)
        return move

    @torch.no_grad()
    def _accepted(self, closure: Closure, probe: Probe, lrs: tuple[float, ...]) -> tuple[float, ...]:
        """Learning rates times what the acceptance policy makes of the update; a refused step does not decay either."""
        mixture, _ = self.rule.update(probe.sketch.mixture(), self._rule_state)
        if not isinstance(mixture, Mixture):
            raise BadInput("acceptance needs a linear rule: element-wise updates cannot be tried out")
        tried, rounding = mixture, rng.rounding_key(self.seed, self.t)

        def value(a: float) -> float:
            if not a:
                return self.landscape.value(closure, Mixture((), ()), 0.0)
            return self.landscape.value(closure, tried, tuple(-a * lr for lr in lrs), rounding=rounding, update=True)

        factor = self.accept(value)
        return tuple(lr * factor for lr in lrs)

    def _advice(self) -> str:
        return (
            f"{PATIENCE} losses in a row were not finite: lower the learning rate (now "
            f"{self.param_groups[0]['lr']:g}) or eps, or use float32 weights"
        )

    @torch.no_grad()
    def replay(self, moves: Sequence[Update], *, chunk: int = 512) -> None:
        """Redo logged updates; bit-identical to having taken them.

        With a linear rule, ``chunk`` steps are fused into one sweep over each leaf: weights are read and written once
        per chunk, and no forward is run.
        """
        if self.estimator.deep is not None:
            raise BadInput(
                f"steps of {self.estimator.name} cannot be replayed: gradients of backpropagation are in no ledger"
            )
        fused = self.rule.linear and all(leaf.draw is None for leaf in self.leaves)
        for begin in range(0, len(moves), chunk):
            part = moves[begin : begin + chunk]
            if part[0].step != self.t or part[-1].step != self.t + len(part) - 1:
                raise BadInput(
                    f"moves {part[0].step}..{part[-1].step} do not follow step {self.t}: replay them in order"
                )
            if fused:
                self._replay_fused(part)
            else:
                for move in part:
                    if move.skipped:
                        self.skip()
                    else:
                        self.apply(self.sketch(move), lrs=move.lrs)
        self.flush()

    def _replay_fused(self, moves: Sequence[Update]) -> None:
        done: list[tuple[Update, Mixture]] = []
        for move in moves:
            if move.skipped:
                self.skip()
                continue
            self.t, self._skipped_row = move.step + 1, 0
            mixture, self._rule_state = self.rule.update(self.sketch(move).mixture(), self._rule_state)
            assert isinstance(mixture, Mixture)
            done.append((move, mixture))
        rounding = [rng.rounding_key(self.seed, move.step) for move, _ in done]
        self.flush()
        self._torn = True
        for group in range(len(self.param_groups)):
            steps = [self._step_of(mixture, move.lrs, group) for move, mixture in done]
            run = kernels.program(steps, rounding=rounding)
            for leaf in self.leaves:
                if leaf.group == group and steps:
                    p = leaf.param.detach()
                    kernels.sweep(
                        p, p, leaf.terms(run), leaf=leaf.id, stream=leaf.stream, amplitude=leaf.update, mask=leaf.mask
                    )
        self._torn = False

    def sketch(self, move: Update) -> Sketch:
        """The estimate behind a logged move."""
        return Sketch(tuple(self.key(move.step, k) for k in range(len(move.coeffs))), move.coeffs)

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus the step counters and the rule's window of past scalars, all plain lists and numbers.

        Deferred updates are written first, so that the parameters belong to this state.
        """
        self.flush()
        own = {
            "seed": self.seed,
            "t": self.t,
            "forwards": self.landscape.forwards,
            "skipped": self.skipped,
            "skipped_row": self._skipped_row,
            "rule": plain(self._rule_state),
            "masks": {leaf.name: leaf.mask.clone() for leaf in self.leaves if leaf.mask is not None},
        }
        return {**super().state_dict(), "gradless": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`'s result into an optimizer of the same parameters and choices.

        Deferred updates are dropped: the parameters are expected to be restored as well.
        """
        if "gradless" not in state_dict:
            raise BadInput("this state dict was not written by a gradless optimizer")
        own = state_dict["gradless"]
        if own["seed"] != self.seed:
            raise BadInput(f"this state belongs to seed {own['seed']}, not {self.seed}: create the optimizer with it")
        if own["masks"].keys() != {leaf.name for leaf in self.leaves if leaf.mask is not None}:
            raise BadInput("this state has masks of other parameters: create the optimizer from the base weights")
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._deferred.drop()
        self.t, self.landscape.forwards, self.skipped = own["t"], own["forwards"], own["skipped"]
        self._skipped_row = own["skipped_row"]
        self._rule_state = like(self.rule.init(), own["rule"])
        for leaf in self.leaves:
            if leaf.mask is not None:  # made anew, from weights that may have been trained already
                leaf.mask.copy_(own["masks"][leaf.name])
