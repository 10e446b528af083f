"""Token trees: all options of an example in one sequence that holds their common tokens once.

An example with options of several tokens is otherwise read once per option, its prompt every time. Here the
options are the branches of a tree: each token attends to itself and to the tokens between the root and itself,
and has the position that it would have in a sequence of its own. The model therefore computes for every branch
what it computes for the plain sequence (SpecInfer's tree attention, Miao et al. 2023, arXiv 2305.09781, for scoring).

A tree is laid out in preorder, so that one number per token describes it: the index of the last token below
it. Token q attends to token k exactly if ``k <= q <= ends[k]``; the number of tokens it attends to gives its position.

Shapes as in `gradless.lm.batching`; ``C`` options of a batch, ``U`` tokens whose successors are scored.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from gradless.lm.encode import Encoded, Tokens
from gradless.lm.loading import LanguageModel

ARCHITECTURES: Final = (
    *("opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox"),
    *("olmo", "olmo2", "phi", "phi3", "smollm3", "stablelm", "starcoder2", "granite"),
)
"""Values of ``model_type`` whose code applies a mask for pairs of tokens and explicit positions.

Others do not: recurrent layers read the branches as one text, ALiBi counts tokens instead of positions.
"""

_ANY_LENGTH: Final = 2**31


class Tree(NamedTuple):
    """The options of one example as a tree of tokens (a forest, if their first tokens differ)."""

    tokens: Tokens  # [L] in preorder
    ends: tuple[int, ...]  # [L] index of the last token below each; its own if there is none
    positions: tuple[tuple[int, ...], ...]  # per option: index of the token that predicts each of its tokens


class Extent(NamedTuple):
    """Size of a batch with one sequence per option, and with one tree per example."""

    sequences: int
    longest: int  # tokens of the longest sequence, which is also the longest path in a tree
    trees: int
    largest: int  # tokens of the largest tree

    def joined(self, other: Extent) -> Extent:
        """Return the extent of two batches as one."""
        return Extent(
            self.sequences + other.sequences,
            max(self.longest, other.longest),
            self.trees + other.trees,
            max(self.largest, other.largest),
        )


def build_tree(row: Encoded) -> Tree:
    """Return the tree of an example's options, without the last token of each, which is not read.

    Cost: a sort of the options and one comparison per token behind the shared context.
    """
    reads = [row.context(i) + option[:-1] for i, option in enumerate(row.options)]
    known = len(row.contexts[0]) if len(row.contexts) == 1 else 0  # tokens that all have in common
    tokens: list[int] = []
    parents: list[int] = []
    path: list[int] = []  # from the root to the end of the current sequence
    positions: list[tuple[int, ...]] = [()] * len(reads)
    last: Tokens = ()
    for i in sorted(range(len(reads)), key=reads.__getitem__):  # in this order neighbours share the most
        shared = _common(last, reads[i], known)
        del path[shared:]
        for token in reads[i][shared:]:
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(token)
        positions[i] = tuple(path[len(row.context(i)) - 1 :])
        last = reads[i]
    ends = list(range(len(tokens)))
    for node in reversed(range(len(tokens))):
        if parents[node] >= 0:
            ends[parents[node]] = max(ends[parents[node]], ends[node])
    return Tree(tuple(tokens), tuple(ends), tuple(positions))


def _common(a: Tokens, b: Tokens, known: int) -> int:
    """Return the number of first tokens that two sequences share, at least ``known`` unless one is empty."""
    shortest = min(len(a), len(b))
    return next((i for i in range(min(known, shortest), shortest) if a[i] != b[i]), shortest)


def extent(lm: LanguageModel, row: Encoded) -> Extent:
    """Return the extent of one example; its tree is only built if the model can read one."""
    single = row.sequences == 1 or not longest_path(lm)
    return Extent(row.sequences, row.longest, 1, row.longest if single else len(build_tree(row).tokens))


def prefers_trees(lm: LanguageModel, size: Extent) -> bool:
    """Return whether trees are less work for a batch of this extent; depends on extent and configuration alone.

    The work of a layer is about ``12 H^2`` multiplications per token, and ``2 L H`` for the token's attention: a
    large tree of unlike options costs more attention than it saves.
    """
    if (size.trees, size.largest) == (size.sequences, size.longest):  # as of all rows with one sequence
        return False
    if not 0 < size.longest <= longest_path(lm):
        return False
    hidden = int(lm.config.hidden_size)

    def work(rows: int, length: int) -> int:
        return rows * length * (6 * hidden + length)

    return work(size.trees, size.largest) < work(size.sequences, size.longest)


def row_length(lm: LanguageModel, size: Extent) -> int:
    """Return the number of tokens of each row of a batch of this extent."""
    return size.largest if prefers_trees(lm, size) else size.longest


def num_tokens(lm: LanguageModel, size: Extent) -> int:
    """Return the number of tokens that a model reads for a batch of this extent, padding included."""
    return row_length(lm, size) * (size.trees if prefers_trees(lm, size) else size.sequences)


def longest_path(lm: LanguageModel) -> int:
    """Return the most tokens on a tree's path that the model reads as it reads a sequence; 0 if it reads no trees.

    Trees need a causal model known to apply masks and positions, an attention that takes any mask, no virtual
    tokens, and no sliding window shorter than the path: the tree's mask replaces the window's.
    """
    config = lm.config
    if lm.masked or config.model_type not in ARCHITECTURES or config._attn_implementation not in ("sdpa", "eager"):
        return 0
    if any(adapter.is_prompt_learning or adapter.peft_type == "ADAPTION_PROMPT" for adapter in lm.adapters):
        return 0
    return getattr(config, "sliding_window", None) or _ANY_LENGTH


def tree_attention(lm: LanguageModel, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mask ``[B, 1, L, L]`` and the positions ``[B, L]`` of a forward over trees with ``ends`` ``[B, L]``.

    The mask is boolean, but for eager attention, which adds it to its scores: zeros and the lowest number.
    """
    index = torch.arange(ends.shape[1], device=ends.device)
    later, earlier = index[:, None], index
    attends = (earlier <= later) & (later <= ends[:, None, :])  # [B, L, L]
    positions = attends.sum(-1) - 1
    mask = attends.unsqueeze(1)
    if lm.config._attn_implementation == "eager":
        kind = lm.compute_dtype
        hidden = torch.full((), torch.finfo(kind).min, dtype=kind, device=ends.device)
        mask = torch.where(mask, torch.zeros_like(hidden), hidden)
    return mask, positions
