"""How long a step takes, and how much memory, against the floor: two forwards of the same batch and nothing else.

Everything is measured in one process and one run: floor, engines and an eager MeZO step take turns on one model, so
that a busy machine slows all of them alike, and what counts are ratios of medians. Learning rates are so small that
the model stays the same for all. Only peak memory needs processes of their own, where it is read off the process.
"""

from __future__ import annotations

import contextlib
import gc
import json as json_format
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gradless import rng
from gradless.cost import figures, time_shares, workload
from gradless.cost.workload import EAGER, FLOOR, LR, Candidate, Settings, Subject
from gradless.errors import BadInput, unknown
from gradless.optimizer import ENGINES, Update
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.peak_memory import PeakMeter
from gradless.system.progress import Reporter

WARMUP = 2  # rounds: compilation, allocators and caches
MEMORY_STEPS = 3
CHUNK = 512  # steps that a replay fuses
PEAKS = ("peak_memory_bytes", "inference_memory_bytes", "kernels_memory_bytes")
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
        engine that really ran) and ``peak_memory_bytes``, of which ``kernels_memory_bytes`` are the code of
        just-in-time compiled kernels and their compiler.

    Raises:
        BadInput: anything wrong with the choices or the model, or files that cannot be written.
    """
    settings, reporter = Settings(model=model, **choices), reporter or Reporter()
    settings.check()
    _writable(json, picture)
    with _threads(settings.threads):
        subject = workload.subject(settings, reporter.say)
        result = _facts(subject)
        peaks = _peaks_here(subject) if settings.memory and subject.lm.device.type == "cuda" else {}
        result |= _timed(subject, reporter)
        if settings.replay_steps:
            result |= _replayed(subject, min(row["step_seconds"] for row in result["engines"].values()), reporter)
    del subject  # a second copy of the model may not fit beside it
    gc.collect()
    if settings.memory and not peaks:
        peaks = _peaks_of_processes(settings, reporter)
    _enter_memory(result, peaks)
    if json is not None:
        write_json(json, result)
    if picture is not None:
        figures.profile_picture(result, picture)
    return result


def memory_of(name: str, *, json: Path, **choices: Any) -> None:
    """Write the peak memory of inference and of a few steps of one candidate, as measured in this process."""
    settings = Settings(**choices)
    settings.check()
    if name not in (FLOOR, EAGER, *ENGINES):
        raise BadInput(unknown("candidate", name, (FLOOR, EAGER, *ENGINES)))
    with _threads(settings.threads):
        write_json(json, _peaks(workload.subject(settings, Reporter(quiet=True).say), name))


# ---------------------------------------------------------------------------------------------------------------
# time


def _timed(subject: Subject, reporter: Reporter) -> dict[str, Any]:
    """Floor, eager MeZO and engines, taking turns; then where their time went."""
    settings, device = subject.settings, subject.lm.device
    running = [workload.candidate(subject, name) for name in _names(settings)]
    samples: dict[str, list[float]] = {c.name: [] for c in running}
    flushes = dict.fromkeys(samples, 0.0)
    with reporter.job("profile", WARMUP + settings.repeats) as show, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for turn in range(WARMUP + settings.repeats):
            if turn == WARMUP:
                _flush(running, device)
            for place in range(len(running)):
                c = running[(place + turn) % len(running)]  # nobody always runs behind the same neighbour
                seconds = seconds_of(c.step, device)
                if turn >= WARMUP:
                    samples[c.name].append(seconds)
            show(turn + 1, f"floor {samples[FLOOR][-1]:.3f} s" if samples[FLOOR] else "warming up")
        flushes |= _flush(running, device)
    for line in dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning)):
        reporter.say(line)
    floor = statistics.median(samples[FLOOR])
    rows = {c.name: _row(samples[c.name], flushes[c.name], floor) for c in running}
    share = {c.name: _share(c, rows[c.name], device) for c in running}
    engines = {c.name: rows[c.name] | {"used": c.optimizer.engine} for c in running if c.optimizer is not None}
    return {
        "floor_seconds": floor,
        "floor": rows[FLOOR],
        "eager_mezo_seconds": rows[EAGER]["step_seconds"] if settings.eager else None,
        "eager_mezo": rows.get(EAGER),
        "engines": engines,
        "fastest": min(engines, key=lambda name: engines[name]["step_seconds"]) if engines else None,
        "share": share,
    }


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    """How long a step takes, until the device has finished it."""
    _synchronise(device)
    begun = time.perf_counter()
    step()
    _synchronise(device)
    return time.perf_counter() - begun


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _flush(running: Sequence[Candidate], device: torch.device) -> dict[str, float]:
    """Write all deferred updates; the seconds that takes each engine."""
    return {c.name: seconds_of(c.optimizer.flush, device) for c in running if c.optimizer is not None}


def _row(samples: list[float], flush: float, floor: float) -> dict[str, Any]:
    """A candidate's figures. A flush belongs to the steps since the last one: all timed ones."""
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


def _share(candidate: Candidate, row: dict[str, Any], device: torch.device) -> dict[str, float]:
    """The seconds of a step by what they were spent on; a flush is all sweeps."""
    flush = row["flush_seconds"] / len(row["samples"])
    parts = time_shares.measure(candidate.step, lambda: _synchronise(device), on_cuda=device.type == "cuda")
    found = {name: part * (row["step_seconds"] - flush) for name, part in parts.items()}
    return found | {time_shares.SWEEPS: found[time_shares.SWEEPS] + flush}


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
            seconds += seconds_of(lambda part=part: opt.replay(part, chunk=CHUNK), device)  # type: ignore[misc]
            show(begin - 1 + len(part), "")
    each = seconds / settings.replay_steps
    return {
        "replay_steps": settings.replay_steps,
        "replay_seconds_per_step": each,
        "replay_speedup": step_seconds / each,
    }


# ---------------------------------------------------------------------------------------------------------------
# memory


@torch.no_grad()
def _peaks(subject: Subject, name: str) -> dict[str, int]:
    """Peak bytes of inference, of what the kernels' code takes, and of the first steps of one candidate.

    Later steps do the same again. On a CPU, a just-in-time compiler and its code count as resident memory of the
    process; that they do not grow with the model can be seen only if they are told apart.
    """
    device = subject.lm.device
    inference, training = PeakMeter(device), PeakMeter(device)
    subject.closure()  # allocator and caches warm up outside
    with inference.measured():
        subject.closure()
    before = _now(device)
    if name in ENGINES:
        workload.toy_steps(subject, name)
    code = max(0, _now(device) - before)
    candidate = workload.candidate(subject, name)
    with training.measured(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when time is measured
        for _ in range(MEMORY_STEPS):
            candidate.step()
    return {
        "inference_memory_bytes": inference.peak,
        "kernels_memory_bytes": code,
        "peak_memory_bytes": training.peak,
    }


def _now(device: torch.device) -> int:
    """Bytes held at this moment."""
    meter = PeakMeter(device)
    with meter.measured():
        pass
    return meter.peak


def _names(settings: Settings) -> list[str]:
    """All candidates, each once."""
    return list(dict.fromkeys((FLOOR, *([EAGER] if settings.eager else []), *settings.engines)))


def _peaks_here(subject: Subject) -> dict[str, dict[str, int]]:
    """Peaks of the device's allocator; each candidate is gone before the next one comes."""
    found = {}
    for name in _names(subject.settings):
        found[name] = _peaks(subject, name)
        gc.collect()
    return found


def _peaks_of_processes(settings: Settings, reporter: Reporter) -> dict[str, dict[str, int]]:
    """Peaks of the resident set, each candidate's in a process of its own, one after the other."""
    names, found = _names(settings), {}
    with reporter.job("memory", len(names)) as show, tempfile.TemporaryDirectory() as folder:
        for done, name in enumerate(names, 1):
            target = Path(folder) / "peaks.json"
            command = [sys.executable, "-m", "gradless", "profile", *settings.arguments(), "--only", name]
            run = subprocess.run([*command, "--json", str(target)], capture_output=True, text=True, check=False)
            if run.returncode == 0:
                found[name] = json_format.loads(target.read_text())
            else:
                why = (run.stderr.strip().splitlines() or ["killed, out of memory?"])[-1]
                reporter.say(f"the memory of {name} could not be measured: {why}")
            show(done, name)
    return found


def _enter_memory(result: dict[str, Any], peaks: dict[str, dict[str, int]]) -> None:
    """Write peaks to where they belong; None where they were not measured."""
    result["inference_memory_bytes"] = peaks.get(FLOOR, {}).get("inference_memory_bytes")
    rows = {FLOOR: result["floor"], EAGER: result["eager_mezo"], **result["engines"]}
    for name, row in rows.items():
        if row is not None:
            row |= {**dict.fromkeys(PEAKS), **peaks.get(name, {})}


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
    title = figures.profile_title(result)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title)
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left")
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    else:
        print(title)
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        for line in (heads, *lines):
            cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
            print("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())
    if "replay_steps" in result:
        each, speedup = result["replay_seconds_per_step"], result["replay_speedup"]
        print(f"replay of {result['replay_steps']} steps: {each:.3g} s a step, {speedup:.0f} x faster than training")
    print(f"fastest: {result['fastest']}, {result['engines'][result['fastest']]['ratio']:.2f} x the floor")


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
    """What was measured, and where."""
    settings, model = subject.settings, subject.lm
    return {
        "model": model.name,
        "scheme": settings.scheme,
        "method": settings.method,
        "batch_size": settings.batch_size,
        "length": settings.length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": settings.device,
        "device_name": _device_name(model.device),
        "threads": torch.get_num_threads(),
        "repeats": settings.repeats,
        "seed": settings.seed,
        "parameters": model.num_parameters,
        "tuned_parameters": sum(p.numel() for _, p in subject.named),
        "versions": versions(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _writable(json: Path | None, picture: Path | None) -> None:
    """Refuse files that could not be written in the end, before anything is measured."""
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


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads inside, as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
