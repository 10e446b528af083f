"""The commands of a run of peers: ``gradless peers run``, ``join``, ``status`` and ``demo``."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from gradless.cli import ends
from gradless.cli.completion import Named
from gradless.cli.fields import of_fields, of_hint
from gradless.cli.options import FILE, FOLDER, PATH, need, options
from gradless.collab.config import CollabConfig
from gradless.errors import BadInput
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system import terminal
from gradless.system.typed import Count, NotNegative, Seed

OWN_FILES = "train test template label_column labels delimiter encoding"
NEEDS = ("zenoh", "cryptography")
REFRESH = 1.0
"""Seconds between two looks at a status that is watched."""

run_options = options(
    click.option("--manifest", type=PATH, required=True, help="The manifest.toml that all peers have."),
    click.option("--identity", type=FOLDER, required=True, help="The folder that keygen wrote."),
    of_fields(OwnFiles, OWN_FILES, defaults=False),
    click.option("--task-file", type=FILE, help="TOML file with the same keys."),
    of_fields(CollabConfig, "data", data="Files of the manifest's task or data set, of which a peer takes its share."),
    of_fields(
        CollabConfig,
        "reward reward_weight reward_timeout",
        reward="Your own reward function, in place of the manifest's: FILE.py:NAME, MODULE:NAME or a built-in one.",
    ),
    click.option(
        "--model", type=Named("model"), help="Where the base model is on this machine, if not where the manifest says."
    ),
    of_fields(TuneConfig, "device"),
    click.option("--listen", help="Where to listen, if not at the card's endpoint: tls/HOST:PORT."),
    click.option("--fingerprint", help="The run's fingerprint as the others read it; then nothing is asked."),
    click.option("--yes", is_flag=True, help="Take the manifest's fingerprint as compared."),
    of_hint(
        "serve", NotNegative | None, "Seconds to serve the log to others when done; by default until all are done."
    ),
    click.option("--liar", hidden=True, help="Lie, for demonstrations and tests."),
    click.option("--pace", type=float, default=0.0, hidden=True, help="Least seconds of a step, for tests."),
    click.option("--out", type=FOLDER, required=True, help="Run directory; the same one continues after any stop."),
    ends.json_option,
)


def _started(join: bool, settings: dict[str, Any]) -> None:
    """Run a peer; prints how it ended."""
    need("peers", *NEEDS)
    from gradless.cli.configuration import whole_rewards
    from gradless.collab.learners.alone import OwnRewards
    from gradless.peers import node
    from gradless.system.progress import Reporter
    from gradless.system.signals import interrupting

    as_json, fingerprint, yes = (settings.pop(name) for name in ("as_json", "fingerprint", "yes"))
    own = _own_files(settings)
    names, weights, timeout = (settings.pop(f"reward{one}") for one in ("", "_weight", "_timeout"))
    settings["rewards"] = OwnRewards(whole_rewards(names), weights, timeout)
    confirm = functools.partial(_confirmed, fingerprint=fingerprint, yes=yes)
    with interrupting(signal.SIGTERM):
        result = node.run(node.Settings(**settings, own=own, join=join), confirm=confirm, reporter=Reporter())
    line = f"step {result['steps']}  weights {result['weights_sha256'][:12]}  {result['status']}"
    folder = settings["out"]
    end = ends.End(
        f"{folder} holds the run: {line}", "", [ends.command("report", folder), ends.command("peers", "audit", folder)]
    )
    ends.tell(lambda: end, plain=[line], values=result, as_json=as_json)
    if result["status"] != "done":
        sys.exit(1)


def _own_files(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the options of own files out of ``settings``; the task file fills those that are not given."""
    from gradless.tasks.sources import absolute

    own = {name: settings.pop(name) for name in OWN_FILES.split()}
    own = {name: value for name, value in own.items() if value is not None}
    if (file := settings.pop("task_file")) is not None:
        from gradless.tasks import read_task_file

        own = {**read_task_file(file), **own}
    return own | {name: absolute(own[name]) for name in ("train", "test") if name in own}


def _confirmed(manifest: Any, *, fingerprint: str | None, yes: bool) -> None:
    """Have the fingerprint of a manifest compared, once.

    Raises:
        BadInput: it is another one, or nobody can be asked.
    """
    from gradless.peers.manifest import FEWEST_DIGITS

    if fingerprint is not None:
        digits = "".join(fingerprint.split()).lower().replace(":", "")
        if len(digits) < FEWEST_DIGITS or not manifest.sha256.startswith(digits):
            raise BadInput(
                f"the manifest's fingerprint is {manifest.fingerprint}, not {terminal.escaped(fingerprint)}: ask for "
                "the manifest that the others have"
            )
        return
    terminal.say(f"run of {', '.join(manifest.names)}; fingerprint {manifest.fingerprint}", err=True)
    if yes:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise BadInput(
            "nobody can be asked whether the fingerprint is right: give --fingerprint as the others read it, or --yes"
        )
    if not click.confirm("Do the other peers read the same fingerprint to you?", err=True):
        raise BadInput("the manifest is not the one that the others have: ask for it again")


@click.command()
@run_options
def run(**settings: Any) -> None:
    """Train with the peers of a manifest, on rows of your own.

    The first start asks once whether the others have the same fingerprint. After any stop the same command goes on
    where the group is. A peer that has all steps serves its log until all others have them, too.

    \b
    gradless peers run --manifest run/manifest.toml --identity me/ --train own.csv --out RUN
    gradless peers run --manifest run/manifest.toml --identity me/ --train own.csv --test test.csv \\
        --fingerprint "531a 95b0 beaa 93c1 0b1e 7d35 22f0 8ac4" --out RUN
    """
    _started(False, settings)


@click.command()
@run_options
def join(**settings: Any) -> None:
    """Take part in a run that has begun: fetch its log from any peer, check it, rebuild the weights, go on.

    That is what 'run' does as well when others are ahead; 'join' refuses to begin a run that has not begun.

    \b
    gradless peers join --manifest run/manifest.toml --identity me/ --train own.csv --out RUN
    """
    _started(True, settings)


@click.command()
@click.argument("run_dir", type=FOLDER)
@click.option("--watch", is_flag=True, help="Show it until stopped; needs a terminal.")
@ends.json_option
def status(run_dir: Path, watch: bool, as_json: bool) -> None:
    """Show what a running peer knows of the others: rows in, late and left out, rounds led and failed, hashes, bans.

    \b
    gradless peers status RUN
    gradless peers status RUN --watch
    """
    import json

    import msgspec

    from gradless.peers import status as statuses

    current = statuses.read(run_dir)
    if as_json:
        terminal.say(json.dumps(msgspec.to_builtins(current)))
    elif terminal.live():
        _show(lambda: statuses.table(statuses.read(run_dir)), watch)
    else:
        for line in statuses.lines(current):
            terminal.say(line)


def _show(table: Callable[[], Any], watch: bool) -> None:
    """Print a table of rich, again and again if it is watched."""
    from rich.console import Console
    from rich.live import Live

    if not watch:
        Console().print(table())
        return
    with Live(table(), auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH)
            live.update(table(), refresh=True)


@click.command()
@of_hint("peers", Count, "Processes; one of them lies.", 4)
@of_hint(
    "liar",
    Literal["equivocate", "propose", "flip", "mute", "none"],
    "How it lies: equivocate, propose, flip, mute or none.",
    "propose",
)
@of_hint("steps", Count, "Steps.", 200)
@click.option(
    "--model",
    type=Named("model"),
    default="tiny-llama",
    show_default=True,
    help="Known name, folder, GGUF file or hub id.",
)
@of_hint("seed", Seed, "Of rows and directions.", 0)
@click.option("--out", type=FOLDER, default=Path("runs/peers"), show_default=True, help="Folder for all peers' runs.")
@ends.json_option
def demo(out: Path, as_json: bool, **settings: Any) -> None:
    """Train with four processes on this machine, one of which lies; needs no files and no network.

    Keys, cards, manifest and certificates are made as for a real run, and the processes speak over mutual TLS on the
    loopback interface. At the end all weights are compared, and the liar's rows are left out of the log (excised).

    \b
    gradless peers demo
    gradless peers demo --liar equivocate
    gradless peers demo --model smollm2-135m --liar flip --steps 100
    """
    need("peers", *NEEDS)
    need("lm", "transformers")
    from gradless.peers import demo as job
    from gradless.system.signals import interrupting

    with interrupting(signal.SIGTERM):
        result = job.demo(out, say=(lambda line: terminal.say(line, err=as_json)), **settings)
    if as_json:
        import json

        terminal.say(json.dumps(result))
    if not result["equal"]:
        sys.exit(1)
