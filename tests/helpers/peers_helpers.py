"""Identities and manifests of small groups, without any process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradless.peers import keys, manifest, settings
from gradless.peers.keys import Identity
from gradless.peers.loopback import free_ports
from gradless.peers.manifest import Manifest

NAMES = ("anna", "ben", "cleo", "dora")
OWN = {"template": "{text} so", "label_column": "label", "labels": "0=bad,1=good"}
SHARED = {
    "payload": "coefficients",
    "model": "tiny-llama",
    "scheme": "full",
    "own": OWN,
    "steps": 20,
    "batch_size": 4,
    "queries": 4,
    "lr": 1e-3,
    "eps": 1e-3,
    "seed": 3,
}


def identities(folder: Path, names: Sequence[str] = NAMES) -> list[Identity]:
    """New identities at free ports of this machine."""
    for name, port in zip(names, free_ports(len(names)), strict=True):
        keys.make(name, f"tls/127.0.0.1:{port}", folder / name)
    return [keys.load(folder / name) for name in names]


def text(group: Sequence[Identity], *, f: int = 1, days: int = 30, **changed: Any) -> bytes:
    """The file of a manifest of a group."""
    config = settings.shared({**SHARED, **changed}, peers=len(group), f=f)
    return manifest.make([one.card for one in group], config, f=f, days=days)


def manifest_of(group: Sequence[Identity], **changed: Any) -> Manifest:
    """The manifest of a group, read."""
    return manifest.parse(text(group, **changed))
