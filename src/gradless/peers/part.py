"""What a peer does in a run, whatever the mode: `agreed_part` agrees on coefficients, `mixed_part` mixes models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gradless.collab.learners.alone import OnePeer
from gradless.peers.keys import Identity
from gradless.peers.link import Link
from gradless.peers.manifest import Manifest
from gradless.peers.signing import Ed25519Ring, public_keys


class Part(Protocol):
    """A peer's part in a run, in one mode."""

    ring: Ed25519Ring
    started: int
    """Step at which this process began."""

    def __init__(self, manifest: Manifest, identity: Identity, folder: Path) -> None: ...

    @staticmethod
    def message_limit(manifest: Manifest) -> int:
        """Return the most bytes of a message."""

    def begin(self, one: OnePeer, link: Link, *, liar: str | None, say: Callable[[str], None]) -> int:
        """Catch up with the group and begin to take part; return the first step to take."""

    def step(self, step: int) -> tuple[int, float | None]:
        """Take a step; return the next one, and the loss unless the step was over already."""

    def facts(self, step: int) -> dict[str, Any]:
        """Return what ``metrics.jsonl`` says of how a step was decided."""

    def scores(self) -> list[float | None]:
        """Return how each peer agreed with the others in the last steps (`gradless.collab.aggregation.pair_scores`)."""

    def new_bans(self) -> list[dict[str, Any]]:
        """Return what it says of peers that were convicted since the last call."""

    def banned(self) -> Mapping[int, int]:
        """Return the first step in which a convicted peer's messages count for nothing, by peer."""

    def faults(self) -> Mapping[int, int]:
        """Return how many messages that no honest peer sends came from each peer so far."""

    def muted(self) -> frozenset[int]:
        """Return the peers that are not listened to for a while."""

    def weights_sha256(self) -> str:
        """Return the hash of the weights."""

    def digest(self) -> str:
        """Return the digest of the last value, hexadecimal; empty where nothing is agreed on."""

    def accuracy(self, rows: int | None) -> float | None:
        """Return the share of right answers on so many test rows; None without any."""

    def put_ledger_aside(self) -> None:
        """Rename the ledger."""

    def rebuild(self, one: OnePeer, step: int, stop: int) -> str:
        """Take all decided steps before ``stop`` anew; return the weights' hash at a step on the way."""

    def close(self) -> None:
        """Stop taking part."""


def ring_of(manifest: Manifest, identity: Identity) -> Ed25519Ring:
    """Return the keys of a run: this peer's own, and all public ones."""
    publics = public_keys([member.key for member in manifest.peers])
    return Ed25519Ring(manifest.number(identity), identity.signing, publics)
