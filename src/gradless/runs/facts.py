"""What a run's data are: shown before it trains, kept in ``data.json``, and in ``result.json`` under ``data``.

Here is the shape of the record, and what its readers say of it; `gradless.runs.describe` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from gradless.lm.metrics import SHARES, share_name
from gradless.runs.predictions import shorten
from gradless.system.side_files import read_json
from gradless.system.typed import NotNegative

FILE: Final = "data.json"
"""In a run directory from before the first step, so that a run that was killed has it too. It can be deleted."""
SPLITS: Final = ("train", "dev", "test")
MARKS: Final = ("\u27e6", "\u27e7")
"""White square brackets around the scored part of a prompt."""
RANDOM: Final = "a random option"
ENDS: Final = {True: "more", False: "which does not beat it", None: "more, but not clearly (95 % interval)"}
"""How a result stands to that of the most frequent answer, see `Baseline.beaten`."""
LONGEST_NAME: Final = 40
MOST_CLASSES: Final = 12
"""Classes that a terminal shows."""

HELD_OUT: Final = 5
"""A hint at dev rows names one of so many training rows..."""
MOST_HELD_OUT: Final = 500
"""...and no more than this."""

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ClassFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A class of a classification task."""

    label: str
    word: str
    """The text that is scored for it, its leading space included; empty where each row has words of its own."""
    tokens: Whole | None = None
    """Of that text; None where no model was at hand."""
    rows: dict[str, Whole] = {}
    """By split."""


class Majority(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that is right most often in a split, and what a model has right that always gives it."""

    answer: str
    share: Share


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A training row (without one: a test row) as the model reads it, each part shortened in its middle.

    It is the first one after shuffling.
    """

    before: str
    scored: str
    after: str = ""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that are longer than the model reads."""

    rows: dict[str, Whole]
    """By split."""
    side: str
    """``beginning`` or ``end``: what is left out."""
    limit: Whole
    """Tokens of prompt and answer."""
    reason: str
    """What sets the limit."""


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """What the run is expected to take."""

    seconds: NotNegative
    how: str
    """From what it was computed."""


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts. What is not known, or does not fit the kind of task, is empty or None."""

    kind: str
    """``classification``, ``choice`` or ``generation``."""
    rows: dict[str, Whole]
    """By split."""
    classes: list[ClassFacts] = []
    majority: dict[str, Majority] = {}
    """By split, of splits that have rows. Any result on ``test`` has to beat its share."""
    chance: Share | None = None
    """Of choice tasks: the share of test rows that a random answer has right."""
    answers: str = ""
    """Of generation tasks: a phrase about the length of the answers."""
    repeated: dict[str, Whole] = {}
    """Rows whose text stands in another split as well: ``dev in train``, ``test in train``, ``test in dev``."""
    contradictory: Whole = 0
    """Training rows whose text stands in another training row with another answer."""
    prompt: Prompt | None = None
    cut: Cut | None = None
    warnings: list[str] = []
    """A sentence for each thing that makes a result say less than it seems to."""
    time: Time | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary, which `read` takes back."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    def of_result(self) -> dict[str, Any]:
        """Return the entries ``data`` and ``expected_time`` of ``result.json``.

        Equal runs have equal data; the time is the machine's.
        """
        values = self.to_json()
        return {"expected_time": values.pop("time"), "data": values}


def read(value: Any) -> DataFacts | None:
    """Return facts from what JSON held, or None for anything else; fields of later releases are ignored."""
    try:
        return msgspec.convert(value, DataFacts)
    except (msgspec.ValidationError, OverflowError):
        return None


def of_run(folder: Path, result: Mapping[str, Any]) -> DataFacts | None:
    """Return the facts of a run: those of its result, or what it wrote before it trained."""
    data, time = result.get("data"), result.get("expected_time")
    finished = {**data, "time": time} if isinstance(data, Mapping) else None
    return read(finished) or read(data) or read(read_json(folder / FILE))


# ------------------------------------------------------------------------------------------------------------
# in sentences


def lines(facts: DataFacts) -> list[str]:
    """Return the facts as lines for a terminal, the text of prompts and labels as it is."""
    named = {"train": "training", "dev": "dev", "test": "test"}
    counts = [f"{facts.rows[split]:,} {name}" for split, name in named.items() if facts.rows.get(split)]
    return [
        f"data: {', '.join(counts)} rows" + ("" if facts.rows.get("test") else "; there is no test"),
        *filter(None, [no_dev_line(facts)]),
        *_class_lines(facts.classes),
        *(filter(None, [majority_line(facts), facts.answers and f"answers: {facts.answers}"])),
        *([_prompt_line(facts.prompt)] if facts.prompt is not None else []),
        *([cut_line(facts)] if facts.cut is not None else []),
        *(f"warning: {warning}" for warning in facts.warnings),
        *([f"expected time: {duration(facts.time.seconds)} ({facts.time.how})"] if facts.time is not None else []),
    ]


def _prompt_line(prompt: Prompt) -> str:
    return f"prompt, {MARKS[0]}scored{MARKS[1]}: {marked(prompt)}" if prompt.scored else f"prompt: {prompt.before}"


def no_dev_line(facts: DataFacts) -> str:
    """Return what follows from training without dev rows; "" where there are some, or nothing is trained."""
    train = facts.rows.get("train", 0)
    if facts.rows.get("dev") or not train:
        return ""
    part = min(train // HELD_OUT, MOST_HELD_OUT)
    hint = f"; --num-dev {part} would hold some training rows out, to choose the best step" if part else ""
    return f"no dev rows: the last step is kept{hint}"


def _class_lines(classes: Sequence[ClassFacts]) -> list[str]:
    """Return a table of the classes, the first `MOST_CLASSES` of them."""
    if not classes:
        return []
    splits = [split for split in SPLITS if any(one.rows.get(split) for one in classes)]
    known = classes[0].tokens is not None
    rows = [["label", "word", *(["tokens"] if known else []), *splits]]
    for one in classes[:MOST_CLASSES]:
        counts = [str(one.rows.get(split, 0)) for split in splits]
        label, word = (shorten(text, LONGEST_NAME) for text in (one.label, repr(one.word) if one.word else ""))
        rows.append([label, word, *([str(one.tokens)] if known else []), *counts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    more = len(classes) - MOST_CLASSES
    table += [f"and {more} more labels"] if more > 0 else []
    if any((one.tokens or 1) > 1 for one in classes):
        table.append("words of several tokens are compared by their mean log-probability (calibrated: by the sum)")
    return table


def majority_line(facts: DataFacts) -> str:
    """Return what always giving one answer has right, or "" where that is not known."""
    best = {split: facts.majority[split] for split in ("test", "train") if split in facts.majority}
    split, first = next(iter(best.items()), ("", None))
    if first is None:
        return ""
    text = f"baseline: {_always(facts, first)} has {first.share:.1%} of the {split} rows right"
    other = best.get("train")
    if split == "test" and other is not None and f"{other.share:.1%}" != f"{first.share:.1%}":
        text += f" ({_named(facts, other)} {other.share:.1%} of the training rows)"
    if facts.chance is not None:
        text += f", a random option {facts.chance:.1%}"
    return f"{text}; a result has to beat that" if split == "test" else text


def _always(facts: DataFacts, majority: Majority) -> str:
    return f"always answering {_named(facts, majority)}"


def _named(facts: DataFacts, majority: Majority) -> str:
    return majority.answer if facts.kind == "choice" else repr(majority.answer)


def cut_line(facts: DataFacts) -> str:
    """Return how many rows are cut, where, and why."""
    assert facts.cut is not None
    limit = f"{facts.cut.limit:,} tokens ({facts.cut.reason})"
    counts = [f"{count} of {facts.rows[split]} {split} rows" for split, count in facts.cut.rows.items() if count]
    if not counts:
        return f"no row is cut: all fit into {limit}"
    return f"{' and '.join(counts)} lose the {facts.cut.side} of their text: they are longer than {limit}"


def marked(prompt: Prompt) -> str:
    """Return a prompt with marks around what is scored."""
    return f"{prompt.before}{MARKS[0]}{prompt.scored}{MARKS[1]}{prompt.after}"


def duration(seconds: float) -> str:
    """Return seconds as text in s, min or h.

    Example:
        >>> duration(0.1), duration(50), duration(500), duration(50_000)
        ('< 1 s', '50 s', '8.3 min', '13.9 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return "< 1 s" if 0 < seconds < 0.5 else f"{seconds:.0f} s"


class Baseline(NamedTuple):
    """A result on test beside that of always giving the most frequent answer."""

    answer: str
    share: float
    right: float
    """Share of right answers of the result."""
    beaten: bool | None
    """None: more are right, but the 95 % interval of the result holds the baseline's share too."""
    sentence: str


def baseline(result: Mapping[str, Any]) -> Baseline | None:
    """Return how the ``test`` of a ``result.json`` stands to the majority share; None where one is not known."""
    facts, right = read(result.get("data")), _right(result)
    majority = facts.majority.get("test") if facts is not None else None
    if facts is None or majority is None or right is None:
        return None
    share = max(majority.share, facts.chance or 0.0)
    low = _low(result)
    beaten = False if right <= share else None if low is not None and low <= share else True
    always = _always(facts, majority) if share == majority.share else RANDOM
    sentence = f"{always} has {share:.1%} of the test rows right; this model has {right:.1%}, {ENDS[beaten]}"
    return Baseline(majority.answer if share == majority.share else RANDOM, share, right, beaten, sentence)


def share_gain(result: Mapping[str, Any]) -> float | None:
    """Return the difference that tuning made to the share of right answers on test; None where one is not known."""
    before, after = _right(result, "zero_shot"), _right(result)
    return None if before is None or after is None else after - before


def reward_gain(result: Mapping[str, Any]) -> float | None:
    """Return what tuning added to the mean reward on test; None where either is not known."""
    parts = (result.get(part) for part in ("zero_shot", "test"))
    before, after = (part.get("reward") if isinstance(part, Mapping) else None for part in parts)
    return None if before is None or after is None else float(after - before)


def difference_line(result: Mapping[str, Any]) -> str:
    """Return that difference or, if there is one, that of the mean reward, with its 95 % interval; "" without one."""
    intervals = result.get("interval")
    if not isinstance(intervals, Mapping):
        return ""
    if "reward_difference" in intervals:
        name, gain, ends = "reward", reward_gain(result), intervals["reward_difference"]
    else:
        name, gain, ends = share_name(result.get("test") or {}), share_gain(result), intervals.get("difference")
    if not ends:
        return ""
    low, high = ends
    point = "" if gain is None else f"{gain:+.3f}, "
    return f"difference in {name}: {point}{low:+.3f} to {high:+.3f} (95 %, paired)"


def _right(result: Mapping[str, Any], part: str = "test") -> float | None:
    """Return the share of right answers on test, of the tuned model or (``zero_shot``) the untouched one."""
    for table, name in (("share_right", part), *((part, share) for share in SHARES)):
        values = result.get(table)
        value = values.get(name) if isinstance(values, Mapping) else None
        if isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
    return None


def _low(result: Mapping[str, Any]) -> float | None:
    """Return the lower end of the interval of that share."""
    intervals = result.get("interval")
    ends = intervals.get("test") if isinstance(intervals, Mapping) else None
    fits = isinstance(ends, list | tuple) and len(ends) == 2 and isinstance(ends[0], int | float)
    return float(ends[0]) if fits and ends is not None else None
