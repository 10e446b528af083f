"""What a peer knows of the others while it runs: ``status.json``, and the table that a terminal shows of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from gradless.errors import BadInput
from gradless.peers.node_files import STATUS
from gradless.system.atomic import write_json
from gradless.system.side_files import read_json

if TYPE_CHECKING:
    from rich.table import Table

STALE: Final = 10.0
"""Seconds after which a status is old: the peer writes one every second."""
Whole = Annotated[int, msgspec.Meta(ge=0)]


class Peer(msgspec.Struct, kw_only=True):
    """What a peer knows of one peer, itself included."""

    name: str
    alive: bool
    """Whether it seems to be connected."""
    heard: Whole = 0
    """Steps whose value holds its row."""
    left_out: Whole = 0
    """Steps whose value does not, before a ban."""
    late: Whole = 0
    """Of these, those whose row had not come here when the step was decided: it came late, or never."""
    led: Whole = 0
    """Values that it proposed."""
    failed: Whole = 0
    """Rounds that it lost as a leader."""
    score: float | None = None
    """How it agrees with the others (`gradless.peers.scores`); None: too few steps."""
    weights_sha256: str | None = None
    """Of the weights, as it last stated them."""
    stated_step: Whole | None = None
    """At which step."""
    banned: Whole | None = None
    """First step in which its messages count for nothing."""
    muted: bool = False
    """Whether this peer does not listen to it for ten minutes."""
    other_run: str | None = None
    """The run of the manifest that it holds, if that is another one."""


class Status(msgspec.Struct, kw_only=True):
    """The contents of ``status.json``."""

    run: str
    me: str
    step: Whole
    steps: Whole
    updated: float
    """Unix time."""
    phase: str
    """waiting, training, standing still, serving, or ended."""
    agree_ms: float | None = None
    """Median of the last steps, from the own row to the decision."""
    peers: list[Peer]


def write(folder: Path, status: Status) -> None:
    """Write ``status.json``, whole or not at all."""
    write_json(folder / STATUS, msgspec.to_builtins(status))


def read(folder: Path) -> Status:
    """Return the status that a peer's run last wrote.

    Raises:
        BadInput: there is none.
    """
    try:
        return msgspec.convert(read_json(folder / STATUS), Status)
    except msgspec.ValidationError:
        raise BadInput(f"{folder} holds no run of a peer ({STATUS}): give the --out of 'gradless peers run'") from None


def headline(status: Status) -> str:
    """Return one line about a run."""
    age = max(0.0, time.time() - status.updated)
    old = f", {age:.0f} s ago" if age > STALE else ""
    took = f", agreement {status.agree_ms:.0f} ms a step" if status.agree_ms is not None else ""
    alive = sum(peer.alive for peer in status.peers)
    return (
        f"{status.me}: step {status.step} of {status.steps}, {status.phase}{old}; {alive} of {len(status.peers)} peers "
        f"connected{took}"
    )


def rows(status: Status) -> list[tuple[str, ...]]:
    """Return the table: a row a peer."""
    return [
        (
            peer.name + (" (this one)" if peer.name == status.me else ""),
            _state(peer),
            f"{peer.heard}",
            f"{peer.left_out}",
            f"{peer.late}",
            f"{peer.led}/{peer.failed}",
            "-" if peer.score is None else f"{peer.score:.1f}",
            "-" if not peer.weights_sha256 else f"{peer.weights_sha256[:12]} @ {peer.stated_step}",
        )
        for peer in status.peers
    ]


HEADS: Final = ("peer", "state", "rows in", "left out", "late", "led/failed", "score", "weights")


def _state(peer: Peer) -> str:
    if peer.banned is not None:
        return f"banned from {peer.banned}"
    if peer.other_run is not None:
        return f"other run {peer.other_run[:8]}"
    return "muted" if peer.muted else "connected" if peer.alive else "away"


def lines(status: Status) -> list[str]:
    """Return the status as plain lines."""
    table: Sequence[tuple[str, ...]] = [HEADS, *rows(status)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADS))]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return [headline(status), *aligned]


def table(status: Status) -> Table:
    """Return the status as a table of rich."""
    from rich.table import Table

    from gradless.system.terminal import cell

    drawn = Table(title=headline(status), title_justify="left")
    for head in HEADS:
        drawn.add_column(head, justify="left" if head in ("peer", "state", "weights") else "right")
    for row, peer in zip(rows(status), status.peers, strict=True):
        style = "red" if peer.banned is not None else "" if peer.alive else "yellow"
        drawn.add_row(*(cell(text, style) for text in row))
    return drawn
