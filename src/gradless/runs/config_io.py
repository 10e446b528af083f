"""Settings of a run: read from a file, and written as the command that makes the run again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradless.errors import BadInput, unknown
from gradless.runs.config import OwnFiles, TuneConfig, check_own, require_plugins, without_records
from gradless.system import typed
from gradless.system.typed import Flag, Setting

SIZES = ("num_train", "num_dev", "num_test")
"""Settings whose default is all rows where the files are the user's own."""
ESCAPED = ("template", "stop")
"""Settings in which the command line reads a backslash and a letter as `unescape` does."""


def read(path: Path, cell: str | None = None) -> dict[str, Any]:
    """Return the settings in a TOML or JSON file.

    A file holds settings by name, or, like ``best.toml`` of a benchmark, several of them as tables ``[cell."NAME"]``.
    A TOML file may load plugins: ``plugins = ["own.py"]``, relative to the file. A table of plugins and hashes, as runs
    write it, loads nothing; it says what has to be loaded.

    Args:
        path: the file; relative paths inside it are left as they are.
        cell: which of several; may be left out where there is one.

    Raises:
        BadInput: no such file, not TOML or JSON, a setting that does not exist, or a choice of cells.
    """
    from gradless import plugins

    settings: Any = typed.load(path)
    settings = settings.get("config", settings)
    if isinstance(settings, dict) and "cell" in settings:
        settings = _one_cell(path, settings["cell"], cell)
    elif cell is not None:
        raise BadInput(f"{path} holds the settings of one run: leave out --cell")
    if not isinstance(settings, dict):
        raise BadInput(f"{path} holds no settings: write them as name = value")
    with typed.within(path):
        if isinstance(settings.get("plugins"), list):
            plugins.load(_asked(path, settings["plugins"]), folder=path.parent)
            settings = {name: value for name, value in settings.items() if name != "plugins"}
        require_plugins(settings)
        fields = typed.table(without_records(settings), TuneConfig)
        check_own(fields.get("own", {}))
    return fields


def is_by_hand(path: Path) -> bool:
    """Return whether a file that `read` takes is a user's: gradless writes JSON, and TOML with tables of cells."""
    return path.suffix.lower() == ".toml" and "cell" not in typed.load(path)


def _asked(path: Path, specs: list[Any]) -> tuple[str, ...]:
    """Return the plugins that a user's file asks for."""
    if path.suffix == ".json":
        raise BadInput("a list of plugins is for TOML files, and a JSON file only records them: give --plugin")
    names: tuple[str, ...] = typed.value("plugins", specs, tuple[str, ...])
    return names


def _one_cell(path: Path, cells: Any, name: str | None) -> Any:
    if not isinstance(cells, dict) or not cells:
        raise BadInput(f'{path} holds no cells: write each as a table [cell."NAME"]')
    if name is None and len(cells) == 1:
        (name,) = cells
    if name is None:
        raise BadInput(f"{path} holds {len(cells)} cells: choose one with --cell, e.g. --cell {next(iter(cells))}")
    if name not in cells:
        raise BadInput(f"{path}: {unknown('cell', name, cells)}")
    return cells[name]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``["keep=0.25", "mask=wanda"]`` as a dictionary; a value that is not JSON is text.

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
            options[name] = typed.parse_json(value)
        except ValueError:
            options[name] = value
    return options


def tune_command(config: TuneConfig, out: Path | str) -> str:
    """Return ``gradless tune ...`` with every setting that is not the default, quoted for a POSIX shell.

    A run keeps its configuration with all blanks filled in (learning rate, engine and so on), so the command names
    those too, and gives the same run also where a later release has other defaults. The steps between dev evaluations
    are named if they are not a fifth of the run, and if there are dev rows.

    Example:
        >>> tune_command(TuneConfig(model="gemma-3-270m", task="sst2", lr=3e-6, freeze=("embed",)), "runs/a")
        'gradless tune --model gemma-3-270m --task sst2 --lr 3e-06 --freeze embed --out runs/a'
    """
    return shlex.join(["gradless", "tune", *_arguments(config), "--out", str(out)])


def _arguments(config: TuneConfig) -> Iterator[str]:
    from gradless import plugins

    for setting in typed.settings(TuneConfig).values():
        value = getattr(config, setting.name)
        flag, _, negative = spelling(setting).partition("/")
        if setting.name == "own":
            yield from _own_arguments(value)
        elif setting.name == "plugins":
            yield from plugins.arguments(value)
        elif setting.name == "options":
            for name, option in value.items():
                yield from (flag, f"{name}={option if isinstance(option, str) else json.dumps(option)}")
        elif setting.name in ("num_train", "num_dev") and config.k_shot is not None:
            continue  # not read, and refused beside --k-shot
        elif setting.name in SIZES and config.own:
            yield from (flag, str(value)) if value else ()
        elif value is None or value == setting.default or (setting.name == "eval_every" and _usual_dev(config)):
            continue
        elif negative:
            yield flag if value else negative
        else:
            for one in value if isinstance(value, tuple) else (value,):
                yield from (flag, escape(one) if setting.name in ESCAPED else str(one))


def _usual_dev(config: TuneConfig) -> bool:
    """Return whether ``eval_every`` is what follows from the other settings, or changes nothing."""
    dev = config.num_dev or config.k_shot or config.own.get("dev") or config.own.get("task_file")
    return config.eval_every == config.usual_eval_every or not dev


def _own_arguments(own: dict[str, Any]) -> Iterator[str]:
    from gradless.tasks.own import write_labels  # late: help needs no tasks

    known = typed.settings(OwnFiles)
    for name, value in own.items():
        if name == "task_file":
            yield from ("--task-file", str(value))
        elif name in known:  # the name of a task file is only shown
            text = write_labels(value) if isinstance(value, dict) else value
            yield from (spelling(known[name]), escape(text) if name in ESCAPED else str(text))


def escape(template: str) -> str:
    r"""Return a text as the command line writes it, where ``\n``, ``\t`` and ``\\`` stand for one character.

    Example:
        >>> print(escape("{text}\nIt was"))
        {text}\nIt was
    """
    return template.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def unescape(template: str) -> str:
    r"""Return what `escape` was given; other backslashes stay as they are.

    Example:
        >>> unescape(r"{text}\nIt was")
        '{text}\nIt was'
    """
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], template)


def spelling(setting: Setting) -> str:
    """Return a setting's option of the command line, such as ``--batch-size`` or ``--aligned/--unaligned``."""
    flag = setting.metadata(Flag)
    return flag.spelling if flag and flag.spelling else f"--{setting.name.replace('_', '-')}"
