"""``gradless report``: tables, pictures and one page of a run, a benchmark, or a folder of collaborative runs.

`report` writes everything; `tables` gives the tables as data, which `show_tables` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gradless.report import run as run_report
from gradless.report.bench.figures import figures
from gradless.report.bench.page import counts, page, shortfall
from gradless.report.bench.selection import best_toml
from gradless.report.bench.study import Study, load
from gradless.report.bench.tables import all_tables
from gradless.report.collab import page as collab_page
from gradless.report.collab import study as collab_study
from gradless.report.collab import tables as collab_tables
from gradless.report.common.pictures import Picture, drawn
from gradless.report.common.table import Table, as_csv, latex, markdown, show_tables
from gradless.report.run import record
from gradless.system.atomic import write_text

__all__ = ["Study", "Table", "load", "report", "show_tables", "tables"]


def tables(folder: Path) -> list[Table]:
    """The tables of a run (in brief), a bench directory or of collaborative runs as plain data; writes nothing.

    Raises:
        BadInput: there is no result in the directory.
    """
    if collab_study.is_collab(folder):
        return collab_tables.all_tables(collab_study.load(folder))
    if record.is_run(folder):
        return run_report.brief(record.load(folder))
    return all_tables(load(folder))


def report(folder: Path, *, say: Callable[[str], object] = print) -> list[Path]:
    """Write ``tables/`` (md, csv, tex), ``figures/`` (svg, png) and ``report.html``; of a benchmark ``best.toml`` too.

    Of a single run only ``report.html``. What is there is reported, complete or not. Without matplotlib (extra
    ``plots``) there are no figures.

    Args:
        folder: run directory of `gradless tune`, or directory with ``results.jsonl``, of `gradless bench` or of
            `gradless collab simulate`.
        say: takes a line at a time: how many runs there are, what is missing.

    Returns:
        The files written, the page last.

    Raises:
        BadInput: there is no result in the directory, or its grid cannot be read.
    """
    if collab_study.is_collab(folder):
        return _report_collab(folder, say)
    if record.is_run(folder):
        return run_report.write(folder, say)
    study = load(folder)
    _tell(counts(study), shortfall(study), say)
    made = all_tables(study)
    written = _write_tables(folder, made, latex)
    pictures = _pictures(folder, lambda into: figures(study, into), say)
    written += [path for picture in pictures for path in (picture.svg, picture.png)]
    for name, text in (("best.toml", best_toml(study)), ("report.html", page(study, made, pictures))):
        write_text(folder / name, text)
        written.append(folder / name)
    return written


def _report_collab(folder: Path, say: Callable[[str], object]) -> list[Path]:
    study = collab_study.load(folder)
    _tell(collab_page.counts(study), collab_page.shortfall(study), say)
    made = collab_tables.all_tables(study)
    written = _write_tables(folder, made, collab_page.tex)
    pictures = _pictures(folder, lambda into: collab_page.figures(study, into), say)
    written += [path for picture in pictures for path in (picture.svg, picture.png)]
    write_text(folder / "report.html", collab_page.page(study, made, pictures))
    return [*written, folder / "report.html"]


def _tell(counted: str, lack: str, say: Callable[[str], object]) -> None:
    say(counted)
    if lack:
        say(f"not complete: {lack}")


def _write_tables(folder: Path, made: Sequence[Table], tex: Callable[[Table], str]) -> list[Path]:
    written = []
    (folder / "tables").mkdir(exist_ok=True)
    for table in made:
        for suffix, form in ((".md", markdown), (".csv", as_csv), (".tex", tex)):
            path = folder / "tables" / (table.name + suffix)
            write_text(path, form(table))
            written.append(path)
    return written


def _pictures(folder: Path, draw: Callable[[Path], list[Picture]], say: Callable[[str], object]) -> Sequence[Picture]:
    (folder / "figures").mkdir(exist_ok=True)
    return drawn(lambda: draw(folder / "figures"), say) or []
