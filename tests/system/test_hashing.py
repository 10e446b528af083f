import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gradless.storage import StoredWeight
from gradless.system import hashing
from gradless.system.hashing import file_sha256, weights_sha256


def test_known_answer_written_out_by_hand() -> None:
    named = [
        ("b.weight", torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.bfloat16)),
        ("a", torch.tensor(7, dtype=torch.int64)),
        ("B", torch.tensor([1.5, -0.0])),
    ]
    expected = hashlib.sha256()
    # Capital letters first: names are ordered by code point.
    expected.update(b"B\0float32\0(2)\n" + struct.pack("<2f", 1.5, -0.0))
    expected.update(b"a\0int64\0()\n" + struct.pack("<q", 7))
    expected.update(b"b.weight\0bfloat16\0(2,2)\n" + struct.pack("<4H", 0x3F80, 0xC000, 0x3F00, 0x4040))
    assert weights_sha256(named) == expected.hexdigest()
    assert weights_sha256(reversed(named)) == expected.hexdigest()


def test_no_weights() -> None:
    assert weights_sha256([]) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_chunks_strides_and_gradients_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (torch.arange(60).reshape(6, 10) % 3).to(dtype)
    whole = weights_sha256([("x", x)])
    monkeypatch.setattr(hashing, "CHUNK_BYTES", 24)
    assert weights_sha256([("x", x)]) == whole
    assert weights_sha256([("x", x.t().contiguous().t())]) == whole
    if dtype.is_floating_point:
        assert weights_sha256([("x", x.clone().requires_grad_())]) == whole


def test_everything_that_counts_changes_it() -> None:
    x = torch.zeros(4)
    base = weights_sha256([("x", x)])
    flipped = x.clone()
    flipped[3] = -0.0
    others = [
        [("y", x)],
        [("x", flipped)],
        [("x", x.reshape(2, 2))],
        [("x", x.to(torch.int32))],
        [("x", x), ("y", torch.zeros(0))],
    ]
    assert len({base, *map(weights_sha256, others)}) == len(others) + 1


def test_names_must_be_usable() -> None:
    with pytest.raises(ValueError, match="two tensors are named 'x'"):
        weights_sha256([("x", torch.zeros(1)), ("x", torch.ones(1))])
    with pytest.raises(ValueError, match="NUL"):
        weights_sha256([("x\0float32", torch.zeros(1))])


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class Half:
    """A bfloat16 tensor, stored as it is and read in float32."""

    dtype, format = torch.float32, "bfloat16"

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.shape, self.device, self.nbytes = values, values.shape, values.device, values.nbytes

    def decode(self, out: torch.Tensor, start: int = 0) -> None:
        raise AssertionError("a hash decodes nothing")

    def decode_rows(self, out: torch.Tensor, rows: torch.Tensor) -> None:
        raise AssertionError("a hash decodes nothing")

    def stored(self) -> Iterator[memoryview]:
        yield memoryview(self.values.view(torch.uint8).numpy().data)


def test_a_stored_weight_has_the_hash_of_what_is_stored() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored = StoredWeight(Half(values))
    assert weights_sha256([("w", stored)]) == weights_sha256([("w", values)])
    assert weights_sha256([("w", torch.nn.Parameter(stored, requires_grad=False))]) == weights_sha256([("w", values)])


class Scaled(torch.Tensor):
    """A quantised weight as torchao's are: a wrapper around tensors."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> "Scaled":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.detach.default, "a hash decodes nothing"
        return Scaled(args[0].codes, args[0].scale)


def test_a_wrapper_has_the_hash_of_its_parts() -> None:
    codes, scale = torch.arange(6, dtype=torch.int8).view(2, 3), torch.tensor([0.5, 2.0])
    known = weights_sha256([("w", Scaled(codes, scale))])
    assert known == weights_sha256([("w", Scaled(codes.clone(), scale.clone()))])
    others = [Scaled(codes + 1, scale), Scaled(codes, scale * 2)]
    assert len({known, *(weights_sha256([("w", other)]) for other in others)}) == 3


def test_a_bitsandbytes_weight_has_the_hash_of_codes_and_scales() -> None:
    class State:
        def __init__(self, absmax: torch.Tensor) -> None:
            self.absmax = absmax

        def as_dict(self, packed: bool) -> dict[str, torch.Tensor]:
            assert packed
            return {"absmax": self.absmax}

    def weight(codes: int, scale: float) -> torch.nn.Parameter:
        parameter: Any = torch.nn.Parameter(torch.tensor([codes], dtype=torch.uint8), requires_grad=False)
        parameter.quant_state = State(torch.tensor([scale]))
        return parameter  # type: ignore[no-any-return]

    hashes = {weights_sha256([("w", weight(*one))]) for one in ((3, 0.5), (4, 0.5), (3, 0.25), (3, 0.5))}
    assert len(hashes) == 3


def test_a_tensor_without_data() -> None:
    with pytest.raises(ValueError, match="'w' has no data here"):
        weights_sha256([("w", torch.empty(2, device="meta"))])
