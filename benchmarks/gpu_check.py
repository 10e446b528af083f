"""Check everything that needs a CUDA GPU in one go, and write the results to benchmarks/results.

    python benchmarks/gpu_check.py                 # all parts
    python benchmarks/gpu_check.py bits replay     # some of them; what earlier runs measured of the others stays
    python benchmarks/gpu_check.py profile --repeats 3

Parts: ``bits`` (the Triton kernels against those of the CPU), ``bandwidth`` (of the kernels, against torch's copy_),
``replay`` (one ledger, two devices, one hash), ``engines`` (the same coefficients from all of them), ``profile``
(steps of OPT-1.3B and OPT-13B against their floor). Exit code 0 if all is well, 1 if not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from json import loads
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gradless as gl
from gradless import kernels, rng
from gradless.kernels import reference
from gradless.lm import tiny_models
from gradless.optimizer import ENGINES, Update
from gradless.rng import GAUSSIAN, RADEMACHER, Stream
from gradless.runs.record import versions
from gradless.system import hashing
from gradless.system.atomic import write_json

RESULTS = Path(__file__).parent / "results"
LEAF, BASIS = rng.leaf_id("leaf"), 2**127 + 2**70
STREAMS = [RADEMACHER, GAUSSIAN, Stream("low_rank", 8), Stream("low_rank", 32), Stream("factor", 7)]
SHAPES = [(1, 1), (129, 77), (1024, 768)]
UPDATE = kernels.program([(1.0, [3, BASIS + 2**63 + 5], [1e-3, -2e-4]), (0.999, [77], [3e-5])], rounding=(5, 2**64 - 1))
PROBES = kernels.program([(1.0, [70], [1e-3]), (1.0, [BASIS + 71, 8], [3e-3, 1e-3])], rounding=(8, 9))
HUGE = 2**31 + 2**20 + 77  # elements
TOLERANCE = 2e-2  # of coefficients, relative to their size: float32 losses over 2 eps
PROFILED = [("full", "mezo"), ("full", "lozo"), ("lora", "mezo")]
MODELS = {"opt-1.3b": 2.7e9, "opt-13b": 25.8e9}  # bytes of their weights in bfloat16

Result = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------


def bits(device: torch.device) -> Result:
    """The same programs on both devices; what differs is named."""
    cases, wrong = 0, []
    for name, pair in itertools.chain(_sweeps(device), _fans(device), _extremes(device), _long(device)):
        cases += 1
        if not all(_same(one, other) for one, other in pair):
            wrong.append(name)
    huge = _huge(device)
    say(f"bits: {cases - len(wrong)} of {cases} cases agree; leaf of {HUGE:,} elements: {huge}")
    for name in wrong:
        say(f"  WRONG: {name}")
    return {"cases": cases, "wrong": wrong, "huge": huge, "passed": not wrong and not huge.startswith("WRONG")}


def _same(a: Tensor, b: Tensor) -> bool:
    """The same bits, but for those of NaN, which differ between processors."""
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    a, b = a.cpu(), b.cpu()
    defined = ~b.isnan()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[defined].view(kind), b[defined].view(kind))


def _sweeps(device: torch.device) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    choices = itertools.product(STREAMS, kernels.DTYPES, (False, True), SHAPES, ("plain", "mask", "rows", "strided"))
    for stream, dtype, stochastic, shape, kind in choices:
        p = _weights(shape, dtype)
        rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0]) if kind == "rows" else None
        mask = _mask(shape) if kind == "mask" else None
        program, result = _rounded(UPDATE, stochastic), []
        for where in (device, torch.device("cpu")):
            q = p.to(where).t().contiguous().t() if kind == "strided" else p.to(where)
            out = torch.empty((q.shape[0] if rows is None else len(rows), *shape[1:]), dtype=dtype, device=where)
            options = {"stream": stream, "amplitude": 0.7, "mask": _to(mask, where), "rows": _to(rows, where)}
            result.append(kernels.sweep(out, q, program, leaf=LEAF, **options))
        yield f"sweep {stream} {dtype} {shape} {kind} stochastic={stochastic}", [(result[0], result[1])]


def _fans(device: torch.device) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    # Mirrored, keep, masked: combinations in which each goes with each, since every one is compiled anew.
    combinations = [(True, True, False), (True, False, True), (False, True, True), (False, False, False)]
    for stream, dtype, shape, flags in itertools.product(STREAMS, kernels.DTYPES, SHAPES[1:], combinations):
        mirrored, keep, masked = flags
        result = []
        for where in (device, torch.device("cpu")):
            p = _weights(shape, dtype).to(where, copy=True)
            outs = torch.empty((4 if mirrored else 2, *shape), dtype=dtype, device=where)
            kernels.fan(
                outs,
                p,
                _rounded(UPDATE, keep),
                _rounded(PROBES, keep),
                leaf=LEAF,
                mirrored=mirrored,
                keep=keep,
                stream=stream,
                amplitudes=(0.5, 2.0),
                mask=_to(_mask(shape), where) if masked else None,
            )
            result.append((outs, p))
        yield f"fan {stream} {dtype} {shape} {mirrored=} {keep=} {masked=}", list(zip(*result, strict=True))


def _extremes(device: torch.device) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    """Subnormals, the largest numbers, infinities, and random bits."""
    for dtype, coeff, stochastic in itertools.product(kernels.DTYPES, (0.0, 1e-42, 2e-8, 1e3, 3e38), (False, True)):
        raw = rng.halves(1, 2, 0, 200_000)
        if dtype == torch.float32:
            p = (raw << 16 | rng.halves(3, 2, 0, 200_000)).to(torch.int32).view(dtype)
        else:
            p = raw.to(torch.int16).view(dtype)
        program = kernels.program([(1.0, [4], [coeff]), (0.5, [5], [coeff])], rounding=(6, 7))
        program = _rounded(program, stochastic)
        pair = [kernels.sweep(torch.empty_like(q), q, program, leaf=LEAF) for q in (p.to(device), p)]
        yield f"extremes {dtype} {coeff} {stochastic=}", [(pair[0], pair[1])]


def _long(device: torch.device) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    """20,000 terms in one sweep."""
    for stream, dtype in itertools.product(STREAMS[:3], kernels.DTYPES):
        program = _ledger(20_000)
        p = _weights((9, 333), dtype)
        pair = [kernels.sweep(torch.empty_like(q), q, program, leaf=LEAF, stream=stream) for q in (p.to(device), p)]
        yield f"20,000 steps {stream} {dtype}", [(pair[0], pair[1])]


def _huge(device: torch.device) -> str:
    """Sweep, fan and rows of a leaf of more than 2**31 elements: windows of it against the reference."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 7 * HUGE:
        return "skipped, it does not fit into the memory"
    coeff, key, dice, width = 1e-3, 7, 8, 1000
    program = kernels.program([(1.0, [key], [coeff])], rounding=[dice])
    p = torch.full((HUGE // width, width), 0.02, dtype=torch.bfloat16, device=device)
    starts = [0, HUGE // 2 // width * width, (HUGE // width - 3) * width]

    def expected(piece: Tensor, start: int, sign: int) -> Tensor:
        change = rng.rademacher(key, LEAF, start, width) * float(torch.tensor(coeff)) * sign
        return reference.narrow(piece.float() + change, piece.dtype, rng.halves(dice, LEAF, start, width))

    rows = torch.tensor([start // width for start in starts], device=device)
    part = kernels.sweep(torch.empty(3, width, dtype=p.dtype, device=device), p, program, leaf=LEAF, rows=rows)
    outs = torch.empty(2, *p.shape, dtype=p.dtype, device=device)
    kernels.fan(outs, p, kernels.NOTHING, program, leaf=LEAF, mirrored=True, keep=False)
    before = [p[start // width].clone().cpu() for start in starts]
    kernels.sweep(p, p, program, leaf=LEAF)
    for where, (start, piece) in enumerate(zip(starts, before, strict=True)):
        up, down = expected(piece, start, 1), expected(piece, start, -1)
        result = {"rows": (part[where], up), "sweep": (p[start // width], up)}
        result |= {"fan, plus": (outs[0, start // width], up), "fan, minus": (outs[1, start // width], down)}
        for name, pair in result.items():
            if not _same(*pair):
                return f"WRONG in {name} at element {start}"
    return "agrees"


def _ledger(steps: int) -> Any:
    keys = [[(t // 50 << 64) + t] for t in range(steps)]
    return kernels.program([(1.0 - 1e-7 * (t % 2), k, [1e-4]) for t, k in enumerate(keys)], rounding=range(steps))


def _rounded(program: Any, stochastic: bool) -> Any:
    return program if stochastic else program.to_nearest()


def _weights(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (rng.normal(0, "weights", shape) * 0.02).to(dtype)


def _mask(shape: tuple[int, ...]) -> Tensor:
    return (rng.rademacher(1, 2, 0, math.prod(shape)) > 0).reshape(shape)


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


# ---------------------------------------------------------------------------------------------------------------
# bandwidth


def bandwidth(device: torch.device, *, side: int = 16384) -> Result:
    """Bytes a second of kernels on one large matrix, and their share of what torch's copy_ reaches."""
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        short = str(dtype).removeprefix("torch.")
        p = torch.full((side, side), 0.02, dtype=dtype, device=device)
        outs = torch.empty(2, side, side, dtype=dtype, device=device)
        size = p.numel() * p.element_size()
        copied = 2 * size / _seconds(lambda p=p, outs=outs: outs[0].copy_(p), device)
        for name, passes, terms, call in _calls(p, outs):
            seconds = _seconds(call, device)
            rate = passes * size / seconds
            row = {"dtype": short, "kernel": name, "seconds": seconds, "gb_per_s": rate / 1e9}
            row |= {"share_of_copy": rate / copied, "terms_per_s": terms * p.numel() / seconds}
            rows.append(row)
            against = f"{rate / 1e9:7.0f} GB/s{rate / copied:7.2f} of copy_{row['terms_per_s'] / 1e9:8.0f} G terms/s"
            say(f"bandwidth: {short:<9}{name:<30}{against}")
        rows.append({"dtype": short, "kernel": "copy_", "gb_per_s": copied / 1e9})
        say(f"bandwidth: {short:<9}{'torch copy_':<30}{copied / 1e9:7.0f} GB/s")
        del p, outs
    small = torch.zeros(2048, dtype=torch.bfloat16, device=device)
    program = kernels.program([(1.0, [1], [1e-3])], rounding=[1])
    launch = _seconds(lambda: kernels.sweep(small, small, program, leaf=LEAF), device, calls=500)
    say(f"bandwidth: {launch * 1e6:.0f} microseconds for the sweep of a leaf of 2048 elements, all of it overhead")
    return {"elements": side * side, "kernels": rows, "launch_seconds": launch, "passed": True}


def _calls(p: Tensor, outs: Tensor) -> Iterator[tuple[str, int, int, Callable[[], Any]]]:
    """Name, passes over the leaf, terms and call of what is timed."""
    one = kernels.program([(1.0, [1], [1e-6])])
    thrown = kernels.program([(1.0, [1], [1e-6])], rounding=[2])
    for stream in (RADEMACHER, GAUSSIAN, Stream("low_rank", 8)):
        options = {"leaf": LEAF, "stream": stream}
        yield f"sweep {stream.kind}", 2, 1, lambda options=options: kernels.sweep(p, p, one, **options)
        if p.dtype != torch.float32:
            yield f"sweep {stream.kind}, stochastic", 2, 1, lambda o=options: kernels.sweep(p, p, thrown, **o)
    signs: Any = {"leaf": LEAF, "mirrored": True}
    yield "fan", 3, 1, lambda: kernels.fan(outs, p, kernels.NOTHING, one, keep=False, **signs)
    yield "fan, stochastic", 3, 1, lambda: kernels.fan(outs, p, kernels.NOTHING, thrown, keep=False, **signs)
    yield "fan after an update, kept", 4, 2, lambda: kernels.fan(outs, p, thrown, thrown, keep=True, **signs)
    for steps in (8, 512):
        program = _ledger(steps)
        yield f"replay of {steps} steps", 2, steps, lambda program=program: kernels.sweep(p, p, program, leaf=LEAF)


def _seconds(call: Callable[[], Any], device: torch.device, *, calls: int = 10, repeats: int = 9) -> float:
    """Median over ``repeats`` of the time of a call, measured over several of them; fewer if they are slow."""
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    call()
    wait()
    begin = time.perf_counter()
    call()
    wait()
    if time.perf_counter() - begin > 0.05:
        calls, repeats = 1, 3
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        samples.append((time.perf_counter() - begin) / calls)
    return statistics.median(samples)


# ---------------------------------------------------------------------------------------------------------------
# replay and engines


def replay(device: torch.device, *, steps: int = 300) -> Result:
    """Train a small model on the GPU; replay its moves there and on the CPU; compare the weights' hashes."""
    rows = []
    for make, dtype, (engine, defer) in itertools.product(
        (gl.mezo, gl.lozo), (torch.float32, torch.bfloat16), (("stream", False), ("dual", True))
    ):
        moves: list[Update] = []
        model, opt, closure = _training(make, dtype, device, engine=engine, defer=defer)
        for _ in range(steps):
            opt.step_with(closure, log=moves.append)
        opt.flush()
        hashes = {"trained": hashing.weights_sha256(model.named_parameters())}
        for where in (device, torch.device("cpu")):
            other, again, _ = _training(make, dtype, where)
            again.replay(moves)
            hashes[f"replayed on {where.type}"] = hashing.weights_sha256(other.named_parameters())
        row = {"method": make.__name__, "dtype": str(dtype).removeprefix("torch."), "engine": engine, "steps": steps}
        moved = hashes["trained"] != hashing.weights_sha256(_training(make, dtype, device)[0].named_parameters())
        row |= {"used": opt.engine, "hashes": hashes, "passed": moved and len(set(hashes.values())) == 1}
        rows.append(row)
        verdict = "one hash" if row["passed"] else f"WRONG {moved=} {hashes}"
        say(f"replay: {row['method']} {row['dtype']} {engine}, {steps} steps: {verdict}")
    return {"runs": rows, "passed": all(row["passed"] for row in rows)}


def engines(device: torch.device) -> Result:
    """Coefficients of one probe from every engine."""
    rows = []
    for make in (gl.mezo, gl.mezo_gaussian, gl.lozo):
        coeffs, used = {}, {}
        for engine in ENGINES:
            _, opt, closure = _training(make, torch.float32, device, engine=engine, queries=3)
            coeffs[engine], used[engine] = opt.probe(closure).sketch.coeffs, opt.engine
        first = coeffs[ENGINES[0]]
        size = max(map(abs, first))
        error = max(abs(a - b) / size for other in coeffs.values() for a, b in zip(first, other, strict=True))
        passed = error < TOLERANCE and used == dict(zip(ENGINES, ENGINES, strict=True))
        rows.append({"method": make.__name__, "coeffs": coeffs, "used": used, "largest_error": error, "passed": passed})
        say(f"engines: {make.__name__}: largest difference {error:.1e} of the largest coefficient, ran as {used}")
    return {"probes": rows, "passed": all(row["passed"] for row in rows)}


def _training(make: Any, dtype: torch.dtype, device: torch.device, **choices: Any) -> tuple[Any, Any, Any]:
    """A small OPT with its optimizer and a closure over one batch; the same on every device."""
    model, tokenizer, _ = tiny_models.build("opt", seed=0)
    model = model.to(device, dtype).eval()
    ids = (rng.philox_blocks(0, 8 * 24, 1, 2)[:, 0] % len(tokenizer)).view(8, 24).to(device)

    def closure() -> Tensor:
        logits = model(input_ids=ids).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))

    return model, make(model.named_parameters(), lr=1e-4, eps=1e-3, seed=3, **choices), closure


# ---------------------------------------------------------------------------------------------------------------
# profile


def profile(device: torch.device, *, repeats: int = 9) -> Result:
    """`gradless profile` of large shapes, each in a process of its own."""
    result: Result = {"runs": {}, "passed": True}
    memory = torch.cuda.mem_get_info(device)[1]
    for (model, weights), (scheme, method) in itertools.product(MODELS.items(), PROFILED):
        name = f"{model} {scheme} {method}"
        if memory < 1.4 * weights:
            result["runs"][name] = {"skipped": f"needs {1.4 * weights / 1e9:.0f} GB of memory"}
            say(f"profile: {name}: {result['runs'][name]}")
            continue
        # The in-place engine takes a copy of what it perturbs.
        chosen = ENGINES if memory > 2.5 * weights or scheme != "full" else ("stream", "dual")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "profile.json"
            words = f"profile --model shape:{model} --dtype bfloat16 --device cuda --batch-size 16 --length 128"
            words += f" --scheme {scheme} --method {method} --repeats {repeats} --engine {' --engine '.join(chosen)}"
            command = [sys.executable, "-m", "gradless", *words.split(), "--json", str(target)]
            run = subprocess.run(command, capture_output=True, text=True)
            say(f"profile: {name}\n{run.stdout.rstrip()}")
            if run.returncode == 0:  # a ratio above its target is a finding, not a failure
                result["runs"][name] = loads(target.read_text())
            else:
                result["runs"][name], result["passed"] = {"error": run.stderr.strip().splitlines()[-1:]}, False
                say(f"profile: {name} FAILED\n{run.stderr.rstrip()}")
    return result


# ---------------------------------------------------------------------------------------------------------------

PARTS = {"bits": bits, "bandwidth": bandwidth, "replay": replay, "engines": engines, "profile": profile}


def say(line: str) -> None:
    """A line of the report."""
    print(line, flush=True)


def _missing() -> str | None:
    """Why nothing can be checked here."""
    if not torch.cuda.is_available():
        return "no CUDA GPU can be used here: run this on a machine with one and a CUDA build of torch"
    if kernels.backend(torch.device("cuda")) is None:
        off = os.environ.get("GRADLESS_KERNELS") == "reference"
        why = "unset GRADLESS_KERNELS" if off else "install triton, which comes with CUDA builds of torch"
        return f"the CUDA kernels are off: {why}"
    return None


def main() -> int:
    """Run the parts that were asked for; results are written after each."""
    parser = argparse.ArgumentParser(description="Check everything that needs a CUDA GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the result")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of gradless profile")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if why := _missing():
        print(f"gpu_check: {why}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    result: Result = loads(target.read_text()) if target.exists() else {}  # parts of earlier runs stay
    installed = versions() | {"triton": version("triton"), "cuda": str(torch.version.cuda)}
    result |= {"device": name, "capability": f"{major}.{minor}"}
    say(f"{name}, compute capability {major}.{minor}")
    for part in arguments.parts or PARTS:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # engines that give way say so in the results
            result[part] = PARTS[part](device, **({"repeats": arguments.repeats} if part == "profile" else {}))
        result[part] |= {"seconds": time.perf_counter() - begin, "versions": installed}
        write_json(target, result)
        torch.cuda.empty_cache()
    failed = [part for part in arguments.parts or PARTS if not result[part]["passed"]]
    say(f"{'FAILED: ' + ', '.join(failed) if failed else 'all is well'}; results in {target}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
