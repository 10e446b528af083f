"""A group's constants, and what follows from its decided values: bans, leaders, rows. Peers cannot differ here."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradless.errors import BadInput
from gradless.peers.schema import (
    ABSTAINS,
    LARGEST,
    NO_DIGEST,
    Malformed,
    Value,
    digest,
    largest_message,
    parse_evidence,
    parse_value,
)

MOST_STRIKES: Final = 8  # a leader stands back for at most n * 2^8 steps


def quorum(peers: int, byzantine: int) -> int:
    """Return how many votes make a certificate; any two have an honest peer in common (Castro and Liskov 1999)."""
    return (peers + byzantine) // 2 + 1


def check_bound(peers: int, byzantine: int) -> None:
    """Check that a group can agree.

    Raises:
        BadInput: n < 3 f + 1.
    """
    if byzantine < 0 or peers < 3 * byzantine + 1:
        raise BadInput(
            f"{peers} peers cannot agree while {byzantine} of them lie: take at least {3 * max(byzantine, 0) + 1} "
            f"peers, or a smaller --f (at most {max(peers - 1, 0) // 3})"
        )


@dataclass(frozen=True)
class Group:
    """What every peer of a run knows before it begins.

    Attributes:
        run: 16 bytes in every message; nothing is replayed across runs.
        peers: n.
        byzantine: f, how many of them may lie.
        width: K, coefficients of a row.

    Raises:
        BadInput: n < 3 f + 1, or rows so wide that a message would be larger than 64 kB.
    """

    run: bytes
    peers: int
    byzantine: int
    width: int

    def __post_init__(self) -> None:
        assert len(self.run) == 16
        check_bound(self.peers, self.byzantine)
        if self.width < 1 or largest_message(self.peers, self.byzantine, self.width) > LARGEST:
            raise BadInput(
                f"{self.width} coefficients a step of {self.peers} peers do not fit into messages of {LARGEST} bytes: "
                "set queries lower"
            )

    @property
    def quorum(self) -> int:
        """Votes of a certificate, q."""
        return quorum(self.peers, self.byzantine)

    @property
    def enough(self) -> int:
        """Fewest rows of a value, n - f."""
        return self.peers - self.byzantine


class History:
    """State of a group after some decided steps: a function of their values.

    Attributes:
        step: number of steps, and so the step that is next.
        digest: of the newest value; zeros before the first.
        banned: peers that evidence in a value convicts; their messages count for nothing from the step after on.
        bans: (first step of the ban, peer).
        present: senders of the rows of the newest value; all peers before the first.
        last_present: newest step whose value has a row of a peer; a peer that never had one is missing.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.step = 0
        self.digest = NO_DIGEST
        self.banned: frozenset[int] = frozenset()
        self.bans: list[tuple[int, int]] = []
        self.present: frozenset[int] = frozenset(range(group.peers))
        self.last_present: dict[int, int] = {}
        self._strikes: dict[int, int] = {}
        self._stands_back: dict[int, int] = {}  # peer -> step from which on it leads again
        self._order: tuple[int, ...] | None = None

    def copy(self) -> History:
        """Return a history that goes on from here by itself. Cost: linear in peers and bans."""
        other = copy.copy(self)
        other.bans = list(self.bans)
        other.last_present = dict(self.last_present)
        other._strikes, other._stands_back = dict(self._strikes), dict(self._stands_back)
        return other

    def append(self, data: bytes) -> Value:
        """Take in the packed value of the next step, and return it.

        Raises:
            Malformed: it does not follow the schema, or does not continue this history.

        Cost: one SHA-256 and one pass over the value.
        """
        value = parse_value(data)
        if value.step != self.step or value.before != self.digest or value.width != self.group.width:
            raise Malformed("chain")
        if value.rows and value.rows[-1].sender >= self.group.peers:
            raise Malformed("senders")
        convicts = sorted(convicted(self.group, value))
        if value.round:
            for leader, lost in lost_rounds(self.order, value.round).items():
                self._strike(leader, lost)
        self.step += 1
        self.digest = digest(self.group.run, data)
        self.bans += [(self.step, peer) for peer in convicts]
        self.banned |= set(convicts)
        self.present = frozenset(row.sender for row in value.rows)
        self.last_present.update(dict.fromkeys(self.present, value.step))
        self._order = None
        return value

    def _strike(self, leader: int, lost: int) -> None:
        """So many rounds of this leader failed: it stands back for n 2^strikes steps."""
        strikes = self._strikes[leader] = min(self._strikes.get(leader, 0) + lost, MOST_STRIKES)
        self._stands_back[leader] = self.step + 1 + self.group.peers * 2**strikes

    @property
    def order(self) -> tuple[int, ...]:
        """Leaders of the rounds of the next step, in turn.

        They go round in the order of their numbers, from the number of the step on: first the senders of the newest
        value who do not stand back, then the others. A liar that leaves out rows cannot make itself the next leader by
        it, as it could if the step counted the senders alone. A banned peer never leads, since nobody would listen.
        """
        if self._order is None:
            turns = [(self.step + turn) % self.group.peers for turn in range(self.group.peers)]
            electable = [peer for peer in turns if peer not in self.banned] or turns
            trusted = [peer for peer in electable if peer in self.present] or electable
            ready = [peer for peer in trusted if self._stands_back.get(peer, 0) <= self.step] or trusted
            self._order = (*ready, *(peer for peer in electable if peer not in ready))
        return self._order

    def leader(self, round: int) -> int:
        """Return who leads a round of the next step."""
        return self.order[round % len(self.order)]

    def banned_at(self, step: int) -> frozenset[int]:
        """Return whose messages count for nothing in a step, this one's value included."""
        return frozenset(peer for first, peer in self.bans if first <= step)


def lost_rounds(order: Sequence[int], rounds: int) -> dict[int, int]:
    """Return how many of the first rounds of a step each leader lost.

    Args:
        order: leaders of the rounds, in turn (`History.order`).
        rounds: how many failed, as anybody may claim before the certificate of a value is checked.

    Cost: one count a leader, whatever ``rounds`` is.
    """
    return {leader: len(range(turn, rounds, len(order))) for turn, leader in enumerate(order[:rounds])}


def convicted(group: Group, value: Value) -> frozenset[int]:
    """Return the peers that the evidence of a decided value convicts; its certificate vouches for the signatures."""
    return frozenset(
        parse_evidence(first, group.run, group.peers, group.width)[0].sender for first, _ in value.evidence
    )


def rows(value: Value) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Return what a rule mixes: float32 [n', K] and the n' senders, without the rows that abstain."""
    stated = [row for row in value.rows if not row.flags & ABSTAINS]
    packed = b"".join(row.coefficients for row in stated)
    matrix = np.frombuffer(packed, "<f4").reshape(len(stated), value.width).astype(np.float32)
    return matrix, tuple(row.sender for row in stated)


def history_of(group: Group, values: Iterable[bytes]) -> History:
    """Return the state of a group after packed values.

    Raises:
        Malformed: the values are no history of this group.
    """
    history = History(group)
    for value in values:
        history.append(value)
    return history
