"""16-bit weights that a forward reads in float32: the values of the float32 model, the tensors of the 16-bit one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradless.forward import model_blocks
from gradless.lm import tiny
from gradless.storage import UpcastParameter, stored, upcast
from gradless.system.hashing import weights_sha256

IDS = torch.arange(20).view(2, 10)
FAMILIES = ("llama", "opt", "gemma", "qwen", "mistral", "roberta")


def pair(family: str = "llama", dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, nn.Module]:
    """A model in 16 bits that computes in float32, and a float32 model with the same values."""
    half, whole = tiny(family).model.to(dtype), tiny(family).model
    upcast.prepare(half)
    with torch.no_grad():
        for own, other in zip(whole.parameters(), half.parameters(), strict=True):
            own.copy_(other)
        for own, other in zip(whole.buffers(), half.buffers(), strict=True):
            own.copy_(other)
    return half, whole


def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", upcast.HALVES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_forward_has_the_bits_of_the_float32_model(family: str, dtype: torch.dtype) -> None:
    half, whole = pair(family, dtype)
    assert torch.equal(logits(half), logits(whole))


@torch.no_grad()
def test_weights_that_are_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    half, whole = pair()
    monkeypatch.setattr(upcast, "SCRATCH_BYTES", 4 * 32 * 7)
    assert torch.allclose(logits(half), logits(whole), atol=1e-5)


def test_outside_of_a_forward_it_is_the_16_bit_model() -> None:
    half, _ = pair()
    plain = tiny("llama").model.bfloat16()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert weights_sha256(half.named_parameters()) == weights_sha256(plain.named_parameters())
    assert all(type(value) is torch.Tensor for value in half.state_dict().values())
    weight = next(half.parameters())
    assert (weight * 2).dtype == weight.detach().dtype == weight.data.dtype == weight.clone().dtype == torch.bfloat16
    with upcast.reading():
        assert (weight * 2).dtype == weight.dtype == weight.T.dtype == weight[0].dtype == torch.float32
    assert weight.dtype == torch.bfloat16


def test_an_error_in_a_forward_ends_the_reading() -> None:
    half, _ = pair()
    for error in (KeyboardInterrupt, ValueError):

        def fail(*_: Any, error: type[BaseException] = error) -> None:
            raise error

        handle = half.get_output_embeddings().register_forward_pre_hook(fail)  # type: ignore[operator]
        with pytest.raises(error):
            logits(half)
        handle.remove()
        assert next(half.parameters()).dtype == torch.bfloat16


@torch.no_grad()
def test_a_copy_reads_its_own_weights() -> None:
    half, whole = pair()
    other = copy.deepcopy(half)
    for parameter in half.parameters():
        parameter.zero_()
    assert all(isinstance(parameter, UpcastParameter) for parameter in other.parameters())
    assert torch.equal(logits(other), logits(whole))
    assert not torch.equal(logits(half), logits(whole))


def test_tied_weights_stay_tied() -> None:
    model = tiny("llama", tied=True).model.bfloat16()
    count = len(list(model.parameters()))
    upcast.prepare(model)
    upcast.prepare(model)  # again
    assert len(list(model.parameters())) == count


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients(frozen: bool) -> None:
    half, whole = pair()
    for model in (half, whole):
        model.requires_grad_(True)
        if frozen:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("norm" in name)
        logits(model).logsumexp(-1).sum().backward()
    for own, other in zip(half.parameters(), whole.parameters(), strict=True):
        if other.grad is None:
            assert own.grad is None
        else:
            assert own.grad is not None
            assert own.grad.dtype == torch.bfloat16
            assert float((own.grad - other.grad).norm()) <= 0.005 * float(other.grad.norm())


@torch.no_grad()
def test_linear_layers_share_one_buffer() -> None:
    weight = nn.Parameter(torch.randn(64, 32).bfloat16())
    module = nn.Linear(32, 64, bias=False)
    module.weight = weight
    upcast.prepare(module)
    x = torch.randn(5, 32)
    first = module(x)
    buffer = stored.take_scratch(torch.Size((64, 32)), torch.float32, x.device)
    assert torch.equal(buffer, weight.float())
    buffer.zero_()
    assert torch.equal(module(x), first)
    assert torch.equal(first, functional.linear(x, weight.float()))


def test_checkpointed_blocks_have_the_gradients_of_others():
    def gradients(checkpoint: bool) -> list[torch.Tensor]:
        half, _ = pair()
        blocks = [block for _, block in model_blocks.blocks(half)] if checkpoint else []
        with model_blocks.checkpointing(blocks):
            loss = half(input_ids=IDS, labels=IDS).loss
        return list(torch.autograd.grad(loss, list(half.parameters())))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)
