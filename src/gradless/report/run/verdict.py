"""Whether a run made the model better, as numbers and in one plain sentence that does not flatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradless.lm.metrics import SHARES
from gradless.report.common.numbers import counted
from gradless.report.run.record import UNFINISHED, RunRecord
from gradless.runs.facts import baseline
from gradless.runs.record import DIVERGED, INTERRUPTED

BETTER, WORSE, UNCLEAR, UNKNOWN = "better", "worse", "unclear", "unknown"


class Shares(NamedTuple):
    """Right answers on test, before and after; what is not known is None."""

    rows: int | None
    before: float | None
    after: float | None
    fixed: int | None
    """Rows that were wrong before and are right after."""
    broken: int | None

    @property
    def gain(self) -> float | None:
        """After minus before."""
        return None if self.before is None or self.after is None else self.after - self.before


class Verdict(NamedTuple):
    """A kind (``better``, ``worse``, ``unclear``, ``unknown``) and a sentence or two."""

    kind: str
    text: str
    baseline: str = ""
    """A sentence where the result does not clearly beat the most frequent answer."""


def shares(record: RunRecord) -> Shares:
    """The share of right answers before and after; the result's own numbers where it has them."""
    first = record.evaluation("test", 0)
    last = record.evaluation("test", record.selected) if record.selected else None
    pairs = list(zip(first.right, last.right, strict=False)) if first and last else []
    if not pairs:
        known = [(row.before.right, row.after.right) for row in record.predictions if row.before]
        pairs = known if len(known) == len(record.predictions) else []
    rows = len(last.right) if last and last.right else len(record.predictions)
    return Shares(
        rows or None,
        _share(record, "zero_shot", first.right if first else ()),
        _share(record, "test", last.right if last else ()),
        sum(after and not before for before, after in pairs) if pairs else None,
        sum(before and not after for before, after in pairs) if pairs else None,
    )


def _share(record: RunRecord, part: str, right: Sequence[bool]) -> float | None:
    numbers = record.numbers(part)
    names = ("passed",) if record.rewarded else SHARES
    known = next((numbers[name] for name in names if name in numbers), None)
    return sum(right) / len(right) if known is None and numbers and right else known


def verdict(record: RunRecord) -> Verdict:
    """Better, worse or unclear, from the paired 95 % interval, and a sentence; unknown without a comparison."""
    if record.status in (UNFINISHED, INTERRUPTED):
        return Verdict(UNKNOWN, _unfinished(record))
    kind, text, _ = _compared(record)
    if record.status != DIVERGED:
        return Verdict(kind, text, _baseline(record))
    lead = f"The run diverged after {counted(len(record.steps), 'step')} of {record.planned:,}: its losses were no "
    lead += "longer finite numbers. Lower --lr or --eps. "
    at = f"What was scored are the weights of step {record.selected:,}. " if record.selected and text else ""
    return Verdict(kind, (lead + at + text).strip(), _baseline(record))


def _baseline(record: RunRecord) -> str:
    """Return a sentence where the result does not clearly beat the most frequent answer."""
    compared = baseline(record.result)
    if compared is None or compared.beaten:
        return ""
    return f"{compared.sentence[:1].upper()}{compared.sentence[1:]}."


def _unfinished(record: RunRecord) -> str:
    ended = "was interrupted" if record.status == INTERRUPTED else "has not finished"
    text = f"The run {ended}: {len(record.steps):,} of {counted(record.planned, 'step')} taken, test not scored. "
    dev = [one for one in record.evaluations if one.split == "dev"]
    metric = [(one.step, one.metrics[record.metric]) for one in dev if record.metric in one.metrics]
    loss = [(one.step, one.loss) for one in dev if one.loss is not None]
    for name, points in ((record.metric, metric), ("loss", loss)):
        if len(points) > 1:
            (first, a), (last, b) = points[0], points[-1]
            text += f"So far dev {name} went from {a:.3f} at step {first:,} to {b:.3f} at step {last:,}. "
            break
    again = "Run the same command with --resume to continue it."
    restarts = record.preset is not None and not record.preset.replays
    return text + ("Such a method starts over with --resume." if restarts else again)


def _compared(record: RunRecord) -> Verdict:
    right = shares(record)
    rows = counted(right.rows, "test row") if right.rows else "test"
    if not record.numbers("test"):
        return Verdict(UNKNOWN, "There were no test rows, so nothing is known of unseen data." + _dev_losses(record))
    if record.rewarded:
        ends, size, interval, about = _rewards(record, rows)
    else:
        ends, size, interval, about = _points(record, right, rows)
    if ends is None:
        return Verdict(UNKNOWN, f"{about}; the untouched model was not evaluated, so there is nothing to compare with.")
    low, high = ends
    changed = "" if right.fixed is None else f" It fixed {counted(right.fixed, 'row')} and broke {right.broken:,}."
    if low > 0:
        return Verdict(BETTER, f"Tuning helped: {size} ({interval}).{changed}")
    if high < 0:
        return Verdict(WORSE, f"Tuning made the model worse: {size} ({interval}).{changed}")
    text = f"No clear change: {size}, but the {interval} includes zero.{changed}"
    return Verdict(UNCLEAR, text + " More test rows would narrow it.")


class Difference(NamedTuple):
    """What tuning changed: the 95 % interval if it is known, and how sentences say the size, the interval, the rest."""

    ends: tuple[float, float] | None
    size: str
    interval: str
    about: str
    """What is known where nothing can be compared."""


def _points(record: RunRecord, right: Shares, rows: str) -> Difference:
    ends = record.interval("difference") if right.gain is not None else None
    about = f"{right.after:.1%} of {rows} are right" if right.after is not None else "Test was scored"
    if ends is None or right.gain is None:
        return Difference(None, "", "", about)
    interval = f"95 % interval {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"
    return Difference(ends, f"{100 * right.gain:+.1f} points on {rows}", interval, about)


def _rewards(record: RunRecord, rows: str) -> Difference:
    name = record.metric
    first, last = record.numbers("zero_shot").get(name), record.numbers("test").get(name)
    ends = record.interval_of(name, "difference")
    about = f"The mean reward of {rows} is {last:.3f}" if last is not None else "Test was scored, without any reward"
    if ends is None or first is None or last is None:
        return Difference(None, "", "", about)
    size = f"the mean reward of {rows} went from {first:.3f} to {last:.3f}"
    return Difference(ends, size, f"95 % interval of the difference {ends[0]:+.3f} to {ends[1]:+.3f}", about)


def _dev_losses(record: RunRecord) -> str:
    first, last = record.evaluation("dev", 0), record.evaluation("dev", record.selected)
    if first is None or last is None or first.loss is None or last.loss is None:
        return ""
    return f" Dev loss went from {first.loss:.3f} to {last.loss:.3f}."
