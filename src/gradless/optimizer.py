"""One optimizer: ``step = probe (estimate, weights untouched) + apply (rule, acceptance, update)``.

Everything else attaches at that seam: the ledger logs what `ZerothOrder.probe` returns, replay feeds it back to
`ZerothOrder.apply`, and a group of peers exchanges it in between.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless import kernels, rng
from gradless.directions import Directions, rademacher
from gradless.errors import BadInput, Diverged
from gradless.estimators import Estimator, spsa
from gradless.gradients import Leaf, Mixture, Sketch, combine, finish
from gradless.rules import Rule, chain, scale
from gradless.streaming import Pool, Serving, Survey

Closure = Callable[[], Tensor | float]
Accept = Callable[[Callable[[float], float]], float]

PATIENCE = 10  # non-finite losses in a row that end a run


def always(value: Callable[[float], float]) -> float:
    """Take every update. ``value(a)`` would be the loss after ``a`` times the update. Cost: no forward."""
    return 1.0


class Probe(NamedTuple):
    """What one estimate found; the weights are as before."""

    step: int
    loss: float  # mean of the evaluated losses
    sketch: Sketch
    forwards: int
    finite: bool


class Move(NamedTuple):
    """One past update, as a ledger holds it."""

    step: int
    coeffs: tuple[float, ...]
    lrs: tuple[float, ...]  # per parameter group
    skipped: bool


class ZerothOrder(torch.optim.Optimizer):
    """Train with forward passes only.

    ``step(closure)`` evaluates the forward-only closure at perturbed weights and updates the parameters in place. The
    closure must be deterministic (``model.eval()``: no dropout) and return the mean loss; micro-batches are
    accumulated inside it, by returning the mean of their losses.

    Args:
        params: ``model.named_parameters()``, or parameter groups whose "params" are named: names identify the random
            streams. Groups may set "lr" and "weight_decay". Parameters that do not require grad are left alone.
        seed: run seed. With it, the parameters' names, and the coefficients of every step, the run can be rebuilt.
        directions: what z is; `rademacher` by default.
        estimator: `spsa` or `one_sided`, with eps and the number of queries.
        rule: what becomes of the estimate, e.g. ``chain(momentum(0.9), scale(1e-6))``.
        accept: takes, scales or refuses an update after looking at the loss; `always` by default.
        weight_decay: decoupled, p <- (1 - lr * weight_decay) p, as in AdamW; also a group option.
        in_place: perturb all parameters in place and restore them from a copy, instead of serving perturbed values to
            the forward. For closures that do not call torch functions under Python's eyes. Memory: one copy.

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
        in_place: bool = False,
    ) -> None:
        self.rule = rule if rule is not None else scale(1e-6)
        if self.rule.lr is None:
            self.rule = chain(self.rule, scale(1e-6))
        if weight_decay < 0:
            raise BadInput(f"weight_decay is {weight_decay}: it must not be negative")
        lr = self.rule.lr
        initial = lr(0) if callable(lr) else lr
        super().__init__(_named(params), {"lr": initial, "weight_decay": weight_decay})
        self.seed = seed
        self.directions = directions or rademacher()
        self.estimator = estimator or spsa()
        self.accept = accept
        self.t = 0  # steps taken, skipped ones included
        self.forwards = 0
        self.skipped = 0
        self._nonfinite_row = 0
        self._rule_state = self.rule.init()
        self._pool = Pool()
        # With a schedule, the ratio of a group's rate to the schedule's start is what the user asked of the group.
        self._ratios = [group["lr"] / initial if callable(lr) and initial else 1.0 for group in self.param_groups]
        self.leaves = self._freeze()
        self._by_id = {id(leaf.param): leaf for leaf in self.leaves}
        self._in_place: frozenset[int] | None = frozenset(self._by_id) if in_place else None

    def _freeze(self) -> list[Leaf]:
        """Fix names, amplitudes and masks of all leaves, once."""
        named = {
            name: (p, index)
            for index, group in enumerate(self.param_groups)
            for name, p in zip(group["param_names"], group["params"], strict=True)
            if p.requires_grad
        }
        if not named:
            raise BadInput("no parameter requires grad: there is nothing to tune")
        _check_leaves({name: p for name, (p, _) in named.items()})
        d = self.directions
        return [
            Leaf(name, named[name][0], rng.leaf_id(name), named[name][1], d.draw, d.gaussian, *frozen)
            for name, frozen in d.freeze({name: p for name, (p, _) in named.items()}).items()
        ]

    # -----------------------------------------------------------------------------------------------------------
    # probe

    @torch.no_grad()
    def probe(self, closure: Closure) -> Probe:
        """Estimate the gradient; the weights are left bit for bit as they were.

        Cost: ``estimator.forwards(K)`` evaluations of the closure and as many sweeps over the parameters.
        """
        keys = tuple(self.key(self.t, k) for k in range(self.estimator.queries(self.t)))
        before = self.forwards

        def value(key: int | None, size: float) -> float:
            return self.value_at(closure, Mixture((), ()) if key is None else Mixture((key,), (1.0,)), size)

        loss, coeffs = self.estimator.estimate(value, keys)
        # What is logged and sent is float32, so that is also what is applied here.
        coeffs = tuple(float(np.float32(c)) for c in coeffs)
        finite = math.isfinite(loss) and all(map(math.isfinite, coeffs))
        return Probe(self.t, loss, Sketch(keys, coeffs), self.forwards - before, finite)

    def key(self, step: int, query: int) -> int:
        """Key of one query's direction."""
        return rng.direction_key(self.seed, step, query)

    def value_at(
        self, closure: Closure, mixture: Mixture, size: float, *, update: bool = False, only: Leaf | None = None
    ) -> float:
        """The loss at theta + size * mixture; one evaluation of the closure.

        Args:
            closure: the loss.
            mixture: directions; an empty one evaluates theta itself.
            size: factor of the mixture.
            update: scale each leaf by its update amplitude instead of its probe amplitude.
            only: perturb this leaf alone.
        """
        self.forwards += 1
        if not mixture.keys:
            return float(closure())
        if self._in_place is None:
            loss = self._survey(closure, mixture, size, update)
            if not self._in_place and only is None:
                return loss
            self.forwards += 1
        assert self._in_place is not None
        leaves = self._by_id if only is None else {id(only.param): only}
        with Serving(leaves, self._in_place, mixture, size, pool=self._pool, update=update):
            return float(closure())

    def _survey(self, closure: Closure, mixture: Mixture, size: float, update: bool) -> float:
        """The first served forward also finds out which leaves cannot be served; its loss is good if all can."""
        serving = Serving(self._by_id, frozenset(), mixture, size, pool=self._pool, update=update)
        serving.survey = Survey(self._by_id)
        with serving.survey, serving:
            loss = float(closure())
        self._in_place = frozenset(serving.survey.direct)
        names = [leaf.name for leaf in self.leaves if id(leaf.param) in self._in_place]
        if names:
            warnings.warn(
                f"{len(names)} parameter(s) are read below the level of torch functions and are perturbed in place, at "
                f"the memory of a copy: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
                stacklevel=2,
            )
        return loss

    # -----------------------------------------------------------------------------------------------------------
    # apply

    @torch.no_grad()
    def apply(self, sketch: Sketch, *, accept: Callable[[Mixture], float] | None = None) -> tuple[float, ...]:
        """Run the rule on an estimate and update the parameters; returns the learning rate of every group.

        Deterministic: the same weights, seed, step, coefficients and learning rates give the same bits on any device.
        Cost: one sweep over the parameters.
        """
        lrs = self.learning_rates()
        direction, self._rule_state = self.rule.update(sketch.mixture(), self._rule_state)
        if accept is not None:
            if not isinstance(direction, Mixture):
                raise BadInput("this acceptance needs a linear rule: element-wise updates cannot be tried out")
            lrs = tuple(lr * accept(direction) for lr in lrs)
        rounding = rng.rounding_key(self.seed, self.t)
        for leaf in self.leaves:
            lr = lrs[leaf.group]
            decay = 1.0 - lr * self.param_groups[leaf.group]["weight_decay"]
            p = leaf.param.detach()
            if isinstance(direction, Mixture):
                combine(p, leaf, direction, amplitude=leaf.update, scale=-lr, decay=decay, rounding=rounding)
            else:
                finish(p, leaf, direction.leaf(leaf).mul_(-lr), decay=decay, rounding=rounding)
        self.t += 1
        return lrs

    def skip(self) -> None:
        """Pass over a step whose loss was not finite: directions move on, weights and rule state do not."""
        self.t += 1
        self.skipped += 1

    def learning_rates(self) -> tuple[float, ...]:
        """The learning rate of every group at this step; a schedule given to the rule is written to the groups."""
        if callable(self.rule.lr):
            for group, ratio in zip(self.param_groups, self._ratios, strict=True):
                group["lr"] = self.rule.lr(self.t) * ratio
        return tuple(float(group["lr"]) for group in self.param_groups)

    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """One probe and one update; returns the mean of the evaluated losses."""
        if closure is None:
            raise BadInput("step needs a closure that returns the loss: opt.step(lambda: model(**batch).loss)")
        return self.step_with(closure)[0].loss

    def step_with(self, closure: Closure, log: Callable[[Probe], None] | None = None) -> tuple[Probe, bool]:
        """`step`, returning the probe and whether it was applied; ``log`` sees the probe before the update."""
        probe = self.probe(closure)
        if log is not None:
            log(probe)
        if not probe.finite:
            self.skip()
            self._nonfinite_row += 1
            if self._nonfinite_row >= PATIENCE:
                raise Diverged(
                    f"{PATIENCE} losses in a row were not finite: lower the learning rate (now "
                    f"{self.param_groups[0]['lr']:g}) or eps, or use float32 weights"
                )
            return probe, False
        self._nonfinite_row = 0
        if self.accept is always:
            self.apply(probe.sketch)
        else:
            self.apply(probe.sketch, accept=lambda m: self.accept(self._trial(closure, m)))
        return probe, True

    def _trial(self, closure: Closure, mixture: Mixture) -> Callable[[float], float]:
        """The loss after ``a`` times an update, without making it (weight decay stays outside)."""
        lr = self.param_groups[0]["lr"]
        return lambda a: self.value_at(closure, mixture if a else Mixture((), ()), -a * lr, update=True)

    # -----------------------------------------------------------------------------------------------------------
    # replay

    @torch.no_grad()
    def replay(self, moves: Sequence[Move], *, chunk: int = 512) -> None:
        """Redo logged updates; bit-identical to having taken them.

        With a linear rule, ``chunk`` steps are fused into one sweep over each leaf: weights are read and written once
        per chunk, and no forward is run.
        """
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
                    self._redo(move)

    def _redo(self, move: Move) -> None:
        if move.skipped:
            self.skip()
            return
        for group, lr in zip(self.param_groups, move.lrs, strict=True):
            group["lr"] = lr
        schedule, self.rule = self.rule, self.rule._replace(lr=move.lrs[0])
        try:
            self.apply(self.sketch(move))
        finally:
            self.rule = schedule

    def _replay_fused(self, moves: Sequence[Move]) -> None:
        done: list[tuple[Move, Mixture]] = []
        for move in moves:
            self.t = move.step + 1
            if move.skipped:
                self.skipped += 1
                continue
            mixture, self._rule_state = self.rule.update(self.sketch(move).mixture(), self._rule_state)
            assert isinstance(mixture, Mixture)
            done.append((move, mixture))
        rounding = [rng.rounding_key(self.seed, move.step) for move, _ in done]
        for index, group in enumerate(self.param_groups):
            steps = [
                (
                    1.0 - move.lrs[index] * group["weight_decay"],
                    mixture.keys,
                    [-move.lrs[index] * w for w in mixture.weights],
                )
                for move, mixture in done
            ]
            run = kernels.program(steps, gaussian=self.directions.gaussian, rounding=rounding)
            for leaf in self.leaves:
                if leaf.group == index and steps:
                    p = leaf.param.detach()
                    kernels.sweep(p, p, run, leaf=leaf.id, amplitude=leaf.update, mask=leaf.mask)

    def sketch(self, move: Move) -> Sketch:
        """The estimate behind a logged move."""
        return Sketch(tuple(self.key(move.step, k) for k in range(len(move.coeffs))), move.coeffs)

    # -----------------------------------------------------------------------------------------------------------
    # state

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus the step counters and the rule's window of past scalars."""
        own = {"t": self.t, "forwards": self.forwards, "skipped": self.skipped, "rule": self._rule_state}
        return {**super().state_dict(), "gradless": own, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`'s result into an optimizer of the same parameters and choices."""
        if "gradless" not in state_dict:
            raise BadInput("this state dict was not written by a gradless optimizer")
        if state_dict["seed"] != self.seed:
            raise BadInput(
                f"this state belongs to seed {state_dict['seed']}, not {self.seed}: create the optimizer with it"
            )
        own = state_dict["gradless"]
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.t, self.forwards, self.skipped = own["t"], own["forwards"], own["skipped"]
        self._rule_state = own["rule"]


def _named(params: Iterable[Any]) -> list[Any]:
    """Check that every parameter comes with a name."""
    given = list(params)
    if not given:
        raise BadInput("no parameters given: pass model.named_parameters()")
    for item in given:
        entries = item["params"] if isinstance(item, dict) else [item]
        if isinstance(entries, Tensor) or not all(isinstance(e, tuple) and len(e) == 2 for e in entries):
            raise BadInput(
                "parameters must be named, since names identify their random streams: pass model.named_parameters()"
            )
    return [{**item, "params": list(item["params"])} for item in given] if isinstance(given[0], dict) else given


def _check_leaves(params: dict[str, Tensor]) -> None:
    """Refuse leaves that the kernels cannot tune, or that two names would tune twice."""
    seen: dict[int, str] = {}
    for name, p in params.items():
        if p.dtype not in kernels.DTYPES:
            raise BadInput(f"parameter '{name}' is {p.dtype}: convert it to float32, bfloat16 or float16, or freeze it")
        if p.numel() == 0:
            continue
        if p.device.type == "meta":
            raise BadInput(f"parameter '{name}' has no data (meta device): load the weights first")
        memory = p.data_ptr()
        if memory in seen:
            raise BadInput(f"'{seen[memory]}' and '{name}' share memory: tie them as one Parameter, or freeze one")
        seen[memory] = name
