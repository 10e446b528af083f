"""The tables of a study: accuracy, cost, chosen hyper-parameters, the effect of an option, alignment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.bench.timing import TIMED
from gradless.report.bench import intervals
from gradless.report.bench.budgets import view_tables
from gradless.report.bench.comparisons import VIEWS, comparison_tables
from gradless.report.bench.ranks import rank_tables
from gradless.report.bench.reach import reach_table
from gradless.report.bench.selection import Choice, choose
from gradless.report.bench.study import Cell, Results, Run, Section, Study, axis_name, memory_ratio, tested
from gradless.report.common.numbers import (
    Score,
    median,
    metric_of,
    score,
    show,
    slug,
    sortable,
    unique,
)
from gradless.report.common.table import NOTHING, Column, Item, Table, marked, score_record, score_text
from gradless.runs.record import DIVERGED, DONE
from gradless.system import finished_runs

HEADS = {"model": "Model", "task": "Task", "scheme": "Scheme", "aligned": "Template"}
GIGABYTE = 1e9
MARKS = "Bold: best of the column; †: best zeroth-order method of the column."
COSTS = ("batch", "steps", "forwards / step", "seconds / step", "\u00d7 mezo", "peak GB", "\u00d7 inference")


def all_tables(study: Study) -> list[Table]:
    """Every table that the results have something for."""
    tables = [table for section in study.sections for table in (accuracy(study, section), cost(study, section))]
    tables += [chosen(study), *effects(study)]
    tables += [alignment(study)] if len({section.aligned for section in study.sections}) > 1 else []
    tables += [table for section in study.sections for table in view_tables(study, section)]
    for section in study.sections:
        if intervals.available():
            tables += comparison_tables(study, section)
            tables += [table for view in VIEWS for table in rank_tables(study, section, view)]
        tables.append(reach_table(study, section))
    return [table for table in tables if table.rows]


class Frame(NamedTuple):
    """The label columns of a table with a row for each cell: what varies; what does not goes into its title."""

    names: tuple[str, ...]
    tail: str

    @staticmethod
    def of(cells: Iterable[Cell], *names: str) -> Frame:
        """For these cells, of the fields ``names``."""
        values = {name: unique(getattr(cell, name) for cell in cells) for name in names}
        same = (str(distinct[0]) for name, distinct in values.items() if len(distinct) == 1 and name != "aligned")
        return Frame(tuple(name for name in names if len(values[name]) > 1), "".join(f", {text}" for text in same))

    def items(self, cell: Cell) -> tuple[Item, ...]:
        """Label entries of a cell, its method last."""
        texts = {"aligned": "aligned" if cell.aligned else "plain"}
        return (*(Item(texts.get(name) or str(getattr(cell, name))) for name in self.names), Item(cell.label))

    def table(self, name: str, title: str, caption: str, columns: Iterable[Column], rows: Any, records: Any) -> Table:
        """A table with the label columns in front; ``tail`` is part of its title."""
        heads = (*(Column(HEADS[label]) for label in self.names), Column("Method"))
        return Table(name, title, caption, len(heads), (*heads, *columns), tuple(rows), tuple(records))


def cell_record(cell: Cell) -> dict[str, Any]:
    """The fields of a cell for a record."""
    named = {name: getattr(cell, name) for name in ("model", "task", "aligned", "scheme", "method")}
    return {**named, "kind": cell.kind, **{axis_name(name): value for name, value in cell.extras}}


def seeds_sentence(seeds: int) -> str:
    """What ± means, where cells are to have so many seeds."""
    over = f"over {seeds} seeds" if seeds > 1 else "of one seed"
    return f"Mean ± sample standard deviation {over}; (n=...) or (n of {seeds}) where there are others. "


def metrics_sentence(tasks: Iterable[str]) -> str:
    """Which metric the tasks are scored by: ``accuracy (sst2, rte); token_f1 (squad)``."""
    by_metric: dict[str, list[str]] = {}
    for task in unique(tasks):
        by_metric.setdefault(metric_of(task), []).append(task)
    return "; ".join(f"{metric} ({', '.join(names)})" for metric, names in by_metric.items())


def accuracy(study: Study, section: Section) -> Table:
    """Test metric of every method (rows) by task and scheme (columns), zero-shot first."""
    cells = study.within(section)
    groups = unique((cell.task, cell.scheme) for cell in cells)
    methods = unique((cell.method, cell.extras) for cell in cells)
    scores = {cell: tested(cell, results) for cell, results in cells.items()}
    columns, records, variants = [], [], study.variants(section)
    for task, scheme in groups:
        metric, untouched = metric_of(task), [study.zero_shot(section, task, variant) for variant in variants]
        named = {"model": section.model, "task": task, "aligned": section.aligned, "scheme": scheme}
        for variant, mean in zip(variants, untouched, strict=True):
            records.append({**named, "method": "zero-shot", **dict(variant), "metric": metric, **score_record(mean)})
        texts, means, zo = (
            [score_text(mean, usual=len(study.seeds)) for mean in untouched],
            [mean if mean is not None and mean.n == len(study.seeds) else None for mean in untouched],
            [False] * len(variants),
        )
        for method, extras in methods:
            cell = Cell(section.model, task, scheme, method, section.aligned, extras)
            results, mean = cells.get(cell), scores.get(cell)
            texts.append(_outcome(study, results, mean))
            means.append(_ranked(study, results, mean))
            zo.append(cell.kind == "zo")
            if results is not None:
                ends = Counter(run.status for run in results.final)
                record = {**cell_record(cell), "metric": metric, **score_record(mean)}
                record |= {"final_diverged": ends[DIVERGED], "final_failed": ends[FAILED]}
                records.append({**record, "outcome": "done" if mean else texts[-1].strip(NOTHING)})
        alone = not any(means[len(variants) :])  # the untouched model, which is then the best of nothing
        columns.append(marked(texts, [None] * len(means) if alone else means, zo))
    every = [*(("zero-shot", variant) for variant in variants), *methods]
    names = [Cell("", "", "", method, extras=extras).label for method, extras in every]
    rows = tuple((Item(name), *items) for name, *items in zip(names, *columns, strict=True)) if groups else ()
    return Table(
        name="accuracy" + study.suffix(section),
        title="Test results" + study.title(section),
        caption=f"Test {metrics_sentence(task for task, _ in groups)}, scored once a seed, at the step that dev chose, "
        f"with the hyper-parameters that dev chose. {seeds_sentence(len(study.seeds))}{MARKS} Diverged: every "
        "searched point, or every final run, did; (2 of 3 seeds): the others have not ended, or as it says, and the "
        "cell is no best of any.",
        labels=1,
        columns=(Column("Method"), *(Column(scheme, task) for task, scheme in groups)),
        rows=rows,
        records=tuple(records),
    )


def _outcome(study: Study, results: Results | None, mean: Score | None) -> str:
    """A score, with what it lacks of the seeds, or why there is none."""
    if results is None:
        return NOTHING
    if mean is not None:
        lacks = study.lacking(results)
        return score_text(mean, usual=mean.n if lacks else len(study.seeds)) + (f" ({lacks})" if lacks else "")
    ended = results.final or (results.search if results.hopeless else [])
    ends = {run.status for run in ended} - (set() if results.final else {DONE})  # a point is bad if one seed of it is
    return "failed" if ends == {FAILED} else "diverged" if ends and DONE not in ends else NOTHING


def _ranked(study: Study, results: Results | None, mean: Score | None) -> Score | None:
    """The score if it is of all seeds: others are no best of anything."""
    return mean if results is not None and study.complete(results) else None


def cost(study: Study, section: Section) -> Table:
    """What a step costs: forwards, seconds, memory. Medians over the final runs, or else the search's."""
    cells = study.within(section)
    frame = Frame.of(cells, "task", "scheme")
    measured = {
        cell: runs
        for cell, results in cells.items()
        if (runs := results.done or [run for run in results.search if run.status == DONE])
    }
    rows, records = [], []
    for cell, runs in measured.items():
        numbers = _costs(runs)
        if not cells[cell].done:  # runs of the search are shorter
            numbers["steps"] = None
        seconds, base = numbers["seconds_per_step"], _mezo_seconds(measured, cell) if _timed(runs) else None
        numbers["seconds_to_mezo"] = seconds / base if seconds is not None and base else None
        batch = median(_batch(study, run) for run in runs)
        texts = [_figure(batch), _figure(numbers["steps"]), _figure(numbers["forwards_per_step"]), _measure(seconds)]
        texts += [_figure(numbers["seconds_to_mezo"], "{:.2f}"), _measure(numbers["peak_memory_bytes"], GIGABYTE)]
        texts += [_figure(numbers["memory_ratio"], "{:.2f}")]
        rows.append((*frame.items(cell), *map(Item, texts)))
        records.append({**cell_record(cell), "batch_size": batch, **numbers, "runs": len(runs)})
    everything = [run.record for runs in measured.values() for run in runs]
    threads = unique(show(record["threads"]) for record in everything if "threads" in record)
    where = f" Threads: {', '.join(threads)}." if threads else ""
    return frame.table(
        name="cost" + study.suffix(section),
        title=f"Cost of a step{frame.tail}{study.title(section)}",
        caption="Medians over the runs. A backward pass counts as two forwards. Seconds are of training steps alone, "
        "without dev evaluations, side by side where `gradless bench --timings` measured them and else beside whatever "
        "the machine did. Ratios: to the seconds of mezo in the same cell, where they were measured side by side, and "
        f"of peak memory to that of an evaluation. GB = 1e9 bytes.{where}{finished_runs.origin(everything)}",
        columns=map(Column, COSTS),
        rows=rows,
        records=records,
    )


def _costs(runs: Sequence[Run]) -> dict[str, float | None]:
    names = ("steps", "forwards_per_step", "seconds_per_step", "peak_memory_bytes", "inference_memory_bytes")
    # Zero bytes say that nothing was measured.
    medians = {name: median(run.number(name) or None for run in runs) for name in (*names, "tuned_parameters")}
    return {**medians, "memory_ratio": median(memory_ratio(run) for run in runs)}


def _timed(runs: Sequence[Run]) -> bool:
    """Whether seconds were measured side by side: else a ratio of them tells what else the machine did."""
    return all(run.record.get(TIMED) for run in runs)


def _mezo_seconds(measured: dict[Cell, list[Run]], cell: Cell) -> float | None:
    """Seconds of mezo's step in the same cell, measured side by side: with the same options if there is such a one."""
    mezo = [other for other in measured if other._replace(extras=()) == cell._replace(method="mezo", extras=())]
    mezo = [other for other in mezo if _timed(measured[other])]
    same = [other for other in mezo if other.extras == cell.extras] or mezo
    return median(run.number("seconds_per_step") for run in measured[same[0]]) if same else None


def _batch(study: Study, run: Run) -> float | None:
    value = study.config(run).get("batch_size")
    return float(value) if isinstance(value, int) else None


def _measure(value: float | None, scale: float = 1.0) -> str:
    """Three digits, zeros at the end included."""
    return _figure(value, "{:#.3g}", scale).rstrip(".")


def _figure(value: float | None, form: str = "{:.3g}", scale: float = 1.0) -> str:
    if value is None:
        return NOTHING
    value /= scale
    return f"{value:.0f}" if value >= 1000 else form.format(value)


def chosen(study: Study) -> Table:
    """The hyper-parameters of every cell, what dev said of them, and whether the search reached far enough."""
    frame = Frame.of(study.cells, "model", "aligned", "task", "scheme")
    choices = {cell: choose(study, cell) for cell in study.cells}
    axes = unique(name for choice in choices.values() if choice for name in choice.point)
    rows, records = [], []
    for cell, results in study.cells.items():
        choice = choices[cell]
        point = choice.point if choice else {}
        edges = choice.edges if choice else {}
        notes = {axis: _note(choice, axis) for axis in point} if choice else {}
        tried = len(unique(map(_key, results.search)))
        ends = {(_key(run), run.status) for run in results.search}  # a point has a run for each seed and rung
        counts = Counter(status for _, status in ends)
        dev, loss = (choice.dev(name) if choice else None for name in (metric_of(cell.task), "loss"))
        items = [_setting(point[axis], notes[axis]) if axis in point else Item() for axis in axes]
        texts = (_figure(dev, "{:.3f}"), _figure(loss, "{:.3f}"), f"{tried}", f"{counts[DIVERGED]}")
        rows.append((*frame.items(cell), *items, *map(Item, texts)))
        record = cell_record(cell) | {axis_name(axis): point.get(axis) for axis in axes}
        record |= {"dev_metric": metric_of(cell.task), "dev": dev, "dev_loss": loss, "tried": tried}
        record |= {"diverged": counts[DIVERGED], "failed": counts[FAILED], "awaited": results.awaited}
        records.append(record | {"edge": "; ".join(f"{axis_name(axis)} is the {edge}" for axis, edge in edges.items())})
    return frame.table(
        name="hyper-parameters",
        title=f"Chosen hyper-parameters{frame.tail}",
        caption="Chosen on dev alone, with the search seeds. Lowest or highest tried: the best point lies on the edge "
        "of what was searched, so a better one may lie beyond it. So far: the search has not ended, and "
        "another point may win. best.toml holds the chosen ones for `gradless tune --config`.",
        columns=map(Column, (*map(axis_name, axes), "dev", "dev loss", "tried", "diverged")),
        rows=rows,
        records=records,
    )


def _key(run: Run) -> str:
    """The point of a run as text."""
    return json.dumps(run.point, sort_keys=True)


def _note(choice: Choice, axis: str) -> str:
    """What there is to say of a chosen value: ``highest tried``, ``so far`` where the search has not ended."""
    return ", ".join(text for text in (choice.edges.get(axis), "" if choice.final else "so far") if text)


def _setting(value: Any, note: str) -> Item:
    return Item(show(value) + (f" ({note})" if note else ""), warn=bool(note))


def effects(study: Study) -> list[Table]:
    """For every further axis of the grid: test results (columns: its values) of the cells that have it."""
    return [_effect(study, axis) for axis in unique(name for cell in study.cells for name, _ in cell.extras)]


def _effect(study: Study, axis: str) -> Table:
    def without_axis(cell: Cell) -> Cell:
        return cell._replace(extras=tuple(pair for pair in cell.extras if pair[0] != axis))

    cells = [cell for cell in study.cells if axis in dict(cell.extras)]
    values = sorted({dict(cell.extras)[axis] for cell in cells}, key=sortable)
    scores = {cell: tested(cell, study.cells[cell]) for cell in cells}
    frame = Frame.of(cells, "model", "aligned", "task", "scheme")
    rows, records = [], []
    for shared in unique(map(without_axis, cells)):
        by_value = {dict(cell.extras)[axis]: cell for cell in cells if without_axis(cell) == shared}
        row = [by_value.get(value) for value in values]
        means = [scores[cell] if cell else None for cell in row]
        results = [study.cells[cell] if cell else None for cell in row]
        texts = [_outcome(study, result, mean) for result, mean in zip(results, means, strict=True)]
        whole = [_ranked(study, result, mean) for result, mean in zip(results, means, strict=True)]
        rows.append((*frame.items(shared), *marked(texts, whole)))
        for cell in by_value.values():
            records.append({**cell_record(cell), "metric": metric_of(cell.task), **score_record(scores[cell])})
    name = axis_name(axis)
    return frame.table(
        name=f"effect-{slug(name)}",
        title=f"Effect of {name}{frame.tail}",
        caption=f"Test {metrics_sentence(cell.task for cell in cells)}, each with its own chosen hyper-parameters. "
        f"{seeds_sentence(len(study.seeds))}Bold: best of the row.",
        columns=(Column(show(value), name) for value in values),
        rows=rows,
        records=records,
    )


def alignment(study: Study) -> Table:
    """Test results with and without the words that align the task to pre-training, and their difference."""
    pairs = {cell: cell._replace(aligned=False) for cell in study.cells if cell.aligned}
    pairs = {cell: plain for cell, plain in pairs.items() if plain in study.cells}
    frame = Frame.of(pairs, "model", "task", "scheme")
    rows, records = [], []
    for cell, plain in pairs.items():
        results = [study.cells[cell], study.cells[plain]]
        scores = [tested(cell, result) for result in results]
        gain = _gain(cell.task, *results)
        texts = [_outcome(study, result, mean) for result, mean in zip(results, scores, strict=True)]
        rows.append((*frame.items(cell), *map(Item, texts), Item(_signed(gain))))
        named = cell_record(cell)
        del named["aligned"]
        for what, mean in zip(("aligned", "unaligned", "gain"), (*scores, gain), strict=True):
            records.append({**named, "metric": metric_of(cell.task), "what": what, **score_record(mean)})
    return frame.table(
        name="alignment",
        title=f"Task alignment{frame.tail}",
        caption=f"Test {metrics_sentence(cell.task for cell in pairs)} with the task's template, with the plain one, "
        f"and the gain, paired by seed. {seeds_sentence(len(study.seeds))}",
        columns=map(Column, ("aligned", "plain", "gain")),
        rows=rows,
        records=records,
    )


def _gain(task: str, aligned: Results, plain: Results) -> Score | None:
    """Differences between runs of the same seed."""
    name = metric_of(task)
    base = {run.seed: run.metric("test", name) for run in plain.done}
    pairs = [(run.metric("test", name), base.get(run.seed)) for run in aligned.done]
    return score(value - plain_value for value, plain_value in pairs if value is not None and plain_value is not None)


def _signed(gain: Score | None) -> str:
    if gain is None:
        return NOTHING
    return f"{gain.mean:+.3f}" + ("" if gain.std is None else f" ± {gain.std:.3f}")
