"""Sums of two two-digit numbers, generated: a task whose reward a small model can learn, without data or a network.

All 8,100 sums exist once. A fixed permutation splits the pairs, so that ``a + b`` and ``b + a`` are in the same split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

from gradless.tasks.answer_tags import CLOSE, OPEN, Completion, completion_text, form_score, parse_answer
from gradless.tasks.base import Example, Task
from gradless.tasks.files import Folder, Row, field, jsonl, layout

FIRST, LAST = 10, 99
HELD_PAIRS: Final = 512
"""Unordered pairs of the test split, and as many of the dev split; the others are for training."""


def generate() -> dict[str, list[Row]]:
    """Return all sums by split: about 6,100 rows to train with, about 1,010 for dev and as many for test."""
    from gradless.rng import permutation  # lazy: it imports torch, which listing the tasks does not need

    pairs = [(a, b) for a in range(FIRST, LAST + 1) for b in range(a, LAST + 1)]
    order = permutation(len(pairs), seed=0, stream="task/arithmetic").tolist()
    parts = {"test": order[:HELD_PAIRS], "dev": order[HELD_PAIRS : 2 * HELD_PAIRS], "train": order[2 * HELD_PAIRS :]}
    return {split: [row for i in indices for row in _both_orders(*pairs[i])] for split, indices in parts.items()}


def _both_orders(a: int, b: int) -> list[Row]:
    orders = [(a, b)] if a == b else [(a, b), (b, a)]
    return [{"a": first, "b": second, "answer": first + second} for first, second in orders]


def tidy(row: Row) -> Iterator[Row]:
    """Yield the canonical row: two whole numbers and their sum, which is computed if it is not there."""
    a, b = int(field(row, "a")), int(field(row, "b"))
    yield {"a": a, "b": b, "answer": a + b}


def render(row: Row) -> Example:
    """Return the question and what form the answer must have."""
    prompt = f"Question: What is {row['a']} + {row['b']}? Write the number as {OPEN}n{CLOSE}.\nAnswer:"
    return Example(prompt, (), (), answers=(f"{OPEN}{row['answer']}{CLOSE}",))


def arithmetic(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any], **columns: Any
) -> list[float]:
    """Return 0.5 for a right number in the right form, and 0.5 x `answer_tags.answer_tag` for the form itself.

    So 1.0 is for ``<answer>NUMBER</answer>`` with the right number alone, 0.5 for a wrong one in that form, 0.125 for
    each of an answer that is opened, a number in it, and its end.

    Args:
        prompts: N of them; they are not read.
        completions: N of them.
        answer: N right numbers.
        columns: ignored.

    Example:
        >>> arithmetic([""] * 3, ["<answer>85</answer>", "<answer>84</answer>", "<answer>85"], answer=[85] * 3)
        [1.0, 0.5, 0.25]
    """
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        parsed = parse_answer(completion_text(completion))
        form = form_score(parsed)
        rewards.append(0.5 * form + 0.5 * (form == 1.0 and Fraction(parsed.content) == Fraction(str(right))))
    return rewards


ARITHMETIC: Final = Task(
    name="arithmetic",
    title="Two-digit sums",
    kind="generation",
    metrics=("solved",),
    rewards=("arithmetic",),
    render=render,
    read=Folder(
        subfolders=("arithmetic",),
        layouts=(layout(jsonl, train="train.jsonl", dev="dev.jsonl", test="test.jsonl"),),
        tidy=tidy,
    ),
    generate=generate,
    source="all sums of two two-digit numbers; answer tags: DeepSeek-R1 (arXiv 2501.12948)",
    max_new_tokens=32,
    stop="",
)

TASKS: Final = (ARITHMETIC,)
