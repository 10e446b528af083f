"""Files of votes and of decided values: cut at every byte, and flipped in every byte."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from agreement_helpers import RUN, Circle, decided
from gradless.errors import BadInput
from gradless.peers.history import Group
from gradless.peers.log import FORMAT as log_format
from gradless.peers.log import DecidedLog
from gradless.peers.records import HEADER, Format, NotWritten, RecordFile, parse, read
from gradless.peers.schema import Kind, Malformed, pack_head
from gradless.peers.signing import hash_rings
from gradless.peers.votes import FORMAT as votes_format
from gradless.peers.votes import LARGEST, Votes

GROUP = Group(RUN, 4, 1, 2)
RINGS = hash_rings(4)
FORMAT = Format(b"gl-test\n", "tests", "remove it")


@pytest.fixture(scope="module")
def votes_file(tmp_path_factory):
    """A vote log of a peer in the middle of a step."""
    path = tmp_path_factory.mktemp("votes") / "votes.wal"
    circle = Circle()
    votes = Votes(path, RUN, complete=True)
    circle.restart(0, votes=votes)
    circle.steps(1)
    circle.up = {0, 1, 2}
    circle.rows()
    votes.close()
    reread = Votes(path, RUN, complete=True)
    reread.close()
    assert reread.of(1)
    return path, votes_format


@pytest.fixture(scope="module")
def log_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "peers.log"
    log = DecidedLog(path, GROUP)
    for value, certificate in decided(GROUP, 4, RINGS):
        log.append(value, certificate)
    log.close()
    return path, log_format


FLIPS = [("votes_file", 0), ("votes_file", 7), ("log_file", 0), ("log_file", 7)]


@pytest.mark.parametrize("name", ["votes_file", "log_file"])
def test_a_cut_loses_only_what_was_not_written_whole(name, request):
    path, format = request.getfixturevalue(name)
    data = path.read_bytes()
    whole = parse(path, data, format, RUN)
    lengths = set()
    for size in range(HEADER.size + 4, len(data)):
        cut = parse(path, data[:size], format, RUN)
        assert cut.bodies == whole.bodies[: len(cut.bodies)]
        assert cut.size + cut.torn_bytes == size
        lengths.add(len(cut.bodies))
    assert lengths == set(range(len(whole.bodies)))


@pytest.mark.parametrize(("name", "bit"), FLIPS)
def test_a_flip_in_any_byte_is_refused(name, bit, request):
    """In the last record as well: that vote was sent, and who took it for a torn one could vote a second time."""
    path, format = request.getfixturevalue(name)
    data = bytearray(path.read_bytes())
    for index in range(len(data)):
        data[index] ^= 1 << bit
        with pytest.raises(BadInput):
            parse(path, bytes(data), format, RUN)
        data[index] ^= 1 << bit
    assert parse(path, bytes(data), format, RUN).torn_bytes == 0


@pytest.mark.sweep
def test_a_vote_log_goes_on_behind_a_cut_at_every_byte(votes_file, tmp_path):
    data, copy = votes_file[0].read_bytes(), tmp_path / "votes.wal"
    record = bytes(20) + (2).to_bytes(4, "little") + bytes(2)
    for size in range(HEADER.size + 4, len(data)):
        copy.write_bytes(data[:size])
        votes = Votes(copy, RUN, complete=True)
        assert votes.complete == (size >= HEADER.size + 4 + 17)  # the first record says so
        votes.append(record)
        votes.close()
        again = Votes(copy, RUN, complete=True)
        assert again.of(2) == (record,)
        again.close()


@pytest.mark.sweep
@pytest.mark.parametrize("bit", [0, 7])
def test_files_with_a_flip_in_any_byte_are_not_opened(votes_file, log_file, tmp_path, bit):
    copy = tmp_path / "copy"
    for (path, _), opened in ((votes_file, open_votes), (log_file, open_log)):
        data = bytearray(path.read_bytes())
        for index in range(0, len(data), 5):  # the test above looks at every byte
            data[index] ^= 1 << bit
            copy.write_bytes(data)
            with pytest.raises(BadInput):
                opened(copy)
            data[index] ^= 1 << bit


def open_votes(path):
    return Votes(path, RUN, complete=True)


def open_log(path):
    return DecidedLog(path, GROUP)


@pytest.mark.sweep
def test_a_log_goes_on_behind_a_cut_at_every_byte(log_file, tmp_path):
    data, copy, steps = log_file[0].read_bytes(), tmp_path / "peers.log", set()
    chain = decided(GROUP, 5, RINGS)
    for size in range(HEADER.size + 4, len(data)):
        copy.write_bytes(data[:size])
        log = DecidedLog(copy, GROUP)
        steps.add(len(log))
        log.append(*chain[len(log)])
        log.close()
        again = DecidedLog(copy, GROUP)
        assert len(again) == len(log)
        again.close()
    assert steps == {0, 1, 2, 3}


def test_zeros_of_a_power_cut_are_cut(log_file, tmp_path):
    copy = tmp_path / "peers.log"
    copy.write_bytes(log_file[0].read_bytes() + bytes(100))
    log = DecidedLog(copy, GROUP)
    assert len(log) == 4
    log.close()
    assert copy.read_bytes() == log_file[0].read_bytes()


def test_sentences_name_what_to_do(log_file, tmp_path):
    other = Group(bytes(16), 4, 1, 2)
    with pytest.raises(BadInput, match="belongs to run 000102030405, and the manifest to run 000000000000"):
        DecidedLog(log_file[0], other)
    with pytest.raises(BadInput, match=r"cannot be read \(No such file or directory\): restore it from a copy"):
        DecidedLog(tmp_path / "peers.log", GROUP, writable=False)
    (tmp_path / "text").write_text("hello, this is a text of some length, and no log")
    with pytest.raises(BadInput, match="is no file of votes: remove it and run 'gradless peers join'"):
        Votes(tmp_path / "text", RUN, complete=True)
    first = DecidedLog(log_file[0], GROUP)
    with pytest.raises(BadInput, match="another process is working on"):
        DecidedLog(log_file[0], GROUP)
    assert len(DecidedLog(log_file[0], GROUP, writable=False)) == 4  # looking is allowed
    first.close()
    with pytest.raises(NotWritten, match="cannot be written"):
        DecidedLog(tmp_path / "no folder" / "peers.log", GROUP)


def test_a_vote_log_says_whether_it_is_complete(tmp_path):
    path = tmp_path / "votes.wal"
    Votes(path, RUN, complete=False).close()
    votes = Votes(path, RUN, complete=True)  # a second start, before the group answered
    assert not votes.complete
    votes.declare(complete=True)
    votes.close()
    votes = Votes(path, RUN, complete=False)
    assert votes.complete
    votes.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: HEADER.size + 4])  # cut behind the header: every file says something there
    votes = Votes(path, RUN, complete=True)
    assert not votes.complete
    votes.close()


def test_votes_of_decided_steps_are_dropped(tmp_path):
    path = tmp_path / "votes.wal"
    votes = Votes(path, RUN, complete=False)
    record = bytes(20) + (7).to_bytes(4, "little") + bytes(60_000)
    for _ in range(LARGEST // len(record) + 1):
        votes.append(record)
    newer = record.replace((7).to_bytes(4, "little"), (8).to_bytes(4, "little"))
    votes.append(newer)
    votes.forget(7)
    assert path.stat().st_size > LARGEST
    votes.forget(8)
    assert path.stat().st_size < 2 * len(record)
    votes.append(newer)
    votes.close()
    again = Votes(path, RUN, complete=True)
    assert (again.of(7), again.of(8), again.complete) == ((), (newer, newer), False)
    assert again.newest == 8
    again.close()


def test_a_file_that_could_not_be_written_anew_is_closed_once(tmp_path, monkeypatch):
    """The number of its descriptor belongs to another file by then, which must stay open and as it is."""
    path = tmp_path / "votes.wal"
    votes = Votes(path, RUN, complete=True)
    record = pack_head(RUN, Kind.ROW, 0, 0) + bytes(100)
    votes.append(record)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gradless.peers.votes.LARGEST", 10)
    monkeypatch.setattr("gradless.peers.records.replacing", full)
    with pytest.raises(NotWritten, match="No space left on device"):
        votes.forget(1)
    others = [os.open(tmp_path / f"other-{number}", os.O_CREAT | os.O_RDWR) for number in range(4)]
    try:
        with pytest.raises(NotWritten):
            votes.append(record)
        votes.close()
        votes.close()
        assert [os.fstat(other).st_size for other in others] == [0] * 4
    finally:
        for other in others:
            os.close(other)
    monkeypatch.undo()
    again = Votes(path, RUN, complete=True)
    assert again.of(0) == (record,)
    again.close()


def test_records_follow_each_other(tmp_path):
    path = tmp_path / "records"
    bodies = [b"", b"one", bytes(1000)]
    file = RecordFile(path, FORMAT, RUN, None, [b"first"])
    offsets = file.extend(bodies)
    file.close()
    contents = read(path, FORMAT, RUN)
    assert contents.bodies == [b"first", *bodies]
    assert contents.offsets[1:] == offsets
    assert contents.torn_bytes == 0
    shutil.copy(path, tmp_path / "copy")
    with path.open("ab") as grown:
        grown.write(b"x")
    with pytest.raises(BadInput, match="has changed since it was read"):
        RecordFile(path, FORMAT, RUN, contents)


def test_a_log_takes_only_the_next_step(tmp_path):
    chain = decided(GROUP, 3, RINGS)
    log = DecidedLog(tmp_path / "peers.log", GROUP)
    log.append(*chain[0])
    for wrong in (chain[0], chain[2], (b"", b""), decided(GROUP, 2, RINGS, proposer=3)[1]):
        with pytest.raises(Malformed):
            log.append(*wrong)
    log.append(*chain[1])
    assert [decision.step for decision in log] == [0, 1]
    assert log[1][1:] == chain[1]
    with pytest.raises(IndexError):
        log[2]
    log.close()
