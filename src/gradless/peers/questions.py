"""Questions that wait for an answer: one of each peer, and the sooner answered the less time its last answer took.

An answer is large. To a peer that does not read it fills the buffers of the connection, and whatever is sent next to
all peers has to wait until that connection is closed. So most of the time belongs to the others.
"""

from __future__ import annotations

import threading
import time
from typing import Final, Generic, TypeVar

Question = TypeVar("Question")

LEAST: Final = 0.1
"""Seconds between two answers to one peer."""
SHARE: Final = 10.0
"""Seconds that a peer waits for each second that its last answer took."""
MOST: Final = 10.0
"""Seconds that it waits at most: less than it waits for an answer."""


class Questions(Generic[Question]):
    """A queue with one place for each peer.

    Args:
        peers: n.
    """

    def __init__(self, peers: int) -> None:
        self._waiting: dict[int, Question] = {}  # by asker, in the order in which they came
        self._due = [0.0] * peers  # when a peer may be answered again
        self._changed = threading.Condition()
        self._closed = False

    def put(self, asker: int, question: Question) -> Question | None:
        """Let a question wait; returns the earlier one of its asker that it takes the place of."""
        with self._changed:
            earlier = self._waiting.pop(asker, None)
            self._waiting[asker] = question
            self._changed.notify()
            return earlier

    def get(self, timeout: float | None = None) -> tuple[int, Question] | None:
        """Return the next asker and its question; None once it is closed, or after ``timeout`` seconds without one."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for asker in self._waiting:
                    if self._due[asker] <= now:
                        return asker, self._waiting.pop(asker)
                if end is not None and end <= now:
                    break
                times = [self._due[asker] for asker in self._waiting] + ([] if end is None else [end])
                self._changed.wait(min(times) - now if times else None)
        return None

    def answered(self, asker: int, seconds: float) -> None:
        """Note that an answer took so many seconds, until just now."""
        with self._changed:
            self._due[asker] = time.monotonic() + min(max(LEAST, SHARE * seconds), MOST)

    def close(self) -> None:
        """Let `get` return at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
