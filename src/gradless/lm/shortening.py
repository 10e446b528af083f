"""What is left out of texts that are too long: of the row's own text, never of the words around it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from gradless.errors import BadInput
from gradless.tasks.base import MASK, Example


def fitted(tokenizer: Any, example: Example, limit: int, measure: Callable[[str], int], *, keep_end: bool) -> Example:
    """Return the example with its longest contents shortened until ``measure(prompt)`` is within the limit.

    Raises:
        BadInput: the words around them alone are longer.
    """
    while (excess := measure(example.prompt) - limit) > 0:
        if not example.contents:
            raise BadInput(f"max_length {limit} is shorter than the template and an option: raise it")
        example = _shortened(tokenizer, example, excess, keep_end)
    return example


def _shortened(tokenizer: Any, example: Example, excess: int, keep_end: bool) -> Example:
    """Return the example with about ``excess`` tokens fewer in its longest contents."""
    texts = [example.prompt[start:end] for start, end in example.contents]
    encoding = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    lengths = [len(ids) for ids in encoding["input_ids"]]
    room = max(0, sum(lengths) - excess)
    most = bisect_right(range(max(lengths) + 1), room, key=lambda cap: sum(min(n, cap) for n in lengths)) - 1
    prompt, contents, done = "", [], 0
    for i, ((start, end), text, length) in enumerate(zip(example.contents, texts, lengths, strict=True)):
        prompt += example.prompt[done:start]
        if length > most:
            offsets = encoding["offset_mapping"][i] if tokenizer.is_fast else None
            text = _part(text, offsets, length, most, keep_end)
        if text:
            contents.append((len(prompt), len(prompt) + len(text)))
        prompt, done = prompt + text, end
    return example._replace(prompt=prompt + example.prompt[done:], contents=tuple(contents))


def _part(text: str, offsets: Any, length: int, most: int, keep_end: bool) -> str:
    """Return the last or first ``most`` of a text's ``length`` tokens, at least a character less than all of it.

    ``offsets`` are None where the tokenizer has none: then each token is taken for equally many characters.
    """
    if most == 0:
        return ""
    index = length - most if keep_end else most
    at = offsets[index][0] if offsets is not None else len(text) * index // length
    return text[max(1, at) :].lstrip() if keep_end else text[: min(at, len(text) - 1)].rstrip()


def shorten_first(tokenizer: Any, example: Example, limit: int) -> Example:
    """Return the example with at most ``limit`` tokens of its first sentence."""
    assert example.first is not None
    start, end = example.first
    sentence = example.prompt[start:end]
    encoding = tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    ids = encoding["input_ids"]
    if len(ids) <= limit:
        return example
    kept = encoding["offset_mapping"][limit - 1][1] if tokenizer.is_fast else len(tokenizer.decode(ids[:limit]))
    prompt = example.prompt[: start + kept] + example.prompt[end:]
    return example._replace(prompt=prompt, first=(start, start + kept))


def template_tokens(tokenizer: Any, example: Example) -> tuple[int, int]:
    """Return the numbers of tokens of the template's own words right before the mask and right after it."""
    lead, mask, end = example.content_free.partition(MASK)
    if not mask:
        lead = end = ""
    if example.first is not None:  # exact: the text between the first sentence and the mask
        index = example.prompt.index(MASK)
        lead = example.prompt[example.first[1] if example.first[1] <= index else 0 : index]
    rows = tokenizer([lead, end], add_special_tokens=False, verbose=False)["input_ids"]
    return len(rows[0]), len(rows[1])


def fit_around(
    tokens: list[int], mask: int, limit: int, template: tuple[int, int], tokenizer: Any
) -> tuple[list[int], int]:
    """Return ``limit`` tokens and the mask's index among them.

    The tail of the longer of the sentences before and after the mask is cut, but none of the template's words.
    """
    special = set(tokenizer.all_special_ids)
    first = next(i for i, token in enumerate(tokens) if token not in special or i == mask)
    last = len(tokens) - next(i for i, token in enumerate(reversed(tokens)) if token not in special)
    last = max(last, mask + 1)
    left, right = tokens[first:mask], tokens[mask + 1 : last]
    num_left, num_right = max(0, len(left) - template[0]), max(0, len(right) - template[1])  # without the template
    room = num_left + num_right - (len(tokens) - limit)
    if room < 0:
        raise BadInput(f"max_length {limit} is shorter than the template around the mask: raise it")
    keep_left = num_left if num_left <= room // 2 else max(room - num_right, room - room // 2)
    left = left[:keep_left] + left[num_left:]
    right = right[: len(right) - (num_right - (room - keep_left))]
    return tokens[:first] + left + [tokens[mask]] + right + tokens[last:], first + len(left)
