"""How a command ends on a terminal: where its work lies, what it reached, and the commands that go on from there.

In a pipe a command prints plain lines instead, and with ``--json`` one line of JSON. Nothing is imported before a
command ends, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import click

from gradless.system import terminal

ARGUMENTS: Final = "gradless.arguments"  # in the context: what was typed
STOPPED: Final = "gradless.stopped"  # in the context: what to print behind the sentence of an error
NEXT: Final = "next: "


class End(NamedTuple):
    """The last lines of a command."""

    where: str
    """Where its work lies, and how far it came."""
    reached: str
    """What it reached against the baseline; empty if nothing was measured."""
    commands: Sequence[str]
    """What to do next, quoted for a POSIX shell."""


json_option = click.option("--json", "as_json", is_flag=True, help="End with one line of JSON, on a terminal too.")


def tell(end: Callable[[], End], *, plain: Iterable[str], values: Mapping[str, Any], as_json: bool) -> None:
    """Print how a command ended.

    Args:
        end: makes the lines for a terminal.
        plain: the lines for a pipe.
        values: of the JSON line.
        as_json: print that line instead, wherever it goes.
    """
    if as_json:
        terminal.say(json.dumps(values))
    elif terminal.live():
        show(end())
    else:
        for line in plain:
            terminal.say(line)


def show(end: End) -> None:
    """Print the lines; commands that do not fit beside each other get a line each, so that they can be copied."""
    for line in filter(None, (end.where, end.reached)):
        terminal.say(line)
    joined = NEXT + " | ".join(end.commands)
    if end.commands and len(joined) <= shutil.get_terminal_size().columns:
        terminal.say(joined)
        return
    for number, line in enumerate(end.commands):
        terminal.say((" " * len(NEXT) if number else NEXT) + line)


def remember(ctx: click.Context, end: Callable[[BaseException], End | None]) -> None:
    """Have ``end`` called, on a terminal, if the command stops with an error; its lines come below the sentence."""
    ctx.meta[STOPPED] = end


def waits(ctx: click.Context) -> bool:
    """Return whether an error has lines that go below it; of several processes of a run the first one speaks."""
    return STOPPED in ctx.meta and terminal.live() and os.environ.get("RANK", "0") == "0"


def stopped(ctx: click.Context, error: BaseException) -> None:
    """Print the lines that a command left for such an end, if it did; never raises."""
    if waits(ctx):
        with contextlib.suppress(Exception):
            if (lines := ctx.meta[STOPPED](error)) is not None:
                show(lines)


def same_command() -> str:
    """Return what was typed, quoted."""
    return shlex.join(["gradless", *click.get_current_context().meta.get(ARGUMENTS, ())])


def command(*words: object) -> str:
    """Return ``gradless WORDS``, quoted, with the plugins that it needs; an option without a value is left out with it.

    Example:
        >>> command("report", "my runs/a"), command("replay", "a", ("--save", None))
        ("gradless report 'my runs/a'", 'gradless replay a')
    """
    flat: list[str] = []
    for word in words:
        if not isinstance(word, tuple):
            flat.append(str(word))
        elif word[1] is not None:
            flat += map(str, word)
    return shlex.join(["gradless", flat[0], *_plugins(), *flat[1:]])


def _plugins() -> list[str]:
    """Return the options that load what this command was given; a package's part is found by its name."""
    from gradless import plugins

    context = click.get_current_context(silent=True)
    keys = [plugin.key for plugin in context.meta.get("gradless.plugins", ())] if context is not None else []
    return plugins.arguments(dict.fromkeys([*keys, *plugins.loaded_files()]))
