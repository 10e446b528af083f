"""A language model among peers with a liar: SmolLM2 135M, LoRA, SST-2; two rules, three attacks, two splits."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any, Final

from gradless.collab.config import CollabConfig
from gradless.collab.simulation import study
from gradless.collab.simulation.build import build
from gradless.runs.record import versions
from gradless.system.atomic import write_text
from gradless.system.machine import processor

RULES: Final = ("nnm+trimmed-mean", "trimmed-mean")
ATTACKS: Final[dict[str, dict[str, Any]]] = {
    "sign-flip": {},
    "alie": {"against": True, "bounds": [0.0, 4.0]},  # its strength is searched in every exchange
    "mimic": {"target": 0},  # with unlike data the peer that knows one label only
}
SPLITS: Final = ("iid", "extreme")
STEPS: Final = 100
TEST_ROWS: Final = 300
PILOT: Final = 6  # steps
LAST: Final = 25
"""Steps whose mean loss is told: batches of a split are the same in all its runs, so that losses are paired."""
EPS: Final = 0.01
SHARE: Final = 0.2
"""The step of a weight in units of eps, as the method ``auto`` takes it: lr = 0.2 eps / rms of the coefficients."""


def shared(data: Path, *, split: str, lr: float) -> CollabConfig:
    """A run without liars: the three peers that are honest in all runs, K = 4, batches of 4."""
    return CollabConfig(
        dataset=None, model="smollm2-135m", task="sst2", data=str(data.resolve()), scheme="lora", seed=0,
        payload="coefficients", method="mezo", queries=4, batch_size=4, steps=STEPS, eps=EPS, lr=lr, momentum=0.0,
        peers=3, byzantine=0, algorithm="d-sgd", split=split, num_train=1000, num_test=TEST_ROWS, eval_rows=None,
        eval_every=STEPS,
    )  # fmt: skip


def configs(data: Path, lr: float) -> list[CollabConfig]:
    """All runs, those that tell most first: without liars, then each attack with like and with unlike data."""
    honest = {split: shared(data, split=split, lr=lr) for split in SPLITS}
    attacked = [
        dataclasses.replace(honest[split], peers=4, byzantine=1, rule=rule, attack=attack, attack_options=options)
        for rule in RULES
        for attack, options in ATTACKS.items()
        for split in SPLITS
    ]
    return [*honest.values(), *attacked]


def pilot(data: Path, folder: Path) -> dict[str, Any]:
    """Coefficients of the honest peers at the base weights, the rate that follows, and the untouched accuracy.

    Kept in ``pilot.json``, so that a continued study has the same rate.
    """
    path = folder / "pilot.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    learner = build(shared(data, split="iid", lr=1e-4)).learner
    rows = [learner.propose(step, "coefficients").tolist() for step in range(PILOT)]
    mixed = [statistics.fmean(column) for step in rows for column in zip(*step, strict=True)]
    rms = math.sqrt(statistics.fmean(c * c for c in mixed))
    values = {"coefficients": rows, "rms": rms, "lr": float(f"{SHARE * EPS / rms:.2g}")}
    values["untouched"] = learner.accuracy(None)[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values) + "\n")
    return values


def line(folder: Path) -> dict[str, Any]:
    """What is kept of a finished run."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    config = result["config"]
    events = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    return {
        "run": config["attack"],
        "rule": config["rule"] or "mean",
        **{name: config[name] for name in ("split", "peers", "attackers", "lr")},
        **{name: result[name] for name in ("status", "steps", "weights_sha256", "train_seconds")},
        "accuracy": result["mean_accuracy"],
        "rows": TEST_ROWS,
        "first_loss": statistics.fmean(losses[:LAST]),
        "last_loss": statistics.fmean(losses[-LAST:]),
    }


def write(folder: Path, out: Path) -> None:
    """Write the result file from what is finished: the untouched model, then a line for each run."""
    first = json.loads((folder / "pilot.json").read_text(encoding="utf-8"))
    head = {"part": "real", "command": "python benchmarks/peers_robustness.py real --data DIR"}
    untouched = {"run": "untouched", "accuracy": first["untouched"], "rows": TEST_ROWS}
    untouched |= {"lr": first["lr"], "rms": first["rms"], "pilot_steps": PILOT}
    order = {name: number for number, name in enumerate(("none", *ATTACKS))}
    lines = [line(path.parent) for path in (folder / "runs").glob("*/result.json")]
    lines.sort(key=lambda one: (order[one["run"]], one["rule"], one["split"]))
    write_text(
        out, "".join(json.dumps(one) + "\n" for one in ({**head, **processor(), **versions()}, untouched, *lines))
    )


def run(data: Path, folder: Path, out: Path, *, workers: int) -> None:
    """Run what is missing, and write the result file; a stopped study continues where it was."""
    study.run_all(configs(data, pilot(data, folder)["lr"]), folder, workers=workers)
    write(folder, out)
