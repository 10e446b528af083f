"""Outputs of blocks that did not change are used again: the same losses for fewer calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import scoring_helpers as s
from block_helpers import Stack, X, closure_of, modules_of, tuned
from gradless.errors import BadInput
from gradless.estimators import spsa
from gradless.forward.model_blocks import Reuse, blocks, checkpointing
from gradless.lm import schemes
from gradless.optimizer import ZerothOrder


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
        opt = ZerothOrder(named, estimator=spsa(eps=1e-2, queries=2), seed=3, engine=engine, check=False)
        probe = opt.probe(closure)
        assert opt.engine == engine
        return probe.sketch.coeffs, probe.loss, opt.forwards

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
            computed = reuse.computed
            with reuse.from_block(k):
                assert torch.equal(closure(), expected)
            assert reuse.computed - computed == 2 * (2 - k)
            assert torch.equal(closure(), expected)  # outside, everything is computed
        with reuse.recording():  # anew, with other batches
            other = closure_of(model, count=2, micro=None)()
        with reuse.from_block(2):
            assert torch.equal(closure_of(model, count=2, micro=None)(), other)
    assert all("forward" not in vars(block) for block in stack)


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
        expected = opt.probe(closure)
    assert opt.engine == "dual"
    assert opt.probe(closure).sketch == expected.sketch


def test_blocks_are_themselves_again_after_an_error():
    model = Stack()
    own = lambda x, shift: (x, None, {"seen": x})  # noqa: E731
    model.layers[1].forward = own  # as other tools do
    for manager in (lambda: Reuse(model.layers), lambda: checkpointing(model.layers)):
        with pytest.raises(ZeroDivisionError), manager():
            [vars(layer)["forward"] for layer in model.layers] and 1 // 0
        assert ["forward" in vars(layer) for layer in model.layers] == [False, True, False, False]
        assert model.layers[1].forward is own
