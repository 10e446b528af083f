"""One optimizer: ``step = probe (estimate, weights untouched) + apply (rule, acceptance, update)``.

Everything else attaches at that seam: the ledger logs what `ZerothOrder.probe` returns, replay feeds it back to
`ZerothOrder.apply`, and a group of peers exchanges it in between.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.accept import FORWARDS, Accept, always
from gradless.directions import Directions, rademacher
from gradless.errors import BadInput, Diverged, real, whole
from gradless.estimators import Estimator, check_stored, spsa
from gradless.forward import engine_trial, parameters
from gradless.forward.autodiff import all_finite
from gradless.forward.deferred import Deferred
from gradless.forward.engines import AUTO, STREAM, EngineChoice
from gradless.forward.evaluator import LossEvaluator
from gradless.forward.losses import Closure
from gradless.forward.prefix_cache import PrefixCache
from gradless.forward.updates import Step, program, write
from gradless.gradients import Dense, Gradient, Mixture, Probe, Sketch, Update
from gradless.optimizer import acceptance, contract, restore
from gradless.optimizer.rates import LearningRates
from gradless.ranks import Ranks
from gradless.rules import Rule, chain, scale

__all__ = ["ZerothOrder"]

PATIENCE = 10  # non-finite losses in a row that end a run
ZERO_WARNING = 5  # estimates of exactly zero in a row after which a warning is given


class ZerothOrder(torch.optim.Optimizer):
    """Train with forward passes only.

    ``step(closure)`` evaluates the forward-only closure at perturbed weights and updates the parameters in place. The
    closure returns the mean loss of one batch; micro-batches are accumulated inside it, by returning the mean of their
    losses. It must be a function of the weights: all evaluations of a step start from the same state of torch's,
    NumPy's and `random`'s generators, so dropout and noise are the same in each, and after the step these have moved on
    as by one evaluation. A batch from a data loader is drawn before the step.

    Args:
        params: ``model.named_parameters()``, or parameter groups whose "params" are named: names identify the random
            streams. Groups may set "weight_decay" and "lr", or "lr_scale", the factor of the rule's schedule if it has
            one. Parameters that do not require grad are left alone.
        seed: run seed. With it, the parameters' names, and the coefficients of every step, the run can be rebuilt.
        directions: what z is; `rademacher` by default.
        estimator: `spsa` or `one_sided`, with eps and the number of queries.
        rule: turns the estimate into the update, e.g. ``chain(momentum(0.9), scale(1e-6))``.
        accept: policy that applies, scales or refuses an update from losses; `always` by default.
        weight_decay: decoupled, p <- (1 - lr * weight_decay) p, as in AdamW; also a group option.
        engine: how losses at perturbed weights are computed; the numbers agree to rounding. ``stream`` runs the closure
            once for each point. ``dual`` runs it once for all points of a step, under `torch.func.vmap`: less work, but
            twice the activations, and the closure must do without ``.item()`` and the like; where it does not, the
            engine becomes ``stream`` with a warning. ``in-place`` perturbs the parameters and restores them from a
            copy, for closures whose reads torch functions do not see. Memory: one copy. ``auto`` (default) times the
            first two before the first step and takes the faster one (`choose_engine`).
        defer: let an update wait until its leaf is visited by the next probe. Saves a pass over the weights; until
            `flush` is called the parameters hold older values. The weights in the end are the same, bit for bit.
        ranks: `gradless.ranks.group()`: processes that split the batch, or the points, and keep the same weights.
        check: evaluate one point twice in the first step, and refuse a closure whose losses differ. These evaluations
            are counted in ``check_forwards``.

    Raises:
        BadInput: unnamed parameters, two names for one memory, integer or float64 parameters, impossible numbers.
        Diverged: after every ten non-finite losses in a row; single ones are skipped and counted in ``skipped``.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> opt = ZerothOrder(model.named_parameters(), rule=scale(0.1))
        >>> losses = [opt.step(lambda: (model(torch.eye(2)) - 1).square().mean()) for _ in range(100)]
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
        engine: str = AUTO,
        defer: bool = False,
        ranks: Ranks | None = None,
        check: bool = True,
    ) -> None:
        rule = scale(1e-6) if rule is None else rule
        self.rule = rule if rule.lr is not None else chain(rule, scale(1e-6))
        self.seed = whole("seed", seed, least=0, most=rng.MASK64)
        self.directions = directions or rademacher()
        self.estimator = estimator or spsa()
        check_stored(self.estimator, tried=accept is not always, shared=ranks is not None)
        self.accept = accept
        self._rates = LearningRates(self.rule)
        decay = real("weight_decay", weight_decay, least=0.0)
        super().__init__(parameters.groups(params), {"lr": self._rates.first, "weight_decay": decay, "lr_scale": 1.0})
        self.t = 0  # steps taken, skipped ones included
        self._followed = -1  # step for which the leaves were brought up to date
        self.skipped = 0
        self._skipped_row = 0  # non-finite losses in a row
        self._zero_row = 0  # estimates of exactly zero in a row
        self._rule_state = self.rule.init()
        self.leaves = parameters.freeze(self.param_groups, self.directions, self.estimator)
        self._signature = parameters.signature(self.param_groups)
        self.defer = defer
        self._deferred = Deferred(self.leaves)
        self._torn, self.check = False, check  # torn: an interrupt came while weights were written
        self.evaluator = LossEvaluator(self.leaves, engine=engine, deferred=self._deferred, ranks=ranks, check=check)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Tune the parameters of one more group, from the next step on; a run with a ledger refuses the step.

        Raises:
            BadInput: names that are taken, an unknown option or an impossible value; the optimizer stays as it was.
        """
        (group,) = parameters.groups([param_group], beside=self.param_groups)
        self._rates.begin(group)
        super().add_param_group(group)
        if "evaluator" in vars(self):
            try:
                self.follow()
            except BaseException:  # the leaves are still those of the other groups
                self.param_groups.pop()
                raise

    def follow(self) -> None:
        """Bring the leaves up to date with what was frozen, unfrozen, added, converted or moved since the last step.

        Masks of leaves that were tuned before stay as they are. Cost: half a microsecond a parameter.
        """
        signature = parameters.signature(self.param_groups)
        if signature != self._signature:
            kept = self.leaves if self.t else ()
            leaves = parameters.freeze(self.param_groups, self.directions, self.estimator, kept)
            self.flush()
            self.leaves, self._deferred, self._signature = leaves, Deferred(leaves), signature
            self.evaluator.tune(leaves, self._deferred)
        self._followed = self.t

    @property
    def tuned(self) -> tuple[str, ...]:
        """Names of the parameters that the next step tunes: those in the groups that require grad now."""
        self.follow()
        return tuple(leaf.name for leaf in self.leaves)

    @property
    def engine(self) -> str:
        """The engine in use; ``auto`` until it is chosen."""
        return self.evaluator.engine

    @property
    def torn(self) -> bool:
        """Whether an interrupt left the parameters between two steps: rebuild them from their moves."""
        return self._torn or self._deferred.torn

    @property
    def forwards(self) -> int:
        """Evaluations of closures so far."""
        return self.evaluator.forwards

    @property
    def check_forwards(self) -> int:
        """Evaluations that were made to see whether the closure is a function; not among `forwards`."""
        return self.evaluator.check_forwards

    def reuse_prefixes(self, model: torch.nn.Module) -> None:
        """Let the forwards of a step share what lies before the first perturbed block of the model.

        In the engine ``stream``; the closure calls the model on the same inputs every time (generating text does not).
        """
        names = None if self.directions.active else [leaf.name for leaf in self.leaves]
        self.evaluator.prefix = PrefixCache(model, names)
        if self.evaluator.engine == AUTO:
            choice = EngineChoice(STREAM, reason="forwards share what lies before the first perturbed block")
            self.evaluator.settle(choice)

    @torch.no_grad()
    def choose_engine(self, closure: Closure) -> None:
        """Choose what the engine ``auto`` stands for, with the closure of a step; `probe` does so if nobody has.

        The choice is remembered in the cache folder for this machine and shape of a step, and `GRADLESS_ENGINE` fixes
        it. Cost: see `gradless.forward.engine_trial.settle`; these forwards are not among `forwards`.
        """
        self.follow()
        if self.evaluator.engine == AUTO:
            self.flush()
            engine_trial.settle(self.evaluator, closure, self.estimator, self._keys(), self.t, self.check)

    @torch.no_grad()
    def probe(self, closure: Closure) -> Probe:
        """Estimate the gradient; the weights are left bit for bit as they were.

        Cost: ``estimator.forwards(K)`` evaluations of the closure and as many sweeps over the parameters.
        """
        self.follow()
        self._decays(self.learning_rates())  # impossible ones are refused before anything is evaluated or logged
        self.choose_engine(closure)
        keys = self._keys()
        earlier, random = self.evaluator.forwards, self.evaluator.random_state()
        with self.evaluator.asked(closure, self.estimator.deep, random) as oracle:
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
        return Probe(self.t, loss, Sketch(keys, coeffs), self.evaluator.forwards - earlier, finite, tensors, random)

    def _keys(self) -> tuple[int, ...]:
        """Keys of this step's directions."""
        return tuple(self.key(self.t, k) for k in range(self.estimator.queries(self.t)))

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
        if self._followed != self.t:  # no probe came before
            self.follow()
        lrs = self.learning_rates() if lrs is None else lrs
        restore.check_groups(self, lrs)
        gradient: Gradient = sketch.mixture() if tensors is None else Dense(tensors, sketch.mixture())
        direction, self._rule_state = self.rule.update(gradient, self._rule_state)
        step = Step(direction, lrs, self._decays(lrs), rng.rounding_key(self.seed, self.t))
        if self.defer and isinstance(direction, Mixture) and self.directions.draw is None:
            self._deferred.push([program([step], group) for group in range(len(self.param_groups))])
        else:
            with self._writing():
                write(self.leaves, step)
        self.t += 1
        self._skipped_row = 0
        return lrs

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around writing the parameters: what an interrupt ends in between leaves the optimizer `torn`."""
        self.flush()
        self._torn = True
        yield
        self._torn = False

    @torch.no_grad()
    def flush(self) -> None:
        """Write all deferred updates: the parameters are then those of step ``t``. Cost: at most one sweep."""
        self._deferred.flush()

    def cost(self, step: int) -> int:
        """Forward passes of a step, a backward counted as two."""
        return self.estimator.forwards(self.estimator.queries(step)) + FORWARDS.get(self.accept, 0)

    def _decays(self, lrs: tuple[float, ...]) -> tuple[float, ...]:
        """Factor of the weights in every group; an update that acceptance reversed decays them all the same."""
        decays = [real("weight_decay", group["weight_decay"], least=0.0) for group in self.param_groups]
        return tuple(1.0 - abs(lr) * decay for lr, decay in zip(lrs, decays, strict=True))

    def skip(self) -> None:
        """Pass over a step whose loss was not finite: directions move on, weights and rule state do not."""
        self.t += 1
        self.skipped += 1
        self._skipped_row += 1

    def learning_rates(self, step: int | None = None) -> tuple[float, ...]:
        """The learning rate of every group at a step, None: the next; a rule's schedule is written to the groups.

        Raises:
            BadInput: a rate that is negative or not finite, or a scheduler of torch beside the rule's own schedule.
        """
        return self._rates.at(self.t if step is None else step, self.param_groups)

    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """One probe and one update; returns the mean of the evaluated losses."""
        return self._step(closure)[0].loss

    @torch.optim.Optimizer.profile_hook_step
    def step_with(self, closure: Closure, log: Callable[[Update], None] | None = None) -> tuple[Probe, Update]:
        """`step`, returning the probe and the update; ``log`` is called with the update before it is applied.

        Raises:
            Diverged: after the tenth non-finite loss in a row, also if some of them were replayed.
        """
        return self._step(closure, log)

    def _step(self, closure: Closure | None, log: Callable[[Update], None] | None = None) -> tuple[Probe, Update]:
        if not callable(closure):
            raise BadInput("step needs a closure that returns the loss: opt.step(lambda: model(**batch).loss)")
        self._check_patience()
        probe = self.probe(closure)
        return probe, self.settle(probe, closure, log)

    def settle(self, probe: Probe, closure: Closure, log: Callable[[Update], None] | None = None) -> Update:
        """The second half of `step_with`: log and apply the estimate of a probe, or skip it if it is not finite."""
        self._opt_called = True  # for schedulers of torch, which look whether a step came before theirs
        lrs = self.learning_rates()
        if probe.finite and self.accept is not always:
            lrs = acceptance.accepted(self, closure, probe, lrs)
        update = Update(probe.step, probe.sketch.coeffs if probe.finite else (), lrs, not probe.finite)
        if log is not None:
            log(update)
        if update.skipped:
            self.skip()
            self._check_patience()
        else:
            self.apply(probe.sketch, lrs=lrs, tensors=probe.tensors)
        return update

    def _check_patience(self) -> None:
        if self._skipped_row >= PATIENCE:
            self._skipped_row = 0  # who goes on all the same, at a lower rate, gets as many again
            raise Diverged(
                f"{PATIENCE} losses in a row were not finite: lower the learning rate (now "
                f"{self.param_groups[0]['lr']:g}) or eps, or use float32 weights"
            )

    def replay(self, updates: Sequence[Update], *, chunk: int = 512) -> None:
        """Take logged updates again: the weights become those of the run, bit for bit.

        Args:
            updates: consecutive ones, from step ``t`` on.
            chunk: steps of a linear rule that are fused into one sweep over each leaf.

        Raises:
            BadInput: updates that do not follow step ``t``, or of an estimator that stores gradients.

        Cost: no forward; with a linear rule one read and one write of the weights a chunk, else one a step.
        """
        restore.replay(self, updates, chunk)

    def sketch(self, update: Update) -> Sketch:
        """The estimate behind a logged update."""
        return Sketch(tuple(self.key(update.step, k) for k in range(len(update.coeffs))), update.coeffs)

    def state_dict(self) -> dict[str, Any]:
        """Torch's state and, as "gradless", the step counters and the rule's state: lists, numbers and tensors.

        Deferred updates are written first, so that the parameters belong to this state.
        """
        self.flush()
        with contract.hooks_apart(self, "state_dict") as (before, after):
            for hook in before:
                hook(self)
            state = {**super().state_dict(), "gradless": restore.counters(self)}
            return contract.after(self, state, after)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; deferred updates are dropped, since the parameters are restored as well.

        Raises:
            BadInput: a state of another optimizer, method or seed, or of other parameters; nothing is changed then.
        """
        with contract.hooks_apart(self, "load_state_dict") as (before, after):
            state_dict = contract.after(self, dict(state_dict), before)
            self.follow()
            rule_state = restore.check(self, state_dict)
            super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
            restore.load(self, state_dict["gradless"], rule_state)
            for hook in after:
                hook(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return restore.twin(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise contract.no_pickle(self)
