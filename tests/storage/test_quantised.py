"""Weights that are codes are told from floats by their kind, and nobody tunes what is left between them by mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradless as gl
from gradless.errors import BadInput
from gradless.storage import quantised
from gradless.storage.stored import StoredWeight


class Codes:
    """A store of a kind that is named."""

    shape, dtype, device, nbytes = torch.Size((4, 4)), torch.float32, torch.device("cpu"), 16

    def __init__(self, name: str | None) -> None:
        self.quantised = name

    format = "float32"

    def decode(self, out: Tensor, start: int = 0) -> None:
        out.fill_(1)


def params4bit(**attributes: Any) -> Tensor:
    """A parameter of bitsandbytes as far as its kind goes."""
    kind: Any = type("Params4bit", (nn.Parameter,), {"__module__": "bitsandbytes.nn.modules"})
    weight: Any = torch.Tensor._make_subclass(kind, torch.zeros(8, 1, dtype=torch.uint8))
    vars(weight).update(attributes)
    return weight


KINDS = {
    "bitsandbytes nf4": lambda: params4bit(quant_type="nf4"),
    "GGUF Q4_K": lambda: nn.Parameter(StoredWeight(Codes("GGUF Q4_K")), requires_grad=False),  # type: ignore[arg-type]
    "uint8 codes": lambda: nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False),
    "int32 codes": lambda: nn.Parameter(torch.zeros(4, 4, dtype=torch.int32), requires_grad=False),
    "float8_e4m3fn codes": lambda: nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn), requires_grad=False),
}


@pytest.mark.parametrize("name", KINDS)
def test_codes_are_told_by_their_kind(name: str) -> None:
    assert quantised.kind(KINDS[name]()) == name


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.zeros(4, 4, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.complex64)),
        torch.zeros(4, dtype=torch.int64),
        StoredWeight(Codes(None)),  # type: ignore[arg-type]
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_floats_masks_and_counters_are_no_codes(tensor: Tensor) -> None:
    assert quantised.kind(tensor) is None


def model(codes: str, *, frozen: bool) -> nn.Module:
    """An embedding, a layer of codes and a norm."""
    layers = nn.ModuleDict({"embed": nn.Embedding(4, 4), "layer": nn.Linear(4, 4, bias=False), "norm": nn.LayerNorm(4)})
    layers["layer"].weight = KINDS[codes]()
    layers["embed"].requires_grad_(not frozen)
    return layers


@pytest.mark.parametrize("codes", KINDS)
def test_all_parameters_of_a_quantised_model_are_refused(codes: str) -> None:
    with pytest.raises(BadInput, match=r"1 of 4 parameters are quantised \(such as 'layer.weight'.*only the others"):
        gl.mezo(model(codes, frozen=False).named_parameters(), lr=1e-3, eps=1e-3)
    groups = [{"params": list(model(codes, frozen=False).named_parameters()), "lr": 1e-3}]
    with pytest.raises(BadInput, match="cannot move"):
        gl.mezo(groups, lr=1e-3, eps=1e-3)


@pytest.mark.parametrize("codes", KINDS)
def test_a_choice_among_parameters_is_taken(codes: str) -> None:
    chosen = model(codes, frozen=True)
    opt = gl.mezo(chosen.named_parameters(), lr=1e-3, eps=1e-3)
    assert [leaf.name for leaf in opt.leaves] == ["norm.weight", "norm.bias"]
    alone = [entry for entry in model(codes, frozen=False).named_parameters() if entry[1].requires_grad]
    assert len(gl.mezo(alone, lr=1e-3, eps=1e-3).leaves) == 3


def test_codes_in_buffers_and_layers_that_round_activations_are_seen_in_a_model() -> None:
    packed = nn.ModuleDict({"layer": nn.Module(), "norm": nn.LayerNorm(4)})
    packed["layer"].register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))
    assert quantised.of_model(packed) == "codes of Module"
    with pytest.raises(BadInput, match="none by choice"):
        quantised.check_model(packed)
    rounding = nn.Sequential(type("Linear8bitLt", (nn.Linear,), {})(4, 4))
    with pytest.raises(BadInput, match=r"round activations .*LLM.int8"):
        quantised.check_model(rounding)
    assert quantised.rounds_activations(nn.Linear(2, 2)) is None
