"""Peers with images and a small network: the workload of the published experiments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from gradless.collab.config import CollabConfig
from gradless.collab.data import datasets
from gradless.collab.data.datasets import Images
from gradless.collab.data.image_files import SHOWN
from gradless.collab.data.splits import gather
from gradless.collab.learners.assignment import own_share, shares
from gradless.collab.learners.nets import NETS, Net, named, sized
from gradless.collab.learners.stacked import Stack
from gradless.system.cache import Say

FITTING: Final = {"mnist": "cnn-mnist", "cifar10": "empire-cnn", "digits": "mlp-digits"}
"""Networks of known data sets; others get "cnn", and features "mlp"."""
LARGE: Final = 2**28
"""Bytes of test images in float32 from which on they are prepared a few at a time."""


def fitting(config: CollabConfig, data: Images) -> Net:
    """Return the network of a configuration, made for the images and the classes of its data.

    Raises:
        BadInput: the images are too small for it.
    """
    assert config.dataset is not None
    usual = FITTING.get(config.dataset, "cnn" if min(data.shape[1:]) >= NETS["cnn"].smallest else "mlp")
    return sized(named(config.net or usual), data.shape, len(data.classes))


def show_own_data(config: CollabConfig, say: Say) -> list[str]:
    """Read data of the user's own and say what was found in them; of a known data set nothing needs to be said.

    Returns:
        What an accuracy on them does not tell, to be said beside it.

    Raises:
        BadInput: data that cannot be read, or are too few for the peers.
    """
    if config.dataset not in datasets.OWN:
        return []
    data = datasets.load(config.dataset, config.data, size=config.image_size, say=say)
    net = fitting(config, data)
    rows, test = len(data.train_labels), len(data.test_labels)
    share = float(torch.bincount(data.test_labels).max()) / test
    classes = ", ".join(data.classes[:SHOWN]) + (", ..." if len(data.classes) > SHOWN else "")
    channels, height, width = data.shape
    what = f"{channels} features" if height == width == 1 else f"{height} x {width} pixels, channels: {channels},"
    say(f"{_rows(rows, 'training')} of {what} in {len(data.classes)} classes: {classes}")
    say(f"{_rows(test, 'test')}, of which the largest class has {share:.1%}: an accuracy that needs no learning")
    say(f"network {net.name} with {net.parameters:,} parameters")
    say(_dealt(config, shares(config, data.train_labels, config.peers - (config.attackers or 0)).parts, rows))
    absent = datasets.untested(data.classes, data.test_labels)
    return [f"no test row has the class {name}: the accuracy does not tell how it is learnt" for name in absent[:SHOWN]]


def _rows(count: int, kind: str) -> str:
    return f"{count} {kind} row{'' if count == 1 else 's'}"


def _dealt(config: CollabConfig, parts: Sequence[Tensor], rows: int) -> str:
    """Return how many rows honest peers have, and what to do where some rows are nobody's."""
    parameter = f", {config.split_parameter:g}" if config.split_parameter is not None else ""
    sizes = sorted({len(part) for part in parts})
    each = f"{sizes[0]} to {sizes[-1]} rows" if len(sizes) > 1 else f"{sizes[0]} row{'s' if sizes[0] > 1 else ''} each"
    used = len(torch.cat(list(parts)).unique())
    fix = ""
    if used < rows and config.split == "dirichlet-classes":
        fix = "; equal parts, as large as the scarcest class allows: --split dirichlet-workers or iid uses all rows"
    return f"dealt by {config.split}{parameter}: {len(parts)} honest peers with {each}, {used} of {rows} in all{fix}"


class Vision:
    """Images divided among peers, and a network of each (see `gradless.collab.learners.parameters.Workload`).

    Statistics of batch normalisation stay with their peer: they are neither sent nor mixed.

    Args:
        config: names data, split, network, seed and device.
        peers: H, honest peers, among whom training rows are dealt.
        mine: the peers of this process; None: all.
        own: whether the training rows are those of the one peer ``mine`` alone, and are not dealt.

    Raises:
        BadInput: data that cannot be read, or a network that they do not fit.
    """

    def __init__(
        self, config: CollabConfig, peers: int, *, mine: Sequence[int] | None = None, own: bool = False
    ) -> None:
        assert config.dataset is not None
        data = datasets.load(config.dataset, config.data, size=config.image_size)
        net = fitting(config, data)
        self.mine = tuple(range(peers) if mine is None else mine)
        self.seed, self.peers, self.dimension = config.seed, len(self.mine), net.parameters
        self.data = data.to(config.device)
        labels = data.train_labels
        self.shares = own_share(config, len(labels), self.mine[0]) if own else shares(config, labels, peers, mine)
        self.stack = Stack(net, self.mine, seed=config.seed, device=config.device)
        self._attackers = Stack(net, [peers], seed=config.seed, device=config.device)
        self._test: tuple[Tensor, Tensor] | None = None
        self._gradients: Tensor | None = None  # fresh memory costs a third of the gradients themselves

    def start(self) -> Tensor:
        """See `gradless.collab.learners.parameters.Workload`."""
        return self.stack.initial()

    def gradients(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See `gradless.collab.learners.parameters.Workload`."""
        rows = gather(self.shares.streams, step)
        images, labels = datasets.training_batch(self.data, rows, seed=self.seed, step=step, peers=self.mine)
        self._gradients, losses = self.stack.gradients(theta, images, labels, step=step, out=self._gradients)
        return self._gradients, losses

    def poisoned(self, theta: Tensor, step: int) -> Tensor:
        """See `gradless.collab.learners.parameters.Workload`; label l becomes the last class minus l."""
        rows = self.shares.poison.at(step)[None]
        attackers = self._attackers.peers
        images, labels = datasets.training_batch(self.data, rows, seed=self.seed, step=step, peers=attackers)
        flipped = len(self.data.classes) - 1 - labels
        return self._attackers.gradients(theta, images, flipped, step=step)[0]

    def accuracy(self, theta: Tensor, rows: int | None) -> list[float]:
        """See `gradless.collab.learners.parameters.Workload`."""
        if self.data.test_images.numel() * 4 > LARGE:
            prepare = partial(datasets.prepare, mean=self.data.mean, std=self.data.std)
            images, labels = self.data.test_images, self.data.test_labels
            return list(self.stack.evaluate(theta, images, labels, rows, prepare=prepare).tolist())
        if self._test is None:
            self._test = datasets.test_batch(self.data)
        accuracies: list[float] = self.stack.evaluate(theta, *self._test, rows).tolist()
        return accuracies

    def state(self) -> dict[str, Any]:
        """See `gradless.collab.learners.parameters.Workload`."""
        return self.stack.statistics

    def load(self, state: dict[str, Any]) -> None:
        """See `gradless.collab.learners.parameters.Workload`."""
        for name, tensor in self.stack.statistics.items():
            tensor.copy_(state[name])
