"""Stored weights answer torch functions with their values, decoded when they are read."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradless import lm
from gradless.directions import rademacher
from gradless.estimators import population, spsa
from gradless.lm import schemes
from gradless.optimizer import ZerothOrder
from gradless.rules import scale
from gradless.storage import StoredWeight, decoded
from gradless.storage import stored as module


class Halves:
    """Values kept in float16, which counts how often all or some rows are decoded."""

    format = "float16"

    def __init__(self, values: Tensor) -> None:
        self.halves, self.whole, self.some = values.half(), 0, 0
        self.shape, self.dtype, self.device = values.shape, torch.float32, values.device
        self.nbytes = self.halves.nbytes

    def decode(self, out: Tensor, start: int = 0) -> None:
        self.whole += 1
        out.copy_(self.halves[start : start + len(out)])

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        self.some += 1
        out.copy_(self.halves[rows])

    def stored(self) -> Iterator[memoryview]:
        yield self.halves.view(torch.uint8).numpy().data


def pair(*shape: int) -> tuple[nn.Parameter, Tensor, Halves]:
    """A stored weight, its values and its store."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half().float()
    store = Halves(values)
    return nn.Parameter(StoredWeight(store), requires_grad=False), values, store


FUNCTIONS = {
    "linear": lambda w: F.linear(torch.ones(2, 4), w),
    "linear with a bias": lambda w: F.linear(torch.ones(2, 4), w, torch.arange(8.0)),
    "embedding": lambda w: F.embedding(torch.tensor([[7, 0], [3, 3]]), w),
    "rows": lambda w: w[torch.tensor([-1, 2, 2])],
    "a list of rows": lambda w: w[[1, -2]],
    "a slice": lambda w: w[1:3],
    "one row": lambda w: w[3],
    "transposed": lambda w: torch.ones(2, 4) @ w.T,
    "matmul": lambda w: torch.matmul(torch.ones(2, 4), w.t()),
    "arithmetic": lambda w: (w * 2 + 1).sum(0),
    "another type": lambda w: w.to(torch.float64),
    "half": lambda w: w.half(),
    "data": lambda w: w.data[torch.tensor([1])],
    "stack": lambda w: torch.stack([w, w]),
    "in a list": lambda w: torch.cat((w, w), dim=1),
    "norm": lambda w: w.norm(),
    "numbers": lambda w: torch.tensor(w.tolist()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_get_the_values(name):
    weight, values, _ = pair(8, 4)
    assert torch.equal(FUNCTIONS[name](weight), FUNCTIONS[name](values))


def test_facts_are_told_without_decoding():
    weight, values, store = pair(8, 4)
    assert (weight.shape, weight.dtype, weight.device) == (values.shape, values.dtype, values.device)
    assert isinstance(weight, nn.Parameter)
    assert weight.numel() == 32
    assert not weight.requires_grad
    assert "Halves" in repr(weight)
    layer = nn.Linear(4, 8, bias=False)
    layer.weight = weight
    for change in (lambda m: m.to("cpu"), lambda m: m.float(), lambda m: m.requires_grad_(False), copy.deepcopy):
        assert isinstance(change(layer).weight, StoredWeight)
    assert layer.state_dict()["weight"].store is store
    assert (store.whole, store.some) == (0, 0)
    assert torch.equal(decoded(weight), values)


def test_rows_are_read_alone():
    weight, _, store = pair(8, 4)
    F.embedding(torch.tensor([1, 1, 5]), weight)
    assert (store.whole, store.some) == (0, 1)
    with pytest.raises(IndexError, match="row 9 or 1 is out of range for a weight of 8 rows"):
        F.embedding(torch.tensor([1, 9]), weight)


def test_it_cannot_be_tuned():
    weight, _, _ = pair(8, 4)
    with pytest.raises(RuntimeError, match="cannot be tuned"):
        weight.requires_grad_(True)


def test_large_products_are_made_in_parts(monkeypatch):
    weight, values, store = pair(8, 4)
    monkeypatch.setattr(module, "SCRATCH_BYTES", 3 * 4 * 4)  # three rows
    x, bias = torch.randn(5, 4), torch.randn(8)
    torch.testing.assert_close(F.linear(x, weight, bias), F.linear(x, values, bias))
    assert store.whole == 3


def test_gradients_flow_through_and_the_weight_is_decoded_again():
    weight, values, store = pair(8, 4)
    x, y = (torch.ones(2, 4, requires_grad=True) for _ in range(2))
    other, _, _ = pair(8, 4)  # in the same scratch buffer, in between
    (F.linear(x, weight).square().sum() + F.linear(x.detach(), other).sum()).backward()
    F.linear(y, values).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert store.whole == 2


def test_a_batched_forward_decodes_once_for_all_copies():
    weight, values, store = pair(8, 4)
    x = torch.randn(3, 2, 4)
    torch.testing.assert_close(torch.func.vmap(lambda own: F.linear(own, weight))(x), F.linear(x, values))
    ids = torch.tensor([[1, 2], [7, 7], [0, 1]])
    assert torch.equal(torch.func.vmap(lambda own: F.embedding(own, weight))(ids), F.embedding(ids, values))
    assert (store.whole, store.some) == (1, 1)


def stored_model() -> tuple[lm.LanguageModel, list[Halves]]:
    """Tiny-llama whose matrices are stored in float16, tied ones once."""
    model = lm.load("tiny-llama")
    known: dict[int, nn.Parameter] = {}
    stores = []
    for part in model.model.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if weight.ndim == 2 and id(weight) not in known:
                stores.append(Halves(weight.detach()))
                known[id(weight)] = nn.Parameter(StoredWeight(stores[-1]), requires_grad=False)
            if id(weight) in known:
                setattr(part, name, known[id(weight)])
    return schemes.apply(model, "lora", seed=1), stores


def float_model() -> lm.LanguageModel:
    """The same model with the values in float32."""
    model = lm.load("tiny-llama")
    for weight in model.model.parameters():
        if weight.ndim == 2:
            weight.data.copy_(weight.data.half().float())
    return schemes.apply(model, "lora", seed=1)


@pytest.mark.parametrize("estimator", [spsa(eps=1e-2, queries=2), population(eps=1e-2, queries=2)])
@pytest.mark.parametrize("engine", ["stream", "dual"])
def test_steps_over_a_stored_base_have_the_bits_of_the_float_one(engine, estimator):
    ids = torch.arange(5, 29).reshape(2, 12)

    def coefficients(model: lm.LanguageModel) -> tuple[float, ...]:
        opt = ZerothOrder(
            schemes.trainable(model), directions=rademacher(), estimator=estimator, rule=scale(1e-3), engine=engine
        )
        closure = lambda: model.model(input_ids=ids, labels=ids).loss  # noqa: E731
        probes = [opt.probe(closure)]
        opt.apply(probes[0].sketch)
        probes.append(opt.probe(closure))
        assert opt.engine == engine
        return tuple(c for probe in probes for c in (probe.loss, *probe.sketch.coeffs))

    base, stores = stored_model()
    assert coefficients(base) == coefficients(float_model())
    assert all(store.whole + store.some for store in stores)


def test_a_dual_step_reads_every_weight_once():
    base, stores = stored_model()
    ids = torch.arange(5, 29).reshape(2, 12)
    opt = ZerothOrder(schemes.trainable(base), estimator=spsa(eps=1e-2, queries=2), engine="dual", check=False)
    closure = lambda: base.model(input_ids=ids, labels=ids).loss  # noqa: E731
    opt.step(closure)
    before = [(store.whole, store.some) for store in stores]
    opt.step(closure)
    after = [(store.whole, store.some) for store in stores]
    tied = base.config.tie_word_embeddings
    reads = [w + s - a - b for (w, s), (a, b) in zip(after, before, strict=True)]
    assert reads == [2 if tied and index == 0 else 1 for index in range(len(stores))]
