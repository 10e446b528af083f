"""Names of columns that have spaces around them in the data, and none in a template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradless.tasks.files import BLANK


def spaced(columns: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Return the columns that are wanted but for the spaces around their names, each with the name that is wanted.

    Example:
        >>> spaced(["text", " label "], ["text", "label"])
        {' label ': 'label'}
    """
    known = [*columns]
    renamed = {}
    for name in wanted:
        if name not in known:
            alike = [one for one in known if isinstance(one, str) and one.strip("\ufeff" + BLANK) == name]
            if len(alike) == 1:
                renamed[alike[0]] = name
    return renamed


def named(cells: Mapping[str, Any], wanted: Sequence[str]) -> Mapping[str, Any]:
    """Return a row whose columns have the names that are wanted, if they are there with spaces around them."""
    if all(name in cells for name in wanted):
        return cells
    renamed = spaced(cells, wanted)
    return {renamed.get(name, name): value for name, value in cells.items()} if renamed else cells


def note(columns: Iterable[str]) -> str:
    """Say that spaces around names of columns are left out."""
    return f"spaces around names of columns are left out ({', '.join(map(repr, [*columns][:5]))})"
