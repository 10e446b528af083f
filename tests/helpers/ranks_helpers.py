"""Ranks of one job as processes on this machine, forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import gradless
import gradless.runs.jobs
from gradless import lm, ranks
from gradless.cli import commands
from gradless.lm import objectives, schemes
from gradless.runs import build as run_build
from gradless.runs import train

TESTS = Path(__file__).parent
LIMIT = 300  # seconds of any job, on a busy machine
WARM = "GRADLESS_TEST_WARM"


def warm_up() -> None:
    """Import and compile what ranks need, once for all of them."""
    torch.set_num_threads(1)
    for method in (gradless.mezo, gradless.lozo, gradless.forward_gradient):
        model = lm.load("tiny-llama").model
        ids = torch.arange(24).view(2, 12)
        opt = method(model.named_parameters(), lr=1e-3, defer=True)
        for _ in "12":
            opt.step(lambda model=model, ids=ids: model(input_ids=ids, labels=ids).loss)
        opt.flush()


if WARM in os.environ:
    warm_up()


class Ended(NamedTuple):
    """How one rank ended."""

    value: Any  # what the function returned
    code: int  # minus the signal that killed it
    out: str
    err: str
    seconds: float


@contextlib.contextmanager
def _server() -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")
    kept = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS", WARM)}
    path = os.pathsep.join(filter(None, (str(TESTS), kept["PYTHONPATH"])))
    os.environ.update({"PYTHONPATH": path, "OMP_NUM_THREADS": "1", WARM: "1"})
    context.set_forkserver_preload(["ranks_helpers"])
    try:
        yield context
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def together(size: int, folder: Path, function: Callable[..., Any], *args: Any, **more: Any) -> list[Ended]:
    """Call ``function(*args)`` on every rank of a job; alone, without the variables of a job, where size is 1."""
    return wait(start(size, folder, function, *args, **more))


def start(size: int, folder: Path, function: Callable[..., Any], *args: Any, **more: Any) -> list[Any]:
    """`together` without waiting: (process, pipe, output files) of every rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    begun = []
    with _server() as context:
        for rank in range(size):
            names = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo",
            }
            mine, theirs = context.Pipe(duplex=False)
            files = (folder / f"{rank}.out", folder / f"{rank}.err")
            environment = {name: str(value) for name, value in names.items()} if size > 1 else {}
            process = context.Process(
                target=_main, args=(environment, files, theirs, function, args, more), daemon=True
            )
            process.start()
            theirs.close()
            begun.append((process, mine, files, time.monotonic()))
    return begun


def wait(begun: Sequence[Any], *, but: Sequence[int] = ()) -> list[Ended]:
    """Wait for all ranks but some, which are killed; in the order in which they were started."""
    ended, deadline = {}, time.monotonic() + LIMIT
    while len(ended) + len(but) < len(begun):
        if time.monotonic() > deadline:
            for process, *_ in begun:
                process.kill()
            raise AssertionError([files[1].read_text() for _, _, files, _ in begun])
        for rank, (process, pipe, files, since) in enumerate(begun):
            if rank in ended or rank in but:
                continue
            if process.exitcode is None and not pipe.poll(0.01):
                continue
            value = None
            with contextlib.suppress(EOFError):
                value = pipe.recv() if pipe.poll() or process.exitcode is None else None
            process.join(LIMIT)
            texts = [file.read_text() for file in files]
            ended[rank] = Ended(value, process.exitcode, *texts, time.monotonic() - since)
    for rank in but:
        begun[rank][0].kill()
        begun[rank][0].join()
    return [ended[rank] for rank in sorted(ended)]


def _main(
    environment: dict[str, str], files: Sequence[Path], pipe: Any, function: Callable, args: tuple, more: dict
) -> None:
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        with file.open("w") as stream:
            os.dup2(stream.fileno(), number)
    torch.set_num_threads(1)
    code = 0
    try:
        pipe.send(function(*args, **more))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---------------------------------------------------------------------------------------------------------------
# what ranks do


def in_group(function: Callable[[ranks.Ranks | None], Any]) -> Any:
    """Call a function with the ranks of a plain group."""
    if "RANK" not in os.environ:
        return function(None)
    dist.init_process_group("gloo")
    try:
        return function(ranks.group())
    finally:
        dist.destroy_process_group()


def command(
    lines: Sequence[str] | Sequence[Sequence[str]],
    *,
    at: int | None = None,
    who: int = 1,
    what: str = "",
) -> None:
    """``gradless ...``, the same on all ranks or a line for each; on rank ``who``, ``what`` happens at step ``at``."""
    rank = int(os.environ.get("RANK", "0"))
    if at is not None and rank == who:
        _befall(at, what)
    mine = lines[rank] if lines and not isinstance(lines[0], str) else lines
    commands.main(list(mine), prog_name="gradless")


def _befall(at: int, what: str) -> None:
    """Let a signal, or another weight, befall this rank in the closure of a step; or other initial values."""
    true, build = train._step, run_build.build_for

    def other(config: Any, *args: Any, **more: Any) -> Any:
        model, tokens = build(config, *args, **more)
        norms = {name: norm.flip(0) for name, norm in model.norms.items()} if model.norms else None
        opt = run_build.optimizer(config, schemes.trainable(model.lm), norms)
        with torch.no_grad():
            for leaf in opt.leaves if norms is None else ():
                leaf.param.mul_(1.5)
        return model._replace(optimizer=opt, norms=norms), tokens

    if what == "other values":
        run_build.build_for = other
        return

    def step(parts: Any, *rest: Any) -> float:
        if parts.model.optimizer.t == at:
            if what == "flip":
                with torch.no_grad():
                    parts.model.optimizer.leaves[0].param.view(-1)[0] += 1.0
            else:
                real = objectives.loss_over

                def loss_over(*args: Any) -> Any:
                    os.kill(os.getpid(), getattr(signal, what))
                    return real(*args)

                objectives.loss_over = loss_over
        return true(parts, *rest)

    train._step = step


def tune_line(own: dict[str, Any], out: Path, *more: Any) -> list[str]:
    """A run of eight steps on a tiny model."""
    line = [
        *("tune", "--model", "tiny-llama", "--train", own["train"], "--test", own["test"]),
        *("--template", own["template"], "--label-column", "label", "--labels", own["labels"]),
        *("--steps", 8, "--batch-size", 8, "--lr", 1e-3, "--num-dev", 10, "--eval-every", 4, "--queries", 3),
        *("--seed", 4, "--out", out, *more),
    ]
    return [str(argument) for argument in line]
