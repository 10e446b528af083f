"""Collaborative algorithms by name: what peers exchange in a step, and how they mix what they get."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gradless.collab.aggregators import Aggregator, geometric_median, mean, nna, self_centred_clipping, trimmed_mean

PARAMETERS, GRADIENTS, COEFFICIENTS = "parameters", "gradients", "coefficients"


class Group(NamedTuple):
    """What a rule may depend on."""

    byzantine: int
    radius: float  # of clipping


class Algorithm(NamedTuple):
    """A way to train together; a new one is a row of `ALGORITHMS`."""

    title: str  # as a page shows it
    rule: Callable[[Group], Aggregator]
    summary: str
    paper: str
    momentum: float | None = None  # None: what the recipe says
    gradients_first: bool = False  # peers agree on gradients before they step, and on models after
    growing: bool = False  # t + 1 examples at step t
    clips: bool = False  # at the radius of the configuration


def _nearest(group: Group) -> Aggregator:
    return nna(f=group.byzantine)


def _trimmed(group: Group) -> Aggregator:
    return trimmed_mean(f=group.byzantine)


def _median(group: Group) -> Aggregator:
    return geometric_median(f=group.byzantine)


def _clipped(group: Group) -> Aggregator:
    return self_centred_clipping(f=group.byzantine, radius=group.radius, iterations=3)


def _clipped_adaptively(group: Group) -> Aggregator:
    return self_centred_clipping(f=group.byzantine, radius=None, iterations=1)


_MONNA = "Farhadkhani et al. 2023"
# In the order of tables and pictures; what the others are compared with comes last.
ALGORITHMS: dict[str, Algorithm] = {
    "monna": Algorithm("MoNNA", _nearest, "momentum and nearest-neighbour averaging", _MONNA),
    "nna": Algorithm("NNA", _nearest, "nearest-neighbour averaging without momentum", _MONNA, 0.0),
    "mocwtm": Algorithm("MoCWTM", _trimmed, "momentum and the coordinate-wise trimmed mean", _MONNA),
    "bridge": Algorithm(
        "BRIDGE", _trimmed, "the coordinate-wise trimmed mean without momentum", "Yang and Bajwa 2019", 0.0
    ),
    "mogm": Algorithm("MoGM", _median, "momentum and the geometric median", _MONNA),
    "gm": Algorithm("GM", _median, "the geometric median without momentum", "Pillutla et al. 2022", 0.0),
    "scc": Algorithm(
        "SCC", _clipped, "self-centred clipping, three times, with momentum 0.9", "He et al. 2022", 0.9, clips=True
    ),
    "clipped-gossip": Algorithm(
        "ClippedGossip",
        _clipped_adaptively,
        "self-centred clipping at a radius found from the distances",
        "He et al. 2022",
    ),
    "learn": Algorithm(
        "LEARN",
        _trimmed,
        "trimmed means of gradients, then of models; batches that grow",
        "El-Mhamdi et al. 2021",
        0.0,
        gradients_first=True,
        growing=True,
    ),
    "d-sgd": Algorithm(
        "D-SGD", lambda group: mean(), "plain averaging, with momentum; trusts everybody", "Lian et al. 2017"
    ),
}
