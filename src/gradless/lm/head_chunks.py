"""Logits of many tokens in chunks: the body of a model runs once, its output layer once for each chunk.

The logits of a whole batch may not fit into memory (2 GB of float32 for 16 x 256 tokens of Llama 3's vocabulary), but
its hidden states do. The model's own code around the output layer runs again for every chunk, with the body replaced by
what it has returned, so soft caps, scales, biases and adapters of the layer apply as they do in a plain forward.

A perturbed forward makes its copy of the output layer once for all chunks (`gradless.forward.perturbed.copies_kept`).
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradless.forward.perturbed import copies_kept
from gradless.lm.loading import LanguageModel

_bodies: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()


def has_body(lm: LanguageModel) -> bool:
    """Return whether `over_chunks` can serve the model; warn, once for each model, if it cannot.

    Cost: one forward of two tokens, the first time.
    """
    base = _base(lm)
    if base not in _bodies:
        _bodies[base] = _body_name(lm, base)
        if _bodies[base] is None:
            warnings.warn(
                f"{lm.name} ({type(base).__name__}) does not call its output layer on hidden states that a module "
                "returns, so batches with large logits run in several forwards: lower the batch size to avoid them",
                stacklevel=2,
            )
    return _bodies[base] is not None


def over_chunks(
    lm: LanguageModel,
    forward: Callable[[], Any],
    select: Callable[[Tensor], Tensor],
    size: int,
    reduce: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:
    """Return what ``reduce`` makes of the logits of each chunk of the selected hidden states, in order.

    Args:
        lm: a model that `has_body`.
        forward: runs the model on the batch, and returns its output.
        select: returns the states to score, ``[U, 1, H]``, from all that reach the output layer, ``[B, L, H]``.
        size: most states of a chunk.
        reduce: takes logits ``[n, 1, V]`` and the index of the first of their states.

    Cost: one forward. Memory: the selected states, and the logits of a chunk.
    """
    base = _base(lm)
    body = base.get_submodule(cast(str, _bodies[base]))
    waiting: list[Tensor] = []
    outputs: list[Any] = []
    with contextlib.ExitStack() as stack:

        def next_chunk(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if not waiting:  # the body has run, and what is read from here on is read again for the next chunk
                stack.enter_context(copies_kept())
                waiting.extend(reversed(select(args[0]).split(size)))
            return (waiting.pop(), *args[1:])

        def record(module: nn.Module, args: Any, output: Any) -> None:
            outputs[:] = [_narrowed(output)]

        stack.callback(lm.head.register_forward_pre_hook(next_chunk).remove)
        recording = body.register_forward_hook(record)
        try:
            logits = forward().logits
        finally:
            recording.remove()
        values, start = [reduce(logits, 0)], len(logits)
        stack.enter_context(_answering(body, outputs.pop()))
        ids = torch.zeros((1, 1), dtype=torch.int64, device=lm.device)
        while waiting:
            del logits  # before the next ones are made
            logits = base(input_ids=ids, **({} if lm.masked else {"use_cache": False})).logits
            values.append(reduce(logits, start))
            start += len(logits)
    return values


def _narrowed(output: Any) -> Any:
    """Return a module's output with one of its hidden states, which keeps the others out of memory."""
    return type(output)(**{**output, "last_hidden_state": output.last_hidden_state[:1, :1].clone()})


@contextlib.contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return ``output`` without computing anything."""
    earlier = module.__dict__.get("forward")  # accelerate puts one there, too
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if earlier is not None:
            module.forward = earlier


def _base(lm: LanguageModel) -> Any:
    """Return the model of transformers, without PEFT's around it."""
    model: Any = lm.model
    return model.get_base_model() if lm.adapters else model


@torch.no_grad()
def _body_name(lm: LanguageModel, base: nn.Module) -> str | None:
    """Return the module whose hidden states the output layer gets, or None if there is none."""
    events: list[str | None] = []
    near = [(name, module) for name, module in base.named_modules() if name and name.count(".") < 2]

    def returned(name: str, output: Any) -> None:
        if getattr(output, "last_hidden_state", None) is not None:
            events.append(name)

    hooks = [lm.head.register_forward_pre_hook(lambda *_: events.append(None))]
    for name, module in near:
        hooks.append(module.register_forward_hook(lambda m, a, output, name=name: returned(name, output)))
    try:
        base(input_ids=torch.tensor([[3, 4]], device=lm.device))
    finally:
        for hook in hooks:
            hook.remove()
    # The layer is called once, behind the module that returns last.
    return events[-2] if events[1:] and events[-1] is None and events.count(None) == 1 else None
