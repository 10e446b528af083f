"""One run as a process: started with its lock, watched, and stopped when the benchmark is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from gradless import plugins
from gradless.bench import results
from gradless.bench.executor import Ended
from gradless.bench.forkserver import SUPPORTED, ForkedRun, ForkServer, ServerLost
from gradless.bench.grid import ZERO_SHOT, Request
from gradless.system import children
from gradless.system.atomic import FULL

Command = Callable[[Request, Path], list[str]]
GRADLESS: Final = (*children.PYTHON, "-m", "gradless")
TAIL: Final = 4000  # characters of what a failed process said last
PATIENCE: Final = 30.0  # seconds that a process has to stop by itself


LOST: Final = "the process that starts runs died (out of memory?): its runs start again"


class Child(NamedTuple):
    """A process at work."""

    request: Request
    process: subprocess.Popen[str] | ForkedRun
    lock: int
    begun: float


class LocalProcesses:
    """The executor of this machine: each run is a process.

    Args:
        out: bench directory.
        workers: runs at a time.
        threads: of each run; None leaves it to the environment.
        make: makes the command line of a run.
        possible: runs that may be asked for; they are forked from one process with their model, if they have the same.
    """

    def __init__(
        self, out: Path, workers: int, threads: int | None, make: Command, possible: Iterable[Request] = ()
    ) -> None:
        self._out, self._workers, self._threads, self._command = out, workers, threads, make
        self._possible = possible if make is command else ()
        self._children: list[Child] = []
        self._server: ForkServer | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return itself; what runs are forked from starts with the first of them."""
        self._server = self._stack.enter_context(fork_server(self._possible))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what still works."""
        with self._stack:
            stop(self._children, self._out)

    def free(self) -> bool:
        """Return whether fewer than ``workers`` runs are at work."""
        return len(self._children) < self._workers

    def busy(self) -> bool:
        """Return whether a run is at work."""
        return bool(self._children)

    def has(self, request: Request) -> bool:
        """Return whether this run is at work."""
        return any(child.request.id == request.id for child in self._children)

    def start(self, request: Request, lock: int) -> None:
        """Start a process."""
        self._children.append(start(request, self._out, lock, self._threads, self._command, self._server))

    def ended(self, seconds: float) -> list[Ended]:
        """Wait for processes, and record how they ended."""
        share = seconds / max(len(self._children), 1)
        outputs = [(child, ended(child, share)) for child in self._children]
        runs = [(child, stderr) for child, stderr in outputs if stderr is not None]
        for child, _ in runs:
            self._children.remove(child)
        try:
            return [
                Ended(child.request, child.lock, close(child, stderr, self._out), LOST if lost(child) else "")
                for child, stderr in runs
            ]
        except BaseException:
            for child, _ in runs:
                os.close(child.lock)
            raise


def command(request: Request, out: Path) -> list[str]:
    """Return the command line of a run."""
    job = ["eval"] if request.phase == ZERO_SHOT else ["tune", "--resume"]
    paths = ["--config", results.request_file(out, request.id), "--out", results.run_folder(out, request.id)]
    return [*GRADLESS, *job, *map(str, paths), *plugins.arguments(request.config.plugins)]


@contextlib.contextmanager
def fork_server(requests: Iterable[Request]) -> Iterator[ForkServer | None]:
    """Yield what runs are forked from, with their model read if all have the same; None where no fork is possible."""
    configs = [request.config for request in requests]
    if not SUPPORTED or not configs:
        yield None
        return
    models = {(config.model, config.dtype) for config in configs}
    on_cpu = all(config.device == "cpu" for config in configs)
    with contextlib.closing(ForkServer(models.pop() if len(models) == 1 and on_cpu else None)) as server:
        yield server


def start(
    request: Request, out: Path, lock: int, threads: int | None, make: Command, server: ForkServer | None = None
) -> Child:
    """Start a run, which inherits the lock on it.

    It gets a session of its own: a Ctrl-C on the terminal reaches the benchmark alone, which then stops its runs.

    Args:
        request: what to run.
        out: bench directory.
        lock: file descriptor.
        threads: of the run; None leaves it to the environment.
        make: makes the command line.
        server: fork from here instead of starting Python.
    """
    folder = results.run_folder(out, request.id)
    folder.mkdir(parents=True, exist_ok=True)
    usual = os.environ.get("OMP_NUM_THREADS", "")
    results.began(folder, threads or (int(usual) if usual.isdecimal() else os.cpu_count()))
    command_line, begun = make(request, out), time.perf_counter()
    if server is not None:
        with contextlib.suppress(ServerLost):  # then as if there were none
            return Child(request, server.fork(command_line[len(GRADLESS) :], lock, threads), lock, begun)
    process = subprocess.Popen(
        command_line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=children.environment(**({"OMP_NUM_THREADS": str(threads)} if threads else {})),
        start_new_session=True,
        pass_fds=() if sys.platform == "win32" else (lock,),
    )
    return Child(request, process, lock, begun)


def ended(child: Child, patience: float) -> str | None:
    """Return the stderr of a process, once it has ended; None if it still works after ``patience`` seconds."""
    try:
        return child.process.communicate(timeout=patience)[1]
    except subprocess.TimeoutExpired:
        return None


def close(child: Child, stderr: str, out: Path) -> str:
    """Record how a process ended; returns as `recorded`."""
    if lost(child):
        results.ended(results.run_folder(out, child.request.id), time.perf_counter() - child.begun)
        return ""
    seconds = time.perf_counter() - child.begun
    return recorded(child.request, out, child.process.returncode, stderr, seconds)


def recorded(request: Request, out: Path, code: int, stderr: str, seconds: float) -> str:
    """Record how the process of a run ended, whose files are in its directory.

    Returns:
        The sentence with which the whole benchmark has to stop (the disk is full), or "".
    """
    folder, finished = results.run_folder(out, request.id), results.line(out, request) is not None
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = lines[-1].removeprefix("gradless: ") if lines else ""
    full = bool(not finished and FULL.search(reason))
    with contextlib.suppress(OSError) if full else contextlib.nullcontext():
        results.ended(folder, seconds)
    if full:
        return reason
    if not finished:
        if code < 0:
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            reason = f"killed by {_signal(-code)}{memory}"
        results.failed(folder, reason or f"ended with exit code {code} and without a result", code, stderr[-TAIL:])
    return ""


def lost(child: Child) -> bool:
    """Return whether the process had to be ended because its fork server died, so that it is started again."""
    return isinstance(child.process, ForkedRun) and child.process.lost


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def stop(running: Iterable[Child], out: Path) -> None:
    """Interrupt processes as Ctrl-C does, wait, kill those that do not end, and give their locks back."""
    running = list(running)
    # A shell that puts us into the background makes us and our children deaf to Ctrl-C.
    deaf = sys.platform == "win32" or signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for child in running:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM if deaf else signal.SIGINT)
    until = time.perf_counter() + PATIENCE
    for child in running:
        if ended(child, max(0.0, until - time.perf_counter())) is None:
            child.process.kill()
            ended(child, PATIENCE)  # a process that it started may hold its stderr open
        with contextlib.suppress(OSError):
            results.ended(results.run_folder(out, child.request.id), time.perf_counter() - child.begun)
        os.close(child.lock)
