"""Processes that begin where a run's own work begins: forked from one that has imported everything and read the model.

Importing torch and transformers and reading a tokenizer and weights takes several seconds of every run, as long as a
short run itself. A fork server does that once. It runs nothing in parallel and never touches a GPU, so that a fork of
it is a sound process: each run is one, with its own memory (shared until written), signals and exit code.

For a run the benchmark sends the server a message with three file descriptors: the lock that the run inherits, its
stderr, and a socket on which the server answers with the process id and, in the end, the exit code.

`multiprocessing` has a fork server too. It runs the caller's main module again in every child, so a script that calls
`gradless.bench.bench` without a ``__main__`` guard would start itself; docs/log.md has the comparison.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Any, Final

from gradless.system import children

LOOK: Final = 0.02  # seconds between two looks for children that have ended
LONGEST: Final = 1 << 16  # bytes of an order
NUMBER: Final = 8  # bytes of an answer
LIVES: Final = 3  # starts of the server
PATIENCE: Final = 600.0  # seconds for the first answer: the model is read before it
SCRIPT: Final = (
    "import json, sys; from gradless.bench.forkserver import serve; serve(int(sys.argv[1]), json.loads(sys.argv[2]))"
)
SUPPORTED: Final = hasattr(os, "fork") and hasattr(socket, "send_fds") and sys.platform != "darwin"

Source = tuple[str, str | None]  # of a model, and its dtype


class ForkServer:
    """The side of the benchmark; the server starts with the first run, and again if it dies.

    The kernel's out-of-memory killer takes the largest process, which a server with a model may be. After `LIVES`
    deaths it is not started again: `usable` is False, and runs have to start by themselves.

    Args:
        model: what to read beforehand; None: only import.
    """

    def __init__(self, model: Source | None = None) -> None:
        self._model = model
        self._orders: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0

    @property
    def usable(self) -> bool:
        """Whether the server works or may be started again."""
        return self._deaths < LIVES

    def fork(self, arguments: list[str], lock: int, threads: int | None) -> ForkedRun:
        """Start ``gradless ARGUMENTS`` in a fork that inherits the descriptor of a lock.

        Raises:
            ServerLost: the server died `LIVES` times.
            OSError: no file can be made for the stderr of the run.
        """
        order = json.dumps({"arguments": arguments, "threads": threads}).encode()
        while self.usable:
            errors, path = tempfile.mkstemp()
            os.unlink(path)
            try:
                return ForkedRun(self._ordered(order, lock, errors), errors)
            except OSError:
                os.close(errors)
                self.close()
                self._deaths += 1
        raise ServerLost(f"the process that starts runs died {LIVES} times")

    def _ordered(self, order: bytes, lock: int, errors: int) -> int:
        """Send an order; returns the socket of the answers."""
        orders = self._orders or self._start()
        status, answers = socket.socketpair()
        with status, answers:
            socket.send_fds(orders, [order], [lock, errors, answers.fileno()])
            return status.detach()

    def _start(self) -> socket.socket:
        self._orders, other_end = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with other_end:
            self._process = subprocess.Popen(
                [*children.PYTHON, "-c", SCRIPT, str(other_end.fileno()), json.dumps(self._model)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(other_end.fileno(),),
                env=children.environment(),
                start_new_session=True,
            )
        return self._orders

    def close(self) -> None:
        """End the server, which has nothing to tidy up; forks that still work go on."""
        if self._orders is not None:
            self._orders.close()
            self._orders = None
        if self._process is not None:
            self._process.kill()  # it may still be reading the model, or be stopped
            self._process.wait()
            self._process = None


class ServerLost(ConnectionError):
    """The fork server died too often."""


class ForkedRun:
    """A fork, with the methods of `subprocess.Popen` that a benchmark uses.

    Raises:
        ConnectionError: the server died, or did not answer for `PATIENCE` seconds.
    """

    def __init__(self, status: int, errors: int) -> None:
        self._status, self._errors, self._stderr = status, errors, ""
        pid = _receive(status) if select.select([status], [], [], PATIENCE)[0] else None
        if pid is None:
            os.close(status)
            raise ConnectionError("the process that starts runs has ended")
        self.pid, self.returncode, self.lost = pid, 0, False

    def poll(self) -> int | None:
        """Return the exit code, once there is one."""
        try:
            self.communicate(0.0)
        except subprocess.TimeoutExpired:
            return None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the fork has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Wait for the end; returns None for stdout, and stderr.

        If the server died, nobody can tell how the fork ends: it is killed and ``lost``, to be started again.

        Raises:
            subprocess.TimeoutExpired: it still works.
        """
        if self._errors >= 0:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("gradless", timeout or 0.0)
            code = _receive(self._status)
            if code is None:
                self.kill()
                self.lost, code = True, -signal.SIGKILL
            self.returncode = code
            with os.fdopen(self._errors, "rb") as file:
                file.seek(0)
                self._stderr = file.read().decode(errors="replace")
            os.close(self._status)
            self._errors = -1
        return None, self._stderr


def _receive(status: int) -> int | None:
    """Wait for an answer of the server; None if it is gone."""
    try:
        answer = os.read(status, NUMBER)
    except ConnectionError:
        return None
    return int.from_bytes(answer, "little", signed=True) if answer else None


# ---------------------------------------------------------------------------------------------------------------
# the server


def serve(descriptor: int, model: list[Any] | None) -> None:
    """Prepare, then fork a run for each order until the benchmark closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = socket.socket(fileno=descriptor)
    answers: dict[int, socket.socket] = {}  # by process id
    _prepare(model)
    while True:
        while answers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with answers.pop(ended[0]) as answer:
                _tell(answer, os.waitstatus_to_exitcode(ended[1]))
        if not select.select([orders], [], [], LOOK)[0]:
            continue
        order, descriptors, _, _ = socket.recv_fds(orders, LONGEST, 3)
        if not order:
            return
        lock, errors, answer_descriptor = descriptors
        pid = os.fork()
        if pid == 0:
            orders.close()
            os.close(answer_descriptor)
            for answer in answers.values():
                answer.close()
            _run(json.loads(order), errors)
        answers[pid] = socket.socket(fileno=answer_descriptor)
        _tell(answers[pid], pid)
        os.close(lock)
        os.close(errors)


def _tell(answer: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the benchmark may be gone
        answer.sendall(number.to_bytes(NUMBER, "little", signed=True))


def _prepare(model: list[Any] | None) -> None:
    """Import what runs import, and read a model, on one thread: a fork has only the thread that forks."""
    import torch

    from gradless import lm
    from gradless.runs import train

    assert train
    if model is not None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        source, dtype = model
        with contextlib.suppress(Exception):  # the run itself will say what is wrong
            lm.preload(source, dtype=dtype)
        torch.set_num_threads(threads)


def _run(order: dict[str, Any], errors: int) -> None:
    """In the child: new session, redirect stdio, run the command line, ``_exit``. Never returns.

    The descriptor of the lock stays open as long as the process lives.
    """
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, null), (1, null), (2, errors)):
            os.dup2(source, target)
        if order["threads"]:
            import torch

            os.environ["OMP_NUM_THREADS"] = str(order["threads"])
            torch.set_num_threads(order["threads"])
        sys.argv = ["gradless", *order["arguments"]]
        runpy.run_module("gradless", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)
