"""Peers with images and a small network: the workload of the published experiments."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from gradless.collab.config import CollabConfig
from gradless.collab.data import datasets
from gradless.collab.data.splits import gather
from gradless.collab.learners.assignment import shares
from gradless.collab.learners.nets import NETS, named
from gradless.collab.learners.stacked import Stack
from gradless.errors import BadInput

FITTING: Final = {"mnist": "cnn-mnist", "cifar10": "empire-cnn", "digits": "mlp-digits"}


class Vision:
    """Images divided among peers, and a network of each (see `gradless.collab.learners.parameters.Workload`).

    Statistics of batch normalisation stay with their peer: they are neither sent nor mixed.

    Args:
        config: names data, split, network, seed and device.
        peers: H, honest peers.

    Raises:
        BadInput: data that cannot be read, or a network that they do not fit.
    """

    def __init__(self, config: CollabConfig, peers: int) -> None:
        assert config.dataset is not None
        data = datasets.load(config.dataset, config.data)
        if config.net is None and config.dataset not in FITTING:
            raise BadInput(f"name a --net for {config.dataset}: {', '.join(NETS)}")
        net = named(config.net or FITTING[config.dataset])
        if net.shape != data.shape or net.classes != len(data.classes):
            fitting = [
                name for name, row in NETS.items() if (row.shape, row.classes) == (data.shape, len(data.classes))
            ]
            raise BadInput(
                f"the network {net.name} takes images {net.shape} of {net.classes} classes, but {config.dataset} has "
                f"{data.shape} of {len(data.classes)}: choose " + (", ".join(fitting) or "other data")
            )
        self.seed, self.peers, self.dimension = config.seed, peers, net.parameters
        self.data = data.to(config.device)
        self.shares = shares(config, data.train_labels, peers)
        self.stack = Stack(net, peers, seed=config.seed, device=config.device)
        self._attackers = Stack(net, [peers], seed=config.seed, device=config.device)
        self._test: tuple[Tensor, Tensor] | None = None
        self._gradients: Tensor | None = None  # fresh memory costs a third of the gradients themselves

    def start(self) -> Tensor:
        """See `gradless.collab.learners.parameters.Workload`."""
        return self.stack.initial()

    def gradients(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See `gradless.collab.learners.parameters.Workload`."""
        rows = gather(self.shares.streams, step)
        images, labels = datasets.training_batch(self.data, rows, seed=self.seed, step=step)
        self._gradients, losses = self.stack.gradients(theta, images, labels, step=step, out=self._gradients)
        return self._gradients, losses

    def poisoned(self, theta: Tensor, step: int) -> Tensor:
        """See `gradless.collab.learners.parameters.Workload`; label l becomes the last class minus l."""
        rows = self.shares.poison.at(step)[None]
        images, labels = datasets.training_batch(self.data, rows, seed=self.seed, step=step, peers=[self.peers])
        flipped = len(self.data.classes) - 1 - labels
        return self._attackers.gradients(theta, images, flipped, step=step)[0]

    def accuracy(self, theta: Tensor, rows: int | None) -> list[float]:
        """See `gradless.collab.learners.parameters.Workload`."""
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
