"""No fresh pages in a step on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradless.forward import heap

# Six activations of 16 MB at one point are alive together: more than glibc keeps by itself.
STEPS = """
import resource, statistics, sys, threading, torch, gradless as gl
case = sys.argv[1]
torch.set_num_threads(1)
layers = torch.nn.ModuleList(torch.nn.Linear(64, 512) for _ in range(6))
inputs = torch.ones(16384, 64)
rows = {"growing": range(4096, 16384, 1024), "thread": [2048] * 12}.get(case, [8192] * 12)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def steps(engine):
    batch = None
    closure = lambda: sum(out.mean() for out in [layer(batch) for layer in layers])
    opt = gl.mezo(layers.named_parameters(), engine=engine, lr=1e-6)
    counts = []
    for length in rows:
        batch = inputs[:length]
        before = faults()
        opt.step(closure)
        counts.append(faults() - before)
        if case == "evaluated":
            with torch.no_grad():
                closure()
    print(statistics.median(counts[5:]))  # a step may still move a block of the heap, a thread's more often
    assert opt.engine == engine

for engine in ("stream", "dual"):
    work = threading.Thread(target=steps, args=(engine,))
    work.run() if case != "thread" else (work.start(), work.join())
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_glibc = pytest.mark.skipif(heap._mallopt() is None, reason="a setting of glibc, or malloc is tuned already")
needs_huge_pages = pytest.mark.skipif(
    not HUGE.exists() or "[never]" in HUGE.read_text(encoding="ascii"), reason="the kernel offers no huge pages"
)


def faults(case="fixed", **environment):
    """Minor faults of a warm step of both engines, the median of seven."""
    command = [sys.executable, "-c", STEPS, case]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120)
    return [int(line) for line in run.stdout.split()]


@needs_glibc
def test_a_warm_step_takes_no_fresh_pages():
    assert max(faults()) <= 500


@pytest.mark.sweep
@needs_glibc
@pytest.mark.parametrize("case", ["evaluated", "thread", pytest.param("growing", marks=needs_huge_pages)])
def test_a_warm_step_takes_no_fresh_pages_elsewhere(case):
    """Between evaluations, outside of the main thread, whose heap is another one, and with larger batches than ever."""
    assert max(faults(case)) <= 500


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
    monkeypatch.setattr(heap, "_owners", set())
    first, second = type("Owner", (), {})(), type("Owner", (), {})()
    heap.keep(first)
    kept = list(calls)
    heap.keep(second)
    del first
    assert calls == kept
    assert {name for name, _ in kept} == {heap.M_TRIM_THRESHOLD, heap.M_MMAP_THRESHOLD, heap.M_TOP_PAD}
    del second
    assert dict(calls[len(kept) :]) == {
        heap.M_TRIM_THRESHOLD: 64 << 20,
        heap.M_MMAP_THRESHOLD: 32 << 20,
        heap.M_TOP_PAD: 128 << 10,
    }
