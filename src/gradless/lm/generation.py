"""Text that a model writes behind prompts: greedily or sampled, by one model or by a population of perturbed ones.

What is sampled depends on numbers from a counter, one for each prompt and position, and on nothing else: all members of
a population draw with the same numbers (common random numbers), so that they differ by their weights alone, and a run
that is made again writes the same texts.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

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

_stop_tokens: Final[weakref.WeakKeyDictionary[Any, dict[str, tuple[int, ...]]]] = weakref.WeakKeyDictionary()


def greedy(logits: Tensor, position: int) -> Tensor:
    """Return the most likely tokens; see `Choose`."""
    return logits.argmax(-1)


def sampler(temperature: float, seed: int, name: str, prompts: int, new_tokens: int) -> Choose:
    """Return what chooses tokens by their probability at a temperature; 0 is `greedy`.

    One uniform number for each prompt and position goes through the inverse of the distribution function, with tokens
    in the order of their ids.

    Args:
        temperature: logits are divided by it.
        seed: of the run.
        name: what is sampled, such as ``step/7``: each name has numbers of its own.
        prompts: N.
        new_tokens: positions.
    """
    if not real("temperature", temperature, least=0.0):
        return greedy
    numbers = rng.uniform(seed, name, (prompts, new_tokens)).double()

    def choose(logits: Tensor, position: int) -> Tensor:
        cumulated = (logits.double() / temperature).softmax(-1).cumsum(-1)
        at = numbers[:, position].to(logits.device) * cumulated[..., -1]
        return (cumulated <= at.unsqueeze(-1)).sum(-1).clamp_(max=logits.shape[-1] - 1)

    return choose


def generate(lm: LanguageModel, prompts: Prompts, choose: Choose = greedy) -> list[str]:
    """Return continuations of left-padded prompts, without outer white space.

    Each ends before its first stop text, before EOS, or at the limit of new tokens.

    Raises:
        NotFinite: a token would be chosen by logits that are NaN or infinite.

    Cost: one forward per new token, with a key-value cache.
    """
    from transformers import GenerationConfig

    model: Any = lm.model
    config = GenerationConfig(
        max_new_tokens=prompts.new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad_id(lm),
        bos_token_id=lm.tokenizer.bos_token_id,
        eos_token_id=end_tokens(lm, prompts.stop) or None,
    )
    new: list[list[int]] = []
    finite: list[Tensor] = []
    first = 0
    for ids, mask in _generation_batches(lm, prompts):
        rows = slice(first, first + len(ids))
        first += len(ids)

        def chosen(written: Tensor, logits: Tensor, *, rows: slice = rows, width: int = ids.shape[1]) -> Tensor:
            finite.append(logits.max(-1).values.isfinite().all())  # of the best token; others may be ruled out
            if choose is greedy:
                return logits
            whole = logits.new_zeros(len(prompts.input_ids), logits.shape[-1])
            whole[rows] = logits
            tokens = choose(whole.float(), written.shape[1] - width)[rows]
            return torch.full_like(logits, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)

        with warnings.catch_warnings():
            # PEFT drops the positions that generate() makes, and says so; without padding none are needed.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            with upcast.reading():  # what is made of virtual tokens between the forwards, too
                tokens = model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=[chosen]
                )
        new += tokens[:, ids.shape[1] :].tolist()
    if not all(map(bool, finite)):
        raise NotFinite("the model's logits are not finite: use another model, a lower learning rate, or float32")
    return texts(lm, new, prompts.stop)


def generate_members(lm: LanguageModel, prompts: Prompts, choose: Choose, call: Call) -> list[list[str]]:
    """Return what every copy of the weights writes behind the same prompts: ``[C][N]`` texts, as `generate` does.

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
    ends = torch.tensor(end_tokens(lm, prompts.stop), dtype=torch.int64, device=lm.device)
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
            if position + 1 == prompts.new_tokens or bool(done.all()):
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = positions[:, -1:] + 1

            def following(own: Tensor, layers: Any, mask: Tensor = mask, positions: Tensor = positions) -> Any:
                return _forward(lm, own.unsqueeze(-1), mask, positions, layers)

            logits, cached = call(following, tokens, cached)
    if not all(map(bool, finite)):
        raise NotFinite("the model's logits are not finite: use another model, a lower learning rate, or float32")
    return [texts(lm, rows, prompts.stop) for rows in torch.stack(written, -1).tolist()]


def decodes_together(lm: LanguageModel) -> bool:
    """Return whether `generate_members` fits a model: one without virtual tokens, which PEFT keeps in the cache."""
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


def end_tokens(lm: LanguageModel, stop: str) -> list[int]:
    """Return the tokens that end a text: those of the tokenizer and the model, of a chat, and with the stop text."""
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = {*stop_tokens(lm.tokenizer, stop), *(own if isinstance(own, list) else [own]), lm.tokenizer.eos_token_id}
    ends.add(lm.chat.end if lm.chat else None)
    return sorted(end for end in ends if end is not None)


def texts(lm: LanguageModel, rows: Sequence[Sequence[int]], stop: str) -> list[str]:
    """Return the texts of new tokens, up to the stop text."""
    if lm.chat is not None and lm.chat.end is not None:  # which the tokenizer need not call special
        rows = [row[: list(row).index(lm.chat.end)] if lm.chat.end in row else row for row in rows]
    whole = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return [(text.split(stop)[0] if stop else text).strip() for text in whole]


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
