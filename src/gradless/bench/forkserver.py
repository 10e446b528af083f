"""Processes that begin where a run's own work begins: forked from one that has imported everything and read the model.

Importing torch and transformers and reading a tokenizer and weights takes several seconds of every run, as long as a
short run itself. A nursery does that once. It runs nothing in parallel and never touches a GPU, so that a fork of it is
a sound process: each run is one, with its own memory (shared until written), signals and exit code.

The benchmark and its nursery speak through a socket: a line of JSON for a run, with the file descriptors that the run
inherits; a line back with its process id, and later one with its exit code.
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
import time
from typing import Any, Final

LOOK: Final = 0.02  # seconds between two looks for children that have ended
FOREVER: Final = 1e6  # seconds
LONGEST: Final = 1 << 16  # bytes of a message
SCRIPT: Final = (
    "import json, sys; from gradless.bench import nursery as n; n.main(int(sys.argv[1]), json.loads(sys.argv[2]))"
)
SUPPORTED: Final = hasattr(os, "fork") and hasattr(socket, "send_fds") and sys.platform != "darwin"


class Nursery:
    """The side of the benchmark.

    Args:
        model: what to read beforehand, as ``[source, dtype]``; None: only import.
    """

    def __init__(self, model: tuple[str, str | None] | None = None) -> None:
        self._model = model
        self._process: subprocess.Popen[bytes] | None = None
        self._socket, self._other = socket.socketpair()
        self._text = ""
        self._ended: dict[int, int] = {}
        self._begun: list[int] = []

    def _start(self) -> None:
        said = json.dumps({"model": self._model})
        number = self._other.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(number), said],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(number,),
            start_new_session=True,
        )
        self._other.close()

    def fork(self, arguments: list[str], claim: int, threads: int | None) -> Forked:
        """Start ``gradless ARGUMENTS`` in a fork that inherits a claim.

        Raises:
            OSError: the nursery is gone.
        """
        if self._process is None:
            self._start()
        errors, path = tempfile.mkstemp()
        os.unlink(path)
        order = json.dumps({"arguments": arguments, "threads": threads}).encode()
        socket.send_fds(self._socket, [order], [claim, errors])
        while not self._begun:
            if not self._listen(None):
                raise ConnectionError("the process that starts runs has ended")
        return Forked(self, self._begun.pop(), errors)

    def exit_code(self, pid: int, patience: float) -> int | None:
        """How a fork ended, or None if it still works after ``patience`` seconds."""
        until = time.monotonic() + patience
        while pid not in self._ended:
            left = until - time.monotonic()
            if left < 0 or not self._listen(left):
                break
        return self._ended.get(pid)

    def close(self) -> None:
        """End the nursery; forks that still work go on."""
        self._socket.close()
        if self._process is None:
            self._other.close()
        else:
            self._process.terminate()  # it may still be reading the model
            self._process.wait()

    def _listen(self, patience: float | None) -> bool:
        """Take in what the nursery says within ``patience`` seconds; False if it has ended."""
        ready, _, _ = select.select([self._socket], [], [], patience)
        if not ready:
            return True
        said = self._socket.recv(LONGEST).decode()
        *lines, self._text = (self._text + said).split("\n")
        for line in lines:
            word, pid, *code = line.split()
            if word == "begun":
                self._begun.append(int(pid))
            else:
                self._ended[int(pid)] = int(code[0])
        return bool(said)


class Forked:
    """A fork, with the verbs of `subprocess.Popen` that a benchmark uses."""

    def __init__(self, nursery: Nursery, pid: int, errors: int) -> None:
        self.pid, self.returncode = pid, 0
        self._nursery, self._errors, self._said = nursery, errors, ""

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        return self._nursery.exit_code(self.pid, 0.0)

    def send_signal(self, number: int) -> None:
        """Send a signal; to one that has ended, nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Wait for the end; nothing, and what it said on stderr.

        Raises:
            subprocess.TimeoutExpired: it still works.
        """
        patience = FOREVER if timeout is None else timeout
        code = self._nursery.exit_code(self.pid, patience)
        if code is None:
            raise subprocess.TimeoutExpired("gradless", patience)
        self.returncode = code
        if self._errors >= 0:
            with os.fdopen(self._errors, "rb") as file:
                file.seek(0)
                self._said = file.read().decode(errors="replace")
            self._errors = -1
        return None, self._said


# ---------------------------------------------------------------------------------------------------------------
# the nursery itself


def main(descriptor: int, settings: dict[str, Any]) -> None:
    """Prepare, then fork a run for each order until the benchmark closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = socket.socket(fileno=descriptor)
    _prepare(settings["model"])
    while True:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                _say(line, f"ended {pid} {os.waitstatus_to_exitcode(status)}")
        if not select.select([line], [], [], LOOK)[0]:
            continue
        try:
            order, given, _, _ = socket.recv_fds(line, LONGEST, 2)
        except ConnectionResetError:  # it was killed before it had read all that was said to it
            return
        if not order:
            return
        pid = os.fork()
        if pid == 0:
            line.close()
            _become(json.loads(order), *given)
        for one in given:
            os.close(one)
        _say(line, f"begun {pid}")


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
            lm.keep(source, dtype=dtype)
        torch.set_num_threads(threads)


def _become(order: dict[str, Any], claim: int, errors: int) -> None:
    """Be the run: its session, its streams, its threads, its exit code. The claim stays open as long as it lives."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, nothing), (1, nothing), (2, errors)):
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


def _say(line: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        line.sendall(f"{text}\n".encode())
