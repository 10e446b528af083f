"""Serving perturbed weights: the numbers of a model that really has them, at the memory of one leaf."""

from __future__ import annotations

import ctypes
import warnings
from typing import Any

import pytest
import torch

import gradless as gl
import scoring_helpers as s
from gradless import lm, rng
from gradless.directions import gaussian, rademacher
from gradless.forward.engines import CHOICES
from gradless.forward.perturbed import PerturbedWeights
from gradless.forward.points import Point, Points
from gradless.forward.read_survey import ReadSurvey
from gradless.forward.scratch import Pool
from gradless.gradients import Mixture, combine
from gradless.lm import objectives, schemes
from gradless.lm.encode import encode
from gradless.optimizer import ZerothOrder

SCHEMES = ("full", "lora", "prefix", "prompt")
EPS = 1e-2
KEY = rng.probe_rounding_key(7)  # of 16-bit leaves


def tuned(architecture: str, scheme: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ZerothOrder]:
    model = lm.tiny(architecture)
    model.model.to(dtype)
    model = schemes.apply(model, scheme, seed=1, num_prefix=3, num_prompt=3)
    return model, ZerothOrder(schemes.trainable(model), seed=1)


def at(mixture: Mixture, scale: float) -> Points:
    """The point theta + scale * mixture."""
    return Points((Point(mixture, scale, KEY),))


def closures(model: Any) -> dict[str, Any]:
    """One loss for each way in which the output layer is read."""
    losses = {}
    for objective, examples in (("option_ce", s.single(model)), ("gold", s.single(model)), ("lm", s.single(model))):
        if objective == "lm" and model.masked:
            continue
        chosen = objectives.OBJECTIVES[objective]
        batches = objectives.prepare(model, chosen, [encode(model, example) for example in examples])
        losses[objective] = lambda chosen=chosen, batches=batches: objectives.loss_over(model, chosen, batches)
    return losses


def perturbed(opt: ZerothOrder, mixture: Mixture, scale: float) -> list[torch.Tensor]:
    """Really write theta + scale z into the model; returns what was there."""
    initial = [leaf.param.detach().clone() for leaf in opt.leaves]
    for leaf, value in zip(opt.leaves, initial, strict=True):
        z = mixture.leaf(leaf)  # float32, by the reference: no code of the served path
        leaf.param.data.copy_((value.float() + scale * z).to(value.dtype))
    return initial


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_served_losses_are_those_of_a_perturbed_model(architecture, scheme):
    model, opt = tuned(architecture, scheme)
    leaves = {id(leaf.param): leaf for leaf in opt.leaves}
    mixture, pool = Mixture((rng.direction_key(1, 0, 0),), (1.0,)), Pool()
    start = [leaf.param.detach().clone() for leaf in opt.leaves]
    for name, closure in closures(model).items():
        plain = float(closure())
        for sign in (1.0, -1.0):
            serving = PerturbedWeights(leaves, at(mixture, sign * EPS), pool=pool)
            serving.survey = ReadSurvey(leaves)
            with serving.survey, serving:
                served = closure()
            assert serving.survey.direct == set(), f"{name}: needs the in-place fallback"
            assert all(torch.equal(leaf.param, value) for leaf, value in zip(opt.leaves, start, strict=True))
            with PerturbedWeights(leaves, at(mixture, sign * EPS), pool=pool):
                assert torch.equal(closure(), served)  # with buffers that hold old values
            initial = perturbed(opt, mixture, sign * EPS)
            real = closure()
            for leaf, value in zip(opt.leaves, initial, strict=True):
                leaf.param.copy_(value)
            assert torch.equal(served, real), (name, float(served), float(real))
            assert float(served) != plain
        assert float(closure()) == plain
    # At most what one function reads: the largest leaf, and its bias if it has one.
    sizes = {rank: [leaf.param.nbytes for leaf in opt.leaves if leaf.param.ndim == rank] for rank in (1, 2)}
    assert sum(buffer.nbytes for buffer in pool.free) <= max(sizes[2]) + max(sizes[1], default=0)


@torch.no_grad()
@pytest.mark.parametrize("directions", [rademacher, gaussian], ids=["rademacher", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "roberta"])
def test_sixteen_bit_weights_are_served_as_they_would_be_written(architecture, dtype, directions):
    model = lm.tiny(architecture)
    model.model.to(dtype)
    model.model.requires_grad_(True)
    opt = ZerothOrder(schemes.trainable(model), seed=1, directions=directions())
    leaves = {id(leaf.param): leaf for leaf in opt.leaves}
    mixture = Mixture((rng.direction_key(1, 5, 0), rng.direction_key(1, 5, 1)), (0.5, -2.0))
    for closure in closures(model).values():
        with PerturbedWeights(leaves, at(mixture, EPS), pool=Pool()):
            served = closure()
        initial = [leaf.param.detach().clone() for leaf in opt.leaves]
        for leaf in opt.leaves:
            combine(leaf.param.detach(), leaf, mixture, amplitude=leaf.probe, scale=EPS, rounding=KEY)
        real = closure()
        for leaf, value in zip(opt.leaves, initial, strict=True):
            leaf.param.copy_(value)
        assert torch.equal(served, real)


@torch.no_grad()
@pytest.mark.parametrize("architecture", s.ARCHITECTURES)
def test_the_label_head_is_served(architecture):
    model = lm.tiny(architecture)
    examples = s.single(model)
    encoded = [encode(model, example) for example in examples]
    ids = tuple(option[0] for option in encoded[0].options)
    model = schemes.apply(model, "head", label_token_ids=ids)
    opt = ZerothOrder(schemes.trainable(model), seed=1)
    (leaf,) = opt.leaves
    chosen = objectives.OBJECTIVES["option_ce"]
    batches = objectives.prepare(model, chosen, encoded)
    mixture = Mixture((rng.direction_key(1, 0, 0),), (1.0,))
    with PerturbedWeights({id(leaf.param): leaf}, at(mixture, EPS)):
        served = objectives.loss_over(model, chosen, batches)
    perturbed(opt, mixture, EPS)
    assert torch.equal(served, objectives.loss_over(model, chosen, batches))


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["full", "prefix"])
def test_generation_is_served(scheme):
    model, opt = tuned("llama", scheme)
    answers = [example._replace(options=(), correct=(), answers=("good",)) for example in s.single(model)]
    chosen = objectives.OBJECTIVES["f1"]
    prompts = chosen.prepare(model, [encode(model, example) for example in answers])._replace(new_tokens=5)
    from gradless.lm.generation import generate

    leaves = {id(leaf.param): leaf for leaf in opt.leaves}
    mixture = Mixture((rng.direction_key(1, 0, 0),), (1.0,))
    plain = generate(model, prompts)
    serving = PerturbedWeights(leaves, at(mixture, 0.5), pool=Pool())
    serving.survey = ReadSurvey(leaves)
    with serving.survey, serving:
        served = generate(model, prompts)
    assert serving.survey.direct == set()
    perturbed(opt, mixture, 0.5)
    assert generate(model, prompts) == served != plain


class AtItsAddress(torch.autograd.Function):
    """A product with a weight that is read where it lies, as Triton kernels read theirs."""

    @staticmethod
    def forward(ctx, x, weight):
        address = weight.data_ptr()
        values = (ctypes.c_float * weight.numel()).from_address(address)
        return x * torch.tensor(list(values))


@pytest.mark.parametrize("engine", CHOICES)
def test_a_weight_that_is_read_by_its_address_is_perturbed(engine):
    layer, weight = torch.nn.Linear(4, 4), torch.nn.Parameter(torch.ones(4))
    x = torch.sin(torch.arange(32.0)).view(8, 4)

    def coeffs(multiply, engine):
        opt = gl.mezo([*layer.named_parameters(), ("scale", weight)], lr=0.0, eps=1e-2, engine=engine, seed=3)
        return opt.probe(lambda: multiply(layer(x), weight).square().mean()).sketch.coeffs

    expected = coeffs(torch.mul, "in-place")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert coeffs(AtItsAddress.apply, engine) == pytest.approx(expected, rel=1e-3)
    assert not any("freeze them" in str(one.message) for one in told)
    assert any("below the level" in str(one.message) for one in told) == (engine != "in-place")


@torch.no_grad()
def test_an_error_inside_leaves_the_weights_alone():
    model, opt = tuned("opt", "full")
    leaves = {id(leaf.param): leaf for leaf in opt.leaves}
    initial = [leaf.param.detach().clone() for leaf in opt.leaves]
    mixture = Mixture((3,), (1.0,))
    for in_place in (frozenset(), frozenset(leaves)):
        with pytest.raises(KeyboardInterrupt), PerturbedWeights(leaves, at(mixture, EPS), in_place=in_place):  # noqa: PT012
            next(iter(closures(model).values()))()
            raise KeyboardInterrupt
        assert all(torch.equal(leaf.param, value) for leaf, value in zip(opt.leaves, initial, strict=True))


def test_the_pool_keeps_no_more_than_the_largest():
    pool = Pool()
    for size in (10, 1000, 20, 500):
        buffer = pool.take(size, torch.float32, torch.device("cpu"))
        assert buffer.numel() >= size
        pool.give([buffer])
    assert [buffer.numel() for buffer in pool.free] == [1000]
    other = pool.take(5, torch.bfloat16, torch.device("cpu"))
    assert other.dtype == torch.bfloat16
    two = [pool.take(10, torch.float32, torch.device("cpu")), pool.take(10, torch.float32, torch.device("cpu"))]
    assert two[0].data_ptr() != two[1].data_ptr()
