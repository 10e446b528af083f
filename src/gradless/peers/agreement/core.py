"""The steps of one peer, one after the other: instances, messages of other steps, lagging peers, starting again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradless.peers.agreement.books import Evidence
from gradless.peers.agreement.checks import Checks
from gradless.peers.agreement.instance import Instance, Timing
from gradless.peers.agreement.recovery import Inquiry
from gradless.peers.agreement.validity import Validity
from gradless.peers.agreement.voice import Outgoing, Voice
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog, Decision
from gradless.peers.muting import Muting
from gradless.peers.records import NotWritten
from gradless.peers.schema import (
    NO_DIGEST,
    NO_NONCE,
    Foreign,
    Head,
    Kind,
    Malformed,
    digest,
    finite,
    pack_coefficients,
    pack_head,
    parse_head,
)
from gradless.peers.signing import Ring
from gradless.peers.votes import Votes
from gradless.peers.wire import Answer, Decided, Hello, Message, Proposal, SignedRow, Timeout, Vote, pack_decided, parse

ROUNDS_AHEAD: Final = 64  # of the round that is promised; of a later one only TIMEOUTs count, and only as to how far
ROUNDS_OF_NEXT_STEP: Final = 8  # whose messages are kept
STEPS_AT_ONCE: Final = 32  # decided steps for a peer that lacks them
REMEMBERED: Final = 64  # newest steps of which it is known whose rows were in time
USUAL: Final = Timing()
PATIENCE: Final = 3  # steps in a row that a late peer may miss before a leader waits for it less often


class Agreement:
    """Agrees on one value a step with the other peers of a group.

    A state machine: `row`, `handle` and `tick` put something in, `take_outbox` and `take_decisions` return what
    follows. Its driver delivers messages, calls `tick` about every 10 ms, and passes times that never go back.

    Args:
        me: index of this peer.
        group: constants of the run.
        ring: one's own key and the public keys of all.
        votes: log of one's own signatures; one that is not complete (its peer ran before, and lost it) keeps this peer
            from signing until the group says from which step on nothing can hurt.
        log: decided values; the agreement goes on behind them.
        timing: waiting times.
        now: seconds.

    Attributes:
        evidence: two messages by the peer that they convict.
        log: decided values.
        counts: what was handled, refused, checked: `gradless.peers.agreement.checks.COUNTS`.

    Cost: n = 4, K = 4: 1.7 kB and 10 messages a peer and step, 7 signature checks or fewer; memory bounded by peers and
    rounds, whatever is sent.
    """

    def __init__(
        self, me: int, group: Group, *, ring: Ring, votes: Votes, log: DecidedLog, timing: Timing = USUAL, now: float
    ) -> None:
        assert 0 <= me < group.peers
        self.me, self.group, self.timing, self.log, self.votes = me, group, timing, log, votes
        self.evidence: Evidence = {}
        self._checks = Checks(group, ring)
        self._muting = Muting(group.peers)
        self._voice = Voice(me, group, ring, votes)
        if self._log_is_ahead():
            votes.declare(complete=False)
        self._inquiry = None if votes.complete else Inquiry(group, votes.nonce)
        self._decisions: list[Decision] = []
        self.in_time: dict[int, frozenset[int]] = {}
        """By newest step: peers whose row this one had when the step was decided, in the value or not."""
        self._next: dict[tuple[int, Kind, int], bytes] = {}  # messages of the next step, one a sender, kind and round
        self._helped: dict[int, float] = {}  # when a peer was sent decided steps
        self._asked: dict[int, float] = {}  # when a peer was asked for them
        self._answered: dict[int, float] = {}
        self._asks_all = now  # when everybody is asked again
        self._now = now
        self._begin()
        self._ask_all()
        self._conclude()

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Number of decided steps, and so the step that is under way."""
        return len(self.log)

    @property
    def banned(self) -> frozenset[int]:
        """Peers whose messages count for nothing from this step on."""
        return self.log.history.banned

    @property
    def counts(self) -> dict[str, int]:
        """What was handled, refused and checked in this life of the peer."""
        return self._checks.counts

    @property
    def muted(self) -> frozenset[int]:
        """Peers that sent so much that no honest peer sends that they are not heard for ten minutes."""
        return frozenset(peer for peer in range(self.group.peers) if self._muting.muted(peer, self._now))

    @property
    def faults(self) -> dict[int, int]:
        """Messages that no honest peer sends, by who sent them."""
        return dict(enumerate(self._muting.counts))

    @property
    def silent(self) -> bool:
        """Whether this peer signs nothing in this step, because it cannot know what it signed before."""
        return self.instance.silent

    @property
    def exhausted(self) -> bool:
        """Whether the step can be decided by messages of others alone: this peer has no round left for it."""
        return self.instance.exhausted

    @property
    def missing_answers(self) -> int:
        """How many peers have to answer before a peer without its log of votes knows when it may sign again."""
        return self._inquiry.missing if self._inquiry else 0

    # -- what goes in -------------------------------------------------------------------------------------------------

    def row(self, step: int, coefficients: Sequence[float], now: float, *, abstain: bool = False) -> bool:
        """Sign and send one's own row.

        Args:
            step: of which the coefficients are.
            coefficients: K numbers; where one is not finite as float32, the row abstains.
            now: seconds.
            abstain: whether the loss was not finite.

        Returns:
            Whether the row was taken: not if the step is over, or this peer is silent or has signed a row already.

        Raises:
            NotWritten: the disk is full; nothing was sent.
        """
        self._enter(now)
        assert len(coefficients) == self.group.width
        if step != self.step:
            return False
        try:
            packed = pack_coefficients(coefficients)
        except OverflowError:
            packed, abstain = b"", True
        abstain = abstain or not finite(packed)
        if abstain:
            packed = bytes(4 * self.group.width)
        accepted = self.instance.propose_row(packed, abstains=abstain)
        self._conclude()
        return accepted

    def handle(self, data: bytes, now: float, *, sent_by: int | None = None) -> None:
        """Take in one message, from whomever.

        Args:
            data: what came; anything at all.
            now: seconds.
            sent_by: the peer whose channel it came through; a message that names another sender is refused.

        Raises:
            NotWritten: the disk is full; nothing was sent that is not written.
        """
        self._enter(now)
        self.counts["handled"] += 1
        data = bytes(data)  # parts of it are keys of dictionaries; no copy if it is that already
        sender = sent_by
        try:
            head = parse_head(data, self.group.run, self.group.peers)
            sender = head.sender if sent_by is None else sent_by
            if sender != head.sender:
                raise Malformed("sender")
            if self._muting.muted(sender, now):
                self.counts["muted"] += 1
            elif sender != self.me:
                self._receive(head, data)
        except Malformed as error:
            self._note_fault(None if isinstance(error, Foreign) else sender)
        self._conclude()

    def tick(self, now: float) -> None:
        """Let time pass.

        Raises:
            NotWritten: the disk is full; nothing was sent that is not written.
        """
        self._enter(now)
        self.instance.tick()
        if now >= self._asks_all and (self._inquiry is not None or self.instance.lacks_value):
            self._ask_all()
        self._conclude()

    # -- what comes out -----------------------------------------------------------------------------------------------

    def take_outbox(self) -> list[Outgoing]:
        """Return what is to be sent, and forget it."""
        messages, self._voice.outbox = self._voice.outbox, []
        return messages

    def take_decisions(self) -> list[Decision]:
        """Return the steps that were decided since the last call; what the log held at the start is not among them."""
        decisions, self._decisions = self._decisions, []
        return decisions

    # -- steps --------------------------------------------------------------------------------------------------------

    def _enter(self, now: float) -> None:
        """Begin a handler; after a vote that could not be written there is none."""
        if self._voice.failure is not None:
            raise self._voice.failure
        self._now = self.instance.now = now

    def _begin(self) -> None:
        """Begin the step behind the log: by own votes, if there are any, and by what came for it already."""
        history = self.log.history
        if self._inquiry is not None and self.step >= self._inquiry.signs_from:
            self.votes.declare(complete=True, since=self.step)
            self._inquiry = None
        self._checks.next_step()
        self.instance = Instance(
            self.me,
            Validity(self.group, history, self._checks),
            self._voice,
            self.evidence,
            history.present - history.banned,
            self.timing,
            silent=self._inquiry is not None,
            now=self._now,
        )
        self.instance.restore(self.votes.of(self.step))
        kept, self._next = self._next, {}
        for (sender, _, _), data in kept.items():
            if sender not in history.banned:
                try:
                    self.instance.handle(parse(data, self.group.run, self.group.peers, self.group.width))
                except Malformed:
                    self._note_fault(sender)

    def _note_fault(self, sender: int | None) -> None:
        """Count a message that no honest peer sends; who sends many of them is not heard for a while."""
        self.counts["malformed"] += 1
        if sender is not None:
            self._muting.fault(sender, self._now)

    def _conclude(self) -> None:
        """End a handler: do what follows; a decision takes effect only now, so no handler goes on in another step."""
        try:
            self.instance.advance()
            while self.instance.decision is not None:
                decision = self.instance.decision
                self.log.append(decision.value, decision.certificate)
                self._decisions.append(decision)
                self.in_time[decision.step] = frozenset(self.instance.books.rows)
                self.in_time.pop(decision.step - REMEMBERED, None)
                self._fall_silent_if_votes_are_lost()
                self.votes.forget(self.step)
                self._begin()
                self.instance.advance()
            self._fall_silent_if_votes_are_lost()
            self._voice.release()
        except NotWritten as error:
            self._voice.failure = error
            raise

    def _log_is_ahead(self) -> bool:
        """Whether a decided row of this peer is newer than its votes: they are none, or a copy from before."""
        return self.votes.complete and self.log.history.last_present.get(self.me, -1) > self.votes.newest

    def _fall_silent_if_votes_are_lost(self) -> None:
        """Sign nothing any more, until the group answers, if this peer signed what it does not remember."""
        if self._inquiry is None and (self.instance.books.forgotten or self._log_is_ahead()):
            self.votes.declare(complete=False)
            self._inquiry = Inquiry(self.group, self.votes.nonce)
            self.instance.silent = True

    # -- messages -----------------------------------------------------------------------------------------------------

    def _receive(self, head: Head, data: bytes) -> None:
        kind, sender, step, round = head
        if kind in (Kind.HELLO, Kind.DECIDED, Kind.ANSWER):
            self._receive_of_any_step(parse(data, self.group.run, self.group.peers, self.group.width))
        elif step < self.step:
            self._receive_late(head)
        elif step > self.step:
            self._receive_early(head, data)
        elif sender not in self.banned:
            message = parse(data, self.group.run, self.group.peers, self.group.width)
            if round <= self.instance.promised + ROUNDS_AHEAD:
                self.instance.handle(message)
            elif isinstance(message, Timeout):
                self.instance.hearing.note_round(message, apart=ROUNDS_AHEAD)

    def _receive_of_any_step(self, message: Message) -> None:
        match message:
            case Hello():
                self._help(message.head.sender, message.head.step)
                if message.nonce != NO_NONCE:
                    self._answer(message)
            case Decided():
                self._receive_decided(message)
            case Answer() if self._inquiry is not None:
                self._inquiry.hear(message, self._checks)

    def _receive_late(self, head: Head) -> None:
        """A message of a decided step: its sender lags, or its row came late."""
        self.counts["late"] += 1
        if head.kind in (Kind.ROW, Kind.TIMEOUT):
            self._help(head.sender, head.step)
        # Whoever was a little late once is waited for again, or it would be left out as long as it is the slowest. One
        # that is always late costs a grace in fewer and fewer steps. Only leaders wait, so peers may differ here.
        if head.kind is Kind.ROW and head.step == self.step - 1 and head.sender not in self.banned:
            absent = head.step - self.log.history.last_present.get(head.sender, -1)
            if absent <= PATIENCE or self.step % 2 ** min(absent - PATIENCE, 8) == 0:
                self.instance.expected.add(head.sender)

    def _receive_early(self, head: Head, data: bytes) -> None:
        """A message of a later step: keep that of the next one if its signature holds, and ask for what is missing."""
        kind, sender, step, round = head
        key = (sender, kind, round)
        if (
            step == self.step + 1
            and round < ROUNDS_OF_NEXT_STEP
            and sender not in self.banned
            and key not in self._next
        ):
            message = parse(data, self.group.run, self.group.peers, self.group.width)
            match message:
                case SignedRow(row=row, signed=signed):
                    self._checks.require(sender, signed, row.signature)
                    self._next[key] = data
                case Vote() | Timeout() | Proposal():
                    self._checks.require(sender, message.signed, message.signature)
                    self._next[key] = data
        if step > self.step + 1 or kind in (Kind.PREVOTE, Kind.PRECOMMIT, Kind.TIMEOUT):
            self._ask(sender)

    def _receive_decided(self, message: Decided) -> None:
        """A value with its certificate, from whomever: the certificate vouches for it."""
        if message.head.step != self.step or self.instance.decision is not None:
            return
        its_digest = digest(self.group.run, message.value)
        self.instance.validity.check_certificate(Kind.PRECOMMIT, its_digest, message.certificate)
        self.log.history.copy().append(message.value)  # what a quorum vouches for is looked at, and nothing before
        self.instance.decision = Decision(self.step, message.value, message.certificate)

    # -- peers that lag -----------------------------------------------------------------------------------------------

    def _due(self, times: dict[int, float], peer: int) -> bool:
        """Whether half a ``base`` has passed since the last time; notes this one if so."""
        if self._now - times.get(peer, -math.inf) < self.timing.base / 2:
            return False
        times[peer] = self._now
        return True

    def _help(self, peer: int, step: int) -> None:
        """Send decided steps to a peer that lacks them."""
        if step < self.step and self._due(self._helped, peer):
            for number in range(step, min(self.step, step + STEPS_AT_ONCE)):
                _, value, certificate = self.log[number]
                if certificate:
                    self._voice.send(pack_decided(self.group.run, self.me, number, value, certificate), to=peer)

    def _ask(self, peer: int) -> None:
        """Ask a peer for the steps from this one on."""
        if self._due(self._asked, peer):
            self._voice.send(pack_head(self.group.run, Kind.HELLO, self.me, self.step) + NO_NONCE, to=peer)

    def _ask_all(self) -> None:
        """Ask everybody for the steps from this one on and, without a log of votes, how many they have decided."""
        self._asks_all = self._now + self.timing.base
        nonce = NO_NONCE if self._inquiry is None else self._inquiry.nonce
        self._voice.send(pack_head(self.group.run, Kind.HELLO, self.me, self.step) + nonce)

    def _answer(self, hello: Hello) -> None:
        """Say how many steps are decided, to a peer that lost its log of votes; who lost its own says nothing."""
        peer = hello.head.sender
        if self._inquiry is not None or not self._due(self._answered, peer):
            return
        certificate = self.log[self.step - 1].certificate if self.step else b""
        newest = self.log.history.digest if self.step else NO_DIGEST
        body = pack_head(self.group.run, Kind.ANSWER, self.me, self.step) + hello.nonce + newest
        self._voice.send(body + self._voice.ring.sign(body) + certificate, to=peer)
