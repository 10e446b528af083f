"""The commands of ``gradless peers``."""

from __future__ import annotations

import click

from gradless.cli.later import Later, LaterCommands
from gradless.cli.options import HELP

COMMANDS = {
    "keygen": Later(
        "gradless.cli.peers_setup:keygen",
        "Make a peer's identity: a key that signs, a TLS key, and a card for the others.",
    ),
    "init": Later(
        "gradless.cli.peers_setup:init",
        "Make the manifest of a run from all peers' cards: who takes part, and what a step is.",
    ),
    "run": Later("gradless.cli.peers_run:run", "Train with the peers of a manifest, on rows of your own."),
    "join": Later(
        "gradless.cli.peers_run:join",
        "Take part in a run that has begun: fetch its log from any peer, check it, rebuild the weights, go on.",
    ),
    "status": Later(
        "gradless.cli.peers_run:status",
        "Show what a running peer knows of the others: rows in, late and left out, rounds led and failed, hashes, "
        "bans.",
    ),
    "audit": Later(
        "gradless.cli.peers_audit:audit",
        "Check what peers signed, what their weights are made of, and what they claim about their data.",
    ),
    "excise": Later(
        "gradless.cli.peers_audit:excise", "Make the weights that a run's log gives without the rows of some peers."
    ),
    "demo": Later(
        "gradless.cli.peers_run:demo",
        "Train with four processes on this machine, one of which lies; needs no files and no network.",
    ),
}


@click.group("peers", cls=LaterCommands, context_settings=HELP, later=COMMANDS)
def peers() -> None:
    """Train with others over a network without trusting them."""
