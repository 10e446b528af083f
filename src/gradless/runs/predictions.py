"""``predictions.jsonl``: what a run predicted for each test row, before and after tuning, for people to read.

It stays in the run directory, beside the other files, and can be deleted: no other job needs it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradless.system.atomic import write_text
from gradless.system.typed import parse_json
from gradless.tasks.base import Example

FILE = "predictions.jsonl"
LONGEST_TEXT, LONGEST_ANSWER, MOST_OPTIONS = 800, 240, 12
GAP = " … "
FIRST_PART = 0.4  # of a shortened text; the question, which tells most, comes last in a prompt


class Guess(NamedTuple):
    """An answer of the model to a row."""

    text: str
    right: bool
    probability: float | None
    """Of this option among the row's options; None for generated text, and where it is unknown."""
    reward: float | None = None
    """Of the text, in a run on a reward; None where it has none."""


class Prediction(NamedTuple):
    """A test row and the model's answers before and after tuning."""

    row: int
    """Index among the test rows."""
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


def collect(examples: Sequence[Example], untouched: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[Prediction]:
    """Return rendered test rows with the predictions of two evaluations, lines of ``metrics.jsonl``.

    Args:
        examples: the rows.
        untouched: evaluation of the untouched model; empty if there is none.
        tuned: evaluation of the tuned one.
    """
    return [
        Prediction(
            row=row,
            text=shorten(example.prompt, LONGEST_TEXT),
            options=tuple(_answer(option) for option in example.options[:MOST_OPTIONS]),
            gold=tuple(_answer(gold) for gold in _golds(example)),
            before=_guess(example, untouched, row) if untouched.get("predictions") else None,
            after=_guess(example, tuned, row),
        )
        for row, example in enumerate(examples)
    ]


def _golds(example: Example) -> tuple[str, ...]:
    return tuple(example.options[i] for i in example.correct) if example.options else example.answers


def _guess(example: Example, line: Mapping[str, Any], row: int) -> Guess:
    prediction, probabilities = line["predictions"][row], line.get("probabilities") or ()
    known = isinstance(prediction, int) and 0 <= prediction < len(example.options)
    text = example.options[prediction] if known else str(prediction)
    rewards = line.get("rewards") or ()
    return Guess(
        _answer(text),
        bool(line["correct"][row]),
        probabilities[row] if row < len(probabilities) else None,
        rewards[row] if row < len(rewards) else None,
    )


def write(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write one JSON line a row, the file whole or not at all."""
    write_text(path, "".join(json.dumps(_plain(prediction)) + "\n" for prediction in predictions))


def _plain(prediction: Prediction) -> dict[str, Any]:
    untouched = prediction.before._asdict() if prediction.before else None
    return {**prediction._asdict(), "before": untouched, "after": prediction.after._asdict()}


def read(path: Path) -> list[Prediction]:
    """Read the file back; returns nothing where there is none, and leaves damaged lines out."""
    predictions = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            predictions.append(_prediction(parse_json(text)))
    return predictions


def _prediction(line: dict[str, Any]) -> Prediction:
    def guess(value: dict[str, Any]) -> Guess:
        probability, reward = (_finite(value.get(name)) for name in ("probability", "reward"))
        return Guess(str(value["text"]), bool(value["right"]), probability, reward)

    untouched = guess(line["before"]) if line["before"] is not None else None
    options, gold = (tuple(str(one) for one in line[name]) for name in ("options", "gold"))
    return Prediction(int(line["row"]), str(line["text"]), options, gold, untouched, guess(line["after"]))


def _finite(number: Any) -> float | None:
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else None


def named(predictions: Sequence[Prediction], names: Mapping[str, str]) -> list[Prediction]:
    """Return the rows with other names for their answers, such as labels for the words that stand for them.

    Args:
        predictions: the rows.
        names: by answer as a model says it; others stay.
    """
    short = {_answer(answer): name for answer, name in names.items()}

    def renamed(guess: Guess) -> Guess:
        return guess._replace(text=short.get(guess.text, guess.text))

    return [
        row._replace(
            options=tuple(short.get(option, option) for option in row.options),
            gold=tuple(short.get(gold, gold) for gold in row.gold),
            before=renamed(row.before) if row.before else None,
            after=renamed(row.after),
        )
        for row in predictions
    ]


def changed_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the rows whose prediction changed, then the others, each in their order."""
    return sorted(predictions, key=lambda prediction: not prediction.changed)


def examples(predictions: Sequence[Prediction], count: int = 3) -> list[dict[str, str | None]]:
    """Return a few rows for ``result.json``; ``before`` is None where the untouched model was not evaluated."""
    return [
        {
            "prompt": one.text,
            "gold": one.gold[0] if one.gold else "",
            "before": one.before.text if one.before else None,
            "after": one.after.text,
        }
        for one in changed_first(predictions)[:count]
    ]


def shorten(text: str, most: int) -> str:
    """Return at most ``most`` characters: the beginning and the end, with an ellipsis between them.

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
