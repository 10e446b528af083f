"""Steps of large shapes against their floor, with `gradless profile`; LoRA over 4-bit weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from functools import partial
from json import loads
from typing import Any

import torch

from gpu_parts.frame import Context, Part, Result, verdict

PATIENCE = 1.5  # times its share of eight minutes that a run may take

# Model, scheme, method, length, engines, whether eager MeZO takes part, and the bytes of GPU memory needed.
OPT_1B = [("opt-1.3b", "full", "mezo", 128, ("stream", "dual"), True, 10e9)]
OPT_13B = [
    ("opt-13b", "full", "mezo", 128, ("dual", "stream"), False, 40e9),
    ("opt-13b", "full", "lozo", 128, ("dual",), False, 40e9),
]
LLAMA = [
    ("llama-3.1-8b", "lora", "mezo", 40, ("dual",), False, 24e9),
    ("llama-3.1-8b", "lora", "mezo", 128, ("dual",), False, 24e9),
]


def profiles(context: Context, runs: list[tuple[Any, ...]]) -> Result:
    """Profile each run in a process of its own; a ratio above its forecast is a finding, not a failure."""
    figures: Result = {}
    details: Result = {}
    passed = True
    for run in runs[:1] if context.dry else runs:
        model, scheme, method, length, engines, eager, needed = run
        name = f"{model} {scheme} {method} 16 x {length}"
        if context.device.type == "cuda" and torch.cuda.mem_get_info(context.device)[1] < needed:
            details[name] = {"skipped": f"needs {needed / 1e9:.0f} GB of GPU memory"}
            continue
        if context.late():
            details[name] = {"skipped": "the part's time was over"}
            continue
        result = _profiled(context, model, scheme, method, length, engines, eager)
        details[name] = result
        passed &= "error" not in result
        if "error" not in result:
            figures |= _figures(name, result)
    return verdict(passed and bool(figures), figures, runs=details)


def _profiled(context: Context, model: str, scheme: str, method: str, length: int, engines: Any, eager: bool) -> Result:
    target = context.folder / "profile.json"
    options = ["--model", "tiny-llama" if context.dry else f"shape:{model}", "--scheme", scheme, "--method", method]
    options += ["--length", str(6 if context.dry else length), "--batch-size", "2" if context.dry else "16"]
    options += ["--repeats", "1" if context.dry else "3"]
    options += [part for engine in engines for part in ("--engine", engine)]
    options += ["--device", str(context.device)] + ([] if context.dry else ["--dtype", "bfloat16"])
    options += ([] if eager else ["--no-eager"]) + (["--no-memory"] if context.dry else [])
    command = [sys.executable, "-m", "gradless", "profile", *options, "--json", str(target)]
    left = None if context.dry else max(5.0, PATIENCE * (context.deadline - time.monotonic()))
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {left:.0f} s"}
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or ["no message"])[-1]}
    result: Result = loads(target.read_text(encoding="utf-8"))
    return result


def _figures(name: str, result: Result) -> Result:
    figures: Result = {f"{name}: floor, s": result["floor_seconds"]}
    if result["eager_mezo"]:
        figures[f"{name}: eager MeZO x floor"] = result["eager_mezo"]["ratio"]
    for engine, row in result["engines"].items():
        figures[f"{name}: {engine} x floor"] = row["ratio"]
        share = result["share"][engine]
        figures[f"{name}: {engine} busy share"] = 1 - share["everything else"] / sum(share.values())
        if row["peak_memory_bytes"] and result["inference_memory_bytes"]:
            figures[f"{name}: {engine} x memory"] = row["peak_memory_bytes"] / result["inference_memory_bytes"]
    return figures


def four_bits(context: Context) -> Result:
    """Take LoRA steps over nf4 weights of bitsandbytes: both engines must find the same coefficient."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return verdict(True, {"nf4": "skipped"}, note="bitsandbytes is not installed")
    import peft
    import transformers

    import gradless as gl

    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(num_hidden_layers=2, vocab_size=512, **size)
    chosen = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with torch.random.fork_rng():
        transformers.LlamaForCausalLM(config).save_pretrained(context.folder / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        context.folder / "model", quantization_config=chosen, device_map={"": str(context.device)}
    )
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
    model = peft.get_peft_model(base, lora).eval()
    ids = torch.arange(64, device=context.device).view(4, 16)
    tuned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    coeffs = {}
    for engine in ("stream", "dual"):
        opt = gl.mezo(tuned, lr=1e-4, eps=1e-2, seed=1, engine=engine)
        coeffs[engine] = opt.probe(lambda: model(input_ids=ids, labels=ids).loss.float()).sketch.coeffs[0]
    error = abs(coeffs["stream"] - coeffs["dual"]) / max(abs(coeffs["stream"]), 1e-9)
    return verdict(error < 0.05, {"nf4: difference of engines": error})


PARTS = {
    "opt-1.3b": Part(
        partial(profiles, runs=OPT_1B),
        75,
        "OPT-1.3B, 16 x 128: floor, stream, dual, eager MeZO",
        "all candidates run",
        {
            "opt-1.3b full mezo 16 x 128: dual x floor": "3-4 before, <= 1.5 with fewer launches",
            "opt-1.3b full mezo 16 x 128: stream x floor": "4-6 before, <= 2.5",
            "opt-1.3b full mezo 16 x 128: eager MeZO x floor": "3-4",
        },
    ),
    "opt-13b": Part(
        partial(profiles, runs=OPT_13B),
        120,
        "OPT-13B, 16 x 128: mezo and lozo, peak memory",
        "all candidates run",
        {
            "opt-13b full mezo 16 x 128: dual x floor": "1.3-1.4 before, <= 1.15",
            "opt-13b full lozo 16 x 128: dual x floor": "<= 1.1",
            "opt-13b full mezo 16 x 128: dual x memory": "<= 1.1",
        },
    ),
    "llama-lora": Part(
        partial(profiles, runs=LLAMA),
        45,
        "Llama-3.1-8B, LoRA, 16 x 40 and 16 x 128",
        "all candidates run",
        {
            "llama-3.1-8b lora mezo 16 x 40: dual x floor": "<= 1.1 (271 ms of host time before)",
            "llama-3.1-8b lora mezo 16 x 128: dual x floor": "<= 1.0",
        },
    ),
    "nf4": Part(
        four_bits, 30, "LoRA over 4-bit weights", "engines differ by less than 5 %", {"nf4: difference of engines": "0"}
    ),
}
