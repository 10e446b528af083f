"""Reward functions of the user's in their process: what they print, break and hang does not reach the run."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gradless import rewards
from gradless.errors import BadInput

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
TEXTS = (["p", "q"], ["a", "bb"])
OWN = """
import os, signal, subprocess, sys, time
print("imported")

def lengths(prompts, completions, **columns):
    print("called")
    os.write(1, b"written\\n")
    subprocess.run([sys.executable, "-c", "print('started')"])
    return [len(one) for one in completions]

def said(completions, answer, trainer_state, log_extra, log_metric):
    log_metric("n", 1.0)
    return [float(eval(one)(answer, trainer_state)) for one in completions]

def none(completions):
    return [None, float("nan")]

def reads(completions):
    return [float(input())]

def fails(completions):
    raise ValueError("\\ud800 " + "x" * 10**6)

def leaves(completions):
    sys.exit(4)

def dies(completions):
    os._exit(7)

def wrong(completions):
    return ["1", "2"]

def hangs(completions):
    while True:
        time.sleep(0.01)

def deaf(completions):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(completions[0], "w").close()
    while True:
        pass

def dies_on_x(completions):
    return os._exit(7) if "x" in completions else [0.0] * len(completions)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Names of rewards in a file of the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN, encoding="utf-8")
    return lambda *names: [f"own.py:{name}" for name in names]


def test_what_it_prints_goes_to_stderr(own, capfd):
    with rewards.load(own("lengths")) as reward:
        assert reward(*TEXTS, {"text": ["x", "y"]}).tolist() == [1.0, 2.0]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.split() == ["imported", "called", "written", "started"]


def test_every_failure_is_counted_and_the_next_call_works(own):
    told = []
    names = own("lengths", "none", "reads", "fails", "leaves", "dies")
    with rewards.load(names, [1, 1, 1, 1, 1, 1], say=told.append) as reward:
        for _ in range(2):
            assert np.isnan(reward(*TEXTS, {})).all()  # also of the first, which had some
    assert (reward.counts.raised, reward.counts.missing, reward.counts.timed_out) == (8, 4, 0)
    assert reward.counts.last_error == "the reward own.py:dies ended its process with exit code 7"
    assert [line.partition(" (")[0] for line in told] == [
        "the reward own.py:none returned None, NaN or infinity for 2 of 2 completions",
        "the reward own.py:reads raised EOFError",
        "the reward own.py:fails raised ValueError",
        "the reward own.py:leaves raised SystemExit",
        "the reward own.py:dies ended its process with exit code 7: this batch has no rewards",
    ]
    assert all("\n" not in line and len(line) < 400 for line in told)
    assert "in line 22: this batch has no rewards (counted, said once)" in told[2]
    assert set(reward.sources) == set(names)
    assert len(set(reward.sources.values())) == 1


def test_a_wrong_answer_ends_the_run_and_closing_twice_is_fine(own):
    with rewards.load(own("wrong")) as reward:
        with pytest.raises(BadInput, match=r"^the reward own.py:wrong returned '1' as a reward: return numbers, or"):
            reward(*TEXTS, {})
        reward.close()


def test_a_call_that_hangs_is_ended(own):
    told = []
    with rewards.load([*own("hangs"), lambda completions: [1, 2]], timeout=1.0, say=told.append) as reward:
        assert np.isnan(reward(*TEXTS, {})).all()
    assert (reward.counts.timed_out, reward.counts.raised) == (1, 0)
    assert told == [
        "the reward own.py:hangs took more than 1 s and was ended: this batch has no rewards (counted, said once)"
    ]


@pytest.mark.sweep
def test_a_regular_expression_that_would_not_end():
    with rewards.load("format:(a+)+b", timeout=1.5, say=lambda _: None) as reward:
        assert np.isnan(reward([""] * 2, ["a" * 60, "ab"], {})).all()
        assert reward.counts.timed_out == 1
        assert reward([""] * 2, ["ab", "ba"], {}).tolist() == [1.0, 0.0]


@posix
@pytest.mark.sweep
def test_what_a_hanging_call_started_ends_with_it(own, tmp_path):
    started = tmp_path / "started"
    with rewards.load(own("deaf"), timeout=5.0, say=lambda _: None) as reward:
        group = reward_group(reward)
        assert np.isnan(reward([""], [str(started)], {})).all()
    assert started.exists()
    gone(group)


def test_columns_arrive_as_json(own):
    class Rows(list):
        """A column of a data set."""

    columns = {
        "answer": Rows([np.arange(2), {"day": datetime.date(2024, 2, 29), 3: (np.float32(0.5), None)}, Rows("ab")]),
        "trainer_state": SimpleNamespace(global_step=3, best=float("nan"), model=object()),
    }
    checks = [
        "lambda answer, state: answer[0] == [0, 1]",
        "lambda answer, state: vars(state) == {'global_step': 3}",
        "lambda answer, state: answer[1] == {'day': '2024-02-29', '3': [0.5, None]}",
    ]
    with rewards.load(own("said"), columns=["answer"]) as reward:
        assert reward([""] * 3, checks, columns).tolist() == [1.0] * 3
        for value in (float("nan"), np.float32("inf"), b"x", object(), 10**5000, {(1, 2): 3}):
            with pytest.raises(
                BadInput, match=r"^the column 'answer' cannot be handed to the reward own.py:said, which"
            ):
                reward([""] * 3, checks, {**columns, "answer": [value, 1, 2]})
        assert reward([""] * 3, checks, columns).tolist() == [1.0] * 3  # it still works


def test_texts_arrive_whole(own):
    texts = ["\udc00 \ud83d", "\0\r\n\u2028\x1b", "x" * 3_000_000]
    with rewards.load(own("lengths")) as reward:
        assert reward([""] * 3, texts, {}).tolist() == [float(len(one)) for one in texts]


def test_a_file_counts_as_it_was_when_it_was_loaded(own):
    with rewards.load(own("lengths", "dies_on_x"), say=lambda _: None) as reward:
        Path("own.py").write_text("changed = True", encoding="utf-8")
        assert np.isnan(reward([""], ["x"], {})).all()
        assert reward(*TEXTS, {}).tolist() == [1.0, 2.0]  # this call starts the process again


def test_a_file_imports_its_neighbours_and_pythons_own_library(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("WORTH = 2.0", encoding="utf-8")
    for name in ("json.py", "decimal.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')", encoding="utf-8")
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nimport json, decimal, neighbour\n"
        "@dataclass\nclass Worth:\n    value: float = neighbour.WORTH\n"
        "def one(completions): return [Worth().value for _ in completions]\n",
        encoding="utf-8",
    )
    for folder, name in ((tmp_path, "own.py:one"), (tmp_path.parent, f"{tmp_path / 'own.py'}:one")):
        monkeypatch.chdir(folder)
        with rewards.load(name) as reward:
            assert reward(*TEXTS, {}).tolist() == [2.0, 2.0]


def test_a_module_is_imported_once_and_must_not_change(tmp_path, monkeypatch):
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "scores.py").write_text(
        "import os\ncalls = []\n"
        "def first(completions):\n    calls.append(1)\n    return [len(calls)] * 2\n"
        "def second(completions):\n    calls.append(1)\n    return [10 * len(calls)] * 2\n"
        "def dies(completions): return [0.0, 0.0] if completions == ['a', 'bb'] else os._exit(1)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    names = [f"theirs.scores:{name}" for name in ("first", "second", "dies")]
    with rewards.load(names, say=lambda _: None) as reward:
        assert "theirs" not in sys.modules
        assert reward(*TEXTS, {}).tolist() == [21.0, 21.0]
        assert np.isnan(reward(["p", "q"], ["x", "y"], {})).all()
        assert len(reward.sources["theirs.scores:first"]) == 64
        (package / "__init__.py").write_text("changed = True", encoding="utf-8")
        with pytest.raises(
            BadInput, match=r"the module of the reward theirs.scores:first has changed since it was loa"
        ):
            reward(*TEXTS, {})


def reward_group(reward) -> int:
    """The process group of the functions of a reward."""
    return os.getpgid(reward._close.__self__._process.pid)


def gone(group: int) -> None:
    """Wait until a process group has ended."""
    until = time.monotonic() + 60
    while alive(group):
        assert time.monotonic() < until, "the process lives on"
        time.sleep(0.05)


def alive(group: int) -> bool:
    """Whether a process of a group lives; one that has ended and that nobody waited for does not."""
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, 0)
            return True
        return False
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just gone
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


RUN = """
import sys, time
from gradless import rewards
reward = rewards.load(sys.argv[1], timeout=600)
print(reward._close.__self__._process.pid, flush=True)
try:
    reward([""], ["a" * 60], {})
except KeyboardInterrupt:
    reward.close()
    print("interrupted", flush=True)
"""


@posix
@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["own.py:hangs", "format:(a+)+b"])
def test_the_process_ends_with_the_run(own, name, number):
    """Also while a regular expression keeps Python's lock, which Linux alone can end."""
    if name.startswith("format") and number != signal.SIGINT and sys.platform != "linux":
        pytest.skip("needs Linux")
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), name], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with run:
        child = int(run.stdout.readline())
        time.sleep(0.5)
        os.killpg(run.pid, number)  # as Ctrl-C does
        rest, _ = run.communicate(timeout=60)
    gone(child)
    assert rest == ("interrupted\n" if number == signal.SIGINT else "")
    assert run.returncode == (0 if number == signal.SIGINT else -number)
