"""The kernels' bits: those of the reference on every device, and machine code without fused multiply-add."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_parts.frame import Context, Result, verdict
from gradless import kernels, rng
from gradless.kernels import reference
from gradless.rng import GAUSSIAN, RADEMACHER, Stream

LEAF, BASIS = rng.leaf_id("leaf"), 2**127 + 2**70
STREAMS = [RADEMACHER, GAUSSIAN, Stream("low_rank", 8), Stream("factor", 7)]
UPDATE = kernels.program([(1.0, [3, BASIS + 2**63 + 5], [1e-3, -2e-4]), (0.999, [77], [3e-5])], rounding=(5, 2**64 - 1))
PROBES = kernels.program([(1.0, [70], [1e-3]), (1.0, [BASIS + 71, 8], [3e-3, 1e-3])], rounding=(8, 9))
HUGE = 2**31 + 2**20 + 77  # elements
WORKERS = 16
FUSED = re.compile(r"\b(?:FFMA|FADD\.FTZ|FMUL\.FTZ)\b")


def on_device(context: Context, out: Tensor, call: Any) -> Tensor:
    """Run ``call`` with the kernels under test: Triton's, on a CPU in its interpreter."""
    if context.device.type == "cuda":
        call()
        return out
    from gradless.kernels import cuda

    usual = kernels.backend
    kernels.backend = lambda device: cuda
    try:
        call()
    finally:
        kernels.backend = usual
    return out


def cases(dry: bool) -> list[tuple[Any, ...]]:
    """What is compared: each kernel that is compiled once, so sizes and masks vary within a case."""
    sweeps = itertools.product(["sweep"], STREAMS, kernels.DTYPES, (False, True), ("plain", "mask", "rows"))
    flags = [(True, True, False), (True, False, True), (False, True, True)]
    fans = itertools.product(["fan"], STREAMS, kernels.DTYPES, (True,), flags)
    every = [case for case in (*sweeps, *fans) if case[2] != torch.float32 or not case[3] or case[0] == "fan"]
    return every[:: len(every) // 6] if dry else every


def compared(context: Context, case: tuple[Any, ...]) -> bool:
    """Whether the device gives the bits of the reference."""
    kernel, stream, dtype, stochastic, how = case
    shape = (5, 43) if context.dry else (129, 771)
    make = _sweep if kernel == "sweep" else _fan
    under_test = make(context, context.device, shape, stream, dtype, stochastic, how)
    usual, os.environ["GRADLESS_KERNELS"] = os.environ.get("GRADLESS_KERNELS"), "reference"
    try:
        expected = make(None, torch.device("cpu"), shape, stream, dtype, stochastic, how)
    finally:
        os.environ.pop("GRADLESS_KERNELS") if usual is None else os.environ.update(GRADLESS_KERNELS=usual)
    return all(_same(a, b) for a, b in zip(under_test, expected, strict=True))


def _sweep(context: Context | None, where: torch.device, shape: Any, *choices: Any) -> list[Tensor]:
    stream, dtype, stochastic, how = choices
    p = _weights(shape, dtype).to(where)
    rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0], device=where) if how == "rows" else None
    mask = _mask(shape).to(where) if how == "mask" else None
    out = torch.empty((shape[0] if rows is None else len(rows), shape[1]), dtype=dtype, device=where)
    options = {"leaf": LEAF, "stream": stream, "amplitude": 0.7, "mask": mask, "rows": rows}
    program = UPDATE if stochastic else UPDATE.to_nearest()
    _call(context, out, lambda: kernels.sweep(out, p, program, **options))
    return [out]


def _fan(context: Context | None, where: torch.device, shape: Any, *choices: Any) -> list[Tensor]:
    stream, dtype, stochastic, (mirrored, keep, masked) = choices
    p = _weights(shape, dtype).to(where, copy=True)
    outs = torch.empty((4 if mirrored else 2, *shape), dtype=dtype, device=where)
    mask = _mask(shape).to(where) if masked else None
    options = {"leaf": LEAF, "stream": stream, "mirrored": mirrored, "keep": keep, "mask": mask}
    update, probes = (one if stochastic else one.to_nearest() for one in (UPDATE, PROBES))
    _call(context, outs, lambda: kernels.fan(outs, p, update, probes, amplitudes=(0.5, 2.0), **options))
    return [outs, p]


def _call(context: Context | None, out: Tensor, call: Any) -> None:
    call() if context is None else on_device(context, out, call)


def _same(a: Tensor, b: Tensor) -> bool:
    """The same bits, but for those of NaN, which differ between processors."""
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    a, b = a.cpu(), b.cpu()
    defined = ~b.isnan()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[defined].view(kind), b[defined].view(kind))


def _weights(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (rng.normal(0, "weights", shape) * 0.02).to(dtype)


def _mask(shape: tuple[int, ...]) -> Tensor:
    return (rng.rademacher(1, 2, 0, math.prod(shape)) > 0).reshape(shape)


def shard(context: Context, number: int, of: int) -> Result:
    """Return what one of several processes finds: kernels are compiled by all of them at once."""
    own = cases(context.dry)[number::of]
    return {"cases": len(own), "wrong": [str(case) for case in own if not compared(context, case)]}


def bits(context: Context) -> Result:
    """Compare every kernel with the reference, in several processes; then one leaf of more than 2**31 elements."""
    workers = 1 if context.dry else min(WORKERS, os.cpu_count() or 1)
    script = Path(__file__).parents[1] / "gpu_check.py"
    common = [sys.executable, str(script), *(["--dry-run"] if context.dry else [])]
    running = [
        subprocess.Popen([*common, "--shard", f"{i}/{workers}"], stdout=subprocess.PIPE, text=True)
        for i in range(workers)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return verdict(False, {}, error="a process that compares kernels has failed; its message stands above")
    rows = [json.loads(output.splitlines()[-1]) for output in outputs]
    wrong = [case for row in rows for case in row["wrong"]]
    count, huge = sum(row["cases"] for row in rows), _huge(context)
    figures = {"kernels compared": count, "wrong": len(wrong), "leaf of 2**31 elements": huge}
    return verdict(not wrong and count > 0 and huge != "wrong", figures, wrong=wrong)


def _huge(context: Context) -> str:
    """Whether windows of a leaf of more than 2**31 elements are those of the reference: agrees, wrong or skipped."""
    if context.device.type != "cuda" or torch.cuda.mem_get_info(context.device)[0] < 7 * HUGE:
        return "skipped"
    coeff, key, dice, width = 1e-3, 7, 8, 1000
    program = kernels.program([(1.0, [key], [coeff])], rounding=[dice])
    p = torch.full((HUGE // width, width), 0.02, dtype=torch.bfloat16, device=context.device)
    outs = torch.empty(2, *p.shape, dtype=p.dtype, device=context.device)
    kernels.fan(outs, p, kernels.NOTHING, program, leaf=LEAF, mirrored=True, keep=False)
    for row in (0, HUGE // 2 // width, HUGE // width - 3):
        for sign, out in ((1, outs[0]), (-1, outs[1])):
            change = rng.rademacher(key, LEAF, row * width, width) * float(torch.tensor(coeff)) * sign
            halves = rng.halves(dice, LEAF, row * width, width)
            if not _same(out[row], reference.narrow(p[row].cpu().float() + change, p.dtype, halves)):
                return "wrong"
    return "agrees"


def machine_code(context: Context) -> Result:
    """Run each kernel once with an empty cache, and search what was compiled for this very device."""
    cache = context.folder / "triton"
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    wrong = [str(case) for case in cases(True) if not compared(context, case)]
    figures: Result = {"kernels agree with the reference": not wrong}
    binaries = sorted(cache.rglob("*.cubin"))
    if context.dry:
        return verdict(not wrong, figures, note="Triton's interpreter makes no machine code")
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    if not os.access(tool, os.X_OK):
        return verdict(not wrong, figures, note=f"{tool} is missing, so no machine code was searched")
    texts = [subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout for path in binaries]
    fused = [path.name for path, text in zip(binaries, texts, strict=True) if FUSED.search(text)]
    figures |= {"compiled kernels": len(binaries), "with fused or flushing arithmetic": len(fused)}
    return verdict(not wrong and not fused and bool(binaries), figures, fused=fused)
