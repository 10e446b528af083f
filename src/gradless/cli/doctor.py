"""The commands about the installation: ``gradless doctor`` and ``gradless completion``."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradless.cli import completion as shells
from gradless.cli.fields import of_hint
from gradless.cli.options import FILE
from gradless.system import terminal
from gradless.system.typed import Seconds

if TYPE_CHECKING:
    from gradless.cli.diagnosis import Line


@click.command()
@click.option("--online", is_flag=True, help="Try whether the Hugging Face hub answers; else nothing is sent.")
@of_hint("timeout", Seconds, "Seconds to wait for it.", 5.0)
@click.option("--json", "json_file", type=FILE, help="Write all findings to this file.")
def doctor(online: bool, timeout: float, json_file: Path | None) -> None:
    """Say what this installation can do, test its kernels, and advise. Exit code 1 if something is broken.

    \b
    gradless doctor
    gradless doctor --online --json doctor.json
    """
    from gradless.cli import diagnosis as job

    lines = job.diagnose(online=online, timeout=timeout)
    show(lines)
    if json_file is not None:
        from gradless.system.atomic import write_json

        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, job.as_json(lines))
    sys.exit(1 if any(line.broken for line in lines) else 0)


def show(lines: list[Line]) -> None:
    """Print a table on a terminal, plain lines elsewhere, and the advice below."""
    if terminal.live():
        from rich.console import Console
        from rich.table import Table

        table = Table("", "", "", show_header=False)
        for section, rows in groupby(lines, key=lambda line: line.section):
            for number, line in enumerate(rows):
                style = "red" if line.broken else "yellow" if line.advice else ""
                head = section if number == 0 else ""
                table.add_row(terminal.cell(head), terminal.cell(line.name), terminal.cell(line.value, style))
            table.add_section()
        Console().print(table)
    else:
        width = max(len(line.section) + len(line.name) for line in lines) + 1
        for line in lines:
            terminal.say(f"{line.section + ' ' + line.name:<{width}}  {line.value}")
    advice = [line for line in lines if line.advice]
    for line in advice:
        terminal.say(f"{'broken' if line.broken else 'advice'}: {line.advice}")
    if not advice:
        terminal.say("all is well")


@click.command()
@click.argument("shell", type=click.Choice(list(shells.SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands, options, and names of models, tasks, methods...

    \b
    gradless completion bash > ~/.local/share/bash-completion/completions/gradless
    gradless completion zsh > ~/.zfunc/_gradless
    gradless completion fish > ~/.config/fish/completions/gradless.fish
    """
    click.echo(shells.script(shell, ctx.find_root().command), nl=False)
