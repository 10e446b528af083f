"""Closures of a trainer's batches: each returns its share of the mean loss of a window.

A step runs the whole ``training_step`` of the trainer, with what its classes add to Trainer's. Only two things in it
are replaced: the first ``compute_loss`` gathers a closure, and the backward pass does nothing. So batches are prepared
once, whatever an override draws is drawn once, and contexts that it enters are those of the loss.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from gradless.errors import BadInput
from gradless.forward.random_state import RandomState
from gradless.integrations import overrides
from gradless.integrations.batches import fresh
from gradless.integrations.instance import replaced

if TYPE_CHECKING:
    from gradless.integrations.window import Window

Loss = Callable[[], Tensor]


class Losses:
    """Makes the closures of one trainer's batches.

    Trainer hands a model the number of labels in a window, to divide by, if its ``forward`` takes any keyword, and then
    trusts the loss to be a share of the window's. Several models (BERT's classifier is one) take the number and return
    the mean of their batch all the same; with Trainer, accumulated gradients are then too large by the number of
    micro-batches. The first batch shows here which of them a model does.

    Args:
        trainer: whose ``compute_loss`` is called.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.divides: bool | None = None  # whether losses are divided by the number that is handed over
        self._gathered = False  # whether the batch of the step that is going on was
        self._backwards = 0  # passes that were asked for since then

    def step(self, parent: Callable[..., Tensor], window: Window, model: nn.Module, inputs: Any, items: Any) -> Tensor:
        """Run Trainer's step and what its subclasses add, for one batch.

        Args:
            parent: ``training_step`` of the class behind the mixin.
            window: gathers the batch, and is probed after the last one.
            model: evaluates it.
            inputs: the batch, as it comes from the data loader.
            items: number of labels in the window, over all processes; None if unknown.

        Returns:
            What the trainer logs: the sum of the losses in the window for the last batch in it, zero for the others.

        Raises:
            BadInput: an override computes the loss in another way than Trainer's step, or more than once.
        """
        compute = self.trainer.compute_loss

        def gather(model: nn.Module, inputs: Any, *args: Any, num_items_in_batch: Any = None, **rest: Any) -> Any:
            if not _is_trainers_own(inspect.currentframe()):  # an override asks for a loss before it calls Trainer's
                return compute(model, inputs, *args, num_items_in_batch=num_items_in_batch, **rest)
            held.close()
            self._gathered = True
            window.gather(self.closure(compute, model, inputs, num_items_in_batch))
            return self._settled(window, num_items_in_batch)

        self._gathered, self._backwards = False, 0
        with contextlib.ExitStack() as held, replaced(self.trainer.accelerator, "backward", self._no_backward):
            held.enter_context(replaced(self.trainer, "compute_loss", gather))
            loss = parent(model, inputs, items)
        if not self._gathered:
            raise BadInput(
                f"{self._author()} does not come to Trainer's own, which ZOTrainer replaces: call "
                "super().training_step in it, or override compute_loss"
            )
        return loss

    def _author(self) -> str:
        return overrides.author(self.trainer, "training_step")

    def _no_backward(self, loss: Tensor, **rest: Any) -> None:
        """Stand for the backward pass; one for each batch is Trainer's own."""
        self._backwards += 1
        if not self._gathered or self._backwards > 1:
            raise BadInput(
                f"{self._author()} asks for a backward pass of its own, and there are no gradients: override "
                "compute_loss or _prepare_inputs, in a subclass of ZOTrainer"
            )

    def _settled(self, window: Window, items: Any) -> Tensor:
        """The loss that Trainer's step goes on with; Trainer divides it once more where it takes it for a mean."""
        trainer = self.trainer
        if not trainer.accelerator.sync_gradients:
            return torch.zeros((), device=trainer.args.device)
        with _without_autocast(trainer.args.device):
            loss = window.probe().loss
        if not self._is_share():
            loss *= trainer.current_gradient_accumulation_steps
            if self.divides is False and items is not None and trainer.args.average_tokens_across_devices:
                loss *= (
                    trainer.accelerator.num_processes
                )  # compute_loss of Trainer does, which is not told of them here
        return torch.tensor(loss, device=trainer.args.device)

    def _is_share(self) -> bool:
        """Whether a loss is a share of the window's, not the mean of its batch."""
        scaled = getattr(self.trainer, "loss_is_scaled_for_ga", None)
        return bool(self.divides if scaled is None else scaled)

    def closure(self, compute: Callable[..., Any], model: nn.Module, batch: Any, items: Any) -> Loss:
        """Return the closure of a batch: its loss, as its share of the window.

        Args:
            compute: ``compute_loss`` of the trainer.
            model: evaluates it.
            batch: the prepared batch; it stays as it is.
            items: number of labels in the window, over all processes; None if unknown.
        """
        trainer = self.trainer
        casts = _autocast(trainer.args.device)

        def loss(items: Any) -> Tensor:
            copied = fresh(batch)  # trainers take labels out, and put arguments in
            torch.clear_autocast_cache()  # it holds weights of the point before
            with contextlib.ExitStack() as stack:
                for device, dtype in casts.items():
                    stack.enter_context(torch.autocast(device, dtype=dtype))
                stack.enter_context(_labels(copied, trainer.label_names))
                value = compute(model, copied, num_items_in_batch=items)
                if value.numel() != 1:
                    raise ValueError(f"the loss is no number: its shape is {tuple(value.shape)}")
                scalar: Tensor = value.reshape(())
                return scalar

        model.eval()  # both losses of a probe must see the same model
        model.training = overrides.of_trl(type(trainer))  # TRL asks the model itself whose metrics it is writing
        parts = trainer.current_gradient_accumulation_steps
        if getattr(trainer, "loss_is_scaled_for_ga", None) is None and self.divides is None:
            self.divides = self._divides(loss, items)
        count = items if self.divides or getattr(trainer, "loss_is_scaled_for_ga", None) is not None else None
        return (lambda: loss(count)) if self._is_share() else (lambda: loss(count) / parts)

    @torch.no_grad()
    def _divides(self, loss: Callable[[Any], Tensor], items: Any) -> bool:
        """Return whether the loss is divided by ``items``; evaluates it on all processes: it may hold collectives."""
        if items is None:
            return False
        if self.trainer.args.gradient_accumulation_steps == 1 == self.trainer.args.world_size:
            return True
        device = self.trainer.args.device
        start = RandomState.capture([] if device.type == "cpu" else [device])
        with start.revisited():
            once, twice = (float(start.pinned(functools.partial(loss, count))()) for count in (items, 2 * items))
        return not abs(twice - once) < abs(2 * twice - once)


def _is_trainers_own(frame: FrameType | None) -> bool:
    """Whether the function of a frame was called by ``transformers.Trainer.training_step``."""
    caller = frame.f_back if frame is not None else None
    code = inspect.unwrap(transformers.Trainer.training_step).__code__
    return caller is None or caller.f_code is code


def _autocast(device: torch.device) -> dict[str, torch.dtype]:
    """Device types on which autocast is on, and its types."""
    kinds = {"cpu", device.type}
    return {kind: torch.get_autocast_dtype(kind) for kind in sorted(kinds) if torch.is_autocast_enabled(kind)}


@contextlib.contextmanager
def _without_autocast(device: torch.device) -> Iterator[None]:
    """Around work on weights, whose precision is their own; closures put the trainer's autocast on again."""
    with contextlib.ExitStack() as stack:
        for kind in _autocast(device):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _labels(inputs: Any, names: list[str]) -> Iterator[None]:
    """If the computation of a loss inside fails, and the batch has no labels, say so.

    Raises:
        BadInput: for any error in the data, where there are no labels.
    """
    columns = list(inputs) if isinstance(inputs, Mapping) else None  # before anything is taken out
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        if columns is None or not names or set(names) & set(columns) or isinstance(error, BadInput):
            raise
        raise BadInput(
            f"the model returned no loss, since its batches have no {' or '.join(map(repr, names))} (only "
            f"{', '.join(map(str, columns))}): rename the column of the data set, or make labels in the data collator"
        ) from error
