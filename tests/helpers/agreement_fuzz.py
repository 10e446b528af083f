"""Messages that nobody honest sends: mutated, spliced, replayed, built anew and signed by a liar."""

from __future__ import annotations

import collections
import random
import struct
from collections.abc import Iterator

from agreement_world import RUN, World
from gradless.peers.agreement import Agreement, Timing
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog, Decision
from gradless.peers.schema import (
    HEAD,
    NO_DIGEST,
    SIGNATURE,
    STATED,
    U16,
    U32,
    Justification,
    Kind,
    Malformed,
    Row,
    Statement,
    Value,
    digest,
    pack_coefficients,
    pack_head,
    pack_justification,
    pack_value,
    parse_value,
    row_body,
)
from gradless.peers.signing import hash_rings
from gradless.peers.votes import Votes
from gradless.peers.wire import Decided, Proposal, Timeout, parse

WIDTH = 2
LIAR = 3
SEED = 15  # of a schedule in which every kind of message is said


def recorded() -> tuple[list[bytes], list[Decision]]:
    """All messages of a run of four peers, those of rounds that failed included, and what was decided."""
    sent: list[bytes] = []

    class Recording(World):
        def _deliver(self, source: int, peer: int, data: bytes, now: float) -> None:
            sent.append(data)
            super()._deliver(source, peer, data, now)

    world = Recording(SEED, 4, 1, steps=4, width=WIDTH, liars=0, well_from=2.0)
    world.loss = 0.3
    world.run()
    return sent, list(world.logs[0])


def corpus() -> list[bytes]:
    """Everything that was said in a run of four, rounds that failed included."""
    return recorded()[0]


class Fuzzer:
    """Makes messages from those of a run, and keeps a peer that hears them.

    Args:
        seed: what is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.corpus, self.decided = recorded()
        self.by_step: dict[int, list[bytes]] = {}
        for data in self.corpus:
            self.by_step.setdefault(parse(data, RUN, 4, WIDTH).head.step, []).append(data)
        self.step = 0  # that the peer is in
        self.rings = hash_rings(4, SEED)
        self.group = Group(RUN, 4, 1, WIDTH)
        self.values = self._values()
        self.now = 0.0

    def _values(self) -> dict[int, list[bytes]]:
        """Packed values of the run by step."""
        values: dict[int, set[bytes]] = {}
        for data in self.corpus:
            message = parse(data, RUN, 4, WIDTH)
            if isinstance(message, Decided | Proposal | Timeout) and message.value:
                values.setdefault(message.head.step, set()).add(message.value)
        return {step: sorted(some) for step, some in values.items()}

    def pick(self) -> bytes:
        """A message of the run, mostly of the step that the peer is in."""
        return self.rng.choice(self.by_step.get(self.step, self.corpus) if self.rng.random() < 0.8 else self.corpus)

    def peer(self) -> Agreement:
        """A new peer 0, somewhere in the run."""
        votes, log = Votes(None, RUN, complete=True), DecidedLog(None, self.group)
        for decision in self.decided[: self.rng.randrange(4)]:
            log.append(decision.value, decision.certificate)
        return Agreement(
            0, self.group, ring=self.rings[0], votes=votes, log=log, timing=Timing(0.05, 0.1), now=self.now
        )

    def messages(self, count: int) -> Iterator[bytes]:
        makers = (self.replayed, self.mutated, self.mutated, self.signed, self.signed, self.noise)
        for _ in range(count):
            yield self.rng.choice(makers)()

    def replayed(self) -> bytes:
        return self.pick()

    def noise(self) -> bytes:
        data = self.rng.randbytes(self.rng.choice((0, 1, 25, 26, 27, 300)))
        return data if self.rng.random() < 0.5 else pack_head(RUN, Kind(self.rng.randrange(1, 11)), LIAR, 0) + data

    def mutated(self) -> bytes:
        """Flipped bits, cut, longer, spliced, of another step, round or sender."""
        rng = self.rng
        data = bytearray(self.pick())
        for _ in range(rng.choice((1, 1, 2, 8))):
            if not data:
                break
            way = rng.randrange(6)
            if way < 2:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif way == 2:
                del data[rng.randrange(len(data) + 1) :]
            elif way == 3:
                data += rng.randbytes(rng.choice((1, 64, 4096)))
            elif way == 4:
                other, offset = rng.choice(self.corpus), rng.randrange(len(data))
                data[offset : offset + 40] = other[offset : offset + 40]
            elif len(data) >= HEAD.size:
                struct.pack_into("<HIH", data, 18, rng.randrange(5), rng.randrange(6), rng.randrange(80))
        return bytes(data)

    def signed(self) -> bytes:
        """What a liar says under its own key: every field as wrong as it likes, and the signature right."""
        rng = self.rng
        kind = rng.choice(
            [*(kind for kind in Kind if kind is not Kind.HIGH), *[Kind.PROPOSAL] * 6, *[Kind.TIMEOUT] * 2]
        )
        step, round = (
            rng.choice((*[self.step] * 6, self.step + 1, 0, 2**32 - 1)),
            rng.choice((0, 0, 0, 1, 2, 3, 64, 65, 65535)),
        )
        if kind is Kind.PROPOSAL and rng.random() < 0.8:
            round = (LIAR - step) % 4  # which it leads, as long as all are there
        head = pack_head(RUN, kind, LIAR, step, round)
        value = self.value(step, round)
        its_digest = digest(RUN, value) if rng.random() < 0.8 else rng.randbytes(32)
        tail = self.tail(value)
        match kind:
            case Kind.ROW:
                previous = parse_value(rng.choice(self.values.get(step, self.values[0]))).before
                return self.sign(row_body(RUN, self.row(), step, rng.choice((NO_DIGEST, previous))))
            case Kind.PREVOTE:
                return self.sign(head + its_digest) + self.signature()
            case Kind.PRECOMMIT:
                return self.sign(head + its_digest)
            case Kind.TIMEOUT:
                high = rng.choice((-1, -1, 0, 1, round, 2**31 - 1, -(2**31)))
                stated = STATED.pack(high, NO_DIGEST if high < 0 else its_digest)
                return self.sign(head + stated) + (b"" if high < 0 else U16.pack(len(tail)) + tail + value)
            case Kind.PROPOSAL:
                if round and rng.random() < 0.8:
                    tail = self.justification(step, round)
                return self.sign(head + its_digest) + U32.pack(len(value)) + value + (tail if round else b"")
            case Kind.DECIDED:
                return head + U32.pack(len(value)) + value + tail
            case Kind.HELLO:
                return head + rng.choice((bytes(8), rng.randbytes(8)))
            case Kind.ROWS:
                return head + U16.pack(rng.choice((0, 1, 2, 65535))) + value[45 : 45 + rng.randrange(400)]
            case _:
                return self.sign(head + rng.randbytes(8) + its_digest) + tail

    def sign(self, body: bytes) -> bytes:
        return body + self.rings[LIAR].sign(body)

    def signature(self) -> bytes:
        """One that somebody made, or nobody."""
        data = self.pick()
        return data[58:122] if len(data) >= 122 and self.rng.random() < 0.8 else bytes(SIGNATURE)

    def row(self) -> Row:
        numbers = [self.rng.choice((0.0, 1.0, -3e38, float("nan"), float("inf"))) for _ in range(WIDTH)]
        return Row(LIAR, self.rng.choice((0, 0, 1, 2, 255)), pack_coefficients(numbers), b"")

    def evidence(self) -> tuple[bytes, bytes]:
        """Two messages that convict the liar, or nobody."""
        rng = self.rng
        head = pack_head(RUN, Kind.PRECOMMIT, LIAR, self.step, rng.randrange(2))
        first, second = self.sign(head + rng.randbytes(32)), self.sign(head + rng.randbytes(32))
        other = self.pick()[: rng.choice((90, 117, 122, 126))]
        return rng.choice(
            ((first, second), (first, second), (first, first), (first, other), (other, self.pick()[:122]))
        )

    def justification(self, step: int, round: int) -> bytes:
        """TIMEOUTs of the run and of the liar, often enough and sometimes the right ones; a certificate of some."""
        rng = self.rng
        own = self.sign(pack_head(RUN, Kind.TIMEOUT, LIAR, step, round) + STATED.pack(-1, NO_DIGEST))
        statements = {LIAR: Statement(LIAR, -1, NO_DIGEST, own[-SIGNATURE:])}
        certificate = b""
        for data in self.by_step.get(step, ()):
            message = parse(data, RUN, 4, WIDTH)
            if isinstance(message, Timeout) and message.head.round == round and rng.random() < 0.9:
                stated = Statement(message.head.sender, message.high_round, message.digest, message.signature)
                statements[message.head.sender] = stated
                if rng.random() < 0.9:
                    certificate = message.certificate or certificate
        chosen = [each for each in statements.values() if rng.random() < 0.95]
        if rng.random() < 0.05:
            chosen = [each._replace(high_round=rng.choice((-5, 0, round, 99))) for each in chosen]
        order = rng.random() < 0.95
        return pack_justification(Justification(tuple(sorted(chosen) if order else chosen), certificate))

    def value(self, step: int, round: int = 0) -> bytes:
        """A value with a few wrong fields."""
        rng = self.rng
        value = parse_value(rng.choice(self.values.get(step, self.values[0])))
        if rng.random() < 0.6:
            value = value._replace(round=round, proposer=LIAR)
        if rng.random() < 0.3:
            value = value._replace(evidence=(self.evidence(),))
        rows = list(value.rows)
        for _ in range(rng.randrange(3)):
            way = rng.randrange(6)
            if way == 0 and rows:
                rows.pop(rng.randrange(len(rows)))
            elif way == 1 and rows:
                rows.append(rng.choice(rows))
            elif way == 2:
                row = self.row()
                signature = self.rings[LIAR].sign(row_body(RUN, row, step, value.before))
                rows.append(row._replace(signature=signature))
            elif way == 3:
                rng.shuffle(rows)
            elif way == 4:
                value = value._replace(
                    step=rng.choice((step, value.step)), round=rng.randrange(3), proposer=rng.randrange(5)
                )
            else:
                value = value._replace(evidence=(self.evidence(),) * rng.randrange(4))
        packed = pack_value(Value(*value._replace(rows=tuple(rows))))
        return packed if rng.random() < 0.9 else packed[: rng.randrange(len(packed) + 1)]

    def tail(self, value: bytes) -> bytes:
        """A certificate, a justification, or bytes that look a little like one."""
        data = self.pick()
        message = parse(data, RUN, 4, WIDTH)
        if isinstance(message, Decided | Timeout) and message.certificate:
            return message.certificate
        if isinstance(message, Proposal) and message.justification:
            return message.justification
        return U16.pack(self.rng.randrange(5)) + self.rng.randbytes(self.rng.choice((0, 2, 66, 102, 300)))


def attack(seed: int, count: int) -> collections.Counter[str]:
    """Let peers hear so many messages, and count; every exception but `Malformed` inside goes through.

    Some peers hear a few and some hear hundreds: what a liar says first in a slot is looked at most closely.

    Args:
        seed: what is drawn.
        count: number of messages.
    """
    fuzzer = Fuzzer(seed)
    counts: collections.Counter[str] = collections.Counter()
    done = 0
    while done < count:
        peer = fuzzer.peer()
        fuzzer.step = peer.step
        if fuzzer.rng.random() < 0.5:
            peer.row(peer.step, [1.0, 2.0], fuzzer.now)
        few = fuzzer.rng.choice((3, 10, 30, 300))
        for data in fuzzer.messages(min(few, count - done)):
            fuzzer.now += 0.01 if fuzzer.rng.random() < 0.98 else 700.0  # past every mute
            try:
                parse(data, RUN, 4, WIDTH)
            except Malformed:
                counts["refused by the schema"] += 1
            peer.handle(data, fuzzer.now)
            fuzzer.step = peer.step
            if fuzzer.rng.random() < 0.02:
                peer.tick(fuzzer.now)
            check_bounds(peer)
            counts["largest outbox"] = max(counts["largest outbox"], sum(len(data) for _, data in peer.take_outbox()))
            done += 1
        for name, number in peer.counts.items():
            counts[name] += number
        counts["decided"] += len(peer.take_decisions())
        counts["convicted"] += len(peer.evidence)
        counts["most entries"] = max(counts["most entries"], len(peer.instance.books))
    return counts


def check_bounds(peer: Agreement) -> None:
    """State does not grow with what is heard: entries are one a sender, kind and round."""
    rounds = peer.instance.promised + 65
    assert len(peer.instance.books) <= 4 * 6 * rounds
    assert len(peer._next) <= 4 * 5 * 8
    assert len(peer.evidence) <= 4
    assert len(peer._helped) <= 4
    assert len(peer._asked) <= 4
    assert sum(map(len, peer._checks._held.values())) <= 4 * 512
