"""Tables of text on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gradless.system import terminal


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> None:
    """Print a table: with rich on a terminal, as aligned plain lines elsewhere.

    Args:
        title: a line above it.
        heads: of the columns.
        rows: one text for each column.
        left: columns that are aligned to the left; all others to the right.
    """
    if terminal.live():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=terminal.cell(title, "italic"))
        for number, head in enumerate(heads):
            table.add_column(terminal.cell(head), justify="left" if number in left else "right")
        for row in rows:
            table.add_row(*map(terminal.cell, row))
        Console().print(table)
        return
    terminal.say(title)
    lines = [[terminal.escaped(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        cells = (
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        terminal.say("  ".join(cells).rstrip())
