"""Rows as tensors, arrays and lists, of any shape: the result is of the same kind; what is no row is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collab_helpers import normal
from gradless.collab.aggregators import (
    Aggregator,
    Remembering,
    arc,
    centred_clipping,
    clipping,
    compose,
    mean,
    named,
    nnm,
    trimmed_mean,
)
from gradless.errors import BadInput

RULES = ["mean", "krum", "trimmed-mean", "nnm+multi-krum", "arc+mean", "geometric-median"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 2), (1,)])
def test_tensors_of_any_shape(name, dtype, shape):
    rule, x = named(name, f=2), normal(9, *shape).to(dtype)
    flat = rule(x.flatten(1), pivot=1)
    for rows in (x, list(x), tuple(x), x.clone().requires_grad_(), x.transpose(0, -1).contiguous().transpose(0, -1)):
        result = rule(rows, pivot=1)
        assert result.shape == shape
        assert result.dtype == dtype
        assert not result.requires_grad
        assert torch.equal(result.flatten(), flat)
    assert rule.for_all(x, [0, 1]).shape == (2, *shape)
    assert nnm(f=2)(x).shape == x.shape


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", ">f4"])
def test_arrays_of_any_layout(name, dtype):
    rule, x = named(name, f=2), normal(9, 2, 3).numpy().astype(dtype)
    flat = rule(torch.from_numpy(x.astype(x.dtype.newbyteorder("="))).flatten(1))
    frozen = x.copy()
    frozen.setflags(write=False)
    for rows in (x, list(x), frozen, x[::-1][::-1], np.asfortranarray(x)):
        original = x.copy()
        result = rule(rows)
        assert isinstance(result, np.ndarray)
        assert result.shape == (2, 3)
        assert result.dtype == x.dtype.newbyteorder("=")
        assert np.array_equal(result.ravel(), flat.numpy())
        assert np.array_equal(x, original)
    assert isinstance(clipping(norm=1.0)(x), np.ndarray)


def test_lists_of_numbers_are_float64_arrays():
    result = mean()([[1, 2], [3, 5.0]])
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float64
    assert result.tolist() == [2.0, 3.5]
    assert trimmed_mean(f=1)([(1, 2), [3, 4], (5, 6)]).tolist() == [3.0, 4.0]


BAD = {
    "nothing": ([], "no rows"),
    "no rows": (torch.zeros(0, 3), "no rows"),
    "an array without rows": (np.zeros((0, 3)), "no rows"),
    "scalars": ([1.0, 2.0, 3.0], "a row is a vector of numbers"),
    "a vector": (torch.zeros(3), "a row is a vector of numbers"),
    "a number": (torch.tensor(1.0), "a row is a vector of numbers"),
    "ragged lists": ([[1.0, 2.0], [3.0]], "rows differ"),
    "ragged within": ([[[1.0], [2.0, 3.0]]], "row 0 is no vector of numbers"),
    "ragged tensors": ([torch.zeros(2), torch.zeros(3)], "rows differ"),
    "two dtypes": ([torch.zeros(2), torch.zeros(2).double()], "rows differ"),
    "ragged arrays": ([np.zeros(2), np.zeros(3)], "rows differ"),
    "tensors and arrays": ([torch.zeros(2), np.zeros(2)], "row 0 is no vector of numbers"),
    "whole numbers": (torch.zeros(3, 2, dtype=torch.int64), "rows are torch.int64: give float16"),
    "an array of whole numbers": (np.zeros((3, 2), int), "rows are int64: give float16"),
    "truths": (np.zeros((3, 2), bool), "rows are bool"),
    "complex numbers": (np.zeros((3, 2), complex), "rows are complex128"),
    "long doubles": (np.zeros((3, 2), np.longdouble), "rows are "),
    "words": ([["a", "b"], ["c", "d"]], "row 0 is no vector of numbers"),
    "lists of tensors": ([[torch.zeros(2), torch.zeros(3)]] * 3, "row 0 is no vector of numbers"),
    "lists of parameters": ([[torch.nn.Parameter(torch.zeros(2))]] * 3, "row 0 is no vector of numbers"),
    "tables of names": ([{"w": 1.0}] * 3, "row 0 is no vector of numbers"),
    "None": (None, "rows are a NoneType"),
    "a word": ("abc", "rows are a str"),
    "a generator": ((row for row in torch.zeros(3, 2)), "rows are a generator"),
    "sparse": (torch.zeros(3, 2).to_sparse(), "to_dense"),
    "masked": (np.ma.masked_array(np.zeros((3, 2))), "filled"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("rule", [mean(), trimmed_mean(f=0), nnm(f=0), arc(f=0)], ids=lambda rule: rule.name)
def test_what_is_no_row_is_refused(name, rule):
    rows, sentence = BAD[name]
    with pytest.raises(BadInput, match=sentence) as refused:
        rule(rows)
    assert "\n" not in str(refused.value)
    assert "float64: convert" not in str(refused.value)


def test_a_dense_rule_gets_a_matrix():
    seen = []
    rule = Aggregator.dense("mine", lambda rows, pivot: seen.append(rows.shape) or rows.mean(0))
    assert rule(np.ones((3, 2, 2), np.float32)).shape == (2, 2)
    assert seen == [(3, 4)]


# ---------------------------------------------------------------------------------------------------------------
# centred clipping from a start


def clipped_from(x, v, radius, iterations):
    """The paper's loop, in float64."""
    for _ in range(iterations):
        away = x - v
        lengths = np.linalg.norm(away, axis=1, keepdims=True)
        v = v + (away * np.minimum(1.0, radius / np.maximum(lengths, 1e-300))).mean(0)
    return v


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("radius", [0.5, 10.0])
def test_centred_clipping_starts_where_it_is_told(iterations, radius):
    x, v = normal(9, 30).numpy(), 4 * normal(30, seed=1).numpy()
    rule = centred_clipping(radius=radius, iterations=iterations)
    assert np.allclose(rule(x, start=v), clipped_from(x, v, radius, iterations), atol=1e-12)
    assert np.allclose(rule(x, start=0 * v), rule(x), atol=1e-12)
    for kind in (torch.from_numpy(v), v.tolist()):
        assert np.allclose(rule(torch.from_numpy(x), start=kind), clipped_from(x, v, radius, iterations), atol=1e-12)
    mixed = nnm(f=2)(x)
    chain = compose(nnm(f=2), rule)
    assert np.allclose(chain(x, start=v), clipped_from(mixed, v, radius, iterations), atol=1e-12)
    assert chain.for_all(x.reshape(9, 5, 6), [0, 3], start=v.reshape(5, 6)).shape == (2, 5, 6)
    single = rule(torch.from_numpy(x).float(), start=torch.from_numpy(v))
    assert single.dtype == torch.float32
    assert np.allclose(single, clipped_from(x, v, radius, iterations), atol=1e-5)


def test_memory_is_the_last_aggregate():
    rule, v = Remembering(centred_clipping(radius=0.7, iterations=1)), np.zeros(20)
    for t in range(6):
        x = normal(7, 20, seed=t).numpy() + 3
        v = clipped_from(x, v, 0.7, 1)
        assert np.allclose(rule(x), v, atol=1e-12)
    assert np.allclose(rule.last, v)
    again = Remembering(rule.rule, start=rule.last)
    assert np.array_equal(again(x), rule(x))


def test_memory_does_not_keep_what_is_no_number():
    rule = Remembering(centred_clipping(radius=1.0))
    x = normal(5, 3)
    first = rule(x)
    x[1:4] = float("nan")
    rule(x)
    assert bool(torch.as_tensor(rule.last).isfinite().all())
    x[:] = float("inf")
    rule(x)
    assert bool(torch.as_tensor(rule.last).isfinite().all())
    assert first.shape == (3,)


@pytest.mark.parametrize("bad", [np.zeros(4), [float("nan")] * 3, np.array(1.0), "abc"])
def test_a_start_is_a_vector_like_a_row(bad):
    with pytest.raises(BadInput):
        centred_clipping(radius=1.0)(np.zeros((3, 3)), start=bad)


def test_other_rules_start_nowhere():
    with pytest.raises(BadInput, match="median starts nowhere: leave start out"):
        named("median")(np.zeros((3, 3)), start=np.zeros(3))
    with pytest.raises(BadInput, match="nothing to remember"):
        Remembering(named("nna", f=1))


# ---------------------------------------------------------------------------------------------------------------
# in place


@pytest.mark.parametrize("mix", [clipping(norm=1.5), arc(f=2)], ids=lambda mix: mix.name)
def test_rows_are_cut_in_place_where_that_is_asked_for(mix):
    for x in (normal(9, 2, 3), normal(9, 6).half(), normal(9, 6).numpy()):
        expected = mix(x)
        original = x.copy() if isinstance(x, np.ndarray) else x.clone()
        assert mix(x, in_place=True) is x
        assert (x == expected).all()
        assert not (x == original).all()


def test_what_cannot_be_cut_in_place_is_refused():
    x = normal(9, 6)
    frozen = x.numpy().copy()
    frozen.setflags(write=False)
    for rows in (list(x), x.T.contiguous().T, frozen, x.numpy()[::-1], x.clone().requires_grad_()):
        with pytest.raises(BadInput, match="cannot change these rows in place"):
            clipping(norm=1.0)(rows, in_place=True)
    with pytest.raises(BadInput, match="nnm cannot change"):
        nnm(f=2)(x, in_place=True)
