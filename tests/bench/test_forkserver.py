"""Runs forked from a prepared process behave like processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gradless.bench import bench, forkserver
from gradless.bench.forkserver import SUPPORTED, ForkServer
from gradless.system import locks
from gradless.system.progress import Reporter

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="no fork here that a library with threads survives")


@pytest.fixture(scope="module")
def home():
    home = ForkServer(("tiny-llama", None))
    yield home
    home.close()


@pytest.fixture
def claim(tmp_path):
    descriptor = locks.take(tmp_path / "claim")
    yield descriptor
    os.close(descriptor)


def rows(folder):
    lines = ["text,label", *(f"film {i} is {('dull', 'great')[i % 2]},{i % 2}" for i in range(16))]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    file = str(folder / "rows.csv")
    return [
        "--train",
        file,
        "--test",
        file,
        "--template",
        "{text} so",
        "--label-column",
        "label",
        "--labels",
        "0=bad,1=good",
    ]


def tune(folder, name, steps=3):
    out = str(folder / name)
    return ["tune", "--model", "tiny-llama", *rows(folder), "--steps", str(steps), "--lr", "1e-3", "--out", out]


@pytest.mark.sweep
def test_a_fork_makes_the_weights_of_a_fresh_process(home, claim, tmp_path):
    import json
    import sys

    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as the forks have: sums depend on them
    command = [sys.executable, "-m", "gradless", *tune(tmp_path, "fresh")]
    subprocess.run(command, check=True, capture_output=True, env=alone)
    for name in ("a", "b"):  # the second one finds the nursery as the first one found it
        fork = home.fork(tune(tmp_path, name), claim, 1)
        assert fork.communicate(60) == (None, "")
        assert fork.returncode == fork.poll() == 0
    hashes = {
        json.loads((tmp_path / name / "result.json").read_text())["weights_sha256"] for name in ("fresh", "a", "b")
    }
    assert len(hashes) == 1


def test_backpropagation_and_threads_work_in_a_fork(home, claim, tmp_path):
    fork = home.fork([*tune(tmp_path, "fo"), "--method", "fo-adam"], claim, 2)
    assert fork.communicate(60) == (None, "")
    assert fork.returncode == 0


def test_bad_input_is_a_sentence_and_an_exit_code(home, claim, tmp_path):
    fork = home.fork([*tune(tmp_path, "x"), "--method", "mezzo"], claim, 1)
    _, stderr = fork.communicate(60)
    assert fork.returncode == 2
    assert stderr.startswith("gradless: ")
    assert "Traceback" not in stderr


def test_a_killed_fork_says_by_which_signal_and_others_go_on(home, claim, tmp_path):
    slow = home.fork(tune(tmp_path, "slow", steps=100_000), claim, 1)
    other = home.fork(tune(tmp_path, "other"), claim, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        slow.communicate(0.2)
    assert slow.poll() is None
    slow.kill()
    slow.communicate(30)
    assert slow.returncode == -signal.SIGKILL
    other.communicate(60)
    assert other.returncode == 0


def test_an_interrupt_ends_a_fork_as_ctrl_c_does(home, claim, tmp_path):
    fork = home.fork(tune(tmp_path, "stopped", steps=100_000), claim, 1)
    until = time.monotonic() + 60
    while not (tmp_path / "stopped" / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    fork.send_signal(signal.SIGINT)
    fork.communicate(60)
    assert fork.returncode == 1
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["status"] == "interrupted"


def test_a_fork_holds_its_claim_when_everybody_else_has_gone(tmp_path):
    home = ForkServer()
    path = tmp_path / "run"
    descriptor = locks.take(path)
    fork = home.fork(tune(tmp_path, "held", steps=100_000), descriptor, 1)
    os.close(descriptor)
    home.close()
    assert locks.take(path) is None
    os.kill(fork.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while (again := locks.take(path)) is None and time.monotonic() < until:
        time.sleep(0.05)
    assert again is not None
    os.close(again)


def test_it_ends_in_silence_when_the_benchmark_is_killed(claim):
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    code = "import sys; from gradless.bench.forkserver import serve; serve(int(sys.argv[1]), None)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    order = json.dumps({"arguments": ["no-such-command"], "threads": 1}).encode()
    status, answers = socket.socketpair()
    socket.send_fds(ours, [order], [claim, os.open(os.devnull, os.O_WRONLY), answers.fileno()])
    answers.close()
    assert status.recv(8, socket.MSG_PEEK)
    status.close()  # with an answer unread, as a kill does
    ours.close()
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def test_a_fork_ends_with_its_server_which_starts_again(claim, tmp_path):
    home = ForkServer()
    fork = home.fork(tune(tmp_path, "slow", steps=100_000), claim, 1)
    os.kill(home._process.pid, signal.SIGKILL)
    fork.communicate(30)
    assert (fork.returncode, fork.lost) == (-signal.SIGKILL, True)
    again = home.fork(["no-such-command"], claim, 1)
    again.communicate(60)
    assert (again.returncode, again.lost) == (2, False)
    home.close()


def test_a_server_that_dies_again_and_again_is_left_alone(claim, monkeypatch):
    monkeypatch.setattr(forkserver, "SCRIPT", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    home = ForkServer()
    with pytest.raises(forkserver.ServerLost, match="died 3 times"):
        home.fork(["list", "methods"], claim, 1)
    assert not home.usable
    home.close()


def test_a_server_that_does_not_answer_counts_as_dead(claim, monkeypatch):
    monkeypatch.setattr(forkserver, "SCRIPT", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    monkeypatch.setattr(forkserver, "PATIENCE", 0.3)
    home = ForkServer()
    with pytest.raises(forkserver.ServerLost):
        home.fork(["list", "methods"], claim, 1)
    home.close()


GRID = """
seeds = [1, 2, 3, 4]
budget = { steps = 6 }
zero_shot = false
[base]
model = "tiny-llama"
lr = 1e-3
num_train = 8
num_test = 8
own = { train = "rows.csv", test = "rows.csv", template = "{text} so", label_column = "label", labels = "0=bad,1=good" }
"""


@pytest.mark.parametrize("deaths", [pytest.param(1, marks=pytest.mark.sweep), pytest.param(9, marks=pytest.mark.long)])
def test_a_benchmark_outlives_its_server(tmp_path, monkeypatch, deaths):
    """Killed when it is started, while it reads the model, and while runs work."""
    rows(tmp_path)
    (tmp_path / "grid.toml").write_text(GRID)

    def hashes(name):
        outcome = bench(tmp_path / "grid.toml", tmp_path / name, workers=2, reporter=reporter, poll=0.05)
        assert (outcome.done, outcome.failed) == (4, 0)
        return {
            path.parent.name: json.loads(path.read_text())["weights_sha256"]
            for path in (tmp_path / name).glob("runs/*/result.json")
        }

    reporter = Reporter(quiet=True)
    started, start, end = [], ForkServer._start, threading.Event()
    monkeypatch.setattr(ForkServer, "_start", lambda server: (start(server), started.append(server))[0])

    def kill():
        for number in range(deaths):
            while len(started) <= number and not end.is_set():
                time.sleep(0.05)
            end.wait((0.0, 3.0, 6.5)[number % 3])
            if not end.is_set() and (process := started[-1]._process):
                process.kill()

    whole = hashes("whole")
    started.clear()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert hashes("killed") == whole
    finally:
        end.set()
        killer.join()
    for path in (tmp_path / "killed" / "locks").iterdir():
        claim = locks.take(path)
        assert claim is not None
        os.close(claim)
