"""One ledger, two devices, one hash; the same coefficients from all engines; the same loss twice."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import gradless as gl
from gpu_parts.frame import Context, Result, verdict
from gradless import rng
from gradless.lm import schemes, tiny
from gradless.optimizer import ENGINES, Update
from gradless.system import hashing

STEPS = 100
TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 0.3}  # of coefficients, relative to the largest: losses over 2 eps


def replay(context: Context) -> Result:
    """Train on the device; replay the moves there and on the CPU; compare the weights' hashes."""
    rows = []
    for method, scheme in ((gl.mezo, "full"), (gl.lozo, "full"), (gl.mezo, "lora")):
        moves: list[Update] = []
        dtype = torch.bfloat16
        model, opt, closure = _training(method, dtype, context.device, scheme=scheme, engine="dual", defer=True)
        start = hashing.weights_sha256(model.named_parameters())
        for _ in range(3 if context.dry else STEPS):
            opt.step_with(closure, log=moves.append)
        opt.flush()
        hashes = {"trained": hashing.weights_sha256(model.named_parameters())}
        for where in {context.device, torch.device("cpu")}:
            other, again, _ = _training(method, dtype, where, scheme=scheme, engine="stream")
            again.replay(moves)
            hashes[f"replayed on {where.type}"] = hashing.weights_sha256(other.named_parameters())
        passed = len(set(hashes.values())) == 1 and hashes["trained"] != start
        rows.append({"run": f"{method.__name__} {scheme}", "used": opt.engine, "hashes": hashes, "passed": passed})
    figures = {f"{row['run']}: one hash": row["passed"] for row in rows}
    return verdict(all(row["passed"] for row in rows), figures, runs=rows)


def engines(context: Context) -> Result:
    """Compare coefficients of one probe over all engines, and two losses of one closure bit for bit."""
    figures: Result = {}
    passed = True
    for family, dtype in itertools.product(("llama", "opt"), TOLERANCE):
        name = f"tiny {family} {str(dtype).removeprefix('torch.')}"
        coeffs, used = {}, {}
        for engine in ENGINES:
            _, opt, closure = _training(gl.mezo, dtype, context.device, family=family, engine=engine, queries=3)
            coeffs[engine], used[engine] = opt.probe(closure).sketch.coeffs, opt.engine
        first = coeffs[ENGINES[0]]
        error = max(abs(a - b) for other in coeffs.values() for a, b in zip(first, other, strict=True))
        error /= max(map(abs, first)) or 1.0
        with torch.no_grad():
            same = bool(torch.equal(closure(), closure()))
        figures[f"{name}: largest difference"] = error
        figures[f"{name}: the same loss twice"] = same
        passed &= same and error < TOLERANCE[dtype] and list(used) == list(used.values())
    return verdict(passed, figures)


def _training(
    method: Any, dtype: torch.dtype, device: torch.device, *, family: str = "opt", scheme: str = "full", **choices: Any
) -> tuple[Any, Any, Any]:
    """Return a small model with its optimizer and a closure over one batch; the same on every device."""
    lm = tiny(family)
    lm.model.to(device, dtype).eval()
    if scheme != "full":
        lm = schemes.apply(lm, scheme, seed=0)
    model: Any = lm.model
    ids = (rng.philox_blocks(0, 8 * 24, 1, 2)[:, 0] % len(lm.tokenizer)).view(8, 24).to(device)

    def closure() -> Tensor:
        logits = model(input_ids=ids).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))

    return model, method(schemes.trainable(lm), lr=1e-4, eps=1e-3, seed=3, **choices), closure
