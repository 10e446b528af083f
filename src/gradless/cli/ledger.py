"""The commands of ``gradless ledger``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gradless.cli.options import HELP, PATH, Commands
from gradless.system import terminal


@click.group("ledger", cls=Commands, context_settings=HELP)
def ledger() -> None:
    """See what is intact in a run's ledger, and repair it."""


@ledger.command()
@click.argument("run", type=PATH)
def check(run: Path) -> None:
    """Say how many steps of a ledger are intact, and what lies behind them.

    RUN is a run directory, or a ledger alone. The exit code is 1 if anything is damaged, and 2 if there is no ledger
    whose header can be read.

    \b
    gradless ledger check runs/sst2
    """
    from gradless import ledger as ledgers
    from gradless.runs.replay import ledger_path

    intact, lines = ledgers.report(ledger_path(run))
    for line in lines:
        terminal.say(line)
    sys.exit(0 if intact else 1)


@ledger.command()
@click.argument("run", type=PATH)
def repair(run: Path) -> None:
    """Cut a ledger behind its last intact step, and keep a copy of the whole file.

    The run then goes on with 'gradless tune --resume', which takes the lost steps again.

    \b
    gradless ledger repair runs/sst2
    """
    from gradless import ledger as ledgers
    from gradless.runs.replay import ledger_path
    from gradless.system import locks

    path = ledger_path(run)
    ledgers.report(path)  # refuses what is no ledger before anything is locked
    with locks.claimed(path.parent, say=terminal.say):
        repaired = ledgers.repair(path)
    if repaired.copy is None:
        terminal.say(f"{path} is intact: {repaired.steps} steps")
    else:
        terminal.say(
            f"{path} was cut behind {repaired.steps} intact steps: {repaired.lost_bytes} bytes are lost, "
            f"and the file as it was is {repaired.copy}"
        )
