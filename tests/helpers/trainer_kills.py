"""Runs of a trainer that are killed at random instants, until one comes to its end.

As a script: ``python trainer_kills.py FOLDER BARE RUNS KILLS SEED``. Every attempt is a fork of one process, which has
imported everything and trained once, so that a kill meets the run and not its imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from gradless.integrations.transformers import ZOTrainer
from trainer_helpers import digest, make_trainer

OPTIONS = {"max_steps": 12, "save_steps": 2, "logging_strategy": "no", "save_total_limit": 2}


class Noisy(ZOTrainer):
    """Noise that both losses of a step share, in a resumed run too."""

    def compute_loss(self, model, inputs, **rest):
        return super().compute_loss(model, inputs, **rest) * (1 + 0.1 * torch.rand(()))


def run(folder, *, bare):
    """Train from the last complete checkpoint, if there is any; returns the hash of the weights."""
    resume = any((path / "trainer_state.json").exists() for path in Path(folder).glob("checkpoint-*"))
    resumed = make_trainer(folder, options=OPTIONS, kind=Noisy, ledger_only=bare)
    try:
        resumed.train(resume_from_checkpoint=resume or None)
    except ValueError as error:  # the only checkpoint there was is incomplete
        if "no complete checkpoint" not in str(error):
            raise
        resumed = make_trainer(folder, options=OPTIONS, kind=Noisy, ledger_only=bare)
        resumed.train()
    return digest(resumed)


def attempt(folder, seconds, *, bare):
    """Run in a fork, and kill it after so many seconds unless it is done; returns its hash, or None."""
    answer = Path(f"{folder}.hash")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            answer.write_text(run(folder, bare=bare))
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (status := os.waitpid(child, os.WNOHANG))[0]:
            if status[1]:
                raise SystemExit(f"a run in {folder} failed")
            return answer.read_text()
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


def main(folder, bare, runs, kills, seed):
    torch.set_num_threads(1)
    whole = run(folder / "whole", bare=bare)
    begun = time.monotonic()
    run(folder / "again", bare=bare)
    usual, rng, result = time.monotonic() - begun, random.Random(seed), {"killed": 0, "runs": []}
    for number in range(runs):
        out = folder / str(number)
        for _ in range(kills):
            if attempt(out, rng.uniform(0.0, usual), bare=bare) is None:
                result["killed"] += 1
            else:
                break
        end = attempt(out, 300, bare=bare)
        extra = sorted(set(listing(out)) ^ set(listing(folder / "whole")))
        result["runs"].append({"same": end == whole, "extra": extra})
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "bare", *map(int, sys.argv[3:6]))
