"""The kernels in plain torch: the reference of every backend, and the fallback on every device without one."""

from __future__ import annotations

import torch
from torch import Tensor

from gradless import rng
from gradless.kernels.program import Program, Region

BRANCHES_WIDE = True  # float32 branches of 16-bit leaves need no copy
CHUNK = 1 << 18  # elements at a time, so that a sweep needs megabytes and not copies of the leaf


def narrow(x: Tensor, dtype: torch.dtype, dice: Tensor | None) -> Tensor:
    """Round float32 ``[n]`` to ``dtype``: to nearest even, or stochastically with 16 random bits an element.

    Stochastic rounding goes to one of the two neighbours with probabilities that make it unbiased (to 2**-16 of
    their distance; 2**-13 in float16), and leaves representable values alone. Float16 saturates instead of overflowing.
    """
    if dtype == torch.float32 or dice is None:
        return x.to(dtype)
    if dtype == torch.bfloat16:
        rounded = _truncate(x, dice, 16)
    else:
        fine = _truncate(x, dice >> 3, 13).clamp(-65504.0, 65504.0)
        scaled = x.abs() * 2.0**24  # below 2**-14 the spacing of float16 is constant: 2**-24
        whole = scaled.floor()
        up = dice.float() < (scaled - whole) * 65536.0
        coarse = ((whole + up) * 2.0**-24).copysign(x)
        rounded = torch.where(x.abs() < 2.0**-14, coarse, fine)
    return torch.where(x.isfinite(), rounded, x).to(dtype)


def to_codes(x: Tensor, highest: int, dice: Tensor | None) -> Tensor:
    """Round float32 ``[n]`` to whole codes, uint8: to nearest even, or stochastically with 16 random bits an element.

    What lies outside of 0 to ``highest`` ends there; NaN is 0.
    """
    x = torch.where(x > 0, x, 0.0).clamp(max=float(highest))
    below = x.floor()
    if dice is None:
        return x.round().to(torch.uint8)
    return (below + (dice.float() < (x - below) * 65536.0)).to(torch.uint8)


def round_to(x: Tensor, dtype: torch.dtype, rounding: int | None, leaf: int, highest: int = 0) -> Tensor:
    """Round a whole float32 leaf to ``dtype``, stochastically under the key ``rounding`` if one is given."""
    if dtype == torch.float32 or (rounding is None and not highest):
        return x.to(dtype)
    dice = None if rounding is None else rng.halves(rounding, leaf, 0, x.numel(), x.device)
    return _rounded(x.reshape(-1), dtype, highest, dice).view(x.shape)


def _rounded(x: Tensor, dtype: torch.dtype, highest: int, dice: Tensor | None) -> Tensor:
    """Float32 ``[n]`` in the dtype of a leaf."""
    return to_codes(x, highest, dice) if highest else narrow(x, dtype, dice)


def _truncate(x: Tensor, add: Tensor, bits: int) -> Tensor:
    """Add ``add`` below the last ``bits`` bits of the float32 magnitude and drop them."""
    raw = x.view(torch.int32).to(torch.int64) & rng.MASK32
    size = ((raw & 0x7FFFFFFF) + add) >> bits << bits
    return size.clamp(max=0x7F7FFFFF).to(torch.int32).view(torch.float32).copysign(x)


def sweep(out: Tensor, p: Tensor, region: Region, program: Program, mask: Tensor | None) -> None:
    """Run a program over flat tensors; see `gradless.kernels.sweep` for the meaning of the arguments."""
    for source, target, n in _chunks(region):
        piece = p[source : source + n]
        value = _run(piece, source, region, program)
        if mask is not None:
            value = torch.where(mask[source : source + n], value, piece)
        out[target : target + n] = value


def fan(
    outs: Tensor,
    p: Tensor,
    region: Region,
    update: Program,
    probes: Program,
    mirrored: bool,
    keep: bool,
    mask: Tensor | None,
) -> None:
    """Branch off a leaf, outs ``[B, n]``; see `gradless.kernels.fan` for the meaning of the arguments."""
    for source, target, n in _chunks(region):
        piece = p[source : source + n].clone()
        chosen = slice(None) if mask is None else mask[source : source + n]
        piece[chosen] = _run(piece, source, region, update)[chosen]
        if keep:
            p[source : source + n] = piece
        base = piece.float()
        for b in range(len(probes.decays)):
            change = torch.zeros_like(base) if mirrored else base
            for j in range(probes.starts[b], probes.starts[b + 1]):
                change = change + _term(j, source, n, region, probes, p.device)
            dice = _dice(b, source, n, region, probes, p.device)
            values = (base + change, base - change) if mirrored else (change,)
            for i, value in enumerate(values):
                out = outs[len(values) * b + i, target : target + n]
                out.copy_(piece)
                out[chosen] = _rounded(value, out.dtype, region.highest, dice)[chosen]


def _chunks(region: Region) -> list[tuple[int, int, int]]:
    """(first source element, first target element, count) of every piece of the rows."""
    return [
        (row * region.width + begin, target * region.width + begin, min(CHUNK, region.width - begin))
        for target, row in enumerate(region.rows.tolist())
        for begin in range(0, region.width, CHUNK)
    ]


def _run(piece: Tensor, source: int, region: Region, program: Program) -> Tensor:
    """All steps of a program on one chunk, in its own dtype."""
    for t, decay in enumerate(program.decays):
        acc = piece.float() * float(decay)
        for j in range(program.starts[t], program.starts[t + 1]):
            acc = acc + _term(j, source, len(piece), region, program, piece.device)
        dice = _dice(t, source, len(piece), region, program, piece.device)
        piece = _rounded(acc, piece.dtype, region.highest, dice)
    return piece


def _term(j: int, source: int, n: int, region: Region, program: Program, device: torch.device) -> Tensor:
    """Term j of a program: rounded here, since a fused multiply-add would differ between backends."""
    key = int(program.bases[j]) << 64 | int(program.keys[j])
    z = rng.draw(program.stream, key, region.leaf, source, n, region.columns, device)
    return z * float(program.coeffs[j])


def _dice(t: int, source: int, n: int, region: Region, program: Program, device: torch.device) -> Tensor | None:
    """16 random bits an element for the rounding of step t, if it is stochastic."""
    if not program.rounding.size:
        return None
    return rng.halves(int(program.rounding[t]), region.leaf, source, n, device)
