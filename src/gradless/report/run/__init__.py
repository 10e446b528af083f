"""The report of one run: ``report.html`` in its directory, and the same in brief for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradless.report.common.pictures import drawn
from gradless.report.common.table import Table
from gradless.report.run import tables as run_tables
from gradless.report.run.figures import drawings
from gradless.report.run.page import page
from gradless.report.run.record import RunRecord, load
from gradless.report.run.verdict import verdict
from gradless.system.atomic import write_text


def brief(record: RunRecord) -> list[Table]:
    """The tables for a terminal: outcome, cost, and a few rows before and after with short texts."""
    shown = [*_numbers(record), *run_tables.examples(record, brief=True)]
    return [table for table in shown if table.rows]


def _numbers(record: RunRecord) -> list[Table]:
    tables = (run_tables.outcome(record), run_tables.pass_at(record), run_tables.cost(record))
    return [table for table in tables if table is not None]


def write(folder: Path, say: Callable[[str], object]) -> list[Path]:
    """Write the page of a run, finished or not; without matplotlib it has no pictures.

    Raises:
        BadInput: there is no run in the folder.
    """
    record = load(folder)
    reached = verdict(record)
    say(f"{record.model} on {record.task}, {record.method}: {reached.text}")
    if reached.baseline:
        say(reached.baseline)
    for remark in record.remarks:
        say(f"note: {remark}")
    pictures = drawn(lambda: drawings(record), say)
    tables = [*_numbers(record), *run_tables.examples(record)]
    path = folder / "report.html"
    write_text(path, page(record, tables, pictures or (), drawn=pictures is not None))
    return [path]
