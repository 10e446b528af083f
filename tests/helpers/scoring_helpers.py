"""Tiny models, examples made for their tokenizers, and naive computations with no code of the package."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from gradless.lm import tiny
from gradless.tasks.base import MASK, Example, Task

CAUSAL = ("opt", "llama", "mistral", "qwen", "gemma")
ARCHITECTURES = (*CAUSAL, "roberta")

SENTENCES = (
    "the film was good",
    "a movie , because it was so bad that no one okay",
    "it was",
    "so so so so so so bad and good and the film was no movie",
)


def model(architecture: str) -> Any:
    """A tiny model whose parameters are large enough for scores to differ clearly."""
    lm = tiny(architecture)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return lm


shared = functools.cache(model)


def words(lm: Any, count: int = 4, skip: int = 0) -> tuple[str, ...]:
    """Words that are one token with their leading space."""
    tokenizer, texts = lm.tokenizer, []
    for token in sorted(tokenizer.get_vocab().values()):
        text = tokenizer.decode([token])
        if text.startswith(" ") and text[1:].isalpha() and text.isascii():
            rows = tokenizer([text, "so" + text, "so"], add_special_tokens=False)["input_ids"]
            if len(rows[0]) == 1 and rows[1] == rows[2] + rows[0]:
                texts.append(text)
    assert len(texts) >= count + skip
    return tuple(texts[skip : skip + count])


def single(lm: Any, count: int = 4, options: int = 2) -> list[Example]:
    """Examples with single-token options, the same for all."""
    labels = words(lm, options)
    end = f" so{MASK}." if lm.masked else " so"
    return [
        Example(
            SENTENCES[i % len(SENTENCES)] + " x" * (i // len(SENTENCES)) + end,
            labels,
            (i % options,),
            content_free=end,
        )
        for i in range(count)
    ]


def several(lm: Any, count: int = 4) -> list[Example]:
    """Examples with options of several and different numbers of tokens, and different numbers of options."""
    pool = (" the film", " a movie was good", " no", " because it was so bad", " okay then, xyz")
    return [
        Example(SENTENCES[i % len(SENTENCES)] + " so", pool[: 2 + i % 4], (i % 2,), content_free="so")
        for i in range(count)
    ]


def questions(count: int = 4) -> list[Example]:
    """Generation examples."""
    return [
        Example(f"Question: {SENTENCES[i % len(SENTENCES)]}\nAnswer:", (), (), ("the film", "a movie"))
        for i in range(count)
    ]


def task(kind: str, metrics: tuple[str, ...] = ("accuracy",), **changes: Any) -> Task:
    """A task whose rows are examples already."""
    toy = Task(
        name="toy",
        title="Toy",
        kind=kind,
        metrics=metrics,
        render=lambda row: row["example"],
        read=None,
        source="",
    )
    return replace(toy, **changes)


def plain_logits(lm: Any, tokens: list[int] | tuple[int, ...]) -> torch.Tensor:
    """Full logits ``[L, V]`` of one sequence by an ordinary forward."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([list(tokens)])).logits[0].float()


def naive_log_probs(lm: Any, prompt: str, option: str) -> torch.Tensor:
    """Log-probability of each token of an option after a prompt: MeZO's encoding, one plain forward."""
    tokenizer = lm.tokenizer
    whole = tokenizer((prompt + option).strip(" "))["input_ids"]
    length = len(whole) - len(tokenizer(prompt.strip(" "))["input_ids"])
    table = plain_logits(lm, whole).log_softmax(-1)
    return torch.stack([table[len(whole) - length + i - 1, whole[len(whole) - length + i]] for i in range(length)])
