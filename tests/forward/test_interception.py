"""Interception of the functions that take a tuned tensor: everything but its reads stays as it is."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradless.forward.interception import Interception, attention_through, is_intercepted


class Special(nn.Parameter):
    """A parameter class of somebody else."""


def doubled(tensors):
    """Functions see twice the tensors."""
    known = {id(tensor): tensor.detach() * 2 for tensor in tensors}

    def serve(func, args, kwargs):
        def one(value):
            if isinstance(value, (list, tuple)):
                return type(value)(one(item) for item in value)
            return known.get(id(value), value)

        return func(*map(one, args), **{key: one(value) for key, value in kwargs.items()})

    return Interception(tensors, serve)


READS = {
    "function": lambda w, x: F.linear(x, w),
    "keyword": lambda w, x: F.linear(input=x, weight=w),
    "operator": lambda w, x: x @ w.T,
    "attribute": lambda w, x: x @ w.data,
    "detached": lambda w, x: x @ w.detach(),
    "index": lambda w, x: w[1:],
    "inside a list": lambda w, x: torch.cat([w, x]),
    "method": lambda w, x: w.sum(),
    "left operand": lambda w, x: w + 1,
    "right operand": lambda w, x: 1 - w,
    "in place": lambda w, x: x.clone().add_(w),
    "out": lambda w, x: torch.mul(w, 3, out=torch.empty(3, 3)),
    "einsum": lambda w, x: torch.einsum("ij,kj->ik", x, w),
    "embedding": lambda w, x: F.embedding(torch.tensor([2, 0]), w),
    "stack": lambda w, x: torch.stack((x, w)),
}


@torch.no_grad()
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("kind", ["Parameter", "Tensor", "Special"])
def test_every_read_goes_to_the_handler(read, kind):
    w, x = torch.arange(9.0).view(3, 3), torch.ones(3, 3)
    tuned = {"Parameter": nn.Parameter(w), "Tensor": w.clone(), "Special": Special(w)}[kind]
    with doubled([tuned]):
        assert torch.equal(READS[read](tuned, x), READS[read](2 * w, x))
    assert torch.equal(READS[read](tuned, x), READS[read](w, x))


def test_nothing_but_reads_changes():
    p, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    layer = nn.Module()
    with doubled([p]):
        assert is_intercepted(p)
        assert not is_intercepted(other)
        assert isinstance(p, nn.Parameter)
        assert (type(p).__name__, type(p).__module__) == ("Parameter", "torch.nn.parameter")
        layer.weight = p
        assert layer.weight is p
        assert [id(q) for q in layer.parameters()] == [id(p)]
        copies = [copy.deepcopy(p), copy.copy(p), pickle.loads(pickle.dumps(p)), type(p)(torch.zeros(2))]  # noqa: S301
        assert all(type(one) is nn.Parameter for one in copies)
        assert p.shape == (2,)
    assert type(p) is nn.Parameter


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_gives_the_class_back(error):
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(error), doubled([p]):
        raise error
    assert type(p) is nn.Parameter


def test_an_error_on_the_way_in_gives_the_classes_back():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError), Interception([p, 3], print):
        pass
    assert type(p) is nn.Parameter
    with doubled([p]):  # and the block is not left open
        assert float(p.sum()) == 4


@torch.no_grad()
def test_blocks_nest_and_may_end_in_any_order():
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    outer, inner = doubled([p]), doubled([q])
    with outer:
        with inner:
            assert float(p + q) == 4  # the inner block's function goes on to the outer one
        assert float(p + q) == 3
        assert type(q) is nn.Parameter
    one, two = doubled([p]), doubled([q])
    one.__enter__()
    two.__enter__()
    two.__exit__()
    one.__exit__()
    assert type(p) is type(q) is nn.Parameter


@torch.no_grad()
def test_other_threads_read_the_weights_themselves():
    p, seen = torch.ones(1), []
    inside, over = threading.Event(), threading.Event()

    def second():
        with doubled([p]):
            seen.append(float(p + 0))
            inside.set()
            over.wait(10)
            seen.append(float(p + 0))

    with doubled([p]):
        thread = threading.Thread(target=lambda: seen.append(float(p + 0)))
        thread.start()
        thread.join()
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait(10)
    assert is_intercepted(p)  # the other thread's block is still open
    assert float(p + 0) == 1
    over.set()
    thread.join()
    assert seen == [1, 2, 2]
    assert type(p) is Tensor


def test_attention_goes_to_the_handler_and_returns_to_torch():
    own, x, calls = F.scaled_dot_product_attention, torch.ones(1, 1, 2, 4), []

    def handler(*args: Tensor, **kwargs: Tensor) -> Tensor:
        calls.append(kwargs)
        return F.scaled_dot_product_attention(*args, **kwargs)

    with attention_through(handler), attention_through(handler):
        F.scaled_dot_product_attention(x, x, value=x)
        other = threading.Thread(target=lambda: F.scaled_dot_product_attention(x, x, x))
        other.start()
        other.join()
    assert len(calls) == 1
    assert F.scaled_dot_product_attention is own
    with pytest.raises(KeyboardInterrupt), attention_through(handler):
        raise KeyboardInterrupt
    assert F.scaled_dot_product_attention is own
