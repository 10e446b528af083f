"""The small networks of the published experiments, as shapes to be filled: plain `torch.nn` modules without weights.

A module is built on the meta device, so that it costs nothing and draws nothing; the weights live outside, as one row
of ``[P, D]`` for each peer (`gradless.collab.learners.stacked`). `initial` draws them from PyTorch's default
distributions with the counter streams of `gradless.rng`: the same on every machine, and no global generator is touched.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from gradless import rng
from gradless.errors import BadInput, pick


class Dropout(nn.Module):
    """Dropout that is told which elements to drop: its mask is a buffer, given anew with every call.

    Args:
        rate: share of elements to drop, a multiple of 1/256.
        shape: of its input without the batch.

    The mask (0, or ``1 / (1 - rate)``) is drawn by `gradless.collab.learners.stacked` for each peer and step. In
    evaluation, and without a mask, the module does nothing.
    """

    mask: Tensor

    def __init__(self, rate: float, *shape: int) -> None:
        super().__init__()
        self.rate, self.shape = rate, shape
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs ``[B, *shape]`` times the mask."""
        return inputs * self.mask if self.training else inputs


Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of an image."""


class Net(NamedTuple):
    """A row of `NETS`."""

    name: str
    make: Callable[[], nn.Module]  # images [B, C, H, W] -> logits [B, classes]
    shape: Shape
    classes: int
    parameters: int  # D
    way: str  # how the gradients of all peers are computed on a CPU: "loop" or "vmap" (benchmarks/collab_gradients.py)
    channels_last: bool  # lay images out so in the loop: convolutions and pooling take two thirds of the time
    summary: str
    paper: str
    fit: Callable[[Shape, int], nn.Module] | None = None  # makes it for images and classes of another number
    smallest: int = 1  # least height and width of such images


class Slot(NamedTuple):
    """Where a parameter lies in a row of ``[P, D]``."""

    name: str
    shape: torch.Size
    start: int
    stop: int


def _chain(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def _cnn_mnist(shape: Shape, classes: int) -> nn.Module:
    # Published as convolution, ReLU, pooling. The two commute, values and gradients, and a quarter is left to rectify.
    channels, height, width = shape
    high, wide = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return _chain(
        conv1=nn.Conv2d(channels, 20, 5),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flat=nn.Flatten(),
        full1=nn.Linear(50 * high * wide, 500),
        relu3=nn.ReLU(),
        full2=nn.Linear(500, classes),
    )


def _cnn(shape: Shape, classes: int) -> nn.Module:
    """The network above, with as many parameters for images of any size."""
    return _chain(
        conv1=nn.Conv2d(shape[0], 20, 5, padding=2),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(20, 50, 5, padding=2),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        shrink=nn.AdaptiveAvgPool2d(4),
        flat=nn.Flatten(),
        full1=nn.Linear(800, 500),
        relu3=nn.ReLU(),
        full2=nn.Linear(500, classes),
    )


def _mlp(hidden: int, shape: Shape, classes: int) -> nn.Module:
    full1, full2 = nn.Linear(math.prod(shape), hidden), nn.Linear(hidden, classes)
    return _chain(flat=nn.Flatten(), full1=full1, relu=nn.ReLU(), full2=full2)


def _logreg(shape: Shape, classes: int) -> nn.Module:
    return _chain(flat=nn.Flatten(), full=nn.Linear(math.prod(shape), classes))


def _empire_cnn(shape: Shape, classes: int) -> nn.Module:
    channels, height, width = shape
    return _chain(
        conv1=nn.Conv2d(channels, 64, 3, padding=1),
        relu1=nn.ReLU(),
        norm1=nn.BatchNorm2d(64),
        conv2=nn.Conv2d(64, 64, 3, padding=1),
        relu2=nn.ReLU(),
        norm2=nn.BatchNorm2d(64),
        pool1=nn.MaxPool2d(2),
        drop1=Dropout(0.25, 64, height // 2, width // 2),
        conv3=nn.Conv2d(64, 128, 3, padding=1),
        relu3=nn.ReLU(),
        norm3=nn.BatchNorm2d(128),
        conv4=nn.Conv2d(128, 128, 3, padding=1),
        relu4=nn.ReLU(),
        norm4=nn.BatchNorm2d(128),
        pool2=nn.MaxPool2d(2),
        drop2=Dropout(0.25, 128, height // 4, width // 4),
        flat=nn.Flatten(),
        full1=nn.Linear(128 * (height // 4) * (width // 4), 128),
        relu5=nn.ReLU(),
        drop3=Dropout(0.25, 128),
        full2=nn.Linear(128, classes),
    )


def _row(
    name: str,
    fit: Callable[[Shape, int], nn.Module],
    shape: Shape,
    parameters: int,
    way: str,
    channels_last: bool,
    summary: str,
    paper: str = "",
    smallest: int = 1,
) -> Net:
    make = partial(fit, shape, 10)
    return Net(name, make, shape, 10, parameters, way, channels_last, summary, paper, fit, smallest)


_MNIST, _DIGITS, _CIFAR = (1, 28, 28), (1, 8, 8), (3, 32, 32)
_MONNA, _EMPIRE = "arXiv 2209.10931", "arXiv 1903.03936"
_EMPIRE_LAYERS = "four 3x3 convolutions, batch norm, dropout"
NETS: Final[dict[str, Net]] = {
    net.name: net
    for net in (
        _row("cnn", _cnn, _MNIST, 431_080, "loop", True, "two 5x5 convolutions, pooled to 4x4, 500 hidden", "", 4),
        _row("cnn-mnist", _cnn_mnist, _MNIST, 431_080, "loop", True, "two 5x5 convolutions, 500 hidden", _MONNA, 16),
        _row("mlp", partial(_mlp, 100), _MNIST, 79_510, "vmap", False, "100 hidden (784-100-10)", _MONNA),
        _row("logreg", _logreg, _MNIST, 7_850, "vmap", False, "logistic regression"),
        _row("mlp-digits", partial(_mlp, 64), _DIGITS, 4_810, "vmap", False, "64 hidden (64-64-10)"),
        # Not channels-last: PyTorch's batch normalisation loses three digits in that layout on a CPU (torch 2.13).
        _row("empire-cnn", _empire_cnn, _CIFAR, 1_310_922, "loop", False, _EMPIRE_LAYERS, _EMPIRE, 4),
    )
}
"""Networks by name, for the images that they were published with; `sized` makes them for others."""


def named(name: str) -> Net:
    """Return the row ``name`` of `NETS`.

    Raises:
        BadInput: there is none.
    """
    return pick("network", name, NETS)


def sized(net: Net, shape: Shape, classes: int) -> Net:
    """Return a network for images and classes of another number.

    Args:
        net: row of `NETS`.
        shape: of the images.
        classes: how many.

    Raises:
        BadInput: the images are too small for it; the message names those that take them.
    """
    if (net.shape, net.classes) == (shape, classes):
        return net
    height, width = shape[1:]
    if net.fit is None or min(height, width) < net.smallest:
        least = f"{net.smallest} x {net.smallest}"
        able = ", ".join(name for name, row in NETS.items() if row.fit is not None and row.smallest <= min(shape[1:]))
        raise BadInput(
            f"the network {net.name} takes images of {least} pixels or more, and these have {height} x {width}: "
            f"choose {able}"
        )
    other = net._replace(make=partial(net.fit, shape, classes), shape=shape, classes=classes)
    return other._replace(parameters=sum(parameter.numel() for parameter in blank(other).parameters()))


def blank(net: Net) -> nn.Module:
    """Return the module on the meta device: no memory, no random numbers; every call must be given its tensors."""
    with torch.device("meta"):
        return net.make()


def slots(module: nn.Module) -> tuple[Slot, ...]:
    """Return the layout of a row of ``[P, D]``: the parameters one after another, in the module's order."""
    layout, start = [], 0
    for name, parameter in module.named_parameters():
        layout.append(Slot(name, parameter.shape, start, start + parameter.numel()))
        start += parameter.numel()
    return tuple(layout)


def initial(net: Net, seed: int) -> Tensor:
    """Initial parameters, float32 ``[D]``, distributed like PyTorch's defaults; a function of net and seed.

    Weights and biases of linear and convolutional layers are uniform in +-1/sqrt(fan in), normalisations start as the
    identity.
    """
    module = blank(net)
    theta = torch.empty(net.parameters)
    for slot in slots(module):
        layer = module.get_submodule(slot.name.rpartition(".")[0])
        row = theta[slot.start : slot.stop]
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            row.copy_(rng.uniform(seed, slot.name, row.shape).mul_(2).sub_(1).mul_(1 / math.sqrt(fan_in)))
        elif isinstance(layer, nn.BatchNorm2d):
            row.fill_(1.0 if slot.name.endswith("weight") else 0.0)
        else:
            raise TypeError(f"no initial values are known for {type(layer).__name__}")
    return theta
