"""``gradless ledger``: what it says, its exit codes, and that a run that is being worked on is left alone."""

from __future__ import annotations

import pytest

from cli_helpers import call, refused
from gradless import ledger
from gradless.gradients import Update
from gradless.system import locks


@pytest.fixture
def run(tmp_path):
    book = ledger.Ledger(tmp_path / "ledger", {"groups": 1})
    for step in range(3):
        book.append(Update(step, (1.0,), (1e-3,), False))
    book.close()
    return tmp_path


def test_a_torn_ledger_is_told_and_repaired(run):
    result = call("ledger", "check", run)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "tail: none")
    whole = (run / "ledger").read_bytes()
    (run / "ledger").write_bytes(whole + bytes(21))
    result = call("ledger", "check", run / "ledger")
    assert result.exit_code == 1
    assert "tail: 21 bytes that are no record" in result.stdout
    with locks.claimed(run):
        refused(call("ledger", "repair", run), "another process")
    result = call("ledger", "repair", run)
    assert result.exit_code == 0
    assert "cut behind 3 intact steps: 21 bytes are lost" in result.stdout
    assert (run / "ledger").read_bytes() == whole
    assert (run / "ledger.torn-3").read_bytes() == whole + bytes(21)
    assert "is intact: 3 steps" in call("ledger", "repair", run).stdout


@pytest.mark.parametrize("command", ["check", "repair"])
def test_what_is_no_ledger_is_refused(tmp_path, command):
    (tmp_path / "file").write_bytes(b"hello")
    for path, words in ((tmp_path / "missing", "no ledger"), (tmp_path / "file", "not a gradless ledger")):
        refused(call("ledger", command, path), words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
