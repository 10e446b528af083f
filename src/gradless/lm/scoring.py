"""Scores of options with as little forward work as possible.

A zeroth-order step is two forwards, so all that a forward computes and nobody reads is waste. Full-vocabulary
logits of every position are the largest part of it (4 GB for OPT-13B on 16 x 2 x 400 tokens); here the output
layer reads

* only the hidden states at positions that are scored, selected by a hook in front of it;
* only the rows of candidate tokens, if every option is one token. One forward then scores all options;
* else one chunk of the scored states at a time, if all their logits would be too large (`gradless.lm.head_chunks`).

Options of several tokens are read as one token tree per example, so that their prompt is computed once
(`gradless.lm.token_trees`).

The model's own code runs around the layer, so its post-processing (soft-capping, scaling) applies. The logits
of candidate rows are *computed* in float32 also for 16-bit weights: a finite difference of 16-bit logits
would be quantised more coarsely than the signal. Full-vocabulary logits are upcast before any log-softmax. No
forward keeps a key-value cache, but for generation.

Shapes as in `gradless.lm.batching`; ``V`` vocabulary, ``H`` hidden size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradless.errors import BadInput
from gradless.forward.perturbed import read_rows
from gradless.lm.batching import Batch, ScoredTokens
from gradless.lm.head_chunks import has_body, over_chunks
from gradless.lm.loading import LanguageModel
from gradless.lm.output_layer import reads_rows
from gradless.lm.token_trees import tree_attention

LOGITS_BYTES = 2**28  # most bytes of float32 logits at a time; the output layer computes more of them in chunks


class Scores(NamedTuple):
    """Log-probabilities of every option, float32 ``[N, O]``; -inf where an example has no such option.

    For restricted scores (single-token options, not normalised) the values are logits: equal to
    log-probabilities up to one constant per example, which changes neither a softmax over options nor an argmax.
    """

    mean: Tensor  # mean log-probability of an option's tokens
    total: Tensor  # their sum
    lengths: Tensor  # number of tokens


def scores(lm: LanguageModel, batch: Batch, *, normalised: bool = False) -> Scores:
    """Return the scores of every option of a batch from `gradless.lm.batching`.

    Args:
        lm: the model.
        batch: sequences and how they map to options.
        normalised: return true log-probabilities also where logits of the candidates would be enough.

    Cost: one forward.
    """
    if batch.targets is not None and batch.target_mask is not None:
        totals = (token_log_probs(lm, batch) * batch.target_mask).sum(1)  # [B]
        counts = batch.target_mask.sum(1)
        total, mean, lengths = totals[batch.slots], (totals / counts)[batch.slots], counts[batch.slots]
    else:
        if batch.candidates is None:
            values = _label_logits(lm, batch)
            values = values.log_softmax(-1) if normalised else values
        elif normalised:
            candidates = batch.candidates
            values = torch.cat(_over_logits(lm, batch, lambda logits, _: logits.log_softmax(-1)[:, candidates]))
        else:
            values = _logits(lm, batch, batch.candidates)[:, 0]
        total = mean = values.gather(1, batch.slots)
        lengths = torch.ones_like(total)
    missing = ~batch.valid
    return Scores(mean.masked_fill(missing, -torch.inf), total.masked_fill(missing, -torch.inf), lengths * batch.valid)


def token_log_probs(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return the log-probability of each target of a batch: float32 ``[C, S]``, one row for each option.

    Padding is the log-probability of some token, or zero.
    """
    assert batch.targets is not None
    targets = batch.targets

    def picked(logits: Tensor, start: int) -> Tensor:
        index = batch.positions - start
        inside = (index >= 0) & (index < len(logits))
        index = index.clamp(0, len(logits) - 1)
        log_probs = logits[index, targets] - logits.logsumexp(-1)[index]
        return log_probs.masked_fill(~inside, 0.0)

    return torch.stack(_over_logits(lm, batch, picked)).sum(0)


def _over_logits(lm: LanguageModel, batch: Batch, reduce: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """Return what ``reduce`` makes of the scored states' logits, float32 ``[n, V]``, and the index of the first state.

    At most `LOGITS_BYTES` of logits are in memory at a time.
    """
    states = len(batch.input_ids) if batch.scored is None else len(batch.scored.nodes)
    size = max(1, LOGITS_BYTES // (4 * lm.head.weight.shape[0]))
    if states <= size:
        return [reduce(_logits(lm, batch)[:, 0], 0)]
    if has_body(lm):
        here = batch.positions.device
        return over_chunks(
            *(lm, partial(_call, lm, batch), lambda hidden: _select(hidden, batch), size),
            lambda logits, start: reduce(logits[:, 0].float().to(here), start),
        )
    return [reduce(_logits(lm, part)[:, 0], start) for start, part in _parts(batch, size)]


def _parts(batch: Batch, size: int) -> Iterator[tuple[int, Batch]]:
    """Yield batches that read some sequences and score at most ``size`` states, and the index of the first of these.

    Sequences stay whole, but one with more states than that is run several times. Fields about options are unchanged.
    """
    length, counts = batch.input_ids.shape[1], (1,) * len(batch.input_ids)
    counts = counts if batch.scored is None else batch.scored.counts
    edges = list(accumulate(counts, initial=0))
    start = 0
    while start < edges[-1]:
        first = bisect_right(edges, start) - 1
        last = max(first + 1, bisect_right(edges, start + size) - 1)
        stop = min(start + size, edges[last])
        rows = slice(first, last)
        part = batch._replace(input_ids=batch.input_ids[rows], attention_mask=batch.attention_mask[rows])
        if batch.scored is None:
            yield start, part._replace(positions=batch.positions[rows])
        else:
            scored = ScoredTokens(batch.scored.nodes[start:stop] - first * length, ())
            yield start, part._replace(scored=scored, trees=None if batch.trees is None else batch.trees[rows])
        start = stop


def features(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return the hidden state in front of the output layer at each sequence's first scored position.

    With `gradless.lm.batching.collate_ends` it is the input of a linear probe. Float32 ``[B, H]``.

    Cost: one forward without logits.
    """
    return _hidden(lm, batch)[:, 0].float()


# ------------------------------------------------------------------------------------------------------------
# one forward


def _call(lm: LanguageModel, batch: Batch) -> Any:
    if lm.masked:
        return lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    if batch.trees is not None:
        mask, positions = tree_attention(lm, batch.trees)
        return lm.model(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions, use_cache=False)
    # Right padding needs no mask under causality, and without one attention takes its fastest path.
    return lm.model(input_ids=batch.input_ids, attention_mask=None, use_cache=False)


def _select(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the hidden states ``[B, S, H]`` at a batch's positions, or ``[U, 1, H]`` of its scored tokens."""
    length = batch.input_ids.shape[1]
    virtual = hidden.shape[1] - length  # tokens of a prompt in front
    if batch.scored is not None:
        nodes = batch.scored.nodes.to(hidden.device)
        nodes = nodes + (nodes // length + 1) * virtual if virtual else nodes
        return hidden.flatten(0, 1).index_select(0, nodes).unsqueeze(1)
    shifted = batch.positions.to(hidden.device) + virtual
    return hidden.gather(1, shifted.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def _logits(lm: LanguageModel, batch: Batch, rows: Tensor | None = None) -> Tensor:
    """Return the logits of the states that `_select` returns: float32 ``[B, S, V]``, or ``[B, S, R]`` of ``rows``."""
    narrow = rows is not None and reads_rows(lm)
    originals: dict[str, Any] = {}
    called = []

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        called.append(True)
        selected = _select(args[0], batch)
        if rows is None or not narrow:
            return (selected, *args[1:])
        # A 16-bit product would round the very differences that a zeroth-order step measures.
        _replace(module, originals, lambda name, p: read_rows(p, rows.to(p.device)).float())
        return (selected.float(), *args[1:])

    logits = _run(lm, batch, select, originals).logits
    if not called:  # MobileBERT multiplies by the output layer's weight itself
        logits = _select(logits, batch)
    if rows is not None and not (narrow and called):
        logits = logits[..., rows.to(logits.device)]
    moved: Tensor = logits.float().to(batch.positions.device)
    return moved


def _replace(module: nn.Module, originals: dict[str, Any], part: Callable[[str, Tensor], Tensor | None]) -> None:
    """Replace each parameter of a linear layer by ``part(name, parameter)``; keep the parameter in ``originals``."""
    for name in ("weight", "bias"):
        parameter = module._parameters[name]
        if parameter is not None:
            replacement = part(name, parameter)
            originals[name] = parameter
            module._parameters[name] = replacement  # type: ignore[assignment]


def _run(
    lm: LanguageModel,
    batch: Batch,
    hook: Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]],
    originals: dict[str, Any],
) -> Any:
    """Run a forward with ``hook`` in front of the output layer, and put its parameters of ``originals`` back."""
    head = lm.head

    def restore(*_: Any) -> None:
        while originals:
            name, parameter = originals.popitem()
            head._parameters[name] = parameter

    hooks = [head.register_forward_pre_hook(hook), head.register_forward_hook(restore)]
    try:
        return _call(lm, batch)
    finally:
        restore()
        for handle in hooks:
            handle.remove()


def _hidden(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return the hidden states ``[B, S, H]`` at the batch's positions; the output layer computes nothing."""
    plain = reads_rows(lm)
    hidden: list[Tensor] = []
    originals: dict[str, Any] = {}

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden.append(_select(args[0], batch))
        if plain:  # no rows at all: the weight is not even read
            _replace(module, originals, _no_rows)
        return (hidden[0][:, :0], *args[1:])

    _run(lm, batch, select, originals)
    if not hidden:
        raise BadInput(
            f"{lm.name} does not call its output layer, so what it reads is unknown: use the scheme full or lora"
        )
    return hidden[0]


def _no_rows(name: str, parameter: Tensor) -> Tensor:
    # Not parameter[:0] or new_empty: for a tuned parameter that would make all of it, perturbed.
    return torch.empty((0, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)


def _label_logits(lm: LanguageModel, batch: Batch) -> Tensor:
    """Return the logits ``[N, C]`` of the model's label head, in float32 for weights of any type.

    The label head stands in for the output layer, so that what a model does to its logits (scales, soft caps) applies.
    """
    model: Any = lm.model
    weight, bias = model.label_head.weight.float(), getattr(model.label_head, "bias", None)
    bias = None if bias is None else bias.float()
    if not reads_rows(lm):
        hidden = _hidden(lm, batch)[:, 0].float().to(weight.device)
        return functional.linear(hidden, weight, bias).to(batch.positions.device)
    originals: dict[str, Any] = {}

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _replace(module, originals, lambda name, _: weight if name == "weight" else bias)
        return (_select(args[0], batch)[:, :1].float().to(weight.device), *args[1:])

    logits: Tensor = _run(lm, batch, select, originals).logits[:, 0]
    return logits.to(batch.positions.device)
