"""The search for each cell's point: rung by rung, over several seeds, from finished runs alone.

A *trial* is a point on a rung: a run for each search seed, which spends that rung's amount of ``budget.search``. All
points of ``[grid]`` enter the first rung. Once every trial of a rung is finished, the points are ranked; as many of the
best enter the next one as cost together no more than this rung did, but at least two (successive halving, Jamieson and
Talwalkar 2016, arXiv 1502.07943). The best of the last rung is the cell's point.

With ``extend``, a rung ends only when the best point's neighbours on every numeric axis were tried: a value that is
missing beyond the end of an axis is added, with the other values of the best point, up to a number at each end. A
point that is added on a later rung starts there: nothing would be compared with a shorter run of it. Where every point
of a rung diverged, the next ones of the rung before enter, and when there are none, ``lr`` is lowered in the same way.

What is asked for is a function of the grid and of finished trials. No random number and no clock takes part, so any
number of workers come to the same, in whatever order the runs end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, NamedTuple

from gradless.bench.grid import (
    DONE,
    SEARCH,
    Cell,
    Cost,
    Point,
    Request,
    canonical,
    cell_name,
    cells,
    check,
    configure,
    distinct,
    finals,
    main_metric,
    requests,
    zero_shot_runs,
)
from gradless.bench.grid_file import Axes, Grid, setting
from gradless.errors import BadInput

LOWEST, HIGHEST = "lowest tried", "highest tried"
LAST: Final = 2
"""Evaluations at the end of a run whose mean judges it."""
FEWEST: Final = 2
"""Points that enter a later rung at least, so that it compares."""
FINAL_RUNG: Final = -1
"""Stands for the rung of final runs."""


class Score(NamedTuple):
    """What a run or a point is worth; smaller is better."""

    bad: bool
    """It diverged, failed, or its last evaluation is not finite: it never wins."""
    value: float
    """The loss, or the metric with a minus sign."""
    loss: float
    """Decides between equal values."""


class Trial(NamedTuple):
    """A point on a rung."""

    point: Point
    rung: int


class State(NamedTuple):
    """How far the search of a cell is."""

    trials: tuple[Trial, ...]
    """All that are asked for so far."""
    expected: tuple[Trial, ...]
    """Stand-ins for those on rungs that no point has entered."""
    finished: bool
    point: Point | None
    """The chosen one if finished (None: no point has a good run), else a stand-in for it."""
    edges: Mapping[str, str]
    """Axes on whose end the chosen point lies although they were extended as far as they may: LOWEST or HIGHEST."""


class Standing(NamedTuple):
    """What a grid asks for at present."""

    wanted: list[Request]
    """Runs that are asked for, in the order in which they are started."""
    expected: list[Request]
    """Runs that stand for those whose point is not known yet."""
    hopeless: list[str]
    """Cells without a final run, since no point has a good one."""
    edges: list[str]
    """A sentence for each cell whose best value is still the last one of an axis that was extended."""


# ---------------------------------------------------------------------------------------------------------------
# judging runs


def score(line: Mapping[str, Any], quantity: str, judge: str) -> Score:
    """Return what a finished run is worth.

    Args:
        line: of ``results.jsonl``.
        quantity: ``loss``, or a metric, of which more is better.
        judge: ``last`` for the mean of the last two evaluations, ``best`` for the run's best one.
    """
    dev = line.get("dev") or {}
    ends = [entry for entry in line.get("curve") or () if quantity in entry] or [dev]
    bad = line["status"] != DONE or not _finite(ends[-1].get(quantity)) or not _finite(ends[-1].get("loss", 0.0))
    counted = [dev] if judge == "best" else ends[-LAST:]
    values, losses = ([entry.get(name, math.inf) for entry in counted] for name in (quantity, "loss"))
    bad = bad or not all(map(_finite, values))
    value = math.inf if bad else fmean(values) * (1.0 if quantity == "loss" else -1.0)
    return Score(bad, value, fmean(losses) if all(map(_finite, losses)) else math.inf)


def together(scores: Sequence[Score]) -> Score:
    """Return what a point is worth from its runs, one a search seed: bad if one is, else the means."""
    return Score(any(one.bad for one in scores), *(fmean(numbers) for numbers in list(zip(*scores, strict=True))[1:]))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------------------------
# the search of a cell


@dataclass(frozen=True, slots=True)
class CellSearch:
    """The search of a cell: its points, and the values that its axes may add."""

    cell: Cell
    wide: Axes
    """Axes that may grow: all their values, ascending."""
    ends: Mapping[str, tuple[bool, bool]]
    """Whether a value below the first and one beyond the last of ``wide`` would be possible."""
    rungs: tuple[int, ...]

    @property
    def points(self) -> list[Point]:
        """Every point that may be asked for, those of the file first."""
        axes = [(*values, *(v for v in self.wide.get(n, ()) if v not in values)) for n, values in self._axes]
        names = [name for name, _ in self._axes]
        every = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
        return [*self.cell.points, *(point for point in every if point not in self.cell.points)]

    @property
    def _axes(self) -> list[tuple[str, tuple[Any, ...]]]:
        return list(self.cell.searched.items())

    def state(self, judged: Callable[[Trial], Score | None]) -> State:
        """Return how far the search is.

        Args:
            judged: what a trial is worth, or None if one of its runs is not finished.
        """
        points = self.cell.points
        if len(points) == 1:
            return State((), (), True, points[0], {})
        trials: list[Trial] = []
        candidates, enter = points, len(points)
        for rung in range(len(self.rungs)):
            entered, here = enter, candidates[:enter]
            while True:
                asked = [Trial(point, rung) for point in here]
                scores = [judged(trial) for trial in asked]
                known = [one for one in scores if one is not None]
                if len(known) < len(scores):
                    return State((*trials, *asked), self._later(here, rung), False, here[0], {})
                order = sorted(range(len(here)), key=lambda i: (known[i], i))
                good = [here[i] for i in order if not known[i].bad]
                tried = [trial.point for trial in (*trials, *asked)]
                if good:
                    more = [point for point in self._beside(good[0]) if point not in tried]
                else:
                    more = candidates[entered : entered + enter] or self._lower(here)
                    entered += enter
                if not more:
                    break
                here = [*here, *more]
            trials += asked
            if not good:
                return State(tuple(trials), (), True, None, {})
            candidates, enter = good, min(len(good), self._survivors(len(here), rung))
        return State(tuple(trials), (), True, good[0], self._edges(good[0]))

    def _survivors(self, count: int, rung: int) -> int:
        """Number of points that enter the rung after this one."""
        following = self.rungs[rung + 1] if rung + 1 < len(self.rungs) else self.rungs[rung]
        return min(count, max(FEWEST, count * self.rungs[rung] // following))

    def _later(self, here: list[Point], rung: int) -> tuple[Trial, ...]:
        """Stand-ins for the trials of later rungs."""
        later: list[Trial] = []
        for one in range(rung, len(self.rungs) - 1):
            here = here[: self._survivors(len(here), one)]
            later += [Trial(point, one + 1) for point in here]
        return tuple(later)

    def _beside(self, point: Point) -> list[Point]:
        """The point with the value before and after its own, on each axis that may grow."""
        return [other for name in self.wide for step in (-1, 1) for other in self._step(point, name, step)]

    def _lower(self, here: list[Point]) -> list[Point]:
        """The point with the lowest rate, with the next lower rate."""
        return self._step(min(here, key=lambda point: point["lr"]), "lr", -1) if "lr" in self.wide else []

    def _step(self, point: Point, name: str, step: int) -> list[Point]:
        values = self.wide[name]
        index = values.index(point[name]) + step
        return [{**point, name: values[index]}] if 0 <= index < len(values) else []

    def _edges(self, point: Point) -> dict[str, str]:
        edges = {}
        for name, values in self.wide.items():
            for end, possible, edge in zip((0, -1), self.ends[name], (LOWEST, HIGHEST), strict=True):
                if possible and point[name] == values[end]:
                    edges[name] = edge
        return edges


# ---------------------------------------------------------------------------------------------------------------
# the search of a grid


class Search:
    """The searches of all cells of a grid.

    Args:
        grid: what `gradless.bench.grid.read` returned.
        cost: forwards of one step of a configuration.

    Raises:
        BadInput: the budget is too small for one step, or two trials or cells ask for the same run.
    """

    possible: list[Request]
    """Every run that the grid may ask for, whatever the runs bring: untouched models, then cell by cell."""

    def __init__(self, grid: Grid, cost: Cost) -> None:
        self.grid = grid
        self.cells = {cell.name: _cell_search(grid, cell) for cell in cells(grid)}
        self._untouched = zero_shot_runs(grid)
        self._runs: dict[tuple[str, str, int], list[Request]] = {}
        self.possible = list(self._untouched)
        for name, one in self.cells.items():
            points = one.points
            search = self._searching(one, points, cost) if len(points) > 1 else []
            final = finals(grid, [(one.cell, point) for point in points], cost)
            for run in (*search, *final):
                rung = run.rung if run.phase == SEARCH else FINAL_RUNG
                self._runs.setdefault((name, canonical(run.point), rung), []).append(run)
            self.possible += [*search, *final]
        self.possible = distinct(grid, self.possible)

    def states(self, lines: Iterable[Mapping[str, Any]]) -> dict[str, State]:
        """Return how far the search of each cell is, by the cell's name.

        Args:
            lines: of ``results.jsonl``; those of other phases are passed over.
        """
        finished: dict[tuple[str, str, int], dict[int, Mapping[str, Any]]] = {}
        for line in lines:
            if line["phase"] == SEARCH:
                key = (cell_name(line["cell"]), canonical(line["point"]), line.get("rung", 0))
                finished.setdefault(key, {})[line["seed"]] = line
        return {name: one.state(self._judged(one.cell, finished)) for name, one in self.cells.items()}

    def choose(self, lines: Iterable[Mapping[str, Any]]) -> dict[str, Point | None]:
        """Return the point of each cell whose search is finished, from dev rows alone.

        Returns:
            By the name of the cell: its point, or None where every point diverged or failed. Cells that still wait
            for a run are absent.
        """
        return {name: state.point for name, state in self.states(lines).items() if state.finished}

    def standing(self, lines: Iterable[Mapping[str, Any]]) -> Standing:
        """Return what is to be run, and what is expected to follow, as `states` says."""
        wanted, expected, hopeless, edges = list(self._untouched), [], [], []
        for name, state in self.states(lines).items():
            final = [] if state.point is None else self._runs[name, canonical(state.point), FINAL_RUNG]
            searching = [self._runs[name, canonical(point), rung] for point, rung in state.trials]
            wanted += [*itertools.chain(*searching), *(final if state.finished else ())]
            if not state.finished:
                later = [self._runs[name, canonical(point), rung] for point, rung in state.expected]
                expected += [*itertools.chain(*later), *final]
            hopeless += [name] if state.point is None else []
            for axis, edge in state.edges.items():
                value, extend = (state.point or {})[axis], self.grid.extend
                added = f"{extend} added value{'s' if extend > 1 else ''}"
                edges.append(f"{name}: the best {axis}, {value}, is the {edge} after {added}")
        return Standing(wanted, expected, hopeless, edges)

    def _judged(
        self, cell: Cell, finished: Mapping[tuple[str, str, int], Mapping[int, Mapping[str, Any]]]
    ) -> Callable[[Trial], Score | None]:
        quantity = "loss" if self.grid.select == "loss" else main_metric(cell)

        def judged(trial: Trial) -> Score | None:
            runs = finished.get((cell.name, canonical(trial.point), trial.rung), {})
            if not all(seed in runs for seed in self.grid.search_seeds):
                return None
            return together([score(runs[seed], quantity, self.grid.judge) for seed in self.grid.search_seeds])

        return judged

    def _searching(self, one: CellSearch, points: Sequence[Point], cost: Cost) -> list[Request]:
        """The runs of all trials, the first rung first."""
        runs: list[Request] = []
        for point in points:
            steps = 0
            for rung, amount in enumerate(one.rungs):
                several = requests(self.grid, one.cell, point, SEARCH, cost, rung)
                if several[0].config.steps == steps:
                    amounts = f"{one.rungs[rung - 1]} and {amount}, which are {steps} steps both"
                    raise BadInput(f"{self.grid.path}: cell {one.cell.name}: budget: search has {amounts}: leave one")
                steps = several[0].config.steps
                runs += several
        return sorted(runs, key=lambda run: run.rung)


def _cell_search(grid: Grid, cell: Cell) -> CellSearch:
    """The search of a cell, with the values that its numeric axes may add."""
    wide: Axes = {}
    ends: dict[str, tuple[bool, bool]] = {}
    for name, values in cell.searched.items() if grid.extend else ():
        if len(values) < 2 or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
            continue

        def possible(value: Any, name: str = name) -> bool:
            try:
                point = {**cell.points[0], name: setting(name, value)}
                check(configure(grid, cell, point, seed=grid.search_seeds[0], test=True), several=True)
            except BadInput:
                return False
            return True

        below, beyond = (list(itertools.takewhile(possible, _further(values, grid.extend + 1, s))) for s in (-1, 1))
        wide[name] = (*reversed(below[: grid.extend]), *sorted(values), *beyond[: grid.extend])
        ends[name] = (len(below) > grid.extend, len(beyond) > grid.extend)
    return CellSearch(cell, wide, ends, grid.budget.search)


def _further(values: Sequence[float], count: int, sign: int) -> list[float]:
    """Return values beyond the last one (below the first one for sign -1), by the mean ratio of the axis.

    Rounded to two digits, so that the same run has the same id on every machine; an axis that is not positive goes on
    by its mean difference. Whole numbers stay whole. There are fewer where rounding makes one that was there.
    """
    low, high, gaps = min(values), max(values), len(values) - 1
    whole = all(isinstance(one, int) for one in values)
    further: list[float] = []
    for number in range(1, count + 1):
        if low > 0:
            exact = (high if sign > 0 else low) * (high / low) ** (sign * number / gaps)
            value = round(exact) if whole else float(f"{exact:.2g}")
        else:
            exact = (high if sign > 0 else low) + sign * number * (high - low) / gaps
            value = round(exact) if whole else float(f"{exact:.6g}")
        last = further[-1] if further else (high if sign > 0 else low)
        if sign * value <= sign * last or not math.isfinite(value):
            break
        further.append(value)
    return further
