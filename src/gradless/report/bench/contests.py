"""Cells of a task that compete on equal terms, at equal forwards, seconds or memory, and the intervals of every pair.

Only cells that have all seeds take part; the others are listed with what they lack. Intervals need scipy.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from gradless.report.bench.budgets import amount, budget, curve, value_within
from gradless.report.bench.intervals import Interval, Spread, interval, moderated, residual_variances
from gradless.report.bench.study import Cell, Results, Run, Section, Study, memory_ratio
from gradless.report.common.numbers import median, metric_of, unique
from gradless.runs import predictions
from gradless.system.side_files import read_jsonl

LIMITS = (1.1, 1.25, 1.5, 2.0, float("inf"))
"""Multiples of the memory of inference within which methods compete."""


class Contest(NamedTuple):
    """Cells of one task that compete: results by cell, in the order of the seeds."""

    task: str
    group: str
    """The scheme; of a contest over memory empty."""
    budget: str
    """What they compete within, for people."""
    split: str
    values: dict[Cell, list[float]]
    waiting: dict[Cell, str]
    """Cells that are not ranked, and why: "2 of 3 seeds"."""

    @property
    def means(self) -> dict[Cell, float]:
        """Mean over seeds."""
        return {cell: statistics.fmean(values) for cell, values in self.values.items()}

    @property
    def order(self) -> list[Cell]:
        """Ranked cells, the best first."""
        means = self.means
        return sorted(means, key=lambda cell: -means[cell])


class Pair(NamedTuple):
    """Two cells of a contest, the better one first."""

    better: Cell
    worse: Cell
    interval: Interval | None

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and self.interval.apart


Rows = Callable[[Cell], list[dict[str, bool]] | None]


def contests(study: Study, section: Section, view: str) -> list[Contest]:
    """Return a contest for each task and scheme, at equal ``forwards`` or ``seconds``.

    At equal forwards the test result counts where all runs have spent the same, up to a step; else, and at equal
    seconds, the last dev result (`value_within`) within the smallest total, or within the latest first evaluation.
    """
    cells = study.within(section)
    listed = []
    for task, scheme in unique((cell.task, cell.scheme) for cell in cells):
        group = {cell: results for cell, results in cells.items() if (cell.task, cell.scheme) == (task, scheme)}
        ranked = {cell: _by_seed(study, results) for cell, results in group.items() if study.complete(results)}
        waiting = {cell: study.lacking(results) for cell, results in group.items() if cell not in ranked}
        runs = [run for some in ranked.values() for run in some]
        split, limit = "dev", _common(runs, view)
        if view == "forwards" and _same_forwards(runs):
            split = "test"
            limit = max((run.number("forwards") or 0.0 for run in runs), default=None)
        if not ranked or not limit:
            listed += [Contest(task, scheme, "", split, {}, waiting)] if waiting else []
            continue
        values: dict[Cell, list[float | None]] = {
            cell: [
                run.metric("test", metric_of(task)) if split == "test" else value_within(run, view, limit)
                for run in some
            ]
            for cell, some in ranked.items()
        }
        kept = {cell: [v for v in some if v is not None] for cell, some in values.items() if None not in some}
        waiting |= {cell: f"no {split} result within it" for cell in ranked if cell not in kept}
        listed.append(Contest(task, scheme, amount(limit, view), split, kept, waiting))
    return listed


def memory_contests(study: Study, section: Section) -> list[Contest]:
    """Return a contest for each task and multiple of the memory of inference: test results, all schemes together."""
    cells = study.within(section)
    listed = []
    for task in unique(cell.task for cell in cells):
        group = {cell: results for cell, results in cells.items() if cell.task == task}
        tests: dict[Cell, list[float | None]] = {
            cell: [run.metric("test", metric_of(task)) for run in _by_seed(study, results)]
            for cell, results in group.items()
            if study.complete(results)
        }
        memory = {cell: median(map(memory_ratio, group[cell].done)) for cell in group}
        waiting = {cell: study.lacking(group[cell]) for cell in group if cell not in tests}
        waiting |= {cell: "no memory measured" for cell in tests if memory[cell] is None}
        ranked = -1
        for limit in LIMITS:
            fit = {
                cell: [v for v in some if v is not None]
                for cell, some in tests.items()
                if None not in some and (ratio := memory[cell]) is not None and ratio <= limit
            }
            if fit and len(fit) > ranked:
                text = "any memory" if limit == LIMITS[-1] else f"{limit:g} \u00d7 inference"
                listed.append(Contest(task, "", text, "test", fit, waiting))
                ranked = len(fit)
    return listed


def _common(runs: Sequence[Run], view: str) -> float | None:
    """The smallest total of runs, or their latest first evaluation where that is later; None without evaluations."""
    curves = [points for points in map(curve, runs) if points]
    total = budget(runs, view)
    return None if total is None else max(total, *(getattr(points[0], view) for points in curves))


def _by_seed(study: Study, results: Results) -> list[Run]:
    by_seed = {repr(run.seed): run for run in results.done}
    return [by_seed[repr(seed)] for seed in study.seeds]


def _same_forwards(runs: Sequence[Run]) -> bool:
    """Whether runs have spent equally many forwards, up to a step of the dearest method."""
    spent = [run.number("forwards") for run in runs]
    known = [forwards for forwards in spent if forwards]
    step = max((run.number("forwards_per_step") or 0.0 for run in runs), default=0.0)
    return bool(known) and len(known) == len(runs) and max(known) - min(known) < max(step, 1.0)


def spreads(listed: Sequence[Contest]) -> list[dict[Cell, Spread]]:
    """Return for each contest the variance of a run of its cells, moderated over the cells of a scheme.

    Contests of one task and scheme are nested, as multiples of the memory of inference are. Their cells are the same
    runs, so each has one variance, that of the widest contest.
    """
    widest: dict[tuple[str, str], Contest] = {}
    for one in sorted(listed, key=lambda contest: len(contest.values)):
        widest[one.task, one.group] = one
    every = {(key, cell): value for key, one in widest.items() for cell, value in _variances(one).items()}
    pooled: dict[tuple[tuple[str, str], Cell], Spread] = {}
    for scheme in unique(cell.scheme for _, cell in every):
        pooled |= moderated({key: value for key, value in every.items() if key[1].scheme == scheme})
    keys = [(one.task, one.group) for one in listed]
    return [
        {cell: pooled[key, cell] for cell in one.values if (key, cell) in pooled}
        for key, one in zip(keys, listed, strict=True)
    ]


def _variances(contest: Contest) -> dict[Cell, Spread]:
    """Return the variance of each cell as far as pairing by seed leaves one; nothing of one cell or one seed."""
    several = len(contest.values) > 1 and len(next(iter(contest.values.values()))) > 1
    return residual_variances(contest.values) if several else {}


def pairs(contest: Contest, variances: Mapping[Cell, Spread], rows: Rows) -> list[Pair]:
    """Return every pair of ranked cells with its interval, the best first."""
    listed = []
    for better, worse in combinations(contest.order, 2):
        known = None
        if better in variances and worse in variances:
            right = (rows(better), rows(worse)) if contest.split == "test" else (None, None)
            both = (right[0], right[1]) if right[0] is not None and right[1] is not None else None
            if both is not None and any(one.keys() != other.keys() for one, other in zip(*both, strict=True)):
                both = None
            known = interval(contest.values[better], contest.values[worse], (variances[better], variances[worse]), both)
        listed.append(Pair(better, worse, known))
    return listed


def row_reader(study: Study) -> Rows:
    """Return a function that gives, for each seed of a cell, which test rows are right, by their texts.

    It gives None where a run's ``predictions.jsonl`` is gone or damaged, or does not give the run's test result.
    """
    cache: dict[Cell, list[dict[str, bool]] | None] = {}

    def rows(cell: Cell) -> list[dict[str, bool]] | None:
        if cell not in cache:
            each = [_rows(study, run) for run in _by_seed(study, study.cells[cell])]
            cache[cell] = [one for one in each if one] if all(each) else None
        return cache[cell]

    return rows


def _rows(study: Study, run: Run) -> dict[str, bool]:
    lines, damaged = read_jsonl(study.folder / "runs" / run.id / predictions.FILE)
    right: dict[str, bool] = {}
    copies: Counter[str] = Counter()
    try:
        for line in lines:
            text = json.dumps([line["text"], line["gold"]])
            copies[text] += 1
            right[f"{text} {copies[text]}"] = bool(line["after"]["right"])
    except (KeyError, TypeError):
        return {}
    value = run.metric("test", metric_of(run.cell.task))
    same = value is not None and not damaged and abs(value * len(right) - sum(right.values())) < 1e-6
    return right if same else {}
