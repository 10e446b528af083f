"""``gradless report``: tables, pictures, the best settings and one page, from a bench directory.

`report` writes everything; `tables` gives the tables as data, which `show_tables` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradless.notes import write_text
from gradless.report.best import best_toml
from gradless.report.figures import Picture, figures
from gradless.report.page import counts, page, shortfall
from gradless.report.study import Study, load
from gradless.report.table import Table, as_csv, latex, markdown, show_tables
from gradless.report.tables import all_tables

__all__ = ["Study", "Table", "load", "report", "show_tables", "tables"]


def tables(folder: Path) -> list[Table]:
    """The tables of a bench directory as plain data; writes nothing.

    Raises:
        BadInput: there is no result in the directory.
    """
    return all_tables(load(folder))


def report(folder: Path, *, say: Callable[[str], object] = print) -> list[Path]:
    """Write ``tables/`` (md, csv, tex), ``figures/`` (svg, png), ``best.toml`` and ``report.html`` of a benchmark.

    What is there is reported, complete or not. Without matplotlib (extra ``plots``) there are no figures.

    Args:
        folder: bench directory with ``results.jsonl``.
        say: takes a line at a time: how many runs there are, what is missing.

    Returns:
        The files written, the page last.

    Raises:
        BadInput: there is no result in the directory, or its grid cannot be read.
    """
    study = load(folder)
    say(counts(study))
    lack = shortfall(study)
    if lack:
        say(f"not complete: {lack}")
    made = all_tables(study)
    written = []
    (folder / "tables").mkdir(exist_ok=True)
    for table in made:
        for suffix, form in ((".md", markdown), (".csv", as_csv), (".tex", latex)):
            path = folder / "tables" / (table.name + suffix)
            write_text(path, form(table))
            written.append(path)
    pictures = _pictures(study, say)
    written += [path for picture in pictures for path in (picture.svg, picture.png)]
    for name, text in (("best.toml", best_toml(study)), ("report.html", page(study, made, pictures))):
        write_text(folder / name, text)
        written.append(folder / name)
    return written


def _pictures(study: Study, say: Callable[[str], object]) -> list[Picture]:
    (study.folder / "figures").mkdir(exist_ok=True)
    try:
        return figures(study, study.folder / "figures")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        say("no figures, since matplotlib is not installed: pip install 'gradless[plots]'")
        return []
