"""Messages that wait for a peer: bounded for each sender, taken in turn, and refused from senders that are muted.

A peer that floods fills its own share and nobody else's, and costs the others one turn in n.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from gradless.peers.muting import Muting

MESSAGES: Final = 512
"""Waiting messages of one sender."""
BYTES: Final = 4 << 20
"""Least room for the waiting bytes of one sender; `Inbox.allow` makes it two of the longest message."""


class Inbox:
    """A queue of messages with a share for each sender.

    Args:
        peers: n.
        limit: most bytes of a message.
        messages: that may wait of one sender.
        size: bytes that may wait of one sender; one message may be as long.
    """

    def __init__(self, peers: int, *, limit: int, messages: int = MESSAGES, size: int = BYTES) -> None:
        self.limit, self.messages, self.size = limit, messages, max(size, limit)
        self.dropped = [0] * peers
        """Messages that were not taken, by sender."""
        self._waiting: list[deque[bytes]] = [deque() for _ in range(peers)]
        self._bytes = [0] * peers
        self._turn = 0
        self._muting = Muting(peers)
        self._changed = threading.Condition()
        self._closed = False

    def allow(self, limit: int) -> None:
        """Take messages of so many bytes from now on, and let two of that length wait of one sender."""
        with self._changed:
            self.limit, self.size = limit, max(BYTES, 2 * limit)

    def put(self, sender: int, message: bytes, now: float | None = None) -> bool:
        """Take a message; returns whether there was room for it, and its sender is not muted."""
        now = time.monotonic() if now is None else now
        with self._changed:
            full = len(self._waiting[sender]) >= self.messages or self._bytes[sender] + len(message) > self.size
            if self._closed or len(message) > self.limit or full or self._muting.muted(sender, now):
                self.dropped[sender] += 1
                return False
            self._waiting[sender].append(message)
            self._bytes[sender] += len(message)
            self._changed.notify()
            return True

    def get(self, timeout: float) -> tuple[int, bytes] | None:
        """Return the next message and its sender, senders in turn; None after ``timeout`` seconds without one."""
        end = time.monotonic() + timeout
        with self._changed:
            while not self._closed:
                for offset in range(len(self._waiting)):
                    sender = (self._turn + offset) % len(self._waiting)
                    if self._waiting[sender]:
                        self._turn = sender + 1
                        message = self._waiting[sender].popleft()
                        self._bytes[sender] -= len(message)
                        return sender, message
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
        return None

    def fault(self, sender: int, now: float | None = None) -> bool:
        """Note a message that no honest peer sends; returns whether its sender is muted from now on."""
        now = time.monotonic() if now is None else now
        with self._changed:
            if not self._muting.fault(sender, now):
                return False
            self._waiting[sender].clear()
            self._bytes[sender] = 0
            return True

    def muted(self, sender: int, now: float | None = None) -> bool:
        """Return whether a sender is muted."""
        return self._muting.muted(sender, time.monotonic() if now is None else now)

    def close(self) -> None:
        """Forget all messages and let `get` return at once."""
        with self._changed:
            self._closed = True
            for waiting in self._waiting:
                waiting.clear()
            self._changed.notify_all()
