"""Memory that forwards and backward passes of a model without weights hold, counted tensor by tensor.

The loss is that of a training batch without padding: as `gradless.lm.scoring` computes it, with hidden states selected
in front of the output layer, only candidate rows of it for label words, and language-model logits in chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradless.errors import BadInput
from gradless.forward import model_blocks
from gradless.forward.autodiff import METADATA
from gradless.forward.live_memory import FusedAttention, Live, NeedsValues
from gradless.forward.perturbed import read_rows
from gradless.lm import LanguageModel
from gradless.lm.batching import has_label_head
from gradless.lm.head_chunks import has_body, over_chunks
from gradless.lm.output_layer import outer_bias
from gradless.lm.scoring import LOGITS_BYTES

CANDIDATES = 2  # label words
TRUNCATED = 60  # letters of somebody else's message


class Batch(NamedTuple):
    """Sizes of one forward's batch, and what of it is scored."""

    rows: int
    length: int
    every_token: bool  # else one token a row, against the candidates
    copies: int = 1  # of the batch that are evaluated side by side


class Backward(NamedTuple):
    """Bytes of one loss and its gradients."""

    saved: int  # alive between the forward and the backward pass
    gradients: int
    peak: int  # most at any moment, gradients included


class Read(NamedTuple):
    """One reading of a tuned weight by a forward."""

    param: Tensor
    whole: bool  # all of it; else some rows
    linear: bool  # by a linear layer


def forward_peak(lm: LanguageModel, batch: Batch, *, fused: bool = True) -> int:
    """Return the peak bytes of one forward without gradients beside the weights; ``fused``: attention may be."""
    with _counted(lm, fused=fused) as live, torch.no_grad():
        _loss(lm, batch)
    return live.peak


def backward(lm: LanguageModel, tuned: Sequence[Tensor], batch: Batch, *, checkpoint: bool) -> Backward:
    """Return the memory of a forward and its backward pass for the gradients of ``tuned``, which stay until the end.

    Args:
        lm: the model; only ``tuned`` may require gradients.
        tuned: the weights.
        batch: what is read.
        checkpoint: keep only the inputs of blocks (`gradless.forward.model_blocks.checkpointing`).
    """
    blocks = [block for _, block in model_blocks.blocks(lm.model)] if checkpoint else []
    with _counted(lm) as live, model_blocks._replaced(blocks, _fused), model_blocks.checkpointing(blocks):
        loss = _loss(lm, batch)
        saved = live.now
        gradients = torch.autograd.grad(loss, list(tuned), allow_unused=True)
    return Backward(saved, sum(g.numel() * g.itemsize for g in gradients if g is not None), live.peak)


def reads(lm: LanguageModel, tuned: Sequence[Tensor], batch: Batch) -> list[Read]:
    """Return how one forward reads the tuned weights, in order: whole, or by rows."""
    watch = _Watch(tuned)
    batch = batch._replace(rows=1, copies=1)  # few logits: for all chunks of them the layer is read once
    with _counted(lm), torch.no_grad(), watch:
        _loss(lm, batch)
    return watch.reads


def _fused(index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A block's forward that brings its mode along: when it runs again in the backward pass, no outer one is active."""
    with FusedAttention():
        return original(*args, **kwargs)


@contextlib.contextmanager
def _counted(lm: LanguageModel, *, fused: bool = True) -> Iterator[Live]:
    """Count the block's tensors; raises BadInput if the model's code depends on values."""
    try:
        attention = FusedAttention() if fused else contextlib.nullcontext()
        with Live([*lm.model.parameters(), *lm.model.buffers()]) as live, attention:
            yield live
    except BadInput:
        raise
    except (NeedsValues, NotImplementedError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:TRUNCATED]
        raise BadInput(
            f"the forward of {lm.name} ({type(lm.model).__name__}) depends on values ({reason}) and cannot be planned "
            "without weights: measure it with gradless profile"
        ) from None


# ---------------------------------------------------------------------------------------------------------------
# the loss


def _loss(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return the mean loss of a batch, a float32 scalar on the meta device."""
    if not batch.every_token:
        logits = _logits(lm, batch).flatten(0, -2)
        return F.cross_entropy(logits, torch.empty(len(logits), dtype=torch.int64, device="meta"))
    states = batch.rows * batch.copies * batch.length
    size = max(1, LOGITS_BYTES // (4 * lm.head.weight.shape[0]))  # as in `gradless.lm.scoring`

    def picked(logits: Tensor, start: int) -> Tensor:
        logits = logits.float()
        targets = torch.empty(logits.shape[:-1], dtype=torch.int64, device="meta")
        return (logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)).sum()

    def select(hidden: Tensor) -> Tensor:
        rows = torch.empty(states, dtype=torch.int64, device="meta")
        return hidden.flatten(0, 1).index_select(0, rows).unsqueeze(1)

    if states <= size or not has_body(lm):
        parts = [picked(_logits(lm, batch), 0)]
    else:
        parts = over_chunks(lm, lambda: _forward(lm, batch), select, size, picked)
    return -torch.stack(parts).sum() / (states - batch.rows * batch.copies)


def _logits(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return float32 logits of what is scored."""
    head, whole, hidden = lm.head, dict[str, Any](), list[Tensor]()
    labelled = has_label_head(lm)
    whole_layer = batch.every_token or outer_bias(lm) is not None

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        last = args[0].shape[1] - 1
        first = last + 1 - batch.length if batch.every_token else last  # virtual tokens of a prompt are in front
        chosen = args[0].index_select(1, torch.empty(last + 1 - first, dtype=torch.int64, device="meta"))
        hidden.append(chosen)
        if whole_layer:
            return (chosen, *args[1:])
        rows = torch.empty(0 if labelled else CANDIDATES, dtype=torch.int64, device="meta")
        for name in ("weight", "bias"):
            parameter = module._parameters[name]
            if parameter is not None:
                whole[name] = parameter
                module._parameters[name] = read_rows(parameter, rows).float()  # type: ignore[assignment]
        return (chosen.float(), *args[1:])

    def restore(*_: Any) -> None:
        while whole:
            name, parameter = whole.popitem()
            head._parameters[name] = parameter

    hooks = [head.register_forward_pre_hook(select), head.register_forward_hook(restore)]
    try:
        logits: Tensor = _forward(lm, batch).logits
    finally:
        restore()
        for hook in hooks:
            hook.remove()
    if labelled:
        own: Any = lm.model
        return F.linear(hidden[0].float(), own.label_head.weight.float())
    return logits.float()


def _forward(lm: LanguageModel, batch: Batch) -> Any:
    ids = torch.empty(batch.rows * batch.copies, batch.length, dtype=torch.int64, device="meta")
    # No mask: a mask that masks nothing is dropped by models, too.
    return cast(Any, lm.model)(input_ids=ids, **({} if lm.masked else {"use_cache": False}))


# ---------------------------------------------------------------------------------------------------------------
# reads of tuned weights


class _Watch(TorchFunctionMode):
    """Records the tuned weights that torch functions take, as `PerturbedWeights` would be asked for them."""

    def __init__(self, tuned: Sequence[Tensor]) -> None:
        super().__init__()
        self.tuned = {id(p): p for p in tuned}
        self.reads: list[Read] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Record and call."""
        kwargs = kwargs or {}
        weights = [self.tuned[id(a)] for a in (*args, *kwargs.values()) if id(a) in self.tuned]
        if weights and func.__name__ not in METADATA and func.__name__ != "__get__":
            by_rows = func in (F.embedding, torch.embedding) or func is Tensor.__getitem__
            linear = func in (F.linear, torch.addmm)
            self.reads += [Read(p, not by_rows, linear and p.ndim == 2) for p in weights]
        return func(*args, **kwargs)
