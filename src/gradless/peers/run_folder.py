"""The folder of one peer's run, opened by somebody who may have nothing but it: manifest, log and rule; no keys."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from gradless.errors import BadInput
from gradless.peers import manifest as manifests
from gradless.peers import memory
from gradless.peers.history import Group
from gradless.peers.log import PEERS_LOG, DecidedLog
from gradless.peers.mixing import AgreedRule
from gradless.peers.node_files import located
from gradless.peers.scores import Records, records
from gradless.peers.signing import is_signed, public_keys


class PublicRing:
    """The public keys of a manifest: checks signatures and makes none (a `gradless.peers.signing.Ring`).

    Args:
        keys: Ed25519 keys by number, 64 hexadecimal digits each.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = public_keys(keys)

    def sign(self, body: bytes) -> bytes:
        """Nobody signs with public keys."""
        raise AssertionError("public keys sign nothing")

    def verify(self, sender: int, body: bytes, signature: bytes) -> bool:
        """Return whether ``sender`` signed these bytes."""
        return is_signed(self._keys[sender], body, signature)


class RunFolder:
    """A peer's folder: what is there is read when it is asked for.

    Args:
        folder: of the run.

    Raises:
        BadInput: no manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifests.read(folder)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the peers, by number."""
        return self.manifest.names

    @cached_property
    def group(self) -> Group:
        """Constants of the agreement.

        Raises:
            BadInput: peers that exchange models.
        """
        if not self.manifest.agreed:
            raise BadInput(
                f"the peers of {self.folder} exchange models, and keep no log of what they sent: only runs with "
                "--payload coefficients can be audited"
            )
        config = self.manifest.config
        return Group(self.manifest.run, len(self.names), self.manifest.f, config.queries)

    @cached_property
    def log(self) -> DecidedLog:
        """The decided values; their hash chain is checked.

        Raises:
            BadInput: no log, or one that was changed.
        """
        return DecidedLog(self.folder / PEERS_LOG, self.group, writable=False)

    @cached_property
    def records(self) -> Records:
        """The log as arrays."""
        return records((decision.value for decision in self.log), self.group)

    @cached_property
    def ring(self) -> PublicRing:
        """Keys that check signatures. Needs the extra ``peers``."""
        return PublicRing([member.key for member in self.manifest.peers])

    @cached_property
    def rule(self) -> AgreedRule:
        """What all peers make of a value."""
        name = self.manifest.config.rule
        assert name is not None, "settings of agreed peers name their rule"
        return AgreedRule(name, peers=self.group.peers, byzantine=self.group.byzantine)

    def number(self, name: str) -> int:
        """Return the number of a peer.

        Raises:
            BadInput: there is none of that name.
        """
        if name not in self.names:
            raise BadInput(f"the run has no peer {name}: it has {', '.join(self.names)}")
        return self.names.index(name)

    def mixed(self, steps: int, *, without: frozenset[int] = frozenset()) -> np.ndarray:
        """Return the mixed coefficients of the first T steps, float32 [T, K]; NaN where rows are too few for the rule.

        Args:
            steps: T.
            without: peers whose rows are left out; the rule then expects so many liars fewer, as for those that are
                banned.

        Cost: see `gradless.peers.agreed.mixed_steps`.
        """
        log, window = self.records, self.manifest.config.memory
        rows, gone = log.rows[:steps].copy(), [log.banned_at(step) | without for step in range(steps)]
        rows[:, list(without)] = np.nan
        if window is None:
            return self.rule.mix_steps(rows, list(map(len, gone)))
        mixed = np.empty((steps, rows.shape[2]), np.float32)
        for step, banned in enumerate(gone):
            mixed[step] = memory.mix(self.rule, rows[step], rows[max(0, step - window) : step], banned)[0].numpy()
        return mixed

    def base_model(self, model: str | None) -> str:
        """Return where the base model is: as given, beside the manifest, or what the manifest names."""
        return model or located(str(self.manifest.config.model), self.folder)
