"""Examples that ``--example`` prints: grids of ``gradless bench``, and the settings of ``gradless tune``.

The files are those of the repository's ``examples`` and ``benchmarks/grids``; a wheel has them in
``gradless/examples``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import gradless
from gradless.errors import BadInput, unknown
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.runs.config_io import spelling
from gradless.system import typed

FIRST: Final = "reviews"
"""The grid that is printed if none is named."""
PACKAGE: Final = Path(gradless.__file__).parent
FOLDERS: Final = (PACKAGE / "examples", *(PACKAGE.parents[1] / name for name in ("examples", "benchmarks/grids")))
ROWS: Final = ("reviews.csv", "reviews_test.csv")
SETTINGS: Final[dict[str, Any]] = {"model": "tiny-llama", "lr": 1e-3, "steps": 20, "batch_size": 4, "num_dev": 8}
"""What the run of the example sets; all else is its default."""
OWN: Final = {"template": "{text} It was", "label_column": "label", "labels": {"0": "terrible", "1": "great"}}
HEAD: Final = """\
# Settings of a run. It runs as it is, in seconds and without a download; with random weights it learns next to nothing.
#
#     gradless tune --config run.toml --out runs/mine
#     gradless report runs/mine
#
# An option on the command line wins over the line here. Settings with a # in front have their default value.
"""


def grids() -> dict[str, Path]:
    """Return the example grids by name, the first one first."""
    paths = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.toml"))}
    return {FIRST: paths.pop(FIRST), **dict(sorted(paths.items()))}


def grid(name: str = "") -> str:
    """Return the text of an example grid; rows that come with gradless are named by their absolute path.

    Raises:
        BadInput: there is no such example.
    """
    examples = grids()
    if (name or FIRST) not in examples:
        raise BadInput(unknown("example", name, examples))
    path = examples[name or FIRST]
    text = path.read_text(encoding="utf-8")
    for row_file in ROWS:
        text = text.replace(f'"{row_file}"', quoted((path.parent / row_file).as_posix()))
    return text


def run() -> str:
    """Return a commented TOML file with every setting of a run, which ``gradless tune --config`` takes."""
    folder = grids()[FIRST].parent
    own = {"train": (folder / ROWS[0]).as_posix(), "test": (folder / ROWS[1]).as_posix(), **OWN}
    settings = [name for name in typed.settings(TuneConfig) if name != "own"]
    lines = [HEAD, *(_line(TuneConfig, name, SETTINGS) for name in settings if name != "options")]
    lines += ['\n# Your files, instead of task = "..."; relative paths start where the command is run.', "[own]"]
    lines += [_line(OwnFiles, name, own) for name in typed.settings(OwnFiles) if name != "labels"]
    lines += ["\n# The value in the label column = the word that the model should say.", "[own.labels]"]
    lines += [f"{value} = {quoted(word)}" for value, word in OWN["labels"].items()]  # type: ignore[attr-defined]
    lines += ["\n# Options of the method, which gradless list methods names, such as keep = 0.25.", "[options]"]
    return "\n".join(lines) + "\n"


def _line(record: type[typed.Record], name: str, values: dict[str, Any]) -> str:
    """One setting with its help, switched off unless it has a value."""
    setting = typed.settings(record)[name]
    default = "..." if setting.default in (None, dataclasses.MISSING) else setting.default
    code = f"{name} = {quoted(values.get(name, default))}"
    return f"{code if name in values else f'# {code}':<40} # {setting.help} ({spelling(setting)})"


def quoted(value: Any) -> str:
    """Return a text, number, truth value or list as TOML writes it."""
    plain = list(value) if isinstance(value, tuple) else value
    return "..." if value == "..." else json.dumps(plain, ensure_ascii=False)
