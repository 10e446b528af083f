"""Check and measure in eight minutes everything that needs a CUDA GPU.

    PYTHONPATH=src python benchmarks/gpu_check.py                # all parts
    PYTHONPATH=src python benchmarks/gpu_check.py bits replay    # some of them; of the others, earlier results stay
    PYTHONPATH=src python benchmarks/gpu_check.py --resume       # those that have not passed yet
    PYTHONPATH=src python benchmarks/gpu_check.py --dry-run      # all code at toy size, on a CPU

It needs this checkout, torch 2.11, Triton 3.6, transformers 5.17, peft and numba, and no network. Each part runs in a
process of its own, which is stopped after twice its time, and has its own criterion. Its result is written as soon as
it is there: a line in ``gpu-NAME.jsonl``, and ``gpu-NAME.json`` with the last result of each part. Exit code 0 if all
parts have passed, 1 if not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from json import dumps, loads
from pathlib import Path
from typing import Any

os.environ["CUDA_MODULE_LOADING"] = "LAZY"
if "--dry-run" in sys.argv:  # before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from gpu_parts import agree, bits, models, speed
from gpu_parts.frame import Context, Part, Result, read, record, shown

from gradless import kernels

RESULTS = Path(__file__).parent / "results"
TOTAL = 480  # seconds
PACKAGES = {"torch": "2.11", "triton": "3.6", "transformers": "5.17", "peft": "", "numba": ""}  # and what was tried

PARTS: dict[str, Part] = {
    "machine-code": Part(
        bits.machine_code,
        30,
        "self-test, and a search of the device's own machine code",
        "the bits of the reference, and no fused multiply-add",
        {"with fused or flushing arithmetic": "0", "kernels agree with the reference": "True"},
    ),
    "bits": Part(
        bits.bits,
        70,
        "every kernel against the reference",
        "no differing bit",
        {"wrong": "0", "leaf of 2**31 elements": "agrees"},
    ),
    "bandwidth": Part(
        speed.bandwidth,
        45,
        "launches, and the kernels against copy_",
        f"all kernels reach {speed.NEAR} of copy_",
        {
            "bfloat16 fan, of copy_": ">= 0.85",
            "bfloat16 fan with dice, of copy_": ">= 0.8",
            "bfloat16 fan with update and dice, of copy_": "0.75-0.85 (64 instructions an element)",
            "float32 fan, of copy_": ">= 0.9",
            "microseconds a launch": "20-40",
        },
    ),
    "replay": Part(agree.replay, 45, "100 steps, replayed on both devices", "one hash for each run", {}),
    "engines": Part(
        agree.engines, 20, "coefficients of all engines; one loss twice", "equal to rounding; the same bits", {}
    ),
    **models.PARTS,
}


def _missing() -> str | None:
    """Return why nothing can be checked here."""
    if not torch.cuda.is_available():
        return "no CUDA GPU can be used here: run this on a machine with one and a CUDA build of torch, or --dry-run"
    if kernels.backend(torch.device("cuda")) is None:
        off = os.environ.get("GRADLESS_KERNELS") == "reference"
        why = "unset GRADLESS_KERNELS" if off else "install triton, which comes with CUDA builds of torch"
        return f"the CUDA kernels are off: {why}"
    return None


def _versions() -> dict[str, str]:
    installed = {}
    for name in (*PACKAGES, "bitsandbytes", "safetensors"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "missing"
    return installed | {"cuda": str(torch.version.cuda), "python": sys.version.split()[0]}


def _facts(device: torch.device) -> Result:
    """Return where this runs, and with what."""
    facts: Result = {"device": "CPU rehearsal", "versions": _versions(), "date": time.strftime("%Y-%m-%d")}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {"device": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}"}
    return facts


def _run_here(name: str, dry: bool, device: torch.device) -> Result:
    """Run one part in this process."""
    part = PARTS[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # engines that give way say so in the results
        deadline = math.inf if dry else time.monotonic() + part.seconds
        context = Context(device, dry, Path(folder), deadline)
        return part.run(context)


def _run_part(name: str, dry: bool) -> Result:
    """Run one part in a process of its own; whatever happens there is a result."""
    command = [sys.executable, __file__, "--here", name, *(["--dry-run"] if dry else [])]
    begun, patience = time.monotonic(), (30 if dry else 2) * PARTS[name].seconds
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=patience)
        result: Result = loads(run.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        result = {"passed": False, "error": f"not finished after {patience:.0f} s"}
    except (ValueError, IndexError):
        result = {"passed": False, "error": "the process has failed; its message stands above"}
    return result | {"seconds": round(time.monotonic() - begun, 1), "budget": PARTS[name].seconds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check everything that needs a CUDA GPU, in eight minutes.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--resume", action="store_true", help="leave out parts that have passed")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds after which no other part begins")
    parser.add_argument("--dry-run", action="store_true", help="all code at toy size, on a CPU; writes no results")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return arguments


def _all(arguments: argparse.Namespace, device: torch.device, target: Path) -> int:
    """Run the parts that were asked for; write and print each result."""
    facts, begun, earlier = _facts(device), time.monotonic(), read(target)
    print(f"{facts['device']}; results in {target}", flush=True)
    passed: dict[str, Any] = {}
    for name in arguments.parts or PARTS:
        part = PARTS[name]
        if arguments.resume and earlier.get(name, {}).get("passed"):
            passed[name] = True
            continue
        if time.monotonic() - begun > arguments.total and not arguments.dry_run:
            print(f"{name}: left out, {arguments.total:.0f} s are over: run again with --resume", flush=True)
            passed[name] = False
            continue
        print(f"{name}: {part.about} ({part.seconds} s)", flush=True)
        result = _run_part(name, arguments.dry_run)
        record(target, name, result, facts)
        passed[name] = result["passed"]
        state = "passed" if result["passed"] else f"FAILED {result.get('error', '')}"
        print(
            "\n".join([*shown(result, part.forecast), f"  {state} ({part.criterion}), {result['seconds']} s"]),
            flush=True,
        )
    failed = [name for name, good in passed.items() if not good]
    print(f"FAILED: {', '.join(failed)}" if failed else "all is well", flush=True)
    return 1 if failed else 0


def main() -> int:
    """Run the check, or one part of it in a process of its own."""
    arguments = _arguments()
    if not arguments.dry_run and (why := _missing()):
        print(f"gpu_check: {why}", file=sys.stderr)
        return 2
    device = torch.device("cpu") if arguments.dry_run else torch.device("cuda", torch.cuda.current_device())
    if arguments.shard:
        number, of = map(int, arguments.shard.split("/"))
        print(dumps(bits.shard(Context(device, arguments.dry_run, Path(), 0.0), number, of)))
        return 0
    if arguments.here:
        print(dumps(_run_here(arguments.here, arguments.dry_run, device)))
        return 0
    with tempfile.TemporaryDirectory() as rehearsal:
        out = Path(rehearsal) if arguments.dry_run and arguments.out == RESULTS else arguments.out
        out.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", str(_facts(device)["device"]).lower()).strip("-")
        return _all(arguments, device, out / f"gpu-{name}.json")


if __name__ == "__main__":
    sys.exit(main())
