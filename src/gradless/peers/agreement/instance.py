"""One step: PBFT (Castro and Liskov 1999), with view changes that carry certificates (Gelashvili et al., 2106.10362).

n peers, f of them lie, a quorum q = floor((n + f) / 2) + 1. All signed messages are written before they are sent.

1. A peer prevotes once a round, for a proposal of the round's leader that is valid and, after round 0, justified by q
   TIMEOUTs for the round: it repeats the value of the highest certificate that they name.
2. q prevotes are a certificate. Who holds it and its value and has not left the round writes it and precommits.
3. q precommits decide.
4. TIMEOUT(r) promises no vote below round r and names the highest certificate of its sender.

*Safe*: a decision in round r means q - f honest precommits, and who gave one names a certificate of round r or later in
every later TIMEOUT. Any q TIMEOUTs contain one of these, so by induction every later certificate is for the same value.
*Live*: what is said last is repeated, TIMEOUTs from the round on that a peer is in, so that all come into the highest
round of an honest peer, and rounds take twice as long each time.

Handlers note facts; `Instance.advance` then does what the facts allow until nothing changes. A decision takes effect
after the handler has returned.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

from gradless.peers.agreement.books import Books, Evidence
from gradless.peers.agreement.hearing import Hearing
from gradless.peers.agreement.recovery import High, pack_high, parse_high
from gradless.peers.agreement.validity import Validity
from gradless.peers.agreement.voice import Voice
from gradless.peers.history import Group
from gradless.peers.log import Decision
from gradless.peers.schema import (
    ABSTAINS,
    LAST_ROUND,
    NO_DIGEST,
    U16,
    U32,
    Justification,
    Kind,
    Row,
    Statement,
    Value,
    digest,
    pack_head,
    pack_justification,
    pack_rows,
    pack_value,
    parse_value,
)
from gradless.peers.wire import Message, Proposal, SignedRow, Timeout, Vote, parse

MOST_DOUBLINGS: Final = 6  # of a round's time
LEFT_AT_ONCE: Final = 8  # rounds that a peer says TIMEOUTs for when it follows the others


class Timing(NamedTuple):
    """How long a peer waits, in seconds.

    Attributes:
        grace: for rows after n - f are there, at the least; half of the time of one's own probe if that is longer.
        base: for a round; also between repetitions of what was said last.
    """

    grace: float = 0.2
    base: float = 2.0


class Instance:
    """What one peer does in one step.

    Args:
        me: index of this peer.
        validity: constants and checks of the step.
        voice: signs, writes, sends.
        evidence: of the whole run.
        expected: peers for whose rows a leader waits.
        timing: waiting times.
        silent: whether this peer must not sign in this step; it counts, and decides, all the same.
        now: seconds.

    Attributes:
        round: the round that this peer is in.
        promised: it votes in no round below.
        high: the highest certificate that it holds.
        decision: set once, when the step is decided.
        exhausted: whether the time of the last round that a message can name is over. Nothing more is signed then, but
            the step may still be decided by others.
    """

    def __init__(
        self,
        me: int,
        validity: Validity,
        voice: Voice,
        evidence: Evidence,
        expected: frozenset[int],
        timing: Timing,
        *,
        silent: bool,
        now: float,
    ) -> None:
        self.me, self.validity, self.voice, self.timing = me, validity, voice, timing
        self.group: Group = validity.group
        self.expected = set(expected)
        self.silent = silent
        self.books = Books(me, validity, evidence)
        self.hearing = Hearing(validity, self.books)
        self.round = self.promised = 0
        self.high: High | None = None
        self.prevoted: dict[int, bytes] = {}
        self.precommitted: dict[int, bytes] = {}
        self.proposed: set[int] = set()
        self.decision: Decision | None = None
        self.exhausted = False
        self.said: dict[Hashable, bytes] = {}  # what is repeated
        self.now = self.began = now
        self.own_row_at: float | None = None
        self.ready: float | None = None  # since when n - f rows are there
        self.deadline: float | None = None  # of the round
        self.repeats = now + timing.base

    @property
    def lacks_value(self) -> bool:
        """Whether the step is decided, by a certificate whose value did not arrive."""
        return self.decision is None and bool(self.books.final)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def propose_row(self, coefficients: bytes, *, abstains: bool) -> bool:
        """Sign one's own row; False if there is one already, or nothing must be signed."""
        if self.silent or Kind.ROW in self.said:
            return False
        row = Row(self.me, ABSTAINS if abstains else 0, coefficients, b"")
        body = self.validity.row_body(row)
        self.said[Kind.ROW], signature = self.voice.say(body)
        self.books.add_row(row._replace(signature=signature), body, own=True)
        self.own_row_at = self.now
        return True

    def handle(self, message: Message) -> None:
        """Note what a message says, if it holds.

        Raises:
            Malformed: no honest peer sends it in this step.
        """
        self.hearing.handle(message, self.promised)

    def restore(self, records: Sequence[bytes]) -> None:
        """Be where the vote log ends: repeat what was said in this step, and keep what was promised."""
        for record in records:
            if record[1] == Kind.HIGH:
                self.high = parse_high(record)
                self.books.values[self.high.digest] = self.high.value
                self.books.certificates[self.high.round, self.high.digest] = self.high.certificate
                for row in parse_value(self.high.value).rows:
                    self.books.add_row(row, self.validity.row_body(row), own=True)
            else:
                self._restore_message(parse(record, self.group.run, self.group.peers, self.group.width), record)
        self._drop_old_timeouts()
        if records:
            self.repeats = self.now
        if self.promised:
            self._set_deadline()

    def _restore_message(self, message: Message, data: bytes) -> None:
        books, head = self.books, message.head
        key = ("timeout", head.round) if head.kind is Kind.TIMEOUT else head.kind
        self.said[key] = data
        match message:
            case SignedRow():
                books.add_row(message.row, message.signed, own=True)
            case Vote():
                done = self.prevoted if head.kind is Kind.PREVOTE else self.precommitted
                done[head.round] = message.digest
                books.count(head.kind, self.me, head.round, message.digest, message.signature)
                if message.witness:
                    books.add_offer(head.round, message.digest, message.witness, own=True)
            case Timeout():
                statement = Statement(self.me, message.high_round, message.digest, message.signature)
                books.add_timeout(head.round, statement)
            case Proposal():
                self.proposed.add(head.round)
                books.add_offer(head.round, message.digest, message.signature, own=True)
                books.values[message.digest] = message.value
                books.accepted[head.round] = message.digest, message.signature
        left = head.kind is Kind.TIMEOUT  # not yet in the round that it names
        self.round, self.promised = max(self.round, head.round - left), max(self.promised, head.round)

    def tick(self) -> None:
        """Leave a round whose time is over, and repeat what was said last every ``timing.base``."""
        if self.deadline is not None and self.now >= self.deadline and self.promised <= self.round and not self.silent:
            self._leave_for_next()
        if self.now >= self.repeats:
            self.repeats = self.now + self.timing.base
            for data in self.said.values():
                self.voice.send(data)

    # -- what follows -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do what the facts allow, until nothing changes or the step is decided."""
        self._start_timers()
        while self.decision is None and (
            self._decide()
            or self._raise_high()
            or self._enter()
            or self._follow()
            or self._abandon()
            or self._prevote()
            or self._precommit()
            or self._propose()
        ):
            pass

    def _start_timers(self) -> None:
        if self.ready is None and len(self.books.rows) >= self.group.enough:
            self.ready = self.now
            if self.deadline is None:
                self.deadline = self.now + self._grace() + self.timing.base

    def _grace(self) -> float:
        """Seconds to wait for the rows beyond n - f: half of the probe's, as far as the others needed as long."""
        if self.ready is None or self.own_row_at is None:
            return self.timing.grace
        return max(self.timing.grace, min(self.own_row_at, self.ready) / 2 - self.began / 2)

    def _decide(self) -> bool:
        """A quorum precommitted to a value that is here."""
        for its_digest, certificate in self.books.final.items():
            if its_digest in self.books.values:
                self.decision = Decision(self.validity.step, self.books.values[its_digest], certificate)
                return True
        return False

    def _raise_high(self) -> bool:
        """Keep the highest certificate whose value is here, and write it down before anything rests on it."""
        least = self.high.round if self.high else -1
        higher = [key for key in self.books.certificates if key[0] > least and key[1] in self.books.values]
        if not higher:
            return False
        round, its_digest = max(higher)
        high = High(round, its_digest, self.books.certificates[round, its_digest], self.books.values[its_digest])
        self.voice.write(pack_high(self.group, self.me, self.validity.step, high))
        self.high = high
        return True

    def _enter(self) -> bool:
        """Enter the highest round for which there is a reason: q TIMEOUTs, a certificate, or a just proposal."""
        rounds = [r for r, stated in self.books.timeouts.items() if len(stated) >= self.group.quorum]
        rounds += [r for r in self.books.accepted if r >= self.promised]
        if self.high is not None and self.high.round >= self.promised:
            rounds.append(self.high.round)
        round = max(rounds, default=0)
        if round <= self.round:
            return False
        self.round, self.promised = round, max(round, self.promised)
        self._drop_old_timeouts()
        if ("timeout", round) not in self.said and (self.high is None or self.high.round < round):
            self._say_timeout(round)  # whoever lacks one can follow
        self._set_deadline()
        return True

    def _drop_old_timeouts(self) -> None:
        """Repeat no TIMEOUT of a round before one's own."""
        old = [key for key in self.said if isinstance(key, tuple) and key[1] < self.round]
        for key in old:
            del self.said[key]

    def _set_deadline(self) -> None:
        self.deadline = self.now + self._grace() + self.timing.base * 2 ** min(self.round, MOST_DOUBLINGS)

    def _follow(self) -> bool:
        """Leave with the f + 1 peers that are in later rounds: one of them is honest."""
        if self.silent or len(self.books.latest) <= self.group.byzantine:
            return False
        later = sorted(self.books.latest.values(), reverse=True)[self.group.byzantine]
        if later <= self.promised:
            return False
        self._leave(later)
        return True

    def _abandon(self) -> bool:
        """Nobody waits for a leader that signed two proposals."""
        if self.silent or self.round not in self.books.two_faced or self.promised > self.round:
            return False
        return self._leave_for_next()

    def _leave_for_next(self) -> bool:
        """Leave for the next round; False if no message can name one."""
        if self.round >= LAST_ROUND:
            self.exhausted = True
            return False
        self._leave(self.round + 1)
        return True

    def _leave(self, round: int) -> None:
        """Promise no vote below a round, with TIMEOUTs for the rounds between, so that each can gather a quorum.

        The last few will do: honest peers promise at most one round beyond the highest that one of them is in.
        """
        first = max(self.promised, self.high.round if self.high else 0, round - LEFT_AT_ONCE) + 1
        self.promised = round
        for each in range(first, round + 1):
            self._say_timeout(each)

    def _say_timeout(self, round: int) -> None:
        if self.silent:
            return
        self.validity.checks.counts["timeouts"] += 1
        high_round, its_digest, tail = -1, NO_DIGEST, b""
        if self.high is not None:
            high_round, its_digest, certificate, value = self.high
            tail = U16.pack(len(certificate)) + certificate + value
        body = self.validity.timeout_body(self.me, round, high_round, its_digest)
        self.said["timeout", round], signature = self.voice.say(body, tail)
        self.books.add_timeout(round, Statement(self.me, high_round, its_digest, signature))
        leader = self.validity.leader(round)
        if leader != self.me and self.books.rows:  # it may lack some
            rows = [row for _, row in sorted(self.books.rows.items())]
            head = pack_head(self.group.run, Kind.ROWS, self.me, self.validity.step)
            self.voice.send(head + U16.pack(len(rows)) + pack_rows(rows), to=leader)

    def _prevote(self) -> bool:
        if self.silent or self.promised > self.round or self.round in self.prevoted:
            return False
        if self.round not in self.books.accepted:
            return False
        its_digest, witness = self.books.accepted[self.round]
        self._vote(Kind.PREVOTE, its_digest, witness)
        return True

    def _precommit(self) -> bool:
        if self.silent or self.promised > self.round or self.round in self.precommitted:
            return False
        if self.high is None or self.high.round != self.round:
            return False
        self._vote(Kind.PRECOMMIT, self.high.digest)
        return True

    def _vote(self, kind: Kind, its_digest: bytes, witness: bytes = b"") -> None:
        (self.prevoted if kind is Kind.PREVOTE else self.precommitted)[self.round] = its_digest
        body = self.validity.vote_body(kind, self.me, self.round, its_digest)
        self.said[kind], signature = self.voice.say(body, witness)
        self.books.count(kind, self.me, self.round, its_digest, signature)

    def _propose(self) -> bool:
        """Lead the round, once there are rows enough and, after round 0, a quorum of TIMEOUTs."""
        round = self.round
        if self.silent or self.promised > round or round in self.proposed or self.validity.leader(round) != self.me:
            return False
        justification, value = b"", b""
        if round:
            stated = self.books.timeouts.get(round, {}).values()
            if len(stated) < self.group.quorum:
                return False
            chosen = sorted(stated, key=lambda statement: -statement.high_round)[: self.group.quorum]
            top, certificate = chosen[0], b""
            if top.high_round >= 0:
                value = self.books.values[top.digest]
                certificate = self.books.certificates[top.high_round, top.digest]
            justification = pack_justification(Justification(tuple(sorted(chosen)), certificate))
        if not value:
            if not self._has_rows():
                return False
            value = self.new_value()
        self._offer(value, justification)
        return True

    def _has_rows(self) -> bool:
        """Whether there are n - f rows, and all that are expected or no time left to wait for them."""
        if self.ready is None or len(self.books.rows) < self.group.enough:
            return False
        return self.expected <= self.books.rows.keys() or self.now >= self.ready + self._grace()

    def new_value(self) -> bytes:
        """Pack the value that a leader proposes where none is certified: all rows at hand, and evidence."""
        rows = tuple(row for _, row in sorted(self.books.rows.items()))
        pairs = sorted(self.books.evidence.items())
        evidence = [pair for convict, pair in pairs if convict not in self.validity.banned]
        evidence = evidence[: self.group.byzantine]
        step, before = self.validity.step, self.validity.before
        return pack_value(Value(step, before, self.round, self.me, self.group.width, rows, tuple(evidence)))

    def _offer(self, value: bytes, justification: bytes) -> None:
        self.proposed.add(self.round)
        its_digest = digest(self.group.run, value)
        body = self.validity.vote_body(Kind.PROPOSAL, self.me, self.round, its_digest)
        tail = U32.pack(len(value)) + value + justification
        self.said[Kind.PROPOSAL], signature = self.voice.say(body, tail)
        self.books.add_offer(self.round, its_digest, signature, own=True)
        self.books.values[its_digest] = value
        self.books.accepted[self.round] = its_digest, signature
