"""The tables of one run: what it reached, what it cost, and rows before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gradless.report.common.numbers import counted, number
from gradless.report.common.table import NOTHING, Column, Item, Table
from gradless.report.run.record import RunRecord
from gradless.report.run.verdict import shares
from gradless.runs.predictions import Guess, Prediction, changed_first, shorten

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
PARTS = (("zero_shot", "zero-shot"), ("test", "tuned"))
FIXED, BROKEN, OTHERS = 12, 12, 8  # rows of each kind on the page
BRIEF = 3  # rows of each kind on a terminal
TERMINAL = 60  # characters of a text there


def outcome(record: RunRecord) -> Table:
    """Test metrics before and after, their difference, and the intervals of the share of right answers."""
    before, after = (record.numbers(part) for part, _ in PARTS)
    names = [name for name in (record.metric, *after, *before) if name in after or name in before]
    rows: list[tuple[Item, ...]] = []
    records = []
    for name in dict.fromkeys(names):
        a, b = before.get(name), after.get(name)
        gain = None if a is None or b is None else b - a
        rows.append((Item(name), Item(_value(a)), Item(_value(b)), Item(_value(gain, "+.4f"))))
        records.append({"what": name, "zero_shot": a, "test": b, "difference": gain})
    ends = {part: record.interval(part) for part in ("zero_shot", "test", "difference")}
    if any(ends.values()):
        texts = (Item(_ends(found, "+.3f" if part == "difference" else ".3f")) for part, found in ends.items())
        rows.append((Item("share right, 95 % interval"), *texts))
        for place, which in enumerate(("low", "high")):
            values = {part: found and found[place] for part, found in ends.items()}
            records.append({"what": f"share right, {which} end", **values})
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
    taken, skipped = len(record.steps), sum(step.skipped for step in record.steps)
    more = f", {skipped:,} skipped" if skipped else ""
    more += f"; dev chose {record.selected:,}" if record.selected not in (None, taken) else ""
    yield "steps", f"{taken:,} of {record.planned:,}{more}", taken
    forwards = record.number("forwards") or sum(step.forwards or 0 for step in record.steps)
    yield "forward passes", f"{forwards:,.0f}", forwards
    seconds = record.number("train_seconds") or sum(step.seconds or 0 for step in record.steps)
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
    found = changed_first(record.predictions)
    fixed = [one for one in found if one.fixed]
    broken = [one for one in found if one.broken]
    rest = [one for one in found if not (one.fixed or one.broken)]
    about = {
        "fixed": (fixed, FIXED, "Fixed: wrong before, right after"),
        "broken": (broken, BROKEN, "Broken: right before, wrong after"),
        "others": (rest, OTHERS, "Others" if fixed or broken else "Test rows"),
    }
    tables = []
    for name, (rows, most, title) in about.items():
        shown = rows[: BRIEF if brief else most]
        if rows:
            tables.append(_examples(f"examples-{name}", title, shown, len(rows), brief=brief))
    return tables


def _examples(name: str, title: str, shown: list[Prediction], total: int, *, brief: bool) -> Table:
    compared = any(one.before for one in shown)
    sure = any(guess.probability is not None for one in shown for guess in (one.before, one.after) if guess)

    def line(text: str) -> str:
        return _line(text) if brief else text

    share = (Column("p"),) if sure else ()
    before = tuple(column._replace(group="zero-shot") for column in (Column("says"), *share)) if compared else ()
    after = tuple(column._replace(group="tuned") for column in (Column("says"), *share))
    rows, records = [], []
    for one in shown:
        gold = " / ".join(dict.fromkeys(one.gold[:3]))
        guesses = [one.before, one.after] if compared else [one.after]
        said = [item for guess in guesses for item in _said(guess, sure=sure)]
        said = [item._replace(text=line(item.text)) for item in said]
        rows.append((Item(line(one.text)), Item(line(gold)), *said))
        records.append(_record(one))
    return Table(
        name=name,
        title=f"{title} ({len(shown)} of {total})" if total > len(shown) else f"{title} ({total})",
        caption="",
        labels=1,
        columns=(Column("text"), Column("gold"), *before, *after),
        rows=tuple(rows),
        records=tuple(records),
    )


def _said(guess: Guess | None, *, sure: bool) -> Iterator[Item]:
    yield Item(guess.text or "(nothing)", warn=not guess.right) if guess else Item()
    if sure:
        yield Item(f"{guess.probability:.2f}" if guess and guess.probability is not None else NOTHING)


def _record(one: Prediction) -> dict[str, Any]:
    guesses = (("before", one.before), ("after", one.after))
    said = {f"{name}_{field}": getattr(guess, field) for name, guess in guesses if guess for field in Guess._fields}
    return {"row": one.row, "text": one.text, "gold": " / ".join(one.gold), **said}


def _line(text: str) -> str:
    """One short line for a terminal, without anything that a terminal would obey."""
    words = " ".join(text.split())
    return shorten("".join(c if c.isprintable() else "\ufffd" for c in words), TERMINAL)


def _value(value: float | None, form: str = ".4f") -> str:
    return NOTHING if value is None else f"{value:{form}}"


def _ends(found: tuple[float, float] | None, form: str) -> str:
    return NOTHING if found is None else f"{found[0]:{form}} to {found[1]:{form}}"
