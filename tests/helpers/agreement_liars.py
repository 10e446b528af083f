"""Liars of the simulated group: each has an honest peer's state, its own key, and what the other liars know."""

from __future__ import annotations

import collections
import random
from typing import TYPE_CHECKING

from gradless.peers.agreement import Agreement, Outgoing
from gradless.peers.schema import (
    HEAD,
    NO_DIGEST,
    SIGNATURE,
    STATED,
    U32,
    Justification,
    Kind,
    Row,
    digest,
    pack_coefficients,
    pack_head,
    pack_justification,
    parse_head,
    parse_value,
    row_body,
)
from gradless.peers.wire import Message, Proposal, parse

if TYPE_CHECKING:
    from agreement_world import World


class Liar:
    """Signs anything with its own key, and sends it to whom it likes: contradictions, omissions, old messages."""

    def __init__(self, core: Agreement, world: World, rng: random.Random) -> None:
        self.core, self.world, self.rng = core, world, rng
        self.lies: collections.Counter[str] = collections.Counter()

    def act(self, sent: list[Outgoing], now: float) -> list[tuple[int, bytes]]:
        """What goes out instead of what an honest peer would have said."""
        out: list[tuple[int, bytes]] = []
        for to, data in sent:
            head = parse_head(data, self.world.group.run, self.world.group.peers)
            targets = self.everybody() if to is None else [to]
            if head.kind is Kind.ROW and to is None:
                rows = (self.row(), self.row(), data)
                self.lies["rows"] += 1
                out += [(peer, self.rng.choice(rows)) for peer in targets if self.rng.random() < 0.9]
            elif head.kind is Kind.PROPOSAL and to is None:
                out += self.proposals(data)
            elif head.kind in (Kind.PREVOTE, Kind.PRECOMMIT):
                out += self.votes(data)
            elif head.kind is Kind.TIMEOUT:
                out += self.timeouts(data)
            else:
                out += [(peer, data) for peer in targets if self.rng.random() < 0.7]
        if self.rng.random() < 0.05 and self.world.seen:  # anything ever said, to anybody
            out += [(peer, self.rng.choice(self.world.seen)) for peer in self.some()]
        return out

    def answer(self, source: int, data: bytes) -> list[tuple[int, bytes]]:
        """What goes out because something came in."""
        return []

    def everybody(self) -> list[int]:
        return list(range(self.world.group.peers))

    def some(self) -> list[int]:
        return [peer for peer in self.everybody() if self.rng.random() < self.rng.choice((0.35, 0.6, 1.0))]

    def parse(self, data: bytes) -> Message:
        return parse(data, self.world.group.run, self.world.group.peers, self.world.group.width)

    def sign(self, body: bytes) -> bytes:
        return body + self.world.rings[self.core.me].sign(body)

    def head(self, kind: Kind, step: int, round: int) -> bytes:
        return pack_head(self.world.group.run, kind, self.core.me, step, round)

    def row(self) -> bytes:
        coefficients = pack_coefficients([self.rng.gauss(0, 5) for _ in range(self.core.group.width)])
        row = Row(self.core.me, 0, coefficients, b"")
        return self.sign(row_body(self.core.group.run, row, self.core.step, self.core.log.history.digest))

    def vote(self, kind: Kind, step: int, round: int, its_digest: bytes) -> bytes | None:
        """A vote; a prevote only where the leader's signature is known, but for a few."""
        vote = self.sign(self.head(kind, step, round) + its_digest)
        if kind is Kind.PRECOMMIT:
            return vote
        offer = self.world.offers.get((step, round, its_digest))
        if offer is None and self.rng.random() < 0.98:
            return None
        return vote + (offer or bytes(SIGNATURE))

    def timeout(self, step: int, round: int) -> bytes:
        """One that hides every certificate."""
        return self.sign(self.head(Kind.TIMEOUT, step, round) + STATED.pack(-1, NO_DIGEST))

    def value(self, left_out: int | None = None) -> bytes:
        """A new value of the round, without one of the rows."""
        rows = self.core.instance.books.rows
        kept = rows.pop(left_out, None) if left_out is not None else None
        value = self.core.instance.new_value()
        if kept is not None and left_out is not None:
            rows[left_out] = kept
        return value

    def proposal(self, round: int, value: bytes, justification: bytes) -> bytes:
        signed = self.sign(self.head(Kind.PROPOSAL, self.core.step, round) + digest(self.core.group.run, value))
        data = signed + U32.pack(len(value)) + value + justification
        self.world.remember(data)
        return data

    def blind_justification(self, round: int) -> bytes | None:
        """TIMEOUTs without a certificate, if there are enough."""
        stated = self.core.instance.books.timeouts.get(round, {}).values()
        blind = [statement for statement in stated if statement.high_round < 0][: self.core.group.quorum]
        if len(blind) < self.core.group.quorum:
            return None
        return pack_justification(Justification(tuple(sorted(blind)), b""))

    def options(self, data: bytes) -> list[bytes]:
        """Proposals for one round: the honest one, others without some row, with whatever justification there is."""
        proposal = self.parse(data)
        assert isinstance(proposal, Proposal)
        round, justification = proposal.head.round, proposal.justification
        senders = sorted(self.core.instance.books.rows)
        options = [data]
        if len(senders) > self.core.group.enough or self.rng.random() < 0.5:
            for _ in range(2):
                left_out = self.rng.choice(senders) if len(senders) > self.core.group.enough else None
                options.append(self.proposal(round, self.value(left_out), justification))
        for value in list(self.world.known[self.core.step].values())[:3]:
            if parse_value(value).round <= round:
                options.append(self.proposal(round, value, justification))
        blind = self.blind_justification(round) if round else None
        if blind is not None:
            options.append(self.proposal(round, self.value(), blind))
        return options

    def proposals(self, data: bytes) -> list[tuple[int, bytes]]:
        options = self.options(data)
        self.lies["proposals"] += len(options) > 1
        return [(peer, self.rng.choice(options)) for peer in self.everybody()]

    def votes(self, data: bytes) -> list[tuple[int, bytes]]:
        """For every value that anybody has proposed, to some; in this round and in the one before."""
        head = parse_head(data, self.core.group.run, self.core.group.peers)
        digests = {*self.world.known[head.step], data[HEAD.size : HEAD.size + 32], *self.core.instance.books.values}
        self.lies["votes"] += len(digests) > 1
        out = []
        for its_digest in sorted(digests):
            for round in sorted({head.round, max(0, head.round - 1)}):
                for kind in (Kind.PREVOTE, Kind.PRECOMMIT):
                    vote = self.vote(kind, head.step, round, its_digest)
                    out += [(peer, vote) for peer in self.some() if vote is not None]
        return out

    def timeouts(self, data: bytes) -> list[tuple[int, bytes]]:
        """The truth to some, no certificate to others, a later round to a few."""
        head = parse_head(data, self.core.group.run, self.core.group.peers)
        blind, later = self.timeout(head.step, head.round), self.timeout(head.step, head.round + 1)
        self.lies["timeouts"] += 1
        out = [(peer, self.rng.choice((data, blind))) for peer in self.some()]
        return out + [(peer, later) for peer in self.some() if self.rng.random() < 0.3]


class Splitter(Liar):
    """Tells each of two sides a story that is consistent by itself: one value, and all liars' votes for it."""

    def act(self, sent: list[Outgoing], now: float) -> list[tuple[int, bytes]]:
        out: list[tuple[int, bytes]] = []
        for to, data in sent:
            head = parse_head(data, self.world.group.run, self.world.group.peers)
            sides = self.world.sides(head.step, head.round)
            if head.kind is Kind.ROW and to is None:
                pair = (self.row(), data)
                self.lies["rows"] += 1
                out += [(peer, pair[sides[peer]]) for peer in self.everybody()]
            elif head.kind is Kind.PROPOSAL and to is None:
                pair = self.pair(data)
                self.lies["proposals"] += pair[0] != pair[1]
                self.world.story[head.step, head.round] = tuple(each[HEAD.size : HEAD.size + 32] for each in pair)
                out += [(peer, pair[sides[peer]]) for peer in self.everybody()]
            elif head.kind in (Kind.PREVOTE, Kind.PRECOMMIT):
                out += self.sided_votes(data, sides)
            elif head.kind is Kind.TIMEOUT:
                blind = self.timeout(head.step, head.round)
                self.lies["timeouts"] += 1
                out += [(peer, blind if self.rng.random() < 0.8 else data) for peer in self.everybody()]
            elif head.kind is not Kind.DECIDED:
                out += [(peer, data) for peer in (self.everybody() if to is None else [to])]
        return out

    def sided_votes(self, data: bytes, sides: list[int]) -> list[tuple[int, bytes]]:
        head = parse_head(data, self.world.group.run, self.world.group.peers)
        its_digest = data[HEAD.size : HEAD.size + 32]
        story = self.world.story.get((head.step, head.round), (its_digest, its_digest))
        self.lies["votes"] += story[0] != story[1]
        quiet = self.rng.choice((None, None, 0, 1))
        out = []
        for peer in self.everybody():
            for kind in (Kind.PREVOTE, Kind.PRECOMMIT):
                if kind is Kind.PRECOMMIT and (sides[peer] == quiet or self.rng.random() < 0.2):
                    continue
                vote = self.vote(kind, head.step, head.round, story[sides[peer]])
                out += [(peer, vote)] if vote is not None else []
        return out

    def pair(self, data: bytes) -> tuple[bytes, bytes]:
        proposal = self.parse(data)
        assert isinstance(proposal, Proposal)
        round, justification = proposal.head.round, proposal.justification
        if round:
            blind = self.blind_justification(round)
            if blind is None:  # nothing else is justified
                second = data if self.rng.random() < 0.5 else self.proposal(round, self.value(), justification)
                return second, second
            justification = blind
        rows = self.core.instance.books.rows
        if len(rows) > self.core.group.enough:
            return data, self.proposal(round, self.value(self.rng.choice(sorted(rows))), justification)
        own = rows.get(self.core.me)
        if own is None:
            return data, data
        other = self.parse(self.row())
        rows[self.core.me] = other.row  # type: ignore[union-attr]
        second = self.proposal(round, self.value(), justification)
        rows[self.core.me] = own
        return data, second


class YesMan(Splitter):
    """Votes for whatever anybody says, to whoever says it, in any step; has never seen a certificate."""

    def act(self, sent: list[Outgoing], now: float) -> list[tuple[int, bytes]]:
        kinds = (Kind.PREVOTE, Kind.PRECOMMIT, Kind.TIMEOUT)
        return super().act([each for each in sent if each.data[1] not in kinds], now)

    def answer(self, source: int, data: bytes) -> list[tuple[int, bytes]]:
        if source in self.world.liars:  # they agree already
            return []
        head = parse_head(data, self.core.group.run, self.core.group.peers)
        if head.kind is Kind.TIMEOUT:
            self.lies["timeouts"] += 1
            return [(source, self.timeout(head.step, head.round))]
        if head.kind not in (Kind.PROPOSAL, Kind.PREVOTE, Kind.PRECOMMIT):
            return []
        self.lies["votes"] += 1
        its_digest = data[HEAD.size : HEAD.size + 32]
        votes = [self.vote(kind, head.step, head.round, its_digest) for kind in (Kind.PREVOTE, Kind.PRECOMMIT)]
        return [(source, vote) for vote in votes if vote is not None]


class Laggard(Liar):
    """Lies by silence: leaves out receivers, holds messages back for a later step, sends rows late."""

    def __init__(self, core: Agreement, world: World, rng: random.Random) -> None:
        super().__init__(core, world, rng)
        self.held: list[tuple[float, int, bytes]] = []

    def act(self, sent: list[Outgoing], now: float) -> list[tuple[int, bytes]]:
        due = [(peer, data) for at, peer, data in self.held if at <= now]
        self.held = [each for each in self.held if each[0] > now]
        for to, data in sent:
            for peer in self.everybody() if to is None else [to]:
                fate = self.rng.random()
                if fate < 0.4:
                    due.append((peer, data))
                elif fate < 0.8:
                    self.lies["late"] += 1
                    self.held.append((now + self.rng.choice((0.06, 0.2, 1.0)), peer, data))
        return due


STYLES: dict[str, type[Liar]] = {"chaos": Liar, "split": Splitter, "yes": YesMan, "lag": Laggard}
