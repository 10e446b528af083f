"""What a step on a GPU asks of the host, counted with a driver that launches nothing.

Models have the layers of large ones and tiny widths, and every weight matrix counts as a large leaf, as in those.
"""

from __future__ import annotations

import types
import warnings

import pytest
import torch

import gradless as gl
import silent_driver
from gradless.forward import batched, perturbed, read_order
from gradless.optimizer import zeroth_order

pytest.importorskip("triton", reason="the CUDA kernels need triton, which comes with CUDA builds of torch")
pytest.importorskip("peft", reason="models of launches are those of transformers, with adapters of PEFT")

from launch_models import model_of

LAYERS = 40
LISTED = 2  # the value of ROWS of a launch that visits some rows only
TINY = 200  # elements of the longest vector among the leaves, here


@pytest.fixture
def silent(monkeypatch):
    monkeypatch.setattr(perturbed, "SMALL", TINY)
    monkeypatch.setattr(batched, "SMALL", TINY)
    monkeypatch.setattr(read_order, "ROW", 0)  # a leaf of a large model is longer than what is visited in a row
    anything = types.SimpleNamespace(isfinite=lambda number: True)  # losses are those of memory that nothing wrote
    monkeypatch.setattr(zeroth_order, "math", anything)
    with silent_driver.kernels_on_the_cpu(interpreted=False, compiled=False) as module, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield module


def stepper(kind: str, engine: str):
    """A step of a model, its closure alone, and how many leaves it tunes."""
    model = model_of(kind, LAYERS, "lora" if kind == "llama" else "full")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    opt, ids = gl.mezo(named, lr=1e-9, engine=engine, defer=True, check=False), torch.arange(8).view(2, 4) + 3

    def closure():
        return model(input_ids=ids, labels=ids).loss

    return lambda: opt.step(closure), closure, len(named)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kind", "engine", "most"),
    [("opt", "dual", 100), ("opt", "stream", 200), ("llama", "dual", 130), ("llama", "stream", 260)],
)
def test_a_step_launches_few_kernels_and_waits_for_none(silent, kind, engine, most):
    step, closure, leaves = stepper(kind, engine)
    with silent_driver.Waits() as own, torch.no_grad():  # what the model itself reads
        closure()
    for _ in range(3):
        step()
    silent_driver.forget()
    with silent_driver.Waits() as waits:
        step()
    launches = sum(silent_driver.LAUNCHES.values())
    forwards = 2 if engine == "stream" else 1
    assert 0 < launches <= most <= forwards * leaves
    assert silent_driver.COMPILED == []
    # The losses are read once, behind everything else; reading a value earlier would stop the host until then.
    assert len(waits.read) == forwards * len(own.read) + 1
    last = launches - silent_driver.LAUNCHES["sweep"]  # rows that no forward visits whole are written by the update
    assert waits.read[-1] == last
    assert last not in waits.read[:-1]


@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "engine"), [("opt", "dual"), ("opt", "stream"), ("llama", "dual")])
def test_two_steps_differ_in_the_numbers_of_their_programs_only(silent, monkeypatch, kind, engine):
    step, _, _ = stepper(kind, engine)
    for _ in range(4):
        step()
    new = []
    monkeypatch.setattr(silent.vectors, "Vector", lambda *layout: new.append(layout))
    tables = silent.vectors.known_table.cache_info().misses
    steps = []
    for _ in range(2):
        silent_driver.forget()
        step()
        steps.append([places_of_rows_left_out(*launch) for launch in silent_driver.ARGUMENTS])
    assert steps[0] == steps[1] != []
    assert (new, silent_driver.COMPILED) == ([], [])
    assert silent.vectors.known_table.cache_info().misses == tables


def places_of_rows_left_out(name, grid, *arguments):
    """A launch; rows of an embedding, and which they are, are the model's tensors, which lie where torch puts them."""
    _, p, mask, _, *rest = arguments
    return (name, grid, p, mask, *rest) if name == "fan" and arguments[-4] == LISTED else (name, grid, *arguments)
