"""A recipe as text: the file that a command takes, the command, and what a user must know of it."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gradless.errors import BadInput
from gradless.runs.recipes.record import MODELS, Recipe

BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
COMMANDS: Final = {"run": "tune", "grid": "bench", "evaluation": "eval"}
"""The command that takes a recipe's file, by kind."""
WIDTH: Final = 120


def file(recipe: Recipe, *, single: bool = False) -> str:
    """Return the TOML file of a recipe; of one that needs none, its command.

    Args:
        recipe: what to write.
        single: of a grid, write its first point as the settings of one run.

    Raises:
        BadInput: ``single``, and the recipe is no grid.
    """
    if single and recipe.kind != "grid":
        raise BadInput(f"{recipe.name} is no grid: leave out --single")
    if recipe.kind == "command":
        return f"{command(recipe)}\n"
    values = recipe.flat if single else recipe.settings
    lines = [f"# {line}".rstrip() for line in _head(recipe, single)]
    return "\n".join([*lines, *_assignments(values)]) + "\n"


def command(recipe: Recipe, *, single: bool = False) -> str:
    """Return the command that runs a recipe, whose file is ``recipe.toml``.

    Example:
        >>> command(Recipe(name="a/b", kind="grid"))
        'gradless bench recipe.toml --out runs/b'
    """
    out = ("--out", f"runs/{recipe.name.rpartition('/')[2]}")
    if recipe.kind == "command":
        writes = recipe.command[0] == "collab"
        return shlex.join(["gradless", *recipe.command, *(out if writes else ())])
    job = "tune" if single else COMMANDS[recipe.kind]
    file_ = ("recipe.toml",) if job == "bench" else ("--config", "recipe.toml")
    return shlex.join(["gradless", job, *file_, *(() if single else recipe.command), *out])


def commands(recipe: Recipe) -> list[str]:
    """Return the commands that write a recipe's file and run it."""
    if recipe.kind == "command":
        return [command(recipe)]
    return [f"gradless recipe {recipe.name} --print > recipe.toml", command(recipe)]


def memory(recipe: Recipe) -> str:
    """Return the command that says how much memory a run of the recipe needs; "" if it tunes no language model."""
    if not recipe.model or recipe.kind == "command":
        return ""
    settings = recipe.flat
    words = ["plan", "--model", MODELS[recipe.model].shape, "--method", settings.get("method", "mezo")]
    for name in ("scheme", "dtype", "batch_size"):
        if settings.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    return shlex.join(["gradless", *words, "--length", "128" if settings.get("k_shot") else "400"])


def about(recipe: Recipe) -> list[str]:
    """Return what a user must know of a recipe: a line for each fact, the commands last."""
    facts = [
        (recipe.name, recipe.about),
        ("from", recipe.source),
        ("published", published(recipe)),
        ("model", MODELS[recipe.model].source if recipe.model else ""),
        ("data", recipe.data),
        *(("differs", one) for one in recipe.differs),
        ("memory", memory(recipe)),
        *(("run", one) for one in commands(recipe)),
    ]
    return [f"{name}: {text}" for name, text in facts if text]


def published(recipe: Recipe) -> str:
    """Return the published number with how it is known.

    Example:
        >>> published(Recipe(kind="run", published="91.4 (accuracy, %)", mark="paper")), published(Recipe(kind="run"))
        ('91.4 (accuracy, %) [paper]', '')
    """
    if recipe.published:
        return f"{recipe.published} [{recipe.mark}]"
    return recipe.mark


def _head(recipe: Recipe, single: bool) -> Iterator[str]:
    yield f"{recipe.name}: {recipe.about}"
    yield f"From {recipe.source}." if recipe.source != "ours" else "Settings of gradless."
    if published(recipe):
        yield f"Published: {published(recipe)}."
    if single:
        yield "The first point of its grid."
    for one in recipe.differs:
        yield from textwrap.wrap(one, WIDTH - 4)
    yield ""
    yield f"    {command(recipe, single=single)}"


def _assignments(values: Mapping[str, Any], *, top: bool = True) -> Iterator[str]:
    """Yield a line for each setting; tables of settings come last, and tables in them in one line."""
    tables = {name: value for name, value in values.items() if top and isinstance(value, dict) and name != "budget"}
    for name, value in values.items():
        if name not in tables:
            yield f"{_key(name)} = {_value(value)}"
    for name, table in tables.items():
        yield ""
        yield f"[{name}]"
        yield from _assignments(table, top=False)


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) and not value.is_integer() else json.dumps(value)
