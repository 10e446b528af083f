"""What ``report.html`` of a peer's run says; ``page.html.j2`` says it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from gradless.report.common.numbers import number
from gradless.report.common.page import inlined, render
from gradless.report.common.read import mapping
from gradless.report.common.table import NOTHING, Table
from gradless.report.peers.record import PeerRecord
from gradless.report.peers.tables import facts
from gradless.report.run.figures import Drawing
from gradless.runs.record import versions

SECTIONS = {"who": ("who-",), "time": ("time-",), "training": ("training-",)}
"""First letters of the names of the pictures in a section."""


class Tile(NamedTuple):
    """A large number with its name above and a remark below."""

    name: str
    value: str
    below: str


def page(record: PeerRecord, tables: Sequence[Table], drawings: Sequence[Drawing], *, drawn: bool = True) -> str:
    """The page, without scripts and without anything to load; names of peers are escaped.

    Args:
        record: the run.
        tables: of `gradless.report.peers.tables`.
        drawings: of `gradless.report.peers.figures`.
        drawn: False where matplotlib is missing.
    """
    by_name = {table.name: table for table in tables}
    folder = record.folder.resolve().name
    return render(
        "peers/page.html.j2",
        title=f"{record.me or 'A peer'} in run {record.run.manifest.sha256[:12]}",
        headline=record.headline,
        tiles=_tiles(record),
        bans=record.bans,
        remarks=record.remarks,
        agreed=record.run.manifest.agreed,
        peers=by_name["peers"],
        omissions=by_name["omissions"],
        latency=by_name["latency"],
        statements=record.statements[-8:],
        drawings=inlined((one.name, one.title, one.svg) for one in drawings),
        by_section={id_: [one for one in drawings if one.name.startswith(start)] for id_, start in SECTIONS.items()},
        drawn=drawn,
        facts=facts(record),
        audit=f"gradless peers audit {shlex.quote(folder)}",
        fingerprint=record.run.manifest.fingerprint,
        versions=versions(),
    )


def _tiles(record: PeerRecord) -> list[Tile]:
    agree, sent = record.median_of("agree_seconds"), record.median_of("bytes")
    later = sum(bool(round_) for round_ in record.log.rounds) if record.log is not None else 0
    accuracy = number(record.result.get("accuracy"))
    tiles = [
        Tile("steps decided", f"{record.taken:,}", f"of {record.run.manifest.config.steps:,}"),
        Tile("agreement", NOTHING if agree is None else f"{1000 * agree:.0f} ms", f"median; {later:,} in later rounds"),
        Tile("sent a step", NOTHING if sent is None else f"{sent / 1000:.1f} kB", "by this peer, median"),
        Tile("banned", str(len(record.bans)), ", ".join(name for _, name, _ in record.bans) or "nobody"),
    ]
    reward = number(mapping(record.result.get("test")).get("reward"))
    if reward is not None:
        tiles.append(Tile("mean reward", f"{reward:.3f}", "on this peer's test rows"))
    elif accuracy is not None:
        tiles.append(Tile("accuracy", f"{accuracy:.3f}", "on this peer's test rows"))
    return tiles
