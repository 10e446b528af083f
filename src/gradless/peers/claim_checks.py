"""Claims computed again: a peer's coefficients at the drawn steps, from its rows and the weights of these steps."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradless import ledger, rng
from gradless.collab.data.splits import Batches, batches
from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.coefficients import CoefficientPeers
from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.lm.loading import IN_PLACE
from gradless.peers import claims, opened
from gradless.peers.claims import Checked, Verdict
from gradless.peers.log_checks import Say, require
from gradless.peers.run_folder import RunFolder

FORMAT: Final = ("delimiter", "encoding")
"""What a manifest says of how files of own rows are written, and rows that were opened are not."""


class ClaimCheck(NamedTuple):
    """What a check of one peer's claims came to."""

    name: str
    drawn: tuple[int, ...]
    committed: bool
    """Whether the rows are those of the manifest's commitment."""
    checks: list[Checked]
    verdict: Verdict
    exact: bool
    """Whether losses are float32, so that single coefficients tell."""
    asked: bool
    """Whether an auditor's nonce drew the steps."""


def steps_of(run: RunFolder, name: str, nonce: str | None = None) -> list[int]:
    """Return the steps of a peer that an auditor's nonce and the log draw; none of a log without a row of it.

    Raises:
        BadInput: the run learns from rewards or has a task of its own, or the text is no nonce.
    """
    config = run.manifest.config
    if config.task is not None and not config.reward:
        raise BadInput(
            f"rows of this run are those of the task {config.task}, and no peer committed to a file of its own: audit "
            "the run without --peer"
        )
    if config.reward or "labels" not in config.own:
        raise BadInput(
            "coefficients of a reward cannot be computed again: a text that another processor writes may differ in a "
            "token; audit the run without --peer"
        )
    claims.check_own(config.own)
    peer, log = run.number(name), run.records
    present = [step for step in range(log.steps) if np.isfinite(log.rows[step, peer]).all()]
    newest = log.digests[-1] if log.digests else b""
    return claims.drawn(newest, run.manifest.run, peer, present, nonce=claims.read_nonce(nonce))


def check_file(
    run: RunFolder,
    name: str,
    data: str,
    salt: Path | None,
    *,
    nonce: str | None = None,
    model: str | None = None,
    say: Say = lambda line: None,
) -> ClaimCheck:
    """Compute a peer's drawn coefficients again from its whole training file.

    Args:
        run: folder of any peer of the run.
        name: of the peer whose claims are checked.
        data: its training file.
        salt: file with the salt of its commitment, in the identity's folder; None: the rows are not compared with it.
        nonce: of the auditor; None: the log alone draws the steps (`gradless.peers.claims.UNASKED`).
        model: where the base model is now, if not where the manifest says.
        say: takes a line of progress at a time.

    Raises:
        BadInput: rows that are not those that the peer committed to, a run without rows of its peers' own, or a log or
            ledger that does not hold.

    Cost: the forward passes of the drawn steps, a replay, and `gradless.peers.log_checks.require`.
    """
    require(run, say)
    if salt is not None:
        _require(run, name, _committed(run, data), _read_salt(salt))
    return _check(run, name, {**run.manifest.config.own, "train": data}, salt is not None, nonce, model, say)


def open_steps(
    run: RunFolder,
    name: str,
    data: str,
    salt: Path,
    out: Path,
    *,
    nonce: str | None = None,
    say: Say = lambda line: None,
) -> int:
    """Write the rows of a peer's drawn steps for an auditor, with proofs that they were committed to.

    Returns:
        How many rows.

    Raises:
        BadInput: as `check_file`.

    Cost: as `gradless.peers.log_checks.require`, and two hashes a row.
    """
    require(run, say)  # a log that somebody else made would choose the rows
    rows, secret = _committed(run, data), _read_salt(salt)
    _require(run, name, rows, secret)
    read = _places(run, name, steps_of(run, name, nonce), len(rows))
    indices = sorted({index for places in read for index in places})
    opened.write_opened(out, run.manifest.sha256, name, claims.open_rows(rows, secret, indices))
    return len(indices)


def check_opened(
    run: RunFolder,
    name: str,
    file: Path,
    *,
    nonce: str | None = None,
    model: str | None = None,
    say: Say = lambda line: None,
) -> ClaimCheck:
    """Compute a peer's drawn coefficients again from the rows that it opened.

    Raises:
        BadInput: rows that it was not committed to or that are none, some of a drawn step are missing, or a log or
            ledger that does not hold.

    Cost: as `check_file`, and two shuffles of as many numbers as the peer has rows.
    """
    require(run, say)
    member = run.manifest.peers[run.number(name)]
    if not member.commitment:
        raise BadInput(
            f"{name} committed to no rows, so that opened ones prove nothing: check a --data file of its own"
        )
    openings = {one.place: one for one in opened.read_opened(file, run.manifest.sha256, name)}
    commitment = bytes.fromhex(member.commitment)
    for one in openings.values():
        if not claims.is_committed(one, member.rows, commitment):
            raise BadInput(f"row {one.place} in {file} is not what {name} committed to: nothing in it can be trusted")
    steps = steps_of(run, name, nonce)
    for step, places in zip(steps, _places(run, name, steps, member.rows), strict=True):
        if missing := [index for index in places if index not in openings]:
            raise BadInput(
                f"{file} lacks row {missing[0]} of step {step}, which was drawn: let {name} open the rows for the "
                "same --nonce, when its log has as many steps as this one"
            )
    own = {key: value for key, value in run.manifest.config.own.items() if key not in FORMAT}
    ordered = [openings[index] for index in sorted(openings)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opened.jsonl"
        path.write_text(opened.training_file(ordered, own, name), encoding="utf-8")
        return _check(run, name, {**own, "train": str(path)}, True, nonce, model, say, opened_at=sorted(openings))


def _check(
    run: RunFolder,
    name: str,
    own: Mapping[str, Any],
    committed: bool,
    nonce: str | None,
    model: str | None,
    say: Say,
    *,
    opened_at: Sequence[int] | None = None,
) -> ClaimCheck:
    """Check claims by the rows in ``own``; ``opened_at``: their places in the whole file, if they are not all of it."""
    drawn = steps_of(run, name, nonce)
    config = run.manifest.config
    if not drawn:
        return ClaimCheck(name, (), committed, [], claims.judge([], eps=1.0, exact=True), True, nonce is not None)
    config = dataclasses.replace(config, model=run.base_model(model))
    peer = one_peer(config, run.number(name), own=own)
    learner, contents = peer.learner, ledger.read(run.folder / "ledger")
    assert isinstance(learner, CoefficientPeers)
    expected = run.manifest.contents.base_sha256 or contents.header["base_sha256"]
    if peer.base_sha256 != expected:
        raise BadInput(
            f"the base model {config.model} has other weights here ({str(peer.base_sha256)[:12]}) than in the run "
            f"({expected[:12]}), and would give other numbers: give the model of the run with --model"
        )
    if opened_at is not None:
        assert peer.streams is not None
        peer.streams[0] = _stream_of_opened(run, name, opened_at)
    say(f"computing {len(drawn)} steps of {name} again")
    checks = list(_again(run, name, learner, contents.moves, drawn))
    exact = contents.header.get("dtype") in ("float32", IN_PLACE)
    assert config.eps is not None, "settings of agreed peers name eps"
    verdict = claims.judge(checks, eps=config.eps, exact=exact)
    return ClaimCheck(name, tuple(drawn), committed, checks, verdict, exact, nonce is not None)


def _again(
    run: RunFolder, name: str, learner: CoefficientPeers, moves: Sequence[Update], drawn: Sequence[int]
) -> list[Checked]:
    if drawn[-1] > len(moves):
        raise BadInput(
            f"the ledger ends at step {len(moves)}, and the weights of step {drawn[-1]} are asked for: take the folder "
            "of a peer that has finished the run"
        )
    peer, member = run.number(name), learner.members[0]
    checks = []
    for step in drawn:
        member.optimizer.replay(moves[member.optimizer.t : step])
        estimate = member.optimizer.probe(member.closure(step))
        claimed = tuple(map(float, run.records.rows[step, peer]))
        checks.append(Checked(step, claimed, estimate.sketch.coeffs, estimate.loss))
    return checks


def _dealt(run: RunFolder, rows: int) -> NDArray[np.int64]:
    """Places in a file of its rows in the order in which a run has them, as `gradless.tasks.split` deals own files."""
    return rng.permutation(rows, seed=run.manifest.config.seed, stream="split/train")


def _stream(run: RunFolder, name: str, indices: Tensor) -> Batches:
    config = run.manifest.config
    return batches(indices, config.batch_size, config.seed, run.number(name))


def _places(run: RunFolder, name: str, steps: Sequence[int], rows: int) -> list[list[int]]:
    """Places in the file of the rows that a peer reads in each of some steps."""
    stream = _stream(run, name, torch.from_numpy(_dealt(run, rows)))
    return [stream.at(step).tolist() for step in steps]


def _stream_of_opened(run: RunFolder, name: str, places: Sequence[int]) -> Batches:
    """The peer's batches where the rows at some places of its file are all that is there."""
    rows = run.manifest.peers[run.number(name)].rows
    index = np.full(rows, -1)  # of a row that was not opened: no drawn step reads it
    index[np.array(places)[_dealt(run, len(places))]] = np.arange(len(places))
    return _stream(run, name, torch.from_numpy(index[_dealt(run, rows)]))


def _committed(run: RunFolder, data: str) -> list[bytes]:
    return claims.file_rows(data, run.manifest.config.own)


def _require(run: RunFolder, name: str, rows: Sequence[bytes], salt: bytes) -> None:
    member = run.manifest.peers[run.number(name)]
    if not member.commitment:
        raise BadInput(f"{name} committed to no rows in the manifest: leave out --salt")
    if len(rows) != member.rows or claims.commit(rows, salt).hex() != member.commitment:
        raise BadInput(f"these are not the rows that {name} committed to: give the file and the salt of its commitment")


def _read_salt(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give the file 'salt' that 'gradless peers keygen' wrote"
        ) from None
