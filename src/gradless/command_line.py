"""The command that makes a run, from its configuration."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradless.config import TuneConfig

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
    """As `gradless.config_file.parse_options` reads it back."""
    return value if isinstance(value, str) else json.dumps(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else None
