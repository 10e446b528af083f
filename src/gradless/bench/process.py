"""One run as a process: started with its claim, watched, and stopped when the benchmark is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gradless.bench import results
from gradless.bench.forkserver import SUPPORTED, Forked, Nursery
from gradless.bench.grid import ZERO_SHOT, Request

Command = Callable[[Request, Path], list[str]]
FULL: Final = re.compile(r"cannot write|No space left on device|Disk quota exceeded")
PYTHON: Final = (sys.executable, "-m", "gradless")
TAIL: Final = 4000  # characters of what a failed process said last
PATIENCE: Final = 30.0  # seconds that a process has to stop by itself


class Child(NamedTuple):
    """A process at work."""

    request: Request
    process: subprocess.Popen[str] | Forked
    claim: int
    begun: float


def command(request: Request, out: Path) -> list[str]:
    """The command line of a run."""
    job = ["eval"] if request.phase == ZERO_SHOT else ["tune", "--resume"]
    places = ["--config", results.request_file(out, request.id), "--out", results.run_folder(out, request.id)]
    return [*PYTHON, *job, *map(str, places)]


@contextlib.contextmanager
def nursery(requests: Iterable[Request]) -> Iterator[Nursery | None]:
    """What runs are forked from, with their model read if all have the same; None where a fork is not possible."""
    configs = [one.config for one in requests]
    if not SUPPORTED or not configs:
        yield None
        return
    models = {(config.model, config.dtype) for config in configs}
    on_cpu = all(config.device == "cpu" for config in configs)
    home = Nursery(models.pop() if len(models) == 1 and on_cpu else None)
    try:
        yield home
    finally:
        home.close()


def start(
    request: Request, out: Path, claim: int, threads: int | None, make: Command, home: Nursery | None = None
) -> Child:
    """Start a run, which inherits the claim on it.

    It gets a session of its own: a Ctrl-C on the terminal reaches the benchmark alone, which then stops its runs.

    Args:
        request: what to run.
        out: bench directory.
        claim: file descriptor.
        threads: of the run; None leaves it to the environment.
        make: makes the command line.
        home: fork from here instead of starting Python.
    """
    folder = results.run_folder(out, request.id)
    folder.mkdir(parents=True, exist_ok=True)
    told = os.environ.get("OMP_NUM_THREADS", "")
    results.began(folder, threads or (int(told) if told.isdecimal() else os.cpu_count()))
    if home is not None:
        arguments = make(request, out)[len(PYTHON) :]
        begun = time.perf_counter()
        return Child(request, home.fork(arguments, claim, threads), claim, begun)
    given = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    process = subprocess.Popen(
        make(request, out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **given},
        start_new_session=True,
        pass_fds=() if sys.platform == "win32" else (claim,),
    )
    return Child(request, process, claim, time.perf_counter())


def ended(child: Child, patience: float) -> str | None:
    """What a process said on stderr, once it has ended; None if it still works after ``patience`` seconds."""
    try:
        return child.process.communicate(timeout=patience)[1]
    except subprocess.TimeoutExpired:
        return None


def close(child: Child, stderr: str, out: Path) -> str | None:
    """Record how a process ended.

    Returns:
        The sentence with which the whole benchmark has to stop (the disk is full), or None.
    """
    folder = results.run_folder(out, child.request.id)
    code = child.process.returncode
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = said[-1].removeprefix("gradless: ") if said else ""
    finished = results.line(out, child.request) is not None
    if not finished and FULL.search(last):
        with contextlib.suppress(OSError):
            results.ended(folder, time.perf_counter() - child.begun)
        return last
    results.ended(folder, time.perf_counter() - child.begun)
    if not finished:
        if code < 0:
            last = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        results.failed(folder, last or f"ended with exit code {code} and without a result", code, stderr[-TAIL:])
    return None


def stop(children: Iterable[Child], out: Path) -> None:
    """Interrupt processes as Ctrl-C does, wait, end those that do not listen, and give their claims back."""
    children = list(children)
    # A shell that puts us into the background makes us and our children deaf to Ctrl-C.
    deaf = sys.platform == "win32" or signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM if deaf else signal.SIGINT)
    until = time.perf_counter() + PATIENCE
    for child in children:
        if ended(child, max(0.0, until - time.perf_counter())) is None:
            child.process.kill()
            child.process.communicate()
        with contextlib.suppress(OSError):
            results.ended(results.run_folder(out, child.request.id), time.perf_counter() - child.begun)
        os.close(child.claim)
