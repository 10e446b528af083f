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

from gradless import ledger, ranks
from gradless.errors import BadInput
from gradless.integrations import argument_checks, checkpoints, events, hooks, method_choice, overrides, run_folder
from gradless.integrations.instance import replaced
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
        overrides.check(type(self), ZOTrainerMixin)
        self.described: dict[str, Any] = {}  # what else the ledger's header says of a run that it belongs to
        self.window: Window | None = None  # of the run that is going on, or of the last one
        self.own_window: Window | None = None  # the last one that `create_optimizer` of this class made
        self.ledger: ledger.Ledger | None = None  # its ledger, if this process writes it
        self.saved: checkpoints.Saved | None = None  # what it goes on from
        self.shared: ranks.Ranks | None = None  # the processes that take part in it
        self.events: events.RunEvents | None = None  # hears of its steps
        self.closing = contextlib.ExitStack()  # at its end
        overrides.check_arguments(type(self), (*args, *kwargs.values()))
        args, kwargs = argument_checks.own(args, kwargs)
        super().__init__(*args, **kwargs)
        self.given = self.optimizer
        argument_checks.arguments(self.args)
        argument_checks.trainer(self)
        self.args.save_only_model = True  # optimizer and schedule are in the ledger and beside it
        # No wrapping for gradients that are never made: DDP's buckets for them are a copy of the model.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint, to the weights of a run in one piece, but where a collator masks at random."""
        output = Path(self.args.output_dir)
        self.shared, self.losses = ranks.group(), Losses(self)
        with contextlib.ExitStack() as self.closing:
            enter = self.closing.enter_context
            enter(run_folder.claimed(output, self.shared))
            self.saved = checkpoints.find(resume_from_checkpoint, self.args.output_dir)
            self.optimizer = hooks.unused(self.optimizer)  # a new run begins at step 0
            enter(replaced(self, "create_optimizer", hooks.optimizer_hook(self)))
            enter(replaced(self, "create_scheduler", hooks.scheduler_hook(self)))
            enter(replaced(self, "set_initial_training_values", hooks.epochs_hook(self)))
            self.events = enter(events.heard(self, ZOTrainerMixin))
            folder = None if self.saved is None else str(self.saved.folder)
            if self.saved is not None and self.saved.bare:
                folder = enter(run_folder.stand_in(self.saved, output, self.model, self.shared))
            return super().train(folder, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the method over the parameters that require grad."""
        if self.optimizer is None:
            model, args = self.model if model is None else model, self.args
            named = method_choice.groups(model, self.get_decay_parameter_names(model), args.weight_decay)
            settings = {"lr": args.learning_rate, "seed": args.seed, **self.zo_options}
            opt = method_choice.checked(self.given or self.make_zo(named, **settings))
            self.optimizer = self.own_window = Window(opt, lambda update: None)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gather a batch; the last one of a window probes the loss of all. Returns that loss, before it zero."""
        if self.window is None:
            raise BadInput("training_step belongs to a run: call train(), or loss = compute_loss(model, inputs)")
        return self.losses.step(super().training_step, self.window, model, inputs, num_items_in_batch)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and beside it the ledger that rebuilds it; the ledger alone in bare checkpoints."""
        folder, run = Path(output_dir or self.args.output_dir), Path(self.args.output_dir)
        checkpoint = _internal_call and folder != run  # push_to_hub saves to the output directory itself
        bare = self.ledger_only and checkpoint
        with contextlib.ExitStack() as stack:
            if self.window is not None:
                self.window.eval()
                if _internal_call and self.shared is not None:
                    self.shared.check_equal(checkpoints.tuned_sha256(self.window.inner), "the weights")
                if checkpoint and self.args.should_save:
                    stack.enter_context(run_folder.saving(run, folder))
                if checkpoint and self.events is not None and self.events.drawn:
                    checkpoints.write_random(folder, self.shared, self.events.random_state())
                if self.args.should_save:
                    hooks.write_state(self, run, folder, bare=bare)
            if not bare:
                super().save_model(output_dir, _internal_call)

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
