"""Token batches: the sequences that a model reads, and their positions that are scored.

Batches are padded on the **right**. Under a causal mask no real token sees what follows it, so padding
changes nothing: neither position ids nor an attention mask are needed. Masked models get the mask. Only
prompts for generation are padded on the left.

Options of several tokens are scored with one sequence each, or, where that is less work, with one token tree
per example (`gradless.lm.token_trees`).

Shapes: ``N`` examples, ``O`` options of an example, ``C`` options of a batch, ``B`` sequences of a batch (N or
C), ``L`` tokens, ``S`` scored positions of a sequence or option, ``U`` tokens whose successors are scored, ``R``
candidate tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.errors import BadInput
from gradless.lm.encode import Encoded, Tokens, length_limit, shorten, writing_limit
from gradless.lm.loading import LanguageModel
from gradless.lm.token_trees import (
    Extent,
    Tree,
    build_tree,
    extent,
    longest_path,
    num_tokens,
    prefers_trees,
    row_length,
)


class ScoredTokens(NamedTuple):
    """The tokens of a batch whose successors are scored, padding left out."""

    nodes: Tensor  # [U] indices of the flattened [B * L], ascending
    counts: tuple[int, ...]  # number of these tokens in each sequence or tree


class Batch(NamedTuple):
    """Sequences, the positions to score in them, and how scores map to the options of examples.

    One of four cases applies:

    * ``candidates`` is set: every option is one token; option ``(n, o)`` is ``candidates[slots[n, o]]`` in
      sequence n.
    * ``targets`` and ``scored`` are set: option ``(n, o)`` is row ``slots[n, o]`` of ``targets`` ``[C, S]`` and of
      ``positions`` ``[C, S]``, which are indices of ``scored.nodes``; it is a sequence of its own.
    * so is ``trees``: sequence n is the token tree of example n, which all its options share.
    * none is set: a label head scores sequence n; ``slots`` holds nothing but the number of labels.
    """

    input_ids: Tensor  # [B, L], right padded
    attention_mask: Tensor  # [B, L]
    positions: Tensor  # [B, S] index of the hidden state that predicts
    targets: Tensor | None  # [B, S] token predicted there
    target_mask: Tensor | None  # [B, S] 1.0 where a target is real
    candidates: Tensor | None  # [R] token ids
    slots: Tensor  # [N, O]
    valid: Tensor  # [N, O] bool: option exists
    correct: Tensor  # [N, O] bool: option is right
    gold: Tensor  # [N] option to train on
    weight: float  # divisor of the objective's mean
    scored: ScoredTokens | None = None
    trees: Tensor | None = None  # [B, L] ends of the trees as in `Tree`; a padding token ends at itself


class Prompts(NamedTuple):
    """Left-padded prompts for generation, and the rows that they are of."""

    input_ids: Tensor  # [N, L]
    attention_mask: Tensor  # [N, L]
    rows: tuple[Encoded, ...]
    stops: tuple[str, ...]
    new_tokens: int
    chat: bool = False  # whether a row's text is what the user of a chat says

    @property
    def weight(self) -> float:
        """Number of rows."""
        return float(len(self.rows))

    @property
    def answers(self) -> list[tuple[str, ...]]:
        """Accepted answers of each row."""
        return [row.answers for row in self.rows]


def has_label_head(lm: LanguageModel) -> bool:
    """Return whether the model scores labels with a head of its own (scheme ``head``)."""
    return getattr(lm.model, "label_head", None) is not None


def collate_options(lm: LanguageModel, encoded: Sequence[Encoded]) -> Batch:
    """Return a batch that scores all options of all examples.

    Cost: one sequence per example if all options are single tokens (or a label head scores them), else one
    token tree per example or one sequence per option, whichever is less work.

    Raises:
        BadInput: an example without options or without a right one, or a label head of another size.
    """
    for row in encoded:
        if len(row.options) < 2 and (row.answers or not row.options):
            raise BadInput("an example without options has nothing to choose from: use the objective 'gold' or 'f1'")
        if not row.correct:
            raise BadInput("an example has no right option: give every example a label")
    if has_label_head(lm):
        return _collate_head(lm, encoded)
    if all(row.single for row in encoded):
        candidates = sorted({option[0] for row in encoded for option in row.options})
        column = {token: i for i, token in enumerate(candidates)}
        slots = [[column[option[0]] for option in row.options] for row in encoded]
        sequences = [row.contexts[0] for row in encoded]
        positions = [[len(row.contexts[0]) - 1 if row.mask is None else row.mask] for row in encoded]
        return _batch(lm, encoded, sequences, positions, None, candidates, slots)
    slots, sequences, positions, targets = [], [], [], []
    for row in encoded:
        slots.append([len(sequences) + i for i in range(len(row.options))])
        for i in range(len(row.options)):
            tokens, read, target = _scored(row, i)
            sequences.append(tokens)
            positions.append(read)
            targets.append(target)
    if longest_path(lm):
        trees = [build_tree(row) for row in encoded]
        size = Extent(len(sequences), max(map(len, sequences)), len(trees), max(len(tree.tokens) for tree in trees))
        if prefers_trees(lm, size):
            return _collate_trees(lm, encoded, trees, targets, slots)
    return _collate_targets(lm, encoded, sequences, positions, targets, slots)


def collate_ends(lm: LanguageModel, encoded: Sequence[Encoded]) -> Batch:
    """Return one sequence per example, the prompt, and its position that predicts the next token (or the mask)."""
    positions = [[len(row.prompt) - 1 if row.mask is None else row.mask] for row in encoded]
    slots = [list(range(len(row.options))) for row in encoded]
    return _batch(lm, encoded, [row.prompt for row in encoded], positions, None, None, slots)


def collate_gold(lm: LanguageModel, encoded: Sequence[Encoded]) -> Batch:
    """Return a batch that scores only the tokens of each gold option (or first answer); weight = tokens.

    Raises:
        BadInput: an example without a right option, or a label head.
    """
    if has_label_head(lm):
        raise BadInput("a label head scores labels, not tokens: use the objective 'option_ce' or another scheme")
    return _collate_scored(lm, encoded, [_scored(row, row.gold) for row in _with_gold(encoded)])


def collate_text(lm: LanguageModel, encoded: Sequence[Encoded]) -> Batch:
    """Return a batch that scores every token of prompt and gold option but the first; weight = tokens.

    Raises:
        BadInput: an example without a right option, a masked model or a label head.
    """
    if lm.masked or has_label_head(lm):
        raise BadInput("the objective 'lm' needs a causal model and its own output layer: use 'option_ce'")
    scored = []
    for row in _with_gold(encoded):
        tokens = row.context(row.gold) + row.options[row.gold]
        scored.append((tokens[:-1], list(range(len(tokens) - 1)), list(tokens[1:])))
    return _collate_scored(lm, encoded, scored)


def collate_prompts(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    stops: Sequence[str] = ("\n",),
    new_tokens: int = 50,
    max_length: int | None = None,
) -> Prompts:
    """Return left-padded prompts for generation; weight = examples.

    Args:
        lm: the model.
        encoded: examples; a prompt loses its beginning if the new tokens would not fit behind it.
        stops: texts that end an answer.
        new_tokens: most tokens of an answer (50 as in MeZO).
        max_length: most tokens of a prompt and its answer, if more than by default (`writing_limit`).

    Raises:
        BadInput: a masked model, or one that takes too few tokens.
    """
    if lm.masked:
        raise BadInput("masked models do not generate text: use a causal model for this task")
    limit = writing_limit(lm, new_tokens, max_length)
    if limit < 1:
        raise BadInput(f"the model takes too few tokens to generate {new_tokens}: lower max_new_tokens")
    prompts = [shorten(row.prompt, limit, lm.tokenizer) for row in encoded]
    width, pad = max(map(len, prompts)), pad_id(lm)
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return Prompts(
        input_ids=torch.tensor(ids, device=lm.device),
        attention_mask=torch.tensor(mask, device=lm.device),
        rows=tuple(encoded),
        stops=tuple(stops),
        new_tokens=new_tokens,
        chat=lm.chat is not None,
    )


def pad_id(lm: LanguageModel) -> int:
    """Return the padding token, or any other one: causal models never look at it."""
    ids = (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id)
    return next((int(token) for token in ids if token is not None), 0)


def groups(
    lm: LanguageModel, encoded: Sequence[Encoded], *, batch_size: int | None = None, batch_tokens: int = 16384
) -> Iterator[list[int]]:
    """Yield indices of examples to score together: of similar length, longest first, each index once.

    Examples whose options are single tokens are kept apart from the others, which need the full vocabulary.

    Args:
        lm: the model, which decides whether a group is read as trees.
        encoded: the examples.
        batch_size: most examples of a group (default: only the tokens count).
        batch_tokens: most tokens of a group as `collate_options` lays it out, padding included; a single
            example may exceed it.
    """
    sizes = [extent(lm, row) for row in encoded]

    def similarity(i: int) -> tuple[bool, bool, int]:
        return not encoded[i].single, not prefers_trees(lm, sizes[i]), -row_length(lm, sizes[i])

    group: list[int] = []
    size = Extent(0, 0, 0, 0)
    for i in sorted(range(len(encoded)), key=similarity):
        joined = size.joined(sizes[i])
        other = bool(group) and encoded[group[0]].single != encoded[i].single
        if group and (other or len(group) == batch_size or num_tokens(lm, joined) > batch_tokens):
            yield group
            group, joined = [], sizes[i]
        group.append(i)
        size = joined
    if group:
        yield group


def _with_gold(encoded: Sequence[Encoded]) -> Sequence[Encoded]:
    if not all(row.options and row.correct for row in encoded):
        raise BadInput("an example has neither a right option nor an answer: give every example a label")
    return encoded


def _scored(row: Encoded, option: int) -> tuple[Tokens, list[int], list[int]]:
    """Return input tokens, positions and targets that score one option; its last token need not be read."""
    context, tokens = row.context(option), row.options[option]
    if row.mask is not None:
        return context, [row.mask], list(tokens)
    first = len(context) - 1
    return context + tokens[:-1], list(range(first, first + len(tokens))), list(tokens)


def _collate_scored(
    lm: LanguageModel, encoded: Sequence[Encoded], scored: Sequence[tuple[Tokens, list[int], list[int]]]
) -> Batch:
    sequences, positions, targets = (list(column) for column in zip(*scored, strict=True))
    batch = _collate_targets(lm, encoded, sequences, positions, targets, [[i] for i in range(len(scored))], gold=True)
    return batch._replace(weight=float(sum(len(target) for target in targets)))


def _collate_targets(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    sequences: Sequence[Tokens],
    read: Sequence[list[int]],
    targets: Sequence[list[int]],
    slots: Sequence[list[int]],
    *,
    gold: bool = False,
) -> Batch:
    """Return one sequence per option; ``read`` are the positions that predict its targets."""
    starts = accumulate(map(len, read), initial=0)
    positions = [list(range(start, start + len(nodes))) for start, nodes in zip(starts, read, strict=False)]
    batch = _batch(lm, encoded, sequences, positions, targets, None, slots, gold_only=gold)
    return batch._replace(scored=_scored_tokens(batch, read))


def _collate_trees(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    trees: Sequence[Tree],
    targets: Sequence[list[int]],
    slots: Sequence[list[int]],
) -> Batch:
    """Return one tree per example; a token that several options continue is scored once for all of them."""
    read = [sorted({node for option in tree.positions for node in option}) for tree in trees]
    counts = tuple(map(len, read))
    positions: list[list[int]] = []
    for tree, nodes, start in zip(trees, read, accumulate(counts, initial=0), strict=False):
        index = {node: start + i for i, node in enumerate(nodes)}
        positions += [[index[node] for node in option] for option in tree.positions]
    batch = _batch(lm, encoded, [tree.tokens for tree in trees], positions, targets, None, slots)
    length = batch.input_ids.shape[1]
    ends = [[*tree.ends, *range(len(tree.ends), length)] for tree in trees]
    return batch._replace(scored=_scored_tokens(batch, read), trees=torch.tensor(ends, device=lm.device))


def _scored_tokens(batch: Batch, read: Sequence[Sequence[int]]) -> ScoredTokens:
    """Return the tokens to score from their positions in each sequence of the batch."""
    length = batch.input_ids.shape[1]
    flat = [row * length + node for row, nodes in enumerate(read) for node in nodes]
    return ScoredTokens(torch.tensor(flat, device=batch.input_ids.device), tuple(map(len, read)))


def _collate_head(lm: LanguageModel, encoded: Sequence[Encoded]) -> Batch:
    model: Any = lm.model
    labels = int(model.label_head.weight.shape[0])
    for row in encoded:
        if len(row.options) != labels:
            raise BadInput(
                f"the label head has {labels} labels but an example has {len(row.options)} options: "
                "the scheme 'head' needs a classification task"
            )
    return collate_ends(lm, encoded)


def _batch(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    sequences: Sequence[Tokens],
    positions: Sequence[list[int]],
    targets: Sequence[list[int]] | None,
    candidates: Sequence[int] | None,
    slots: Sequence[list[int]],
    *,
    gold_only: bool = False,
) -> Batch:
    device = lm.device

    def padded(columns: Sequence[Sequence[int]], fill: int, width: int) -> Tensor:
        rows = np.array([[*row, *[fill] * (width - len(row))] for row in columns], dtype=np.int64)
        return torch.from_numpy(rows).to(device)  # three times as fast as torch.tensor of lists

    def ones(columns: Sequence[Sequence[int]], width: int) -> Tensor:
        lengths = np.array([[len(row)] for row in columns])
        return torch.from_numpy((np.arange(width) < lengths).astype(np.int64)).to(device)

    length = max(map(len, sequences))
    if device.type == "cuda":  # tensor cores and kernel caches like few, aligned lengths
        length = max(length, min(-(-length // 8) * 8, length_limit(lm)))
    scored, choices = max(map(len, positions)), max(map(len, slots))
    correct = [[int(gold_only or o in row.correct) for o in range(choices)] for row in encoded]
    return Batch(
        input_ids=padded(sequences, pad_id(lm), length),
        attention_mask=ones(sequences, length),
        positions=padded(positions, 0, scored),
        targets=None if targets is None else padded(targets, 0, scored),
        target_mask=None if targets is None else ones(targets, scored).float(),
        candidates=None if candidates is None else torch.tensor(candidates, device=device),
        slots=padded(slots, 0, choices),
        valid=ones(slots, choices).bool(),
        correct=padded(correct, 0, choices).bool(),
        gold=torch.tensor([0 if gold_only else row.gold for row in encoded], device=device),
        weight=float(len(encoded)),
    )
