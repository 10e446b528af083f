"""What carries messages between the peers of a run: the protocol, and a link between peers of one process.

A link may lose, delay, duplicate and reorder messages; it must not change them, and must not say that one peer sent
what another one did. Who needs more (agreement, parameters) signs and resends.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gradless import rng
from gradless.errors import BadInput, real, whole

MOST = 2**16 - 1  # peers of a run: a sender is a u16 in every message

Answer = Callable[[int], Sequence[bytes]]
"""What a peer answers to `Link.fetch`: its records from one number on, oldest first."""


class Link(Protocol):
    """One peer's connection to all others. Methods may be called from several threads.

    No peer can make a method raise.
    """

    me: int
    """This peer's number, from 0."""
    peers: int
    """n."""

    def send(self, payload: bytes, to: int | None = None) -> None:
        """Send a message to one peer, or to all others. It may be lost. Blocks at most while buffers are full."""

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """Return the next message and the number of its sender; None if none came within ``timeout`` seconds."""

    def allow(self, largest: int) -> None:
        """Drop messages of more bytes than an honest peer sends, from now on."""

    def alive(self) -> frozenset[int]:
        """Return the peers that seem to be connected, this one among them. A hint: nothing safe may rest on it."""

    def serve(self, answer: Answer) -> None:
        """Answer `fetch` calls of the others from now on; ``answer`` is called in another thread."""

    def fetch(self, peer: int, since: int) -> list[bytes]:
        """Return a peer's records from number ``since`` on, as its `serve` gives them; [] if it does not answer."""

    def close(self) -> None:
        """Disconnect. `receive` returns None from now on and `send` does nothing."""


class LocalGroup:
    """Peers of one process, whose messages take seeded random times.

    The order in which messages of one seed overtake each other is reproducible up to the timing of the threads that
    send them.

    Args:
        peers: n.
        seed: of delays and losses.
        delay: mean seconds of a message, exponentially distributed; 0: none.
        loss: share of messages that never arrive.

    Raises:
        BadInput: impossible numbers.
    """

    def __init__(self, peers: int, *, seed: int = 0, delay: float = 0.0, loss: float = 0.0) -> None:
        self.peers, self.seed = whole("peers", peers, least=1, most=MOST), whole("seed", seed, least=0, most=rng.MASK64)
        self.delay, self.loss = real("delay", delay, least=0.0), real("loss", loss, least=0.0, below=1.0)
        self._links: dict[int, LocalLink] = {}
        self._parted: frozenset[int] = frozenset()

    def link(self, me: int) -> LocalLink:
        """Return the link of a peer, with an empty inbox; an earlier one of the same peer is closed."""
        if not 0 <= me < self.peers:
            raise BadInput(f"there is no peer {me}: give a number from 0 to {self.peers - 1}")
        if me in self._links:
            self._links[me].close()
        self._links[me] = LocalLink(self, me)
        return self._links[me]

    def links(self) -> list[LocalLink]:
        """Return new links of all peers."""
        return [self.link(me) for me in range(self.peers)]

    def part(self, *side: int) -> None:
        """Lose every message between the peers of one side and the others from now on; no argument: heal."""
        self._parted = frozenset(side)

    def find(self, sender: int, peer: int) -> LocalLink | None:
        """Return the open link of a peer that ``sender`` reaches."""
        link = self._links.get(peer)
        separate = (sender in self._parted) != (peer in self._parted)
        return None if link is None or link.closed or separate else link


class LocalLink:
    """A `Link` between peers of one process; see `LocalGroup`."""

    def __init__(self, group: LocalGroup, me: int) -> None:
        self.group, self.me, self.peers = group, me, group.peers
        self.closed = False
        self.sent = 0
        """Bytes of all messages, counted once for each receiver."""
        self._largest: float = math.inf
        self._answer: Answer | None = None
        self._inbox: list[tuple[float, int, int, bytes]] = []  # due time, arrival number, sender, message
        self._arrived = itertools.count()
        self._numbers = [itertools.count() for _ in range(group.peers)]  # of messages to each peer; they name delays
        self._counting = threading.Lock()
        self._changed = threading.Condition()

    def send(self, payload: bytes, to: int | None = None) -> None:
        """See `Link`."""
        if self.closed:
            return
        for peer in range(self.peers) if to is None else (to,):
            if peer != self.me:
                with self._counting:
                    self.sent += len(payload)
                self._send(bytes(payload), peer)

    def _send(self, payload: bytes, peer: int) -> None:
        delay = 0.0
        if self.group.delay or self.group.loss:
            word = rng.fold(self.group.seed, self.me, peer, next(self._numbers[peer]))
            lost, late = (word & rng.MASK32) / 2**32, (word >> 32) / 2**32
            if lost < self.group.loss:
                return
            delay = -self.group.delay * math.log1p(-late)
        if link := self.group.find(self.me, peer):
            link.put(self.me, payload, delay)

    def put(self, sender: int, payload: bytes, delay: float) -> None:
        """Take a message that arrives in ``delay`` seconds."""
        if len(payload) > self._largest:
            return
        with self._changed:
            heapq.heappush(self._inbox, (time.monotonic() + delay, next(self._arrived), sender, payload))
            self._changed.notify()

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """See `Link`."""
        end = time.monotonic() + timeout
        with self._changed:
            while not self.closed:
                now = time.monotonic()
                if self._inbox and self._inbox[0][0] <= now:
                    _, _, sender, payload = heapq.heappop(self._inbox)
                    return sender, payload
                if now >= end:
                    break
                self._changed.wait(min(end, self._inbox[0][0] if self._inbox else end) - now)
        return None

    def allow(self, largest: int) -> None:
        """See `Link`."""
        self._largest = largest

    def alive(self) -> frozenset[int]:
        """See `Link`."""
        return frozenset(peer for peer in range(self.peers) if peer == self.me or self.group.find(self.me, peer))

    def serve(self, answer: Answer) -> None:
        """See `Link`."""
        self._answer = answer

    def fetch(self, peer: int, since: int) -> list[bytes]:
        """See `Link`."""
        link = self.group.find(self.me, peer)
        return [] if link is None or link._answer is None else list(link._answer(since))

    def close(self) -> None:
        """See `Link`."""
        with self._changed:
            self.closed = True
            self._inbox.clear()
            self._changed.notify_all()
