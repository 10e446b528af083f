"""Time and memory that a grid will take: from finished runs, or else from sizes and the speed of this machine."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple, TypeVar

import torch

from gradless.bench.grid import DONE, FINAL, PHASES, SEARCH, ZERO_SHOT, Cost, Request
from gradless.kernels import products
from gradless.lm import LanguageModel, objectives
from gradless.methods import METHODS
from gradless.runs import build
from gradless.runs.config import TuneConfig
from gradless.runs.facts import duration as duration
from gradless.system.peak_memory import PeakMeter
from gradless.tasks import Splits, Task

SAMPLE: Final = 32  # training rows that stand for all
SIDE: Final = 1024  # of the square matrices whose product is timed
MEASURED: Final = "expected time and memory: from finished runs of the same kind, or of all kinds where there is none"
MODELLED: Final = (
    "expected time: a guess from tokens, weights, the speed of a matrix product here, and a start of each run; "
    "expected memory: libraries, weights and optimizer state, without activations (few for forward-only methods)"
)
STARTING: Final = 2.0
"""Seconds of a run around its work, beside the reading of the model: a process, data, the compiled kernels, results."""
GIB: Final = 2.0**30
NOWHERE: Final = Path("/nonexistent")  # a run directory without initial values


class Guess(NamedTuple):
    """Expected seconds and memory of one run."""

    seconds: float
    memory: float  # bytes; 0 if unknown


T = TypeVar("T")
Guesser = Callable[[Request], Guess]


def remembered(compute: Callable[[TuneConfig], T], known_by: Callable[[TuneConfig], Any]) -> Callable[[TuneConfig], T]:
    """Return ``compute``, called once for all configurations of which ``known_by`` returns the same JSON value."""
    values: dict[str, T] = {}

    def value(config: TuneConfig) -> T:
        key = json.dumps(known_by(config), sort_keys=True)
        if key not in values:
            values[key] = compute(config)
        return values[key]

    return value


class Rows(NamedTuple):
    """Sizes of the rows of a task under one model."""

    batch: float  # tokens of a training row in a batch
    scored: float  # tokens of a row that is evaluated, all its options
    dev: int
    test: int


def show(
    wanted: Sequence[Request],
    expected: Sequence[Request],
    lines: Mapping[str, dict[str, Any]],
    cost: Cost,
    say: Callable[[str], None],
) -> None:
    """Say what there is to run, by phase and by method and scheme.

    Args:
        wanted: runs that are asked for.
        expected: runs that stand for those whose point is not chosen yet.
        lines: of finished runs, by id.
        cost: forwards of a step of a configuration.
        say: receives the lines.
    """
    runs = [*wanted, *expected]
    guess = from_lines(lines.values(), cost) if lines else from_sizes(cost, say)
    cells = {json.dumps(one.cell, sort_keys=True) for one in runs if one.phase != ZERO_SHOT}
    phases = ", ".join(f"{sum(one.phase == phase for one in runs)} {phase}" for phase in PHASES)
    say(f"{len(cells)} cells, {len(runs)} runs: {phases}")
    groups: dict[str, list[Request]] = {}
    for one in runs:
        name = ZERO_SHOT if one.phase == ZERO_SHOT else f"{one.cell['method']} x {one.cell['scheme']}"
        groups.setdefault(name, []).append(one)
    say(f"{'method x scheme':<28} {'runs':>6} {'forwards':>10} {'time':>10} {'memory':>10}")
    for name, some in [*groups.items(), ("all", runs)]:
        guesses = [guess(one) for one in some]
        seconds, memory = sum(one.seconds for one in guesses), max(one.memory for one in guesses)
        forwards = sum(spent(one, cost) for one in some)
        size = f"{memory / GIB:.2f} GiB" if memory else "-"
        say(f"{name:<28} {len(some):>6} {forwards:>10} {duration(seconds):>10} {size:>10}")
    say(_search_share(runs, cost))
    say(MEASURED if lines else MODELLED)
    done = sum(one.id in lines for one in runs)
    if done:
        rest = sum(guess(one).seconds for one in runs if one.id not in lines)
        say(f"finished: {done} of {len(runs)} runs; {duration(rest)} of work left")


def _search_share(runs: Sequence[Request], cost: Cost) -> str:
    """Return what the search costs beside the final runs, and what to do if that is more."""
    search, final = (sum(spent(one, cost) for one in runs if one.phase == phase) for phase in (SEARCH, FINAL))
    advice = ""
    if search > final:
        advice = ": the search costs more than the final runs, so give it fewer points or less of the budget, as rungs"
    return f"forwards of the search: {search}, of the final runs: {final}{advice}"


def spent(one: Request, cost: Cost) -> int:
    """Return the forwards of a run's training."""
    return 0 if one.phase == ZERO_SHOT else one.config.steps * cost(one.config)


# ---------------------------------------------------------------------------------------------------------------
# from finished runs


def left(runs: Iterable[Request], lines: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds that runs will take if each takes as long as finished ones of its kind did."""
    means = _means((_kinds(line["cell"], line["phase"]), line["wall_seconds"]) for line in lines if _whole(line))
    return sum(_nearest(means, _kinds(one.cell, one.phase)) for one in runs)


def from_lines(lines: Iterable[Mapping[str, Any]], cost: Cost) -> Guesser:
    """Return a guesser from finished runs: seconds go with the forwards of training, memory with the kind of run."""
    whole = [(_kinds(line["cell"], line["phase"]), line) for line in lines if _whole(line)]
    rates = _means((kinds, line["wall_seconds"] / max(line["forwards"], 1)) for kinds, line in whole)
    peaks = _means((kinds, line["peak_memory_bytes"]) for kinds, line in whole if line["peak_memory_bytes"])

    def guess(one: Request) -> Guess:
        kinds = _kinds(one.cell, one.phase)
        same = kinds[:-1]  # memory of another method says nothing
        return Guess(_nearest(rates, kinds) * max(spent(one, cost), 1), _nearest(peaks, same))

    return guess


def _kinds(cell: Mapping[str, Any], phase: str) -> list[str]:
    """Return the kinds that a run belongs to, the narrowest first; zero-shot runs are no measure of others."""
    names = [str(cell[name]) for name in ("method", "scheme", "task", "model")]
    narrow, wide, method = ("/".join(names[:count]) for count in (4, 2, 1))
    return [f"{phase}/{narrow}", narrow, f"{phase}/{wide}", wide, method, str(phase == ZERO_SHOT)]


def _whole(line: Mapping[str, Any]) -> bool:
    """Return whether a run came to its end and its time is known."""
    return line["status"] == DONE and line["wall_seconds"] is not None


def _means(values: Iterable[tuple[list[str], float]]) -> dict[str, float]:
    by_kind: dict[str, list[float]] = {}
    for kinds, value in values:
        for kind in kinds:
            by_kind.setdefault(kind, []).append(value)
    return {kind: fmean(several) for kind, several in by_kind.items()}


def _nearest(means: Mapping[str, float], kinds: Iterable[str]) -> float:
    return next((means[kind] for kind in kinds if kind in means), 0.0)


# ---------------------------------------------------------------------------------------------------------------
# from sizes


def from_sizes(cost: Cost, say: Callable[[str], None]) -> Guesser:
    """Return a guesser from the tokens of 32 rows, the weights they meet, and the speed of a matrix product here.

    Cost: loads each model once for every scheme, and each task once.

    Raises:
        BadInput: a model or data that cannot be loaded, which the runs could not either.
    """
    meter = PeakMeter(torch.device("cpu"))
    with meter.measured():
        pass
    libraries = meter.peak

    def load(config: TuneConfig) -> tuple[LanguageModel, float, float]:
        begun = time.perf_counter()
        model = build.base_model(config, say=say)
        return model, matmul_speed(model.device, model.dtype), time.perf_counter() - begun

    def known_by(*names: str) -> Callable[[TuneConfig], Any]:
        return lambda config: [getattr(config, name) for name in ("model", "dtype", "device", "chat", *names)]

    model_of = remembered(load, known_by())
    data = known_by("task", "data", "own", "aligned", "objective")
    rows_of = remembered(lambda config: _rows(config, model_of(config)[0]), data)
    tuned_of = remembered(lambda config: _tuned(config, say), known_by("scheme", "rank", "targets", "freeze"))

    def guess(one: Request) -> Guess:
        config = one.config
        (model, speed, reading), rows = model_of(config), rows_of(config)
        scored = rows.test if one.phase in (FINAL, ZERO_SHOT) else 0
        tokens = spent(one, cost) * config.batch_size * rows.batch
        memory = float(_stored(model)) + (libraries if model.device.type == "cpu" else 0)
        if one.phase != ZERO_SHOT:
            scored += -(-config.steps // (config.eval_every or config.steps)) * rows.dev
            if copies := METHODS[config.method].copies:
                memory += 4.0 * copies * tuned_of(config)
        seconds = (tokens + scored * rows.scored) * 2 * _multiplied(model) / speed
        return Guess(STARTING + reading + seconds, memory)

    return guess


def matmul_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Return the floating-point operations a second of a product of square matrices, measured for some ``seconds``."""
    square = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    into = torch.empty_like(square)
    with products.faster():
        products.linear_into(into, square, square)
        done, begun = 0, time.perf_counter()
        while True:
            products.linear_into(into, square, square)
            done += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = time.perf_counter() - begun
            if took >= seconds:
                return 2.0 * SIDE**3 * done / took


def _multiplied(model: LanguageModel) -> int:
    """Return the number of weights that a token meets: not the embedding, nor the output layer, used little."""
    inner: Any = model.model
    tables = {id(module.weight): module.weight.numel() for module in (inner.get_input_embeddings(), model.head)}
    return max(1, model.num_parameters - sum(tables.values()))


def _stored(model: LanguageModel) -> int:
    """Return the bytes of all weights as they are kept: values, or the codes of quantised ones."""
    kept = (getattr(p, "store", p) for p in model.model.parameters())
    return sum(int(one.nbytes) for one in kept)


def _rows(config: TuneConfig, model: LanguageModel) -> Rows:
    task, splits = _sample(config)
    encoded = build.encode_rows(model, task, splits.train[:SAMPLE], config.max_length)
    objective = objectives.choose(task, config.objective, max_length=config.max_length)
    size = config.micro_batch_size or config.batch_size
    batches = objectives.prepare(model, objective, encoded, size)
    scored = fmean(row.longest * row.sequences for row in encoded)
    dev = len(splits.dev) if config.own else config.num_dev
    test = len(splits.test) if config.own else config.num_test
    return Rows(sum(batch.input_ids.numel() for batch in batches) / len(encoded), scored, dev, test)


def _sample(config: TuneConfig) -> tuple[Task, Splits]:
    if config.own:
        return build.load_task(config)
    few = min(config.num_train, SAMPLE) or 1
    return build.load_task(dataclasses.replace(config, num_train=few, num_dev=0, num_test=0, k_shot=None))


def _tuned(config: TuneConfig, say: Callable[[str], None]) -> int:
    task, splits = _sample(config)
    plain = dataclasses.replace(config, method="mezo", options={})
    model, _ = build.build_for(plain, NOWHERE, task, splits.train, say=say)
    return sum(leaf.param.numel() for leaf in model.optimizer.leaves)
