"""The tables that plugins may add to, and checks of the rows that they add."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from gradless.errors import BadInput

TABLES: Final[dict[str, str]] = {
    "methods": "methods:METHODS",
    "directions": "directions:DIRECTIONS",
    "estimators": "estimators:ESTIMATORS",
    "rules": "rules:RULES",
    "schedules": "rules.schedules:SCHEDULES",
    "tasks": "tasks:TASKS",
    "rewards": "rewards.builtin:BUILTIN",
    "objectives": "lm.objectives:OBJECTIVES",
    "aggregators": "collab.aggregators:AGGREGATORS",
    "pre_aggregators": "collab.aggregators:PRE_AGGREGATORS",
    "attacks": "collab.attacks:ATTACKS",
    "algorithms": "collab.algorithms:ALGORITHMS",
    "splits": "collab.data.splits:SPLITS",
    "nets": "collab.learners.nets:NETS",
    "datasets": "collab.data.datasets:DATASETS",
}
"""Tables that plugins may add to, as ``module:TABLE`` below ``gradless``. Entry points are of the group
``gradless.NAME``."""
NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*")
REPLACES: Final = "REPLACES"
"""Variable of a plugin: built-in names that it replaces."""

Rows = dict[str, Any]


def rows_of(table: str) -> Rows:
    """Return a table, whose module is imported."""
    module, _, name = TABLES[table].partition(":")
    rows: Rows = getattr(importlib.import_module(f"gradless.{module}"), name)
    return rows


def table_of(path: str) -> str:
    """Return the key of `TABLES` for ``module:TABLE``; empty if plugins cannot add to it."""
    return next((table for table, known in TABLES.items() if known == path), "")


def folded(name: str) -> str:
    """Return a name without case and punctuation; no two rows of a table differ in these alone."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def title(table: str) -> str:
    """Return what a table holds, for a sentence."""
    return table.replace("_", "-")


def added(plugin: str, table: str, old: Rows, replaces: Iterable[str], owner: Callable[[str, str], str]) -> list[str]:
    """Return the names of a table that a plugin has added or replaced, each checked.

    Args:
        plugin: its name, for sentences.
        table: key of `TABLES`.
        old: the rows before.
        replaces: names that it says it replaces.
        owner: returns the plugin that defined a name of a table before; empty if gradless did.

    Raises:
        BadInput: a row is removed, or replaced without a word, its name or type is wrong, or it is too like another.
    """
    now = rows_of(table)
    if removed := sorted(old.keys() - now.keys()):
        raise BadInput(f"the plugin {plugin} removes '{removed[0]}' from the {title(table)}: leave it there")
    names = [name for name, row in now.items() if name not in old or old[name] is not row]
    for name in names:
        where = f"the plugin {plugin} defines {name!r} of the {title(table)}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadInput(f"{where}: choose a name of letters, digits, '-', '_' and '.'")
        if name in old:
            if other := owner(table, name):
                raise BadInput(f"{where}, and so does the plugin {other}: rename one")
            if name not in replaces:
                raise BadInput(f"{where}, which gradless has: rename it, or say {REPLACES} = ({name!r},) in the plugin")
        twin = next((other for other in now if other != name and folded(str(other)) == folded(name)), None)
        if twin is not None:
            raise BadInput(f"{where}, which is too much like '{twin}': rename it")
        if problem := _problem(name, now[name], next(iter(old.values()))):
            raise BadInput(f"{where} {problem}")
    return names


def _problem(name: str, row: Any, example: Any) -> str:
    """Return what is wrong with a row, as the end of a sentence."""
    kind = type(example)
    if not (callable(row) if callable(example) else isinstance(row, kind)):
        return f"as {type(row).__name__}: make it a {kind.__module__}.{kind.__name__}"
    own_name = getattr(row, "name", name)
    if isinstance(own_name, str) and own_name != name:
        return f"and calls it '{own_name}' in the row: write one name"
    problem: str = row.problem() if hasattr(row, "problem") else ""
    return problem


def made_by(row: Any, module: str) -> bool:
    """Whether a function of a module makes a row."""
    values = row if isinstance(row, tuple) else (getattr(row, "render", row),)
    homes = {getattr(value, "__module__", None) for value in values if callable(value)}
    return any(home == module or str(home).startswith(f"{module}.") for home in homes)
