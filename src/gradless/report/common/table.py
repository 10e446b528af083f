"""A table as data, and its forms: Markdown, CSV, LaTeX, and lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from gradless.report.common.numbers import Score, comparable
from gradless.system import terminal

NOTHING = "\u2013"
DAGGER = "†"
STAR = "*"
COMMANDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
FORMULAS = {"±": "pm", "\u00d7": "times", "·": "cdot", "≤": "leq", "\u2191": "uparrow"}
FORMULAS |= {"\u03b1": "alpha", "\u03b3": "gamma"}
LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {letter: f"\\text{command}{{}}" for letter, command in COMMANDS.items()}
    | {letter: f"$\\{command}$" for letter, command in FORMULAS.items()}
    | {"†": r"$^\dagger$", "\u2212": "$-$", "\u2013": "--", '"': "''", "\n": " ", "\r": " "}
)


class Item(NamedTuple):
    """One entry of a table."""

    text: str = NOTHING
    best: bool = False
    """The best of its column (or row, as the caption says)."""
    best_zo: bool = False
    """The best of the zeroth-order methods."""
    warn: bool = False

    @property
    def empty(self) -> bool:
        """Nothing was measured."""
        return self.text == NOTHING


class Column(NamedTuple):
    """A heading, below that of its group if it has one."""

    name: str
    group: str = ""

    @property
    def flat(self) -> str:
        """Both in one line."""
        return f"{self.group}, {self.name}" if self.group else self.name


class Table(NamedTuple):
    """What is printed, and as ``records`` the same numbers unrounded, one measurement each."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    labels: int
    """So many columns on the left name the row; the others hold numbers."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Item, ...], ...]
    records: tuple[dict[str, Any], ...]

    @property
    def groups(self) -> list[list[tuple[Item, ...]]]:
        """Rows that share all labels but the last, which only the first row of a group shows."""
        shared = self.labels - 1
        blank = (Item(""),) * shared
        groups = [list(rows) for _, rows in groupby(self.rows, lambda row: [item.text for item in row[:shared]])]
        return [[rows[0], *((*blank, *row[shared:]) for row in rows[1:])] for rows in groups]

    @property
    def grouped(self) -> bool:
        """Some columns have a group's heading."""
        return any(column.group for column in self.columns)

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Groups of neighbouring columns, with their widths."""
        return [(group, len(list(columns))) for group, columns in groupby(self.columns, lambda column: column.group)]


def markdown(table: Table) -> str:
    """Title, a pipe table and the caption. Best of all in bold, best zeroth-order method with a dagger."""

    def entry(item: Item) -> str:
        text = _marked(item).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
        text = text.replace("<", "&lt;").replace("*", "\\*")
        return f"**{text}**" if item.best else text

    heads = [entry(Item(column.flat)) for column in table.columns]
    rule = ["---" if index < table.labels else "---:" for index in range(len(heads))]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, rule, *([entry(i) for i in row] for row in table.rows))]
    return "\n".join([f"### {table.title}", "", *lines, "", table.caption, ""])


def as_csv(table: Table) -> str:
    """The records, unrounded; empty where there is no number."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def latex(table: Table) -> str:
    r"""A ``table`` with ``\toprule`` and friends; needs the package booktabs."""
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering\\small",
        f"\\caption{{{escape_latex(table.title + '. ' + table.caption)}}}",
        f"\\label{{tab:{table.name}}}",
        f"\\begin{{tabular}}{{{'l' * table.labels}{'r' * (len(table.columns) - table.labels)}}}",
        "\\toprule",
        *_latex_heads(table),
        "\\midrule",
    ]
    for number, rows in enumerate(table.groups):
        lines += ["\\addlinespace"] if number else []
        for row in rows:
            lines.append(" & ".join(_latex_entry(item) for item in row) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def _latex_heads(table: Table) -> list[str]:
    last = " & ".join(escape_latex(column.name) for column in table.columns) + " \\\\"
    if not table.grouped:
        return [last]
    cells, rules, start = [], [], 1
    for group, width in table.spans:
        cells.append(f"\\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}" if group else " & " * (width - 1))
        rules += [f"\\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    return [" & ".join(cells) + " \\\\", " ".join(rules), last]


def _latex_entry(item: Item) -> str:
    text = escape_latex(item.text)
    text = f"\\textbf{{{text}}}" if item.best else text
    return text + ("$^\\dagger$" if item.best_zo else "") + ("$^!$" if item.warn else "")


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(LATEX)


def show_tables(tables: Sequence[Table], *, live: bool, echo: Callable[[str], Any] = terminal.say) -> None:
    """Print tables: with rich on a terminal (``live``), as plain aligned lines through ``echo`` elsewhere."""
    for table in tables:
        if live:
            _show_rich(table)
        else:
            for line in plain(table).split("\n"):
                echo(line)
            echo("")


def plain(table: Table) -> str:
    """Aligned text without colours; the best of all has a star, the best zeroth-order method a dagger."""
    cells = [[column.flat for column in table.columns]]
    cells += [[_marked(item) + (STAR if item.best else "") for item in row] for row in table.rows]
    cells = [[terminal.escaped(text) for text in row] for row in cells]
    widths = [max(len(row[index]) for row in cells) for index in range(len(table.columns))]

    def line(row: list[str]) -> str:
        padded = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        padded[: table.labels] = [text.ljust(width) for text, width in zip(row[: table.labels], widths, strict=False)]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    text = [terminal.escaped(table.title), line(cells[0]), rule, *map(line, cells[1:])]
    return "\n".join([*text, *legend(table, star=STAR)])


def legend(table: Table, *, star: str) -> list[str]:
    """Return a line that explains the marks of a table in a terminal, ``star`` that of the best; none without marks."""
    items = [item for row in table.rows for item in row]
    marks = [f"{star}: best of all"] if any(item.best for item in items) else []
    marks += [f"{DAGGER}: best zeroth-order method"] if any(item.best_zo for item in items) else []
    return ["; ".join(marks)] if marks else []


def _show_rich(table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=terminal.cell(table.title, "bold"), title_justify="left", header_style="dim", box=SIMPLE_HEAD)
    for index, column in enumerate(table.columns):
        head = "\n".join(terminal.escaped(part) for part in (column.group, column.name) if part)
        grid.add_column(Text(head), justify="left" if index < table.labels else "right")
    for rows in table.groups:
        for number, row in enumerate(rows):
            texts = [terminal.cell(_marked(item), _style(item)) for item in row]
            grid.add_row(*texts, end_section=number == len(rows) - 1)
    Console().print(grid)
    for text in legend(table, star="green"):
        terminal.say(text)


def _style(item: Item) -> str:
    return "bold green" if item.best else "bold" if item.best_zo else "yellow" if item.warn else ""


def _marked(item: Item) -> str:
    return item.text + (DAGGER if item.best_zo else "")


def score_text(mean: Score | None, *, usual: int | None = None) -> str:
    """``0.863 ± 0.004``, with the number of seeds where it is not the usual one."""
    if mean is None:
        return NOTHING
    spread = "" if mean.std is None else f" ± {mean.std:.3f}"
    return f"{mean.mean:.3f}{spread}" + ("" if mean.n == usual else f" (n={mean.n})")


def score_record(score: Score | None) -> dict[str, Any]:
    """Mean, standard deviation and number of seeds as fields of a record."""
    return {"mean": score and score.mean, "std": score and score.std, "seeds": score.n if score else 0}


def marked(texts: Sequence[str], scores: Sequence[Score | None], zo: Sequence[bool] = ()) -> list[Item]:
    """Items with the best of all and the best zeroth-order one (where ``zo``) marked; equals share the mark."""
    means = [None if score is None else comparable(score.mean) for score in scores]
    zo_means = [mean if of_zo else None for mean, of_zo in zip(means, zo or [False] * len(means), strict=True)]
    best, best_zo = (max((mean for mean in some if mean is not None), default=math.inf) for some in (means, zo_means))
    return [
        Item(text, mean == best, zo_mean == best_zo) for text, mean, zo_mean in zip(texts, means, zo_means, strict=True)
    ]
