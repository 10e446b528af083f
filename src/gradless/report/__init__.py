"""``gradless report``: tables, pictures and one page of a run, a peer's run, a benchmark, or collaborative runs.

`report` writes everything; `tables` gives the tables as data, which `show_tables` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gradless.report import peers as peers_report
from gradless.report import run as run_report
from gradless.report.bench import intervals
from gradless.report.bench import page as bench_page
from gradless.report.bench import tables as bench_tables
from gradless.report.bench.figures import figures as bench_figures
from gradless.report.bench.selection import best_toml
from gradless.report.bench.study import Study, load
from gradless.report.collab import connectivity
from gradless.report.collab import page as collab_page
from gradless.report.collab import study as collab_study
from gradless.report.collab import tables as collab_tables
from gradless.report.common.numbers import count_endings
from gradless.report.common.pictures import Picture, drawn
from gradless.report.common.table import Table, as_csv, latex, markdown, show_tables
from gradless.report.peers import record as peers_record
from gradless.report.run import record
from gradless.system import terminal
from gradless.system.atomic import write_text

__all__ = ["Study", "Table", "load", "report", "show_tables", "tables"]


def tables(folder: Path) -> list[Table]:
    """The tables of a run (in brief), a bench directory or of collaborative runs as plain data; writes nothing.

    Raises:
        BadInput: there is no result in the directory.
    """
    if peers_record.is_peers(folder):
        return peers_report.brief(peers_record.load(folder))
    if collab_study.is_collab(folder):
        return _collab_tables(collab_study.load(folder))
    if record.is_run(folder):
        return run_report.brief(record.load(folder))
    return bench_tables.all_tables(load(folder))


def report(folder: Path, *, say: Callable[[str], object] = terminal.say) -> list[Path]:
    """Write ``tables/`` (md, csv, tex), ``figures/`` (svg, png) and ``report.html``; of a benchmark ``best.toml`` too.

    Of a single run, or of the folder of a peer, only ``report.html``. What is there is reported, complete or not.
    Without matplotlib (extra ``plots``) there are no figures.

    Args:
        folder: run directory of `gradless tune` or `gradless peers run`, or directory with ``results.jsonl``, of
            `gradless bench` or `gradless collab simulate`.
        say: takes a line at a time: how many runs there are, what is missing.

    Returns:
        The files written, the page last.

    Raises:
        BadInput: there is no result in the directory, or its grid cannot be read.
    """
    if peers_record.is_peers(folder):
        return peers_report.write(folder, say)
    if collab_study.is_collab(folder):
        return _report_collab(folder, say)
    if record.is_run(folder):
        return run_report.write(folder, say)
    study = load(folder)
    _announce((run.status for run in study.runs), bench_page.shortfall(study), bench_page.note(study), say)
    if not intervals.available():
        say("no intervals and no ranks, since scipy is not installed: pip install 'gradless[bench]'")
    results = bench_tables.all_tables(study)
    written = _write_tables(folder, results)
    pictures = _draw(folder, lambda into: bench_figures(study, into), say)
    write_text(folder / "best.toml", best_toml(study))
    write_text(folder / "report.html", bench_page.page(study, results, pictures))
    return [*written, *_files(pictures), folder / "best.toml", folder / "report.html"]


def _report_collab(folder: Path, say: Callable[[str], object]) -> list[Path]:
    study = collab_study.load(folder)
    _announce((run.status for run in study.runs), collab_page.shortfall(study), collab_page.note(study), say)
    results = _collab_tables(study)
    written = _write_tables(folder, results)
    pictures = _draw(folder, lambda into: collab_page.figures(study, into), say)
    write_text(folder / "report.html", collab_page.page(study, results, pictures))
    return [*written, *_files(pictures), folder / "report.html"]


def _collab_tables(study: collab_study.Collab) -> list[Table]:
    return [*collab_tables.all_tables(study), *connectivity.table(study)]


def _announce(statuses: Iterable[str], shortfall: str, note: str, say: Callable[[str], object]) -> None:
    say(count_endings(statuses))
    if shortfall:
        say(f"not complete: {shortfall}")
    if note:
        say(f"note: {note}")


def _write_tables(folder: Path, results: Sequence[Table]) -> list[Path]:
    written = []
    (folder / "tables").mkdir(exist_ok=True)
    for table in results:
        for suffix, form in ((".md", markdown), (".csv", as_csv), (".tex", latex)):
            written.append(folder / "tables" / (table.name + suffix))
            write_text(written[-1], form(table))
    return written


def _draw(folder: Path, draw: Callable[[Path], list[Picture]], say: Callable[[str], object]) -> Sequence[Picture]:
    (folder / "figures").mkdir(exist_ok=True)
    return drawn(lambda: draw(folder / "figures"), say) or []


def _files(pictures: Sequence[Picture]) -> list[Path]:
    return [path for picture in pictures for path in (picture.svg, picture.png)]
