"""``gradless peers audit`` and ``gradless peers excise``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradless.cli import ends
from gradless.cli.completion import Named
from gradless.cli.options import FILE, PATH
from gradless.errors import BadInput
from gradless.system import terminal

if TYPE_CHECKING:
    from gradless.peers.audit import Audit
    from gradless.peers.claim_checks import ClaimCheck

MARKS = {True: "holds", False: "WRONG", None: "-"}
model_option = click.option(
    "--model", type=Named("model"), help="Where the base model is now, if not where the run found it."
)
device_option = click.option("--device", type=Named("device"), help="Where to compute; the weights are the same bits.")


@click.command()
@click.argument("run", type=PATH)
@click.option("--peer", help="Check the claims of this peer about its data.")
@click.option("--data", help="Its training file, as for --train.")
@click.option("--salt", type=FILE, help="The salt of its commitment, from the folder that keygen wrote.")
@click.option(
    "--open", "opening", type=FILE, help="Write the rows of the drawn steps here, for somebody else to check."
)
@click.option("--opened", type=FILE, help="Check such a file instead of --data.")
@click.option("--nonce", help="Of the auditor: it draws the steps; without --data and --opened a new one is made.")
@model_option
@device_option
@ends.json_option
def audit(
    run: Path,
    peer: str | None,
    data: str | None,
    salt: Path | None,
    opening: Path | None,
    opened: Path | None,
    nonce: str | None,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Check what peers signed, what their weights are made of, and what they claim about their data.

    RUN is the folder of any peer of a run with coefficients. The log's chain, certificates and signatures are checked,
    its rows are mixed anew, and the ledger is replayed; no data and no forward pass is needed. Statistics tell whose
    rows ask for a second look.

    With --peer its coefficients of 32 steps are computed again from its rows: by itself (--data and --salt), or by an
    auditor from the rows that it opens (--open there, --opened here). Which steps, is drawn by the --nonce that the
    auditor makes once the run is over (--peer alone) and sends to the peer, or else by the log.

    The exit code is 1 if anything that was checked is wrong.

    \b
    gradless peers audit runs/anna
    gradless peers audit runs/anna --peer anna --data own.csv --salt me/salt
    gradless peers audit runs/bert --peer anna
    gradless peers audit runs/anna --peer anna --data own.csv --salt me/salt --open anna.json --nonce 9f2c...
    gradless peers audit runs/bert --peer anna --opened anna.json --nonce 9f2c...
    """
    if peer is not None:
        _claims(run, peer, data, salt, opening, opened, nonce, model, as_json)
        return
    for name, value in (
        ("--data", data),
        ("--salt", salt),
        ("--open", opening),
        ("--opened", opened),
        ("--nonce", nonce),
    ):
        if value is not None:
            raise BadInput(f"{name} is for the claims of one peer: name it with --peer")
    from gradless.peers import audit as job

    result = job.audit(run, model=model, device=device, say=_note(as_json))
    ends.tell(
        lambda: ends.End("\n".join(lines(result)), "", _next(run, result)),
        plain=lines(result),
        values=result.to_json(),
        as_json=as_json,
    )
    sys.exit(0 if result.holds else 1)


def lines(result: Audit) -> list[str]:
    """Return an audit as lines: what holds, what asks for a second look, and what each part proves."""
    from gradless.peers.audit import CLAIMS, PROVES

    width = max(len(finding.part) for finding in result.findings)
    findings = [f"{one.part:{width}}  {MARKS[one.holds]:5}  {one.text}" for one in result.findings]
    table = _table(result)
    proofs = {one.part: f"{one.part}: proves {PROVES[one.part]}" for one in result.findings}
    hint = f"claims about data are checked with --peer NAME; that proves {PROVES[CLAIMS]}"
    return [*findings, *table, *(f"look at: {remark}" for remark in result.remarks), *proofs.values(), hint]


def _table(result: Audit) -> list[str]:
    if not result.peers:
        return []
    from gradless.report.peers.tables import from_log

    heads, rows = from_log(result.peers, result.run.names)
    cells = [heads, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _next(run: Path, result: Audit) -> list[str]:
    banned = [result.run.names[one.peer] for one in result.peers if one.banned is not None]
    commands = [ends.command("peers", "excise", run, *banned, "--out") + " DIR"] if banned else []
    return [*commands, ends.command("report", run)]


def _claims(
    run: Path,
    name: str,
    data: str | None,
    salt: Path | None,
    opening: Path | None,
    opened: Path | None,
    nonce: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    from gradless.peers import claim_checks
    from gradless.peers.run_folder import RunFolder

    if all(one is None for one in (data, opened, salt, opening, nonce)):
        _ask(run, name, as_json)
        return
    if (data is None) == (opened is None):
        raise BadInput("claims are checked against rows: give --data with the peer's file, or --opened with its rows")
    peers, say = RunFolder(run), _note(as_json)
    if opened is not None:
        if salt is not None or opening is not None:
            raise BadInput("opened rows bring their salts along: leave out --salt and --open")
        _end(claim_checks.check_opened(peers, name, opened, nonce=nonce, model=model, say=say), as_json)
        return
    assert data is not None
    if opening is None:
        _end(claim_checks.check_file(peers, name, data, salt, nonce=nonce, model=model, say=say), as_json)
        return
    if salt is None:
        raise BadInput("rows are opened with the salt of their commitment: give --salt")
    rows = claim_checks.open_steps(peers, name, data, salt, opening, nonce=nonce, say=say)
    terminal.say(f"{opening}: {rows} rows of {name}, which whoever gets this file can read; the others stay secret")


def _ask(run: Path, name: str, as_json: bool) -> None:
    """Make the nonce of an auditor, and say what becomes of it."""
    from gradless.peers import claim_checks, claims
    from gradless.peers.run_folder import RunFolder

    nonce, rows = claims.new_nonce(), f"{name}.json"
    peers = RunFolder(run)
    claim_checks.steps_of(peers, name, nonce)  # refuses what cannot be asked
    opens = f"gradless peers audit RUN --peer {name} --data FILE --salt SALT --open {rows} --nonce {nonce}"
    checks = ends.command("peers", "audit", run, "--peer", name, "--opened", rows, "--nonce", nonce)
    plain = [
        f"nonce  {nonce}",
        f"send it to {name} when its run is over, and not before; {name} opens its rows with: {opens}",
        f"then check them with: {checks}",
        "it must be yours: who chose it, chose the steps",
    ]
    values = {"peer": name, "nonce": nonce, "steps": peers.records.steps}
    ends.tell(lambda: ends.End("\n".join(plain), "", []), plain=plain, values=values, as_json=as_json)


def _end(check: ClaimCheck, as_json: bool) -> None:
    from gradless.peers.audit import CLAIMS, PROVES, SIXTEEN
    from gradless.peers.claims import UNASKED

    verdict = "CONVICTS" if check.verdict.convicted else "holds" if check.checks else "-"
    plain = [f"claims of {check.name}  {verdict}  {check.verdict.text}"]
    if not check.committed:
        plain.append(
            f"these rows are not compared with a commitment of {check.name}: they prove what their giver likes"
        )
    if not check.exact:
        plain.append(SIXTEEN)
    if not check.asked:
        plain.append(UNASKED)
    plain.append(f"claims: prove {PROVES[CLAIMS]}")
    values = {
        **{"peer": check.name, "convicted": check.verdict.convicted, "text": check.verdict.text},
        **{"committed": check.committed, "exact": check.exact, "drawn": list(check.drawn), "asked": check.asked},
        "checks": [one._asdict() for one in check.checks],
    }
    ends.tell(lambda: ends.End("\n".join(plain), "", []), plain=plain, values=values, as_json=as_json)
    sys.exit(1 if check.verdict.convicted else 0)


@click.command()
@click.argument("run", type=PATH)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--out", type=PATH, required=True, help="New folder for the ledger.")
@model_option
@device_option
@ends.json_option
def excise(run: Path, names: tuple[str, ...], out: Path, model: str | None, device: str | None, as_json: bool) -> None:
    """Make the weights that a run's log gives without the rows of some peers.

    Every step is mixed anew without the rows of NAME, for one liar less, and becomes a ledger whose header names the
    log that it was made from. These are the weights of this log without these rows, not those of a training that NAME
    never took part in.

    \b
    gradless peers excise runs/anna carl --out runs/without-carl
    gradless replay runs/without-carl --save models/without-carl
    """
    from gradless.peers import excise as job

    done = job.excise(run, list(dict.fromkeys(names)), out, model=model, device=device, say=_note(as_json))
    plain = [
        f"{out}: {done.changed} of {done.steps} steps differ, {done.skipped} had too few rows; "
        f"weights {done.weights_before[:12]} -> {done.weights_sha256}",
        done.limits(out),
    ]
    commands = [
        f"{ends.command('replay', out)} --save DIR",
        f"{ends.command('peers', 'init', '--continue', out)} CARD... --out DIR",
    ]
    ends.tell(
        lambda: ends.End(plain[0], plain[1], commands),
        plain=plain,
        values={**done._asdict(), "out": str(out)},
        as_json=as_json,
    )


def _note(as_json: bool) -> Callable[[str], object]:
    """Return what progress is told to: nobody where one line of JSON is wanted."""
    return (lambda line: None) if as_json else terminal.say
