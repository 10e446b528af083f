"""Settings of a run from a file, in the names of `gradless.config.TuneConfig`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradless.config import check_types
from gradless.errors import BadInput, unknown


def read(path: Path, cell: str | None = None) -> dict[str, Any]:
    """The settings in a TOML or JSON file.

    A file holds settings by name, or, like ``best.toml`` of a benchmark, several of them as tables ``[cell."NAME"]``.

    Args:
        path: the file; relative paths inside it are left as they are.
        cell: which of several; may be left out where there is one.

    Raises:
        BadInput: no such file, not TOML or JSON, a setting that does not exist, or a choice of cells.
    """
    try:
        text = path.read_text()
        found: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): give a file that exists") from None
    except ValueError as error:
        raise BadInput(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'} ({error}): mend it") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no settings: write them as name = value")
    found = found.get("config", found)
    if isinstance(found, dict) and "cell" in found:
        found = _choose(path, found["cell"], cell)
    elif cell is not None:
        raise BadInput(f"{path} holds the settings of one run: leave out --cell")
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no settings: write them as name = value")
    try:
        check_types(found)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    return dict(found)


def _choose(path: Path, cells: Any, name: str | None) -> Any:
    if not isinstance(cells, dict) or not cells:
        raise BadInput(f'{path} holds no cells: write each as a table [cell."NAME"]')
    if name is None and len(cells) == 1:
        (name,) = cells
    if name is None:
        raise BadInput(f"{path} holds {len(cells)} cells: choose one with --cell, e.g. --cell {next(iter(cells))}")
    if name not in cells:
        raise BadInput(f"{path}: {unknown('cell', name, list(cells))}")
    return cells[name]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["keep=0.25", "mask=wanda"]`` as a dictionary; what is no number is a word.

    Raises:
        BadInput: no ``=`` in one of them.

    Example:
        >>> parse_options(["keep=0.25", "mask=wanda"])
        {'keep': 0.25, 'mask': 'wanda'}
    """
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadInput(f"--set {pair} is no option: write --set name=value")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
