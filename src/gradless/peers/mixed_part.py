"""Mixing models: a peer's part in a run of MoNNA, in which honest models stay near each other (arXiv 2209.10931)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from gradless.collab.algorithms import PARAMETERS
from gradless.collab.learners.alone import OnePeer
from gradless.collab.learners.loop import Settle, take_step
from gradless.collab.learners.parameters import ParameterPeers
from gradless.collab.network.exchange import Arrivals
from gradless.errors import BadInput
from gradless.peers.keys import Identity
from gradless.peers.latest import Latest, settle_with
from gradless.peers.link import Link
from gradless.peers.manifest import Manifest
from gradless.peers.node_files import write_evidence
from gradless.peers.part import ring_of
from gradless.system.hashing import weights_sha256

LARGEST_MODEL: Final = 1 << 28
"""Bytes of a message: models of up to 67 million parameters."""


class MixedPart:
    """The mode parameters: see `Part`.

    Args:
        manifest: of the run.
        identity: of this peer.
        folder: of this peer's run.
    """

    def __init__(self, manifest: Manifest, identity: Identity, folder: Path) -> None:
        self.manifest, self.folder, self.me = manifest, folder, manifest.number(identity)
        self.ring = ring_of(manifest, identity)
        self.started = 0
        self._told: set[int] = set()
        self._heard: tuple[int, ...] = ()

    @staticmethod
    def message_limit(manifest: Manifest) -> int:
        """See `Part`."""
        return LARGEST_MODEL

    def begin(self, one: OnePeer, link: Link, *, liar: str | None, say: Callable[[str], None]) -> int:
        """See `Part`."""
        from gradless.collab.simulation.build import mixing_rule

        if liar:
            raise BadInput("peers that mix models have no liar of this kind: leave --liar out")
        config = self.manifest.config
        assert isinstance(one.learner, ParameterPeers)
        self.learner = one.learner
        self.settle: Settle = settle_with(mixing_rule(config), config.seed)
        self.transport = Latest(
            link,
            self.ring,
            run=self.manifest.run,
            width=self.learner.theta.shape[1],
            byzantine=self.manifest.f,
            tags=self.learner.exchanges(0),
            echo=len(self.manifest.peers) > 3 * self.manifest.f,
        )
        if (there := self.transport.rejoin()) is not None and there[0] > 0:
            self.started = there[0]
            self.learner.adopt(there[1][None])
            say(f"the group is in step {there[0]}: going on there with the trimmed mean of n - f models")
        return self.started

    def step(self, step: int) -> tuple[int, float | None]:
        """See `Part`."""

        def watch(tag: str, rows: torch.Tensor | None, arrivals: Arrivals, mixed: torch.Tensor) -> bool:
            self._heard = arrivals.heard[0] if arrivals.heard else ()
            return True

        step, _ = take_step(self.learner, self.transport, self.settle, step, watch)
        return step, float(self.learner.losses[0])

    def facts(self, step: int) -> dict[str, Any]:
        """See `Part`."""
        missing = sorted(set(range(len(self.manifest.peers))) - set(self._heard))
        return {
            "heard": list(self._heard),
            "left_out": missing,
            "late": missing,
            "leader": None,
            "round": 0,
            "failed": [],
        }

    def scores(self) -> list[float | None]:
        """See `Part`: models have no scores."""
        return [None] * len(self.manifest.peers)

    def new_bans(self) -> list[dict[str, Any]]:
        """See `Part`: nobody is banned, but evidence is kept."""
        for peer, pair in list(self.transport.evidence.items()):
            if peer not in self._told:
                self._told.add(peer)
                write_evidence(self.folder, self.manifest.names[peer], 0, pair)
        return []

    def banned(self) -> Mapping[int, int]:
        """See `Part`."""
        return {}

    def faults(self) -> Mapping[int, int]:
        """See `Part`."""
        return self.transport.faults

    def muted(self) -> frozenset[int]:
        """See `Part`."""
        return frozenset()

    def weights_sha256(self) -> str:
        """See `Part`."""
        return weights_sha256([(PARAMETERS, self.learner.theta[0])])

    def digest(self) -> str:
        """See `Part`."""
        return ""

    def accuracy(self, rows: int | None) -> float | None:
        """See `Part`."""
        return float(self.learner.accuracy(rows)[0])

    def put_ledger_aside(self) -> None:
        """See `Part`."""
        raise AssertionError("models that are mixed are in no ledger")

    def rebuild(self, one: OnePeer, step: int, stop: int) -> str:
        """See `Part`."""
        raise AssertionError("models that are mixed are in no ledger")

    def close(self) -> None:
        """See `Part`."""
        self.transport.close()
