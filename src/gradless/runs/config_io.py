"""Settings of a run: read from a file, and written as the command that makes the run again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from gradless.runs.config import check_types
from gradless.errors import BadInput, unknown
import dataclasses
import shlex
from collections.abc import Iterator
from gradless.runs.config import TuneConfig

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


SIZES = ("num_train", "num_dev", "num_test")
NAMES = {"targets": "target"}
REPEATED = ("targets", "freeze")
SWITCHES = {"zero_shot": "--no-zero-shot", "aligned": "--unaligned"}


def tune_command(config: TuneConfig, out: Path | str) -> str:
    """``gradless tune ...`` with every setting that is not the default, quoted for a POSIX shell.

    A run keeps its configuration with all blanks filled in (learning rate, engine and so on), so the command names
    those too, and gives the same run also where a later release has other defaults.

    Example:
        >>> tune_command(TuneConfig(model="gemma-3-270m", task="sst2", lr=3e-6, freeze=("embed",)), "runs/a")
        'gradless tune --model gemma-3-270m --task sst2 --lr 3e-06 --freeze embed --out runs/a'
    """
    return shlex.join(["gradless", "tune", *_options(config), "--out", str(out)])


def _options(config: TuneConfig) -> Iterator[str]:
    for field in dataclasses.fields(TuneConfig):
        name, value = field.name, getattr(config, field.name)
        if name == "own":
            yield from _own(value)
        elif name == "options":
            yield from (part for key, given in value.items() for part in ("--set", f"{key}={_option(given)}"))
        elif name in SIZES and config.own:  # own files are used whole unless a size is given
            yield from (_flag(name), str(value)) if value else ()
        elif value is None or value == _default(field):
            continue
        elif name in SWITCHES:
            yield SWITCHES[name]
        elif name in REPEATED:
            yield from (part for one in value for part in (_flag(name), one))
        else:
            yield from (_flag(name), str(value))


def _own(own: dict[str, Any]) -> Iterator[str]:
    for name, value in own.items():
        if name == "name":  # of a task file; it is only shown
            continue
        if isinstance(value, dict):  # labels from a TOML file
            value = ",".join(f"{key}={word}" for key, word in value.items())
        yield from (_flag(name), str(value))


def _flag(name: str) -> str:
    return f"--{NAMES.get(name, name).replace('_', '-')}"


def _option(value: Any) -> str:
    """As `gradless.runs.config_io.parse_options` reads it back."""
    return value if isinstance(value, str) else json.dumps(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else None
