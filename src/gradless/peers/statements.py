"""Signed statements of the weights' hash, by which peers notice that their arithmetic went apart.

Agreement fixes the coefficients, not what a peer's memory or processor makes of them. So every ``check_every`` steps a
peer says which weights it holds. Who differs from f + 1 others that agree (at least one of them honest) rebuilds its
weights from the log, and stops if they still differ; it does not matter who spoke first.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Protocol

DOMAIN: Final = b"gradless-peers-weights-1\0"
BODY: Final = struct.Struct("<16sHI32s")
SIZE: Final = BODY.size + 64
KEPT: Final = 16
"""Steps of which the statements of a peer are kept, its newest ones."""


class Signer(Protocol):
    """Signs and checks with the keys of a manifest (`gradless.peers.signing.Ring`)."""

    def sign(self, body: bytes) -> bytes:
        """Return 64 bytes."""

    def verify(self, sender: int, body: bytes, signature: bytes) -> bool:
        """Return whether a peer signed."""


class Statement(NamedTuple):
    """What a peer says of its weights."""

    sender: int
    step: int
    """Steps that it has taken."""
    sha256: bytes
    """Of its weights."""


def pack(run: bytes, statement: Statement, ring: Signer) -> bytes:
    """Return a signed statement."""
    body = BODY.pack(run, statement.sender, statement.step, statement.sha256)
    return body + ring.sign(DOMAIN + body)


def parse(run: bytes, data: bytes, ring: Signer, *, sender: int) -> Statement | None:
    """Return the statement in a message that a peer sent; None unless it is of this run, its own and signed."""
    if len(data) != SIZE:
        return None
    theirs, author, step, sha256 = BODY.unpack_from(data)
    if theirs != run or author != sender or not ring.verify(sender, DOMAIN + data[: BODY.size], data[BODY.size :]):
        return None
    return Statement(sender, step, sha256)


class Board:
    """What all peers have stated, by sender and step: nobody's statements take the place of another's.

    Args:
        me: this peer.
        byzantine: f.
    """

    def __init__(self, me: int, byzantine: int) -> None:
        self.me, self.byzantine = me, byzantine
        self.latest: dict[int, Statement] = {}
        """The newest statement of each peer."""
        self._stated: dict[int, dict[int, bytes]] = {}  # by sender, then by step

    def hear(self, statement: Statement) -> None:
        """Take a statement; of two of one peer about one step the first counts. Memory: `KEPT` steps a sender."""
        stated = self._stated.setdefault(statement.sender, {})
        stated.setdefault(statement.step, statement.sha256)
        if len(stated) > KEPT:
            del stated[min(stated)]
        newest = self.latest.get(statement.sender)
        if newest is None or newest.step <= statement.step:
            self.latest[statement.sender] = statement

    def others(self, step: int) -> dict[int, bytes]:
        """Return what the others said of a step."""
        return {
            peer: stated[step] for peer, stated in sorted(self._stated.items()) if peer != self.me and step in stated
        }

    def outvoted(self, step: int) -> bytes | None:
        """Return the hash that f + 1 others agree on at a step, if this peer's own is another one."""
        own = self._stated.get(self.me, {}).get(step)
        hashes = list(self.others(step).values())
        for sha256 in set(hashes) - {own}:
            if own is not None and hashes.count(sha256) > self.byzantine:
                return sha256
        return None

    def newest_outvoted(self) -> tuple[Statement, bytes] | None:
        """Return this peer's newest statement at which f + 1 others agree on another hash, and that hash."""
        for step, own in sorted(self._stated.get(self.me, {}).items(), reverse=True):
            if (theirs := self.outvoted(step)) is not None:
                return Statement(self.me, step, own), theirs
        return None

    def is_shared(self, step: int) -> bool:
        """Return whether f + 1 others, of whom one is honest, hold this peer's weights of a step."""
        own = self._stated.get(self.me, {}).get(step)
        return own is not None and list(self.others(step).values()).count(own) > self.byzantine

    def withdraw(self) -> None:
        """Forget what this peer itself stated, since its weights were others."""
        self._stated.pop(self.me, None)
        self.latest.pop(self.me, None)
