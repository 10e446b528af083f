"""Token trees: all options of an example in one sequence, with what they have in common only once.

An example with options of several tokens is otherwise read once per option, its prompt every time. Here the
options are the branches of a tree: each token sees itself and the tokens on its way from the root, and stands
where it would stand in a sequence of its own. The model therefore computes for every branch what it computes
for the plain sequence (SpecInfer's tree attention, Miao et al. 2023, arXiv 2305.09781, for scoring).

A tree is laid out in preorder, so that one number per token describes it: the index of the last token below
it. Token q sees token k exactly if ``k <= q <= ends[k]``; how many tokens it sees gives its position.

Shapes as in `gradless.lm.batching`; ``C`` options of a batch, ``U`` tokens whose successors are scored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from gradless.lm.encode import Encoded, Tokens

if TYPE_CHECKING:
    from gradless.lm.loading import LanguageModel

ARCHITECTURES: Final = (
    *("opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox"),
    *("olmo", "olmo2", "phi", "phi3", "smollm3", "stablelm", "starcoder2", "granite"),
)
"""Values of ``model_type`` whose code obeys a mask for pairs of tokens and the positions it is given.

Others do not: recurrent layers read the branches as one text, ALiBi counts tokens instead of positions.
"""

_ANY_LENGTH: Final = 2**31


class Tree(NamedTuple):
    """The options of one example as a tree of tokens (a forest, if their first tokens differ)."""

    tokens: Tokens  # [L] in preorder
    ends: tuple[int, ...]  # [L] index of the last token below each; its own, if none is
    spots: tuple[tuple[int, ...], ...]  # per option: index of the token that predicts each of its tokens


class TreeLayout(NamedTuple):
    """Trees of a batch on the device."""

    ends: Tensor  # [B, L] as in `Tree`; a padding token ends at itself and so is seen by none and sees none
    nodes: Tensor  # [U] tokens that predict some option's token, as indices of the flattened [B * L], ascending
    counts: tuple[int, ...]  # how many of them each tree has


class Extent(NamedTuple):
    """How large a batch would be with one sequence per option, and with one tree per example."""

    sequences: int
    longest: int  # tokens of the longest sequence, which is also the longest way down a tree
    trees: int
    largest: int  # tokens of the largest tree

    def joined(self, other: Extent) -> Extent:
        """The extent of two batches as one."""
        return Extent(
            self.sequences + other.sequences,
            max(self.longest, other.longest),
            self.trees + other.trees,
            max(self.largest, other.largest),
        )


def grow(row: Encoded) -> Tree:
    """The tree of an example's options; the last token of an option is not read, so it is not in it.

    Cost: a sort of the options and one comparison per token behind the shared context.
    """
    reads = [row.before(i) + option[:-1] for i, option in enumerate(row.options)]
    known = len(row.contexts[0]) if len(row.contexts) == 1 else 0  # tokens that all have in common
    tokens: list[int] = []
    parents: list[int] = []
    way: list[int] = []  # from the root to the end of the sequence at hand
    spots: list[tuple[int, ...]] = [()] * len(reads)
    last: Tokens = ()
    for i in sorted(range(len(reads)), key=reads.__getitem__):  # in this order neighbours share the most
        shared = _common(last, reads[i], known)
        del way[shared:]
        for token in reads[i][shared:]:
            parents.append(way[-1] if way else -1)
            way.append(len(tokens))
            tokens.append(token)
        spots[i] = tuple(way[len(row.before(i)) - 1 :])
        last = reads[i]
    ends = list(range(len(tokens)))
    for node in reversed(range(len(tokens))):
        if parents[node] >= 0:
            ends[parents[node]] = max(ends[parents[node]], ends[node])
    return Tree(tuple(tokens), tuple(ends), tuple(spots))


def _common(a: Tokens, b: Tokens, known: int) -> int:
    """Number of first tokens that two sequences have in common, at least ``known`` unless one is empty."""
    shortest = min(len(a), len(b))
    return next((i for i in range(min(known, shortest), shortest) if a[i] != b[i]), shortest)


def extent(lm: LanguageModel, row: Encoded) -> Extent:
    """The extent of one example; its tree is only grown if the model can read one."""
    single = row.sequences == 1 or not reach(lm)
    return Extent(row.sequences, row.longest, 1, row.longest if single else len(grow(row).tokens))


def pays(lm: LanguageModel, size: Extent) -> bool:
    """Whether a batch of this extent is better read as trees; a function of the extent and the model's configuration.

    The work of a layer is about ``12 H^2`` multiplications per token, and ``2 L H`` for the token's attention: a
    large tree of unlike options costs more attention than it saves.
    """
    if not 0 < size.longest <= reach(lm):
        return False
    hidden = int(_config(lm).hidden_size)

    def work(rows: int, length: int) -> int:
        return rows * length * (6 * hidden + length)

    return work(size.trees, size.largest) < work(size.sequences, size.longest)


def width(lm: LanguageModel, size: Extent) -> int:
    """Tokens of each row of a batch of this extent."""
    return size.largest if pays(lm, size) else size.longest


def volume(lm: LanguageModel, size: Extent) -> int:
    """Tokens that a model reads for a batch of this extent, padding included."""
    return width(lm, size) * (size.trees if pays(lm, size) else size.sequences)


def reach(lm: LanguageModel) -> int:
    """Most tokens on the way down a tree that the model reads as it reads a sequence; 0 if it reads no trees.

    Trees need a causal model known to obey masks and positions, an attention that takes any mask, no virtual
    tokens, and no sliding window that would begin to slide: the tree's mask stands in for the window's.
    """
    config = _config(lm)
    if lm.masked or config.model_type not in ARCHITECTURES or config._attn_implementation not in ("sdpa", "eager"):
        return 0
    tuners = (getattr(lm.model, "peft_config", None) or {}).values()
    if any(tuner.is_prompt_learning or tuner.peft_type == "ADAPTION_PROMPT" for tuner in tuners):
        return 0
    return getattr(config, "sliding_window", None) or _ANY_LENGTH


def attention(lm: LanguageModel, ends: Tensor) -> tuple[Tensor, Tensor]:
    """What a forward needs to read trees: the mask ``[B, 1, L, L]`` and the positions ``[B, L]``.

    The mask is boolean, but for eager attention, which adds it to its scores: zeros and the lowest number.
    """
    index = torch.arange(ends.shape[1], device=ends.device)
    later, earlier = index[:, None], index
    sees = (earlier <= later) & (later <= ends[:, None, :])  # [B, L, L]
    positions = sees.sum(-1) - 1
    mask = sees.unsqueeze(1)
    if _config(lm)._attn_implementation == "eager":
        hidden = torch.full((), torch.finfo(lm.dtype).min, dtype=lm.dtype, device=ends.device)
        mask = torch.where(mask, torch.zeros_like(hidden), hidden)
    return mask, positions


def _config(lm: LanguageModel) -> Any:
    model: Any = lm.model
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
