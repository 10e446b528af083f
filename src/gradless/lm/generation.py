"""Text that a model writes behind prompts: greedily or sampled, by one model or by a population of perturbed ones.

What is sampled depends on numbers from a counter, one for each prompt and position, and on nothing else: all members of
a population draw with the same numbers (common random numbers), so that they differ by their weights alone, and a run
that is made again writes the same texts.
"""

from __future__ import annotations

import bisect
import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from gradless import rng
from gradless.errors import NotFinite, real
from gradless.forward.perturbed import copies_kept
from gradless.lm.batching import Prompts, pad_id
from gradless.lm.loading import LanguageModel
from gradless.storage import upcast

Choose = Callable[[Tensor, int], Tensor]
"""``choose(logits, position)``: tokens ``[..., N]`` of float32 logits ``[..., N, V]``."""
Call = Callable[..., Any]
"""See `gradless.forward.batched.BatchedForward.call`."""

BROKEN: Final = "\ufffd"
"""What tokenizers write for bytes that are no character."""
_stop_tokens: Final[weakref.WeakKeyDictionary[Any, dict[str, tuple[int, ...]]]] = weakref.WeakKeyDictionary()


def greedy(logits: Tensor, position: int) -> Tensor:
    """Return the most likely tokens; see `Choose`."""
    return logits.argmax(-1)


def sampler(temperature: float, seed: int, draws: Sequence[str], new_tokens: int) -> Choose:
    """Return what chooses tokens by their probability at a temperature; 0 is `greedy`.

    One uniform number for each prompt and position goes through the inverse of the distribution function, with tokens
    in the order of their ids.

    Args:
        temperature: logits are divided by it.
        seed: of the run.
        draws: what is sampled behind each prompt, such as ``step/7/0``: each name has numbers of its own.
        new_tokens: positions.
    """
    if not real("temperature", temperature, least=0.0):
        return greedy
    numbers = torch.stack([rng.uniform(seed, name, (new_tokens,)) for name in draws])

    def choose(logits: Tensor, position: int) -> Tensor:
        cumulated = (logits.double() / temperature).softmax(-1).cumsum(-1)
        at = numbers[:, position].to(logits.device) * cumulated[..., -1]
        return (cumulated <= at.unsqueeze(-1)).sum(-1).clamp_(max=logits.shape[-1] - 1)

    return choose


class Written(NamedTuple):
    """A continuation of a prompt."""

    text: str
    """Without outer white space, up to the first stop text."""
    ids: tuple[int, ...]
    """Tokens that were generated, the one that ends the text included."""

    @property
    def tokens(self) -> int:
        """Number of these tokens."""
        return len(self.ids)


def generate(lm: LanguageModel, prompts: Prompts, choose: Choose = greedy) -> list[str]:
    """Return the texts of `write`."""
    return [one.text for one in write(lm, prompts, choose)]


def write(lm: LanguageModel, prompts: Prompts, choose: Choose = greedy) -> list[Written]:
    """Return continuations of left-padded prompts.

    Each ends before its first stop text, before EOS, or at the limit of new tokens. What the model's own generation
    settings say, but for EOS, is left out: tokens are those that ``choose`` finds by the model's logits.

    Raises:
        NotFinite: a token would be chosen by logits that are NaN or infinite.

    Cost: one forward per new token, with a key-value cache.
    """
    from transformers import GenerationConfig

    model: Any = lm.model
    ends = end_tokens(lm, prompts.stops)
    config = GenerationConfig(
        max_new_tokens=prompts.new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad_id(lm),
        bos_token_id=lm.tokenizer.bos_token_id,
        eos_token_id=ends or None,
    )
    new: list[list[int]] = []
    finite: list[Tensor] = []
    first = 0
    for ids, mask in _generation_batches(lm, prompts):
        rows = slice(first, first + len(ids))
        first += len(ids)
        width = ids.shape[1]

        def chosen(written: Tensor, logits: Tensor, *, rows: slice = rows, width: int = width) -> Tensor:
            finite.append(logits.max(-1).values.isfinite().all())  # of the best token; others may be ruled out
            if choose is greedy:
                return logits
            whole = logits.new_zeros(len(prompts.input_ids), logits.shape[-1])
            whole[rows] = logits
            tokens = choose(whole.float(), written.shape[1] - width)[rows]
            return torch.full_like(logits, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)

        def stopped(written: Tensor, scores: Any, width: int = width, **_: Any) -> Tensor:
            return stopped_by(lm, written[:, width:], prompts.stops)

        with warnings.catch_warnings():
            # PEFT drops the positions that generate() makes, and says so; without padding none are needed.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            # `upcast`: what is made of virtual tokens between the forwards, too.
            with upcast.reading(), _without_settings(model):
                tokens = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=[chosen],
                    stopping_criteria=[stopped] if _may_span(prompts.stops) else None,
                )
        new += tokens[:, width:].tolist()
    if not all(map(bool, finite)):
        raise NotFinite("the model's logits are not finite: use another model, a lower learning rate, or float32")
    return read_back(lm, new, prompts.stops)


@contextlib.contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Inside, ``generate`` takes no settings of the model for what it is not told, such as a penalty for repetition."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT reads and writes those of this
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def write_members(lm: LanguageModel, prompts: Prompts, choose: Choose, call: Call) -> list[list[Written]]:
    """Return what every copy of the weights writes behind the same prompts: ``[C][N]``, as `write` does.

    All copies decode in one batch of C N sequences; perturbed weights are made once. A sequence that has ended is
    carried along until all have.

    Args:
        lm: the model.
        prompts: N of them.
        choose: see `Choose`; it is given logits ``[C, N, V]``.
        call: runs a forward for all copies.

    Raises:
        NotFinite: a token would be chosen by logits that are NaN or infinite.

    Cost: one forward of C N sequences per new token. Memory: their keys and values, and the perturbed weights.
    """
    ends = torch.tensor(end_tokens(lm, prompts.stops), dtype=torch.int64, device=lm.device)
    looks = _may_span(prompts.stops)
    ids, mask = prompts.input_ids, prompts.attention_mask
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    written: list[Tensor] = []
    finite: list[Tensor] = []
    with copies_kept(), _last_position(lm):
        logits, cached = call(lambda: _forward(lm, ids, mask, positions, None))
        done = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
        for position in range(prompts.new_tokens):
            finite.append((logits.max(-1).values.isfinite() | done).all())
            tokens = torch.where(done, pad_id(lm), choose(logits, position))
            written.append(tokens)
            done = done | torch.isin(tokens, ends)
            if looks:
                done |= stopped_by(lm, torch.stack(written, -1).flatten(0, 1), prompts.stops).view_as(done)
            if position + 1 == prompts.new_tokens or bool(done.all()):
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = positions[:, -1:] + 1

            def following(own: Tensor, layers: Any, mask: Tensor = mask, positions: Tensor = positions) -> Any:
                return _forward(lm, own.unsqueeze(-1), mask, positions, layers)

            logits, cached = call(following, tokens, cached)
    if not all(map(bool, finite)):
        raise NotFinite("the model's logits are not finite: use another model, a lower learning rate, or float32")
    return [read_back(lm, rows, prompts.stops) for rows in torch.stack(written, -1).tolist()]


def decodes_together(lm: LanguageModel) -> bool:
    """Return whether `write_members` fits a model: one without virtual tokens, which PEFT keeps in the cache."""
    return not lm.masked and not any(adapter.is_prompt_learning for adapter in lm.adapters)


def _forward(lm: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor, layers: Any) -> Any:
    """Float32 logits ``[N, V]`` of the last position, and keys and values by layer."""
    from transformers import DynamicCache

    cache = DynamicCache() if layers is None else DynamicCache(ddp_cache_data=layers)
    model: Any = lm.model
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    kept = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    return out.logits[:, -1].float(), kept


class _last_position:
    """Inside, the output layer sees the last position alone."""

    def __init__(self, lm: LanguageModel) -> None:
        self.head: nn.Module = lm.head

    def __enter__(self) -> None:
        self.hook = self.head.register_forward_pre_hook(lambda module, args: (args[0][:, -1:], *args[1:]))

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def end_tokens(lm: LanguageModel, stops: Sequence[str]) -> list[int]:
    """Return the tokens that end a text: those of the tokenizer and the model, of a chat, and with a stop text."""
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), lm.tokenizer.eos_token_id}
    ends |= {token for stop in stops for token in stop_tokens(lm.tokenizer, stop)}
    ends.add(lm.chat.end if lm.chat else None)
    return sorted(end for end in ends if end is not None)


def _may_span(stops: Sequence[str]) -> bool:
    """Return whether a stop text may be written in tokens other than `stop_tokens`, so that texts must be read for it.

    Several characters may be several tokens, and so may one outside ASCII, whose bytes may be tokens each. White space
    has other names in vocabularies, of which `stop_tokens` knows those of the line break alone.
    """
    return any(len(stop) > 1 or not ("!" <= stop <= "~" or stop == "\n") for stop in stops)


def stopped_by(lm: LanguageModel, rows: Tensor, stops: Sequence[str]) -> Tensor:
    """Return which rows of new tokens ``[N, T]`` have a stop text near their end: bool ``[N]``.

    Cost: decoding the last tokens of every row, as many as the longest stop text has bytes and one more, since some
    tokenizers drop a leading space; where these begin or end within a character, decoding all of the row.
    """
    near = rows[:, -1 - max(len(stop.encode()) for stop in stops) :].tolist()
    read = lm.tokenizer.batch_decode(near, skip_special_tokens=False)
    if near and len(near[0]) < rows.shape[1] and any(BROKEN in text for text in read):
        # One byte that belongs to no character makes all bytes beside it unreadable to some tokenizers (SentencePiece).
        whole = lm.tokenizer.batch_decode(rows.tolist(), skip_special_tokens=False)
        read = [all_of_it if BROKEN in text else text for text, all_of_it in zip(read, whole, strict=True)]
    return torch.tensor([any(stop in text for stop in stops) for text in read], device=rows.device)


def read_back(lm: LanguageModel, rows: Sequence[Sequence[int]], stops: Sequence[str]) -> list[Written]:
    """Return the texts of new tokens, up to the first stop text."""
    ends = frozenset(end_tokens(lm, stops))
    return [_read_back(lm, row, stops, ends) for row in rows]


def _read_back(lm: LanguageModel, row: Sequence[int], stops: Sequence[str], ends: frozenset[int]) -> Written:
    end = lm.chat.end if lm.chat is not None else None

    def text(count: int) -> str:
        spoken = row[:count]
        if end is not None and end in spoken:  # which the tokenizer need not call special
            spoken = spoken[: list(spoken).index(end)]
        return str(lm.tokenizer.decode(spoken, skip_special_tokens=True))

    count = next((i for i, token in enumerate(row, 1) if token in ends), len(row))
    whole = text(count)
    if any(stop in whole for stop in stops):
        least = bisect.bisect_left(range(count), True, key=lambda i: any(stop in text(i) for stop in stops))
        count, whole = least, text(least)
    for stop in stops:
        whole = whole.split(stop)[0]
    return Written(whole.strip(), tuple(row[:count]))


def _generation_batches(lm: LanguageModel, prompts: Prompts) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and mask of all prompts at once, or of each without its padding where virtual tokens are embeddings.

    PEFT puts these in front of the padding and drops position ids: the distance between them and the text would depend
    on the batch.
    """
    if not any(adapter.is_prompt_learning and adapter.peft_type != "PREFIX_TUNING" for adapter in lm.adapters):
        yield prompts.input_ids, prompts.attention_mask
        return
    for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True):
        yield ids[mask.bool()][None], mask[mask.bool()][None]


def stop_tokens(tokenizer: Any, stop: str) -> tuple[int, ...]:
    """Return all tokens whose text contains the stop text, a full stop with a line break for instance."""
    if not stop:
        return ()
    known = _stop_tokens.setdefault(tokenizer, {})
    if stop not in known:
        # As such, and for a line break also in byte-level alphabets and as a SentencePiece byte.
        marks = ("\n", "Ċ", "<0x0A>") if stop == "\n" else (stop,)
        near = [token for text, token in tokenizer.get_vocab().items() if any(mark in text for mark in marks)]
        known[stop] = tuple(sorted(token for token in near if stop in tokenizer.decode([token])))
    return known[stop]
