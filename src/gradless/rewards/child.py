"""The process in which reward functions of the user's run: ``python -m gradless.rewards.child``, started by `process`.

It gets commands as lines of JSON on its standard input and answers each with one on its standard output. Before any
code of the user's runs, both move elsewhere: what that code prints goes to stderr, and what it reads is empty. The
process ends with the one that started it.

- ``{"load": [source, ...]}`` is answered by ``{"functions": [[takes, needs, sha256], ...]}``;
- ``{"call": index, "arguments": {...}}`` by ``{"answers": [...]}``, or by ``{"raised": [kind, reason]}``;
- both by ``{"refused": sentence}`` where the user has to correct something.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from types import SimpleNamespace
from typing import IO, Any, Final

from gradless.errors import BadInput
from gradless.rewards.functions import LOGGING, STATE, Function, Raised, ignore
from gradless.rewards.own_code import Source, load_source

DIES_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer commands until there are no more."""
    commands, replies = _private(0, "rb"), _private(1, "wb")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this process
    _die_with_parent()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(commands, lines), daemon=True).start()
    sys.stdout = sys.stderr  # which escapes what cannot be encoded, and is not buffered
    functions: list[Function] = []
    while True:
        command = json.loads(lines.get())
        try:
            reply = _load(command, functions) if "load" in command else _call(command, functions)
        except BadInput as error:
            reply = {"refused": str(error)}
        except Raised as error:
            reply = {"raised": [error.kind, error.reason]}
        replies.write(json.dumps(reply, allow_nan=False).encode() + b"\n")
        replies.flush()


def _private(descriptor: int, mode: str) -> IO[bytes]:
    """Return a standard stream under another descriptor, which programs that are started here do not inherit."""
    copy = os.dup(descriptor)
    if descriptor == 0:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    else:
        os.dup2(2, 1)
    return os.fdopen(copy, mode)


def _read(commands: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass commands on; where they end, the run has ended, whatever the user's code is doing."""
    for line in commands:
        lines.put(line)
    os._exit(0)


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent, also while the user's code keeps Python's lock."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)


def _load(command: dict[str, Any], functions: list[Function]) -> dict[str, Any]:
    functions += [load_source(Source(*fields)) for fields in command["load"]]
    return {"functions": [[*one.parameters, one.sha256] for one in functions]}


def _call(command: dict[str, Any], functions: list[Function]) -> dict[str, Any]:
    function, arguments = functions[command["call"]], command["arguments"]
    takes = function.parameters.takes
    arguments |= {name: ignore for name in LOGGING if takes is None or name in takes}
    if STATE in arguments:
        arguments[STATE] = SimpleNamespace(**arguments[STATE])
    return {"answers": function.run(arguments)}


if __name__ == "__main__":
    main()
