"""Results as collaborative runs write them, of random but repeatable quality."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from gradless.report import report

ALGORITHMS = ("monna", "nna", "mocwtm", "bridge", "mogm", "gm", "scc", "clipped-gossip", "learn", "d-sgd")
ATTACKS = ("sign-flip", "label-flip", "foe", "alie", "mimic")
STEPS = 60


class Folder:
    """Writes results as collaborative runs do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, algorithm: str, attack: str, seed: int = 1, *, n: int = 26, f: int = 5, **more) -> dict:
        record = {
            "id": f"r{len(self.records):04d}",
            "recipe": "monna-mnist",
            "algorithm": algorithm,
            "attack": attack,
            "split": "dirichlet-classes",
            "split_parameter": None,
            "alpha": 1,
            "n": n,
            "f": f,
            "seed": seed,
            "status": "done",
            "rule": None,
            "payload": "parameters",
            "worst_accuracy": 0.9,
            "mean_accuracy": 0.95,
            "consensus_distance": 0.1,
            "surprise": {"x": [1]},
            "alpha_mixing": {"median": 0.05, "max": 0.2},
            "lambda_mixing": {"median": 0.01, "max": 0.1},
            "gradients_per_peer": 15000,
            "bytes_per_peer_step": 43.1e6,
            "train_seconds": 200.0,
            "curve": [],
        } | more
        self.records.append(record)
        (self.folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records))
        return record

    def facts(self, record: dict) -> None:
        folder = self.folder / "runs" / record["id"]
        folder.mkdir(parents=True)
        config = {"algorithm": record["algorithm"], "attack": record["attack"], "steps": STEPS, "lr": {"start": 0.75}}
        (folder / "config.json").write_text(json.dumps(config))
        result = {"status": "done", "versions": {"torch": "9.9.9", "machine": "a <b> machine"}, "config": config}
        (folder / "result.json").write_text(json.dumps(result))


def curve(generator: np.random.Generator, worst: float, *, spread: float = 0.02, consensus: float = 0.1) -> list[dict]:
    """A learning curve that ends near ``worst``."""
    lines = []
    for step in range(0, STEPS + 1, 5):
        level = 0.1 + (worst - 0.1) * (1 - math.exp(-step / 12)) + generator.normal() * 0.01
        gap = spread * generator.random()
        distance = consensus * math.exp(generator.normal() * 0.2) if step else 0.0
        lines.append({"step": step, "worst": level, "mean": min(level + gap, 1.0), "consensus": distance})
    return lines


def grid(
    folder: Path,
    *,
    algorithms=ALGORITHMS,
    attacks=ATTACKS,
    splits=((("alpha", 1.0)), ("alpha", 5.0)),
    fs=(5,),
    seeds=(1, 2, 3),
    reference: bool = True,
) -> Folder:
    """Every combination, of random but repeatable quality."""
    study, generator = Folder(folder), np.random.Generator(np.random.PCG64(7))

    def add(
        algorithm: str, attack: str, split: tuple[str, float], f: int, level: float, consensus: float, seed: int
    ) -> None:
        line = curve(generator, level, consensus=consensus)
        name, value = split
        kind = {"alpha": None, "gamma": None, name: value}
        kind["split"] = "dirichlet-classes" if name == "alpha" else "gamma-similarity"
        ends = {"worst_accuracy": line[-1]["worst"], "mean_accuracy": line[-1]["mean"], "curve": line}
        gradients = 180_300 if algorithm == "learn" else 15_000
        median = 10 ** generator.uniform(-3, 0.2)
        mixing = {"alpha_mixing": {"median": median, "max": 2 * median}}
        study.run(algorithm, attack, seed, f=f, **kind, **ends, **mixing, gradients_per_peer=gradients)

    for split in splits:
        for f in fs:
            for index, algorithm in enumerate(algorithms):
                for attack in attacks:
                    strength = 0.97 - 0.06 * index * generator.random() - 0.02 * f * generator.random()
                    weak = algorithm == "d-sgd" or (generator.random() < 0.2 and index)
                    level = 0.1 + 0.2 * generator.random() if weak else strength - 0.1 * (1 - min(split[1], 1.0))
                    far = 10 ** generator.uniform(-2, 1)
                    for seed in seeds:
                        add(algorithm, attack, split, f, level, far, seed)
        for seed in seeds if reference else ():
            add("d-sgd", "none", split, 0, 0.975, 0.05, seed)
    return study


def quiet(folder: Path) -> list[Path]:
    return report(folder, say=lambda line: None)
