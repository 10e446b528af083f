"""What bfloat16 products leave of MeZO's coefficients: those of float32 products over the same weights are the measure.

    python benchmarks/bfloat16_signal.py --json benchmarks/results/bfloat16-signal.json

Both models have the same weights in bfloat16 and see the same batch, direction and eps; each seed has its own direction
and its own rows of the demo's movie sentences. Told are, for each eps: the correlation of the two rows of coefficients,
the size of the error relative to that of the float32 coefficients (root mean squares), the share of equal signs, and
the coefficients. Every part is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compute_dtype import machine, save

import gradless as gl
from gradless import lm, rng, tasks
from gradless.lm import assets, objectives, schemes
from gradless.runs import build

KINDS = ("float32", "bfloat16")


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma-3-270m"])
    parser.add_argument("--schemes", nargs="+", default=["full", "lora"])
    parser.add_argument("--eps", nargs="+", type=float, default=[1e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    results: dict[str, Any] = {**machine(), "seeds": options.seeds, "batch_size": options.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            checkpoint = str(Path(folder) / model)
            save(model, checkpoint)
            for scheme in options.schemes:
                coefficients = {kind: measured(checkpoint, kind, scheme, options) for kind in KINDS}
                for eps in options.eps:
                    own, exact = (np.array(coefficients[kind][eps]) for kind in reversed(KINDS))
                    results[f"{model}, {scheme}, eps {eps:g}"] = compared(own, exact)
                    print(model, scheme, eps, json.dumps(compared(own, exact)), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measured(checkpoint: str, kind: str, scheme: str, options: argparse.Namespace) -> dict[float, list[float]]:
    """Return the coefficients of every seed, by eps."""
    tuned = schemes.apply(lm.load(checkpoint, dtype="bfloat16", compute_dtype=kind), scheme)
    task, rows = sentences()
    objective = objectives.choose(task, None)
    coefficients: dict[float, list[float]] = {eps: [] for eps in options.eps}
    for seed in range(options.seeds):
        chosen = [rows[i] for i in rng.permutation(len(rows), seed, "rows")[: options.batch_size]]
        encoded = build.encode_rows(tuned, task, chosen, 64)
        batches = objectives.prepare(tuned, objective, encoded, options.batch_size)

        def closure(batches: Any = batches) -> torch.Tensor:
            return objectives.loss_over(tuned, objective, batches)

        for eps, values in coefficients.items():
            opt = gl.mezo(schemes.trainable(tuned), lr=0.0, eps=eps, seed=seed, engine="dual", check=False)
            values.append(opt.probe(closure).sketch.coeffs[0])
    return coefficients


def sentences() -> tuple[tasks.Task, list[Any]]:
    """Return the demo's task and its clear sentences."""
    lines = assets.fetch("movie-sentences", print).read_text(encoding="utf-8").splitlines()
    rated = [row for row in map(json.loads, lines) if abs(row["rating"]) >= 1.0]
    task, splits = tasks.custom(
        train=[{"text": row["text"], "label": "positive" if row["rating"] > 0 else "negative"} for row in rated],
        template="{text} It was",
        label_column="label",
        labels="negative=terrible,positive=great",
        num_dev=0,
    )
    return task, list(splits.train)


def compared(own: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Return how far one row of coefficients is that of another."""
    return {
        "correlation": round(float(np.corrcoef(own, exact)[0, 1]), 3),
        "relative_error": round(float(np.sqrt(np.mean((own - exact) ** 2) / np.mean(exact**2))), 3),
        "equal_signs": round(float(np.mean(np.sign(own) == np.sign(exact))), 2),
        "float32": [round(float(value), 3) for value in exact],
        "bfloat16": [round(float(value), 3) for value in own],
    }


if __name__ == "__main__":
    main()
