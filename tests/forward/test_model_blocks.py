"""Blocks of real architectures: found, grouped and checkpointed, with the numbers of the plain forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import scoring_helpers as s
from block_helpers import Stack, X, closure_of, modules_of, tuned
from gradless import lm
from gradless.errors import BadInput
from gradless.forward.block_order import first_block, units
from gradless.forward.model_blocks import Reuse, blocks, checkpointing
from gradless.lm import schemes

SCHEMES = ("full", "lora", "prefix", "prompt")


def units_of(model: nn.Module) -> list[tuple[str, ...]]:
    return units([name for name, _ in model.named_parameters()], model)


# ------------------------------------------------------------------------------------------------------------
# blocks and units


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_blocks_are_found_under_any_scheme(architecture, scheme):
    model = tuned(architecture, scheme)
    chain = blocks(model.model)
    assert len(chain) == 2
    names = [name for name, _ in model.model.named_parameters()]
    for i, (name, block) in enumerate(chain):
        assert model.model.get_submodule(name) is block
        assert name.endswith(f".{i}")
        own = [n for n in names if n.startswith(f"{name}.")]
        assert own == [f"{name}.{n}" for n, _ in block.named_parameters()]
        assert len(own) >= 8


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_units_are_a_partition_and_blocks_are_among_them(architecture, scheme):
    model = tuned(architecture, scheme)
    partition = units_of(model.model)
    assert sorted(name for members in partition for name in members) == sorted(dict(model.model.named_parameters()))
    for name, block in blocks(model.model):
        own = tuple(f"{name}.{n}" for n, _ in block.named_parameters())
        assert any(set(own) <= set(members) for members in partition)
    places = [first_block(model.model, members) for members in partition]
    assert {0, 1} <= set(places)


def test_an_untied_head_comes_last_and_a_tied_one_first():
    for name, expected in (("tiny-llama-untied", 2), ("tiny-llama-tied", 0)):
        model = lm.load(name).model
        head = next(name for name, p in model.named_parameters() if p is model.get_output_embeddings().weight)
        assert first_block(model, [head]) == expected
    assert first_block(model, []) == 2


@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_first_block_is_never_too_late(architecture):
    """Change one unit, start at its block: the loss is that of a whole forward."""
    model = lm.load(f"tiny-{architecture}-untied")
    closure, stack = closure_of(model), modules_of(model)
    later = 0
    for members in units_of(model.model):
        with torch.no_grad(), Reuse(stack) as reuse:
            with reuse.recording():
                whole = closure()
            for name in members:
                p = model.model.get_parameter(name)
                p.add_(0.1 * torch.cos(torch.arange(p.numel())).view(p.shape))
            k = first_block(model.model, members)
            later += k
            with reuse.from_block(k):
                loss = closure()
            assert torch.equal(loss, closure())
            assert not torch.equal(loss, whole) or members[0] == "lm_head.bias"  # the label rows have their own
    assert later >= 1 + 2  # a block and at least the norm or the head


class Moe(nn.Module):
    """More experts in a block than blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.ModuleList([nn.Identity() for _ in range(9)])
        self.layers = nn.ModuleList([self.block() for _ in range(3)])
        self.scale = nn.Parameter(torch.ones(2))

    @staticmethod
    def block() -> nn.Module:
        block = nn.Module()
        block.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])
        return block


def test_experts_are_not_blocks():
    assert [name for name, _ in blocks(Moe())] == ["layers.0", "layers.1", "layers.2"]


def t5(encoder: int, decoder: int) -> nn.Module:
    import transformers

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 2, "vocab_size": 30}
    config = transformers.T5Config(
        decoder_start_token_id=0, num_layers=encoder, num_decoder_layers=decoder, dropout_rate=0.0, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.few(1)
@pytest.mark.parametrize(("encoder", "decoder", "side"), [(3, 2, "encoder"), (2, 3, "decoder"), (2, 2, "encoder")])
def test_of_an_encoder_and_a_decoder_the_longer_one_is_chosen(encoder, decoder, side):
    model = t5(encoder, decoder)
    assert [name for name, _ in blocks(model)] == [f"{side}.block.{i}" for i in range(max(encoder, decoder))]
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        for members in units_of(model):
            with Reuse([block for _, block in blocks(model)]) as reuse:
                with reuse.recording():
                    model(input_ids=ids, labels=ids, use_cache=False)
                for name in members:
                    model.get_parameter(name).mul_(1.1)
                with reuse.from_block(first_block(model, members)):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            assert torch.equal(loss, model(input_ids=ids, labels=ids, use_cache=False).loss), members


def test_models_without_blocks():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(BadInput, match="Sequential has no list of blocks"):
        blocks(model)
    with pytest.raises(BadInput, match=r"no parameter 'layers\.0\.w'"):
        first_block(Moe(), ["layers.0.w"])


# ------------------------------------------------------------------------------------------------------------
# checkpointing


def saved_by(run: Any) -> tuple[int, Any]:
    """Elements saved for the backward pass, and what ``run`` returned."""
    seen: dict[int, int] = {}
    kept = []  # addresses must not be used twice

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, nn.Parameter):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
            kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    return sum(seen.values()), result


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_checkpointed_gradients_are_the_same_bits_with_less_kept(architecture, scheme):
    model = tuned(architecture, scheme)
    assert not model.model.training
    closure, named = closure_of(model), schemes.trainable(model)
    plain, loss = saved_by(closure)
    loss.backward()
    expected = {name: p.grad for name, p in named}
    assert any(g is not None and g.any() for g in expected.values())
    model.model.zero_grad()
    with checkpointing(modules_of(model)):
        kept, again = saved_by(closure)
        again.backward()
    assert torch.equal(again, loss)
    for name, p in named:
        assert (p.grad is None) == (expected[name] is None), name
        assert p.grad is None or torch.equal(p.grad, expected[name]), name
    assert kept < 0.6 * plain
    assert all("forward" not in vars(block) for block in modules_of(model))


def test_the_backward_pass_may_come_later_and_nothing_happens_without_gradients():
    model = Stack()
    model(X).backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    calls = [layer.calls for layer in model.layers]
    with checkpointing(model.layers):
        loss = model(X)
        with torch.no_grad():
            model(X)
    loss.backward()
    assert [layer.calls - old for layer, old in zip(model.layers, calls, strict=True)] == [3, 3, 3, 3]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_dropout_is_drawn_again_alike():
    layer = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    gradients = []
    for manager in (lambda: checkpointing([]), lambda: checkpointing([layer])):
        layer.zero_grad()
        with torch.random.fork_rng(devices=[]), manager():
            torch.manual_seed(1)
            layer(X).sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
