"""What a run does at the events of Trainer's loop, before the user's callbacks hear of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import transformers
from transformers import TrainerCallback

from gradless.forward.random_state import RandomState
from gradless.integrations import checkpoints, overrides, run_folder

# Events of single steps, at which a callback may read or change weights.
STEP_EVENTS: Final = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end")
# Trainers of TRL whose methods read weights in nothing but the loss.
READ_NO_WEIGHTS: Final = {"_BaseTrainer", "SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer", "CPOTrainer"}


class RunEvents(TrainerCallback):
    """Writes deferred updates before anything that may read the weights, and keeps track of random numbers.

    Where a step draws from the global generators (noise in the model, texts that it writes), checkpoints keep where
    these stand, and a resumed run starts from there.

    Args:
        trainer: of the run.
        own: the mixin.

    Attributes:
        drawn: whether a step has drawn from them.
    """

    def __init__(self, trainer: Any, own: type) -> None:
        self.trainer = trainer
        self._overridden = any(
            not (overrides.is_of_trl(base) and base.__name__ in READ_NO_WEIGHTS)
            for base in overrides.classes(type(trainer), own)
        )
        saved, self._begin = trainer.saved, self.random_state()
        self._resumed = checkpoints.random(saved.folder, trainer.shared, self._begin) if saved is not None else None
        self.drawn = self._resumed is not None

    def random_state(self) -> RandomState:
        """Return where the generators that a step may draw from stand."""
        device = self.trainer.args.device
        return RandomState.capture([] if device.type == "cpu" else [device])

    def _flush(self, *args: Any, **rest: Any) -> None:
        if self.trainer.window is not None:
            self.trainer.window.eval()

    on_epoch_end = on_log = on_evaluate = on_predict = on_train_end = _flush

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Start a resumed epoch, before its first batch is drawn."""
        self._flush()
        if float(state.epoch or 0).is_integer():
            self._restore()

    def on_step_begin(self, *args: Any, **rest: Any) -> None:
        """Start the first step of a resumed run that began amid an epoch, after its first batch was drawn."""
        self._restore()
        if not self.drawn:
            self._begin = self.random_state()

    def on_step_end(self, *args: Any, **rest: Any) -> None:
        """Notice random numbers."""
        self.drawn = self.drawn or not self._begin.same(self.random_state())

    def on_save(self, *args: Any, **rest: Any) -> None:
        """Be done with a checkpoint."""
        self._flush()
        if self.trainer.args.should_save:
            run_folder.saved(Path(self.trainer.args.output_dir))

    def _restore(self) -> None:
        if self._resumed is not None:
            self._resumed.restore()
            self._resumed = None

    def on_optimizer_step(self, *args: Any, **rest: Any) -> None:
        """Write the update of this step, if anybody looks at the weights before the next."""
        if self.trainer.window.inner.defer and (self._overridden or self._watched()):
            self._flush()

    def _watched(self) -> bool:
        """Whether a callback that is not of transformers hears of single steps."""
        return any(
            getattr(type(callback), event, None) is not getattr(TrainerCallback, event) or event in vars(callback)
            for callback in self.trainer.callback_handler.callbacks
            if callback is not self and type(callback).__module__.split(".")[0] != transformers.__name__
            for event in STEP_EVENTS
        )


@contextlib.contextmanager
def heard(trainer: Any, own: type) -> Iterator[RunEvents]:
    """Have `RunEvents` called first of all callbacks inside the block, and the weights written at its end."""
    events, callbacks = RunEvents(trainer, own), trainer.callback_handler.callbacks
    callbacks.insert(0, events)
    try:
        yield events
    finally:
        trainer.callback_handler.callbacks = [one for one in trainer.callback_handler.callbacks if one is not events]
        if trainer.window is not None and not trainer.window.inner.torn:
            trainer.window.eval()
