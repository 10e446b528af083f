"""The handle of the process in which reward functions of the user's run (`gradless.rewards.child`).

A function may hang, end its process, or print; none of this reaches the run. A call that takes too long is ended with
everything that it started, and the next call starts the process again from the sources that were read first.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gradless.errors import BadInput
from gradless.rewards.functions import LOGGING, STATE, Answers, Function, Parameters, Raised, TimedOut
from gradless.rewards.own_code import Source
from gradless.system import children, terminal

COMMAND: Final = (*children.PYTHON, "-m", "gradless.rewards.child")
PATIENCE: Final = 1.0  # seconds for a process that has closed its pipes to end
IMPORT: Final = 120.0
"""Seconds that importing the functions may take, or as long as a call if that may take longer."""


class RewardProcess:
    """Reward functions in a process of their own.

    Args:
        sources: of the functions.
        timeout: seconds that a call may take; None: for ever.

    Raises:
        BadInput: a function cannot be loaded.
    """

    def __init__(self, sources: Sequence[Source], timeout: float | None) -> None:
        self._sources, self._timeout = tuple(sources), timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = self._start()
        self.functions = {
            source.reward: Function(
                source.reward,
                Parameters(None if takes is None else tuple(takes), tuple(needs)),
                functools.partial(self._ask, index),
                sha256,
            )
            for index, (source, (takes, needs, sha256)) in enumerate(zip(self._sources, self._loaded, strict=True))
        }
        """The functions by their names; each asks the process."""

    def _start(self) -> list[Any]:
        """Start the process, and return what it says of the functions: what each takes and needs, and its SHA-256."""
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=children.environment(),
            start_new_session=True,  # Ctrl-C on the terminal reaches the run alone
        )
        limit = None if self._timeout is None else max(self._timeout, IMPORT)
        try:
            reply = self._exchange(json.dumps({"load": self._sources}), limit)
        except (Raised, TimedOut) as error:
            names = ", ".join(source.reward for source in self._sources)
            raise BadInput(f"the import of the rewards {names} {error}: correct what it does") from None
        except BadInput:
            self.close()
            raise
        loaded: list[Any] = reply["functions"]
        return loaded

    def _ask(self, index: int, arguments: Mapping[str, Any]) -> Answers:
        """Return the rewards of one call.

        Raises:
            Raised: the function raised, or its process ended.
            TimedOut: it took too long.
            BadInput: it returned something else, a column is not JSON, or a module has changed meanwhile.
        """
        source = self._sources[index]
        command = _encoded(source.title, index, arguments)
        if self._process is None or self._process.poll() is not None:
            self.close()
            if self._start() != self._loaded:
                self.close()
                raise BadInput(f"the module of {source.title} has changed since it was loaded: start the run again")
        answers: Answers = self._exchange(command, self._timeout)["answers"]
        return answers

    def _exchange(self, command: str, limit: float | None) -> dict[str, Any]:
        """Send a command and return the reply."""
        process, expired = self._process, threading.Event()
        assert process is not None

        def expire() -> None:
            expired.set()
            _kill(process)

        timer = threading.Timer(limit or math.inf, expire)
        timer.daemon = True
        if limit is not None:
            timer.start()
        try:
            line = _talk(process, command.encode() + b"\n")
        except BaseException:  # such as Ctrl-C: the reply would be taken for that of the next command
            self.close()
            raise
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            code = self._end()
            if expired.is_set():
                raise TimedOut(f"took more than {limit:g} s and was ended")
            raise Raised("exit", f"ended its process with exit code {code}")
        reply: dict[str, Any] = json.loads(line)
        if "refused" in reply:
            raise BadInput(reply["refused"])
        if "raised" in reply:
            raise Raised(*reply["raised"])
        return reply

    def _end(self) -> int:
        """Wait a moment for the process to end, end it, and return its exit code."""
        process, self._process = self._process, None
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        _kill(process)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what it did not read any more
                assert pipe is not None
                pipe.close()
        return process.wait()

    def close(self) -> None:
        """End the process, and all that it started; the next call would start it again."""
        if self._process is not None:
            _kill(self._process)
            self._end()


def _talk(process: subprocess.Popen[bytes], command: bytes) -> bytes:
    """Return the line with which a process answers; cut, or empty, if it ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(command)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # a broken pipe
        return b""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and all that it started, at once."""
    if process.returncode is not None:
        return  # its number may be another's by now
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _encoded(title: str, index: int, arguments: Mapping[str, Any]) -> str:
    """Return the command of a call as JSON.

    Raises:
        BadInput: a column holds what JSON has not.
    """
    parts = []
    for name, value in arguments.items():
        if name in LOGGING:
            continue
        try:
            parts.append(f"{json.dumps(name)}: {_json(_state(value) if name == STATE else value)}")
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(
                f"the column '{name}' cannot be handed to {title}, which runs in a process of its own "
                f"({terminal.sentence(error)}): leave the column out, or write it in texts, finite numbers and lists"
            ) from None
    return f'{{"call": {index}, "arguments": {{{", ".join(parts)}}}}}'


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Return arrays, tensors, dates and rows of data sets as what JSON has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"it holds {type(value).__name__}")


def _state(state: Any) -> dict[str, Any]:
    """Return the plain values of a trainer's state, such as its ``global_step``."""
    values = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
    return {name: value for name, value in values.items() if isinstance(value, str | int) or _finite(value)}


def _finite(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isfinite(value))
