import hashlib
import struct
from pathlib import Path

import pytest
import torch

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
