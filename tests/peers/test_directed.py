"""Hand-made worst schedules, which random ones find rarely: each breaks a protocol that lacks a part, not this one."""

from __future__ import annotations

from agreement_world import RUN, flawed
from gradless.peers.agreement import Agreement, Timing
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog
from gradless.peers.schema import (
    HEAD,
    NO_DIGEST,
    SIGNATURE,
    STATED,
    U32,
    Justification,
    Kind,
    Statement,
    digest,
    pack_head,
    pack_justification,
    pack_value,
    parse_head,
    parse_value,
)
from gradless.peers.signing import hash_rings
from gradless.peers.votes import Votes

GROUP = Group(RUN, 4, 1, 1)


class Table:
    """Four peers, one of them a liar, and somebody who says what is delivered."""

    def __init__(self, liar: int) -> None:
        self.liar, self.now = liar, 0.0
        self.rings = hash_rings(4)
        self.votes = [Votes(None, RUN, complete=True) for _ in range(4)]
        self.logs = [DecidedLog(None, GROUP) for _ in range(4)]
        self.cores = [self.core(peer) for peer in range(4)]
        self.decided: dict[int, bytes] = {}  # step 0, by peer

    def core(self, peer: int) -> Agreement:
        ring, votes, log = self.rings[peer], self.votes[peer], self.logs[peer]
        return Agreement(peer, GROUP, ring=ring, votes=votes, log=log, timing=Timing(0.1, 0.3), now=self.now)

    def settle(self, allow, *, says=(), ticks=0):
        """Deliver what ``allow`` lets through until nothing moves; then let time pass."""
        inbox = list(says)
        for _ in range(ticks + 1):
            for _ in range(200):
                for peer, core in enumerate(self.cores):
                    sent = core.take_outbox()
                    if peer != self.liar:
                        inbox += [
                            (peer, to, data) for to_, data in sent for to in (range(4) if to_ is None else (to_,))
                        ]
                if not inbox:
                    break
                batch, inbox = inbox, []
                for source, to, data in batch:
                    if source != to and allow(source, to, parse_head(data, RUN, 4).kind):
                        self.cores[to].handle(data, self.now)
            self.now += 0.05
            for peer, core in enumerate(self.cores):
                if peer != self.liar:
                    core.tick(self.now)
        for peer, core in enumerate(self.cores):
            for step, value, _ in core.take_decisions():
                if peer != self.liar and step == 0:
                    self.decided[peer] = digest(RUN, value)

    def repeated(self, *peers: int):
        """What these peers repeat, to everybody."""
        return [(p, to, data) for p in peers for data in self.cores[p].instance.said.values() for to in range(4)]

    def sign(self, kind: Kind, round: int, rest: bytes) -> bytes:
        body = pack_head(RUN, kind, self.liar, 0, round) + rest
        return body + self.rings[self.liar].sign(body)

    def blind_timeout(self) -> bytes:
        return self.sign(Kind.TIMEOUT, 1, STATED.pack(-1, NO_DIGEST))

    def lying_proposal(self) -> bytes:
        """The liar leads round 1 and proposes a new value, though one of the TIMEOUTs names a certificate."""
        books = self.cores[self.liar].instance.books
        own = Statement(self.liar, -1, NO_DIGEST, self.blind_timeout()[-SIGNATURE:])
        statements = tuple(sorted({**books.timeouts[1], self.liar: own}.values()))
        assert len(statements) == GROUP.quorum
        assert max(statement.high_round for statement in statements) == 0
        value = pack_value(parse_value(self.cores[self.liar].instance.new_value())._replace(round=1))
        signed = self.sign(Kind.PROPOSAL, 1, digest(RUN, value))
        return signed + U32.pack(len(value)) + value + pack_justification(Justification(statements, b""))


def play(liar: int, *, crash: bool = False, forget: bool = False) -> dict[int, bytes]:
    """Peer 0 decides alone in round 0 and is cut off; who helped it crashes, or the next leader lies.

    Returns what step 0 is, by peer.
    """
    table = Table(liar)
    helper = 1 if liar == 3 else 2  # the honest peer that precommits with peer 0
    (last,) = {1, 2, 3} - {helper, liar}
    pair = {0, helper}
    for peer in range(4):
        table.cores[peer].row(0, [float(peer)], 0.0)
    row = table.cores[liar].instance.said[Kind.ROW]
    says = [(liar, peer, row) for peer in pair]
    table.settle(lambda a, b, kind: kind is Kind.ROW and last not in (a, b), says=says)
    for _ in range(5):
        table.settle(lambda a, b, kind: kind in (Kind.ROW, Kind.PROPOSAL) and {a, b} <= pair)
    offer = table.cores[0].instance.said[Kind.PROPOSAL]
    x, signature = offer[HEAD.size : HEAD.size + 32], offer[HEAD.size + 32 : HEAD.size + 32 + SIGNATURE]
    says = [(liar, peer, table.sign(Kind.PREVOTE, 0, x) + signature) for peer in pair]
    says += [(liar, 0, table.sign(Kind.PRECOMMIT, 0, x)), *table.repeated(*pair)]

    def only_to_0(a, b, kind):
        return ({a, b} <= pair or a == liar) and not (kind is Kind.PRECOMMIT and b != 0) and kind is not Kind.TIMEOUT

    table.settle(only_to_0, says=says)
    assert set(table.decided) == {0}
    if crash:
        if forget:
            table.votes[helper] = Votes(None, RUN, complete=True)
        table.cores[helper] = table.core(helper)
        assert table.cores[helper].row(0, [77.0], table.now) == forget

    def without_0(a, b, kind):
        return 0 not in (a, b)

    others = (helper, last)
    says = [(liar, peer, data) for peer in others for data in (table.blind_timeout(), row)]
    table.settle(without_0, says=says)
    instances = [table.cores[peer].instance for peer in others]
    for _ in range(40):
        lied = all(("timeout", 1) in each.said for each in instances) and instances[0].validity.leader(1) == liar
        if lied or all(1 in each.prevoted for each in instances):
            break
        table.settle(without_0)
    if instances[0].validity.leader(1) == liar:
        for _, _, data in table.repeated(*others):
            table.cores[liar].handle(data, table.now)
        proposal = table.lying_proposal()
        table.settle(without_0, says=[(liar, peer, proposal) for peer in others], ticks=1)
    for each in instances:
        if 1 in each.prevoted:  # the liar helps it along
            y, witness = each.prevoted[1], each.said[Kind.PREVOTE][-SIGNATURE:]
            votes = (table.sign(Kind.PREVOTE, 1, y) + witness, table.sign(Kind.PRECOMMIT, 1, y))
            table.settle(without_0, says=[(liar, peer, vote) for peer in others for vote in votes], ticks=1)
    return table.decided


def test_a_crashed_peer_repeats_its_certificate():
    decided = play(3, crash=True)
    assert set(decided) == {0, 1, 2}  # the others go on, with the liar's help
    assert len(set(decided.values())) == 1


def test_control_a_peer_that_forgets_its_votes_makes_two_values():
    with flawed("no-ban"):
        assert len(set(play(3, crash=True, forget=True).values())) == 2


def test_a_leader_cannot_hide_a_certificate():
    assert len(set(play(1).values())) == 1


def test_control_a_leader_without_a_justification_makes_two_values():
    with flawed("no-ban", "justification"):
        assert len(set(play(1).values())) == 2
