"""Groups of peers in one process, by hand: quick rings, delivered at once; and decided steps without a vote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradless.peers.agreement import Agreement, Timing
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog
from gradless.peers.schema import (
    Kind,
    Row,
    Value,
    digest,
    pack_certificate,
    pack_coefficients,
    pack_head,
    pack_value,
    row_body,
)
from gradless.peers.signing import HashRing, Ring, hash_rings
from gradless.peers.votes import Votes

RUN = bytes(range(16))
TIMING = Timing(grace=0.1, base=0.5)


def decided(group: Group, steps: int, rings: list[HashRing], **fields: object) -> list[tuple[bytes, bytes]]:
    """Values and certificates of so many steps, as a quorum would have decided them."""
    chain, previous = [], bytes(32)
    for step in range(steps):
        rows = []
        for peer in range(group.peers):
            coefficients = pack_coefficients([float(step + peer + k) for k in range(group.width)])
            row = Row(peer, 0, coefficients, b"")
            rows.append(row._replace(signature=rings[peer].sign(row_body(group.run, row, step, previous))))
        value = Value(step, previous, 0, step % group.peers, group.width, tuple(rows), ())
        packed = pack_value(value._replace(**fields))
        previous = digest(group.run, packed)
        chain.append((packed, certificate(group, rings, step, previous)))
    return chain


def certificate(group: Group, rings: Sequence[Ring], step: int, its_digest: bytes) -> bytes:
    """Precommits of a quorum."""
    bodies = [pack_head(group.run, Kind.PRECOMMIT, peer, step) + its_digest for peer in range(group.quorum)]
    return pack_certificate(0, {peer: rings[peer].sign(body) for peer, body in enumerate(bodies)})


def long_chain(
    group: Group, steps: int, rings: Sequence[Ring], *, draw: np.random.Generator | None = None
) -> list[tuple[bytes, bytes]]:
    """Many values, the last with a certificate; nobody looks at the signatures of rows in decided values.

    Coefficients are zeros, or drawn.
    """
    previous, values = bytes(32), []
    for step in range(steps):
        sent = (
            np.zeros((group.peers, group.width)) if draw is None else draw.standard_normal((group.peers, group.width))
        )
        rows = tuple(Row(peer, 0, row.astype("<f4").tobytes(), bytes(64)) for peer, row in enumerate(sent))
        values.append(pack_value(Value(step, previous, 0, step % group.peers, group.width, rows, ())))
        previous = digest(group.run, values[-1])
    newest = certificate(group, rings, steps - 1, previous)
    return [*((value, b"") for value in values[:-1]), (values[-1], newest)]


class Circle:
    """Peers whose messages arrive at once, where they are up and not cut off."""

    def __init__(self, peers: int = 4, byzantine: int = 1, width: int = 2) -> None:
        self.group = Group(RUN, peers, byzantine, width)
        self.rings = hash_rings(peers)
        self.votes = [Votes(None, RUN, complete=True) for _ in range(peers)]
        self.logs = [DecidedLog(None, self.group) for _ in range(peers)]
        self.now = 0.0
        self.up = set(range(peers))
        self.cores = {peer: self.core(peer) for peer in range(peers)}

    def core(self, peer: int) -> Agreement:
        """A peer that starts, from what it has on its disk."""
        ring, votes, log = self.rings[peer], self.votes[peer], self.logs[peer]
        return Agreement(peer, self.group, ring=ring, votes=votes, log=log, timing=TIMING, now=self.now)

    def restart(self, peer: int, *, votes: Votes | None = None, log: DecidedLog | None = None) -> None:
        self.votes[peer] = self.votes[peer] if votes is None else votes
        self.logs[peer] = self.logs[peer] if log is None else log  # an empty one is false
        self.cores[peer] = self.core(peer)
        self.up.add(peer)

    def deliver(self) -> None:
        """Deliver until nothing is said any more."""
        while True:
            sent = [(peer, *out) for peer in sorted(self.up) for out in self.cores[peer].take_outbox()]
            if not sent:
                return
            for source, to, data in sent:
                for peer in sorted(self.up - {source}) if to is None else [to]:
                    if peer in self.up:
                        self.cores[peer].handle(data, self.now, sent_by=source)

    def wait(self, seconds: float) -> None:
        """Let time pass, with what is said meanwhile."""
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            for peer in sorted(self.up):
                self.cores[peer].tick(self.now)
            self.deliver()

    def rows(self) -> None:
        """Let every peer that is up say its row of the step that it is in."""
        for peer in sorted(self.up):
            core = self.cores[peer]
            core.row(core.step, [float(peer + k) for k in range(self.group.width)], self.now)
        self.deliver()

    def steps(self, count: int) -> None:
        """Decide so many steps."""
        for _ in range(count):
            self.rows()
            self.wait(0.2)

    def lengths(self) -> list[int]:
        return [len(log) for log in self.logs]
