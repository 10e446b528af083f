"""The commands that come before a run of peers: ``gradless peers keygen`` and ``gradless peers init``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
from msgspec import Meta

from gradless.cli.completion import Named
from gradless.cli.fields import of_fields, of_hint
from gradless.cli.options import FOLDER, PATH, need
from gradless.collab.config import CollabConfig
from gradless.errors import BadInput
from gradless.runs.config import OwnFiles
from gradless.system import terminal
from gradless.system.typed import Amount, Count, Seconds

if TYPE_CHECKING:
    from gradless.peers.keys import Commitment

SHARED_OWN = "template label_column labels delimiter encoding"
NEEDS = ("zenoh", "cryptography")


@click.command()
@click.option("--name", required=True, help="Of this peer: small letters, digits and hyphens.")
@click.option("--endpoint", required=True, help="Where the others will reach it: tls/HOST:PORT.")
@click.option("--commit", type=PATH, help="Training rows to commit to, so that they can be audited later.")
@of_fields(OwnFiles, SHARED_OWN, defaults=False)
@click.option("--out", type=FOLDER, required=True, help="New folder for the identity; its keys stay there.")
def keygen(name: str, endpoint: str, commit: Path | None, out: Path, **own: Any) -> None:
    """Make a peer's identity: a key that signs, a TLS key, and a card for the others.

    Hand card.toml to the person who runs 'gradless peers init'. The other files are secret. With --commit the card
    holds a salted Merkle root of the rows, which tells nothing about them until the peer opens some in an audit.

    \b
    gradless peers keygen --name anna --endpoint tls/anna.example.org:7447 --out me/
    gradless peers keygen --name ben --endpoint tls/10.0.0.2:7447 --commit own.csv --template "{text} It was" \\
        --label-column label --labels "0=terrible,1=great" --out me/
    """
    need("peers", *NEEDS)
    from gradless.peers import keys

    card = keys.make(name, endpoint, out, commitment=_commitment(commit, own))
    if commit is not None:
        terminal.say(
            f"committed to {card.rows} rows with the secret {out / keys.SALT}: keep it and {commit} for audits"
        )
    terminal.say(
        f"{out / keys.CARD}: the card of {card.name}, key {card.key[:16]}; hand it to who runs 'gradless peers init'"
    )
    terminal.say(f"{out / keys.SIGNING}, {out / keys.TLS}: secret; they never leave this machine")


def _commitment(path: Path | None, own: Mapping[str, Any]) -> Commitment | None:
    """Return the commitment to the rows of a file, with a new salt."""
    settings = {name: value for name, value in own.items() if value is not None}
    if path is None:
        if settings:
            raise BadInput("the template, the labels and their column say how rows are read: give them with --commit")
        return None
    import secrets

    from gradless.peers import claims, keys

    rows, salt = claims.file_rows(path, settings), secrets.token_bytes(32)
    return keys.Commitment(claims.commit(rows, salt), len(rows), salt)


@click.command()
@click.argument("cards", type=PATH, nargs=-1, required=True)
@of_hint("f", Amount, "Peers that may lie; 3 f + 1 peers are needed to agree.", 1)
@of_hint(
    "mode", Literal["coefficients", "parameters"], "What peers exchange: coefficients or parameters.", "coefficients"
)
@click.option("--recipe", type=Named("recipe"), help="Values to start from: gradless list recipes.")
@of_fields(CollabConfig, "model task", defaults=False)
@of_fields(OwnFiles, SHARED_OWN, defaults=False)
@of_fields(
    CollabConfig,
    "scheme freeze method method_options queries eps rule rule_options memory steps batch_size lr seed",
    defaults=False,
    told=True,
)
@of_fields(CollabConfig, "num_train num_test eval_every eval_rows", defaults=False)
@of_fields(
    CollabConfig, "chat reward reward_weight pass_reward max_new_tokens stop temperature", defaults=False, told=True
)
@of_fields(
    CollabConfig, "algorithm radius dataset image_size split split_parameter net decay refresh momentum", defaults=False
)
@of_fields(CollabConfig, "weight_decay rounds", defaults=False)
@of_hint("check_every", Count, "Steps between two statements of the weights' hash.", 50)
@of_hint("grace", Seconds, "Seconds that a leader waits at least for missing rows.", 0.2)
@of_hint("base", Seconds, "Seconds of the first timer of a round, and between repetitions.", 2.0)
@of_hint("days", Annotated[int, Meta(ge=1, le=3650)], "Days that the certificates are valid.", 365)
@click.option(
    "--continue", "parent", type=FOLDER, help="A finished run whose weights and settings this one begins with."
)
@click.option("--out", type=FOLDER, required=True, help="Folder for manifest.toml.")
def init(
    cards: tuple[Path, ...],
    f: int,
    mode: str,
    recipe: str | None,
    check_every: int,
    grace: float,
    base: float,
    days: int,
    parent: Path | None,
    out: Path,
    **options: Any,
) -> None:
    """Make the manifest of a run from all peers' cards: who takes part, and what a step is.

    One person does this and hands manifest.toml to all. Peers then compare its fingerprint by voice; nothing in it is
    secret. A peer that others cannot reach (behind a router) comes last: each peer connects to those before it.

    \b
    gradless peers init anna.toml ben.toml cleo.toml dora.toml --f 1 --model smollm2-135m --scheme lora \\
        --template "{text} It was" --label-column label --labels "0=terrible,1=great" --lr 1e-3 --out run/
    gradless peers init *.toml --f 1 --mode parameters --recipe monna-digits --out run/
    gradless peers init *.toml --f 1 --continue RUN --out next/
    """
    need("peers", *NEEDS)
    from gradless.peers import keys, manifest, prepare

    values = {name: value for name, value in options.items() if value is not None and value != ()}
    read = [keys.read_card(path) for path in cards]
    parsed = prepare.manifest(
        read,
        values,
        f=f,
        mode=mode,
        recipe=recipe,
        out=out,
        check_every=check_every,
        timing=manifest.Timing(grace=grace, base=base),
        days=days,
        parent=parent,
        say=terminal.say,
    )
    terminal.say(
        f"{out / manifest.FILE}: {len(parsed.peers)} peers ({', '.join(parsed.names)}), f = {parsed.f}, "
        f"rule {parsed.config.rule}"
    )
    terminal.say(f"fingerprint {parsed.fingerprint}")
    terminal.say("hand the file to all peers, and let them compare the fingerprint by voice")
