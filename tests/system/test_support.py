"""The table of platforms, and a Python without what only some systems have."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner

from gradless.cli import diagnosis, main
from gradless.system import peak_memory, support
from repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_classifiers_are_those_of_the_table():
    named = {
        re.search(r"Python :: (3\.\d+)$", line)[1] for line in PROJECT["classifiers"] if re.search(r"3\.\d+$", line)
    }
    assert named == set(support.PYTHONS)
    assert PROJECT["requires-python"] == f">={min(support.PYTHONS, key=lambda name: int(name[2:]))}"
    systems = {name.split()[0] for name, row in support.SYSTEMS.items() if row.state != "refused"}
    told = {"Linux": "POSIX :: Linux", "macOS": "MacOS", "Windows": "Microsoft :: Windows"}
    assert {f"Operating System :: {told[name]}" for name in systems} <= set(PROJECT["classifiers"])


def test_tested_is_what_ci_runs_on():
    assert support.of_python((3, 11)).state == "tested"
    assert support.of_python((3, 10)).state == support.of_python((2, 7)).state == "refused"
    assert support.of_python((3, 99)).state == "expected"
    assert support.of_system("Linux", "x86_64") == ("Linux x86-64", support.SYSTEMS["Linux x86-64"])
    assert support.of_system("Darwin", "x86_64")[1].state == "refused"
    assert support.of_system("Windows", "AMD64")[1].state == "degraded"
    assert support.of_system("Plan9", "mips")[1].state == "expected"
    assert {row.state for row in (*support.PYTHONS.values(), *support.SYSTEMS.values())} <= set(support.STATES)


def test_the_doctor_says_what_the_table_says(monkeypatch):
    monkeypatch.setattr(diagnosis.platform, "system", lambda: "Windows")
    monkeypatch.setattr(diagnosis.platform, "machine", lambda: "AMD64")
    lines = {line.name: line.value for line in diagnosis.supported(support.DEVICES["CUDA"])}
    assert lines["support of Windows x86-64"] == f"degraded: {support.SYSTEMS['Windows x86-64'].about}"
    assert lines["support of CUDA"].startswith("expected: ")


@pytest.mark.parametrize("modules", [{"resource"}, {"resource", "psutil"}], ids=lambda names: "-".join(sorted(names)))
def test_peak_memory_without_the_modules_of_other_systems(monkeypatch, modules):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(peak_memory.Path, "read_text", lambda *_, **__: "")
    assert peak_memory._process_peak() >= 0


# What Windows has not: modules, which gradless must not import, and names of others.
HIDE = """
import builtins, os, signal, socket, sys
import torch, transformers, multiprocessing, subprocess, asyncio, filelock, rich.progress
imported = builtins.__import__
ABSENT = ("resource", "termios", "tty", "pwd", "grp", "pty", "fcntl")
def importing(name, globals=None, *others, **more):
    if name in ABSENT and "gradless" in (globals or {}).get("__name__", ""):
        raise ModuleNotFoundError(name)
    return imported(name, globals, *others, **more)
def hide():
    builtins.__import__ = importing
    for module, names in {
        os: "fork forkpty setsid getuid getgid geteuid getpgid killpg nice sched_getaffinity sysconf statvfs",
        signal: "SIGKILL SIGHUP SIGUSR1 SIGALRM SIGQUIT",
        socket: "send_fds recv_fds socketpair AF_UNIX",
    }.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
"""


def bare(code: str, folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HIDE + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.sweep
def test_every_module_imports_without_what_windows_lacks(tmp_path):
    code = """
import datasets, matplotlib.pyplot, peft, sklearn.linear_model
from transformers import Trainer, TrainerCallback
hide()
import pkgutil, importlib, gradless
for found in pkgutil.walk_packages(gradless.__path__, "gradless."):
    if not found.name.endswith(("__main__", "kernels.cuda", "integrations.trl")):
        importlib.import_module(found.name)
from gradless.bench import forkserver
assert not forkserver.SUPPORTED
"""
    run = bare(code, tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.sweep
def test_runs_and_a_benchmark_without_what_windows_lacks(tmp_path):
    (tmp_path / "run.toml").write_text(CliRunner().invoke(main, ["tune", "--example"]).output)
    grid = CliRunner().invoke(main, ["bench", "--example"]).output
    grid = grid.replace("seeds = [1, 2]", "seeds = [1]").replace('"mezo", "fo-adam"', '"mezo"')
    (tmp_path / "grid.toml").write_text(grid.replace("lr = [1e-4, 1e-3]", "lr = [1e-3]"))
    code = """
from click.testing import CliRunner
from gradless.cli import main
def run(line):
    result = CliRunner().invoke(main, line.split(), catch_exceptions=False)
    assert result.exit_code == 0, (line, result.output)
run("tune --config run.toml --steps 1 --out imports")  # what other packages import late
hide()
from gradless.bench import forkserver, process
process.SUPPORTED = forkserver.SUPPORTED = False  # known from when they were imported
for line in ("tune --config run.toml --steps 2 --out a", "replay a --verify", "report a"):
    run(line)
run("bench grid.toml --out b")
run("report b")
"""
    run = bare(code, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
