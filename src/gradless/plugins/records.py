"""What a run records of its plugins, and whether the loaded ones are the same. Nothing here imports a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gradless.errors import BadInput
from gradless.plugins.imports import short_name
from gradless.plugins.loading import LOADED, Plugin, find, installed
from gradless.plugins.tables import TABLES, folded

SHORT: Final = 12  # digits of a hash in a sentence
Names = Mapping[str, Iterable[str]]  # of parts that a run uses, by table


def used(names: Names) -> dict[str, str]:
    """Return the loaded plugins that define any of these parts, as a configuration holds them: key and record."""
    asked = {(table, folded(name)) for table, some in names.items() for name in some}
    return {
        plugin.key: plugin.record
        for plugin in LOADED.values()
        if asked & {(table, folded(name)) for table, rows in plugin.rows.items() for name in rows}
    }


def require(names: Names, recorded: Mapping[str, str]) -> None:
    """Import the installed packages that define these parts, and refuse a run whose plugins are not loaded.

    Args:
        names: parts that the run uses, by table.
        recorded: its plugins, as `used` returned them. Nothing in it is imported.

    Raises:
        BadInput: a plugin is missing; the sentence names it.
    """
    for table, some in names.items():
        for name in some:
            find(table, name)
    for key in absent(recorded):
        raise BadInput(missing(key, recorded[key]))


def absent(recorded: Iterable[str]) -> list[str]:
    """Return which plugins of a record are not loaded."""
    loaded = {short_name(key) for key in LOADED}
    return [key for key in recorded if short_name(key) not in loaded]


def missing(key: str, record: str) -> str:
    """Return the sentence about a plugin of a run that is not loaded."""
    sha256, _, package = record.partition(" ")
    if not key.endswith(".py"):
        facts = f"{package or 'of no package'}, sha256 {sha256[:SHORT]}"
        return f"this run needs the plugin {key} ({facts}): install it, and give it with --plugin {key}"
    path = f", then at {key}" if Path(key).is_absolute() else ""
    renamed = next((short_name(name) for name, one in LOADED.items() if one.sha256 == sha256), None)
    if renamed is not None:
        return f"{renamed} is the plugin that this run knows as {short_name(key)}: give it under that name"
    return (
        f"this run needs the plugin {short_name(key)} (sha256 {sha256[:SHORT]}{path}): give it with --plugin FILE, in "
        "Python with gradless.plugins.load"
    )


def check(names: Names, recorded: Mapping[str, str]) -> None:
    """Refuse to repeat a run with another plugin than its own.

    Raises:
        BadInput: a plugin is missing, has changed, or defines what the run had from gradless itself.
    """
    require(names, recorded)
    if changed := difference(recorded, used(names)):
        raise BadInput(f"{changed}: give the plugin that the run was made with")


def used_again(names: Names, recorded: Mapping[str, str]) -> dict[str, str]:
    """Return `used`, for settings that may record plugins already.

    Raises:
        BadInput: a plugin is not the one that the settings record.
    """
    now = used(names)
    again = {key: record for key, record in recorded.items() if short_name(key) in named(now)}
    if changed := difference({**now, **again}, now):
        raise BadInput(f"{changed}: give the plugin that the settings name")
    return now


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return in what two records of plugins differ, as a sentence; the places of files do not count."""
    before, after = named(old), named(new)
    for name in sorted({*before, *after}):
        a, b = before.get(name), after.get(name)
        if a is None:
            return f"the plugin {name} was not used and is now"
        if b is None:
            return f"the plugin {name} was used and is not now"
        if a.partition(" ")[0] != b.partition(" ")[0]:
            return f"the plugin {name} has changed: sha256 {a[:SHORT]} then, {b[:SHORT]} now"
    return ""


def named(recorded: Mapping[str, str]) -> dict[str, str]:
    """Return a record of plugins without the folders of this machine."""
    return {short_name(key): record for key, record in recorded.items()}


def versions(recorded: Mapping[str, str]) -> dict[str, str]:
    """Return a record of plugins as lines beside the versions of libraries."""
    return {f"plugin {name}": f"sha256 {record}" for name, record in named(recorded).items()}


def note(recorded: Mapping[str, str]) -> str:
    """Return what a reader of runs misses for want of their plugins, as a sentence; empty if nothing."""
    gone = sorted({short_name(key) for key in absent(recorded)})
    if gone:
        return f"the plugin {', '.join(gone)} is not loaded (give it with --plugin), so its parts are names alone"
    now = {short_name(key): plugin.record for key, plugin in LOADED.items()}
    return difference(recorded, {name: now[name] for name in named(recorded)})


def listed(what: str, rows: Mapping[str, str]) -> dict[str, str]:
    """Return the lines of ``gradless list`` with their plugins, and what installed packages declare, unimported.

    Args:
        what: the list.
        rows: a line for each name.
    """
    tables = [table for table in TABLES if table == what or (what, table) == ("aggregators", "pre_aggregators")]
    owners = {
        name: short_name(one.key) for one in LOADED.values() for table in tables for name in one.rows.get(table, ())
    }
    lines = {name: f"{about} [{owners[name]}]" if name in owners else about for name, about in rows.items()}
    for table in tables:
        for name, package in installed(table).items():
            lines.setdefault(name, f"[{package}, imported when it is named]")
    return lines


def loaded_files() -> list[str]:
    """Return the paths of loaded plugins that are files."""
    return [key for key in LOADED if key.endswith(".py")]


def arguments(recorded: Iterable[str]) -> list[str]:
    """Return the options that load these plugins in another process."""
    return [part for key in recorded for part in ("--plugin", key)]


def unused(plugins: Iterable[Plugin], recorded: Iterable[str]) -> str:
    """Return a sentence about plugins that somebody gave and a run does not use, or ``""``."""
    idle = [plugin for plugin in plugins if plugin.key not in recorded]
    return "; ".join(f"the plugin {short_name(one.key)} is not used: it defines {one.parts}" for one in idle)
