"""What is checked of a run's folder before anything is concluded from it: every signature of the log, and the ledger.

A certificate shows that a quorum decided a value, and says nothing about the rows in it to somebody who trusts no
quorum: so each row is checked under the key of its own sender, and both messages of each piece of evidence. The ledger
has no signature at all. It must be what the manifest and the decided rows make of it: its header, its learning rates
and its coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from gradless import ledger
from gradless.collab.learners.language import tune_settings
from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.ledger.file import VERSION
from gradless.ledger.header import COMMAND, check
from gradless.peers.agreement.checks import Checks
from gradless.peers.agreement.validity import Validity
from gradless.peers.history import History
from gradless.peers.node_files import LEDGER
from gradless.peers.run_folder import RunFolder
from gradless.peers.schema import LAST_ROUND, Malformed, parse_certificate
from gradless.rules import SCHEDULES
from gradless.runs.config import TuneConfig
from gradless.system import typed

LOG, WEIGHTS = "log", "weights"
PEERS_OWN: Final = frozenset(
    {"model", "task", "own", "data", "num_train", "num_dev", "num_test", "eval_every", "select", "samples"}
    | {"device", "dtype", "compute_dtype", "engine", "split", "offload", "micro_batch_size", "plugins"}
    | {"objective", "reward", "reward_weight", "reward_timeout"}
)
"""Settings in a ledger's header that a peer chooses for itself, or that another field shows, as the hash of the base
weights shows their type. All others are those of the manifest."""
Say = Callable[[str], object]


class Finding(NamedTuple):
    """What one part of an audit came to."""

    part: str
    holds: bool | None
    """None: there was nothing to check, or it proves nothing either way."""
    text: str


def check_log(run: RunFolder, say: Say) -> Finding:
    """Check the chain, every certificate, and every row and piece of evidence by the key of who signed it.

    Raises:
        BadInput: the log was changed, a certificate does not hold, or a peer did not sign what a value says it did.

    Cost: q signature checks a certificate, one a row, and two a piece of evidence: 0.8 ms a step at n = 7.
    """
    steps = len(run.log)
    if not steps:
        return Finding(LOG, None, "no step is decided yet")
    say(f"checking the signatures of {steps} steps")
    checked = run.log.verify(run.ring, every=True)
    rows = _check_values(run)
    covered = "" if checked == steps else f" ({steps - checked} steps lie below one of them in the chain)"
    newest = run.log.history.digest.hex()[:12]
    text = f"{steps} steps, {checked} certificates of {run.group.quorum} signatures{covered}, {rows} signed rows"
    return Finding(LOG, True, f"{text}; {newest}")


def require(run: RunFolder, say: Say) -> None:
    """Refuse a folder from which nothing may be concluded, since its log or its ledger does not hold.

    Raises:
        BadInput: with what does not.

    Cost: that of `check_log` and `check_coefficients`.
    """
    check_log(run, say)
    finding = check_coefficients(run)
    if finding.holds is False:
        raise BadInput(f"{finding.text}: {run.folder} proves nothing, so take the folder of another peer")


def require_settings(run: RunFolder) -> None:
    """Refuse a folder whose ledger has another header than peers of its manifest write, as `require` does.

    An excision has a ledger and no log, so that this is all that can be compared.

    Raises:
        BadInput: with what differs, or no ledger.
    """
    if problem := _header_problem(run, ledger.read(run.folder / LEDGER).header):
        raise BadInput(f"{problem}: {run.folder} proves nothing, so make the excision again")


def _check_values(run: RunFolder) -> int:
    """Check every value as its voters did, and return how many rows there are."""
    history, checks, rows = History(run.group), Checks(run.group, run.ring), 0
    for step, data, certificate in run.log:
        try:
            decided = parse_certificate(certificate).round if certificate else LAST_ROUND
            rows += len(Validity(run.group, history, checks).check_value(data, decided).rows)
            history.append(data)
        except Malformed as error:
            raise BadInput(
                f"step {step} of {run.log.path} holds what no honest peer votes for ({error}): trust nothing in this "
                "folder, and take the log of another peer"
            ) from None
        checks.next_step()
    return rows


def check_coefficients(run: RunFolder) -> Finding:
    """Compare the ledger's header and learning rates with the manifest, and its coefficients with the decided rows.

    Cost: one rule a step; no forward pass.
    """
    path = run.folder / LEDGER
    if not path.exists():
        return Finding(WEIGHTS, None, "there is no ledger: the weights were not rebuilt")
    try:
        contents = ledger.read(path)
        problem = _header_problem(run, contents.header) or _moves_problem(run, contents.moves)
    except BadInput as error:
        return Finding(WEIGHTS, False, str(error))
    if problem:
        return Finding(WEIGHTS, False, problem)
    return Finding(
        WEIGHTS, True, f"{len(contents.moves)} steps of the ledger are what {run.rule.name} makes of the decided rows"
    )


def _header_problem(run: RunFolder, header: dict[str, Any]) -> str:
    """What in a ledger's header is not the manifest's; empty if nothing is."""
    check(header, run.folder / LEDGER, version=VERSION)  # of version 1 anything may stand there, and no peer writes it
    for field in (COMMAND, "initial_sha256", "tuned_parameters"):
        if field not in header:
            return f"the ledger's header lacks the field {field}, which peers write"
    if missing := sorted(_settings(run).to_json().keys() - PEERS_OWN - header[COMMAND].keys()):
        return f"the ledger does not say what {missing[0]} is"
    base, recorded, ours = run.manifest.contents.base_sha256, TuneConfig.from_json(header[COMMAND]), _settings(run)
    for name in typed.settings(TuneConfig):
        if name not in PEERS_OWN and (theirs := getattr(recorded, name)) != (own := getattr(ours, name)):
            return f"the ledger says that {name} is {typed.shown(theirs)}, and the manifest {typed.shown(own)}"
    if base not in ("", header.get("base_sha256")):
        return f"the ledger is of another base model than the manifest's ({base[:12]})"
    return ""


def _settings(run: RunFolder) -> TuneConfig:
    """Settings of the run, as a ledger's header holds them."""
    return TuneConfig.from_json(tune_settings(run.manifest.config).to_json())


def _moves_problem(run: RunFolder, moves: Sequence[Update]) -> str:
    """What in a ledger's steps does not follow from the manifest and the log; empty if nothing does."""
    if len(moves) > run.records.steps:
        return f"the ledger holds {len(moves)} steps, more than the {run.records.steps} that are decided"
    settings, mixed = _settings(run), run.mixed(len(moves))
    assert isinstance(settings.lr, float), "settings of agreed peers name a learning rate"
    rate = SCHEDULES[settings.schedule](settings.lr, settings.steps, settings.warmup)
    for move in moves:
        if set(move.lrs) != {rate(move.step)}:
            told = ", ".join(map(typed.shown, move.lrs))
            return f"step {move.step} of the ledger has the learning rate {told} instead of {rate(move.step)!r}"
        if not _same(move, mixed[move.step]):
            return f"step {move.step} of the ledger is not what the rule makes of the decided rows"
    return ""


def _same(move: Update, coefficients: np.ndarray) -> bool:
    if not np.isfinite(coefficients).all():
        return move.skipped
    return not move.skipped and np.array_equal(np.array(move.coeffs, np.float32), coefficients)
