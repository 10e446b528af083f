"""`ZOTrainer`: the Hugging Face Trainer with forward passes only.

Change the import and the class name of a script that uses ``transformers.Trainer``; callbacks, evaluation, schedules,
accumulation, adapters, resuming and ``torchrun`` work as before. Optimizer state is a ledger of a few kilobytes.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from gradless import ranks
from gradless.integrations import argument_checks, checkpoints, method_choice
from gradless.integrations.losses import Losses
from gradless.integrations.window import Window

if TYPE_CHECKING:
    from transformers import Trainer as Hooks
else:
    Hooks = object


class ZOTrainerMixin(Hooks):
    """Makes a Trainer, or a trainer derived from it, train with forward passes only.

    ``class ZOSFTTrainer(ZOTrainerMixin, trl.SFTTrainer): pass`` is all that TRL's trainer for supervised fine-tuning
    needs. Only public hooks are overridden.

    Args:
        args: the trainer's own. ``learning_rate``, its schedule, ``weight_decay`` and ``seed`` come from its ``args``.
        zo: the method: a name (``gradless list methods``) or a function like `gradless.mezo`. A ready optimizer can be
            given as ``optimizers=(optimizer, None)`` instead.
        zo_options: its options, e.g. ``{"eps": 1e-3, "queries": 4, "engine": "dual"}``.
        ledger_only: checkpoints without weights, of a few kB; resuming replays the ledger from the base model.
        kwargs: the trainer's own.

    Raises:
        BadInput: what cannot be trained, or means nothing without gradients, with the fix.
    """

    optimizer: Any

    def __init__(
        self,
        *args: Any,
        zo: method_choice.Choice = "mezo",
        zo_options: dict[str, Any] | None = None,
        ledger_only: bool = False,
        **kwargs: Any,
    ) -> None:
        self.zo, self.zo_options, self.ledger_only = zo, dict(zo_options or {}), ledger_only
        self.make_zo = method_choice.check(zo, self.zo_options)
        self.window: Window | None = None  # of the run that is going on, or of the last one
        self.saved: checkpoints.Saved | None = None  # what it goes on from
        self.shared: ranks.Ranks | None = None  # the processes that take part in it
        self.closing = contextlib.ExitStack()  # at its end
        super().__init__(*args, **kwargs)
        self.given = self.optimizer
        argument_checks.arguments(self.args)
        argument_checks.trainer(self)
        self.args.save_only_model = True  # optimizer and schedule are in the ledger and beside it
        # No wrapping for gradients that are never made: DDP's buckets for them are a copy of the model.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint, to the weights that the run would have without the interruption."""
        self.saved = checkpoints.find(resume_from_checkpoint, self.args.output_dir)
        self.optimizer = None  # a new run begins at step 0
        self.shared, self.losses = ranks.group(), Losses(self)
        with contextlib.ExitStack() as self.closing:
            folder = None if self.saved is None else str(self.saved.folder)
            if self.saved is not None and self.saved.bare:
                folder = self.closing.enter_context(checkpoints.stand_in(self.saved, self.model))
            return super().train(folder, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the method over the parameters that require grad, at the step of the checkpoint if there is one."""
        if self.optimizer is None:
            model, args = self.model if model is None else model, self.args
            named = method_choice.groups(model, self.get_decay_parameter_names(model), args.weight_decay)
            settings = {"lr": args.learning_rate, "seed": args.seed, **self.zo_options}
            opt = method_choice.checked(self.given or self.make_zo(named, **settings))
            choice = method_choice.describe(self.given or self.zo, self.zo_options)
            ledger = checkpoints.begin(
                Path(args.output_dir), opt, model, choice, self.saved, bare=self.ledger_only, ranks=self.shared
            )
            if ledger is not None:
                self.closing.callback(ledger.close)
            self.optimizer = self.window = Window(opt, ledger.append if ledger else lambda update: None)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the trainer's own schedule, at the step of the checkpoint if there is one."""
        schedule = super().create_scheduler(num_training_steps, optimizer)
        argument_checks.schedule(schedule)
        if self.saved is not None and self.window is not None:
            schedule.load_state_dict(self.saved.state["schedule"])
            for group, lr in zip(self.window.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = lr
        return schedule

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gather a batch; the last one of a window probes the loss of all. Returns that loss, before it zero."""
        model.eval()  # both losses of a probe must see the same model
        model.training = argument_checks.of_trl(self)  # TRL asks the model itself whose metrics it is writing
        assert self.window is not None
        self.window.gather(self.losses.closure(model, inputs, num_items_in_batch))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        return torch.tensor(self.window.probe().loss, device=self.args.device)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and beside it the ledger that rebuilds it; the ledger alone in bare checkpoints."""
        bare = self.ledger_only and _internal_call
        if self.window is not None:
            self.window.eval()
            if _internal_call and self.shared is not None:
                self.shared.check_equal(checkpoints.tuned_sha256(self.window.inner), "the weights")
        if not bare:
            super().save_model(output_dir, _internal_call)
        if self.window is not None and self.args.should_save:
            folder, run = Path(output_dir or self.args.output_dir), Path(self.args.output_dir)
            if self.args.load_best_model_at_end and not self.is_in_train and self.state.best_model_checkpoint:
                checkpoints.copy(Path(self.state.best_model_checkpoint), folder)  # the model holds its weights now
            else:
                checkpoints.write(folder, self.window.inner, run, self.lr_scheduler, bare=bare)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Report the slope along the directions and the forward passes, in place of a gradient's norm."""
        if self.window is not None and logs.pop("grad_norm", None) is not None:
            logs |= self.window.figures()
        super().log(logs, *args, **kwargs)


class ZOTrainer(ZOTrainerMixin, transformers.Trainer):
    """`transformers.Trainer` with forward passes only. See `ZOTrainerMixin` for its arguments.

    Example::

        trainer = ZOTrainer(model=model, args=TrainingArguments("out", learning_rate=1e-6), train_dataset=data)
        trainer.train()
    """
