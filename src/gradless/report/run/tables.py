"""The tables of one run: what it reached, what it cost, and rows before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gradless.report.common.numbers import counted, finite, number, show, unique
from gradless.report.common.read import mapping
from gradless.report.common.table import NOTHING, Column, Item, Table
from gradless.report.run.record import RunRecord
from gradless.report.run.verdict import shares
from gradless.runs.facts import SPLITS, DataFacts, cut_line, duration, majority_line
from gradless.runs.predictions import Guess, Prediction, changed_first, named, shorten
from gradless.runs.record import DIVERGED, DONE
from gradless.runs.replay import shared_reward

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
FIXED, BROKEN, OTHERS = 12, 12, 8  # rows of each kind on the page
BRIEF = 3  # rows of each kind on a terminal
MOST_CLASSES = 50  # on the page
NUMBERS = {"probability": "p", "reward": "reward"}
"""What is shown beside an answer, and its heading."""
TERMINAL = 60  # characters of a text there


def outcome(record: RunRecord) -> Table:
    """Test metrics before and after, their difference, and the intervals of those that have some."""
    zero_shot, tuned = record.numbers("zero_shot"), record.numbers("test")
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    names = [name for name in (record.metric, *tuned, *zero_shot) if name in tuned or name in zero_shot]
    for name in unique(names):
        if record.rewarded and name == "loss":  # which is the reward, negative
            continue
        a, b = zero_shot.get(name), tuned.get(name)
        gain = None if a is None or b is None else b - a
        rows.append((Item(name), Item(_value(a)), Item(_value(b)), Item(_value(gain, "+.4f"))))
        records.append({"what": name, "zero_shot": a, "test": b, "difference": gain})
    for name in unique((record.metric, record.share)):
        intervals = {part: record.interval_of(name, part) for part in ("zero_shot", "test", "difference")}
        if not any(intervals.values()):
            continue
        texts = (_interval(ends, "+.3f" if part == "difference" else ".3f") for part, ends in intervals.items())
        rows.append((Item(f"{name}, 95 % interval"), *map(Item, texts)))
        for index, end in enumerate(("low", "high")):
            values = {part: ends and ends[index] for part, ends in intervals.items()}
            records.append({"what": f"{name}, {end} end", **values})
    count = shares(record).rows
    return Table(
        name="outcome",
        title=f"Test, {counted(count, 'row')}" if count else "Test",
        caption="The interval of the difference is paired: both models answered the same rows, so it is narrower than "
        "the two others suggest.",
        labels=1,
        columns=(Column("metric"), Column("zero-shot"), Column("tuned"), Column("difference")),
        rows=tuple(rows),
        records=tuple(records),
    )


def pass_at(record: RunRecord) -> Table | None:
    """Return pass@k before and after, the share of test rows of which one of k sampled texts passes, if it is known."""
    parts = {part: mapping(mapping(record.result.get("pass_at")).get(part)) for part in ("zero_shot", "test")}
    sizes = unique(k for shares in parts.values() for k in shares if k.isdecimal())
    if not sizes:
        return None
    rows, records = [], []
    for k in sorted(sizes, key=int):
        cells = {part: shares.get(k) for part, shares in parts.items()}
        values = {part: [*map(number, cell)] if isinstance(cell, list) else [] for part, cell in cells.items()}
        rows.append((Item(f"pass@{k}"), *(_share(value) for value in values.values())))
        records.append({"what": f"pass@{k}", **{part: value[0] if value else None for part, value in values.items()}})
    samples = next((shares["samples"] for shares in parts.values() if "samples" in shares), None)
    return Table(
        name="pass-at",
        title="One of k texts passes",
        caption="Share of test rows of which at least one of k sampled texts passes, estimated from "
        f"{show(samples)} a row (Chen et al. 2021), with 95 % intervals.",
        labels=1,
        columns=(Column("k"), Column("zero-shot"), Column("tuned")),
        rows=tuple(rows),
        records=tuple(records),
    )


def _share(value: list[float | None]) -> Item:
    """Return a share and its interval."""
    if len(value) != 3 or None in value:
        return Item()
    share, low, high = value
    return Item(f"{share:.3f} ({low:.3f} to {high:.3f})")


def reward_facts(record: RunRecord) -> dict[str, str]:
    """Return the reward functions of a run, and what they could not answer, by name."""
    if not record.rewarded:
        return {}
    names, weights = record.config.get("reward"), record.config.get("reward_weight") or []
    names = [str(name) for name in names] if isinstance(names, list | tuple) else []
    answers = mapping(record.result.get("rewards"))
    counts, error = finite(answers), str(answers.get("last_error") or "")
    for name in names:
        error = error.replace(name, shared_reward(name))
    functions = [shared_reward(name) for name in names]
    if len(weights) == len(functions):
        functions = [f"{show(weight)} \u00d7 {name}" for weight, name in zip(weights, functions, strict=True)]
    problems = {
        "without a reward": counts.get("missing"),
        "calls that raised": counts.get("raised"),
        "calls that took too long": counts.get("timed_out"),
        "steps whose members were all equal": counts.get("equal_steps"),
    }
    answered = f"{counts.get('completions', 0):,.0f} texts in {counts['calls']:,.0f} calls" if "calls" in counts else ""
    facts = {
        "reward": " + ".join(functions),
        "passes from": show(record.config.get("pass_reward", 1.0)),
        "scored": answered,
        **{name: f"{count:,.0f}" for name, count in problems.items() if count},
        "last error": error,
    }
    return {name: text for name, text in facts.items() if text}


def cost(record: RunRecord) -> Table:
    """Forwards, time, memory and what the checkpoint weighs."""
    facts = list(_facts(record))
    return Table(
        name="cost",
        title="What it took",
        caption="",
        labels=1,
        columns=(Column("quantity"), Column("value")),
        rows=tuple((Item(name), Item(text)) for name, text, _ in facts),
        records=tuple({"what": name, "value": value} for name, _, value in facts),
    )


def _facts(record: RunRecord) -> Iterator[tuple[str, str, float]]:
    steps, skipped = len(record.steps), sum(step.skipped for step in record.steps)
    more = f", {skipped:,} skipped" if skipped else ""
    more += f"; dev chose {record.selected:,}" if record.selected not in (None, steps) else ""
    yield "steps", f"{steps:,} of {record.planned:,}{more}", steps
    forwards = record.number("forwards") or sum(step.forwards or 0 for step in record.steps)
    if forwards:
        yield "forward passes", f"{forwards:,.0f}", forwards
    seconds = record.number("train_seconds") or sum(step.seconds or 0 for step in record.steps)
    if seconds:  # 0 is not known
        yield "training", f"{seconds:,.1f} s", seconds
    each = record.number("seconds_per_step")
    if each:
        yield "a step (median)", f"{each:.3g} s", each
    if forwards and seconds:
        yield "speed", f"{forwards / seconds:.3g} forwards / s", forwards / seconds
    sizes = {name: size for name, size in memory_rows(record) if size}
    for name, size in sizes.items():
        yield name, size_text(size), size
    peak, floor = sizes.get("training, peak"), sizes.get("inference, peak")
    if peak and floor:
        yield "training / inference", f"{peak / floor:.2f} \u00d7", peak / floor


def classes(record: RunRecord) -> Table | None:
    """Return the classes with their words and rows; None where there are none."""
    facts = record.data
    if facts is None or not facts.classes:
        return None
    splits = [split for split in SPLITS if any(one.rows.get(split) for one in facts.classes)]
    known = any(one.tokens is not None for one in facts.classes)
    rows = [
        (
            Item(one.label),
            Item(one.word),
            *([Item(show(one.tokens))] if known else []),
            *(Item(f"{one.rows.get(split, 0):,}") for split in splits),
        )
        for one in facts.classes[:MOST_CLASSES]
    ]
    more = len(facts.classes) - MOST_CLASSES
    return Table(
        name="classes",
        title="Classes",
        caption=f"And {more} more, which result.json names." if more > 0 else "",
        labels=1,
        columns=(
            Column("label"),
            Column("word"),
            *([Column("tokens")] if known else []),
            *(Column(split, "rows") for split in splits),
        ),
        rows=tuple(rows),
        records=tuple(
            {"label": one.label, "word": one.word, "tokens": one.tokens, **one.rows} for one in facts.classes
        ),
    )


def data_facts(record: RunRecord) -> dict[str, str]:
    """Return what else is known of the rows, by name."""
    facts = record.data
    if facts is None:
        return {}
    texts = {
        "rows": ", ".join(f"{count:,} {split}" for split, count in facts.rows.items() if count),
        "baseline": majority_line(facts).removeprefix("baseline: "),
        "answers": facts.answers,
        "cut": cut_line(facts) if facts.cut is not None else "",
        **_time(record, facts),
    }
    return {name: text for name, text in texts.items() if text}


def _time(record: RunRecord, facts: DataFacts) -> dict[str, str]:
    """Return what the steps took, or what a run that has not ended was expected to take."""
    seconds = record.number("train_seconds")
    if record.status in (DONE, DIVERGED) and seconds:
        return {"time": f"{duration(seconds)} for {counted(len(record.steps), 'step')}, without evaluations"}
    return {"expected time": f"{duration(facts.time.seconds)} ({facts.time.how})"} if facts.time is not None else {}


def memory_rows(record: RunRecord) -> list[tuple[str, float | None]]:
    """Bytes of what has a size: peaks, the tuned weights, the ledger."""
    peaks = [step.peak for step in record.steps if step.peak]
    return [
        ("training, peak", record.number("peak_memory_bytes") or max(peaks, default=None)),
        ("inference, peak", record.number("inference_memory_bytes") or record.inference_bytes),
        ("tuned weights", _weight_bytes(record)),
        ("ledger", record.number("ledger_bytes") or record.ledger_bytes),
    ]


def _weight_bytes(record: RunRecord) -> float | None:
    count = record.number("tuned_parameters") or number(record.header.get("tuned_parameters"))
    dtype = getattr(torch, str(record.header.get("dtype")), None)
    return count * dtype.itemsize if count and isinstance(dtype, torch.dtype) else None


def size_text(size: float) -> str:
    """``2.08 GB``, ``1.47 kB``; decimal units."""
    for unit, factor in UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 999.5 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} bytes"


def examples(record: RunRecord, *, brief: bool = False) -> list[Table]:
    """Test rows that tuning fixed, that it broke, that it changed otherwise, and a few others.

    Args:
        record: the run.
        brief: few rows with short texts, for a terminal.
    """
    labels = {one.word: one.label for one in record.data.classes if one.word} if record.data is not None else {}
    predictions = changed_first(named(record.predictions, labels))
    if record.rewarded:
        titles = ("Raised: a higher reward after tuning", "Lowered: a lower reward after tuning")
        predictions = sorted(predictions, key=lambda row: -abs(_gain(row)))
        fixed, broken = [row for row in predictions if _gain(row) > 0], [row for row in predictions if _gain(row) < 0]
    else:
        titles = ("Fixed: wrong before, right after", "Broken: right before, wrong after")
        fixed, broken = [row for row in predictions if row.fixed], [row for row in predictions if row.broken]
    rest = [row for row in predictions if row not in fixed and row not in broken]
    kinds = (
        ("fixed", fixed, FIXED, titles[0]),
        ("broken", broken, BROKEN, titles[1]),
        ("others", rest, OTHERS, "Others" if fixed or broken else "Test rows"),
    )
    return [
        _examples(f"examples-{name}", title, rows[: BRIEF if brief else most], len(rows), brief=brief)
        for name, rows, most, title in kinds
        if rows
    ]


def _gain(row: Prediction) -> float:
    """Return how much higher the reward is after tuning; 0 where one is not known."""
    if row.before is None or row.before.reward is None or row.after.reward is None:
        return 0.0
    return row.after.reward - row.before.reward


def _examples(name: str, title: str, shown: list[Prediction], total: int, *, brief: bool) -> Table:
    compared = any(row.before for row in shown)
    guesses = [guess for row in shown for guess in (row.before, row.after) if guess]
    beside = "reward" if any(guess.reward is not None for guess in guesses) else "probability"
    heads = ("says", NUMBERS[beside]) if any(getattr(guess, beside) is not None for guess in guesses) else ("says",)
    gold = any(row.gold for row in shown)
    rows, records = [], []
    for row in shown:
        texts = [Item(row.text), *([Item(" / ".join(unique(row.gold[:3])))] if gold else [])]
        answers = [row.before, row.after] if compared else [row.after]
        items = [*texts, *(item for guess in answers for item in _guess(guess, beside)[: len(heads)])]
        rows.append(tuple(item._replace(text=_line(item.text)) if brief else item for item in items))
        records.append(_record(row))
    return Table(
        name=name,
        title=f"{title} ({len(shown)} of {total})" if total > len(shown) else f"{title} ({total})",
        caption="",
        labels=1,
        columns=(
            Column("text"),
            *([Column("gold")] if gold else []),
            *(Column(head, group) for group in (("zero-shot",) if compared else ()) for head in heads),
            *(Column(head, "tuned") for head in heads),
        ),
        rows=tuple(rows),
        records=tuple(records),
    )


def _guess(guess: Guess | None, beside: str) -> tuple[Item, Item]:
    """What a model answered, and its probability or reward."""
    if guess is None:
        return Item(), Item()
    value = getattr(guess, beside)
    return Item(guess.text or "(nothing)", warn=not guess.right), Item(_value(value, ".2f"))


def _record(row: Prediction) -> dict[str, Any]:
    guesses = (("before", row.before), ("after", row.after))
    fields = {f"{name}_{field}": getattr(guess, field) for name, guess in guesses if guess for field in Guess._fields}
    return {"row": row.row, "text": row.text, "gold": " / ".join(row.gold), **fields}


def _line(text: str) -> str:
    """One short line for a terminal, without anything that a terminal would obey."""
    return shorten("".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split())), TERMINAL)


def _value(value: float | None, form: str = ".4f") -> str:
    return NOTHING if value is None else f"{value:{form}}"


def _interval(ends: tuple[float, float] | None, form: str) -> str:
    return NOTHING if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"
