"""The reference of the command line: every command with its help, examples and options; `fields` writes it."""

from __future__ import annotations

from collections.abc import Iterator

import click
from result_tables import table


def reference() -> str:
    """Every command with its help and options."""
    from gradless.cli import main

    return "\n\n".join(section(path, command) for path, command in leaves(["gradless"], main))


def leaves(path: list[str], command: click.Command) -> Iterator[tuple[list[str], click.Command]]:
    """All commands that do something, in order of their names."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in sorted(command.commands):
        yield from leaves([*path, name], command.commands[name])


def section(path: list[str], command: click.Command) -> str:
    """One command: its words, examples and options."""
    description, _, examples = (command.help or "").partition("\b")
    usage = " ".join([*path, *(p.make_metavar(click.Context(command)) for p in command.params if is_argument(p))])
    parts = [f"## {' '.join(path)}", " ".join(description.split())]
    blocks = [block.replace("\b", "").strip("\n") for block in examples.split("\n\n") if block.strip()]
    if blocks:
        parts.append("```sh\n" + "\n".join(line.strip() for line in blocks[0].strip().splitlines()) + "\n```")
        parts += [" ".join(block.split()) for block in blocks[1:]]
    else:
        parts.append(f"```text\n{usage}\n```")
    rows = [option(p, command) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if rows:
        parts.append(table(["option", "default", ""], rows, left=3))
    return "\n\n".join(parts)


def is_argument(p: click.Parameter) -> bool:
    """Whether it is given by its place."""
    return isinstance(p, click.Argument)


def option(p: click.Option, command: click.Command) -> list[str]:
    """One row."""
    names = "/".join((*p.opts, *p.secondary_opts))
    value = "" if p.is_flag else f" {p.make_metavar(click.Context(command))}"
    usual = p.default if isinstance(p.default, str | int | float) and not isinstance(p.default, bool) else ""
    description, _, shown = (p.help or "").partition("[default: ")
    usual = usual if usual != "" else shown.removesuffix("]")
    usual = "required" if p.required else f"`{usual}`" if usual != "" else ""
    return [cell.replace("|", "\\|") for cell in (f"`{names}{value}`", usual, description.strip())]
