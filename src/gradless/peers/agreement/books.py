"""What a peer has heard in one step, one entry a sender, kind and round."""

from __future__ import annotations

from collections.abc import Sized

from gradless.peers.agreement.validity import Validity
from gradless.peers.schema import SIGNATURE, Kind, Row, Statement, pack_certificate

Evidence = dict[int, tuple[bytes, bytes]]
"""Two messages by the peer that they convict."""


class Books:
    """Messages of one step that were checked, and what follows from counting them.

    Args:
        me: index of this peer.
        validity: constants of the step.
        evidence: of the whole run; a second message in one slot goes there.

    Attributes:
        rows: by sender.
        values: packed values by digest; checked, or covered by a certificate.
        accepted: digest and leader's signature of the proposal that was found just, by round.
        certificates: packed certificates of prevotes by round and digest.
        final: packed certificates of precommits by digest.
        timeouts: statements by round and sender.
        latest: the highest round that a sender's TIMEOUTs name.
        two_faced: rounds whose leader signed two proposals.
        forgotten: whether a signature of this peer turned up that it does not remember.
    """

    def __init__(self, me: int, validity: Validity, evidence: Evidence) -> None:
        self.me, self.validity, self.evidence = me, validity, evidence
        self.rows: dict[int, Row] = {}
        self.values: dict[bytes, bytes] = {}
        self.accepted: dict[int, tuple[bytes, bytes]] = {}
        self.certificates: dict[tuple[int, bytes], bytes] = {}
        self.final: dict[bytes, bytes] = {}
        self.timeouts: dict[int, dict[int, Statement]] = {}
        self.latest: dict[int, int] = {}
        self.two_faced: set[int] = set()
        self.forgotten = False
        self._slots: dict[tuple[Kind, int, int], bytes] = {}
        self._votes: dict[tuple[Kind, int, bytes], dict[int, bytes]] = {}

    def __len__(self) -> int:
        """Number of entries held; bounded by peers and rounds, whatever was sent."""
        books: list[Sized] = [self.rows, self.values, self.accepted, self.certificates, self.final, self._slots]
        return sum(map(len, [*books, *self._votes.values(), *self.timeouts.values()]))

    def is_spent(self, kind: Kind, sender: int, round: int, body: bytes) -> bool:
        """Whether a message cannot matter any more: its sender is convicted, and said something else in this slot."""
        slot = self._slots.get((kind, sender, round))
        return sender in self.evidence and slot is not None and slot[:-SIGNATURE] != body

    def first(self, kind: Kind, sender: int, round: int, body: bytes, signature: bytes) -> bool:
        """Note a message whose signature holds; returns whether it is the first in its slot, or the same again."""
        slot = self._slots.setdefault((kind, sender, round), body + signature)
        if slot[:-SIGNATURE] == body:
            return True
        if sender == self.me:
            self.forgotten = True
            return False
        self.evidence.setdefault(sender, (slot, body + signature))
        if kind is Kind.PROPOSAL:
            self.two_faced.add(round)
        return False

    def add_row(self, row: Row, body: bytes, *, own: bool = False) -> None:
        """Note a row whose signature holds."""
        if row.sender == self.me and not own and row.sender not in self.rows:
            self.forgotten = True
        if self.first(Kind.ROW, row.sender, 0, body, row.signature):
            self.rows.setdefault(row.sender, row)

    def knows_offer(self, round: int, digest: bytes) -> bool:
        """Whether the leader of a round is known to have signed a proposal of this digest."""
        leader = self.validity.leader(round)
        slot = self._slots.get((Kind.PROPOSAL, leader, round))
        return slot is not None and slot[:-SIGNATURE] == self.validity.vote_body(Kind.PROPOSAL, leader, round, digest)

    def add_offer(self, round: int, digest: bytes, signature: bytes, *, own: bool = False) -> bool:
        """Note that the leader of a round signed a proposal; returns whether it is the only one known."""
        leader = self.validity.leader(round)
        if leader == self.me and not own and not self.knows_offer(round, digest):
            self.forgotten = True
        body = self.validity.vote_body(Kind.PROPOSAL, leader, round, digest)
        return self.first(Kind.PROPOSAL, leader, round, body, signature)

    def has_vote(self, kind: Kind, sender: int, round: int, digest: bytes, signature: bytes) -> bool:
        """Whether a vote is counted already."""
        return self._votes.get((kind, round, digest), {}).get(sender) == signature

    def count(self, kind: Kind, sender: int, round: int, digest: bytes, signature: bytes) -> None:
        """Count a vote whose signature holds; a quorum makes a certificate."""
        votes = self._votes.setdefault((kind, round, digest), {})
        votes[sender] = signature
        quorum = self.validity.group.quorum
        if len(votes) == quorum:
            certificate = pack_certificate(round, votes)
            if kind is Kind.PREVOTE:
                self.certificates.setdefault((round, digest), certificate)
            else:
                self.final.setdefault(digest, certificate)

    def has_timeout(self, round: int, statement: Statement) -> bool:
        """Whether a statement is counted already."""
        return self.timeouts.get(round, {}).get(statement.sender) == statement

    def add_timeout(self, round: int, statement: Statement) -> None:
        """Count a TIMEOUT whose signature and certificate hold."""
        self.timeouts.setdefault(round, {})[statement.sender] = statement
        self.latest[statement.sender] = max(round, self.latest.get(statement.sender, 0))
