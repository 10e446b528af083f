"""One process at a time in a folder, and nothing left where nothing was begun."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from gradless.errors import BadInput
from gradless.system import locks

HOLD = """
import sys, time
from pathlib import Path
from gradless.system import locks
with locks.claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match=rf"another process \(process {child.pid} on .+\) is working on .*run: wait"):
        locks.claimed(tmp_path / "run").__enter__()
    child.kill()
    child.communicate()
    with locks.claimed(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_folders_in_which_nothing_was_begun_are_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.claimed(tmp_path / "a" / "b"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "nowhere", "nowhere/below", "loop", "loop/below"])
def test_what_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    entries = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput, match=r"not a folder: choose another --out|a link that leads nowhere"):
        locks.claimed(tmp_path / name).__enter__()
    assert sorted(tmp_path.iterdir()) == entries


def test_a_lock_file_of_any_bytes_names_no_holder(tmp_path):
    for content in (b"", b"\xff\xfe", b"process \x1b[31m", b"x" * 1000):
        (tmp_path / "lock").write_bytes(content)
        assert locks.holder(tmp_path / "lock") == ""


def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.filelock, "lock_descriptor", none)
    lines: list[str] = []
    with locks.claimed(tmp_path, say=lines.append):
        pass
    (line,) = lines
    assert "a file system without locks" in line
    with pytest.raises(BadInput, match="put --out on another file system"):
        locks.take(tmp_path / "lock")
