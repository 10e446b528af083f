"""The demo: a real pretrained model, real human-labelled sentences, forward passes only.

Gemma 3 270M and ten thousand movie-review sentences with mean human ratings (Hutto & Gilbert 2014) come from the
package index with pinned hashes, once; no model hub is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradless import lm, rng
from gradless.errors import BadInput
from gradless.lm import assets
from gradless.runs import jobs, trackers
from gradless.runs.config import TuneConfig
from gradless.runs.record import INTERRUPTED
from gradless.system import terminal
from gradless.system.atomic import write_text
from gradless.system.progress import Reporter

MODEL, CORPUS = "gemma-3-270m", "movie-sentences"
CLEAR = 1.0  # mean rating, between -4 and 4, from which a sentence counts as positive or negative
NUM_TRAIN, NUM_DEV, NUM_TEST = 1000, 128, 600
LR, EPS, BATCH_SIZE, MICRO_BATCH_SIZE = 3e-6, 1e-3, 16, 8


def demo(folder: Path, *, steps: int, seed: int, resume: bool, report_to: Sequence[str] = ()) -> dict[str, Any]:
    """Fetch the assets, tune, and show what happened; returns the result.

    Raises:
        BadInput: the assets cannot be had, or ``folder`` holds another run.
    """
    reporter = Reporter()
    if (folder / "config.json").exists() and not resume:
        raise BadInput(f"{folder} already holds a run: add --resume, choose another --out, or delete it")
    trackers.check(report_to)  # before anything is fetched
    corpus = assets.fetch(CORPUS, reporter.say)
    assets.fetch(MODEL, reporter.say)
    reporter.say(f"{MODEL}: {assets.ASSETS[MODEL].licence}")
    data = _write_splits(corpus, folder / "data", seed)
    config = TuneConfig(
        model=MODEL,
        own={
            **data,
            "template": "{text} It was",
            "label_column": "label",
            "labels": "negative=terrible,positive=great",
        },
        method="mezo",
        scheme="full",
        dtype="float32",  # all weights are tuned, and those of the file have codes of four to eight bits
        steps=steps,
        batch_size=BATCH_SIZE,
        micro_batch_size=MICRO_BATCH_SIZE,
        engine="dual",  # +eps and -eps in one forward; named, so that every machine makes the same run
        eval_every=None if resume and (folder / "config.json").exists() else max(1, steps // 2),  # None: as it has
        lr=LR,
        eps=EPS,
        seed=seed,
        num_train=NUM_TRAIN,
        num_dev=NUM_DEV,
        num_test=NUM_TEST,
    )
    result = jobs.tune(config, folder, resume=resume, report_to=report_to, reporter=reporter)
    if result["status"] != INTERRUPTED:
        _show(result, folder)
    return result


def _write_splits(corpus: Path, folder: Path, seed: int) -> dict[str, str]:
    """Clear sentences as train and test files; a permutation of the whole corpus keeps them apart."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    clear = [row for row in rows if abs(row["rating"]) >= CLEAR]
    order = [clear[i] for i in rng.permutation(len(clear), seed, "demo")]
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"test": order[:NUM_TEST], "train": order[NUM_TEST : NUM_TEST + NUM_TRAIN + NUM_DEV]}
    paths = {}
    for name, part in parts.items():
        lines = [{"text": row["text"], "label": "positive" if row["rating"] > 0 else "negative"} for row in part]
        path = (folder / f"{name}.jsonl").resolve()
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        paths[name] = str(path)
    return paths


def _show(result: dict[str, Any], folder: Path) -> None:
    """The closing tables, the picture, what the checkpoint weighs, and a page with all of it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 100)
    table = Table(title=f"{NUM_TEST} held-out sentences")
    for heading in ("", "accuracy", "95 % interval"):
        table.add_column(heading)
    for name, key in (("zero-shot", "zero_shot"), ("tuned", "test")):
        low, high = result["interval"][key]
        table.add_row(name, f"{result[key]['accuracy']:.3f}", f"{low:.3f} to {high:.3f}")
    low, high = result["interval"]["difference"]
    gain = result["test"]["accuracy"] - result["zero_shot"]["accuracy"]
    table.add_row("difference", f"{gain:+.3f}", f"{low:+.3f} to {high:+.3f}")
    console.print(table)

    examples = Table(title="Three sentences whose prediction changed", show_lines=True)
    for heading in ("sentence", "human", "before", "after"):
        examples.add_column(heading)
    for example in result["examples"]:
        examples.add_row(*(terminal.cell(example[name]) for name in ("prompt", "gold", "before", "after")))
    console.print(examples)

    model_bytes = _weight_bytes(result)
    facts = Table(title="What it took", show_header=False)
    facts.add_row("forward passes", f"{result['forwards']}, no backward pass")
    facts.add_row("training", f"{result['train_seconds']:.0f} s, {result['seconds_per_step']:.2f} s a step (median)")
    ratio = result["peak_memory_bytes"] / max(result["inference_memory_bytes"], 1)
    facts.add_row(
        "peak memory",
        f"{result['peak_memory_bytes'] / 1e9:.2f} GB; inference {result['inference_memory_bytes'] / 1e9:.2f} GB "
        f"({ratio:.2f} x)",
    )
    facts.add_row(
        "checkpoint", f"{result['ledger_bytes']:,} bytes of ledger; the tuned weights {model_bytes / 1e9:.2f} GB"
    )
    facts.add_row("check it", terminal.cell(f"gradless replay {folder} --verify"))
    console.print(facts)
    try:
        from gradless.cost.figures import run_picture

        picture = run_picture(folder, title="Gemma 3 270M on movie reviews, forward passes only")
        terminal.say(f"picture: {picture}")
    except ImportError:
        terminal.say("install matplotlib for a picture: pip install 'gradless[plots]'")
    from gradless import report

    (page,) = report.report(folder, say=lambda line: None)
    terminal.say(f"page: {page}")


def _weight_bytes(result: dict[str, Any]) -> int:
    """Bytes of the tuned weights in float32."""
    size: int = result["tuned_parameters"] * lm.DTYPES["float32"].itemsize
    return size
