"""Which peers are not listened to for a while: those that keep sending what no honest peer sends."""

from __future__ import annotations

from collections import deque
from typing import Final

FAULTS: Final = 20
"""Messages that no honest peer sends, within `WINDOW` seconds, after which their sender is muted."""
WINDOW: Final = 60.0
MUTED: Final = 600.0
"""Seconds for which nothing of a muted sender is taken."""


class Muting:
    """Faults of the peers of a group, by time.

    Args:
        peers: n.

    Attributes:
        counts: faults so far, by sender.
    """

    def __init__(self, peers: int) -> None:
        self.counts = [0] * peers
        self._until = [0.0] * peers
        self._faults: list[deque[float]] = [deque(maxlen=FAULTS) for _ in range(peers)]

    def fault(self, sender: int, now: float) -> bool:
        """Count a message that no honest peer sends; returns whether its sender is muted from now on."""
        self.counts[sender] += 1
        faults = self._faults[sender]
        faults.append(now)
        if len(faults) < FAULTS or now - faults[0] > WINDOW:
            return False
        faults.clear()
        self._until[sender] = now + MUTED
        return True

    def muted(self, sender: int, now: float) -> bool:
        """Return whether a sender is muted."""
        return now < self._until[sender]
