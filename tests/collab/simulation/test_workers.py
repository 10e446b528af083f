"""Simulations side by side: the same results, one sentence for what goes wrong, and no process left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradless.collab.config import CollabConfig
from gradless.collab.simulation import study, workers
from gradless.errors import BadInput
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
SMALL = CollabConfig(
    dataset="digits", peers=6, byzantine=1, steps=4, batch_size=4, lr=0.5, momentum=0.9, eval_every=2, seed=3
)
OF_THE_PROCESS = ("train_seconds", "seconds_per_step", "peak_memory_bytes", "versions")  # with its threads


@pytest.mark.sweep
def test_two_workers_come_to_the_results_of_one(tmp_path):
    configs = [dataclasses.replace(SMALL, attack=attack) for attack in ("sign-flip", "alie", "foe")]
    one = study.run_all(configs, tmp_path / "one", reporter=QUIET)
    two = study.run_all(configs, tmp_path / "two", workers=2, reporter=QUIET)
    for a, b in zip(one, two, strict=True):
        assert {**a, **dict.fromkeys(OF_THE_PROCESS)} == {**b, **dict.fromkeys(OF_THE_PROCESS)}
    again = study.run_all(configs, tmp_path / "two", workers=2, reporter=QUIET)
    assert again == two


def test_what_a_worker_refuses_is_a_sentence_and_leaves_nothing(tmp_path):
    configs = [
        dataclasses.replace(SMALL, dataset="mnist", data=str(tmp_path), attack=attack) for attack in ("alie", "foe")
    ]
    with pytest.raises(BadInput, match="train-images"):
        study.run_all(configs, tmp_path / "out", workers=2, reporter=QUIET)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="workers is 0"):
        study.run_all(configs, tmp_path / "out", workers=0, reporter=QUIET)


def test_a_killed_worker_is_a_sentence():
    with workers._pool(1) as pool, pytest.raises(BadInput, match="fewer --workers"):
        workers._result(pool.submit(os._exit, 1))


@pytest.mark.sweep
@pytest.mark.few(1)
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_workers_do_not_outlive_who_started_them(how):
    script = (
        "import os, time\n"
        "from gradless.collab.simulation import workers\n"
        "with workers._pool(1) as pool:\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600).result()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert starter.stdout is not None
    worker = Path("/proc") / starter.stdout.readline().strip()
    assert worker.exists()
    starter.send_signal(how)
    starter.wait()
    starter.stdout.close()
    until = time.monotonic() + 60
    while worker.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not worker.exists()
