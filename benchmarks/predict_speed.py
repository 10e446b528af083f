"""Rows per second of ``gradless predict`` beside the bare forwards of the same batches, written by hand.

The loop by hand has its batches before the clock starts: tokenised, sorted by length, padded, with the rows of the
output layer that are scored. Prediction reads a CSV, tokenises, batches, scores and writes a CSV. Both run in turns
in one process, and either one is first in every second turn.

    python benchmarks/predict_speed.py --model tiny-llama smollm2-135m --out benchmarks/results/predict-speed.json
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from gradless.lm import encode, evaluate
from gradless.lm.batching import collate_options, groups
from gradless.lm.predict import default_batch_tokens
from gradless.runs import predict
from gradless.runs.classifier import Spec
from gradless.runs.load_classifier import Unloaded, load_classifier
from gradless.system.progress import Reporter

TEMPLATE, LABELS = "{text} It was", "0=terrible,1=great"
WORDS = [
    "the",
    "film",
    "is",
    "slow",
    "and",
    "loud",
    "but",
    "actors",
    "scenes",
    "music",
    "made",
    "it",
    "feel",
    "long",
    "bright",
    "quiet",
    "warm",
    "clever",
    "dull",
    "story",
]


def write_rows(path: Path, rows: int) -> list[str]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(4, 40))) for _ in range(rows)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return texts


@torch.no_grad()
def by_hand(lm, batches) -> list[float]:
    inner, shares = lm.model.get_base_model() if lm.adapters else lm.model, []
    for ids, ends, tokens in batches:
        hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = functional.linear(hidden[torch.arange(len(ids)), ends], lm.head.weight[tokens])
        shares += logits.softmax(-1).tolist()
    return shares


def measure(model: str, rows: int, repeats: int) -> dict:
    classifier = load_classifier(model, template=TEMPLATE, labels=LABELS)
    lm, task = classifier.lm, classifier.task
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.csv", Path(folder) / "out.csv"
        texts = write_rows(source, rows)
        examples = evaluate.render(lm, task, [classifier.read({"text": text}).row for text in texts])
        encoded = encode.encode_all(lm, task, examples)
        buckets = list(groups(lm, encoded, batch_tokens=default_batch_tokens(lm)))
        batches = []
        for bucket in buckets:
            batch = collate_options(lm, [encoded[i] for i in bucket])
            assert batch.candidates is not None, "the label words are single tokens"
            batches.append((batch.input_ids, batch.positions[:, 0], batch.candidates))
        files = predict.Files(input=str(source), output=target, force=True)
        unloaded = Unloaded(Spec(template=TEMPLATE, labels=classifier.spec.labels), lambda: lm)
        seconds: dict[str, list[float]] = {"by_hand": [], "predict": []}
        for turn in range(repeats + 1):  # the first one warms up
            for name in list(seconds)[:: 1 if turn % 2 else -1]:
                begun = time.perf_counter()
                if name == "by_hand":
                    by_hand(lm, batches)
                else:
                    predict.predict(unloaded, files, batch_size=None, reporter=Reporter(quiet=True))
                if turn:
                    seconds[name].append(time.perf_counter() - begun)
    ratios = [hand / ours for hand, ours in zip(seconds["by_hand"], seconds["predict"], strict=True)]
    return {
        "model": model,
        "rows": rows,
        "batches": len(batches),
        "rows_per_second": {name: rows / statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny-llama", "smollm2-135m"])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [measure(model, options.rows, options.repeats) for model in options.model]
    report = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "results": results,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
