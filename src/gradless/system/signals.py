"""Signals that end a process, taken like Ctrl-C, so that work in progress is noted before the end."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

ENDING: Final = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals by which a process is asked to end."""


@contextlib.contextmanager
def interrupting(*numbers: int, apart: float = 0.0) -> Iterator[None]:
    """Raise KeyboardInterrupt for each of these signals inside the block; outside the main thread, change nothing.

    Args:
        numbers: the signals.
        apart: seconds in which a second signal is taken for the first one, passed on by a launcher.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -apart - 1.0

    def interrupt(*_: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > apart:
            last = now
            raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
