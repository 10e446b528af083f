"""A peer's own rows: what the manifest says of all peers' rows, and what one peer says of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gradless.errors import BadInput

NEEDED: Final = ("template", "label_column", "labels")
DATA: Final = ("train", "dev", "test")


def merged(shared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table of own files of a peer.

    Args:
        shared: what the manifest says of all peers' files.
        given: what the peer says of its own.

    Returns:
        None if the peer has no files of its own.

    Raises:
        BadInput: no training rows, or nothing says how they are read.
    """
    if not given:
        return None
    if "train" not in given:
        raise BadInput("rows of your own to train on are missing: give them with --train")
    own = {**shared, **given}
    check(own)
    return own


def check(own: Mapping[str, Any]) -> None:
    """Refuse a table of own files that does not say how rows are read.

    Raises:
        BadInput: naming the option that is missing.
    """
    for name in NEEDED:
        if name not in own:
            raise BadInput(f"own files need --{name.replace('_', '-')} as well")
