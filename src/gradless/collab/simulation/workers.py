"""Simulations side by side: one process each, with its share of the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from gradless import plugins
from gradless.collab.config import CollabConfig, from_json
from gradless.collab.simulation.simulate import simulate_claimed
from gradless.errors import BadInput
from gradless.runs.record import INTERRUPTED
from gradless.system import children, typed
from gradless.system.progress import Reporter

Job = tuple[CollabConfig, Path]
Results = Generator[tuple[CollabConfig, dict[str, Any]], None, None]


def results(jobs: Sequence[Job], workers: int, reporter: Reporter) -> Results:
    """Simulate all; yields each with its result as it ends. One that Ctrl-C interrupts in this process is the last.

    The small networks of a simulation gain less from a second core than a second simulation does. Each of several
    workers has its share of the cores, also where there are fewer runs: the last bits of a language model's results
    depend on the number of threads.

    Args:
        jobs: configurations and their run directories, which are claimed; started in this order.
        workers: processes, which import the main module anew (a script needs ``if __name__ == "__main__":``); 1: this
            one.
        reporter: where progress goes; with several workers, their own steps are not shown.

    Raises:
        BadInput: what `gradless.collab.simulation.simulate.simulate` refuses, or a process was killed. The others are
            ended too; finished runs stay.
        KeyboardInterrupt: Ctrl-C, with several workers; the same call continues.
    """
    if workers == 1 or not jobs:
        for config, folder in jobs:
            result = simulate_claimed(config, folder, reporter)
            yield config, result
            if result["status"] == INTERRUPTED:
                return
        return
    with _pool(workers) as pool:
        with _deaf(), children.safe_path():
            futures = {pool.submit(_quietly, *job): job[0] for job in jobs}
        for future in as_completed(futures):
            yield futures[future], _result(future)


def _result(future: Future[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise BadInput(
            "one of the processes was killed (out of memory?) or could not start: finished runs are kept; continue "
            "with fewer --workers"
        ) from None


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are new, not forked (a fork has none of torch's threads), and gone when this ends."""
    context = multiprocessing.get_context("spawn")
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,))
    try:
        yield pool
    finally:
        processes = list((pool._processes or {}).values())  # `kill_workers` is public from Python 3.14
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # they have nothing to tidy up: an unfinished run goes on from its checkpoint
            process.join()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start inside pass over a Ctrl-C on the terminal: it is for the one that started them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _begin(threads: int | None) -> None:
    """In a new process: its threads, and its end when the one that started it is gone, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def main(config: str, folder: str) -> None:
    """Make the run of a ``config.json`` in a process of its own: what a node of a cluster starts."""
    values = typed.parse_json(Path(config).read_text(encoding="utf-8"))
    plugins.load([*values.get("plugins", {})])
    simulate_claimed(from_json(values), Path(folder), Reporter(quiet=True))


def _quietly(config: CollabConfig, folder: Path) -> dict[str, Any]:
    plugins.load(config.plugins)  # which this process was asked for where it was started
    return simulate_claimed(config, folder, Reporter(quiet=True))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BadInput as error:
        sys.exit(f"gradless: {error}")
