"""Quantised weights of bitsandbytes and torchao against a model of floats with the same decoded values.

    python benchmarks/quantised_libs.py --out benchmarks/results/quantised-libs.json

For each model and code: the largest difference between the coefficients of MeZO over LoRA in both engines, relative to
their root mean square; what the weights take; and the median time of a step over that of the model of floats, both
timed in turns in one process. SmolLM2 is decoded from its GGUF file to a folder first. Needs the extra ``quantised``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradless import lm
from gradless.lm import schemes
from gradless.methods import METHODS
from gradless.storage.stored import StoredWeight, decoded
from gradless.system import machine
from gradless.system.atomic import write_json

EPS = 1e-2
CODES = ("nf4", "fp4", "int8")


def twin(model: lm.LanguageModel) -> lm.LanguageModel:
    """Put decoded values in place of codes."""
    for module in model.model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, StoredWeight):
                setattr(module, name, nn.Parameter(decoded(weight), requires_grad=False))
    return model


def stepper(model: lm.LanguageModel, engine: str, rows: int, length: int, into: list[float]) -> Any:
    """Return a function that takes a step and notes its coefficient."""
    tuned = schemes.apply(model, "lora", seed=3)
    make: Any = METHODS["mezo"].make
    opt = make(schemes.trainable(tuned), lr=1e-4, eps=EPS, seed=5, engine=engine)
    ids = torch.arange(rows * length).view(rows, length) % 400 + 7
    net: Any = tuned.model
    return lambda: opt.step_with(
        lambda: net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss,
        lambda move: into.extend(move.coeffs),
    )


def compared(source: str, codes: str, engine: str, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Run both models in turns."""
    quantised = lm.load(source, quantise=codes)
    stored = sum(p.store.nbytes for p in quantised.model.parameters() if isinstance(p, StoredWeight))
    values = sum(4 * p.numel() for p in quantised.model.parameters() if isinstance(p, StoredWeight))
    got: list[list[float]] = [[], []]
    times: list[list[float]] = [[], []]
    models = [quantised, twin(lm.load(source, quantise=codes))]
    step = [stepper(model, engine, rows, length, into) for model, into in zip(models, got, strict=True)]
    for _ in range(steps):
        for which in (0, 1):
            begun = time.perf_counter()
            step[which]()
            times[which].append(time.perf_counter() - begun)
    size = statistics.fmean(c * c for c in got[1]) ** 0.5
    difference = max(abs(a - b) for a, b in zip(*got, strict=True)) / size
    ratio = statistics.median(times[0][1:]) / statistics.median(times[1][1:])
    row = {"codes": codes, "engine": engine, "steps": steps, "difference": difference, "step_ratio": ratio}
    return {**row, "stored_bytes": stored, "float32_bytes": values}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=["tiny-llama", "smollm2-135m"])
    arguments = parser.parse_args()
    result: dict[str, Any] = {"processor": machine.processor(), "threads": torch.get_num_threads(), "eps": EPS}
    result |= {"rows": arguments.rows, "length": arguments.length, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            source = name
            if not name.startswith("tiny-"):
                floats = lm.load(name, dtype="float32")
                source = str(Path(folder) / name)
                floats.model.save_pretrained(source)
                floats.tokenizer.save_pretrained(source)
            result["models"][name] = []
            for codes, engine in itertools.product(CODES, ("stream", "dual")):
                row = compared(source, codes, engine, arguments.rows, arguments.length, arguments.steps)
                result["models"][name].append(row)
                write_json(arguments.out, result)


if __name__ == "__main__":
    main()
