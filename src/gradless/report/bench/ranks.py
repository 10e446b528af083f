"""Mean ranks of methods over tasks, with Friedman's test and Nemenyi's critical difference.

As in Demšar 2006 (JMLR 7:1-30). Needs scipy for the tests.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from gradless.report.bench.contests import Contest, contests
from gradless.report.bench.intervals import LEVEL
from gradless.report.bench.study import Section, Study
from gradless.report.common.numbers import comparable, counted, unique
from gradless.report.common.table import Column, Item, Table

FEWEST = 3
"""Tasks, and methods, below which there is no test."""


class Ranking(NamedTuple):
    """Mean ranks of the methods of a scheme over tasks; rank 1 is the best."""

    scheme: str
    tasks: list[str]
    ranks: dict[str, float]
    """By label, over tasks."""
    seed_ranks: dict[str, float]
    """The same over every task and seed."""
    p: float | None
    """Friedman's test of equal methods; None where there is none."""
    critical: float | None
    """Nemenyi's critical difference of two mean ranks."""
    left_out: list[str]
    """Methods and tasks that are not ranked, and why."""

    @property
    def order(self) -> list[str]:
        """Labels, the best first."""
        return sorted(self.ranks, key=lambda label: self.ranks[label])

    @property
    def alike(self) -> list[list[str]]:
        """Longest runs of neighbours in `order` that are no further apart than the critical difference."""
        if self.critical is None:
            return []
        order = self.order
        groups: list[list[str]] = []
        for start, first in enumerate(order):
            group = [label for label in order[start:] if self.ranks[label] - self.ranks[first] <= self.critical + 1e-9]
            if len(group) > 1 and not (groups and group[-1] == groups[-1][-1]):
                groups.append(group)
        return groups


def rankings(study: Study, section: Section, view: str) -> list[Ranking]:
    """Return a ranking for each scheme that has two complete cells on some task, at equal forwards or seconds."""
    listed = contests(study, section, view)
    ranked = []
    for scheme in unique(one.group for one in listed):
        never = [cell.label for cell in study.not_begun(section) if cell.scheme == scheme]
        ranking = _ranking(scheme, [one for one in listed if one.group == scheme], never)
        ranked += [ranking] if ranking else []
    return ranked


def _ranking(scheme: str, listed: Sequence[Contest], never: Iterable[str]) -> Ranking | None:
    """Return the ranking of a scheme; ``never``: labels of cells that have not begun."""
    values = {one.task: {cell.label: some for cell, some in one.values.items()} for one in listed}
    why = {(one.task, cell.label): reason for one in listed for cell, reason in one.waiting.items()}
    tasks, labels = full_block(values)
    if len(labels) < 2:
        return None
    every = unique(label for one in values.values() for label in one) + unique(label for _, label in why)
    left_out = _reasons([label for label in unique(every) if label not in labels], values, why)
    none = [label for label in unique(never) if label not in every]
    left_out += [f"{', '.join(none)} (no result on any task)"] if none else []
    left_out += [f"{task} (not complete for all of them)" for task in values if task not in tasks]
    blocks = [_ranks({label: statistics.fmean(values[task][label]) for label in labels}) for task in tasks]
    seeds = range(len(values[tasks[0]][labels[0]]))
    finer = [_ranks({label: values[task][label][seed] for label in labels}) for task in tasks for seed in seeds]
    enough = len(tasks) >= FEWEST and len(labels) >= FEWEST
    return Ranking(
        scheme=scheme,
        tasks=tasks,
        ranks={label: statistics.fmean(block[label] for block in blocks) for label in labels},
        seed_ranks={label: statistics.fmean(block[label] for block in finer) for label in labels},
        p=friedman(blocks) if enough else None,
        critical=critical_difference(len(labels), len(tasks)) if enough else None,
        left_out=left_out,
    )


def full_block(values: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return tasks and labels such that every label has every task.

    As long as something is missing, the task or the method that lacks the largest share is dropped; of equal shares
    the method, the last of them.

    Args:
        values: whatever there is, by task and label.
    """
    tasks = [task for task, some in values.items() if some]
    labels = unique(label for task in tasks for label in values[task])
    while True:
        by_task = {task: sum(label not in values[task] for label in labels) / max(len(labels), 1) for task in tasks}
        by_label = {label: sum(label not in values[task] for task in tasks) / max(len(tasks), 1) for label in labels}
        worst_task, worst_label = (
            max(reversed([*some]), key=some.__getitem__, default="") for some in (by_task, by_label)
        )
        if not tasks or not labels or max(by_task[worst_task], by_label[worst_label]) == 0:
            return tasks, labels
        if by_task[worst_task] > by_label[worst_label]:
            tasks.remove(worst_task)
        else:
            labels.remove(worst_label)


def _reasons(
    labels: Iterable[str], values: Mapping[str, Mapping[str, Any]], why: Mapping[tuple[str, str], str]
) -> list[str]:
    """Methods with what they lack on which task: those that lack the same together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        lacks: dict[str, list[str]] = defaultdict(list)
        for task, some in values.items():
            if label not in some:
                lacks[why.get((task, label), "no result")].append(task)
        groups["; ".join(f"{', '.join(tasks)}: {reason}" for reason, tasks in lacks.items())].append(label)
    return [f"{', '.join(some)} ({reason})" for reason, some in groups.items()]


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return ranks from 1, the largest value first; equals share the mean of their ranks."""
    kept = {label: comparable(value) for label, value in values.items()}
    ordered = sorted(kept.values(), reverse=True)
    return {label: ordered.index(value) + (ordered.count(value) + 1) / 2 for label, value in kept.items()}


def friedman(blocks: Sequence[Mapping[str, float]]) -> float | None:
    """Return the p-value of Friedman's test over blocks of ranks; None where all methods are equal everywhere."""
    from scipy import stats

    columns = [[block[label] for block in blocks] for label in blocks[0]]
    if len({tuple(column) for column in columns}) == 1:
        return None
    p = float(stats.friedmanchisquare(*columns).pvalue)
    return p if math.isfinite(p) else None


@cache
def critical_difference(methods: int, blocks: int) -> float:
    """Return Nemenyi's critical difference of mean ranks at 5 %: q sqrt(k (k + 1) / (6 N))."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(LEVEL, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def rank_tables(study: Study, section: Section, view: str) -> list[Table]:
    """Return the mean ranks of each scheme."""
    tables = []
    for ranking in rankings(study, section, view):
        seeds = len(ranking.tasks) * len(study.seeds)
        rows: list[tuple[Item, ...]] = []
        records: list[dict[str, Any]] = []
        for label in ranking.order:
            texts = (f"{ranking.ranks[label]:.2f}", f"{ranking.seed_ranks[label]:.2f}")
            rows.append((Item(label), *map(Item, texts)))
            record: dict[str, Any] = {"model": section.model, "scheme": ranking.scheme, "label": label, "view": view}
            record |= {"rank": ranking.ranks[label], "rank_over_seeds": ranking.seed_ranks[label]}
            records.append({**record, "tasks": len(ranking.tasks), "critical_difference": ranking.critical})
        tables.append(
            Table(
                name=f"ranks-{view}-{ranking.scheme}{study.suffix(section)}",
                title=f"Mean ranks at equal {view}, {ranking.scheme}{study.title(section)}",
                caption=caption(ranking),
                labels=1,
                columns=(
                    Column("Method"),
                    Column(f"over {counted(len(ranking.tasks), 'task')}"),
                    Column(f"over {seeds} of tasks and seeds"),
                ),
                rows=tuple(rows),
                records=tuple(records),
            )
        )
    return tables


def caption(ranking: Ranking) -> str:
    """Return what a ranking says, what it leaves out, and what cannot be tested."""
    text = f"Rank 1 is the best; tasks: {', '.join(ranking.tasks)}. "
    if ranking.critical is None:
        few = f"{counted(len(ranking.tasks), 'task')} and {counted(len(ranking.ranks), 'method')}"
        text += f"No test: {few} are too few, Friedman's test needs three of both. "
    elif ranking.p is None:
        text += "All methods are equal on every task. "
    else:
        text += f"Friedman's test of equal methods over tasks: p = {ranking.p:.2g}. "
        text += f"Mean ranks over tasks differ at 5 % from {ranking.critical:.2f} on (Nemenyi)"
        text += (
            ", which no two methods do. "
            if len(ranking.alike) == 1 and len(ranking.alike[0]) == len(ranking.ranks)
            else ". "
        )
        text += "Seeds of one task are no tasks of their own, so the second column is not tested. "
    left = f"Left out: {', '.join(ranking.left_out)}." if ranking.left_out else ""
    return (text + left).strip()
