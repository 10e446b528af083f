"""Answers between ``<answer>`` and ``</answer>``, the form that DeepSeek-R1 (2025, arXiv 2501.12948) made common.

The functions here that return a score for every completion are reward functions in TRL's form:
``reward(prompts, completions, **columns) -> list[float]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

OPEN: Final = "<answer>"
CLOSE: Final = "</answer>"
NUMBER: Final = r"(?<![0-9])[0-9]{1,9}(?:\.[0-9]{1,9})?(?![0-9])"
"""A number without its sign, in ASCII digits; longer ones are not taken for numbers."""
ONE_NUMBER: Final = re.compile(rf"[+-]?{NUMBER}")

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation: its messages with ``role`` and ``content``, of which the last one counts."""


class Answer(NamedTuple):
    """What a text says between the tags."""

    opened: bool
    content: str
    """Without outer white space; up to the end of the text if it is not closed; empty if it is not opened."""
    closed: bool


def completion_text(completion: Completion) -> str:
    """Return what a model wrote.

    Example:
        >>> completion_text([{"role": "assistant", "content": "Yes."}]), completion_text("Yes.")
        ('Yes.', 'Yes.')
    """
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


def parse_answer(text: str) -> Answer:
    """Return the last answer that is opened and closed, else the last one that is opened. Cost: linear in the text.

    Example:
        >>> parse_answer("<answer> 7 </answer> or <answer>8</answer>, no: <answer>9")
        Answer(opened=True, content='8', closed=True)
        >>> parse_answer("so <answer>9")
        Answer(opened=True, content='9', closed=False)
    """
    last_close = text.rfind(CLOSE)
    start = text.rfind(OPEN, 0, last_close) if last_close >= 0 else -1
    if start >= 0:
        start += len(OPEN)
        return Answer(True, text[start : text.index(CLOSE, start)].strip(), True)
    start = text.rfind(OPEN)
    return Answer(True, text[start + len(OPEN) :].strip(), False) if start >= 0 else Answer(False, "", False)


def form_score(answer: Answer) -> float:
    """Return the share of a number's form that an answer has: 0.25 for each step, 1.0 only for the whole.

    The steps are: it is opened; a number stands in it; it is closed; there is the number and nothing else.
    """
    number = ONE_NUMBER.search(answer.content)
    alone = answer.closed and number is not None and number.group() == answer.content
    return (answer.opened + (number is not None) + answer.closed + alone) / 4


def answer_tag(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Return how much of ``<answer>NUMBER</answer>`` each completion has, whether the number is right or not.

    0.25 for an answer that is opened, 0.25 for a number in it, 0.25 for its end, 0.25 if the number stands alone;
    0.0 without a tag. Of several answers the last closed one counts.

    Example:
        >>> answer_tag([""] * 4, ["7", "<answer>", "<answer>7", "It is <answer>7</answer>."])
        [0.0, 0.25, 0.5, 1.0]
    """
    return [form_score(parse_answer(completion_text(completion))) for completion in completions]
