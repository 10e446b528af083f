"""Numbers in GGUF blocks as parameters: read, written back, perturbed, trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.storage import gguf_blocks, gguf_codes
from gradless.storage.mapped import GgufStore
from gradless.storage.stored import StoredWeight, decoded
from gradless.storage.tuned import TunedStore

NAMES = sorted(gguf_codes.JOINS)


def blocks(name, rows, per_row, seed=0):
    """Blocks of random bytes, whose factors are small numbers."""
    form = gguf_blocks.FORMATS[name]
    raw = rng.philox_blocks(0, -(-rows * per_row * form.nbytes // 16), rng.leaf_id(name), seed)
    raw = raw.view(-1).to(torch.int32).view(torch.uint8)[: rows * per_row * form.nbytes].clone()
    raw = raw.view(rows * per_row, form.nbytes)
    for first in form.halves:
        size = (0.01 + rng.uniform(seed, f"{name}{first}", (len(raw), 1)) * 0.02).to(torch.float16)
        raw[:, first : first + 2] = size.view(torch.uint8)
    return raw.view(rows, -1)


def store(name, rows=12, per_row=2, order=True, seed=0):
    rows_in_file = torch.arange(rows - 1, -1, -1) if order else None
    return GgufStore(blocks(name, rows, per_row, seed), gguf_blocks.FORMATS[name], rows_in_file)


def reference(name, raw):
    """Values by the package gguf, in the order of the file."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType(gguf_blocks.FORMATS[name].number)
    return torch.from_numpy(gguf.quants.dequantize(raw.numpy(), kind).astype(np.float32))


def file_bytes(tuned):
    return torch.cat([rows for _, rows in tuned.blocks()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [("codes",), ("scales",)])
def test_untouched_parameters_give_the_bytes_and_values_of_the_file(name, fields):
    base = store(name)
    tuned = TunedStore(base, fields)
    assert torch.equal(file_bytes(tuned), base.raw)
    assert torch.equal(decoded(StoredWeight(tuned)), decoded(StoredWeight(base)))
    assert b"".join(tuned.stored()) == base.raw.numpy().tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_changed_codes_are_what_gguf_reads(name):
    """Every code by any other: the step of its group times the difference, by gguf's own reading of the bytes."""
    base = store(name)
    tuned = TunedStore(base, ("codes",))
    codes, form = tuned.fields["codes"], gguf_blocks.FORMATS[name]
    drawn = rng.halves(3, 1, 0, codes.numel()).view(codes.shape) % (codes.highest + 1)
    codes.data.copy_(drawn.to(torch.uint8))
    raw = file_bytes(tuned)
    values = decoded(StoredWeight(tuned))
    assert torch.equal(values[base.order], reference(name, raw))
    split = form.split(raw.view(-1, form.nbytes))
    assert torch.equal(split.codes.view(12, -1)[base.order].to(torch.int64) - form.codes[0], drawn)
    for first in form.halves:
        assert torch.equal(raw.view(-1, form.nbytes)[:, first], base.raw.view(-1, form.nbytes)[:, first])
    rows = torch.tensor([5, 0, 11])
    assert torch.equal(StoredWeight(tuned)[rows], values[rows])


@pytest.mark.parametrize("name", NAMES)
def test_changed_factors_are_what_gguf_reads(name):
    form = gguf_blocks.FORMATS[name]
    names = ("scales", "offsets")[: len(form.halves)]
    base = store(name)
    tuned = TunedStore(base, names)
    for number, factor in enumerate(names):
        tuned.fields[factor].data.mul_(1.5 + number)
    raw = file_bytes(tuned)
    assert torch.equal(decoded(StoredWeight(tuned))[base.order], reference(name, raw))
    before, after = (form.split(one.view(-1, form.nbytes)) for one in (base.raw, raw))
    assert torch.equal(before.codes, after.codes)
    assert torch.allclose(after.steps, before.steps * 1.5, rtol=2e-3)


class Net(nn.Module):
    """An embedding and a linear layer of GGUF weights."""

    def __init__(self, fields, seed=0):
        super().__init__()
        stores = [TunedStore(store("Q4_1", 12, 1, seed=seed), fields), TunedStore(store("Q4_1", 8, 1, seed=2), fields)]
        self.embed, self.out = nn.Embedding(12, 32), nn.Linear(32, 8, bias=False)
        for module, one in zip((self.embed, self.out), stores, strict=True):
            module.weight = nn.Parameter(StoredWeight(one), requires_grad=False)
            for name, parameter in one.fields.items():
                module.register_parameter(f"weight_{name}", parameter)

    def forward(self, ids):
        return self.out(self.embed(ids))


IDS = torch.tensor([[0, 3, 4], [1, 1, 11]])


def tuned_named(net):
    return [(name, p) for name, p in net.named_parameters() if not isinstance(p, StoredWeight)]


def train(net, steps, **options):
    codes = hasattr(net.out, "weight_codes")
    rule = gl.chain(gl.rms_normalised(), gl.scale(0.3 if codes else 1e-3))
    directions, eps = (gl.ternary(0.1), 1.0) if codes else (gl.rademacher(), 1e-3)
    opt = gl.ZerothOrder(tuned_named(net), directions=directions, estimator=gl.spsa(eps=eps), rule=rule, **options)
    losses = [opt.step(lambda: (net(IDS) - 0.1).square().mean()) for _ in range(steps)]
    opt.flush()
    return losses


def same(a, b):
    return all(torch.equal(p, q) for (_, p), (_, q) in zip(tuned_named(a), tuned_named(b), strict=True))


@pytest.mark.parametrize("fields", [("codes",), ("scales",), ("scales", "offsets")])
def test_engines_see_perturbed_blocks_and_agree(fields):
    nets = [Net(fields) for _ in range(3)]
    how = [{"engine": "stream"}, {"engine": "dual"}, {"engine": "stream", "defer": True}]
    losses = [train(net, 8, **options) for net, options in zip(nets, how, strict=True)]
    assert len(set(losses[0])) == 8
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, rel=1e-5)
    assert same(nets[0], nets[1])
    assert same(nets[0], nets[2])
    assert not same(nets[0], Net(fields))


@pytest.mark.parametrize("fields", [("codes",), ("scales",)])
def test_what_is_tuned_learns(fields):
    losses = train(Net(fields), 200, engine="stream")
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_a_copied_model_reads_its_own_parameters():
    net = Net(("codes",))
    other = copy.deepcopy(net)
    train(other, 3, engine="stream")
    assert same(net, Net(("codes",)))
    assert not same(net, other)
    assert not torch.equal(net(IDS), other(IDS))
