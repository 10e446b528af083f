"""Inner products around a centre: as precise as float64 where it matters, whatever is sent."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_helpers import normal
from gradless.collab.aggregation import passes, threads
from gradless.collab.aggregation.gram import combine, measure
from gradless.collab.aggregators import nna, nnm
from gradless.errors import BadInput

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def true_squared(rows):
    wide = rows.double()
    return (wide[:, None] - wide).square().sum(2)


@pytest.fixture(params=["compiled", "reference"])
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    else:
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width"), [(1, 1), (2, 3), (5, 511), (9, 513), (8, 9000)])
def test_distances_and_norms(backend, dtype, n, width):
    rows = (normal(n, width) * 0.1 + normal(1, width, seed=1)).to(dtype)
    gram = measure((rows,))
    assert gram.rows == n
    assert bool(gram.finite.all())
    assert torch.allclose(gram.squared(), true_squared(rows), rtol=1e-5, atol=0)
    assert torch.allclose(gram.norms(), rows.double().norm(dim=1), rtol=1e-6, atol=0)


def test_vectors_that_are_long_and_close_to_each_other(backend):
    # torch.cdist is off by a factor of five here: it multiplies out without a centre.
    rows = (normal(30, 10_000) * 0.045 / 2**0.5 / 100 + 3.16 * normal(1, 10_000, seed=1)).float()
    assert rows[0].norm() > 300
    true = true_squared(rows)
    squared = measure((rows,)).squared()
    apart = true > 0
    assert float(((squared - true).abs()[apart] / true[apart]).max()) < 1e-5


@pytest.mark.parametrize("n", [26, 30])
def test_neighbours_are_those_of_float64(backend, n):
    rows = (normal(n, 40_000) * 1e-3 + normal(1, 40_000, seed=1)).float()
    truth = true_squared(rows).fill_diagonal_(-1).sort(stable=True).indices[:, : n - 5].sort().values
    gram = measure((rows,))
    weights = nnm(f=5).weights(gram, 0)
    assert torch.equal(weights.nonzero()[:, 1].view(n, n - 5), truth)
    for pivot in range(n):
        assert torch.equal(nna(f=5).weights(gram, pivot).nonzero().flatten(), truth[pivot])


def test_short_rows_among_long_ones_are_measured_against_the_origin(backend):
    # What attackers use: directions much shorter than the honest rows, of which they make combinations.
    honest = (normal(6, 3000) * 1e-3 + normal(1, 3000, seed=1)).float()
    direction = (normal(1, 3000, seed=2) * 1e-4).float()
    gram = measure((honest, direction))
    assert gram.near.tolist() == [True] * 6 + [False]
    sent = torch.tensor([[1 / 6] * 6 + [2.0]], dtype=torch.float64)
    everything = torch.cat((torch.eye(6, 7, dtype=torch.float64), sent))
    wide = everything @ torch.cat((honest, direction)).double()
    assert torch.allclose(combine(gram, everything).squared(), true_squared(wide), rtol=1e-5, atol=1e-12)
    assert torch.allclose(combine(gram, everything).norms(), wide.norm(dim=1), rtol=1e-6)


def test_combinations_and_distances_between_them():
    rows = normal(5, 40)
    gram = measure((rows[:2], rows[2:]))
    weights = normal(3, 5, seed=1)
    assert torch.allclose(combine(gram, weights).squared(), true_squared(weights @ rows))
    assert torch.allclose(combine(gram, weights).norms(), (weights @ rows).norm(dim=1))
    far = gram.between(weights[0], weights[1])
    assert far == pytest.approx(float((weights[0] @ rows - weights[1] @ rows).square().sum()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("everywhere", [False, True])
def test_rows_that_are_not_finite_are_far_away(backend, bad, everywhere):
    rows = normal(7, 20_000, dtype=torch.float32)
    clean = measure((rows,)).squared()
    for i in (0, 4):
        rows[i, slice(None) if everywhere else 12_345] = bad  # 12345: between the columns of the sample
    gram = measure((rows,), centre=0)
    assert gram.finite.tolist() == [False, True, True, True, False, True, True]
    squared = gram.squared()
    assert bool(squared[0].isinf().all())
    assert bool(squared[:, 4].isinf().all())
    keep = gram.finite.nonzero().flatten()
    assert torch.allclose(squared[keep][:, keep], clean[keep][:, keep], rtol=1e-5)
    uses = combine(gram, torch.eye(7, dtype=torch.float64) + torch.eye(7, dtype=torch.float64).roll(1, 1))
    assert uses.finite.tolist() == [False, True, True, False, False, True, False]
    assert gram.between(torch.eye(7)[0].double(), torch.eye(7)[1].double()) == float("inf")


def test_nothing_is_finite():
    gram = measure((torch.full((3, 4), float("nan")),))
    assert not bool(gram.finite.any())
    assert bool(gram.squared().isinf().all())


def test_a_poor_first_guess_is_replaced():
    rows = (normal(8, 5000) * 1e-4).float()
    rows[3] += 1e5
    guessed, free = measure((rows,), centre=3), measure((rows,))
    assert guessed.centre != 3
    apart = [i for i in range(8) if i != 3]
    true = true_squared(rows)[apart][:, apart]
    for gram in (guessed, free):
        assert torch.allclose(gram.squared()[apart][:, apart], true, rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), width=st.integers(1, 700), seed=st.integers(0, 99), cut=st.integers(0, 9))
def test_blocks_strides_and_inputs(n, width, seed, cut):
    rows = normal(n, width, seed=seed, dtype=torch.float32)
    original = rows.clone()
    whole = measure((rows,))
    blocks = (rows[: min(cut, n)], rows[min(cut, n) :])
    weights = normal(3, n, seed=seed + 1)
    results = [passes.product(weights, (rows,), whole.centre, whole.near, whole.finite)]
    for inputs in (blocks, (rows.T.contiguous().T,), (torch.cat((rows, rows), 1)[:, :width],)):
        gram = measure(inputs)
        assert torch.allclose(gram.inner, whole.inner, rtol=1e-6, atol=1e-9)
        results.append(passes.product(weights, inputs, gram.centre, gram.near, gram.finite))
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.allclose(results[0].double(), weights @ rows.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(rows, original)


def test_products_around_a_centre_keep_equal_rows_and_copies(backend):
    rows = normal(1, 1000, dtype=torch.float32).expand(6, 1000)
    gram = measure((rows,))
    weights = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    weights[1] = torch.eye(6)[2]
    out = passes.product(weights, (rows,), gram.centre, gram.near, gram.finite)
    assert torch.equal(out[0], rows[0])
    assert torch.equal(out[1], rows[0])


@pytest.mark.parametrize("known", [True, False])
def test_products_do_not_look_at_rows_of_weight_zero(backend, known):
    rows = normal(5, 3000, dtype=torch.float32)
    rows[1] = float("nan")
    rows[3, 7] = float("inf")
    gram = measure((rows,))
    weights = torch.tensor([[0.5, 0, 0.5, 0, 0], [0.5, 0, 0, 0.5, 0], [0, 1, 0, 0, 0]], dtype=torch.float64)
    frame = (gram.centre, gram.near, gram.finite) if known else ()
    out = passes.product(weights, (rows,), *frame)
    assert torch.allclose(out[0], (rows[0] + rows[2]) / 2)
    assert out[1].isinf().nonzero().flatten().tolist() == [7]
    assert not bool(out[1].isnan().any())
    assert bool(out[2].isnan().all())


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(BadInput, match="one row for each peer"):
        measure((torch.zeros(3),))
    with pytest.raises(BadInput, match="same kind of vector"):
        measure((torch.zeros(2, 3), torch.zeros(2, 4)))
    with pytest.raises(BadInput, match="same kind of vector"):
        measure((torch.zeros(2, 3), torch.zeros(2, 3).double()))
    with pytest.raises(BadInput, match="convert them"):
        measure((torch.zeros(2, 3, dtype=torch.int64),))
    with pytest.raises(BadInput, match="no rows"):
        measure((torch.zeros(0, 3),))


def test_denormal_numbers_are_zero_for_a_while_and_in_new_threads():
    tiny = torch.full((1,), torch.finfo(torch.float32).tiny)
    quotients = []
    with threads.without_denormals():
        other = threading.Thread(target=lambda: quotients.append(float(tiny / 4)))
        other.start()
        other.join()
        with threads.without_denormals():
            pass
        assert float(tiny / 4) == 0.0, "what was set outside stays"
    assert quotients == [0.0]
    assert float(tiny / 4) > 0.0
