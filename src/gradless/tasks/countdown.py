"""Countdown: reach a target with each of three or four numbers once, + - * / and brackets; generated and verified.

The form is that of TinyZero (Pan et al. 2025, github.com/Jiayi-Pan/TinyZero), whose columns ``nums`` and ``target`` the
rows have; Gandhi et al. (2024, arXiv 2404.03683) used the game before. A puzzle is made from a solution, so that it has
one: numbers and operators come from a counter stream, and what leads beyond whole numbers from 1 to 9,999, or to a
target that has not two digits, is left out. No two puzzles have the same numbers and target.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from gradless.tasks import expressions
from gradless.tasks.answer_tags import CLOSE, OPEN, Completion, completion_text, parse_answer
from gradless.tasks.base import Example, Task
from gradless.tasks.files import Folder, Row, field, jsonl, layout

SIZES: Final = {"test": 1024, "dev": 1024, "train": 8192}
"""Puzzles of each split, in the order in which they are made."""
LARGEST: Final = 99
LARGEST_VALUE: Final = 9999
TARGETS: Final = range(10, 100)
OPERATORS: Final = "+-*+-*/"
"""Each is drawn alike; the quotient of a number, which is often small, would else be in most puzzles."""
WELL_FORMED: Final = 0.1
BLOCK: Final = 8192  # candidates that are drawn at once
DRAWS: Final = 12  # uniform numbers of a candidate: how many numbers, the first, 3 x (operator, number), 4 to shuffle


class Partial(NamedTuple):
    """An expression, its value, and whether its last operator is + or -, so that it needs brackets in a product."""

    text: str
    value: int
    is_sum: bool = False


def generate() -> dict[str, list[Row]]:
    """Return the puzzles by split, the same everywhere. Cost: about a second, the first time."""
    return {split: [{**row, "nums": [*row["nums"]]} for row in rows] for split, rows in _splits().items()}


@functools.cache
def _splits() -> dict[str, list[Row]]:
    puzzles = _puzzles()
    return {split: [next(puzzles) for _ in range(size)] for split, size in SIZES.items()}


def _puzzles() -> Iterator[Row]:
    from gradless.rng import uniform  # lazy: it imports torch, which listing the tasks does not need

    known: set[tuple[int, ...]] = set()
    block = 0
    while True:
        for draws in uniform(0, f"task/countdown/{block}", (BLOCK, DRAWS)).tolist():
            row = _puzzle(draws)
            if row is not None and (key := (row["target"], *sorted(row["nums"]))) not in known:
                known.add(key)
                yield row
        block += 1


def _puzzle(draws: Sequence[float]) -> Row | None:
    """Return the puzzle of `DRAWS` uniform numbers, None if they make none."""
    count = 3 + int(draws[0] * 2)
    nums = [1 + int(draws[1] * LARGEST)]
    solution = Partial(str(nums[0]), nums[0])
    for operator_draw, number_draw in zip(draws[2 : 2 * count : 2], draws[3 : 2 * count : 2], strict=True):
        operator = OPERATORS[int(operator_draw * len(OPERATORS))]
        divisors = _divisors(solution.value) if operator == "/" else ()
        if operator == "/" and not divisors:
            return None
        nums.append(divisors[int(number_draw * len(divisors))] if operator == "/" else 1 + int(number_draw * LARGEST))
        solution = _extended(solution, operator, nums[-1])
        if not 1 <= solution.value <= LARGEST_VALUE:
            return None
    if solution.value not in TARGETS:
        return None
    shuffled = [n for _, n in sorted(zip(draws[DRAWS - 4 :], nums, strict=False))]  # the order would show the solution
    return {"nums": shuffled, "target": solution.value, "solution": solution.text}


@functools.cache
def _divisors(value: int) -> tuple[int, ...]:
    """Return the numbers that divide a value into more than one part, of more than one."""
    return tuple(n for n in range(2, min(LARGEST + 1, value)) if value % n == 0)


def _extended(first: Partial, operator: str, n: int) -> Partial:
    """Return an expression with one more number; the smaller value is taken from the larger one."""
    bracketed = f"({first.text})" if first.is_sum else first.text
    if operator == "+":
        return Partial(f"{first.text} + {n}", first.value + n, True)
    if operator == "-":
        text = f"{first.text} - {n}" if first.value > n else f"{n} - {bracketed}"
        return Partial(text, abs(first.value - n), True)
    value = first.value * n if operator == "*" else first.value // n
    return Partial(f"{bracketed} {operator} {n}", value)


def tidy(row: Row) -> Iterator[Row]:
    """Yield the canonical row: whole numbers, a target, and a solution."""
    nums = field(row, "nums")
    if not isinstance(nums, list) or len(nums) < 2:
        raise ValueError(f"nums is {nums!r}, not a list of two numbers or more")
    yield {
        "nums": [int(n) for n in nums],
        "target": int(field(row, "target")),
        "solution": str(field(row, "solution")),
    }


def render(row: Row) -> Example:
    """Return the puzzle and what form the answer must have."""
    *most, last = map(str, row["nums"])
    prompt = (
        f"Question: Make {row['target']} from {', '.join(most)} and {last}, each used once, with + - * / and brackets. "
        f"Write it as {OPEN}(1 + 2) / 3{CLOSE}.\nAnswer:"
    )
    return Example(prompt, (), (), answers=(f"{OPEN}{row['solution']}{CLOSE}",))


def countdown(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    nums: Sequence[Sequence[int]],
    target: Sequence[int],
    **columns: Any,
) -> list[float]:
    """Return 1.0 for a solution, 0.1 for any other expression in ``<answer></answer>``, else 0.0.

    The weights are TinyZero's (Pan et al. 2025), which gives 0.1 for an answer of any form; here it must be an
    expression of numbers, + - * / and brackets. Its value is computed in exact
    fractions, and only if it has the right numbers.

    Args:
        prompts: N of them; they are not read.
        completions: N of them; of several answers in one the last closed one counts.
        nums: the numbers of each puzzle, each of which must be used exactly once.
        target: N values to reach.
        columns: ignored.

    Example:
        >>> texts = ["<answer>(5 + 4) * 3</answer>", "<answer>5 + 4</answer>", "<answer>no</answer>", "27"]
        >>> countdown([""] * 4, texts, nums=[[3, 4, 5]] * 4, target=[27] * 4)
        [1.0, 0.1, 0.0, 0.0]
    """
    rewards = []
    for completion, available, value in zip(completions, nums, target, strict=True):
        answer = parse_answer(completion_text(completion))
        expression = expressions.parse(answer.content) if answer.closed else None
        if expression is None:
            rewards.append(0.0)
        else:
            rewards.append(1.0 if expressions.solves(expression, available, value) else WELL_FORMED)
    return rewards


COUNTDOWN: Final = Task(
    name="countdown",
    title="Countdown",
    kind="generation",
    metrics=("solved",),
    rewards=("countdown",),
    render=render,
    read=Folder(
        subfolders=("countdown",),
        layouts=(layout(jsonl, train="train.jsonl", dev="dev.jsonl", test="test.jsonl"),),
        tidy=tidy,
    ),
    generate=generate,
    source="Pan et al. 2025 (github.com/Jiayi-Pan/TinyZero), made anew; game: Gandhi et al. 2024 (arXiv 2404.03683)",
    max_new_tokens=96,
    stop="",
)

TASKS: Final = (COUNTDOWN,)
