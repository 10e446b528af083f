"""The Triton kernels give the bits of the reference: on a GPU if there is one, else in Triton's interpreter.

The interpreter computes with NumPy. It shows that the arithmetic is the right one, but not that a compiler keeps it: a
fused multiply-add or flushed subnormals would change bits on a GPU alone. So the kernels are also compiled, which needs
no GPU, and the machine code is searched for both. `benchmarks/gpu_check.py` checks the rest on a real one.
"""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import silent_driver
from gradless import kernels, rng
from gradless.kernels import reference
from gradless.kernels.program import NOTHING, FlatFan, Region, on
from gradless.rng import GAUSSIAN, RADEMACHER, Stream
from silent_driver import cuda_kernels

pytest.importorskip("triton", reason="the CUDA kernels need triton, which comes with CUDA builds of torch")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns when a number overflows on purpose

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
LEAF = rng.leaf_id("leaf")
BASIS = 2**127 + 2**70  # second key of a low-rank stream; the others ignore it
STREAMS = [RADEMACHER, GAUSSIAN, Stream("low_rank", 5), Stream("low_rank", 32), Stream("factor", 7)]
UPDATE = kernels.program([(1.0, [3, BASIS + 2**63 + 5], [1e-3, -2e-4]), (0.999, [77], [3e-5])], rounding=(5, 2**64 - 1))
FEWER = [RADEMACHER, GAUSSIAN, Stream("low_rank", 5), Stream("factor", 7)]
ROUNDINGS = [(dtype, stochastic) for dtype in kernels.DTYPES for stochastic in (False, True)][1:]
SHORT = kernels.program([(0.99, [3], [1e-3])], rounding=(5,))
PROBES = kernels.program([(1.0, [70], [1e-3]), (1.0, [BASIS + 71, 8], [3e-3, 1e-3])], rounding=[8, 9])


@pytest.fixture(scope="module")
def triton_kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1" if DEVICE == "cpu" else "0")
        yield cuda_kernels(interpreted=DEVICE == "cpu")


def weights(shape, dtype):
    return (rng.normal(0, "weights", shape) * 0.02).to(dtype)


def mask_of(shape):
    return rng.rademacher(1, 2, 0, math.prod(shape)) > 0


def plain(program, stochastic):
    return program if stochastic else program.to_nearest()


def region_of(shape, rows=None):
    count, columns = math.prod(shape), math.prod(shape[1:])
    if rows is None:
        return Region(LEAF, torch.zeros(1, dtype=torch.int64), count, columns)
    return Region(LEAF, torch.tensor(rows, device=DEVICE), columns, columns)


def same_bits(a, b):
    return torch.equal(a.cpu().view(BITS[a.dtype]), b.cpu().view(BITS[b.dtype]))


def sweeps(module, p, region, program, mask=None):
    """The result of a sweep on the device, and of the reference."""
    shape = region.rows.numel() * region.width
    result, expected = torch.empty(shape, dtype=p.dtype, device=DEVICE), torch.empty(shape, dtype=p.dtype)
    module.sweep(result, p.to(DEVICE), region, program, None if mask is None else mask.to(DEVICE))
    reference.sweep(expected, p, region, program, mask)
    return result, expected


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("dtype", "stochastic"), ROUNDINGS)
def test_sweeps(triton_kernels, stream, dtype, stochastic):
    shapes = [(1, 1), (2, 43)] if stream.kind == "low_rank" else [(1,), (129,), (20, 101)]
    for shape in shapes:
        p, program = weights(shape, dtype).view(-1), on(plain(UPDATE, stochastic), stream, 0.7)
        result, expected = sweeps(triton_kernels, p, region_of(shape), program)
        assert same_bits(result, expected)
        assert not same_bits(result, p)


@pytest.mark.parametrize("stream", FEWER)
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [([8, 0, 0], 43), ([3], 128), (None, 43)])
def test_rows_and_masks(triton_kernels, stream, dtype, rows, columns):
    shape = (9 if rows else 2, columns)
    p, mask = weights(shape, dtype).view(-1), None if rows == [3] else mask_of(shape)
    assert same_bits(*sweeps(triton_kernels, p, region_of(shape, rows), on(SHORT, stream, 0.7), mask))


def test_a_leaf_of_one_row(triton_kernels):
    p = weights((1, 150), torch.bfloat16).view(-1)
    for stream in STREAMS:
        for rows in ([0], [0, 0]):
            assert same_bits(*sweeps(triton_kernels, p, region_of((1, 150), rows), on(SHORT, stream, 1.0)))


@pytest.mark.parametrize("stream", FEWER)
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize(
    ("mirrored", "keep", "masked", "stochastic", "update", "rows"),
    [
        (True, True, False, True, UPDATE, None),
        (True, False, True, False, SHORT, [1, 1]),
        (False, True, True, True, SHORT, None),
        (False, True, False, False, NOTHING, None),
    ],
)
def test_fans(triton_kernels, stream, dtype, mirrored, keep, masked, stochastic, update, rows):
    shape, branches = (2, 77), 4 if mirrored else 2
    base, mask = weights(shape, dtype).view(-1), mask_of(shape) if masked else None
    probes = on(plain(PROBES, stochastic), stream, 2.0)
    region, results = region_of(shape, rows), []
    for kernel, device in ((triton_kernels, DEVICE), (reference, "cpu")):
        p, part = base.to(device, copy=True), None if mask is None else mask.to(device)
        outs = torch.empty(branches, region.rows.numel() * region.width, dtype=dtype, device=device)
        kernel.fan(outs, p, region, on(plain(update, stochastic), stream, 0.5), probes, mirrored, keep, part)
        results.append((p, outs))
    (p, outs), (expected, others) = results
    assert same_bits(p, expected)
    assert same_bits(outs, others)
    assert same_bits(p, base) == (update is NOTHING or not keep)


@pytest.mark.few(2)
@pytest.mark.skipif(DEVICE == "cuda", reason="gpu_check.py compares on a GPU")
@pytest.mark.parametrize("stream", FEWER)
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize(("mirrored", "masked"), [(True, False), (False, True)])
def test_many_leaves_in_one_launch(triton_kernels, stream, dtype, mirrored, masked):
    """Of all lengths, with updates and amplitudes of their own, written back or not."""
    for keep in (True, False):
        results = []
        for kernel in (triton_kernels, reference):
            fans = []
            for i, shape in enumerate([(1,), (2, 48), (3, 7), (1, 600)]):
                update = (
                    SHORT
                    if i % 2
                    else kernels.program([(0.99, [i], [1e-2]), (1.0, [BASIS + i], [3e-3])], rounding=(i, 5))
                )
                probes, p = on(PROBES, stream, 1.0 + i), weights(shape, dtype).view(-1)
                outs = torch.empty(4 if mirrored else 2, len(p), dtype=dtype)
                region = region_of(shape)._replace(leaf=LEAF + i)
                mask = mask_of(shape) if masked else None
                fans.append(FlatFan(outs, p, region, on(update, stream, 0.5 + i), probes, mask))
            if kernel is reference:
                for one in fans:
                    reference.fan(one.outs, one.p, one.region, one.update, one.probes, mirrored, keep, one.mask)
            else:
                kernel.fan_many(fans, mirrored, keep)
            results.append(fans)
        for one, other in zip(*results, strict=True):
            assert same_bits(one.p, other.p)
            assert same_bits(one.outs, other.outs)


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("stream", [RADEMACHER, GAUSSIAN, Stream("low_rank", 3)])
def test_long_programs(triton_kernels, stream, dtype):
    keys = [[t, BASIS + (t % 3 << 64) + t + 100][: t % 3] for t in range(15)]
    program = kernels.program(
        [(1.0 - 1e-3 * (t % 2), k, [1e-3, -5e-3][: len(k)]) for t, k in enumerate(keys)], rounding=range(15)
    )
    p, region = weights((1, 90), dtype).view(-1), region_of((1, 90))
    assert same_bits(*sweeps(triton_kernels, p, region, on(program, stream, 1.0)))


@pytest.mark.parametrize(("dtype", "stochastic"), ROUNDINGS)
@pytest.mark.parametrize("coeff", [0.0, 1e-42, 2e-8, 3e38])
def test_extreme_numbers(triton_kernels, dtype, stochastic, coeff):
    """Zeros of both signs, subnormals, the largest numbers, infinities; and steps that lead from one to another."""
    info = torch.finfo(dtype)
    edges = [0.0, info.tiny, info.smallest_normal, info.max, math.inf, 1.0, 2.0**-14, 2.0**-24, 6e-8, 65504.0, 65519.0]
    p = torch.tensor(edges).to(dtype).repeat_interleave(20)
    p = torch.cat([p, -p, (weights((100,), torch.float32) * 1e-6).to(dtype)])
    program = kernels.program([(1.0, [4], [coeff]), (0.5, [5], [coeff])], rounding=[6, 7] if stochastic else ())
    result, expected = sweeps(triton_kernels, p, region_of(p.shape), on(program, RADEMACHER, 1.0))
    defined = ~expected.isnan()  # inf - inf
    assert torch.equal(result.cpu().isnan(), ~defined)
    assert same_bits(result.cpu()[defined], expected[defined])


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_nan_stays_nan(triton_kernels, dtype):
    p = torch.tensor([math.nan, -math.nan, 1.0] * 20).to(dtype)
    for program in (UPDATE, plain(UPDATE, False)):
        result, _ = sweeps(triton_kernels, p, region_of(p.shape), on(program, RADEMACHER, 1.0))
        assert torch.equal(result.cpu().isnan(), p.isnan())


@pytest.mark.skipif(DEVICE == "cuda", reason="needs a leaf that is a hole in a file; gpu_check.py uses a real one")
@pytest.mark.parametrize("stream", [RADEMACHER, GAUSSIAN, Stream("low_rank", 5), Stream("factor", 10)])
def test_rows_behind_two_to_the_31_elements(triton_kernels, tmp_path, stream):
    columns = 1000 if stream.kind != "factor" else 10
    elements = (2**33 // columns + 3) * columns
    with (tmp_path / "leaf").open("wb") as file:
        file.truncate(2 * elements)
    p = torch.from_file(str(tmp_path / "leaf"), shared=True, size=elements, dtype=torch.bfloat16)
    region = region_of((elements // columns, columns), [2**33 // columns + 1, 2**31 // columns, 1])
    result, expected = sweeps(triton_kernels, p, region, on(SHORT, stream, 1.0))
    assert same_bits(result, expected)
    assert len(result.view(3, -1).unique(dim=0)) == 3


# ---------------------------------------------------------------------------------------------------------------
# what the interpreter cannot see


@functools.cache
def compiler():
    """The kernels' module as a compiler sees it."""
    return cuda_kernels(interpreted=False)


def compiled(kernel: str, dtype, stochastic, stream, **more):
    """Everything that Triton's compiler makes of a kernel for an H100, which need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = compiler()
    function, pointer = getattr(module.tiles, kernel), "*i32" if dtype == torch.float32 else "*i16"
    table = {"gaussian": "*fp32", "low_rank": "*i32"}.get(stream.kind, "*i64")
    types = dict.fromkeys(("out", "outs", "p"), pointer) | {
        "mask": "*u8",
        "rows": "*i64",
        "program": "*i64",
        "table": table,
    }
    types |= dict.fromkeys(("leaf", "size", "width", "per_row"), "i64") | dict.fromkeys(("steps", "branches"), "i32")
    types |= dict.fromkeys(("factor", "update_factor", "probe_factor"), "i64")
    chosen = {"DTYPE": module.KINDS[dtype], "STOCHASTIC": stochastic, "MASKED": False, "WORDS": 64, **more}
    chosen |= {"ROWS": 1 if stream.kind == "low_rank" else 0, "KIND": rng.KINDS[stream.kind], "RANK": stream.rank}
    names = function.arg_names
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(n),): v for n, v in chosen.items()},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=module.OPTIONS)


@pytest.mark.few(1)
@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler runs on Linux")
@pytest.mark.parametrize(
    ("stream", "dtype"),
    [
        (RADEMACHER, torch.bfloat16),
        (GAUSSIAN, torch.float32),
        (Stream("low_rank", 5), torch.bfloat16),
    ],
)
def test_compiled_sweeps_round_every_product_and_keep_subnormals(monkeypatch, tmp_path, stream, dtype):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check(compiled("sweep", dtype, dtype != torch.float32, stream), tmp_path)


@pytest.mark.few(1)
@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler runs on Linux")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_fans_round_every_product_and_keep_subnormals(monkeypatch, tmp_path, dtype):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    stochastic = dtype != torch.float32
    more = {"MIRRORED": True, "KEEP": True, "UPDATE_STOCHASTIC": stochastic}
    check(compiled("fan", dtype, stochastic, GAUSSIAN, **more), tmp_path)


def check(code, folder):
    """Multiplications and additions, none fused and none that flushes, in PTX and in what runs."""
    ptx = code.asm["ptx"]
    assert re.search(r"\bmul\.(rn\.)?f32", ptx)
    assert re.search(r"\badd\.(rn\.)?f32", ptx)
    assert not re.findall(r"\b(?:fma|mad)\.\w+\.f\d+|\.ftz|\bdiv\.\w*\.?f32", ptx)
    machine = disassembled(code.asm["cubin"], folder / "kernel.cubin")
    if machine is not None:
        assert "FMUL" in machine
        assert "FADD" in machine
        assert not re.findall(r"\b(?:FFMA|FADD\.FTZ|FMUL\.FTZ)\b", machine)


def disassembled(binary: bytes, path: Path) -> str | None:
    """Machine code as text, if triton came with a disassembler."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    if not os.access(tool, os.X_OK):
        return None
    path.write_bytes(binary)
    return subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler runs on Linux")
def test_a_low_rank_leaf_that_only_decays_is_compiled(monkeypatch, tmp_path):
    """Random blocks leave a leaf without terms, and weight decay visits it all the same."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    p = torch.zeros(64, 128)
    with silent_driver.kernels_on_the_cpu(interpreted=False):
        kernels.sweep(p, p, kernels.program([(0.9, [], [])]), leaf=7, stream=Stream("low_rank", 2))
        assert silent_driver.LAUNCHES == {"sweep": 1}
