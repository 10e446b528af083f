"""Closures of a trainer's batches: each returns its share of the mean loss of a window."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from gradless.errors import BadInput

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

    def closure(self, model: nn.Module, inputs: Mapping[str, Any], items: Any) -> Loss:
        """Return the closure of a batch: its loss, as its share of the window.

        Args:
            model: evaluates it.
            inputs: the batch.
            items: number of labels in the window, over all processes; None if unknown.
        """
        trainer = self.trainer
        batch = send_to_device(inputs, trainer.args.device)

        def loss(items: Any) -> Tensor:
            copy = {**batch}  # trainers take labels out, and put arguments in
            with trainer.compute_loss_context_manager(), _labels(copy, trainer.label_names):
                value = trainer.compute_loss(model, copy, num_items_in_batch=items)
                if value.numel() != 1:
                    raise ValueError(f"the loss is no number: its shape is {tuple(value.shape)}")
                scalar: Tensor = value.reshape(())
                return scalar

        parts = trainer.current_gradient_accumulation_steps
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is not None:
            return lambda: loss(items) / (1 if scaled else parts)
        if self.divides is None:
            self.divides = self._divides(loss, items)
        return (lambda: loss(items)) if self.divides else (lambda: loss(None) / parts)

    @torch.no_grad()
    def _divides(self, loss: Callable[[Any], Tensor], items: Any) -> bool:
        """Return whether the loss is divided by ``items``; evaluates it on all processes: it may hold collectives."""
        if items is None:
            return False
        if self.trainer.args.gradient_accumulation_steps == 1 == self.trainer.args.world_size:
            return True
        once, twice = float(loss(items)), float(loss(2 * items))
        return not abs(twice - once) < abs(2 * twice - once)


@contextlib.contextmanager
def _labels(inputs: Mapping[str, Any], names: list[str]) -> Iterator[None]:
    """If the computation of a loss inside fails, and the batch has no labels, say so.

    Raises:
        BadInput: for any error in the data, where there are no labels.
    """
    columns = list(inputs)  # before anything is taken out
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        if not names or set(names) & set(columns) or isinstance(error, BadInput):
            raise
        raise BadInput(
            f"the model returned no loss, since its batches have no {' or '.join(map(repr, names))} (only "
            f"{', '.join(columns)}): rename the column of the data set, or make labels in the data collator"
        ) from error
