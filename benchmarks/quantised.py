"""GGUF models in place against the same weights decoded to float32: numbers, memory, time; and a file of 1B weights.

    python benchmarks/quantised.py PART [--model NAME ...] [--out FILE]

Parts: decoders, agreement, memory, time, large, start. Every figure is taken within one run, measurements of two kinds
alternate, and medians stand beside minima. Times are those of the processor (OMP_NUM_THREADS=1), which other work on
the machine disturbs least. Memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import device_name

RESULTS = Path(__file__).parent / "results"
MODELS = ("smollm2-135m", "gemma-3-270m")
ENGINES = ("stream", "dual")
STEPS, ROWS, LENGTH = 10, 16, 40
SHAPE: dict[str, int] = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 17, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "max_position_embeddings": 4096, "vocab_size": 32000},
}
"""A Llama of 1.1B weights."""


def spread(seconds: list[float], scale: float = 1.0) -> dict[str, float]:
    return {"min": min(seconds) * scale, "median": statistics.median(seconds) * scale}


def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Seconds of the processor."""
    begun = time.process_time()
    call(*arguments, **options)
    return time.process_time() - begun


def decoders() -> dict[str, Any]:
    """Nanoseconds a weight, and the package `gguf` beside it."""
    import gguf

    from gradless.storage.gguf_blocks import FORMATS
    from gradless.storage.mapped import GgufStore

    times = {}
    for name, form in FORMATS.items():
        if name == "F32":
            continue
        rows, columns = 1536, 1024
        blocks = np.random.default_rng(0).integers(0, 256, (rows * columns // form.weights, form.nbytes), np.uint8)
        for first in form.halves:
            blocks[:, first : first + 2] = (0, 0x20)  # finite
        raw, out = torch.from_numpy(blocks.reshape(rows, -1)), torch.empty(rows, columns)
        store, kind = GgufStore(raw, form), gguf.GGMLQuantizationType(form.number)
        store.decode(out)
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(gguf.quants.dequantize(raw.numpy(), kind).copy())
            assert torch.equal(out.view(torch.int32), expected.view(torch.int32)), name
            ours, theirs = [], []
            for _ in range(7):
                ours += [timed(store.decode, out) for _ in range(3)]
                theirs.append(timed(gguf.quants.dequantize, raw.numpy(), kind))
        per = 1e9 / out.numel()
        times[name] = {"ns": spread(ours, per), "gguf_ns": spread(theirs, per), "ratio": min(ours) / min(theirs)}
        print(name, {key: round(value, 3) for key, value in times[name]["ns"].items()}, flush=True)
    return {"formats": times, "threads": torch.get_num_threads()}


def tuned(model: str, dtype: str | None, engine: str) -> tuple[Any, Any, list[tuple[str, Any]]]:
    """A closure of the loss of random tokens, an optimizer over LoRA, and what it tunes."""
    import gradless as gl
    from gradless import lm
    from gradless.lm import schemes

    loaded = schemes.apply(lm.load(model, dtype=dtype), "lora")
    named = schemes.trainable(loaded)
    ids = torch.randint(5, 30000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    body, labels = loaded.model.get_base_model().model, torch.arange(ROWS) % 2

    def closure() -> torch.Tensor:  # of two label words behind the text, as of a task
        last = body(input_ids=ids).last_hidden_state[:, -1]
        return torch.nn.functional.cross_entropy(last @ loaded.head.weight[torch.tensor([300, 500])].T, labels)

    return closure, gl.mezo(named, lr=1e-3, eps=1e-2, engine=engine, defer=True, seed=0), named


def agreement() -> dict[str, Any]:
    """Losses, coefficients and the hash of the tuned weights after ten steps, in place and decoded."""
    from gradless.system.hashing import weights_sha256

    global ROWS, LENGTH
    ROWS, LENGTH = 4, 24  # equality needs no larger batch
    runs = []
    for model in MODELS:
        for engine in ENGINES:
            row: dict[str, Any] = {"model": model, "engine": engine}
            for dtype in (None, "float32"):
                closure, optimizer, named = tuned(model, dtype, engine)
                steps = [optimizer.step_with(closure) for _ in range(STEPS)]
                optimizer.flush()
                row[dtype or "in place"] = {
                    "losses": [probe.loss for probe, _ in steps],
                    "coefficients": [list(probe.sketch.coeffs) for probe, _ in steps],
                    "sha256": weights_sha256(named),
                }
            row["equal"] = row["in place"] == row["float32"]
            runs.append(row)
            print(model, engine, row["equal"], flush=True)
    return {"rows": ROWS, "length": LENGTH, "steps": STEPS, "runs": runs}


def status() -> dict[str, int]:
    """Bytes of the process, by the names of Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) << 10 for name in ("VmHWM", "RssAnon", "RssFile")}


class Watched:
    """The largest anonymous memory while the block runs, looked at every 10 ms."""

    peak, _over = 0, False

    def __enter__(self) -> Watched:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over:
            self.peak = max(self.peak, status()["RssAnon"])
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()


def child(model: str, dtype: str | None) -> dict[str, Any]:
    """Two dual steps; what the process took."""
    with Watched() as watched:
        closure, optimizer, _ = tuned(model, dtype, "dual")
        for _ in range(2):
            optimizer.step(closure)
    return {**status(), "RssAnon_peak": watched.peak}


def in_child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "child", *arguments]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def memory() -> dict[str, Any]:
    """Peak resident memory of tuning, in place and decoded."""
    rows = []
    for model in MODELS:
        row = {name: in_child(model, name) for name in ("in place", "float32")}
        rows.append({"model": model, **row, "ratio": row["in place"]["VmHWM"] / row["float32"]["VmHWM"]})
        print(model, {name: value["VmHWM"] / 1e6 for name, value in row.items()}, rows[-1]["ratio"], flush=True)
    return {"rows": ROWS, "length": LENGTH, "steps": 2, "engine": "dual", "models": rows}


def seconds(samples: int = 4) -> dict[str, Any]:
    """Seconds of a dual step, in place and decoded in turn."""
    rows = []
    for model in MODELS:
        engine = "dual"
        ways = {dtype or "in place": tuned(model, dtype, engine) for dtype in (None, "float32")}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for sample in range(samples + 1):
            for name, (closure, optimizer, _) in ways.items():
                elapsed = timed(optimizer.step, closure)
                if sample:
                    times[name].append(elapsed)
        both = {name: spread(each) for name, each in times.items()}
        ratios = {how: both["in place"][how] / both["float32"][how] for how in ("min", "median")}
        rows.append({"model": model, "engine": engine, "seconds": times, **both, "ratio": ratios})
        print(model, engine, {name: round(ratio, 3) for name, ratio in ratios.items()}, flush=True)
    return {"rows": ROWS, "length": LENGTH, "threads": torch.get_num_threads(), "models": rows}


def write_large(path: Path) -> int:
    """Write a Llama of 1.1B weights in Q4_K: a pattern of finite blocks in all of a file; returns the weights."""
    import gguf

    width, layers = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    kv = width // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(SHAPE["vocab_size"])
    letters = [chr(letter) for letter in (*range(33, 127), *range(161, 173), *range(174, 256))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, *(f"t{i}" for i in range(SHAPE["vocab_size"] - 191))])
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    q4, f32 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.F32
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (SHAPE["vocab_size"], width),
        "output_norm.weight": (width,),
    }
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.attn_{name}.weight": (width, width) for name in ("q", "output")}
        shapes |= {f"blk.{i}.attn_{name}.weight": (kv, width) for name in ("k", "v")}
        shapes |= {f"blk.{i}.ffn_{name}.weight": (SHAPE["intermediate_size"], width) for name in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down.weight"] = (width, SHAPE["intermediate_size"])
    for name, shape in shapes.items():
        size = shape[0] * shape[1] // 256 * 144 if len(shape) == 2 else 4 * shape[0]
        raw = (*shape[:-1], shape[-1] // 256 * 144) if len(shape) == 2 else shape
        kind = q4 if len(shape) == 2 else f32
        writer.add_tensor_info(name, raw, np.dtype(np.uint8 if kind == q4 else np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    block = np.random.default_rng(0).integers(0, 256, (4096, 144), np.uint8)
    block[:, 0:4] = np.array([2e-4, 1e-3], np.float16).view(np.uint8)
    with path.open("ab") as stream:
        stream.write(bytes(-stream.tell() % 32))
        for shape in shapes.values():
            if len(shape) == 1:
                stream.write(np.ones(shape, np.float32).tobytes())
                continue
            blocks = shape[0] * shape[1] // 256
            for start in range(0, blocks, len(block)):
                stream.write(block[: blocks - start].tobytes())
    return sum(int(np.prod(shape)) for shape in shapes.values())


def large() -> dict[str, Any]:
    """One dual step of LoRA over a file of 1.1B weights."""
    global ROWS, LENGTH
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.gguf"
        weights = write_large(path)
        figures = in_child(str(path), "large")
        print({name: value / 1e6 for name, value in figures.items()}, flush=True)
        return {"weights": weights, "file_bytes": path.stat().st_size, "rows": 2, "length": 16, **figures}


def start() -> dict[str, Any]:
    """Seconds until a model is loaded, libraries not counted: with an empty cache, and with its tokenizer in it."""
    from gradless import lm
    from gradless.lm import assets

    lm.load("tiny-llama")
    rows = []
    for model in MODELS:
        path = str(assets.fetch(model, print))
        with tempfile.TemporaryDirectory() as cache:
            row = {
                name: timed(lm.load, path, dtype=dtype, cache=Path(cache))
                for name, dtype in (("empty cache", None), ("in place", None), ("float32", "float32"))
            }
        rows.append({"model": model, **row})
        print(model, {name: round(value, 1) for name, value in row.items()}, flush=True)
    return {"models": rows}


PARTS = {
    "decoders": decoders,
    "agreement": agreement,
    "memory": memory,
    "time": seconds,
    "large": large,
    "start": start,
}


def main() -> None:
    global ROWS, LENGTH, MODELS
    if sys.argv[1:2] == ["child"]:
        model, how = sys.argv[2:]
        if how == "large":
            ROWS, LENGTH = 2, 16
        print(json.dumps(child(model, how if how == "float32" else None)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gguf-PART.json")
    arguments = parser.parse_args()
    MODELS = tuple(arguments.model)
    result = PARTS[arguments.part]()
    facts = {"versions": versions(), "processor": device_name(torch.device("cpu"))}
    write_json(arguments.out or RESULTS / f"gguf-{arguments.part}.json", {**facts, **result})


if __name__ == "__main__":
    main()
