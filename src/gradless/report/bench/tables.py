"""The tables of a study: accuracy, cost, chosen hyper-parameters, the effect of an option, alignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.report.bench.budgets import view_tables
from gradless.report.bench.selection import choose
from gradless.report.bench.study import Cell, Results, Run, Section, Study, axis_name, tested
from gradless.report.common.numbers import Score, median, metric_of, score, show, slug, sortable, unique, usual_count
from gradless.report.common.table import NOTHING, Column, Item, Table, marked, score_record, score_text
from gradless.runs.record import DIVERGED, DONE
from gradless.system import finished_runs

HEADS = {"model": "Model", "task": "Task", "scheme": "Scheme", "aligned": "Template"}
GIGABYTE = 1e9
MARKS = "Bold: best of the column; †: best zeroth-order method of the column."


def all_tables(study: Study) -> list[Table]:
    """Every table that the results have something for."""
    found = [table for section in study.sections for table in (accuracy(study, section), cost(study, section))]
    found += [chosen(study), *effects(study)]
    found += [alignment(study)] if len({section.aligned for section in study.sections}) > 1 else []
    found += [table for section in study.sections for table in view_tables(study, section)]
    return [table for table in found if table.rows]


class Frame(NamedTuple):
    """The label columns of a table with a row for each cell: what varies; what does not goes into its title."""

    names: tuple[str, ...]
    tail: str

    @staticmethod
    def of(cells: Iterable[Cell], *names: str) -> Frame:
        """For these cells, of the fields ``names``."""
        values = {name: unique(getattr(cell, name) for cell in cells) for name in names}
        same = (str(found[0]) for name, found in values.items() if len(found) == 1 and name != "aligned")
        return Frame(tuple(name for name in names if len(values[name]) > 1), "".join(f", {text}" for text in same))

    def items(self, cell: Cell) -> tuple[Item, ...]:
        """Label entries of a cell."""
        texts = {"aligned": "aligned" if cell.aligned else "plain"}
        return tuple(Item(texts.get(name) or str(getattr(cell, name))) for name in self.names)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Their headings."""
        return tuple(Column(HEADS[name]) for name in self.names)


def cell_record(cell: Cell) -> dict[str, Any]:
    """The fields of a cell for a record."""
    named = {name: getattr(cell, name) for name in ("model", "task", "aligned", "scheme", "method")}
    return {**named, "kind": cell.kind, **{axis_name(name): value for name, value in cell.extras}}


def seeds_sentence(usual: int | None) -> str:
    """What ± means."""
    if usual is None:
        return ""
    over = f"over {usual} seeds" if usual > 1 else "of one seed"
    return f"Mean ± sample standard deviation {over}; (n=...) where the number differs. "


def metrics_sentence(names: Sequence[str]) -> str:
    """Which metric the tasks are scored by."""
    by_metric: dict[str, list[str]] = {}
    for task in names:
        by_metric.setdefault(metric_of(task), []).append(task)
    return "; ".join(f"{metric} ({', '.join(found)})" for metric, found in by_metric.items())


def accuracy(study: Study, section: Section) -> Table:
    """Test metric of every method (rows) by task and scheme (columns), zero-shot first."""
    cells = study.within(section)
    places = unique((cell.task, cell.scheme) for cell in cells)
    labels = unique((cell.method, cell.extras) for cell in cells)
    scores = {cell: tested(cell, found) for cell, found in cells.items()}
    usual = usual_count(scores.values())
    columns, records = [], []
    for task, scheme in places:
        before = study.zero_shot(section, task)
        texts, values, zo = [score_text(before, usual=usual)], [before and before.mean], [False]
        record = {"model": section.model, "task": task, "aligned": section.aligned, "scheme": scheme}
        records.append({**record, "method": "zero-shot", "metric": metric_of(task), **score_record(before)})
        for method, extras in labels:
            cell = Cell(section.model, task, scheme, method, section.aligned, extras)
            found, mean = cells.get(cell), scores.get(cell)
            texts.append(_outcome(found, mean, usual))
            values.append(mean and mean.mean)
            zo.append(cell.kind == "zo")
            if found is not None:
                final = Counter(run.status for run in found.final)
                counts = {"final_diverged": final[DIVERGED], "final_failed": final[FAILED]}
                more = {
                    "metric": metric_of(task),
                    **score_record(mean),
                    **counts,
                    "outcome": "done" if mean else texts[-1].strip(NOTHING),
                }
                records.append({**cell_record(cell), **more})
        columns.append(marked(texts, values, zo))
    names = ["zero-shot", *(Cell("", "", "", method, extras=extras).label for method, extras in labels)]
    rows = tuple((Item(name), *items) for name, *items in zip(names, *columns, strict=True)) if places else ()
    tasks = unique(task for task, _ in places)
    return Table(
        name="accuracy" + study.suffix(section),
        title="Test results" + study.title(section),
        caption=f"Test {metrics_sentence(tasks)}, scored once a seed, at the step that dev chose, with the "
        f"hyper-parameters that dev chose. {seeds_sentence(usual)}{MARKS} Diverged: every searched point, or every "
        "final run, did; (2 of 3): the other final run did.",
        labels=1,
        columns=(Column("Method"), *(Column(scheme, task) for task, scheme in places)),
        rows=rows,
        records=tuple(records),
    )


def _outcome(found: Results | None, mean: Score | None, usual: int | None) -> str:
    """A score, or why there is none."""
    if found is None:
        return NOTHING
    lost = sum(run.status == DIVERGED for run in found.final)
    if mean is not None:
        return score_text(mean, usual=mean.n if lost else usual) + (f" ({mean.n} of {mean.n + lost})" if lost else "")
    ends = {run.status for run in (found.final or found.search)} if found.final or found.hopeless else set()
    return "failed" if ends == {FAILED} else "diverged" if ends and DONE not in ends else NOTHING


def cost(study: Study, section: Section) -> Table:
    """What a step costs: forwards, seconds, memory. Medians over the final runs, or else the search's."""
    cells = study.within(section)
    frame = Frame.of(cells, "task", "scheme")
    measured = {
        cell: found.done or [run for run in found.search if run.status == DONE] for cell, found in cells.items()
    }
    rows, records = [], []
    for cell, runs in measured.items():
        if not runs:
            continue
        numbers = _costs(runs)
        seconds, base = numbers["seconds_per_step"], _mezo_seconds(measured, cell)
        numbers["seconds_to_mezo"] = seconds / base if seconds is not None and base else None
        batch = median(_batch(study, run) for run in runs)
        shown = (
            _figure(batch), _figure(numbers["steps"]), _figure(numbers["forwards_per_step"]), _measure(seconds),
            _figure(numbers["seconds_to_mezo"], "{:.2f}"),
            _measure(numbers["peak_memory_bytes"], GIGABYTE), _figure(numbers["memory_ratio"], "{:.2f}"),
        )  # fmt: skip
        rows.append((*frame.items(cell), Item(cell.label), *map(Item, shown)))
        records.append({**cell_record(cell), "batch_size": batch, **numbers, "runs": len(runs)})
    threads = unique(
        show(run.record["threads"]) for runs in measured.values() for run in runs if "threads" in run.record
    )
    where = f" Threads: {', '.join(threads)}." if threads else ""
    where += finished_runs.origin(run.record for runs in measured.values() for run in runs)
    return Table(
        name="cost" + study.suffix(section),
        title=f"Cost of a step{frame.tail}{study.title(section)}",
        caption="Medians over the runs. A backward pass counts as two forwards. Seconds are of training steps alone, "
        "without dev evaluations, side by side where `gradless bench --timings` measured them and else beside whatever "
        "the machine did. Ratios: to the seconds of mezo in the same "
        f"cell, and of peak memory to that of evaluating the same batch. GB = 1e9 bytes.{where}",
        labels=len(frame.names) + 1,
        columns=(
            *frame.columns, Column("Method"), Column("batch"), Column("steps"), Column("forwards / step"),
            Column("seconds / step"), Column("\u00d7 mezo"), Column("peak GB"), Column("\u00d7 inference"),
        ),
        rows=tuple(rows),
        records=tuple(records),
    )  # fmt: skip


def _costs(runs: Sequence[Run]) -> dict[str, float | None]:
    names = ("steps", "forwards_per_step", "seconds_per_step", "peak_memory_bytes", "inference_memory_bytes")
    # Zero bytes say that nothing was measured.
    found = {name: median(run.number(name) or None for run in runs) for name in (*names, "tuned_parameters")}
    return {**found, "memory_ratio": median(memory_ratio(run) for run in runs)}


def memory_ratio(run: Run) -> float | None:
    """Peak memory of training over that of inference; None where either was not measured."""
    peak, floor = run.number("peak_memory_bytes"), run.number("inference_memory_bytes")
    return peak / floor if peak and floor else None


def _mezo_seconds(measured: dict[Cell, list[Run]], cell: Cell) -> float | None:
    """Seconds of mezo's step in the same cell: with the same options if there is such a one."""
    ours = [other for other in measured if other._replace(method=cell.method, extras=()) == cell._replace(extras=())]
    mezo = [other for other in ours if other.method == "mezo"]
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
    for cell, found in study.cells.items():
        choice = choices[cell]
        point, run = (choice.point, choice.run) if choice else ({}, None)
        edges = choice.edges if choice else {}
        counts = Counter(run.status for run in found.search)
        dev, loss = (run.metric("dev", name) if run else None for name in (metric_of(cell.task), "loss"))
        values = [
            Item(show(point[axis]) + (f" ({edges[axis]})" if axis in edges else ""), warn=axis in edges)
            if axis in point else Item() for axis in axes
        ]  # fmt: skip
        tried = len(found.search)
        texts = (_figure(dev, "{:.3f}"), _figure(loss, "{:.3f}"), f"{tried}", f"{counts[DIVERGED]}")
        rows.append((*frame.items(cell), Item(cell.label), *values, *map(Item, texts)))
        records.append(
            cell_record(cell) | {axis_name(axis): point.get(axis) for axis in axes}
            | {"dev_metric": metric_of(cell.task), "dev": dev, "dev_loss": loss, "tried": tried}
            | {"diverged": counts[DIVERGED], "failed": counts[FAILED], "awaited": found.awaited}
            | {"edge": "; ".join(f"{axis_name(axis)} is the {where}" for axis, where in edges.items())}
        )  # fmt: skip
    return Table(
        name="hyper-parameters",
        title=f"Chosen hyper-parameters{frame.tail}",
        caption="Chosen on dev alone, with the search seed. Lowest or highest tried: the best point lies on the edge "
        "of what was searched, so a better one may lie beyond it. best.toml holds them for `gradless tune --config`.",
        labels=len(frame.names) + 1,
        columns=(
            *frame.columns, Column("Method"), *(Column(axis_name(axis)) for axis in axes), Column("dev"),
            Column("dev loss"), Column("tried"), Column("diverged"),
        ),
        rows=tuple(rows),
        records=tuple(records),
    )  # fmt: skip


def effects(study: Study) -> list[Table]:
    """For every further axis of the grid: test results (columns: its values) of the cells that have it."""
    return [_effect(study, axis) for axis in unique(name for cell in study.cells for name, _ in cell.extras)]


def _effect(study: Study, axis: str) -> Table:
    def rest(cell: Cell) -> Cell:
        return cell._replace(extras=tuple(pair for pair in cell.extras if pair[0] != axis))

    cells = [cell for cell in study.cells if axis in dict(cell.extras)]
    values = sorted({dict(cell.extras)[axis] for cell in cells}, key=sortable)
    scores = {cell: tested(cell, study.cells[cell]) for cell in cells}
    usual = usual_count(scores.values())
    frame = Frame.of(cells, "model", "aligned", "task", "scheme")
    rows, records = [], []
    for row in unique(rest(cell) for cell in cells):
        mine = {dict(cell.extras)[axis]: cell for cell in cells if rest(cell) == row}
        found = [scores[mine[value]] if value in mine else None for value in values]
        texts = [
            _outcome(study.cells[mine[value]], mean, usual) if value in mine else NOTHING
            for value, mean in zip(values, found, strict=True)
        ]
        items = marked(texts, [mean and mean.mean for mean in found], [False] * len(found))
        rows.append((*frame.items(row), Item(row.label), *items))
        records += [
            {**cell_record(cell), "metric": metric_of(cell.task), **score_record(scores[cell])}
            for cell in mine.values()
        ]
    name = axis_name(axis)
    return Table(
        name=f"effect-{slug(name)}",
        title=f"Effect of {name}{frame.tail}",
        caption=f"Test {metrics_sentence(unique(cell.task for cell in cells))}, each with its own chosen "
        f"hyper-parameters. {seeds_sentence(usual)}Bold: best of the row.",
        labels=len(frame.names) + 1,
        columns=(*frame.columns, Column("Method"), *(Column(show(value), name) for value in values)),
        rows=tuple(rows),
        records=tuple(records),
    )


def alignment(study: Study) -> Table:
    """Test results with and without the words that align the task to pre-training, and their difference."""
    pairs = [cell for cell in study.cells if cell.aligned and cell._replace(aligned=False) in study.cells]
    frame = Frame.of(pairs, "model", "task", "scheme")
    usual = usual_count(tested(cell, study.cells[cell]) for cell in pairs)
    rows, records = [], []
    for cell in pairs:
        other = cell._replace(aligned=False)
        scores = [tested(one, study.cells[one]) for one in (cell, other)]
        gain = _gain(cell.task, study.cells[cell], study.cells[other])
        texts = [*(_outcome(study.cells[one], mean, usual) for one, mean in zip((cell, other), scores, strict=True))]
        rows.append((*frame.items(cell), Item(cell.label), *map(Item, texts), Item(_signed(gain))))
        named = cell_record(cell)
        del named["aligned"]
        for which, mean in zip(("aligned", "unaligned", "gain"), (*scores, gain), strict=True):
            records.append({**named, "metric": metric_of(cell.task), "what": which, **score_record(mean)})
    return Table(
        name="alignment",
        title=f"Task alignment{frame.tail}",
        caption=f"Test {metrics_sentence(unique(cell.task for cell in pairs))} with the task's template, with the "
        f"plain one, and the gain, paired by seed. {seeds_sentence(usual)}",
        labels=len(frame.names) + 1,
        columns=(*frame.columns, Column("Method"), Column("aligned"), Column("plain"), Column("gain")),
        rows=tuple(rows),
        records=tuple(records),
    )


def _gain(task: str, aligned: Results, plain: Results) -> Score | None:
    """Differences between runs of the same seed."""
    name = metric_of(task)
    before = {run.seed: run.metric("test", name) for run in plain.done}
    after = {run.seed: run.metric("test", name) for run in aligned.done}
    pairs = [(after[seed], before[seed]) for seed in after if seed in before]
    return score(a - b for a, b in pairs if a is not None and b is not None)


def _signed(gain: Score | None) -> str:
    if gain is None:
        return NOTHING
    return f"{gain.mean:+.3f}" + ("" if gain.std is None else f" ± {gain.std:.3f}")
