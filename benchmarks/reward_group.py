"""Peers that learn from a reward, one of whom lies: two-digit sums, as in `reward_study.py`, in a simulated group.

    python benchmarks/reward_group.py --work DIR [--runs mean:none mean:foe] [--out FILE]

SmolLM2 135M, all weights, rank-1 directions; four honest peers with two prompts each a step read together what one
model reads there, and send four coefficients. A line is a run: a rule and what the fifth peer does. Lines are written
as runs end; runs that have a line are passed over, and one that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import torch

from gradless.collab.config import CollabConfig
from gradless.collab.simulation.simulate import simulate
from gradless.system.machine import processor
from gradless.system.progress import Reporter
from gradless.tasks import arithmetic

RUNS: Final = ("mean:none", "mean:foe", "nnm+trimmed-mean:foe", "nnm+trimmed-mean:alie")
REWARD: Final = '''
import re

FORMS = [re.compile(form) for form in (r"<answer>", r"<answer>\\s*-?\\d+", r"<answer>\\s*-?\\d+\\s*</answer>")]


def graded(completions, **columns):
    """A third each for an answer that is opened, a number in it, and its end."""
    return [sum(bool(form.search(one)) for form in FORMS) / 3 for one in completions]
'''
TEMPLATE: Final = "What is {a} + {b}? Write the answer as <answer>n</answer>.\n"
TEST_ROWS: Final = 128


def main() -> None:
    """Make the lines that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="Folder for rows, reward and runs.")
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reward-group.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    held = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    files = written(args.work)
    for name in args.runs:
        if name not in {line["run"] for line in held}:
            with args.out.open("a") as file:
                file.write(json.dumps(line(name, args.steps, files, args.work)) + "\n")


def written(work: Path) -> dict[str, str]:
    """Write rows and reward; return their files."""
    work.mkdir(parents=True, exist_ok=True)
    files = {"reward": str(work / "graded.py")}
    Path(files["reward"]).write_text(REWARD)
    for split, rows in arithmetic.generate().items():
        files[split] = str(work / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps({"a": row["a"], "b": row["b"]}) + "\n" for row in rows))
    return files


def line(name: str, steps: int, files: dict[str, str], work: Path) -> dict[str, Any]:
    """Run a group; return its line."""
    rule, attack = name.split(":")
    liars = int(attack != "none")
    config = CollabConfig(
        dataset=None, model="smollm2-135m", own={**{k: files[k] for k in ("train", "test")}, "template": TEMPLATE},
        reward=(f"{files['reward']}:graded",), max_new_tokens=16, num_train=None, num_test=TEST_ROWS, scheme="full",
        payload="coefficients", method="es", method_options={"rank": 1}, algorithm="bridge", rule=rule, attack=attack,
        momentum=0.0, peers=4 + liars, byzantine=liars, queries=4, eps=0.006, lr=0.024, steps=steps, batch_size=2,
        split="iid", split_parameter=None, eval_every=20, eval_rows=TEST_ROWS, seed=1,
    )  # fmt: skip
    folder = work / name.replace(":", "-under-")
    result = simulate(config, folder, reporter=Reporter())
    events = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "run": name,
        "steps": result["steps"],
        "status": result["status"],
        "reward": result["mean_reward"],
        "passed": result["mean_accuracy"],
        "rewards": result["rewards"],
        "training": [round(one["reward"], 4) for one in events if one["event"] == "step" and one["reward"] is not None],
        "evaluations": {one["step"]: one["mean_reward"] for one in events if one["event"] == "eval"},
        "bytes_per_peer_step": result["bytes_per_peer_step"],
        "train_seconds": round(result["train_seconds"], 1),
        "peak_memory_bytes": result["peak_memory_bytes"],
        "processor": processor(),
        "versions": result["versions"],
    }


if __name__ == "__main__":
    main()
