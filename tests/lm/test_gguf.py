"""GGUF files that are split, scale their rotary frequencies, or are no model: read exactly, or refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as gguf_library
import numpy as np
import pytest
import torch

from gguf_helpers import part, split, write_gguf
from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import gguf_file
from gradless.storage.stored import decoded
from gradless.system.hashing import weights_sha256

LLAMA = models.tiny("llama")
THETA, HEAD = 10000.0, LLAMA.model.config.head_dim


def opened(source: Path) -> models.LanguageModel:
    return models.load(str(source), cache=source.parent / "cache")


def weights(lm: models.LanguageModel) -> str:
    return weights_sha256((name, decoded(weight.data)) for name, weight in lm.model.named_parameters())


def test_all_parts_of_a_split_file_are_read(tmp_path: Path) -> None:
    paths = split(LLAMA, tmp_path)
    assert gguf_file.parts(paths[2]) == paths
    assert weights(opened(paths[0])) == weights(LLAMA)


def test_a_missing_or_foreign_part_is_named(tmp_path: Path) -> None:
    paths = split(LLAMA, tmp_path)
    write_gguf(LLAMA, paths[1], keep=lambda name: False, extra=part(2, 3))
    with pytest.raises(BadInput, match=r"part of another file beside it \(m-00002-of-00003.gguf\)"):
        opened(paths[0])
    paths[1].unlink()
    with pytest.raises(BadInput, match=r"is one of 3 parts, of which m-00002-of-00003.gguf is missing"):
        opened(paths[0])
    alone = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(BadInput, match="is one of 3 parts: name them"):
        opened(alone)


def _text(name: str, value: str) -> Callable[[Any], None]:
    return lambda writer: writer.add_string(name, value)


def _tensor(name: str, *shape: int) -> Callable[[Any], None]:
    return lambda writer: writer.add_tensor(name, np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"extra": _text("general.type", "adapter")}, "is a LoRA adapter, not a model"),
        ({"extra": _text("general.type", "mmproj")}, "image projector"),
        ({"keep": lambda name: False}, "holds a vocabulary and no weights"),
        ({"tokenizer": False}, "holds no tokenizer"),
        ({"keep": lambda name: name != "blk.1.ffn_up.weight"}, r"lacks 1 weights .*layers.1.mlp.up_proj.weight"),
        (
            {"extra": _tensor("blk.0.attn_q.bias", 32)},
            r"has 1 weights that LlamaForCausalLM does not",
        ),
        (
            {"extra": _tensor("blk.2.attn_norm.weight", 32)},
            r"has 1 weights that LlamaForCausalLM does not",
        ),
        ({"extra": _tensor("rope_freqs.weight", HEAD // 2)}, None),
        ({"extra": _tensor("rope_factors_long.weight", HEAD // 2)}, "scales rotary frequencies"),
        ({"extra": _text("llama.rope.scaling.type", "longrope")}, None),
    ],
)
def test_files_that_are_no_whole_model(tmp_path: Path, how: dict[str, Any], words: str | None) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(LLAMA, path, **how)
    if words is None:  # a table of ones, or a factor of one, scales nothing
        assert weights(opened(path)) == weights(LLAMA)
        return
    with pytest.raises(BadInput, match=words):
        opened(path)


def _scaled(kind: str, **more: Any) -> Callable[[Any], None]:
    def add(writer: Any) -> None:
        writer.add_string("llama.rope.scaling.type", kind)
        writer.add_float32("llama.rope.scaling.factor", 4.0)
        for name, value in more.items():
            writer.add_uint32(f"llama.rope.scaling.{name}", value)

    return add


def _llama3_table(writer: Any) -> None:
    """The table of Llama 3.2, by the formula of its paper's code."""
    frequencies = THETA ** (-np.arange(0, HEAD, 2) / HEAD)
    wave = 2 * math.pi / frequencies
    smooth = np.clip((8192 / wave - 1) / 3, 0, 1)
    writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / 32 + smooth)).astype(np.float32))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (_scaled("linear"), {"rope_type": "linear", "factor": 4.0}),
        (
            _scaled("yarn", original_context_length=64),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            _llama3_table,
            {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            | {"original_max_position_embeddings": 8192},
        ),
    ],
)
def test_scaling_of_rotary_frequencies_is_kept(tmp_path: Path, extra: Any, expected: dict[str, Any]) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(LLAMA, path, extra=extra)
    lm = opened(path)
    parameters = lm.model.config.rope_parameters
    assert {key: parameters[key] for key in expected} == pytest.approx(expected)
    reference = type(LLAMA.model)(
        type(LLAMA.model.config)(
            **(LLAMA.model.config.to_dict() | {"rope_parameters": {"rope_theta": THETA, **expected}})
        )
    ).eval()
    reference.load_state_dict(LLAMA.model.state_dict())
    ids = torch.arange(1, 90)[None]
    with torch.no_grad():
        ours, theirs, plain = (model(input_ids=ids).logits for model in (lm.model, reference, LLAMA.model))
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, plain)


@pytest.mark.parametrize("kind", ["yarn", "longrope", "su"])
def test_scaling_that_cannot_be_said_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(LLAMA, path, extra=_scaled(kind))
    with pytest.raises(BadInput, match=f"scales rotary frequencies \\({kind}"):
        opened(path)


@pytest.mark.parametrize("number", [4, 31, 99])
def test_a_format_without_a_name_is_refused(tmp_path: Path, number: int) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(LLAMA, path)
    data = bytearray(path.read_bytes())
    name = b"blk.1.ffn_up.weight"
    struct.pack_into("<I", data, data.index(name) + len(name) + 4 + 2 * 8, number)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=rf"format that is not known here \({number}\): choose a file of another"):
        opened(path)


def test_big_endian_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = gguf_library.GGUFWriter
    big = gguf_library.GGUFEndian.BIG
    monkeypatch.setattr(gguf_library, "GGUFWriter", lambda path, arch: writer(path, arch, endianess=big))
    write_gguf(LLAMA, tmp_path / "m.gguf")
    with pytest.raises(BadInput, match="is a big-endian GGUF file"):
        opened(tmp_path / "m.gguf")


def test_a_damaged_offset_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(LLAMA, path)
    data = bytearray(path.read_bytes())
    name = b"blk.1.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8 + 4  # dimensions, their sizes, the type
    (offset,) = struct.unpack_from("<Q", data, at)
    struct.pack_into("<Q", data, at, offset - 32)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"ffn_up.weight is not where the tensor before it"):
        opened(path)


def _arrays(writer: Any) -> None:
    writer.add_array("extra.texts", ["", "naïve", "日本", "a\nb"])
    writer.add_array("extra.whole", [3, -1, 2])
    writer.add_array("extra.parts", [0.5, -2.25])
    writer.add_array("extra.flags", [True, False, True])
    writer.add_array("extra.one", ["alone"])


def test_arrays_are_read_at_once_as_the_library_reads_them(tmp_path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import read_field

    path = tmp_path / "arrays.gguf"
    write_gguf(LLAMA, path, extra=_arrays)
    slow = gguf_library.GGUFReader(path)
    fast = gguf_file.read(path)
    assert list(fast.fields) == list(slow.fields)
    for name, field in slow.fields.items():
        assert fast.fields[name].contents() == field.contents(), name
        assert fast.fields[name].types == field.types
        assert read_field(fast, name) == read_field(slow, name)
        if len(field.data) > 1:
            assert fast.fields[name].contents(1) == field.contents(1)
    assert [tensor.name for tensor in fast.tensors] == [tensor.name for tensor in slow.tensors]


@pytest.mark.parametrize("name", ["extra.texts", "extra.whole"])
def test_an_array_that_ends_early_is_no_model(tmp_path: Path, name: str) -> None:
    path = tmp_path / "arrays.gguf"
    write_gguf(LLAMA, path, extra=_arrays)
    data = bytearray(path.read_bytes())
    count = data.index(name.encode()) + len(name) + 8
    struct.pack_into("<Q", data, count, 1 << 40)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="broken or truncated"):
        opened(path)


def test_impossible_counts_end_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for tensors, fields in ((2**63, 3), (3, 2**63), (2**64 - 1, 2**64 - 1)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + bytes(1000))
        with pytest.raises(BadInput, match="broken or truncated, it cannot hold"):
            models.load(str(path), cache=tmp_path / "cache")
