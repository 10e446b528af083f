"""Starting again: with the vote log, without it, on a full disk; leaders that are down; peers a little late."""

from __future__ import annotations

import errno
import os

import pytest

from agreement_helpers import RUN, Circle
from gradless.peers.agreement import Agreement
from gradless.peers.history import rows
from gradless.peers.log import DecidedLog
from gradless.peers.records import NotWritten
from gradless.peers.schema import (
    LAST_ROUND,
    NO_DIGEST,
    U16,
    Kind,
    Row,
    pack_coefficients,
    pack_head,
    pack_rows,
    parse_head,
    parse_value,
    row_body,
)
from gradless.peers.votes import Votes


def test_a_step_needs_no_time_when_all_are_there():
    circle = Circle()
    for _ in range(3):
        circle.rows()
    assert circle.lengths() == [3] * 4
    assert len({log.history.digest for log in circle.logs}) == 1
    matrix, senders = rows(parse_value(circle.logs[0][2].value))
    assert matrix.tolist() == [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    assert senders == (0, 1, 2, 3)


def test_one_peer_alone_decides():
    circle = Circle(1, 0)
    circle.steps(3)
    assert circle.lengths() == [3]


def test_a_row_that_is_not_finite_abstains():
    circle = Circle()
    circle.cores[0].row(0, [float("nan"), 1.0], 0.0)
    circle.cores[1].row(0, [1e39, 1.0], 0.0)
    circle.cores[2].row(0, [1.0, 1.0], 0.0, abstain=True)
    circle.rows()
    matrix, senders = rows(parse_value(circle.logs[0][0].value))
    assert senders == (3,)
    assert matrix.shape == (1, 2)


def test_two_of_four_stand_still_and_go_on():
    circle = Circle()
    circle.steps(1)
    circle.up = {0, 1}
    circle.steps(5)
    assert circle.lengths()[:2] == [1, 1]
    circle.up = {0, 1, 2, 3}
    circle.steps(20)
    assert min(circle.lengths()) > 5


def test_a_dead_peer_costs_one_grace_and_the_others_wait_no_more():
    circle = Circle()
    circle.steps(1)
    circle.up = {0, 2, 3}  # peer 1 leads step 1
    circle.rows()
    assert circle.lengths()[0] == 1  # the leader is dead: nothing but the round's timer helps
    circle.wait(0.8)
    assert circle.lengths()[0] == 2
    for _ in range(6):
        circle.rows()
    assert circle.lengths()[0] == 8


def test_a_row_that_was_here_and_one_that_came_late_are_told_apart():
    circle = Circle()
    assert circle.cores[3].row(0, [1.0, 2.0], circle.now)
    for _, data in circle.cores[3].take_outbox():
        circle.cores[1].handle(data, circle.now, sent_by=3)  # the leader, peer 0, and peer 2 do not get it
    circle.up = {0, 1, 2}
    circle.steps(1)
    assert [row.sender for row in parse_value(circle.logs[1][0].value).rows] == [0, 1, 2]
    assert circle.cores[1].in_time == {0: frozenset({0, 1, 2, 3})}
    assert circle.cores[2].in_time == {0: frozenset({0, 1, 2})}


def test_a_peer_that_was_late_once_is_waited_for_again():
    circle = Circle()
    circle.steps(1)
    circle.up = {0, 1, 2}
    circle.steps(1)
    circle.up = {0, 1, 2, 3}
    assert circle.cores[3].row(1, [1.0, 2.0], circle.now)
    circle.deliver()  # too late: the others send it what they decided
    assert circle.lengths() == [2] * 4
    for peer in (0, 1, 2):
        circle.cores[peer].row(2, [1.0, 2.0], circle.now)
    circle.deliver()
    assert circle.lengths() == [2] * 4  # the leader waits for it
    circle.cores[3].row(2, [1.0, 2.0], circle.now)
    circle.deliver()
    assert circle.lengths() == [3] * 4
    assert len(parse_value(circle.logs[0][2].value).rows) == 4


def test_a_peer_starts_again_with_what_it_said():
    circle = Circle()
    circle.steps(2)
    circle.up = {0, 1}
    circle.rows()
    votes = set(circle.votes[0].of(2))
    assert votes
    circle.restart(0)
    assert not circle.cores[0].row(2, [9.0, 9.0], circle.now)
    circle.up = {0, 1, 2, 3}
    circle.steps(3)
    assert min(circle.lengths()) >= 4
    assert all(not core.evidence for core in circle.cores.values())


def test_a_leader_that_starts_again_learns_its_own_proposal_back():
    """A vote log alone, without the value of a proposal that was prevoted for, must not leave a peer behind."""
    circle = Circle()
    circle.rows()
    for peer in range(4):
        circle.cores[peer].row(1, [1.0, 2.0], circle.now)
    for to, data in [out for peer in range(4) for out in circle.cores[peer].take_outbox()]:
        assert to is None
        for peer in range(4):
            if parse_head(data, RUN, 4).kind is Kind.ROW:
                circle.cores[peer].handle(data, circle.now)
    circle.cores[1].take_outbox()  # its proposal and its prevote are lost
    circle.restart(1)
    circle.wait(1.0)
    assert min(circle.lengths()) >= 2


def test_no_round_follows_the_last_one_that_a_message_can_name():
    """Three peers are where three months of failed rounds would bring them, and the leader is down."""
    circle = Circle()
    circle.rows()
    assert circle.lengths() == [1] * 4
    for peer in range(4):
        body = circle.cores[peer].instance.validity.timeout_body(peer, LAST_ROUND, -1, NO_DIGEST)
        circle.votes[peer].append(body + circle.rings[peer].sign(body))
    leader = circle.logs[0].history.leader(LAST_ROUND)
    circle.up.remove(leader)
    for peer in sorted(circle.up):
        circle.restart(peer)
    circle.rows()
    circle.wait(40.0)
    stood = [circle.cores[peer] for peer in sorted(circle.up)]
    assert all(core.exhausted and core.instance.round == core.instance.promised == LAST_ROUND for core in stood)
    signed = [votes.of(1) for votes in circle.votes]
    circle.wait(40.0)
    assert [votes.of(1) for votes in circle.votes] == signed  # nothing new
    circle.restart(leader)
    circle.rows()
    circle.wait(1.0)
    assert circle.lengths() == [2] * 4  # the round itself still decides
    assert parse_value(circle.logs[0][1].value).round == LAST_ROUND
    assert not any(core.exhausted or core.evidence for core in circle.cores.values())


def test_a_peer_without_its_logs_is_silent_until_nothing_can_hurt():
    circle = Circle()
    circle.steps(3)
    circle.up.remove(2)
    circle.rows()
    lost = Votes(None, RUN, complete=False)
    circle.restart(2, votes=lost, log=DecidedLog(None, circle.group))
    assert circle.cores[2].silent
    circle.deliver()
    decided = max(circle.lengths())
    assert circle.cores[2].missing_answers == 0
    while circle.cores[2].step < decided + 2:
        assert circle.cores[2].silent
        assert not lost.of(circle.cores[2].step)  # it has signed nothing
        circle.steps(1)
    circle.steps(3)
    assert not circle.cores[2].silent
    assert lost.complete
    assert 2 in {row.sender for row in parse_value(circle.logs[0][circle.cores[0].step - 1].value).rows}


def test_without_a_quorum_of_answers_a_peer_stays_silent():
    """One answer too few: a peer that could not be asked may have decided a later step with its help."""
    circle = Circle(7, 2)
    circle.steps(1)
    circle.up = {0, 1, 2, 3}
    circle.restart(6, votes=Votes(None, RUN, complete=False), log=DecidedLog(None, circle.group))
    circle.wait(3.0)
    assert circle.cores[6].missing_answers == 1
    assert circle.cores[6].step == 1
    assert circle.cores[6].silent


def test_answers_to_another_start_do_not_count():
    circle = Circle()
    circle.steps(1)
    circle.restart(2, votes=Votes(None, RUN, complete=False, nonce=b"second--"), log=DecidedLog(None, circle.group))
    answered = [
        data
        for _, data in circle.cores[0].take_outbox() + self_answers(circle.cores[0], b"first---", circle.now)
        if parse_head(data, RUN, 4).kind is Kind.ANSWER
    ]
    assert answered
    for data in answered:
        circle.cores[2].handle(data, circle.now)
    assert circle.cores[2].missing_answers == 3


def self_answers(core: Agreement, nonce: bytes, now: float):
    """What a peer answers to a start with this nonce of peer 2."""
    core.handle(pack_head(RUN, Kind.HELLO, 2, 0) + nonce, now)
    return core.take_outbox()


def test_a_first_start_that_was_none_is_noticed():
    """Somebody removed the folder of a peer and ran it anew: its own signature comes back, and it falls silent."""
    circle = Circle()
    for peer in (0, 1, 2, 3):
        circle.cores[peer].row(circle.cores[peer].step, [5.0, 5.0], circle.now)
    own = [data for _, data in circle.cores[1].take_outbox() if parse_head(data, RUN, 4).kind is Kind.ROW]
    assert own
    circle.restart(1, votes=Votes(None, RUN, complete=True))
    assert not circle.cores[1].silent
    other = circle.cores[0]
    other.handle(own[0], circle.now)
    head = pack_head(RUN, Kind.ROWS, 0, other.step)
    passed_on = head + U16.pack(1) + pack_rows([other.instance.books.rows[1]])
    circle.cores[1].handle(passed_on, circle.now)
    assert circle.cores[1].silent
    assert not circle.votes[1].complete
    assert not circle.cores[1].row(circle.cores[1].step, [6.0, 6.0], circle.now)


class FullDisk:
    """``os.write`` to some files on a disk with room for so many bytes."""

    def __init__(self, room: int, files: set[int]) -> None:
        self.room, self.files, self.write = room, files, os.write

    def __call__(self, file: int, data: bytes) -> int:
        if file not in self.files:
            return self.write(file, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.write(file, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 60, 200, 700, 1300, 3000])
def test_on_a_full_disk_nothing_is_sent_that_is_not_written(room, tmp_path, monkeypatch):
    circle = Circle()
    votes = Votes(tmp_path / "votes.wal", RUN, complete=True)
    log = DecidedLog(tmp_path / "peers.log", circle.group)
    circle.restart(0, votes=votes, log=log)
    circle.deliver()
    files = {votes._file._file, log._file._file}
    monkeypatch.setattr(os, "write", FullDisk(room, files))
    sent: list[bytes] = []

    def work() -> None:
        for _ in range(20):
            for peer in range(4):
                circle.cores[peer].row(circle.cores[peer].step, [1.0, 2.0], circle.now)
            for source in range(4):
                for to, data in circle.cores[source].take_outbox():
                    sent.extend([data] * (source == 0))
                    for peer in range(4) if to is None else [to]:
                        circle.cores[peer].handle(data, circle.now)
            circle.now += 0.05

    with pytest.raises(NotWritten, match=r"cannot be written \(No space left on device\), and nothing was sent"):
        work()
    monkeypatch.undo()
    sent += [data for _, data in circle.cores[0].take_outbox()]
    for call in (lambda: circle.cores[0].tick(1.0), lambda: circle.cores[0].handle(b"", 1.0)):
        with pytest.raises(NotWritten):
            call()
    assert not circle.cores[0].take_outbox()
    votes.close()
    log.close()
    reread = Votes(tmp_path / "votes.wal", RUN, complete=True)
    log = DecidedLog(tmp_path / "peers.log", circle.group)
    written = {record for step in range(9) for record in reread.of(step)}
    for data in sent:
        if parse_head(data, RUN, 4).kind in (Kind.ROW, Kind.PREVOTE, Kind.PRECOMMIT, Kind.PROPOSAL, Kind.TIMEOUT):
            assert data in written
    # With space again it goes on from there.
    circle.restart(0, votes=reread, log=log)
    circle.steps(10)
    assert min(circle.lengths()) >= 4
    assert all(not core.evidence for core in circle.cores.values())


def test_the_sender_is_who_the_channel_says():
    circle = Circle()
    circle.cores[0].row(0, [1.0, 2.0], 0.0)
    (_, data) = circle.cores[0].take_outbox()[-1]
    circle.cores[1].handle(data, 0.0, sent_by=2)
    assert circle.cores[1].counts["malformed"] == 1
    assert not circle.cores[1].instance.books.rows
    circle.cores[1].handle(data, 0.0, sent_by=0)
    assert set(circle.cores[1].instance.books.rows) == {0}


def test_who_sends_failed_signatures_is_not_heard_for_a_while():
    circle = Circle()
    circle.cores[0].row(0, [1.0, 2.0], 0.0)
    (_, data) = circle.cores[0].take_outbox()[-1]
    forged = data[:-1] + bytes([data[-1] ^ 1])
    for _ in range(20):
        circle.cores[1].handle(forged, 1.0)
    assert circle.cores[1].counts["failed"] == 20
    circle.cores[1].handle(data, 2.0)
    assert circle.cores[1].counts["muted"] == 1
    assert not circle.cores[1].instance.books.rows
    circle.cores[1].handle(data, 602.0)
    assert set(circle.cores[1].instance.books.rows) == {0}


def test_failed_signatures_far_apart_are_no_attack():
    circle = Circle()
    circle.cores[0].row(0, [1.0, 2.0], 0.0)
    (_, data) = circle.cores[0].take_outbox()[-1]
    for second in range(0, 400, 4):
        circle.cores[1].handle(data[:-1] + bytes([data[-1] ^ 1]), float(second))
    circle.cores[1].handle(data, 401.0)
    assert set(circle.cores[1].instance.books.rows) == {0}


def test_two_rows_convict_and_ban_from_the_next_step_on():
    circle = Circle()
    circle.steps(1)
    previous = circle.logs[0].history.digest
    for number, receiver in enumerate((0, 1)):
        row = Row(3, 0, pack_coefficients([float(number), 0.0]), b"")
        body = row_body(RUN, row, 1, previous)
        for peer in (receiver, 2):
            circle.cores[peer].handle(body + circle.rings[3].sign(body), circle.now)
    circle.up = {0, 1, 2}
    circle.steps(3)
    assert circle.cores[0].banned == {3}
    assert len({core.banned for peer, core in circle.cores.items() if peer != 3}) == 1
    (banned_from, convict) = circle.logs[0].history.bans[0]
    assert convict == 3
    assert 3 not in circle.logs[0].history.order
    assert circle.logs[0].history.banned_at(banned_from) == {3}
    assert circle.logs[0].history.banned_at(banned_from - 1) == frozenset()
    for decision in circle.logs[0]:
        if decision.step >= banned_from:
            assert 3 not in {row.sender for row in parse_value(decision.value).rows}


def test_a_disk_that_fails_to_keep_what_was_written_keeps_a_peer_from_sending_it(tmp_path, monkeypatch):
    circle = Circle()
    circle.restart(0, votes=Votes(tmp_path / "votes.wal", RUN, complete=True))
    circle.deliver()
    file, sync = circle.votes[0]._file._file, os.fdatasync

    def fails(descriptor: int) -> None:
        if descriptor == file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(NotWritten, match="Input/output error"):
        circle.cores[0].row(0, [1.0, 2.0], circle.now)
    assert not circle.cores[0].take_outbox()
    circle.votes[0].close()
