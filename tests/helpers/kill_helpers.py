"""``kill -9`` at random moments of a command, which is then started again and must end as if nothing had happened.

Loading the libraries takes longer than a small run. So one process loads them, and each start is a fork of it; what a
killed fork has written is what a killed process would have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import run_helpers as h

SERVER = """
import json, os, sys
import torch
import gradless.runs.jobs, gradless.runs.torchrun, gradless.collab.simulation.study, gradless.collab.recipes
import transformers.models.llama.modeling_llama, peft, sklearn.linear_model
from gradless.cli import main
{prepare}
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.setsid()
        try:
            main(json.loads(line), standalone_mode=False)
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            os._exit(70)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLS_A_RUN = 4  # before it may come to its end
PATIENCE = 600.0  # seconds for one start


@dataclass
class Job:
    """A command to kill."""

    first: list[str]
    """Arguments of its first start; ``{root}`` stands for a folder of its own."""
    again: list[str]
    """Arguments that continue it."""
    digest: Callable[[Path], str]
    """What a run in a folder has come to; the same after kills as without."""
    prepare: str = ""
    """Python that the process runs before any start, such as to write checkpoints more often."""


@dataclass
class Outcome:
    """What came of a job's kills."""

    kills: int = 0
    runs: int = 0
    """Runs that were killed once or more, and then came to their end."""
    same: int = 0
    """Of these, those that ended with the digest and the files of the run that nothing happened to."""
    phases: dict[str, int] = field(default_factory=dict)
    """Kills by the newest file at that moment."""
    differences: list[str] = field(default_factory=list)


class Server:
    """Starts a command in a fork of a process that has loaded everything."""

    def __init__(self, prepare: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER.replace("{prepare}", prepare)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, arguments: list[str]) -> int:
        """Start the command; returns its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def ended(self) -> int:
        """Wait for the command; returns its exit code, or minus the signal that ended it."""
        return int(self._line())

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def files(root: Path) -> dict[str, int]:
    """Sizes of all files below a folder, which may change meanwhile."""
    sizes = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                sizes[os.path.relpath(path, root)] = os.stat(path).st_size
    return sizes


def kill(server: Server, arguments: list[str], root: Path, draw: random.Random, usual: tuple[float, int]) -> str | None:
    """Start a command and kill it; returns the file that had changed last, or None if it ended before.

    Half of the kills come at a moment of the time that the whole run took, half at a change of a file.

    Args:
        server: which starts it.
        arguments: of the command.
        root: where its files are.
        draw: of the moment.
        usual: seconds and changes of files of the whole run.
    """
    seconds, changes = usual
    wait = draw.uniform(0, seconds) if draw.random() < 0.5 else PATIENCE
    awaited = draw.randrange(1, changes + 1)
    child, begun, seen, last = server.start(arguments), time.monotonic(), files(root), ""
    while time.monotonic() - begun < wait and awaited:
        time.sleep(0.0005)
        now = files(root)
        if now != seen:
            last = max(now.keys() ^ seen.keys() or {name for name in now if now[name] != seen.get(name)})
            awaited, seen = awaited - 1, now
        if not alive(child):
            break
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return last or "start" if server.ended() == -signal.SIGKILL else None


def alive(child: int) -> bool:
    """Whether a process has not ended; the server waits for it at once."""
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


def undisturbed(server: Server, job: Job, root: Path) -> tuple[float, int]:
    """Run a job to its end; returns its seconds and how often its files changed."""
    child, begun, changes, seen = server.start(_at(job.first, root)), time.monotonic(), 0, {}
    while alive(child):
        now = files(root)
        changes, seen = changes + (now != seen), now
        time.sleep(0.0005)
    assert server.ended() == 0, f"{job.first} failed"
    return time.monotonic() - begun, changes


def _at(arguments: list[str], root: Path) -> list[str]:
    return [argument.replace("{root}", str(root)) for argument in arguments]


def killed(job: Job, folder: Path, kills: int, seed: int = 0) -> Outcome:
    """Kill a job so many times, continue it each time, and compare where it ends."""
    draw, outcome = random.Random(seed), Outcome()
    with contextlib.closing(Server(job.prepare)) as server:
        root = folder / "root"
        root.mkdir(parents=True)
        usual = undisturbed(server, job, root)
        expected = job.digest(root), set(files(root))
        while outcome.kills < kills:
            shutil.rmtree(root)
            root.mkdir()
            earlier = outcome.kills
            for _ in range(min(KILLS_A_RUN, kills - outcome.kills)):
                arguments = _at(job.first if outcome.kills == earlier else job.again, root)
                phase = kill(server, arguments, root, draw, usual)
                if phase is None:
                    break
                outcome.kills += 1
                outcome.phases[phase] = outcome.phases.get(phase, 0) + 1
            if outcome.kills == earlier:
                continue
            server.start(_at(job.again, root))
            code, outcome.runs = server.ended(), outcome.runs + 1
            end = (job.digest(root), set(files(root))) if code == 0 else (f"exit code {code}", set())
            if end == expected:
                outcome.same += 1
            else:
                outcome.differences.append(f"{end[0]} for {expected[0]}; {sorted(end[1] ^ expected[1])}")
    return outcome


def _tune_digest(root: Path) -> str:
    result = json.loads((root / "run" / "result.json").read_text())
    parts = [
        (root / "run" / "ledger").read_bytes(),
        result["weights_sha256"].encode(),
        json.dumps(result["test"]).encode(),
    ]
    parts += [path.read_bytes() for path in sorted(root.glob("saved/*.safetensors"))]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _collab_digest(root: Path) -> str:
    result = json.loads((root / "run" / "result.json").read_text())
    return f"{result['weights_sha256']} {result['accuracy']}"


def _saved_digest(root: Path) -> str:
    weights = sorted(root.glob("saved/*.safetensors"))
    assert weights
    return hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()


def _evaluated_digest(root: Path) -> str:
    return str(json.loads((root / "evaluated" / "result.json").read_text())["test"])


def jobs(data: Path) -> Iterator[tuple[str, Job]]:
    """Yield commands to kill by name; ``data`` is a folder for their rows."""
    own = h.sentiment(data)
    tune = (
        *("tune", "--model", "tiny-llama", "--train", own["train"], "--test", own["test"]),
        *("--template", own["template"], "--label-column", "label", "--labels", own["labels"]),
        *("--batch-size", "4", "--lr", "1e-3", "--num-dev", "8", "--seed", "4", "--out", "{root}/run"),
    )
    long = [*tune, "--steps", "120", "--eval-every", "30"]
    yield "tune", Job([*long], [*long, "--resume"], _tune_digest)
    saved = [*tune, "--steps", "4", "--save", "{root}/saved"]
    yield "save", Job([*saved], [*saved, "--resume"], _tune_digest)
    replay = ["replay", str(data / "run"), "--save", "{root}/saved"]
    yield "replay", Job(replay, replay, _saved_digest)
    rows = tune[3 : tune.index("--batch-size")]
    evaluate = ["eval", "--model", "tiny-llama", *rows, "--out", "{root}/evaluated"]
    yield "eval", Job(evaluate, evaluate, _evaluated_digest)
    simulate = [
        *("collab", "simulate", "--dataset", "digits", "--peers", "5", "--byzantine", "1", "--attack", "alie"),
        *("--steps", "60", "--eval-every", "20", "--out", "{root}/run"),
    ]
    often = "from gradless.collab.simulation import progress; progress.SAVE_EVERY = 0.05"
    yield "collab", Job(simulate, simulate, _collab_digest, prepare=often)
