"""A peer's own rows: what the manifest says of all peers' rows, and what one peer says of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gradless.errors import BadInput

NEEDED: Final = ("template", "label_column", "labels")
DATA: Final = ("train", "dev", "test")


def merged(shared: Mapping[str, Any], peer: Mapping[str, Any], *, rewarded: bool = False) -> dict[str, Any] | None:
    """Return the table of own files of a peer.

    Args:
        shared: what the manifest says of all peers' files.
        peer: what the peer says of its own.
        rewarded: whether a reward scores what is generated, so that rows need no labels.

    Returns:
        None if the peer has no files of its own.

    Raises:
        BadInput: no training rows, or nothing says how they are read.
    """
    if not peer:
        return None
    if "train" not in peer:
        raise BadInput("rows of your own to train on are missing: give them with --train")
    own = {**shared, **peer}
    check(own, rewarded=rewarded)
    return own


def check(own: Mapping[str, Any], *, rewarded: bool = False) -> None:
    """Refuse a table of own files that does not say how rows are read.

    Raises:
        BadInput: naming the option that is missing.
    """
    unlabelled = rewarded and not {"label_column", "labels"} & own.keys()
    for name in ("template",) if unlabelled else NEEDED:
        if name not in own:
            also = "" if {"label_column", "labels"} & own.keys() or name == "template" else ", or a --reward"
            raise BadInput(f"own files need --{name.replace('_', '-')} as well{also}")
