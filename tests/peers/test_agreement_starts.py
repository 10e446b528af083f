"""First starts and vote logs of another time: what a peer does not take for its own."""

from __future__ import annotations

from agreement_helpers import RUN, Circle
from gradless.peers.log import DecidedLog
from gradless.peers.votes import Votes


def test_a_first_start_that_fetches_rows_of_its_own_is_none():
    circle = Circle()
    circle.steps(3)
    circle.up.remove(1)
    lost = Votes(None, RUN, complete=True)
    circle.restart(1, votes=lost, log=DecidedLog(None, circle.group))
    assert not circle.cores[1].silent
    circle.deliver()  # the others send what was decided
    assert circle.cores[1].step == 3
    assert circle.cores[1].silent
    assert not lost.of(3)


def test_a_vote_log_from_before_is_noticed(tmp_path):
    """A folder that was restored from a copy: the group's log has later rows of this peer than its votes."""
    circle = Circle()
    path = tmp_path / "votes.wal"
    circle.restart(1, votes=Votes(path, RUN, complete=True))
    circle.steps(2)
    copied = path.read_bytes()
    circle.steps(2)
    circle.votes[1].close()
    path.write_bytes(copied)
    circle.restart(1, votes=Votes(path, RUN, complete=True))
    assert circle.cores[1].silent
    circle.steps(6)
    assert not circle.cores[1].silent
    circle.votes[1].close()
    circle.restart(1, votes=Votes(path, RUN, complete=True))
    assert not circle.cores[1].silent  # what is gone can hurt no more


def test_an_intact_vote_log_is_never_taken_for_an_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr("gradless.peers.votes.LARGEST", 4000)  # it is written anew every few steps
    circle = Circle()
    path = tmp_path / "votes.wal"
    circle.restart(1, votes=Votes(path, RUN, complete=True))
    for _ in range(12):
        circle.steps(1)
        circle.votes[1].close()
        circle.restart(1, votes=Votes(path, RUN, complete=True))
        assert not circle.cores[1].silent
    assert path.stat().st_size < 8000
