"""One run as a process: started with its claim, watched, and stopped when the benchmark is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from gradless.bench import results
from gradless.bench.grid import ZERO_SHOT, Request

Command = Callable[[Request, Path], list[str]]
FULL: Final = re.compile(r"cannot write|No space left on device|Disk quota exceeded")
TAIL: Final = 4000  # characters of what a failed process said last
PATIENCE: Final = 30.0  # seconds that a process has to stop by itself


class Child(NamedTuple):
    """A process at work."""

    request: Request
    process: subprocess.Popen[str]
    claim: int
    begun: float


def command(request: Request, out: Path) -> list[str]:
    """The command line of a run."""
    job = ["eval"] if request.phase == ZERO_SHOT else ["tune", "--resume"]
    places = ["--config", results.request_file(out, request.id), "--out", results.run_folder(out, request.id)]
    return [sys.executable, "-m", "gradless", *job, *map(str, places)]


def start(request: Request, out: Path, claim: int, threads: int | None, make: Command) -> Child:
    """Start a run, which inherits the claim on it.

    It gets a session of its own: a Ctrl-C on the terminal reaches the benchmark alone, which then stops its runs.
    """
    folder = results.run_folder(out, request.id)
    folder.mkdir(parents=True, exist_ok=True)
    told = os.environ.get("OMP_NUM_THREADS", "")
    results.began(folder, threads or (int(told) if told.isdecimal() else os.cpu_count()))
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
