"""The commands of ``gradless peers``."""

from __future__ import annotations

import click

from gradless.cli.options import HELP, Commands
from gradless.cli.peers_audit import audit, excise
from gradless.cli.peers_run import demo, join, run, status
from gradless.cli.peers_setup import init, keygen


@click.group("peers", cls=Commands, context_settings=HELP)
def peers() -> None:
    """Train with others over a network without trusting them."""


for command in (keygen, init, run, join, status, audit, excise, demo):
    peers.add_command(command)
