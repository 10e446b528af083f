"""Tables of text on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> None:
    """Print a table: with rich on a terminal, as aligned plain lines elsewhere.

    Args:
        title: a line above it.
        heads: of the columns.
        rows: one text for each column.
        left: columns that are aligned to the left; all others to the right.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title)
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number in left else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    print(title)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = (
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
