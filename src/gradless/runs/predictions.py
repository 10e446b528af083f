"""``predictions.jsonl``: what a run predicted for each test row, before and after tuning, for people to read.

It stays in the run directory, beside the other files, and can be deleted: no other job needs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradless.system.atomic import write_text
from gradless.tasks.base import Example

FILE = "predictions.jsonl"
LONGEST_TEXT, LONGEST_ANSWER, MOST_OPTIONS = 800, 240, 12
GAP = " … "
FIRST_PART = 0.4  # of a shortened text; the question, which tells most, comes last in a prompt


class Guess(NamedTuple):
    """What the model said of a row."""

    text: str
    right: bool
    probability: float | None
    """Of this option among the row's options; None for generated text, and where it was not noted."""


class Prediction(NamedTuple):
    """A test row and what was predicted for it."""

    row: int
    """Its place among the test rows."""
    text: str
    """The prompt, its middle left out where it is long."""
    options: tuple[str, ...]
    gold: tuple[str, ...]
    """Accepted answers; training aims at the first."""
    before: Guess | None
    """Of the untouched model; None if it was not evaluated."""
    after: Guess

    @property
    def changed(self) -> bool:
        """Whether tuning changed what is predicted."""
        return self.before is not None and self.before.text != self.after.text

    @property
    def fixed(self) -> bool:
        """Wrong before, right after."""
        return self.before is not None and self.after.right and not self.before.right

    @property
    def broken(self) -> bool:
        """Right before, wrong after."""
        return self.before is not None and self.before.right and not self.after.right


def collect(examples: Sequence[Example], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Prediction]:
    """Rendered test rows beside what two evaluations (lines of ``metrics.jsonl``) said of them.

    Args:
        examples: the rows.
        before: evaluation of the untouched model; empty if there is none.
        after: evaluation of the tuned one.
    """
    return [
        Prediction(
            row=place,
            text=shorten(example.prompt, LONGEST_TEXT),
            options=tuple(_answer(option) for option in example.options[:MOST_OPTIONS]),
            gold=tuple(_answer(gold) for gold in _golds(example)),
            before=_guess(example, before, place) if before.get("predictions") else None,
            after=_guess(example, after, place),
        )
        for place, example in enumerate(examples)
    ]


def _golds(example: Example) -> tuple[str, ...]:
    return tuple(example.options[i] for i in example.correct) if example.options else example.answers


def _guess(example: Example, line: Mapping[str, Any], place: int) -> Guess:
    said, known = line["predictions"][place], line.get("probabilities") or ()
    text = example.options[said] if example.options else str(said)
    return Guess(_answer(text), bool(line["correct"][place]), known[place] if place < len(known) else None)


def write(path: Path, found: Sequence[Prediction]) -> None:
    """Write one JSON line a row, the file whole or not at all."""
    write_text(path, "".join(json.dumps(_plain(prediction)) + "\n" for prediction in found))


def _plain(found: Prediction) -> dict[str, Any]:
    before = found.before._asdict() if found.before else None
    return {**found._asdict(), "before": before, "after": found.after._asdict()}


def read(path: Path) -> list[Prediction]:
    """Read the file back; nothing where there is none, and damaged lines are left out."""
    found = []
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(_prediction(json.loads(text)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _prediction(line: dict[str, Any]) -> Prediction:
    def guess(value: dict[str, Any]) -> Guess:
        number = value["probability"]
        fine = isinstance(number, int | float) and math.isfinite(number)
        return Guess(str(value["text"]), bool(value["right"]), float(number) if fine else None)

    before = guess(line["before"]) if line["before"] is not None else None
    options, gold = (tuple(str(one) for one in line[name]) for name in ("options", "gold"))
    return Prediction(int(line["row"]), str(line["text"]), options, gold, before, guess(line["after"]))


def changed_first(found: Sequence[Prediction]) -> list[Prediction]:
    """The rows whose prediction changed, then the others, each in their order."""
    return sorted(found, key=lambda prediction: not prediction.changed)


def examples(found: Sequence[Prediction], count: int = 3) -> list[dict[str, str | None]]:
    """A few of them for ``result.json``; ``before`` is None where the untouched model was not evaluated."""
    return [
        {
            "prompt": one.text,
            "gold": one.gold[0],
            "before": one.before.text if one.before else None,
            "after": one.after.text,
        }
        for one in changed_first(found)[:count]
    ]


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters: the beginning and the end, with an ellipsis between them.

    Halves of surrogate pairs, which no file can hold, become question marks.

    Example:
        >>> shorten("abcdefghijklmnop", 13)
        'abcd … klmnop'
    """
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= most:
        return text
    room = most - len(GAP)
    first = int(FIRST_PART * room)
    return f"{text[:first].rstrip()}{GAP}{text[first - room :].lstrip()}"


def _answer(text: str) -> str:
    return shorten(text.strip(), LONGEST_ANSWER)
