"""What may be decided in one step, and what makes a proposal just: the same answer at every honest peer."""

from __future__ import annotations

from gradless.peers.agreement.checks import Checks
from gradless.peers.history import Group, History
from gradless.peers.log import verify_certificate
from gradless.peers.schema import (
    NO_DIGEST,
    STATED,
    Justification,
    Kind,
    Malformed,
    Row,
    Statement,
    Value,
    pack_head,
    parse_value,
    row_body,
)


class Validity:
    """Checks of one step, by the history before it.

    Attributes:
        step: number of the step.
        before: digest of the value of the step before.
        banned: peers whose messages count for nothing in this step.
    """

    def __init__(self, group: Group, history: History, checks: Checks) -> None:
        self.group, self.checks = group, checks
        self.step, self.before, self.banned = history.step, history.digest, history.banned
        self._order = history.order

    def leader(self, round: int) -> int:
        """Return who leads a round."""
        return self._order[round % len(self._order)]

    def vote_body(self, kind: Kind, sender: int, round: int, digest: bytes) -> bytes:
        """Pack what the signature of a vote or a proposal covers."""
        return pack_head(self.group.run, kind, sender, self.step, round) + digest

    def timeout_body(self, sender: int, round: int, high_round: int, digest: bytes) -> bytes:
        """Pack what the signature of a TIMEOUT covers."""
        return pack_head(self.group.run, Kind.TIMEOUT, sender, self.step, round) + STATED.pack(high_round, digest)

    def row_body(self, row: Row) -> bytes:
        """Pack what the signature of a row covers."""
        return row_body(self.group.run, row, self.step, self.before)

    def is_heard(self, peer: int) -> bool:
        """Whether a peer's messages count in this step."""
        return peer < self.group.peers and peer not in self.banned

    def check_row(self, row: Row) -> bytes:
        """Check a row that somebody passes on, and return what its signature covers.

        Raises:
            Malformed: its sender did not sign it, or does not count.
        """
        if not self.is_heard(row.sender):
            raise Malformed("row sender")
        body = self.row_body(row)
        self.checks.require(row.sender, body, row.signature)
        return body

    def check_value(self, data: bytes, round: int) -> Value:
        """Check that a value may be proposed in a round, and return it.

        Raises:
            Malformed: it must not be decided.

        Cost: one signature check a row and two a pair of evidence, fewer where they were checked before.
        """
        value = parse_value(data)
        if value.step != self.step or value.before != self.before or value.width != self.group.width:
            raise Malformed("value of another step")
        if value.round > round or value.proposer != self.leader(value.round):
            raise Malformed("proposer")
        if len(value.rows) < self.group.enough or len(value.evidence) > self.group.byzantine:
            raise Malformed("rows")
        for row in value.rows:
            self.check_row(row)
        convicts = [self.checks.evidence(pair) for pair in value.evidence]
        if convicts != sorted(set(convicts)) or not self.banned.isdisjoint(convicts):
            raise Malformed("evidence")
        return value

    def check_certificate(self, kind: Kind, digest: bytes, certificate: bytes) -> int:
        """Check a certificate of this step, and return its round.

        Raises:
            Malformed: no quorum voted so.
        """
        group, checks = self.group, self.checks
        return verify_certificate(group, checks, self.step, digest, certificate, banned=self.banned, kind=kind)

    def check_justification(self, justification: Justification, value: Value, digest: bytes, round: int) -> int:
        """Check that a leader may propose a value in a round after the first.

        A quorum has left the rounds before; the value is that of the highest certificate that any of them holds, and a
        new one if none does.

        Returns:
            The round of that certificate; -1 without one.

        Raises:
            Malformed: another value may have been decided.
        """
        if len(justification.statements) < self.group.quorum:
            raise Malformed("justification without a quorum")
        for statement in justification.statements:
            self._check_statement(statement, round)
        top = max(statement.high_round for statement in justification.statements)
        if top < 0:
            if justification.certificate or value.round != round:
                raise Malformed("a new value names its round")
            return top
        named = {statement.digest for statement in justification.statements if statement.high_round == top}
        if named != {digest} or self.check_certificate(Kind.PREVOTE, digest, justification.certificate) != top:
            raise Malformed("another value may have been decided")
        return top

    def _check_statement(self, statement: Statement, round: int) -> None:
        sender, high_round, digest, signature = statement
        if not self.is_heard(sender) or not -1 <= high_round < round or (high_round < 0 and digest != NO_DIGEST):
            raise Malformed("justification")
        self.checks.require(sender, self.timeout_body(sender, round, high_round, digest), signature)
