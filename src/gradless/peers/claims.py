"""Claims of a peer about its data: a commitment to its rows, which steps are checked, and what a check tells.

A peer that commits puts the root of a Merkle tree over its training rows into the manifest, salted, so that nobody
guesses rows from it. Batches are a function of seed, peer and step, so it cannot choose them later. Which steps are
checked follows from a *nonce* that an auditor makes once the run is over, and from the log's last value: when a peer
sends its coefficients, nobody knows whether they will be checked. The owner, or an auditor to whom it opens rows, then
computes these coefficients again.

No part of the log could take the nonce's place. Each value holds a row and a signature of the very peer that is
checked, and one that sends last, or leads, can try equivalent rows until the draw suits it: a few hashes a step where
each step has a lot of its own, and where the last value decides all lots, some millions at the last step to hide lies
in half of the steps (`UNASKED`).

This proves that a peer sent what its committed rows give. It does not prove that these rows are good, true, its own or
anybody's, and says nothing about steps that were not drawn.

Rows are committed as `gradless.tasks.own_rows` reads them: canonical JSON of the columns and the label, in the order of
the file. The tokenizer is no part of it: the manifest names the model, which fixes what tokens these rows become.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import statistics
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.system import typed

DRAWN: Final = 32
"""Steps of a peer that are checked."""
ALLOWED: Final = 2
"""Misses among them that do not convict: a rare input may take another kernel on another machine."""
SLACK: Final = 256
"""Roundings of a loss in float32 that a coefficient may be away; 256 are 8 times the most that was measured."""
FEWEST_VALUES: Final = 64
"""Coefficients below which a variance ratio tells nothing."""
ROW, NODE, ROOT = b"\0", b"\1", b"gradless-peers-rows-1\0"
DRAW: Final = b"gradless-peers-draw-2\0"
SALT: Final = b"gradless-peers-salt-1\0"
MOST_ROWS: Final = 10**7
"""That a peer commits to: an auditor shuffles as many numbers to tell which rows a step reads (20 s, 1 GB)."""
NONCE: Final = 16
"""Bytes of an auditor's nonce, which is written in hexadecimal digits."""
UNASKED: Final = (
    "the steps were drawn without the --nonce of an auditor, by the log's last value alone: who sent or led last can "
    "have tried rows until this draw suited it, a thousand if three steps in ten are lies, eight million if half are"
)


def row_bytes(row: Mapping[str, Any]) -> bytes:
    """Return a row as it is committed: JSON with sorted keys, without spaces, in UTF-8.

    Example:
        >>> row_bytes({"label": 1, "columns": {"text": "fine"}})
        b'{"columns":{"text":"fine"},"label":1}'
    """
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def salt_of(salt: bytes, index: int) -> bytes:
    """Return the salt of one row, 32 bytes, from which those of other rows do not follow."""
    return hashlib.sha256(SALT + salt + struct.pack("<I", index)).digest()


def commit(rows: Sequence[bytes], salt: bytes) -> bytes:
    """Return the commitment to rows, 32 bytes.

    Args:
        rows: as `row_bytes` gives them, in the order of the file.
        salt: 32 random bytes, which the owner keeps.

    Raises:
        BadInput: no rows, too many of them, or a salt of another length.

    Cost: two hashes a row.
    """
    if not rows:
        raise BadInput("there are no rows to commit to: give a file with training rows")
    if len(rows) > MOST_ROWS:
        raise BadInput(f"there are {len(rows):,} rows to commit to: give a file of at most {MOST_ROWS:,}")
    _check_salt(salt)
    level = [_leaf(row, salt_of(salt, index)) for index, row in enumerate(rows)]
    return _root(len(rows), _levels(level)[-1][0])


class Opening(NamedTuple):
    """One committed row, and what shows that it was committed to."""

    place: int
    """In the file, from 0."""
    row: bytes
    salt: bytes
    path: tuple[bytes, ...]
    """Hashes beside the way from the row to the root, from below; a node without a neighbour needs none."""


def open_rows(rows: Sequence[bytes], salt: bytes, indices: Sequence[int]) -> list[Opening]:
    """Return openings of some rows, which tell nothing about the others.

    Args:
        rows: all that were committed to.
        salt: of the commitment.
        indices: of the rows to open.

    Raises:
        BadInput: a salt of another length, or an index out of range.
    """
    _check_salt(salt)
    if any(not 0 <= index < len(rows) for index in indices):
        raise BadInput(f"a row to open is not among the {len(rows)} rows: give the file that was committed to")
    levels = _levels([_leaf(row, salt_of(salt, index)) for index, row in enumerate(rows)])
    openings = []
    for index in indices:
        path, at = [], index
        for level in levels[:-1]:
            if (beside := at ^ 1) < len(level):
                path.append(level[beside])
            at //= 2
        openings.append(Opening(index, rows[index], salt_of(salt, index), tuple(path)))
    return openings


def is_committed(opening: Opening, count: int, commitment: bytes) -> bool:
    """Return whether a row is the one at its place in a commitment to ``count`` rows."""
    if not 0 <= opening.place < count or len(opening.salt) != 32:
        return False
    at, width, node = opening.place, count, _leaf(opening.row, opening.salt)
    path = list(opening.path)
    while width > 1:
        if at ^ 1 < width:
            if not path:
                return False
            beside = path.pop(0)
            node = _node(beside, node) if at & 1 else _node(node, beside)
        at, width = at // 2, (width + 1) // 2
    return not path and _root(count, node) == commitment


def new_nonce() -> str:
    """Return the nonce of an audit that nobody can know beforehand: 32 hexadecimal digits."""
    return secrets.token_hex(NONCE)


def read_nonce(text: str | None) -> bytes:
    """Return the bytes of a nonce as people hand it on; none where there is no nonce.

    Raises:
        BadInput: no nonce.
    """
    if text is None:
        return b""
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE:
        raise BadInput(
            f"the nonce {typed.shown(text)} is not {2 * NONCE} hexadecimal digits: give the one that 'gradless peers "
            "audit RUN --peer NAME' made"
        )
    return nonce


def drawn(
    newest: bytes, run: bytes, peer: int, present: Sequence[int], *, nonce: bytes = b"", most: int = DRAWN
) -> list[int]:
    """Return the steps of a peer that are checked, ascending: those with the lowest lots.

    Args:
        newest: digest of the log's last value.
        run: 16 bytes that name the run.
        peer: its number.
        present: steps in which its row was decided.
        nonce: of the auditor, made when the run was over; empty: the last value alone draws, see `UNASKED`.
        most: how many.
    """
    lots = {
        step: hashlib.sha256(DRAW + run + struct.pack("<HI", peer, step) + newest + nonce).digest() for step in present
    }
    return sorted(sorted(present, key=lots.__getitem__)[:most])


def tolerance(loss: float, eps: float) -> float:
    """Return how far a coefficient in float32 may be from the claimed one: 256 x 2^-24 |loss| / eps.

    A coefficient is a difference of two losses over 2 eps, so roundings of the losses are divided by eps. Other
    instruction sets and thread counts moved coefficients of SmolLM2 by an eighth of this at most.
    """
    return SLACK * 2.0**-24 * abs(loss) / eps


class Checked(NamedTuple):
    """A step that was computed again."""

    step: int
    claimed: tuple[float, ...]
    measured: tuple[float, ...]
    loss: float

    def misses(self, eps: float) -> bool:
        """Return whether a coefficient is farther away than `tolerance`, or not finite."""
        allowed = tolerance(self.loss, eps)
        return not all(abs(a - b) <= allowed for a, b in zip(self.claimed, self.measured, strict=True))


class Verdict(NamedTuple):
    """What checks of a peer come to."""

    convicted: bool
    text: str


def judge(checks: Sequence[Checked], *, eps: float, exact: bool) -> Verdict:
    """Return what the steps that were computed again tell.

    Args:
        checks: of one peer.
        eps: perturbation scale of the run.
        exact: whether losses are float32. Those of 16-bit weights differ between processors by as much as a few tenths
            of a coefficient's spread, so that single ones tell nothing: only the variance of the differences does,
            over at least `FEWEST_VALUES` coefficients, and it convicts from the variance of the measured ones on, in
            all steps together or in half of the steps. Never is it compared with that of the claims, which a liar
            makes as large as it likes; and half of the steps, since one step of huge coefficients would hide lies in
            all others.
    """
    if not checks:
        return Verdict(False, "no step could be checked: no decided value holds a row of this peer")
    values = sum(len(check.claimed) for check in checks)
    if exact:
        misses = [check.step for check in checks if check.misses(eps)]
        where = f" (steps {', '.join(map(str, misses[:8]))}{', ...' if len(misses) > 8 else ''})" if misses else ""
        text = f"{len(misses)} of {len(checks)} drawn steps miss{where}, at most {ALLOWED} are allowed"
        return Verdict(len(misses) > ALLOWED, text)
    if values < FEWEST_VALUES:
        return Verdict(False, f"{values} coefficients of 16-bit weights tell nothing: at least {FEWEST_VALUES} would")
    apart = [math.fsum((a - b) ** 2 for a, b in zip(one.claimed, one.measured, strict=True)) for one in checks]
    measured = [math.fsum(b * b for b in one.measured) for one in checks]
    overall, usual = _ratio(math.fsum(apart), math.fsum(measured)), statistics.median(map(_ratio, apart, measured))
    return Verdict(
        not (overall < 1.0 and usual < 1.0),
        f"differences have {overall:.2f} of the measured coefficients' variance, {usual:.2f} in the median step, over "
        f"{values} coefficients (16 bits)",
    )


def _ratio(apart: float, measured: float) -> float:
    return apart / measured if measured > 0 else math.inf if apart > 0 else apart + measured  # NaN stays


def _check_salt(salt: bytes) -> None:
    if len(salt) != 32:
        raise BadInput(
            f"the salt has {len(salt)} bytes instead of 32: give the file that 'gradless peers keygen' wrote"
        )


def _leaf(row: bytes, salt: bytes) -> bytes:
    return hashlib.sha256(ROW + salt + row).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE + left + right).digest()


def _root(count: int, top: bytes) -> bytes:
    return hashlib.sha256(ROOT + struct.pack("<I", count) + top).digest()


def _levels(level: list[bytes]) -> list[list[bytes]]:
    """Return the levels of the tree from the leaves to the top; a node without a neighbour moves up as it is."""
    levels = [level]
    while len(level) > 1:
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [_node(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        levels.append(level)
    return levels


def check_own(own: Mapping[str, Any]) -> None:
    """Refuse settings of own files that do not say how labelled rows are read.

    Raises:
        BadInput: naming the one that is missing.
    """
    for name in ("template", "label_column", "labels"):
        if not own.get(name):
            raise BadInput(f"rows are committed to as a task reads them: give --{name.replace('_', '-')} too")


def file_rows(path: Path | str, own: Mapping[str, Any]) -> list[bytes]:
    """Return the rows of a training file as they are committed to, in the order of the file.

    Args:
        path: as for ``--train``.
        own: template, label_column and labels of the task, and how the file is written
            (`gradless.runs.config.OwnFiles`).

    Raises:
        BadInput: the file, the template or the labels cannot be used.
    """
    from gradless.tasks import own as own_tasks
    from gradless.tasks import own_rows
    from gradless.tasks.sources import resolve
    from gradless.tasks.text_rows import Wanted

    check_own(own)
    columns = own_tasks.parse_template(own["template"]).columns
    labels = tuple(own_tasks.checked_labels(own["labels"]))
    wanted = Wanted(columns, own["label_column"], labels, own.get("delimiter"), own.get("encoding"))
    return [row_bytes(row) for row in own_rows.read(resolve(path, "train"), wanted, lambda line: None)]
