"""Folders of runs that somebody changed before an auditor got them: in bytes, and in fields behind right checksums.

A seed makes a case: one file of a finished run, changed in one way. Whoever looks at it gets an answer or a sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradless import ledger
from gradless.errors import BadInput
from gradless.ledger import file
from gradless.peers import keys, prepare, schema
from gradless.peers import manifest as manifests
from gradless.peers.audit import audit
from gradless.peers.claim_checks import check_file, check_opened, open_steps
from gradless.peers.excise import excise
from gradless.peers.log import FORMAT, DecidedLog
from gradless.peers.records import CRC, HEADER, VERSION, pack_record
from gradless.peers.run_folder import RunFolder
from gradless.peers.schema import U32, Value
from peers_audit_helpers import NAMES, WrittenRun, certificate, signed_row

NONCE: Final = "5a" * 16
ODD: Final = (
    *(None, True, -1, 0, 3, 0.5, 2**31, 2**63, 10**30, 1e308, -1e-300, "", "x", "\udcff", "ab" * 32, "9" * 5000),
    *([], [None], [[]], {}, {"x": 1}, {"": []}, [1] * 500),
)
"""Values of a field of JSON or TOML."""


RESULT: Final = {
    **{"data_sha256": "", "zero_shot": {}, "test": {}, "interval": {}, "versions": {}, "banned": {}, "accuracy": None},
    **{"seconds": 1.0, "seconds_per_step": 1.0, "bytes_per_step": 1.0, "ledger_bytes": 1, "agree_seconds": None},
}
"""What a ``result.json`` holds beside the end of the run."""


class Folder:
    """A finished run with all that its owner and an auditor need, to be copied and changed."""

    def __init__(self, run: WrittenRun, folder: Path) -> None:
        self.run, self.folder, self.cases = run, folder, 0
        peers = RunFolder(run.folder)
        self.opened = folder / "opened.json"
        self.salt = run.identities[0] / "salt"
        open_steps(peers, NAMES[0], str(run.files[0]), self.salt, self.opened, nonce=NONCE)
        done = excise(run.folder, [NAMES[3]], folder / "excised", say=lambda line: None)
        end = {"steps": done.steps, "digest": done.parent, "weights_sha256": done.weights_before, "status": "done"}
        (run.folder / "result.json").write_text(json.dumps({**RESULT, **end, "selected_step": done.steps}))
        hashes = {"event": "hash", "step": done.steps, "others": dict.fromkeys(NAMES[1:], done.weights_before)}
        (run.folder / "metrics.jsonl").write_text(json.dumps(hashes) + "\n")

    def copy(self, excised: bool) -> Path:
        """Return a copy of the run's folder, or of its excision."""
        self.cases += 1
        folder = self.folder / str(self.cases)
        shutil.copytree(self.folder / "excised" if excised else self.run.folder, folder)
        shutil.copy(self.opened, folder / "opened.json")
        return folder


CASES: Final[dict[str, Callable[[Folder, Path, random.Random], str]]] = {}


def case(make: Callable[[Folder, Path, random.Random], str]) -> Callable[[Folder, Path, random.Random], str]:
    """Add a kind of case: it changes a folder and says what it did."""
    CASES[make.__name__] = make
    return make


@case
def damaged(world: Folder, folder: Path, draw: random.Random) -> str:
    """Change bytes of a file, whatever they are."""
    path = draw.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    data = bytearray(path.read_bytes())
    how = draw.choice(("flipped", "cut", "garbage", "emptied", "doubled", "folder", "deep"))
    if how == "folder":
        path.unlink()
        path.mkdir()
        return f"{path.name} {how}"
    for _ in range(draw.choice((1, 5)) if how == "flipped" else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    contents = {"cut": data[: draw.randrange(len(data))], "garbage": draw.randbytes(200), "emptied": b""}
    contents |= {"doubled": data + data, "deep": b"[" * 9999}
    path.write_bytes(contents.get(how, data))
    return f"{path.name} {how}"


@case
def odd_json(world: Folder, folder: Path, draw: random.Random) -> str:
    """Put another value into a field of a file of JSON."""
    path = folder / draw.choice(("opened.json", "result.json", "metrics.jsonl"))
    table = json.loads(path.read_text())
    about = replaced(table, draw)
    path.write_text(json.dumps(table))
    return f"{path.name} {about}"


@case
def odd_excision(world: Folder, folder: Path, draw: random.Random) -> str:
    """Change what an excision says of itself, or its ledger."""
    if draw.random() < 0.5:
        return odd_header(world, folder, draw)
    table = json.loads((folder / "excised.json").read_text())
    about = replaced(table, draw)
    (folder / "excised.json").write_text(json.dumps(table))
    return f"excised.json {about}"


@case
def odd_header(world: Folder, folder: Path, draw: random.Random) -> str:
    """Put another value into a field of the ledger's header, behind its right checksum."""
    contents = ledger.read(folder / "ledger")
    header = json.loads(json.dumps(contents.header))
    about = replaced(header["config"] if draw.random() < 0.6 else header, draw)
    write_ledger(folder / "ledger", header, contents.header["groups"], draw.choice((1, 2, 2)))
    return f"header {about}"


@case
def odd_moves(world: Folder, folder: Path, draw: random.Random) -> str:
    """Write other steps into the ledger."""
    contents = ledger.read(folder / "ledger")
    (folder / "ledger").unlink()
    written = ledger.Ledger(folder / "ledger", contents.header)
    moves, at = list(contents.moves), draw.randrange(len(contents.moves))
    odd = draw.choice((0.0, -0.0, 1e30, float("inf"), float("nan"), -3.0))
    changed = {
        "coefficient": moves[at]._replace(coeffs=(odd, *moves[at].coeffs[1:])),
        "width": moves[at]._replace(coeffs=moves[at].coeffs[: draw.randrange(4)]),
        "wide": moves[at]._replace(coeffs=moves[at].coeffs * 3),
        "skipped": moves[at]._replace(skipped=True, coeffs=()),
        "rate": moves[at]._replace(lrs=(odd,)),
    }
    how = draw.choice((*changed, "short", "empty", "long"))
    moves = {"short": moves[:at], "empty": [], "long": [*moves, moves[0]._replace(step=len(moves))]}.get(how, moves)
    if how in changed:
        moves[at] = changed[how]
    for move in moves:
        written.append(move)
    written.close()
    return f"moves {how} {odd}"


@case
def odd_value(world: Folder, folder: Path, draw: random.Random) -> str:
    """Decide something else in one step, with the chain and the certificates of a quorum behind it."""
    run = world.run
    at, how = draw.randrange(len(DecidedLog(folder / "peers.log", run.group, writable=False))), draw.choice(VALUES)
    bodies, previous = [], schema.NO_DIGEST
    for step, data, decided in DecidedLog(folder / "peers.log", run.group, writable=False):
        value = schema.parse_value(data)._replace(before=previous)
        rows = [signed_row(run, one.sender, step, previous, floats(one.coefficients)) for one in value.rows]
        value = value._replace(rows=tuple(rows))
        packed = schema.pack_value(changed_value(run, value, how, draw) if step == at else value)
        if step == at and how == "bytes":
            packed = flipped(packed, draw)
        decided = certificate(run, step, packed, (0, 1, 2))
        if step == at and how == "certificate":
            decided = draw.choice((flipped(decided, draw), decided[:-1], b"", decided[:4], decided * 2))
        bodies.append(U32.pack(len(packed)) + packed + decided)
        previous = schema.digest(run.group.run, packed)
    write_records(folder / "peers.log", run.group.run, bodies)
    return f"value {at} {how}"


VALUES: Final = ("bytes", "certificate", "width", "proposer", "round", "sender", "flags", "nan", "evidence", "same")


def changed_value(run: WrittenRun, value: Value, how: str, draw: random.Random) -> Value:
    """Return a value with something else in it."""
    row = value.rows[-1]
    if how == "evidence":
        messages = [schema.row_body(run.group.run, row, value.step, bytes([n]) * 32) + row.signature for n in (1, 2)]
        if draw.random() < 0.5:  # by another, of another kind, too short
            messages = [draw.choice((flipped(one, draw), one[: draw.randrange(len(one))])) for one in messages]
        return value._replace(evidence=((messages[0], messages[1]),) * draw.choice((1, 2)))
    rows = {
        "sender": row._replace(sender=draw.choice((4, 9, 65535))),
        "flags": row._replace(flags=draw.choice((1, 2, 255))),
        "nan": row._replace(coefficients=b"\0\0\xc0\x7f" * 4),
    }
    if how in rows:
        return value._replace(rows=(*value.rows[:-1], rows[how]))
    fields = {"width": draw.choice((0, 3, 65535)), "proposer": draw.choice((3, 65535)), "round": 1}
    return value._replace(**{how: fields[how]}) if how in fields else value


@case
def odd_manifest(world: Folder, folder: Path, draw: random.Random) -> str:
    """Put another value into a field of the manifest, under which the log is still that of the run."""
    data = tomllib.loads((folder / "manifest.toml").read_text())
    inside = draw.choice((data, data["settings"], data["settings"]["own"], draw.choice(data["peers"])))
    name = draw.choice(sorted(inside))
    value = draw.choice([one for one in ODD if one is not None and one != "\udcff"])
    gone = draw.random() < 0.2
    inside |= {name: value}
    if gone:
        del inside[name]
    peers = data.pop("peers", [])
    lines = manifests._table(data, "")
    for member in peers if isinstance(peers, list) else []:
        lines += ["", "[[peers]]", *manifests._table(member, "peers")] if isinstance(member, dict) else []
    (folder / "manifest.toml").write_text("\n".join(lines) + "\n")
    return f"manifest {name} {'left out' if gone else repr(value)[:30]}"


@contextlib.contextmanager
def same_run(world: Folder) -> Iterator[None]:
    """Let every manifest name the run that the log is of, as if its peers had agreed on it."""
    parse = manifests.parse

    def named(data: bytes, where: object = manifests.FILE) -> manifests.Manifest:
        return dataclasses.replace(parse(data, where), sha256=world.run.manifest.sha256)

    manifests.parse = named
    try:
        yield
    finally:
        manifests.parse = parse


def replaced(table: Any, draw: random.Random) -> str:
    """Put an odd value somewhere into nested tables and lists, or leave one out."""
    where, path = table, []
    while isinstance(where, dict | list) and where:
        key = draw.choice(sorted(where)) if isinstance(where, dict) else draw.randrange(len(where))
        path.append(str(key))
        if not (isinstance(where[key], dict | list) and where[key]) or draw.random() < 0.3:
            if draw.random() < 0.2:
                del where[key]
                return f"{'.'.join(path)} left out"
            where[key] = draw.choice(ODD)
            return f"{'.'.join(path)} = {where[key]!r:.30}"
        where = where[key]
    return "nothing"


def floats(data: bytes) -> list[float]:
    """Return packed coefficients."""
    return [float(one) for one in np.frombuffer(data, "<f4")]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """Return bytes with one bit turned."""
    changed = bytearray(data)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def write_ledger(path: Path, header: Any, groups: int, version: int) -> None:
    """Write any header before the records of a ledger, with right checksums."""
    data = path.read_bytes()
    offset = 14 + int.from_bytes(data[10:14], "little") + 4
    head = file._head(version, header)
    crc = zlib.crc32(head)
    parts = [head, file.WORD.pack(crc)]
    while (end := file.record_end(data, offset, groups)) is not None:
        crc = zlib.crc32(data[offset:end], crc)
        parts += [data[offset:end], file.WORD.pack(crc)]
        offset = end + file.WORD.size
    path.write_bytes(b"".join(parts))


def write_records(path: Path, run: bytes, bodies: list[bytes]) -> None:
    """Write a log of any records, with right checksums."""
    head = HEADER.pack(FORMAT.magic, VERSION, run)
    crc = zlib.crc32(head)
    parts = [head, CRC.pack(crc)]
    for body in bodies:
        record, crc = pack_record(body, crc)
        parts.append(record)
    path.write_bytes(b"".join(parts))


def looks(world: Folder, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what people do with a folder that they got."""
    run, quiet = world.run, {"say": lambda line: None}
    data, name = str(run.files[0]), NAMES[0]

    def followed() -> object:
        cards = [keys.load(identity).card for identity in run.identities]
        return prepare.manifest(
            cards,
            {},
            f=1,
            mode="coefficients",
            recipe=None,
            out=folder / "next",
            check_every=5,
            timing=manifests.USUAL,
            days=1,
            parent=folder,
            **quiet,
        )

    return {
        "audit": lambda: audit(folder),
        "check": lambda: check_file(RunFolder(folder), name, data, world.salt),
        "open": lambda: open_steps(RunFolder(folder), name, data, world.salt, folder / "new.json", nonce=NONCE),
        "opened": lambda: check_opened(RunFolder(folder), name, folder / "opened.json", nonce=NONCE),
        "excise": lambda: excise(folder, [NAMES[3]], folder / "without", **quiet),
        "continue": followed,
    }


WAYS: Final = ("audit", "check", "open", "opened", "excise", "continue")


def attack(world: Folder, kind: str, seed: int, ways: Iterable[str] = WAYS) -> dict[str, str]:
    """Make a case and look at it in some ways; returns what came of each.

    Raises:
        AssertionError: something else than a sentence.
    """
    draw = random.Random(f"{kind}/{seed}")
    folder = world.copy(kind == "odd_excision")
    about = CASES[kind](world, folder, draw) if kind in CASES else "nothing"
    ends = {}
    try:
        with same_run(world) if kind == "odd_manifest" else contextlib.nullcontext():
            for name in ways:
                try:
                    result = looks(world, folder)[name]()
                except BadInput as error:
                    ends[name] = f"refused: {error}"
                except Exception as error:
                    raise AssertionError(f"{kind} {seed} ({about}): {name} ends with {error!r}") from error
                else:
                    ends[name] = "wrong" if getattr(result, "holds", None) is False else "holds"
    finally:
        shutil.rmtree(folder)
    return {"about": about, **ends}
