"""`ZORewardTrainer`: a model trained on reward functions, with forward passes only.

It takes what users of TRL's ``GRPOTrainer`` have. Every step samples completions of a batch of prompts from the members
of a population, perturbed copies of the weights, and moves the weights towards those that earn more (`gradless.es`).
"""

from __future__ import annotations

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from gradless import rewards
from gradless.errors import BadInput
from gradless.integrations import prompts, reward_settings
from gradless.integrations.method_choice import Choice
from gradless.integrations.transformers import ZOTrainer
from gradless.lm.batching import Prompts, collate_prompts
from gradless.lm.encoded import Encoded
from gradless.lm.generation import Call, Written, write
from gradless.lm.objectives import OBJECTIVES, REWARD
from gradless.lm.rewarded import RewardClosure, Sampling

RewardFunction = str | Callable[..., Any]


class _Closure(RewardClosure):
    """A batch's closure that evaluates under the trainer's autocast, and keeps the reward of every completion."""

    def __init__(self, trainer: ZORewardTrainer, batch: Prompts) -> None:
        self._trainer, self._size = trainer, len(batch.rows)
        self._rewarded: list[np.ndarray] = []
        objective = OBJECTIVES[REWARD]._replace(of_texts=self._negative)
        sampling = Sampling(trainer.reward_settings.temperature, trainer.args.seed)
        super().__init__(trainer.lm, objective, [batch], sampling, rows=True)

    def __call__(self) -> Tensor:
        """Return the losses at the weights as they are."""
        torch.clear_autocast_cache()  # it holds weights of the point before
        with self._trainer.compute_loss_context_manager():
            return super().__call__()

    def _side_by_side(self, call: Call) -> Tensor:
        torch.clear_autocast_cache()
        with self._trainer.compute_loss_context_manager():
            return super()._side_by_side(call)

    def _negative(self, several: Prompts, written: Sequence[Written]) -> np.ndarray:
        rewarded = self._trainer.rewards_of(several.rows, written)
        self._rewarded.append(rewarded.reshape(-1, self._size))
        return -rewarded

    def rewards(self, members: int) -> np.ndarray:
        """Return the rewards of the last members, float64 ``[members, B]``; NaN where there is none."""
        rows = np.concatenate([*self._rewarded, np.empty((0, self._size))])[-members:]
        missing = np.full((members - len(rows), self._size), np.nan)  # logits were not finite
        return np.concatenate([rows, missing])


class ZORewardTrainer(ZOTrainer):
    """Trains a causal model on reward functions in TRL's form. See `ZOTrainerMixin` for what is not said here.

    A step samples one completion of each prompt of its batch from each of the 2 ``queries`` members of a population.
    So ``per_device_train_batch_size`` counts prompts, and ``num_generations`` of a GRPOConfig is the size of the
    population. Learning rates are of the size of eps, such as 1e-3. All members draw with the same numbers, which
    depend on ``args.seed``, the step and the place of the prompt alone.

    Args:
        model: of transformers or PEFT; or what `gradless.lm.load` takes, such as a folder or a hub id.
        reward_funcs: ``reward(prompts, completions, **columns) -> list[float | None]``, one or several; also names as
            `gradless.rewards.load` takes them.
        args: ``TrainingArguments``, or TRL's ``GRPOConfig``.
        train_dataset: rows with a column ``prompt``, texts or conversations; reward functions get the other columns.
        eval_dataset: like it; completions are then decoded greedily.
        processing_class: the tokenizer; by default that of the model's folder or hub id.
        peft_config: of an adapter that is put around the model, as by ``peft.get_peft_model``.
        callbacks: of transformers.
        optimizers: a ready optimizer of gradless and a schedule.
        zo: a method that compares members of a population: ``"es"``, or a function like `gradless.es`.
        zo_options: its options, e.g. ``{"eps": 5e-3, "rank": 1, "shaping": "prompt_baseline"}``.
        ledger_only: checkpoints without weights.
        max_completion_length: new tokens at most. This and the next three default to what ``args`` says, if it is a
            GRPOConfig; else 256.
        temperature: of sampling; 1 by default.
        reward_weights: of the reward functions; 1 by default.
        chat_template_kwargs: for the tokenizer's chat template.
        stop: texts that end a completion, beside the end of the text or of a turn.

    Raises:
        BadInput: what cannot be trained, or means nothing here, with the fix.

    Cost: 2 ``queries`` generations a step.

    Example::

        trainer = ZORewardTrainer("smollm2-135m", shorter, TrainingArguments("out", learning_rate=1e-3), rows)
        trainer.train()
    """

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        args: transformers.TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        zo: Choice = "es",
        zo_options: dict[str, Any] | None = None,
        ledger_only: bool = False,
        max_completion_length: int | None = None,
        temperature: float | None = None,
        reward_weights: Sequence[float] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
    ) -> None:
        if type(self).compute_loss is not ZOTrainer.compute_loss:
            raise BadInput(f"{type(self).__name__}.compute_loss would have no effect: what counts are reward_funcs")
        args = transformers.TrainingArguments("tmp_trainer") if args is None else args
        self.reward_settings = reward_settings.read(
            args,
            max_completion_length=max_completion_length,
            temperature=temperature,
            reward_weights=reward_weights,
            chat_template_kwargs=chat_template_kwargs,
            stop=stop,
        )
        self.rewards = _rewards(reward_funcs, self.reward_settings.weights, _columns(train_dataset, eval_dataset))
        weakref.finalize(self, self.rewards.close)
        self.lm = prompts.language_model(model, processing_class, peft_config)
        self._window_closures: list[_Closure] = []
        self._figures: defaultdict[str, list[float]] = defaultdict(list)
        self._told_of_equal_members = False
        super().__init__(
            model=self.lm.model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.lm.tokenizer if processing_class is None else processing_class,
            data_collator=list,
            callbacks=callbacks,
            optimizers=optimizers,
            zo=zo,
            zo_options=reward_settings.population(args, zo, zo_options or {}),
            ledger_only=ledger_only,
        )
        if self.given is None:
            reward_settings.check_rate(self.args)
        self.args.remove_unused_columns = False  # reward functions take them
        if not getattr(self.args, "shuffle_dataset", True):  # of TRL
            self.args.train_sampling_strategy = "sequential"
        self.described = self.reward_settings.to_json(self.rewards.names)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the method over the parameters that require grad.

        Raises:
            BadInput: it does not compare the members of a population.
        """
        self._window_closures.clear()  # of a run that was interrupted within a window
        self._figures.clear()
        window: Any = super().create_optimizer(model)
        estimator = window.inner.estimator
        if not estimator.rows:
            raise BadInput(f"{estimator.name} compares no members of a population, which rewards need: set zo='es'")
        return window  # type: ignore[no-any-return]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gather a batch of prompts; the last one of a window samples their completions from all members.

        Returns:
            Minus the mean reward of the window; before its last batch zero.
        """
        del num_items_in_batch
        if self.window is None:
            raise BadInput("training_step belongs to a run: call train()")
        model.eval()
        closure = self._closure(self._prepare_inputs(inputs))
        self.window.gather(closure)
        self._window_closures.append(closure)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        closures, self._window_closures = self._window_closures, []
        probe = self.window.probe()
        self._note(closures, probe)
        return torch.tensor(probe.loss, device=self.args.device)

    def _closure(self, rows: Sequence[Mapping[str, Any]]) -> _Closure:
        """Return the closure of a batch, whose random numbers are those of this step and the places of its rows."""
        assert self.window is not None
        size = self.args.per_device_train_batch_size
        first = (len(self._window_closures) * self.args.world_size + self.args.process_index) * size
        named = [
            row._replace(draw=f"step/{self.window.inner.t}/{index}")
            for index, row in enumerate(self._encoded(rows), first)
        ]
        return _Closure(self, self._prompts(named))

    def _encoded(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        settings = self.reward_settings
        return [prompts.encoded(self.lm, row, settings.new_tokens, settings.template_options) for row in rows]

    def _prompts(self, rows: Sequence[Encoded]) -> Prompts:
        settings = self.reward_settings
        return collate_prompts(self.lm, rows, settings.stops, settings.new_tokens, prompts.positions(self.lm))

    def rewards_of(self, rows: Sequence[Encoded], written: Sequence[Written]) -> np.ndarray:
        """Return the reward of the text behind each row, float64 ``[N]``; NaN where there is none."""
        asked, answered, columns = prompts.told(rows, [one.text for one in written])
        ids = [list(one.ids) for one in written]
        return self.rewards(asked, answered, {**columns, "completion_ids": ids, "trainer_state": self.state})

    def _note(self, closures: Sequence[_Closure], probe: Any) -> None:
        """Keep the figures of a step for the next line of the log, and say if its members are all equal."""
        members = 2 * len(probe.sketch.keys)
        rewarded = np.concatenate([one.rewards(members) for one in closures], axis=1)  # [2K, B]
        tokens = [one.tokens for closure in closures for one in closure.members[-members:]]
        figures = {
            "reward": _mean(rewarded),
            "reward_std": float(np.nanstd(rewarded)) if not np.isnan(rewarded).all() else float("nan"),
            "frac_reward_zero_std": float((np.ptp(rewarded, axis=0) == 0).mean()),
            "frac_valid": 1 - float(np.isnan(rewarded).mean()),
            "completions/mean_length": float(np.mean(tokens)),
        }
        if self.shared is not None:
            figures = dict(zip(figures, self.shared.mean(list(figures.values())), strict=True))
        for name, value in figures.items():
            self._figures[name].append(value)
        if probe.finite and not any(probe.sketch.coeffs) and not self._told_of_equal_members:
            self._told_of_equal_members = True
            warnings.warn(
                f"all members of step {probe.step} earned the same, so it changes nothing: raise eps or the "
                "temperature, or let the reward tell more completions apart (said once; frac_reward_zero_std is the "
                "share of such prompts)",
                stacklevel=2,
            )

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the rewards of greedy completions, and the completions themselves as ``predictions``.

        Cost: a generation for each row.
        """
        del description, prediction_loss_only, ignore_keys
        if self.window is not None:
            self.window.eval()
        self.model.eval()
        results: list[tuple[str, float, int]] = []
        for inputs in dataloader:
            rows = self._encoded(self._prepare_inputs(inputs))
            with torch.no_grad(), self.compute_loss_context_manager():
                written = write(self.lm, self._prompts(rows))
            rewarded = self.rewards_of(rows, written)
            mine = [(one.text, float(reward), one.tokens) for one, reward in zip(written, rewarded, strict=True)]
            results += self.accelerator.gather_for_metrics(mine, use_gather_object=True)
            self.control: Any = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        texts, values, tokens = (list(column) for column in zip(*results, strict=True)) if results else ([], [], [])
        figures = {
            "loss": -_mean(values),
            "reward": _mean(values),
            "reward_std": float(np.nanstd(values)) if np.isfinite(values).any() else float("nan"),
            "frac_valid": float(np.isfinite(values).mean()) if values else 0.0,
            "completions/mean_length": float(np.mean(tokens)) if tokens else 0.0,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=texts, label_ids=None, metrics=metrics, num_samples=len(texts))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Report the rewards of the steps since the last line, too."""
        if "loss" in logs:
            logs |= {name: _mean(values) for name, values in self._figures.items()}
            self._figures.clear()
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nobody knows before how many tokens a step writes."""
        return 0


def _rewards(
    functions: RewardFunction | Sequence[RewardFunction], weights: Sequence[float], columns: Sequence[str] | None
) -> rewards.Rewards:
    """Return the reward functions, checked.

    Raises:
        BadInput: a reward model, or what is no reward function of these columns.
    """
    every = [functions] if isinstance(functions, str) or not isinstance(functions, Sequence) else list(functions)
    for one in every:
        hub = isinstance(one, str) and "/" in one and ":" not in one
        if isinstance(one, nn.Module) or hub:
            raise BadInput(
                f"{one if hub else type(one).__name__} is a reward model, which ZORewardTrainer does not call: give a "
                "function reward(prompts, completions, **columns) that does, and returns a number for each completion"
            )
    return rewards.load(every, weights, columns=columns, say=lambda text: warnings.warn(text, stacklevel=2))


def _columns(train: Any, evaluation: Any) -> list[str] | None:
    """Return the columns of the rows to train on; those to evaluate on need a prompt, too."""
    splits = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    for name, rows in splits.items():
        prompts.column_names(rows, f"eval_dataset {name}".strip())
    names = prompts.column_names(train, "train_dataset")
    return None if names is None else [name for name in names if name not in (prompts.PROMPT, *prompts.WRITTEN)]


def _mean(values: Any) -> float:
    """Return the mean of what is a number; NaN if nothing is."""
    array = np.asarray(values, dtype=np.float64)
    return float(np.nanmean(array)) if np.isfinite(array).any() else float("nan")
