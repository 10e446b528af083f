"""Tables of pages: settings, fields of files, commands, tasks, results; committed, so that a forge shows them.

    python docs/site/fields.py           write the tables into their pages
    python docs/site/fields.py --check   exit code 1 if a page has another table

In a page a table stands between ``<!-- fields: NAME -->`` and ``<!-- end -->``, where NAME is a key of `TABLES`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import click
import command_pages
import leaderboard
import result_tables
from msgspec import Meta

from gradless.bench import grid_file
from gradless.cli import completion, main
from gradless.cli.collab import collab
from gradless.collab.config import CollabConfig
from gradless.collab.network.delivery import Delivery
from gradless.methods import METHODS
from gradless.runs import facts, record
from gradless.runs.config import DEFAULTS, OwnFiles, TuneConfig
from gradless.runs.config_io import spelling
from gradless.system import support, typed
from gradless.system.typed import Flag, Names, Setting

DOCS: Final = Path(__file__).parents[1]
REGION: Final = re.compile(r"(<!-- fields: (\w+) -->\n)(?:(?!<!--).)*(<!-- end -->)", re.S)
MANY: Final = 8
"""Names of a table from here on are not written out: ``gradless list`` has them."""


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings(record: type[typed.Record], command: click.Command | None = None) -> str:
    """Return the table of a record of settings: key, values, default, option of a command, meaning."""
    spellings = {"/".join((*p.opts, *p.secondary_opts)) for p in command.params} if command is not None else set()
    rows = []
    for setting in typed.settings(record).values():
        flag = spelling(setting)
        option = (f"`{flag.replace('/', '` or `')}`" if flag in spellings else "-",) if command is not None else ()
        rows.append((f"`{setting.name}`", values(setting), default(record, setting), *option, meaning(setting)))
    return table(("key", "values", "default", *(("option",) if command is not None else ()), "meaning"), rows)


def values(setting: Setting) -> str:
    """Return in words what a setting takes."""
    names, flag = setting.metadata(Names), setting.metadata(Flag)
    if names is not None:
        known = [*names.load()] if names.table else [*completion.TABLES[names.kind]()]
        listed = f"a name of `gradless list {names.kind}s`" if len(known) >= MANY else _codes(known)
        text = listed if names.closed else f"text, such as {listed}"
    elif set(setting.types) <= {Literal, types.NoneType}:
        text = _codes(typed.choices(setting.hint))
    elif any(map(dataclasses.is_dataclass, setting.types)):
        text = "a table"
    elif flag is not None and flag.path:
        text = {"file": "path of a file", "folder": "path of a folder"}.get(
            flag.path, "path of a file or folder, or a hub name"
        )
    else:
        text = typed.expected(setting.hint)
    limits = setting.metadata(Meta)
    if limits is not None and isinstance(limits.le, int) and limits.le >= typed.FAR:
        text += f" and at most {_rounded(limits.le)}"
    return text


def _codes(choices: list[str]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def _rounded(number: int) -> str:
    """Return a large number as a power where it is one."""
    if number == typed.LARGEST:
        return "2^63 - 1"
    zeros = len(str(number)) - 1
    return f"10^{zeros}" if number == 10**zeros and zeros > 3 else f"{number:,}"


def default(record: type[typed.Record], setting: Setting) -> str:
    """Return the default as a file would write it; "required" and "-" where there is none."""
    (field,) = (one for one in dataclasses.fields(record) if one.name == setting.name)
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if value is None or dataclasses.is_dataclass(value):
        return "-"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def meaning(setting: Setting) -> str:
    """Return its help, and the rest of its docstring."""
    return f"{setting.help} {setting.details}".strip().replace("``", "`")


def fields(record: type, *without: str) -> str:
    """Return the table of the fields of a file's record: name, type, meaning."""
    hints = typing.get_type_hints(record, include_extras=True)
    helps = typed.docstrings(record)
    rows = []
    for name, hint in hints.items():
        if name in without:
            continue
        optional = " or null" if types.NoneType in typing.get_args(hint) else ""
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = any(hasattr(member, "__struct_fields__") for member in members)
        about = " ".join(helps.get(name, ())).strip().replace("``", "`")
        rows.append((f"`{name}`", ("a table" if plain else typed.expected(hint)) + optional, about))
    return table(("field", "value", "meaning"), rows)


def decided() -> str:
    """Return the settings of a run that a grid decides itself."""
    return table(("setting of a run", "in a grid"), [(f"`{name}`", fix) for name, fix in grid_file.DECIDED.items()])


def rates() -> str:
    """Return the first guesses of learning rate and perturbation scale by scheme."""
    rows = [(f"`{scheme}`", f"{lr:g}", f"{eps:g}") for scheme, (lr, eps) in DEFAULTS.items()]
    return table(("scheme", "`lr`", "`eps`"), rows)


def states() -> str:
    """Return what the states of support mean."""
    return table(("state", "meaning"), [(state, about) for state, about in support.STATES.items()])


def support_of(rows: dict[str, support.Support], name: str = "{}") -> str:
    """Return the table of the support of some versions, systems or devices."""
    return table(("", "state", ""), [(name.format(what), row.state, row.about) for what, row in rows.items()])


def method_options() -> str:
    """Return the options of all methods that have some."""
    rows = []
    for name, method in METHODS.items():
        options = {option: value for option, value in method.options().items() if option != "queries"}
        if options:
            rows.append(
                (f"`{name}`", ", ".join(f"`{option} = {json.dumps(value)}`" for option, value in options.items()))
            )
    return table(("method", "options and their defaults"), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "tune": lambda: settings(TuneConfig, main.commands["tune"]),
    "own": lambda: settings(OwnFiles, main.commands["tune"]),
    "collab": lambda: settings(CollabConfig, collab.commands["simulate"]),
    "delivery": lambda: settings(Delivery, collab.commands["simulate"]),
    "grid": lambda: settings(grid_file.Keys),
    "budget": lambda: settings(grid_file.BudgetKeys),
    "when": lambda: settings(grid_file.WhenKeys),
    "decided": decided,
    "rates": rates,
    "method_options": method_options,
    "states": states,
    "pythons": lambda: support_of({**support.PYTHONS, "3.10 and older": support.OLDER}, "Python {}"),
    "systems": lambda: support_of(support.SYSTEMS),
    "devices": lambda: support_of(support.DEVICES),
    "result": lambda: fields(record.Result),
    "data": lambda: fields(facts.DataFacts, "time"),
    "step": lambda: fields(record.StepLine),
    "evaluation": lambda: fields(record.EvaluationLine),
    "inference": lambda: fields(record.InferenceLine),
    "commands": command_pages.reference,
    **result_tables.TABLES,
    **leaderboard.TABLES,
}


def filled(text: str) -> str:
    """Return the text of a page with the tables of this moment."""
    return REGION.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", text)


def write(arguments: list[str]) -> int:
    """Write the tables, or say which pages have others."""
    stale = 0
    for path in sorted(DOCS.rglob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new == old:
            continue
        stale += 1
        print(f"{path.relative_to(DOCS.parent)}: {'another table' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            path.write_text(new, encoding="utf-8")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(write(sys.argv[1:]))
