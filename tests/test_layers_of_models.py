"""Blocks of real architectures: found, grouped, skipped and checkpointed, with the numbers of the plain forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import scoring_helpers as s
from gradless import lm
from gradless.directions import blocks as subsets
from gradless.errors import BadInput
from gradless.estimators import spsa
from gradless.forward.model_blocks import Reuse, blocks, checkpointing, first_block
from gradless.lm import objectives, schemes
from gradless.lm.encode import encode
from gradless.optimizer import ZerothOrder

SCHEMES = ("full", "lora", "prefix", "prompt")


def tuned(architecture: str, scheme: str = "full") -> Any:
    model = lm.load(f"tiny-{architecture}")
    model = schemes.apply(model, scheme, seed=1, num_prefix=3, num_prompt=3)
    with torch.no_grad():  # LoRA starts with zeros
        for i, (_, p) in enumerate(schemes.trainable(model)):
            p.add_(0.02 * torch.sin(torch.arange(p.numel()) + i).view(p.shape))
    return model


def closure_of(model: Any, count: int = 4, micro: int | None = 2) -> Any:
    chosen = objectives.OBJECTIVES["option_ce"]
    batches = objectives.prepare(model, chosen, [encode(model, example) for example in s.single(model, count)], micro)
    return lambda: objectives.loss_over(model, chosen, batches)


def units(model: nn.Module) -> list[tuple[str, ...]]:
    return subsets.units([name for name, _ in model.named_parameters()])


def modules_of(model: Any) -> list[nn.Module]:
    return [block for _, block in blocks(model.model)]


# ------------------------------------------------------------------------------------------------------------
# blocks and units


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_blocks_are_found_under_any_scheme(architecture, scheme):
    model = tuned(architecture, scheme)
    found = blocks(model.model)
    assert len(found) == 2
    names = [name for name, _ in model.model.named_parameters()]
    for i, (name, block) in enumerate(found):
        assert model.model.get_submodule(name) is block
        assert name.endswith(f".{i}")
        own = [n for n in names if n.startswith(f"{name}.")]
        assert own == [f"{name}.{n}" for n, _ in block.named_parameters()]
        assert len(own) >= 8


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_units_are_a_partition_and_blocks_are_among_them(architecture, scheme):
    model = tuned(architecture, scheme)
    found = units(model.model)
    assert sorted(name for members in found for name in members) == sorted(dict(model.model.named_parameters()))
    for name, block in blocks(model.model):
        own = tuple(f"{name}.{n}" for n, _ in block.named_parameters())
        assert any(set(own) <= set(members) for members in found)
    places = [first_block(model.model, members) for members in found]
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
    for members in units(model.model):
        with torch.no_grad(), Reuse(stack) as reuse:
            with reuse.recording():
                before = closure()
            for name in members:
                p = model.model.get_parameter(name)
                p.add_(0.1 * torch.cos(torch.arange(p.numel())).view(p.shape))
            k = first_block(model.model, members)
            later += k
            with reuse.from_block(k):
                found = closure()
            assert torch.equal(found, closure())
            assert not torch.equal(found, before) or members[0] == "lm_head.bias"  # the label rows have their own
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


@pytest.mark.parametrize(("encoder", "decoder", "side"), [(3, 2, "encoder"), (2, 3, "decoder"), (2, 2, "encoder")])
def test_of_an_encoder_and_a_decoder_the_longer_one_is_chosen(encoder, decoder, side):
    model = t5(encoder, decoder)
    assert [name for name, _ in blocks(model)] == [f"{side}.block.{i}" for i in range(max(encoder, decoder))]
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        for members in units(model):
            with Reuse([block for _, block in blocks(model)]) as reuse:
                with reuse.recording():
                    model(input_ids=ids, labels=ids, use_cache=False)
                for name in members:
                    model.get_parameter(name).mul_(1.1)
                with reuse.from_block(first_block(model, members)):
                    found = model(input_ids=ids, labels=ids, use_cache=False).loss
            assert torch.equal(found, model(input_ids=ids, labels=ids, use_cache=False).loss), members


def test_models_without_blocks():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(BadInput, match="Sequential has no list of blocks"):
        blocks(model)
    with pytest.raises(BadInput, match=r"no parameter 'layers\.0\.w'"):
        first_block(Moe(), ["layers.0.w"])


# ------------------------------------------------------------------------------------------------------------
# prefix reuse


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place"])
@pytest.mark.parametrize("scheme", ["full", "lora", "prefix"])
@pytest.mark.parametrize("architecture", ["gemma", "opt", "roberta"])
def test_losses_of_later_blocks_at_half_the_calls(architecture, scheme, engine):
    """Only block 1 is perturbed, so block 0 need not be computed; coefficients are the same to the last bit."""
    model = tuned(architecture, scheme)
    stack, closure = modules_of(model), closure_of(model)
    tuned_names = dict(schemes.trainable(model))
    inside = blocks(model.model)[1][0]
    model.model.requires_grad_(False)
    for name, p in model.model.named_parameters():
        p.requires_grad_(name.startswith(f"{inside}.") and (name in tuned_names or scheme == "prefix"))
    named = [(name, p) for name, p in model.model.named_parameters() if p.requires_grad]

    def estimate() -> tuple[Any, ...]:
        opt = ZerothOrder(named, estimator=spsa(eps=1e-2, queries=2), seed=3, engine=engine)
        found = opt.probe(closure)
        assert opt.engine == engine
        return found.sketch.coeffs, found.loss, opt.forwards

    expected = estimate()
    with Reuse(stack) as reuse:
        with reuse.recording(), torch.no_grad():
            closure()
        assert (reuse.computed, reuse.reused) == (4, 0)  # two blocks, two micro-batches
        with reuse.from_block(1):
            assert estimate() == expected
        walks = 2 if engine == "dual" else 2 * expected[2]
        assert (reuse.computed, reuse.reused) == (4 + walks, walks)
    assert estimate() == expected
    assert any(expected[0])


@torch.no_grad()
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_every_start_gives_the_same_loss(architecture):
    model = tuned(architecture)
    closure, stack = closure_of(model), modules_of(model)
    expected = closure()
    with Reuse(stack) as reuse:
        with reuse.recording():
            assert torch.equal(closure(), expected)
        for k in (2, 0, 1, 2):
            before = reuse.computed
            with reuse.from_block(k):
                assert torch.equal(closure(), expected)
            assert reuse.computed - before == 2 * (2 - k)
            assert torch.equal(closure(), expected)  # outside, everything is computed
        with reuse.recording():  # anew, with other batches
            other = closure_of(model, count=2, micro=None)()
        with reuse.from_block(2):
            assert torch.equal(closure_of(model, count=2, micro=None)(), other)
    assert all("forward" not in vars(block) for block in stack)


class Pair(nn.Module):
    """A block that returns a tuple with more than tensors in it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = 0

    def forward(self, x: torch.Tensor, *, shift: float = 0.0) -> tuple[torch.Tensor, None, dict[str, torch.Tensor]]:
        self.calls += 1
        return x * self.scale + shift, None, {"seen": x}


class Stack(nn.Module):
    def __init__(self, count: int = 4, *, spoil: bool = False) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.ones(3))
        self.layers = nn.ModuleList([Pair(0.5 + i) for i in range(count)])
        self.spoil = spoil

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.embed
        for layer in self.layers:
            x, nothing, rest = layer(x, shift=0.25)
            assert nothing is None
            assert set(rest) == {"seen"}
            if self.spoil:
                x.mul_(2.0)
        return x.square().mean()


X = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]])


@pytest.mark.parametrize("keep", [None, (2,), [2, 0]])
def test_tuples_are_returned_and_only_what_is_needed_is_kept(keep):
    model = Stack()
    expected = model(X)
    with Reuse(model.layers, keep=keep) as reuse:
        with reuse.recording():
            model(X)
        counts = [layer.calls for layer in model.layers]
        with reuse.from_block(3), torch.no_grad():
            assert torch.equal(model(X), expected)
        assert [layer.calls - old for layer, old in zip(model.layers, counts, strict=True)] == [0, 0, 0, 1]
        kept = [call.output is not None for index in range(4) for call in reuse._recorded[index]]
        assert kept == [keep is None or index in keep for index in range(4)]
        if keep is not None:
            with pytest.raises(BadInput, match="nothing is known of block 1, on which block 2 builds: keep it"):
                reuse.from_block(2).__enter__()


def test_what_follows_may_change_outputs_in_place():
    model = Stack(spoil=True)
    with torch.no_grad(), Reuse(model.layers) as reuse:
        with reuse.recording():
            expected = model(X)
        for _ in range(3):
            with reuse.from_block(4):
                assert torch.equal(model(X), expected)


def test_gradients_stop_where_the_forward_starts():
    model = Stack()
    model(X).backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    with Reuse(model.layers) as reuse:
        with reuse.recording():
            model(X).backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))
        model.zero_grad()
        with reuse.from_block(2):
            model(X).backward()
    grads = [layer.scale.grad for layer in model.layers]
    assert grads[:2] == [None, None]
    assert grads[2:] == [layer for layer in expected[3:]]


def test_another_number_of_calls_or_another_batch_is_an_error():
    model = Stack()
    with torch.no_grad(), Reuse(model.layers) as reuse:
        with pytest.raises(BadInput, match="run the model under recording"):
            reuse.from_block(1).__enter__()
        with reuse.recording():
            model(X), model(X[:1])
        with pytest.raises(BadInput, match=r"called 3 times, but 2 times when it was recorded"), reuse.from_block(2):
            model(X), model(X[:1]), model(X)
        with pytest.raises(BadInput, match=r"called 1 times, but 2 times"), reuse.from_block(2):
            model(X)
        with pytest.raises(BadInput, match=r"is given .*\[1, 3\].* was given .*\[2, 3\]"), reuse.from_block(2):
            model(X[:1])
        with reuse.from_block(2):  # twice as often is twice the same closure
            first, _, second, _ = model(X), model(X[:1]), model(X), model(X[:1])
            assert torch.equal(first, second)
        with pytest.raises(ZeroDivisionError), reuse.from_block(2):
            model(X) / (1 // 0)  # an error of the closure is its own
        with pytest.raises(BadInput, match="cannot be nested"), reuse.from_block(1), reuse.recording():
            pass
        with pytest.raises(BadInput, match="run the model under recording"):
            reuse.from_block(1).__enter__()  # a recording that failed is none
        with pytest.raises(BadInput, match="has 4 blocks"):
            reuse.from_block(5).__enter__()
    with pytest.raises(BadInput, match="they are 0 to 3"):
        Reuse(model.layers, keep=[4])


def test_values_of_a_vmap_are_neither_recorded_nor_taken_for_shared():
    model = Stack()
    expected = model(X)

    def at(scale: torch.Tensor, name: str) -> torch.Tensor:
        return torch.func.functional_call(model, {name: scale}, (X,))

    scales = torch.tensor([3.5, 2.0])
    with torch.no_grad(), Reuse(model.layers) as reuse:
        with pytest.raises(BadInput, match=r"cannot record under torch.func"), reuse.recording():
            torch.func.vmap(lambda value: at(value, "layers.1.scale"))(scales)
        with pytest.raises(BadInput, match="run the model under recording"):
            reuse.from_block(1).__enter__()
        with reuse.recording():
            model(X)
        with reuse.from_block(3):
            both = torch.func.vmap(lambda value: at(value, "layers.3.scale"))(scales)
        assert torch.equal(both[0], expected)
        assert not torch.equal(both[1], expected)
        with pytest.raises(BadInput, match="differs between copies"), reuse.from_block(3):
            torch.func.vmap(lambda value: at(value.expand(3), "embed"))(scales)
        with reuse.from_block(3):
            assert torch.equal(model(X), expected)  # nothing has leaked


def test_recording_a_probe_of_the_dual_engine_is_refused():
    model = tuned("llama")
    closure = closure_of(model)
    opt = ZerothOrder(schemes.trainable(model), engine="dual")
    with Reuse(modules_of(model)) as reuse:
        with pytest.raises(BadInput, match="cannot record"), reuse.recording():
            opt.probe(closure)
        before = opt.probe(closure)
    assert opt.engine == "dual"
    assert opt.probe(closure).sketch == before.sketch


def test_blocks_are_themselves_again_after_an_error():
    model = Stack()
    own = lambda x, shift: (x, None, {"seen": x})  # noqa: E731
    model.layers[1].forward = own  # as other tools do
    for manager in (lambda: Reuse(model.layers), lambda: checkpointing(model.layers)):
        with pytest.raises(ZeroDivisionError), manager():
            [vars(layer)["forward"] for layer in model.layers] and 1 // 0
        assert ["forward" in vars(layer) for layer in model.layers] == [False, True, False, False]
        assert model.layers[1].forward is own


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
    found = []
    for manager in (lambda: checkpointing([]), lambda: checkpointing([layer])):
        layer.zero_grad()
        with torch.random.fork_rng(devices=[]), manager():
            torch.manual_seed(1)
            layer(X).sum().backward()
        found.append([p.grad for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
