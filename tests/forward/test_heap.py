"""No fresh pages in a step on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gradless.forward import heap

# Six activations of 16 MB at one point are alive together: more than glibc keeps by itself.
STEPS = """
import resource, torch, gradless as gl
torch.set_num_threads(1)
layers = torch.nn.ModuleList(torch.nn.Linear(64, 512) for _ in range(6))
inputs = torch.ones(8192, 64)
closure = lambda: sum(out.mean() for out in [layer(inputs) for layer in layers])
for engine in ("stream", "dual"):
    opt = gl.mezo(layers.named_parameters(), engine=engine, lr=1e-6)
    counts = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        opt.step(closure)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(sorted(counts[4:])[2])  # one of the steps may still move a piece of the heap
    assert opt.engine == engine
"""
needs_glibc = pytest.mark.skipif(heap._mallopt() is None, reason="a setting of glibc, or malloc is tuned already")


def faults(**environment):
    """Minor faults of a warm step of both engines, the median of five."""
    command = [sys.executable, "-c", STEPS]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120)
    return [int(line) for line in run.stdout.split()]


@needs_glibc
def test_a_warm_step_takes_no_fresh_pages():
    assert max(faults()) <= 500


@pytest.mark.sweep
@needs_glibc
@pytest.mark.parametrize(
    "environment", [{"GRADLESS_HEAP": "system"}, {"MALLOC_TOP_PAD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=0"}]
)
def test_the_heap_is_left_alone_where_that_is_asked_for(environment):
    """These steps take fresh pages when nothing is set, so the test above can fail."""
    assert min(faults(**environment)) > 5000


def test_free_memory_goes_back_when_the_last_owner_is_gone(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda *setting: calls.append(setting) or 1)
    monkeypatch.setattr(heap, "_owners", 0)
    first, second = type("Owner", (), {})(), type("Owner", (), {})()
    heap.keep(first)
    kept = list(calls)
    heap.keep(second)
    del first
    assert calls == kept
    assert {name for name, _ in kept} == {heap.M_TRIM_THRESHOLD, heap.M_MMAP_THRESHOLD}
    del second
    assert dict(calls[len(kept) :]) == {heap.M_TRIM_THRESHOLD: 64 << 20, heap.M_MMAP_THRESHOLD: 32 << 20}
