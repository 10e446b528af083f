"""Blocks of GGUF weights: the reference gives what ggml's own package gives, and kernels the same bits."""

from __future__ import annotations

from pathlib import Path

import gguf as ggml
import numpy as np
import pytest
import torch
from torch import Tensor

from gradless import kernels
from gradless.storage import gguf_numba, mapped
from gradless.storage.gguf_blocks import FORMATS, BlockFormat, of_number
from gradless.storage.mapped import GgufStore

COLUMNS = 512
HALVES = (0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00)
"""Bits of float16: zeros, the smallest and the largest subnormal and normal numbers, infinities."""


def random_rows(form: BlockFormat, rows: int) -> Tensor:
    """Random blocks ``[rows, bytes]``, some of them with extreme factors."""
    count = rows * COLUMNS // form.weights
    blocks = np.random.default_rng(form.number).integers(0, 256, (count, form.nbytes), np.uint8)
    for i, bits in enumerate(HALVES):
        for first in form.halves or (0,):
            blocks[i :: 2 * len(HALVES), first : first + 2] = (bits & 255, bits >> 8)
    return torch.from_numpy(blocks.reshape(rows, -1))


def oracle(form: BlockFormat, rows: Tensor) -> Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(ggml.quants.dequantize(rows.numpy(), ggml.GGMLQuantizationType(form.number)).copy())


def assert_same_bits(values: Tensor, expected: Tensor) -> None:
    """Equal as integers; of what is not a number, that alone."""
    assert values.shape == expected.shape
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(values.nan_to_num(0.0).view(torch.int32), expected.nan_to_num(0.0).view(torch.int32))


@pytest.mark.parametrize("name", FORMATS)
def test_reference_and_kernels_give_the_bits_of_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS[name]
    raw = random_rows(form, 40)
    expected = oracle(form, raw)
    out = torch.empty(40, COLUMNS)
    GgufStore(raw, form).decode(out)
    assert_same_bits(out, expected)
    monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    GgufStore(raw, form).decode(out.fill_(7.0))
    assert_same_bits(out, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_store_gives_rows_in_its_own_order(name: str) -> None:
    form, order = FORMATS[name], torch.randperm(40, generator=torch.Generator().manual_seed(3))
    raw = random_rows(form, 40)
    store, expected = GgufStore(raw, form, order), oracle(form, raw)[order]
    assert store.shape == (40, COLUMNS)
    out, some, rows = torch.empty(13, COLUMNS), torch.empty(5, COLUMNS), torch.tensor([39, 0, 7, 7, 20])
    store.decode(out, 9)
    store.decode_rows(some, rows)
    assert_same_bits(out, expected[9:22])
    assert_same_bits(some, expected[rows])
    assert b"".join(bytes(part) for part in store.stored()) == raw.numpy().tobytes()


def test_rows_are_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS["Q4_K"]
    monkeypatch.setattr(gguf_numba, "WORTHWHILE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    raw = random_rows(form, 100)
    out = torch.empty(100, COLUMNS)
    GgufStore(raw, form).decode(out)
    assert_same_bits(out, oracle(form, raw))


def test_codes_and_steps_are_the_value() -> None:
    for form in FORMATS.values():
        if form.split is None:
            continue
        blocks = random_rows(form, 40).view(-1, form.nbytes)
        codes, steps, offsets = form.split(blocks)
        assert codes.dtype == torch.int8
        assert codes.shape == (len(blocks), form.weights)
        assert (int(codes.min()), int(codes.max())) == form.codes
        assert form.weights % steps.shape[1] == 0
        assert (offsets is None) == (len(form.halves) == 1)
        for first, factors in zip(form.halves, (steps, offsets), strict=False):
            zeroed = blocks.clone()
            zeroed[:, first : first + 2] = 0
            others = form.split(zeroed)[1:]
            assert not others[form.halves.index(first)].any(), "a factor of zero makes its steps or offsets zero"
            assert factors is not None


def test_other_formats_are_decoded_by_the_library() -> None:
    form = of_number(ggml.GGMLQuantizationType.Q3_K)
    assert (form.name, form.split) == ("Q3_K", None)
    raw = random_rows(form, 4)
    out = torch.empty(4, COLUMNS)
    GgufStore(raw, form).decode(out)
    assert_same_bits(out, oracle(form, raw))
    with pytest.raises(KeyError):
        of_number(9)  # Q8_1 is a format of sums, not of files
    with pytest.raises(KeyError):
        of_number(12345)


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"F32"}))
def test_triton_gives_the_same_bits(name: str) -> None:
    """In Triton's interpreter, or on a GPU if there is one."""
    pytest.importorskip("triton", reason="the CUDA kernels need triton, which comes with CUDA builds of torch")
    from silent_driver import interpreted_module

    device = "cuda" if torch.cuda.is_available() else "cpu"
    triton_kernels = interpreted_module("gradless.storage.gguf_triton", interpreted=device == "cpu")
    form = FORMATS[name]
    raw, rows = random_rows(form, 6), torch.tensor([5, 0, 0, 3])
    out, some = torch.empty(6, COLUMNS, device=device), torch.empty(4, COLUMNS, device=device)
    with np.errstate(all="ignore"):
        triton_kernels.decode(out, raw.to(device), form, None)
        triton_kernels.decode(some, raw.to(device), form, rows.to(device))
    expected = oracle(form, raw)
    assert_same_bits(out.cpu(), expected)
    assert_same_bits(some.cpu(), expected[rows])


def test_every_kernel_has_a_format() -> None:
    text = Path(mapped.__file__).with_name("gguf_triton.py").read_text()
    assert {*gguf_numba.KERNELS} == {*FORMATS} - {"F32"}
    assert all(f'"{name}": {name.lower()}' in text for name in gguf_numba.KERNELS)
    assert kernels.backend(torch.device("cpu")) is not None
