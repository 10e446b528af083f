"""What came of a run, as numbers and in one plain sentence that does not flatter."""

from __future__ import annotations

from typing import NamedTuple

from gradless.lm.metrics import SHARES
from gradless.report.common.numbers import counted
from gradless.report.run.record import UNFINISHED, RunRecord
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


def shares(record: RunRecord) -> Shares:
    """The share of right answers before and after; the result's own numbers where it has them."""
    at = record.selected
    before, after = record.evaluation("test", 0), record.evaluation("test", at) if at else None
    pairs = list(zip(before.right, after.right, strict=False)) if before and after else []
    if not pairs:
        known = [(found.before.right, found.after.right) for found in record.predictions if found.before]
        pairs = known if len(known) == len(record.predictions) else []
    rows = len(after.right) if after and after.right else len(record.predictions)
    return Shares(
        rows or None,
        _share(record, "zero_shot", before.right if before else ()),
        _share(record, "test", after.right if after else ()),
        sum(b and not a for a, b in pairs) if pairs else None,
        sum(a and not b for a, b in pairs) if pairs else None,
    )


def _share(record: RunRecord, part: str, right: tuple[bool, ...]) -> float | None:
    found = record.numbers(part)
    for name in SHARES:
        if name in found:
            return found[name]
    return sum(right) / len(right) if found and right else None


def verdict(record: RunRecord) -> Verdict:
    """What a reader should take away."""
    if record.status in (UNFINISHED, INTERRUPTED):
        return Verdict(UNKNOWN, _unfinished(record))
    kind, text = _compared(record)
    if record.status == DIVERGED:
        lead = f"The run diverged after {counted(len(record.steps), 'step')} of {record.planned:,}: its losses were no "
        lead += "longer finite numbers. Lower --lr or --eps. "
        at = f"What was scored are the weights of step {record.selected:,}. " if record.selected and text else ""
        return Verdict(kind, (lead + at + text).strip())
    return Verdict(kind, text)


def _unfinished(record: RunRecord) -> str:
    ended = "was interrupted" if record.status == INTERRUPTED else "has not finished"
    text = f"The run {ended}: {len(record.steps):,} of {counted(record.planned, 'step')} taken, test not scored. "
    dev = [found for found in record.evaluations if found.split == "dev"]
    seen = [(found.step, found.metrics.get(record.metric, None), found.loss) for found in dev]
    for place, name in ((1, record.metric), (2, "loss")):
        known = [(one[0], one[place]) for one in seen if one[place] is not None]
        if len(known) > 1:
            (first, a), (last, b) = known[0], known[-1]
            text += f"So far dev {name} went from {a:.3f} at step {first:,} to {b:.3f} at step {last:,}. "
            break
    preset = record.preset
    again = "Run the same command with --resume to continue it."
    return text + (again if preset is None or preset.replays else "Such a method starts over with --resume.")


def _compared(record: RunRecord) -> Verdict:
    found, ends = shares(record), record.interval("difference")
    rows = counted(found.rows, "test row") if found.rows else "test"
    if not record.numbers("test"):
        return Verdict(UNKNOWN, "There were no test rows, so nothing is known of unseen data." + _dev_words(record))
    if found.gain is None or ends is None:
        about = f"{found.after:.1%} of {rows} are right" if found.after is not None else "Test was scored"
        return Verdict(UNKNOWN, f"{about}; the untouched model was not evaluated, so there is nothing to compare with.")
    low, high = ends
    size = f"{100 * found.gain:+.1f} points on {rows}"
    moved = "" if found.fixed is None else f" It fixed {counted(found.fixed, 'row')} and broke {found.broken:,}."
    between = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if low > 0:
        return Verdict(BETTER, f"Tuning helped: {size} ({between}).{moved}")
    if high < 0:
        return Verdict(WORSE, f"Tuning made the model worse: {size} ({between}).{moved}")
    text = f"No clear change: {size}, but the {between} includes zero.{moved}"
    return Verdict(UNCLEAR, text + " More test rows would narrow it.")


def _dev_words(record: RunRecord) -> str:
    first, last = record.evaluation("dev", 0), record.evaluation("dev", record.selected)
    if first is None or last is None or first.loss is None or last.loss is None:
        return ""
    return f" Dev loss went from {first.loss:.3f} to {last.loss:.3f}."
