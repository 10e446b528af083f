"""What a peer says: signed, written to its log of votes, and in the outbox once that is on the disk."""

from __future__ import annotations

from typing import NamedTuple

from gradless.peers.history import Group
from gradless.peers.records import NotWritten
from gradless.peers.signing import Ring
from gradless.peers.votes import Votes


class Outgoing(NamedTuple):
    """A message for one peer, or for all others."""

    to: int | None
    data: bytes


class Voice:
    """Signs, writes and sends for one peer.

    Attributes:
        outbox: what may be sent: all that it says is on the disk.
        failure: why nothing can be written any more; nothing is signed or sent after it.
    """

    def __init__(self, me: int, group: Group, ring: Ring, votes: Votes) -> None:
        self.me, self.group, self.ring, self.votes = me, group, ring, votes
        self.outbox: list[Outgoing] = []
        self._unsynced: list[Outgoing] = []
        self.failure: NotWritten | None = None

    def write(self, record: bytes) -> None:
        """Put a record into the log of votes, not yet onto the disk.

        Raises:
            NotWritten: the disk is full.
        """
        try:
            self.votes.append(record)
        except NotWritten as error:
            self.failure = error
            raise

    def say(self, body: bytes, tail: bytes = b"") -> tuple[bytes, bytes]:
        """Sign a message, write it, and send it to all once it is on the disk; returns it and the signature.

        Args:
            body: what the signature covers.
            tail: what follows the signature.

        Raises:
            NotWritten: the disk is full, and nothing was sent.
        """
        signature = self.ring.sign(body)
        data = body + signature + tail
        self.write(data)
        self.send(data)
        return data, signature

    def send(self, data: bytes, to: int | None = None) -> None:
        """Send a message that needs no vote log: it carries no new signature, or none that could hurt."""
        self._unsynced.append(Outgoing(to, data))

    def release(self) -> None:
        """Put what was written onto the disk, and only then into the outbox.

        Raises:
            NotWritten: it may not be on the disk; nothing of it is sent.
        """
        try:
            self.votes.sync()
        except NotWritten as error:
            self.failure = error
            raise
        self.outbox += self._unsynced
        self._unsynced = []
