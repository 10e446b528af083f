"""Rules that work coordinate by coordinate: compiled kernels and sorting networks against plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_helpers import normal
from gradless.collab.aggregation import coordinate_rules


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), width=st.integers(1, 700), seed=st.integers(0, 99), wild=st.booleans(), wide=st.booleans())
def test_compiled_columns_have_the_bits_of_the_reference(n, width, seed, wild, wide):
    pytest.importorskip("numba", reason="the compiled kernels need numba")
    x = normal(n, width, seed=seed, dtype=torch.float64 if wide else torch.float32)
    x = x.round(decimals=1) if seed % 2 else x  # ties, and zeros of both signs
    if wild:
        x.view(-1)[:: 1 + seed] = (float("nan"), float("inf"), -float("inf"))[seed % 3]
    f = (n - 1) // 2
    cases = [
        (coordinate_rules.mean,),
        (coordinate_rules.middle, f, n - f),
        (coordinate_rules.middle, 0, n),
        (coordinate_rules.around, f),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for kernel, *ranks in cases:
            patch.delenv("GRADLESS_KERNELS", raising=False)
            fast = kernel(x, *ranks)
            patch.setenv("GRADLESS_KERNELS", "reference")
            slow = kernel(x, *ranks)
            bits = torch.int64 if wide else torch.int32
            assert torch.equal(fast.nan_to_num(nan=7.0).view(bits), slow.nan_to_num(nan=7.0).view(bits))


@given(n=st.integers(1, 70), data=st.data())
@settings(max_examples=60, deadline=None)
def test_networks_sort_the_ranks_that_are_asked_for(n, data):
    begin = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(begin + 1, n))
    low, high = coordinate_rules.network(n, begin, end)
    rows = normal(n, 50, seed=n).numpy()
    wires = rows.copy()
    for a, b in zip(low, high, strict=True):
        wires[[a, b]] = np.minimum(wires[a], wires[b]), np.maximum(wires[a], wires[b])
    assert np.array_equal(wires[begin:end], np.sort(rows, 0)[begin:end])
