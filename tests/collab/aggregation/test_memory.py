"""Results lie in memory of earlier ones, but never in that of one which somebody still holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collab_helpers import normal
from gradless.collab.aggregation import memory
from gradless.collab.aggregators import clipping, median, nna

WIDTH = 1 + memory.LARGE // 4 // 5  # five rows are just large enough


@pytest.fixture(autouse=True)
def nothing_waits():
    memory._free.clear()
    yield
    memory._free.clear()


@pytest.mark.parametrize("call", [clipping(norm=1.0), lambda x: nna(f=1).for_all(x, range(5))], ids=["rows", "results"])
def test_a_result_takes_the_place_of_one_that_nobody_holds(call):
    rows = normal(5, WIDTH)
    first = call(rows)
    expected, address = first.clone(), first.data_ptr()
    second = call(rows)
    assert second.data_ptr() != address, "the first one is held"
    assert torch.equal(first, second)
    part = first[2:, 5:]
    del first
    assert call(rows).data_ptr() != address, "a view holds it"
    assert torch.equal(part, expected[2:, 5:])
    del part
    assert call(rows).data_ptr() == address


def test_an_array_holds_memory_too():
    rows = normal(5, WIDTH).numpy()
    first = clipping(norm=1.0)(rows)
    address, expected, view = first.ctypes.data, first.copy(), first[1]
    del first
    clipping(norm=1.0)(2 * rows + 1)
    assert np.array_equal(view, expected[1])
    del view
    assert clipping(norm=1.0)(rows).ctypes.data == address


@pytest.mark.parametrize("kind", [list, lambda x: [row.numpy() for row in x]], ids=["tensors", "arrays"])
def test_lists_are_stacked_in_memory_that_comes_back(kind):
    rows = normal(5, WIDTH)
    expected = median()(rows)
    for _ in range(2):
        assert np.array_equal(np.asarray(median()(kind(rows))), expected.numpy())
    assert 1 <= len(memory._free) <= 2, "of the rows, and of the result"


def test_little_memory_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 3 * memory.LARGE)
    lent = [memory.lend(memory.LARGE + i) for i in range(5)]
    too_large = memory.lend(memory.KEPT + 1)
    del lent, too_large
    assert sum(block.nbytes for block in memory._free) <= memory.KEPT
    kept = len(memory._free)
    assert kept == 2
    assert memory.lend(3 * memory.LARGE).nbytes == 3 * memory.LARGE, "memory that is too small serves nobody"
    assert memory.lend(memory.LARGE - 1).base is None, "small results are new"
