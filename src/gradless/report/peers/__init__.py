"""The report of a peer's run: ``report.html`` in its folder, and the same in brief for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradless.report.common.pictures import drawn
from gradless.report.common.table import Table
from gradless.report.peers import tables as peers_tables
from gradless.report.peers.figures import drawings
from gradless.report.peers.page import page
from gradless.report.peers.record import PeerRecord, load
from gradless.system.atomic import write_text


def brief(record: PeerRecord) -> list[Table]:
    """The tables for a terminal."""
    return [table for table in peers_tables.all_tables(record) if table.rows]


def write(folder: Path, say: Callable[[str], object]) -> list[Path]:
    """Write the page of a peer's run, finished or not; without matplotlib it has no pictures.

    Raises:
        BadInput: there is no run of a peer in the folder.
    """
    record = load(folder)
    say(record.headline)
    for remark in record.remarks:
        say(f"note: {remark}")
    pictures = drawn(lambda: drawings(record), say)
    path = folder / "report.html"
    write_text(path, page(record, peers_tables.all_tables(record), pictures or (), drawn=pictures is not None))
    return [path]
