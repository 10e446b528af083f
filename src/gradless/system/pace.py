"""How fast a job goes and how long it still takes, both from the time since it began."""

from __future__ import annotations

import datetime
import time
from typing import Final

CLOCK: Final = 120  # seconds from which on the time left reads 0:02:00


class Pace:
    """The pace of a job, waits and evaluations between its parts included.

    Args:
        total: parts, or None if that is not known.
        done: of them when the work begins.
        part: what a part is called, such as "step"; if empty, only the time is told.
    """

    def __init__(self, total: int | None, done: int = 0, part: str = "") -> None:
        self.total, self.part = total, part
        self._start, self._began = done, time.monotonic()

    def text(self, done: int) -> str:
        """Return the seconds a part and the time left, or the time since the beginning."""
        passed = time.monotonic() - self._began
        parts = done - self._start
        if parts <= 0 or self.total is None:
            return clock(passed)
        each = passed / parts
        speed = f"{figure(each)} s a {self.part}  " if self.part else ""
        return speed + (f"{clock(each * (self.total - done))} left" if done < self.total else clock(passed))


def figure(seconds: float) -> str:
    """Return seconds to three digits, never as a power of ten.

    Example:
        >>> figure(0.001234), figure(12.34), figure(123456.0), figure(1e-7)
        ('0.00123', '12.3', '123456', '0')
    """
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:.3g}" if seconds >= 1e-4 else "0"


def clock(seconds: float) -> str:
    """Return seconds, from two minutes on as hours, minutes and seconds.

    Example:
        >>> clock(56.4), clock(3725)
        ('56 s', '1:02:05')
    """
    return f"{seconds:.0f} s" if seconds < CLOCK else str(datetime.timedelta(seconds=round(seconds)))
