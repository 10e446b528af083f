"""How long a step takes, and how much memory, against the floor: two forwards of the same batch and nothing else.

Everything is measured in one process and one run: floor, engines and an eager MeZO step take turns on one model, so
that a busy machine slows all of them alike, and what counts are ratios of medians. The floor is what users would write:
two calls of the same closure under `torch.no_grad`, and their heap where that is the faster one; but its float32
products are those of the faster library (`gradless.kernels.products`), where eager MeZO has torch's. Learning rates are
so small that the model stays the same for all. Only peak memory needs processes of their own, where it is read off the
process.
"""

from __future__ import annotations

import functools
import gc
import os
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradless import rng
from gradless.cost import figures, memory, time_shares, turns, workload
from gradless.cost.settings import EAGER, FLOOR
from gradless.cost.settings import ProfileSettings as Settings
from gradless.cost.turns import WARMUP, Candidate
from gradless.cost.workload import LR, Subject
from gradless.errors import BadInput
from gradless.forward import heap
from gradless.optimizer import Update
from gradless.runs.record import versions
from gradless.system import machine, tables, terminal
from gradless.system.atomic import write_json
from gradless.system.progress import Reporter

CHUNK = 512  # steps that a replay fuses
PICTURES = (".png", ".svg", ".pdf")


def profile(
    model: str,
    *,
    json: Path | None = None,
    picture: Path | None = None,
    reporter: Reporter | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """Measure the floor, an eager MeZO step and the engines on random tokens.

    Args:
        model: see `Settings`.
        json: file for the result.
        picture: file for the share-of-time picture, PNG, SVG or PDF.
        reporter: where progress goes.
        choices: the other fields of `Settings`.

    Returns:
        What the JSON file holds; all times in seconds, all memory in bytes. ``engines`` maps names to
        ``step_seconds`` (the median step and its part of the flush of deferred updates), ``ratio`` (to
        ``floor_seconds``), ``flush_seconds`` (of ``repeats`` steps), ``samples`` and their spread, ``used`` (the
        engine that really ran), ``minor_faults`` and ``context_switches`` (medians a step) and ``peak_memory_bytes``,
        of which ``kernels_memory_bytes`` are the code of just-in-time compiled kernels and their compiler. ``share``
        maps candidates to seconds of a step by the kinds of `gradless.cost.time_shares`, read off torch's profiler in
        two steps that took ``share_overhead`` times as long. ``floor_heaps`` are the floor's samples with the heap
        that engines keep and with the system's, ``floor_heap`` the faster one, which is the floor.

    Raises:
        BadInput: anything wrong with the choices or the model, or files that cannot be written.
    """
    if choices.get("scheme") == "codes":  # whole numbers, which eager MeZO cannot perturb
        choices["eager"] = False
    settings, reporter = Settings(model=model, **choices), reporter or Reporter()
    settings.check()
    _writable(json, picture)
    with workload.threads(settings.threads):
        subject = workload.subject(settings, reporter.say)
        result = _facts(subject)
        peaks = memory.in_this_process(subject) if settings.memory and subject.lm.device.type == "cuda" else {}
        result |= _timed(subject, reporter)
        if settings.replay_steps:
            result |= _replayed(subject, min(row["step_seconds"] for row in result["engines"].values()), reporter)
    del subject  # a second copy of the model may not fit beside it
    gc.collect()
    if settings.memory and not peaks:
        peaks = memory.in_processes(settings, reporter)
    memory.enter(result, peaks)
    if json is not None:
        write_json(json, result)
    if picture is not None:
        figures.profile_picture(result, picture)
    return result


# ---------------------------------------------------------------------------------------------------------------
# time


def _timed(subject: Subject, reporter: Reporter) -> dict[str, Any]:
    """Time floor, eager MeZO and engines, taking turns; then see where their time went."""
    settings, device = subject.settings, subject.lm.device
    candidates = [workload.candidate(subject, name) for name in settings.candidates()]
    with reporter.job("profile", WARMUP + settings.repeats) as show, warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")

        def done(rounds: int, seconds: dict[str, list[float]]) -> None:
            show(rounds, f"floor {seconds[FLOOR][-1]:.3f} s" if seconds[FLOOR] else "warming up")

        system = _SystemHeap(candidates, device)
        times = turns.take_turns(candidates, settings.repeats, device, prepare=system.turn, done=done)
    for line in dict.fromkeys(str(warning.message) for warning in raised if issubclass(warning.category, UserWarning)):
        reporter.say(line)
    kept, other = times.steps[FLOOR], system.samples
    heap_of_floor = "system" if other and statistics.median(other) < statistics.median(kept) else "kept"
    if heap_of_floor == "system":
        times.steps[FLOOR], times.events[FLOOR] = other, system.events
    floor = statistics.median(times.steps[FLOOR])
    rows = {c.name: _row(times.steps[c.name], times.flushes[c.name], floor) for c in candidates}
    for name, row in rows.items():
        faults, switches = (statistics.median(column) for column in zip(*times.events[name], strict=True))
        row |= {"minor_faults": faults, "context_switches": switches}
    shares = {c.name: _share(c, rows[c.name], device) for c in candidates}
    engines = {c.name: rows[c.name] | {"used": c.optimizer.engine} for c in candidates if c.optimizer is not None}
    return {
        "floor_seconds": floor,
        "floor": rows[FLOOR],
        "eager_mezo_seconds": rows[EAGER]["step_seconds"] if settings.eager else None,
        "eager_mezo": rows.get(EAGER),
        "engines": engines,
        "fastest": min(engines, key=lambda name: engines[name]["step_seconds"]) if engines else None,
        "share": {name: seconds for name, (seconds, _) in shares.items()},
        "share_overhead": {name: overhead for name, (_, overhead) in shares.items()},
        "floor_heap": heap_of_floor if other else None,
        "floor_heaps": {"kept": kept, "system": other} if other else {},
    }


class _SystemHeap:
    """The floor with the heap that a process without gradless has, once in each round.

    While engines live, freed memory stays with the process (`gradless.forward.heap`), which serves the floor, too. A
    user's two forwards may be faster or slower without: both are measured, and ratios are to the faster one.

    Cost: two floors and a step of an engine a round, which puts its pages back.
    """

    def __init__(self, candidates: Sequence[Candidate], device: torch.device) -> None:
        self.device = device
        self.floor = next(c for c in candidates if c.name == FLOOR)
        self.engine = next((c for c in reversed(candidates) if c.optimizer is not None), None)
        self.samples: list[float] = []
        self.events: list[tuple[int, int]] = []

    def turn(self, number: int) -> None:
        """Measure the floor, but in rounds that warm up."""
        if self.engine is None or number < WARMUP or not heap.is_kept():
            return
        with heap.as_elsewhere():
            self.floor.step()
            before = turns.counted()
            self.samples.append(turns.seconds_of(self.floor.step, self.device))
            after = turns.counted()
        self.events.append((after[0] - before[0], after[1] - before[1]))
        self.engine.step()


def _row(samples: list[float], flush: float, floor: float) -> dict[str, Any]:
    """Return a candidate's figures. A flush belongs to the steps since the last one: all timed ones."""
    quartiles = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    seconds = statistics.median(samples) + flush / len(samples)
    return {
        "step_seconds": seconds,
        "ratio": seconds / floor,
        "flush_seconds": flush,
        "min": min(samples),
        "quartiles": [quartiles[0], quartiles[2]],
        "samples": samples,
    }


def _share(candidate: Candidate, row: dict[str, Any], device: torch.device) -> tuple[dict[str, float], float]:
    """Return the seconds of a step by what they were spent on, and how many times as long a profiled step takes.

    A flush is all sweeps.
    """
    flush = row["flush_seconds"] / len(row["samples"])
    shares = time_shares.measure(candidate.step, lambda: turns.synchronise(device), on_cuda=device.type == "cuda")
    plain = row["step_seconds"] - flush
    seconds = {name: share * plain for name, share in shares.of.items()}
    return seconds | {time_shares.SWEEPS: seconds[time_shares.SWEEPS] + flush}, shares.seconds / plain


def _replayed(subject: Subject, step_seconds: float, reporter: Reporter) -> dict[str, Any]:
    """Replay a ledger of made-up moves; nothing about a replay depends on the values of its coefficients."""
    settings, device = subject.settings, subject.lm.device
    opt = workload.optimizer(subject)
    queries, lrs = opt.estimator.queries(0), (LR,) * len(opt.param_groups)
    drawn = rng.normal(settings.seed, "replay", (settings.replay_steps + 1, queries)).tolist()
    moves = [Update(step, tuple(coeffs), lrs, False) for step, coeffs in enumerate(drawn)]
    opt.replay(moves[:1])  # compilation
    seconds = 0.0
    with reporter.job("replay", settings.replay_steps) as show:
        for begin in range(1, len(moves), CHUNK):
            part = moves[begin : begin + CHUNK]
            seconds += turns.seconds_of(functools.partial(opt.replay, part, chunk=CHUNK), device)
            show(begin - 1 + len(part), "")
    each = seconds / settings.replay_steps
    return {
        "replay_steps": settings.replay_steps,
        "replay_seconds_per_step": each,
        "replay_speedup": step_seconds / each,
    }


# ---------------------------------------------------------------------------------------------------------------
# what is shown


def show(result: dict[str, Any]) -> None:
    """Print a result: a table on a terminal, plain lines elsewhere."""
    heads = ("", "seconds", "x floor", "quartiles", "peak memory", "x inference", "of it compiled code")
    rows = [("two forwards (floor)", result["floor"])]
    if result["eager_mezo"]:
        rows.append(("eager MeZO", result["eager_mezo"]))
    for name, row in result["engines"].items():
        rows.append((name if row["used"] == name else f"{name} (ran as {row['used']})", row))
    lines = [_line(name, row, result["inference_memory_bytes"]) for name, row in rows]
    tables.show(figures.profile_title(result), heads, lines)
    _show_shares(result, dict(rows))
    if "replay_steps" in result:
        each, speedup = result["replay_seconds_per_step"], result["replay_speedup"]
        terminal.say(
            f"replay of {result['replay_steps']} steps: {each:.3g} s a step, {speedup:.0f} x faster than training"
        )
    terminal.say(f"fastest: {result['fastest']}, {result['engines'][result['fastest']]['ratio']:.2f} x the floor")


def _show_shares(result: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    """Print where the seconds of each candidate's step go, and what the system had to do for it."""
    kinds = tuple(figures.PARTS)
    lines = []
    for (name, row), seconds in zip(rows.items(), result["share"].values(), strict=True):
        counts = (f"{row['minor_faults']:.0f}", f"{row['context_switches']:.0f}")
        lines.append((name, *(f"{seconds[kind]:.4f}" for kind in kinds), *counts))
    longest = max(result["share_overhead"].values())
    title = f"seconds a step by kind of work (torch's profiler, under which a step takes up to {longest:.2f} x as long)"
    tables.show(title, ("", *kinds, "fresh pages", "switches"), lines)


def _line(name: str, row: dict[str, Any], inference: int | None) -> tuple[str, ...]:
    low, high = row["quartiles"]
    peak, code = row["peak_memory_bytes"], row["kernels_memory_bytes"]
    memory = ["", "", ""]
    if peak is not None:
        ratio = f"{peak / inference:.2f}" if inference else ""
        memory = [f"{peak / 1e9:.3f} GB", ratio, f"{code / 1e9:.3f} GB" if code else ""]
    return (name, f"{row['step_seconds']:.4f}", f"{row['ratio']:.2f}", f"{low:.4f} - {high:.4f}", *memory)


# ---------------------------------------------------------------------------------------------------------------
# around it


def _facts(subject: Subject) -> dict[str, Any]:
    """Return what was measured, and where."""
    settings, model = subject.settings, subject.lm
    return {
        "model": model.name,
        "scheme": settings.scheme,
        "method": settings.method,
        "batch_size": settings.batch_size,
        "length": settings.length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": settings.device,
        "device_name": machine.device_name(model.device),
        "threads": torch.get_num_threads(),
        "repeats": settings.repeats,
        "seed": settings.seed,
        "parameters": model.num_parameters,
        "tuned_parameters": sum(p.numel() for _, p in subject.named),
        "versions": versions(),
        "processor": machine.processor(),
        "bfloat16_products": _bfloat16_products(),
    }


def _bfloat16_products() -> bool:
    """Return whether oneDNN has products of bfloat16 for this processor."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(known and torch.backends.mkldnn.is_available() and known())


def _writable(json: Path | None, picture: Path | None) -> None:
    """Refuse, before anything is measured, files that cannot be written."""
    if picture is not None:
        import matplotlib  # noqa: F401

        if picture.suffix.lower() not in PICTURES:
            raise BadInput(f"{picture} is no picture that can be drawn: end its name with {', '.join(PICTURES)}")
    for path in (json, picture):
        if path is None:
            continue
        trial = path.with_name(path.name + ".new")
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            trial.touch()
            trial.unlink()
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(0, "it is write-protected")
        except OSError as error:
            raise BadInput(f"{path} cannot be written ({error.strerror}): choose another file") from None
