"""The local step of a peer, counted and compared with what is written in the papers."""

from __future__ import annotations

import math

import pytest
import torch

from collab_helpers import Quadratic
from gradless.collab import contraction
from gradless.collab.algorithms import GRADIENTS, PARAMETERS
from gradless.collab.contraction import mixing
from gradless.collab.learners.parameters import Local, ParameterPeers

TARGETS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 8.0]])


def peers(poison: bool = False, **local) -> ParameterPeers:
    settings = {"lr": lambda step: 0.5, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 25, **local}
    return ParameterPeers(Quadratic(TARGETS.clone()), Local(**settings), poison=poison)


def test_the_first_step_moves_each_peer_by_its_own_gradient_alone():
    """Published code let all peers share one tensor, which then moved by the sum over peers."""
    group = peers(momentum=0.9)
    rows = group.propose(0, PARAMETERS)
    assert torch.allclose(rows, 0.5 * (1 - 0.9) * TARGETS)


def test_momentum_is_an_average_from_zero_without_correction():
    group = peers(momentum=0.9)
    theta, m = torch.zeros(4, 2), torch.zeros(4, 2)
    for step in range(5):
        m = 0.9 * m + 0.1 * (theta - TARGETS)
        theta = theta - 0.5 * m
        assert torch.allclose(group.propose(step, PARAMETERS), theta, atol=1e-6)
        group.accept(step, PARAMETERS, group.theta.clone())


def test_what_is_mixed_for_all_is_copied_for_each():
    group = peers()
    group.propose(0, PARAMETERS)
    group.accept(0, PARAMETERS, torch.tensor([[1.0, 1.0]]).expand(4, -1))
    group.theta[0] = 5.0
    assert torch.equal(group.theta[1], torch.ones(2))


def test_weight_decay_pulls_to_zero():
    group = peers(weight_decay=0.1)
    group.accept(0, PARAMETERS, torch.ones(4, 2))
    expected = torch.ones(4, 2) - 0.5 * (torch.ones(4, 2) - TARGETS + 0.1)
    assert torch.allclose(group.propose(0, PARAMETERS), expected)


def test_models_may_be_mixed_several_times():
    group = peers(rounds=3)
    tags = group.exchanges(0)
    assert tags == ("parameters", "parameters 2", "parameters 3")
    first = group.propose(0, tags[0]).clone()
    group.accept(0, tags[0], first.mean(0).expand(4, -1))
    assert torch.equal(group.propose(0, tags[1]), first.mean(0).expand(4, -1))  # no second local step


def test_learn_mixes_the_fresh_gradients_of_all():
    """Published code let only peer 0's fresh gradient in: 0.25 for a mean of 2.5."""
    group = peers(gradients_first=True)
    assert group.exchanges(0) == (GRADIENTS, PARAMETERS)
    gradients = group.propose(0, GRADIENTS)
    assert torch.equal(gradients, -TARGETS)
    group.accept(0, GRADIENTS, gradients.mean(0).expand(4, -1))
    assert torch.allclose(group.propose(0, PARAMETERS), 0.5 * torch.tensor([2.5, 2.0]).expand(4, -1))


@pytest.mark.parametrize(
    ("steps", "batch", "growing", "samples"),
    [(600, 25, False, 15_000), (600, 25, True, 180_300), (2000, 50, False, 100_000), (2000, 50, True, 2_001_000)],
)
def test_examples_are_counted(steps, batch, growing, samples):
    group = peers(batch_size=batch, growing=growing)
    for step in range(steps):
        group.propose(step, PARAMETERS)
    assert group.samples == samples


def test_a_poisoned_peer_takes_the_same_step_from_the_mean_model():
    group = peers(poison=True, momentum=0.9)
    m, centre = torch.zeros(1, 2), torch.zeros(1, 2)
    for step in range(3):
        centre = group.theta.mean(0, keepdim=True)
        group.propose(step, PARAMETERS)
        m = 0.9 * m + 0.1 * (centre + TARGETS.mean(0))
        assert torch.allclose(group.poisoned(step, PARAMETERS), centre - 0.5 * m, atol=1e-6)
        group.accept(step, PARAMETERS, group.theta.clone())


def test_poisoned_peers_start_from_the_mean_of_models_that_are_finite():
    group = peers(poison=True)
    group.theta[3] = math.nan
    centre = group.theta[:3].mean(0, keepdim=True)
    group.propose(0, PARAMETERS)
    assert torch.allclose(group.poisoned(0, PARAMETERS), centre - 0.5 * (centre + TARGETS.mean(0)))


def test_a_poisoned_peer_of_learn_sends_its_gradient_and_then_its_model():
    group = peers(poison=True, gradients_first=True)
    group.propose(0, GRADIENTS)
    assert torch.allclose(group.poisoned(0, GRADIENTS), TARGETS.mean(0, keepdim=True))
    group.accept(0, GRADIENTS, -TARGETS)
    group.propose(0, PARAMETERS)
    assert torch.allclose(group.poisoned(0, PARAMETERS), -0.5 * TARGETS.mean(0, keepdim=True))


# ---------------------------------------------------------------------------------------------------------------
# what mixing did


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_alpha_and_lambda_are_those_of_the_definition(offset):
    draw = torch.Generator().manual_seed(0)
    before = torch.randn(7, 70_000, generator=draw) + offset
    weights = torch.rand(7, 7, generator=draw)
    after = (weights / weights.sum(1, keepdim=True)) @ before + 0.1
    x, y = before.double(), after.double()
    spread = (x - x.mean(0)).square().sum(1).mean()
    measured = mixing(before, after)
    assert measured.alpha == pytest.approx(float((y - y.mean(0)).square().sum(1).mean() / spread), rel=1e-4)
    assert measured.lam == pytest.approx(float((y.mean(0) - x.mean(0)).square().sum() / spread), rel=1e-4)
    assert measured.consensus == pytest.approx(float((y - y.mean(0)).square().sum(1).mean().sqrt()), rel=1e-4)


def test_equal_rows_have_no_alpha():
    measured = mixing(torch.ones(3, 4), torch.ones(3, 4))
    assert measured.alpha != measured.alpha
    assert measured.consensus == 0.0


def parting(before, after):
    """Measured from the definition, in float64."""
    x, y = before.double(), after.double()
    spread = (x - x.mean(0)).square().sum(1).mean()
    apart = (y - y.mean(0)).square().sum(1).mean()
    return float(apart / spread), float((y.mean(0) - x.mean(0)).square().sum() / spread), float(apart.sqrt())


@pytest.mark.few(2)
@pytest.mark.parametrize("kernels", ["compiled", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_ways_of_measuring_agree(monkeypatch, kernels, dtype):
    if kernels == "reference":
        monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    draw = torch.Generator().manual_seed(1)
    before = (torch.randn(5, 400_000, generator=draw) * 1e-2 + 5.0).to(dtype)
    after = (before.double().mean(0) + 1e-3 * torch.randn(5, 400_000, generator=draw)).to(dtype)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    in_one_pass = contraction._in_one_pass(before, after)
    assert (in_one_pass is None) == (kernels == "reference" or dtype == torch.bfloat16)
    assert list(mixing(before, after)) == pytest.approx(parting(before, after), rel=tolerance)
    once = after[:1].expand(5, -1)  # mixed once for all
    assert mixing(before, once).consensus == 0.0
    assert mixing(before, once).lam == pytest.approx(parting(before, once)[1], rel=tolerance)
    columns = before.T.contiguous().T  # not side by side in memory
    assert list(mixing(columns, after)) == pytest.approx(parting(before, after), rel=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_broken_peer_is_left_out_of_what_mixing_did(bad):
    draw = torch.Generator().manual_seed(2)
    before, after = torch.randn(6, 900, generator=draw), torch.randn(6, 900, generator=draw) * 0.1
    before[2, 7] = after[4, 0] = bad
    kept = [0, 1, 3, 5]
    assert list(mixing(before, after)) == pytest.approx(parting(before[kept], after[kept]), rel=1e-4)


def test_peers_that_agree_on_what_is_too_large_have_diverged():
    large = torch.full((3, 40), 1e25)
    assert mixing(large, large.clone()).consensus == math.inf
