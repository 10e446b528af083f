"""Peers that lie, for demonstrations and tests: what a Byzantine member of a group can say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gradless.errors import pick
from gradless.peers.agreement import Outgoing
from gradless.peers.history import Group
from gradless.peers.schema import (
    HEAD,
    ROW_FIELDS,
    SIGNATURE,
    U32,
    Kind,
    digest,
    pack_coefficients,
    pack_value,
    parse_value,
)
from gradless.peers.signing import Ring

FACTOR: Final = -10.0  # of a flipped row


class Honest:
    """Says what it computed: a `gradless.peers.agreed.Liar`.

    Args:
        me: the peer.
        group: its group.
        ring: its key.
    """

    def __init__(self, me: int, group: Group, ring: Ring) -> None:
        self.me, self.group, self.ring = me, group, ring

    def row(self, coefficients: Sequence[float]) -> Sequence[float]:
        """See `gradless.peers.agreed.Liar`."""
        return coefficients

    def messages(self, messages: Iterable[Outgoing]) -> list[Outgoing]:
        """See `gradless.peers.agreed.Liar`."""
        return [sent for message in messages for sent in self.sent_for(message)]

    def sent_for(self, message: Outgoing) -> list[Outgoing]:
        """Return what is sent in place of one message."""
        return [message]

    def others(self) -> list[int]:
        """Return all other peers."""
        return [peer for peer in range(self.group.peers) if peer != self.me]


class Flip(Honest):
    """Claims large coefficients of the other sign, to everybody alike; no rule of the protocol is broken."""

    def row(self, coefficients: Sequence[float]) -> Sequence[float]:
        """See `gradless.peers.agreed.Liar`."""
        return [FACTOR * number for number in coefficients]


class Mute(Honest):
    """Sends nothing."""

    def messages(self, messages: Iterable[Outgoing]) -> list[Outgoing]:
        """See `gradless.peers.agreed.Liar`."""
        return []


class Equivocate(Honest):
    """Tells every peer another row."""

    def sent_for(self, message: Outgoing) -> list[Outgoing]:
        """See `Honest.sent_for`."""
        if message.to is not None or message.data[1] != Kind.ROW:
            return [message]
        start = HEAD.size + ROW_FIELDS.size
        lies = []
        for peer in self.others():
            body = message.data[:start] + pack_coefficients([float(peer)] * self.group.width)
            lies.append(Outgoing(peer, body + self.ring.sign(body)))
        return lies


class Propose(Honest):
    """Proposes another value to every peer when it leads: each leaves out another row, as far as enough are left."""

    def sent_for(self, message: Outgoing) -> list[Outgoing]:
        """See `Honest.sent_for`."""
        data = message.data
        if message.to is not None or data[1] != Kind.PROPOSAL:
            return [message]
        at = HEAD.size + 32 + SIGNATURE
        (length,) = U32.unpack_from(data, at)
        start = at + U32.size
        value = parse_value(data[start : start + length])
        spare = len(value.rows) > self.group.enough
        lies = []
        for peer in self.others():
            left = tuple(row for row in value.rows if row.sender != peer) if spare else value.rows
            packed = pack_value(value._replace(rows=left))
            body = data[: HEAD.size] + digest(self.group.run, packed)
            lie = body + self.ring.sign(body) + U32.pack(len(packed)) + packed + data[start + length :]
            lies.append(Outgoing(peer, lie))
        return lies


LIARS: Final[dict[str, Callable[[int, Group, Ring], Honest]]] = {
    "equivocate": Equivocate,
    "propose": Propose,
    "flip": Flip,
    "mute": Mute,
}
"""What ``gradless peers demo --liar`` takes."""


def liar(name: str, me: int, group: Group, ring: Ring) -> Honest:
    """Return the liar of a name.

    Raises:
        BadInput: an unknown name.
    """
    return pick("liar", name, LIARS)(me, group, ring)
