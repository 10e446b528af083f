"""What a run does at the events of Trainer's loop, before the user's callbacks hear of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import transformers
from transformers import TrainerCallback

from gradless.integrations import overrides

# Events of single steps, at which a callback may read or change weights.
STEP_EVENTS: Final = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end")
# Trainers of TRL whose methods read weights in nothing but the loss.
READ_NO_WEIGHTS: Final = {"_BaseTrainer", "SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer", "CPOTrainer"}


class RunEvents(TrainerCallback):
    """Writes deferred updates before anything that may read the weights.

    Args:
        trainer: of the run.
        own: the mixin.
    """

    def __init__(self, trainer: Any, own: type) -> None:
        self.trainer = trainer
        self._overridden = any(
            not (overrides.is_of_trl(base) and base.__name__ in READ_NO_WEIGHTS)
            for base in overrides.classes(type(trainer), own)
        )

    def _flush(self, *args: Any, **rest: Any) -> None:
        if self.trainer.window is not None:
            self.trainer.window.eval()

    on_epoch_begin = on_epoch_end = on_log = on_evaluate = on_predict = on_save = on_train_end = _flush

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
def heard(trainer: Any, own: type) -> Iterator[None]:
    """Have `RunEvents` called first of all callbacks inside the block, and the weights written at its end."""
    events, callbacks = RunEvents(trainer, own), trainer.callback_handler.callbacks
    callbacks.insert(0, events)
    try:
        yield
    finally:
        trainer.callback_handler.callbacks = [one for one in trainer.callback_handler.callbacks if one is not events]
        if trainer.window is not None and not trainer.window.inner.torn:
            trainer.window.eval()
