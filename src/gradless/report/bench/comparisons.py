"""Which methods are told apart: tables at equal forwards, at equal seconds of training, and at equal memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradless.report.bench.contests import Contest, Pair, contests, memory_contests, pairs, row_reader, spreads
from gradless.report.bench.intervals import Interval
from gradless.report.bench.study import Cell, Section, Study, axis_name
from gradless.report.common.numbers import Score, counted, metric_of, score, unique
from gradless.report.common.table import NOTHING, Column, Item, Table, score_record, score_text

VIEWS = ("forwards", "seconds")
MARGIN = 0.03
"""A difference that a study should tell: three points of accuracy."""
MOST_NAMED = 3
POOLED = (
    "Intervals are t intervals of the difference, paired by seed, whose variances are moved towards those of the other "
    "cells of the scheme by as much as these are alike (Smyth 2004): of three seeds alone an interval has two degrees "
    "of freedom and would be about twice as wide, and one variance for all would flatter the unsteady methods."
)


Judged = Sequence[tuple[Contest, list[Pair]]]


def comparison_tables(study: Study, section: Section) -> list[Table]:
    """Return the table of each view, and one that counts which pairs are told apart."""
    rows = row_reader(study)
    views = {view: contests(study, section, view) for view in VIEWS} | {"memory": memory_contests(study, section)}
    judged = {
        view: [(one, pairs(one, spread, rows)) for one, spread in zip(listed, spreads(listed), strict=True)]
        for view, listed in views.items()
    }
    tables = [_view(study, section, view, judged[view]) for view in VIEWS]
    return [*tables, _memory(study, section, judged["memory"]), _counts(study, section, judged)]


def _view(study: Study, section: Section, view: str, judged: Judged) -> Table:
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    for contest, compared in judged:
        to_best = {pair.worse: pair for pair in compared if pair.better == contest.order[0]}
        label = Item(
            ", ".join(part for part in (f"{contest.task} · {contest.group}", contest.budget, contest.split) if part)
        )
        for cell in [*contest.order, *contest.waiting]:
            mean = score(contest.values.get(cell, ()))
            items = _against_best(cell, contest, to_best.get(cell), mean)
            rows.append((label, Item(cell.label), *items))
            known = to_best[cell].interval if cell in to_best else None
            records.append(
                _named(cell, view, contest)
                | score_record(mean)
                | _interval_record(known)
                | {"not_ranked": contest.waiting.get(cell)}
            )
    never = len(study.not_begun(section))
    left_out = f" {counted(never, 'cell has', 'cells have')} no result yet and no row." if never else ""
    return Table(
        name=f"compare-{view}{study.suffix(section)}",
        title=f"Against the best at equal {view}{study.title(section)}",
        caption=f"{_where_from(view)} Bold: the best of the group. Difference to it in points (hundredths), "
        f"with its 95 % interval; told apart: the interval leaves out zero, {_paired(judged)}. {POOLED} Cells that "
        f"lack seeds are not ranked.{left_out}",
        labels=2,
        columns=tuple(map(Column, ("Group", "Method", "result", "to the best", "95 % interval", "told apart"))),
        rows=tuple(rows),
        records=tuple(records),
    )


def _where_from(view: str) -> str:
    if view == "forwards":
        return (
            "Test results where all runs of the group have spent equally many forwards, up to a step; else the last "
            "dev results within the smallest total, or within the latest first evaluation where that is later."
        )
    return (
        "The last dev results within the smallest total of the group, or within the latest first evaluation where that "
        "is later; seconds are of training steps, on the machine that made each run."
    )


def _paired(judged: Judged) -> str:
    """Which pairing the intervals have, for a caption."""
    kinds = unique(pair.interval.pairs for _, compared in judged for pair in compared if pair.interval)
    return f"paired over {' or '.join(kinds)}" if kinds else "which needs two methods and two seeds"


def _against_best(cell: Cell, contest: Contest, pair: Pair | None, mean: Score | None) -> list[Item]:
    if cell in contest.waiting:
        return [Item(contest.waiting[cell]), Item(), Item(), Item()]
    text = Item(score_text(mean, usual=mean.n if mean else None), best=pair is None)
    if pair is None:
        return [text, Item(), Item(), Item()]
    difference = contest.means[pair.better] - contest.means[pair.worse]
    wide = difference > MARGIN and not pair.apart
    ends = NOTHING if pair.interval is None else ends_text(-pair.interval.high, -pair.interval.low)
    verdict = NOTHING if pair.interval is None else "yes" if pair.apart else "no"
    return [text, Item(f"{-100 * difference:+.1f}"), Item(ends), Item(verdict, warn=wide and pair.interval is not None)]


def ends_text(low: float, high: float) -> str:
    """An interval in points: ``-4.1 to +0.3``."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _named(cell: Cell, view: str, contest: Contest) -> dict[str, Any]:
    named = {name: getattr(cell, name) for name in ("model", "task", "aligned", "scheme", "method")}
    named |= {axis_name(name): value for name, value in cell.extras}
    return named | {"view": view, "budget": contest.budget, "split": contest.split, "metric": metric_of(cell.task)}


def _interval_record(known: Interval | None) -> dict[str, Any]:
    """Difference of the better to the other one, in the metric's unit."""
    if known is None:
        return dict.fromkeys(("behind", "low", "high", "paired_over", "told_apart"))
    ends = {"behind": known.difference, "low": known.low, "high": known.high}
    return {**ends, "paired_over": known.pairs, "told_apart": known.apart}


def _memory(study: Study, section: Section, judged: Judged) -> Table:
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    for contest, compared in judged:
        best, *others = contest.order
        pair = next((pair for pair in compared if pair.better == best), None)
        alike = [p.worse for p in compared if p.better == best and p.interval is not None and not p.apart]
        ends = NOTHING if pair is None or pair.interval is None else ends_text(pair.interval.low, pair.interval.high)
        more = f"{contest.means[best] - contest.means[others[0]]:.3f}" if others else ""
        second = f"{full_name(others[0])} ({float(more) * 100:+.1f})" if others else NOTHING
        result = score_text(score(contest.values[best]), usual=len(study.seeds))
        texts = (str(len(contest.values)), full_name(best), result, second, ends, listed(map(full_name, alike)))
        rows.append((Item(contest.task), Item(contest.budget), *map(Item, texts)))
        for cell in contest.order:
            records.append(_named(cell, "memory", contest) | score_record(score(contest.values[cell])))
    waiting = unique(
        f"{full_name(cell)} on {cell.task}: {why}" for contest, _ in judged for cell, why in contest.waiting.items()
    )
    return Table(
        name=f"compare-memory{study.suffix(section)}",
        title=f"The best within a multiple of the memory of inference{study.title(section)}",
        caption="Test results, all schemes together; peak memory of training over that of an evaluation, medians over "
        "seeds. Of the second best: how many points the best is ahead, with the 95 % interval of that "
        f"({_paired(judged)}). Not told apart: from the best. A multiple within which no more methods fit than within "
        f"the one above is left out.{f' Not ranked: {listed(waiting, most=8)}.' if waiting else ''}",
        labels=2,
        columns=tuple(
            map(
                Column,
                ("Task", "Memory", "methods", "best", "result", "second (behind)", "95 % interval", "not told apart"),
            )
        ),
        rows=tuple(rows),
        records=tuple(records),
    )


def full_name(cell: Cell) -> str:
    """Label and scheme."""
    return f"{cell.label} · {cell.scheme}"


def listed(names: Iterable[str], *, most: int = MOST_NAMED) -> str:
    """The first names, and how many more there are."""
    each = list(names)
    more = f" and {len(each) - most} more" if len(each) > most else ""
    return ", ".join(each[:most]) + more if each else NOTHING


def _counts(study: Study, section: Section, judged: Mapping[str, Judged]) -> Table:
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    for view in VIEWS:
        for contest, compared in judged[view]:
            known = [pair for pair in compared if pair.interval is not None]
            if not known:
                continue
            far = [pair for pair in known if pair.interval is not None and pair.interval.difference > MARGIN]
            missed = [f"{pair.better.label} and {pair.worse.label}" for pair in far if not pair.apart]
            counts = (len(contest.values), len(known), sum(p.apart for p in known), len(far), len(far) - len(missed))
            label = (f"equal {view}", f"{contest.task} · {contest.group}, {contest.split}")
            rows.append((*map(Item, label), *(Item(str(count)) for count in counts), Item(listed(missed))))
            for pair in compared:
                named = _named(pair.better, view, contest) | {"other": pair.worse.label}
                records.append(named | _interval_record(pair.interval))
    return Table(
        name=f"compare-pairs{study.suffix(section)}",
        title=f"Pairs of methods that are told apart{study.title(section)}",
        caption="Of all pairs of ranked methods, those whose 95 % interval leaves out zero; then of those that differ "
        f"by more than {100 * MARGIN:.0f} points. Each interval stands for itself: of twenty pairs that are equal "
        "one is told apart by chance. The CSV has every pair.",
        labels=2,
        columns=(
            *map(Column, ("View", "Group", "methods", "pairs", "told apart")),
            *(
                Column(text, f"differ by more than {100 * MARGIN:.0f} points")
                for text in ("pairs", "told apart", "not")
            ),
        ),
        rows=tuple(rows),
        records=tuple(records),
    )
