"""Plugins are imported: files, modules, and what installed packages declare as entry points."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from gradless.errors import BadInput
from gradless.plugins.imports import explained, package_sha256, run_file, short_name
from gradless.plugins.tables import REPLACES, TABLES, Rows, added, folded, made_by, rows_of, title

if TYPE_CHECKING:
    from importlib import metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """A plugin that is loaded."""

    key: str
    """Absolute path of a file, or dotted name of a module: what ``--plugin`` takes."""
    sha256: str
    """Of the file, or of all Python files of the module's package."""
    package: str = ""
    """``name==version`` of the distribution that a module came with."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """What it defines: by table, the names with the rows that they had before, or None."""

    @property
    def record(self) -> str:
        """The hash, and the distribution if there is one, as configurations hold it."""
        return f"{self.sha256} {self.package}".rstrip()

    @property
    def parts(self) -> str:
        """What it defines, for people."""
        return ", ".join(f"{table} {', '.join(names)}" for table, names in self.rows.items())


LOADED: Final[dict[str, Plugin]] = {}
"""Loaded plugins by `Plugin.key`."""


def load(specs: str | Path | Iterable[str | Path], *, folder: Path | None = None) -> list[Plugin]:
    """Import plugins, and return them; one that is loaded already stays, unless its file has changed since.

    Args:
        specs: one or several, each a Python file (ends in ``.py``, or a `Path`) or the dotted name of a module.
        folder: what relative paths are relative to; by default the current folder.

    Raises:
        BadInput: there is no such plugin, it fails, defines nothing, or defines what cannot be; all tables are then as
            they were.
    """
    plugins = []
    for spec in [specs] if isinstance(specs, str | Path) else specs:
        text = str(spec)
        if isinstance(spec, Path) or text.endswith(".py") or "/" in text or "\\" in text:
            plugins.append(_load_file((folder or Path()) / Path(text).expanduser()))
        else:
            plugins.append(_load_module(text))
    return plugins


def find(table: str, name: Any) -> None:
    """Import the installed package that declares a part as an entry point, unless the part is known already.

    Args:
        table: key of `TABLES`.
        name: of the part, in its own spelling.

    Raises:
        BadInput: two packages declare it, or the package cannot be imported.
    """
    from importlib import metadata  # late: it takes longer than the help

    if not isinstance(name, str) or folded(name) in map(folded, rows_of(table)):
        return
    points = list(metadata.entry_points(group=f"gradless.{table}", name=name))
    if not points:
        return
    if len({point.value for point in points}) > 1:
        packages = " and ".join(sorted(_package(point.dist) for point in points))
        raise BadInput(f"{packages} both define '{name}' of the {title(table)}: uninstall one of them")
    point = points[0]
    with _undone_if_it_fails():
        _load_module(point.module, _package(point.dist), point if point.attr else None)
        if name not in rows_of(table):
            raise BadInput(
                f"the package {_package(point.dist)} promises '{name}' of the {title(table)}, and {point.module} does "
                "not define it: tell its authors"
            )


def installed(table: str) -> dict[str, str]:
    """Return the names that installed packages declare for a table, and ``package==version``; nothing is imported."""
    from importlib import metadata

    points = metadata.entry_points(group=f"gradless.{table}")
    return {point.name: _package(point.dist) for point in sorted(points, key=lambda point: point.name)}


def _load_file(path: Path) -> Plugin:
    """Run the very bytes that are hashed; no compiled copy of them is read or written."""
    key = str(path.resolve())
    if path.suffix != ".py":
        raise BadInput(f"the plugin {path} is no Python file: give a file that ends in .py, or the name of a module")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"the plugin {path} cannot be read ({error.strerror or error}): give a file that exists"
        ) from None
    sha256 = hashlib.sha256(source).hexdigest()
    if key in LOADED and LOADED[key].sha256 == sha256:
        return LOADED[key]
    for other in LOADED:
        if short_name(other) == path.name and other != key:
            raise BadInput(f"two plugins are called {path.name}, {other} and {key}: rename one")
    with _undone_if_it_fails():
        if key in LOADED:
            _unload(LOADED.pop(key))
        return _entered(Plugin(key=key, sha256=sha256), lambda: run_file("gradless_plugin", key, source))


def _load_module(name: str, package: str = "", point: metadata.EntryPoint | None = None) -> Plugin:
    """Import a module, or the object in it that an entry point names, which becomes the row of that name."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise BadInput(f"{name!r} is no plugin: give a Python file, such as own.py, or the name of a module")
    if name in LOADED and point is None:
        return LOADED[name]
    imported_before = name in sys.modules

    def run() -> ModuleType:
        module = importlib.import_module(name)
        if point is not None:
            rows_of(point.group.removeprefix("gradless."))[point.name] = point.load()
        return module

    with _undone_if_it_fails():
        return _entered(Plugin(key=name, sha256="", package=package), run, LOADED.pop(name, None), imported_before)


@contextlib.contextmanager
def _undone_if_it_fails() -> Iterator[None]:
    """Put all tables back as they were if the block raises."""
    tables, loaded = {table: dict(rows_of(table)) for table in TABLES}, dict(LOADED)
    try:
        yield
    except BaseException:
        for rows, old in ((LOADED, loaded), *((rows_of(table), old) for table, old in tables.items())):
            rows.clear()
            rows.update(old)
        raise


def _entered(plugin: Plugin, run: Callable[[], ModuleType], known: Plugin | None = None, claim: bool = False) -> Plugin:
    """Import a plugin and enter it among the loaded ones.

    Args:
        plugin: without its rows, and a module without its hash.
        run: imports it.
        known: the same plugin, of which another row was asked for before.
        claim: whether rows that functions of the module make are its own, for it was imported before.
    """
    tables = {table: dict(rows_of(table)) for table in TABLES}
    with explained(f"the plugin {short_name(plugin.key)}", plugin.key):
        module = run()
    rows = {table: dict(some) for table, some in known.rows.items()} if known else {}
    for table, old in tables.items():
        for name in added(short_name(plugin.key), table, old, getattr(module, REPLACES, ()), _owner):
            rows.setdefault(table, {})[name] = old.get(name)
        for name, row in old.items() if claim else ():
            if made_by(row, plugin.key):
                rows.setdefault(table, {}).setdefault(name, None)
    if not rows:
        raise BadInput(
            f"the plugin {short_name(plugin.key)} defines nothing: let it add a row to a table, as in "
            'gradless.methods.METHODS["mine"] = Method(...)'
        )
    sha256 = plugin.sha256 or package_sha256(module)
    package = plugin.package or ("" if plugin.sha256 else _package_of(plugin.key))
    LOADED[plugin.key] = Plugin(key=plugin.key, sha256=sha256, package=package, rows=rows)
    return LOADED[plugin.key]


def _owner(table: str, name: str) -> str:
    """Return the name of the plugin that defines a row; empty if none does."""
    return next((short_name(one.key) for one in LOADED.values() if name in one.rows.get(table, ())), "")


def _unload(plugin: Plugin) -> None:
    """Take a plugin's rows out of the tables, and put back what it had replaced."""
    for table, names in plugin.rows.items():
        for name, previous in names.items():
            if previous is None:
                rows_of(table).pop(name, None)
            else:
                rows_of(table)[name] = previous


def _package(dist: metadata.Distribution | None) -> str:
    return f"{dist.name}=={dist.version}" if dist is not None else "a package without a name"


def _package_of(module: str) -> str:
    """Return ``name==version`` of the distribution that a module came with, if there is one."""
    from importlib import metadata

    names = metadata.packages_distributions().get(module.partition(".")[0], [])
    return _package(metadata.distribution(names[0])) if names else ""
