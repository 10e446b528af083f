"""Starting again: the highest certificate as a record of the vote log, and starting without that log."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradless.peers.history import Group
from gradless.peers.log import verify_certificate
from gradless.peers.schema import HEAD, NO_DIGEST, STATED, U16, Kind, Malformed, pack_head, split
from gradless.peers.signing import Verifier
from gradless.peers.wire import Answer


class High(NamedTuple):
    """The highest certificate of prevotes that a peer holds, with the value."""

    round: int
    digest: bytes
    certificate: bytes
    value: bytes


def pack_high(group: Group, me: int, step: int, high: High) -> bytes:
    """Pack the record HIGH, which is written before the precommit that rests on it."""
    head = pack_head(group.run, Kind.HIGH, me, step)
    stated = STATED.pack(high.round, high.digest)
    return head + stated + U16.pack(len(high.certificate)) + high.certificate + high.value


def parse_high(record: bytes) -> High:
    """Read the record HIGH."""
    round, digest = STATED.unpack_from(record, HEAD.size)
    return High(round, digest, *split(record[HEAD.size + STATED.size :], U16))


class Inquiry:
    """Finds out from which step on a peer may sign that has lost its log of votes.

    It asks until q others answered. Who signed in step s had decided step s - 1, so a quorum had precommitted there,
    and q answers include an honest one of these, who had decided s - 1 steps at least. With H the most steps that
    anybody answers, s <= H + 1: whatever was signed and lost, nothing from step H + 2 on contradicts it.

    Args:
        group: constants of the run.
        nonce: 8 bytes of this start; answers to another start do not count.
    """

    def __init__(self, group: Group, nonce: bytes) -> None:
        self.group, self.nonce = group, nonce
        self.answers: dict[int, int] = {}  # decided steps, by who answered

    def hear(self, answer: Answer, verifier: Verifier) -> None:
        """Count an answer.

        Raises:
            Malformed: no honest peer gave it.

        Cost: q + 1 signature checks.
        """
        head = answer.head
        if answer.nonce != self.nonce or head.sender in self.answers:
            return
        if not verifier.verify(head.sender, answer.signed, answer.signature):
            raise Malformed("signature")
        if head.step:
            verify_certificate(self.group, verifier, head.step - 1, answer.digest, answer.certificate)
        elif answer.digest != NO_DIGEST or answer.certificate:
            raise Malformed("answer")
        self.answers[head.sender] = head.step

    @property
    def missing(self) -> int:
        """How many more peers have to answer."""
        return max(0, self.group.quorum - len(self.answers))

    @property
    def signs_from(self) -> float:
        """First step in which this peer may sign; infinite until a quorum answered."""
        return math.inf if self.missing else max(self.answers.values()) + 2
