"""Killed at any moment, a run continues to the weights of the run that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import run_helpers as h
from gradless import ledger
from gradless.cli import main
from gradless.errors import BadInput
from gradless.runs.config import read_config

STEPS, RECORD = 300, 17  # bytes of a ledger record with one coefficient


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that are killed: a forward's last bits depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def call(*arguments: Any) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, to kill."""
    return subprocess.Popen(
        [sys.executable, "-m", "gradless", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def tune(folder: Path, out: Path, *more: str) -> list[str]:
    """A run's arguments."""
    own = h.sentiment(folder / "data")
    arguments = (
        *("tune", "--model", "tiny-llama", "--train", own["train"], "--test", own["test"]),
        *("--template", own["template"], "--label-column", "label", "--labels", own["labels"]),
        *("--steps", STEPS, "--batch-size", 8, "--lr", 1e-3, "--num-dev", 8, "--eval-every", 60, "--seed", 4),
        *("--out", out, *more),
    )
    return [str(argument) for argument in arguments]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("whole")
    done = call(*tune(folder, folder / "run"))
    assert done.exit_code == 0, done.output
    return folder / "run"


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.long)])
def test_killed_again_and_again_the_run_ends_at_the_same_weights(whole, tmp_path, kills, record_property):
    record_property("kills", kills)
    draw = random.Random(20)
    out, base, head = tmp_path / "run", whole.parent, size(whole / "ledger") - RECORD * (STEPS - 1) - (RECORD + 8)
    # A fifth of the kills at any moment of the start, the others spread over training: at a step and a fraction.
    waits = [draw.uniform(0.3, 2.5) for _ in range(kills // 5)]
    marks = sorted(draw.sample(range(2, STEPS - 15), kills - len(waits)))
    reached = []
    for kill in range(kills):
        process = started(tune(base, out, "--resume"))
        if kill < len(waits):
            time.sleep(waits[kill])
        else:
            wanted = head + RECORD * marks[kill - len(waits)]
            deadline = time.monotonic() + 300  # beside other work a start may take long
            while size(out / "ledger") < wanted and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.03))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        assert not (out / "result.json").exists()
        reached.append(len(ledger.read(out / "ledger").moves) if (out / "ledger").exists() else 0)
    assert reached == sorted(reached)  # a resumed run takes up what was there
    assert reached[-1] < STEPS
    assert len(set(reached)) > kills // 2
    done = call(*tune(base, out, "--resume"))
    assert done.exit_code == 0, done.output
    calm, killed = result(whole), result(out)
    for key in ("weights_sha256", "selected_step", "steps", "forwards", "test", "dev", "zero_shot", "status"):
        assert killed[key] == calm[key], key
    assert (out / "ledger").read_bytes() == (whole / "ledger").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_replay_verifies_and_notices_a_flipped_byte(whole, tmp_path):
    good = call("replay", whole, "--verify")
    assert good.exit_code == 0, good.output
    assert result(whole)["weights_sha256"] in good.output
    assert "the same as in result.json" in good.output

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    data = bytearray((run / "ledger").read_bytes())
    data[len(data) // 2] ^= 4
    (run / "ledger").write_bytes(data)
    for arguments in (["replay", run], tune(whole.parent, run, "--resume")):
        (run / "result.json").unlink(missing_ok=True)
        bad = call(*arguments)
        assert bad.exit_code == 2
        assert bad.stderr.count("\n") == 1
        assert "was changed or damaged" in bad.stderr
        assert "restore the file" in bad.stderr
    assert (run / "ledger").read_bytes() == bytes(data)


def test_replay_says_when_the_weights_are_not_those_of_the_result(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    changed = {**result(run), "weights_sha256": "0" * 64}
    (run / "result.json").write_text(json.dumps(changed))
    bad = call("replay", run, "--verify")
    assert bad.exit_code == 1
    assert "NOT the weights" in bad.stdout


@pytest.mark.parametrize("cut", [1, RECORD - 1])
def test_a_torn_tail_is_cut_and_redone(whole, tmp_path, cut):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "result.json").unlink()
    os.truncate(run / "ledger", size(run / "ledger") - 3 * RECORD - cut)
    resumed = h.tune(read_config(run), run, resume=True)
    assert resumed["weights_sha256"] == result(whole)["weights_sha256"]
    assert (run / "ledger").read_bytes() == (whole / "ledger").read_bytes()


def test_the_ledger_of_another_model_is_refused(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    other = h.config(tmp_path, model="tiny-opt")
    h.tune(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ledger", run / "ledger")
    bad = call("replay", run, "--verify")
    assert bad.exit_code == 2
    assert "model was 'tiny-opt' and is now 'tiny-llama'" in bad.stderr
    (run / "result.json").unlink()
    with pytest.raises(BadInput, match="belongs to another base model"):
        h.tune(read_config(run), run, resume=True)
