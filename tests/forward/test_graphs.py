"""Evaluations recorded and replayed, with a stand-in for CUDA graphs (`tape`) and kernels in Triton's interpreter."""

from __future__ import annotations

import warnings

import pytest
import torch

import gradless as gl
import silent_driver
import tape
from gradless.forward import graphs

pytest.importorskip("triton", reason="the CUDA kernels need triton, which comes with CUDA builds of torch")


class Net(torch.nn.Module):
    """An embedding of which rows are read, small leaves, and a tied head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(20, 8)
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, ids, labels):
        hidden = self.norm(self.embedding(ids))
        return torch.nn.functional.cross_entropy(hidden @ self.embedding.weight.T, labels)


@pytest.fixture
def recorder(monkeypatch):
    """A stand-in for CUDA graphs; counts what is recorded and played."""
    monkeypatch.setenv("GRADLESS_CUDA_GRAPH", "1")
    monkeypatch.setattr(graphs, "WARM", 2)
    with silent_driver.kernels_on_the_cpu(interpreted=True) as module:
        counts = {"recorded": 0, "played": 0}

        def record(function):
            recording = tape.Tape()
            with monkeypatch.context() as patch, recording:
                patch.setattr(module, "launch", recording.launch)
                result = function()
            counts["recorded"] += 1

            def play():
                counts["played"] += 1
                recording.play()

            return play, result

        monkeypatch.setattr(graphs, "cuda_graph", record)
        yield counts


def trained(engine, loss, steps=5, sizes=(3,), moved=None):
    """Losses and weights of a short run, whose batches are new tensors in every step."""
    model, generator = Net().bfloat16(), torch.Generator().manual_seed(1)
    opt = gl.mezo(model.named_parameters(), lr=1e-2, eps=1e-2, engine=engine, defer=True)
    losses = []
    for number in range(steps):
        if number == moved:
            model.norm.weight.data = model.norm.weight.data.clone()
        shape = (sizes[number % len(sizes)],)
        batch = {name: torch.randint(20, shape, generator=generator) for name in ("ids", "labels")}
        losses.append(opt.step(loss(model, batch)))
    opt.flush()
    return losses, [p.detach().clone() for p in model.parameters()], opt


def plain(model, batch):
    return lambda: model(batch["ids"], batch["labels"])


def equal(one, other):
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.sweep
@pytest.mark.parametrize("engine", ["dual", pytest.param("stream", marks=pytest.mark.long)])
def test_replays_give_the_bits_of_direct_steps(recorder, monkeypatch, engine):
    replayed = trained(engine, plain)
    assert recorder["recorded"] == (2 if engine == "stream" else 1)
    assert recorder["played"] >= 2 * recorder["recorded"]
    monkeypatch.delenv("GRADLESS_CUDA_GRAPH")
    assert equal(replayed, trained(engine, plain))
    assert replayed[2].forwards == 10


@pytest.mark.long
def test_every_shape_has_its_graph(recorder, monkeypatch):
    replayed = trained("dual", plain, steps=8, sizes=(3, 2))
    assert recorder["recorded"] == 2
    monkeypatch.delenv("GRADLESS_CUDA_GRAPH")
    assert equal(replayed, trained("dual", plain, steps=8, sizes=(3, 2)))


@pytest.mark.long
def test_weights_that_moved_are_read_where_they_are(recorder, monkeypatch):
    replayed = trained("dual", plain, steps=7, moved=5)
    assert recorder["played"] > 0
    monkeypatch.delenv("GRADLESS_CUDA_GRAPH")
    assert equal(replayed, trained("dual", plain, steps=7, moved=5))


def waiting(model, batch):
    return lambda: model(batch["ids"], batch["labels"]) * (1.0 if batch["ids"].sum().item() else 2.0)


def drawing(model, batch):
    return lambda: torch.nn.functional.dropout(model(batch["ids"], batch["labels"]), 0.01)


def hidden(model, batch):
    model.batch = batch  # which nothing that the closure holds shows
    return lambda: model(model.batch["ids"], model.batch["labels"])


@pytest.mark.sweep
@pytest.mark.parametrize(("loss", "reason"), [(waiting, "operation not permitted"), (drawing, "draws random numbers")])
def test_what_cannot_be_recorded_is_told_once(recorder, loss, reason):
    with pytest.warns(UserWarning, match=rf"CUDA graphs are not used here \(.*{reason}") as told:
        trained("dual", loss, steps=4)
    assert len([one for one in told if "CUDA graphs" in str(one.message)]) == 1
    assert recorder["played"] == 0


@pytest.mark.sweep
def test_data_that_the_closure_does_not_hold_shows_in_the_first_replays(recorder, monkeypatch):
    with pytest.warns(UserWarning, match="reads data that it does not hold"):
        replayed = trained("dual", hidden)
    monkeypatch.delenv("GRADLESS_CUDA_GRAPH")
    assert equal(replayed, trained("dual", hidden))


def test_without_kernels_for_cuda_that_is_told(monkeypatch):
    monkeypatch.setenv("GRADLESS_CUDA_GRAPH", "1")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained("stream", plain, steps=1)
    assert ["do not serve the tuned parameters" in str(one.message) for one in told].count(True) == 1
