"""Generated invalid command lines, settings and damaged run files end at once in exit code 2 and one sentence.

`fuzz` has the generator; `fuzz.case(world, seed)` makes a case again.
"""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch

import fuzz
import fuzz_endings
from gradless.bench.forkserver import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="no fork here that a library with threads survives")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield fuzz.World(tmp_path_factory.mktemp("fuzz") / "world")
    torch.set_num_threads(threads)


def endings(world: fuzz.World, seeds: range, counted: Counter[str]) -> None:
    """Try the cases of some seeds, and count how often each ending came."""
    faults = []
    for seed in seeds:
        case = fuzz.case(world, seed)
        ending = fuzz_endings.run(world, case)
        fault = fuzz_endings.fault(case, ending)
        if fault:
            faults.append(f"seed {seed}, {case.kind}, {case.about}: {fault}")
        counted[f"{case.kind}: exit code {ending.code}"] += 1
        shutil.rmtree(world.folder / "cases")
    counted["faults"] = len(faults)
    assert not faults, "\n".join(faults)


def test_every_command_is_tried(world, tmp_path):
    assert set(world.commands(tmp_path)) == {name for name, _ in fuzz.walk()}


def test_a_few_cases(world):
    counted: Counter[str] = Counter()
    endings(world, range(6), counted)
    assert counted.total() == 6


@pytest.mark.sweep
def test_a_hundred_cases(world):
    counted: Counter[str] = Counter()
    endings(world, range(100, 200), counted)
    assert sum(count for name, count in counted.items() if name.endswith("2")) > 80


@pytest.mark.long
@pytest.mark.parametrize("start", range(1000, 2000, 250))
def test_a_thousand_cases(world, record_property, start):
    counted: Counter[str] = Counter()
    try:
        endings(world, range(start, start + 250), counted)
    finally:
        for name, count in sorted(counted.items()):
            record_property(name, count)


@pytest.mark.parametrize(
    ("code", "stderr", "changed", "fault"),
    [
        (2, "gradless: no", (), ""),
        (2, "gradless: no\nand more", (), "2 lines"),
        (2, "gradless: no", ("out",), "it wrote out"),
        (2, "no", (), "1 lines"),
        (0, "", (), "exit code 0"),
        (None, "", (), "still at work"),
        (70, "Traceback (most recent call last)\nKeyError: 3", (), "a traceback: KeyError: 3"),
        (2, "gradless: \x1b[1m", (), "not printable"),
    ],
)
def test_what_counts_as_a_fault(code, stderr, changed, fault):
    case = fuzz.Case("option", "", [])
    actual = fuzz_endings.fault(case, fuzz_endings.Ending(code, 0.1, stderr, changed))
    assert actual.startswith(fault)
    assert bool(actual) == bool(fault)
