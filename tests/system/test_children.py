"""No process that gradless starts runs a Python file of the folder in which the user happens to be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradless
from gradless.bench.forkserver import SUPPORTED, ForkServer
from gradless.errors import BadInput
from gradless.lm import loading
from gradless.system import children, locks

SOURCE = Path(gradless.__file__).parent
# Where the interpreter is only named in a sentence.
NAMED = {
    "lm/assets.py": "run '{sys.executable} -m ensurepip'",
    "cli/diagnosis.py": "({sys.executable})",
    "system/ray_node.py": '[sys.executable, "-P", "-c"',  # is sent to where it can import nothing else of gradless
}


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A current folder with files that are named like modules; yields whether one of them was run."""
    ran = tmp_path / "ran"
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("struct", "random", "json", "torch", "gguf", "numpy", "msgspec", "click"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    return ran


def test_python_is_started_in_one_way_only():
    for path in SOURCE.rglob("*.py"):
        name, text = path.relative_to(SOURCE).as_posix(), path.read_text()
        if name != "system/children.py":
            assert text.count("sys.executable") == (1 if NAMED.get(name, "\0") in text else 0), name
        if name not in ("collab/simulation/workers.py",):  # which starts processes inside `children.safe_path`
            assert not re.search(r"get_context\(|multiprocessing\.Process", text), name


def test_the_converter_of_gguf_files_runs_nothing_of_the_current_folder(trapped):
    Path("x.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"0" * 16)
    with pytest.raises(BadInput):
        loading.load("x.gguf")
    assert not trapped.exists()


@pytest.mark.skipif(not SUPPORTED, reason="no fork here that a library with threads survives")
def test_a_fork_server_runs_nothing_of_the_current_folder(trapped, tmp_path):
    claim = locks.take(tmp_path / "claim")
    home = ForkServer()
    fork = home.fork(["no-such-command"], claim, 1)
    assert "unknown command" in fork.communicate(60)[1]
    home.close()
    os.close(claim)
    assert not trapped.exists()


def test_python_dash_m_gradless_runs_nothing_of_the_current_folder(trapped):
    run = subprocess.run([sys.executable, "-m", "gradless", "list", "methods"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not trapped.exists()


def test_processes_that_libraries_start_are_safe_too(monkeypatch):
    monkeypatch.delenv(children.VARIABLE, raising=False)
    with children.safe_path():
        assert os.environ[children.VARIABLE] == "1"
    assert children.VARIABLE not in os.environ
    assert children.environment(A="b") == {**os.environ, children.VARIABLE: "1", "A": "b"}
