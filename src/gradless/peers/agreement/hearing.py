"""What comes in during one step: each message is checked, and noted in the books if it holds."""

from __future__ import annotations

from gradless.peers.agreement.books import Books
from gradless.peers.agreement.validity import Validity
from gradless.peers.schema import Kind, Malformed, Statement, Value, digest, parse_justification
from gradless.peers.wire import Message, Proposal, Rows, SignedRow, Timeout, Vote


class Hearing:
    """Checks messages of one step.

    Args:
        validity: constants and checks of the step.
        books: where what holds is noted.
    """

    def __init__(self, validity: Validity, books: Books) -> None:
        self.validity, self.books = validity, books
        self.run = validity.group.run

    def handle(self, message: Message, promised: int) -> None:
        """Note what a message says, if it holds; proposals of rounds below `promised` cannot matter any more.

        Raises:
            Malformed: no honest peer sends it in this step.
        """
        match message:
            case SignedRow():
                self._on_row(message)
            case Rows():
                for row in message.rows:
                    if self.books.rows.get(row.sender) != row:
                        self.books.add_row(row, self.validity.check_row(row))
            case Vote():
                self._on_vote(message)
            case Timeout():
                self._on_timeout(message)
            case Proposal():
                if message.head.round >= promised:
                    self._on_proposal(message)

    def _on_row(self, message: SignedRow) -> None:
        row = message.row
        if message.chain != self.validity.before[:16]:
            raise Malformed("row of another history")
        if self.books.rows.get(row.sender) == row or self.books.is_spent(Kind.ROW, row.sender, 0, message.signed):
            return
        self.validity.checks.require(row.sender, message.signed, row.signature)
        self.books.add_row(row, message.signed)

    def _on_vote(self, vote: Vote) -> None:
        kind, sender, _, round = vote.head
        if self.books.has_vote(kind, sender, round, vote.digest, vote.signature):
            return
        if self.books.is_spent(kind, sender, round, vote.signed):
            return
        checks = self.validity.checks
        checks.require(sender, vote.signed, vote.signature)
        if kind is Kind.PREVOTE and not self.books.knows_offer(round, vote.digest):
            leader = self.validity.leader(round)
            checks.require(leader, self.validity.vote_body(Kind.PROPOSAL, leader, round, vote.digest), vote.witness)
            self.books.add_offer(round, vote.digest, vote.witness)
        if self.books.first(kind, sender, round, vote.signed, vote.signature):
            self.books.count(kind, sender, round, vote.digest, vote.signature)

    def _on_timeout(self, timeout: Timeout) -> None:
        sender, round = timeout.head.sender, timeout.head.round
        statement = Statement(sender, timeout.high_round, timeout.digest, timeout.signature)
        if self.books.has_timeout(round, statement) or self.books.is_spent(Kind.TIMEOUT, sender, round, timeout.signed):
            return
        self.validity.checks.require(sender, timeout.signed, timeout.signature)
        if timeout.high_round >= 0:
            self._learn_certificate(timeout)
        if self.books.first(Kind.TIMEOUT, sender, round, timeout.signed, timeout.signature):
            self.books.add_timeout(round, statement)

    def note_round(self, timeout: Timeout, *, apart: int) -> None:
        """Note only how far the sender of a TIMEOUT is, one number a sender: its round is too late for the books.

        Args:
            timeout: what came; its certificate is not looked at.
            apart: rounds since the last one noted of this sender below which nothing is done.

        Raises:
            Malformed: the sender did not sign it.
        """
        sender, round = timeout.head.sender, timeout.head.round
        if round > self.books.latest.get(sender, 0) + apart:
            self.validity.checks.require(sender, timeout.signed, timeout.signature)
            self.books.latest[sender] = round

    def _learn_certificate(self, timeout: Timeout) -> None:
        """Check the certificate and the value that a TIMEOUT brings along, and keep them."""
        its_digest, value = timeout.digest, timeout.value
        if digest(self.run, value) != its_digest:
            raise Malformed("value of a certificate")
        if (timeout.high_round, its_digest) in self.books.certificates and its_digest in self.books.values:
            return
        if self.validity.check_certificate(Kind.PREVOTE, its_digest, timeout.certificate) != timeout.high_round:
            raise Malformed("round of a certificate")
        self._learn_value(its_digest, value, timeout.high_round)
        self.books.certificates.setdefault((timeout.high_round, its_digest), timeout.certificate)

    def _learn_value(self, its_digest: bytes, data: bytes, round: int) -> Value:
        """Check a value that is new, and keep it and its rows."""
        value = self.validity.check_value(data, round)
        for row in value.rows:
            if self.books.rows.get(row.sender) != row:
                self.books.add_row(row, self.validity.row_body(row))
        self.books.values[its_digest] = data
        return value

    def _on_proposal(self, proposal: Proposal) -> None:
        sender, round = proposal.head.sender, proposal.head.round
        if sender != self.validity.leader(round):
            raise Malformed("leader")
        if self.books.accepted.get(round, (b"",))[0] == proposal.digest:
            return
        if self.books.is_spent(Kind.PROPOSAL, sender, round, proposal.signed):
            return
        self.validity.checks.require(sender, proposal.signed, proposal.signature)
        if not self.books.add_offer(round, proposal.digest, proposal.signature):
            return
        if digest(self.run, proposal.value) != proposal.digest:
            raise Malformed("digest")
        value = self._learn_value(proposal.digest, proposal.value, round)
        if round:
            justification = parse_justification(proposal.justification)
            top = self.validity.check_justification(justification, value, proposal.digest, round)
            if top >= 0:
                self.books.certificates.setdefault((top, proposal.digest), justification.certificate)
        self.books.accepted[round] = proposal.digest, proposal.signature
