"""The networks: their sizes, their initial values, and that making them draws nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from gradless.collab.learners.nets import NETS, Dropout, blank, initial, named, sized, slots
from gradless.errors import BadInput

PUBLISHED = {
    "cnn": 431_080,
    "cnn-mnist": 431_080,
    "mlp": 79_510,
    "empire-cnn": 1_310_922,
    "logreg": 7_850,
    "mlp-digits": 4_810,
}


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_as_published(name):
    net = NETS[name]
    module = net.make()
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[name] == net.parameters
    assert named(name) is net
    layout = slots(blank(net))
    assert layout[0].start == 0
    assert layout[-1].stop == net.parameters
    assert all(a.stop == b.start for a, b in itertools.pairwise(layout))
    assert [(slot.name, slot.shape) for slot in layout] == [(k, p.shape) for k, p in module.named_parameters()]


@pytest.mark.parametrize("name", NETS)
def test_images_become_logits(name):
    net = NETS[name]
    module = net.make().eval()
    assert module(torch.zeros(3, *net.shape)).shape == (3, net.classes)
    assert all(parameter.is_meta for parameter in blank(net).parameters())


def test_blank_and_initial_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    for net in NETS.values():
        blank(net)
    initial(NETS["mlp"], 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["cnn-mnist", "empire-cnn"])
def test_initial_values_have_the_distributions_of_pytorch(name):
    net = NETS[name]
    theta, module = initial(net, 5), net.make()
    assert torch.equal(theta, initial(net, 5))
    assert not torch.equal(theta, initial(net, 6))
    for slot in slots(module):
        ours, theirs = theta[slot.start : slot.stop], module.get_parameter(slot.name).detach().flatten()
        layer = module.get_submodule(slot.name.rpartition(".")[0])
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(ours, theirs)
            continue
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert ours.abs().max() <= bound * (1 + 1e-6)
        assert theirs.abs().max() <= bound * (1 + 1e-6)  # PyTorch has not changed its mind
        if len(ours) > 400:
            deviation = bound / math.sqrt(3)
            assert float(ours.std()) == pytest.approx(deviation, rel=4 / math.sqrt(len(ours)))
            assert abs(float(ours.mean())) < 5 * deviation / math.sqrt(len(ours))
            assert ours.abs().max() > 0.98 * bound
    weights = [theta[slot.start : slot.stop] for slot in slots(module) if slot.name.endswith("weight")]
    assert not torch.allclose(weights[0][:50] / weights[0].max(), weights[-1][:50] / weights[-1].max(), atol=0.1)


def test_dropout_applies_the_mask_it_is_given_in_training_only():
    drop = Dropout(0.5, 4)
    drop.mask = torch.tensor([[0.0, 2.0, 2.0, 0.0]])
    inputs = torch.ones(1, 4)
    assert drop.train()(inputs).tolist() == [[0.0, 2.0, 2.0, 0.0]]
    assert drop.eval()(inputs).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert drop.state_dict() == {}


def test_unknown_names_are_refused():
    with pytest.raises(BadInput, match="did you mean 'cnn-mnist'"):
        named("cnn_mnist")


@pytest.mark.parametrize("name", NETS)
def test_networks_fit_other_images_and_classes(name):
    net = sized(NETS[name], (3, 17, 21), 4)
    module = net.make().eval()
    assert module(torch.zeros(2, 3, 17, 21)).shape == (2, 4)
    assert sum(parameter.numel() for parameter in module.parameters()) == net.parameters == len(initial(net, 0))
    assert sized(NETS[name], NETS[name].shape, 10) is NETS[name]


def test_images_that_are_too_small_are_refused():
    with pytest.raises(BadInput, match=r"cnn-mnist takes images of 16 x 16 pixels or more.*8 x 8: choose cnn, mlp"):
        sized(NETS["cnn-mnist"], (1, 8, 8), 10)
    with pytest.raises(BadInput, match="choose mlp, logreg, mlp-digits"):
        sized(NETS["cnn"], (30, 1, 1), 2)
