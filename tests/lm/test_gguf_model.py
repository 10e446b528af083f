"""GGUF models in place: values and logits are those of transformers' conversion, for every architecture and format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gguf_helpers import ARCHITECTURES, write_random_gguf
from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import gguf_model
from gradless.storage.gguf_blocks import FORMATS
from gradless.storage.stored import StoredWeight, decoded

IDS = torch.randint(0, 96, (2, 11), generator=torch.Generator().manual_seed(5))
CPU = torch.device("cpu")


def in_place(path: Path, dtype: torch.dtype | None = None) -> nn.Module:
    opened = gguf_model.open_file(path)
    assert opened is not None
    with models.quiet_transformers():
        return gguf_model.load(path, opened, dtype, CPU).eval()


def converted(path: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with models.quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS).logits
    return out


CASES = [(name, tied) for name in ARCHITECTURES for tied in (True, False) if tied or name != "gemma2"]
"""The library has no name for a head of Gemma 2, which always shares its embeddings."""


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_in_place_is_what_transformers_converts(architecture: str, tied: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_random_gguf(path, architecture, tied=tied, formats=[*FORMATS])
    ours, theirs = in_place(path), converted(path)
    expected = dict(theirs.named_parameters())
    stored = [name for name, one in ours.named_parameters() if isinstance(one, StoredWeight)]
    assert {name for name, _ in ours.named_parameters()} == {*expected}
    assert len(stored) >= len(FORMATS) - 1
    for name, parameter in ours.named_parameters():
        assert torch.equal(decoded(parameter.data), expected[name]), name
        assert parameter.requires_grad == (name not in stored)
    assert ours.get_output_embeddings().weight.shape == ours.get_input_embeddings().weight.shape
    assert (ours.get_output_embeddings().weight is ours.get_input_embeddings().weight) == tied
    reference = logits(theirs)
    assert reference.isfinite().all()
    assert torch.equal(logits(ours), reference)
    settings, of_theirs = ours.config.to_dict(), theirs.config.to_dict()
    own = {"_name_or_path", "architectures", "dtype", "quantization_config"}
    assert {name: settings.get(name) for name in {*of_theirs} - own} == {
        name: value for name, value in of_theirs.items() if name not in own
    }


def test_every_architecture_of_the_table_is_tested() -> None:
    assert {*ARCHITECTURES} == {*gguf_model.ARCHITECTURES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_decoded_into_the_type_that_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "m.gguf"
    write_random_gguf(path, "llama", tied=False, formats=["Q4_K", "Q6_K"])
    stored = dict(in_place(path).named_parameters())
    for name, parameter in in_place(path, dtype).named_parameters():
        assert type(parameter) is nn.Parameter
        assert parameter.requires_grad
        assert torch.equal(parameter, decoded(stored[name].data).to(dtype)), name


def test_other_formats_are_used_by_way_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_random_gguf(path, "llama", tied=True, formats=["Q3_K", "Q2_K"])
    assert torch.equal(logits(in_place(path)), logits(converted(path)))


def test_shapes_that_metadata_do_not_say_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_random_gguf(path, "qwen2", tied=True, formats=["Q8_0"])
    data = path.read_bytes()
    key = b"qwen2.feed_forward_length"
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + (768).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(BadInput, match=r"has blk.0.ffn_\w+.weight of shape \[\d+, \d+\], and its metadata say"):
        in_place(path)


def test_a_plan_reads_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradless.cost import plan
    from gradless.storage.mapped import GgufStore

    path = tmp_path / "m.gguf"
    write_random_gguf(path, "llama", tied=True, formats=["Q4_K"])
    monkeypatch.setattr(GgufStore, "decode", None)
    whole = {}
    for dtype in (None, "float32"):
        settings = plan.Settings(model=str(path), batch_size=2, length=8, dtype=dtype)
        whole[dtype] = plan.subject(settings, "lora").stored
    assert whole[None].buffer == 512 * 256 * 4
    assert whole["float32"].buffer == 0
    assert path.stat().st_size * 0.9 < whole[None].weights < path.stat().st_size * 1.2
    assert whole["float32"].weights > 5 * whole[None].weights
    with pytest.raises(BadInput, match="--scheme lora"):
        plan.subject(plan.Settings(model=str(path), batch_size=2, length=8), "full")


def test_heads_of_another_width_than_transformers_takes(tmp_path: Path) -> None:
    import gguf
    from transformers import AutoModelForCausalLM

    path = tmp_path / "m.gguf"
    write_random_gguf(path, "qwen3", tied=False, formats=["Q8_0"], settings={"head_dim": 64, "num_attention_heads": 4})
    ours = in_place(path)
    assert ours.config.head_dim == 64
    reference = AutoModelForCausalLM.from_config(ours.config).eval()
    assert reference.model.layers[0].self_attn.q_proj.weight.shape == (4 * 64, 256)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, ours.config.num_hidden_layers)
    tensors = {one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            stem, _, suffix = key.rpartition(".")
            parameter.copy_(torch.tensor(tensors[f"{names.get_name(stem)}.{suffix}"]))
    assert torch.equal(logits(ours), logits(reference))
