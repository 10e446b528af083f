"""A finished run of peers, made by hand in one process: keys, manifest, signed values, certificates, ledger."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gradless import ledger
from gradless.collab.learners.alone import one_peer
from gradless.peers import claims, keys, schema, settings
from gradless.peers import manifest as manifests
from gradless.peers.history import Group, History
from gradless.peers.history import rows as rows_of
from gradless.peers.log import DecidedLog
from gradless.peers.mixing import AgreedRule
from gradless.peers.schema import Kind, Row, Value
from gradless.peers.signing import Ed25519Ring

NAMES = ("anna", "bert", "carl", "dora")
OWN = {"template": "{text} It was", "label_column": "label", "labels": "0=terrible,1=great"}
WORDS = ("fine", "dull", "bright", "slow", "warm", "cold", "odd", "kind")
Rows = Callable[[int, int, History], Sequence[float] | None]  # step, peer -> coefficients, or no row in the value


def csv_of(folder: Path, peer: int, rows: int = 12) -> Path:
    """Training rows of a peer, each one different."""
    lines = [
        f"a {WORDS[(peer + i) % 8]} and {WORDS[(3 * peer + i // 2) % 8]} film number {i},{i % 2}" for i in range(rows)
    ]
    path = folder / f"{NAMES[peer]}.csv"
    path.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


class WrittenRun(NamedTuple):
    """A run's folder, and what its peers keep to themselves."""

    folder: Path
    manifest: manifests.Manifest
    rings: list[Ed25519Ring]
    files: list[Path]
    identities: list[Path]
    group: Group


def write_run(
    root: Path,
    rows: Rows,
    *,
    steps: int,
    commit: bool = False,
    truthful: Sequence[int] = (),
    evidence: tuple[int, int] | None = None,
    **set_: Any,
) -> WrittenRun:
    """Write a run of four peers with f = 1 and K = 4 on tiny-llama.

    Args:
        root: an empty folder.
        rows: what peers send.
        steps: how many.
        commit: whether peers commit to their rows.
        truthful: peers that send what their rows give, times what ``rows`` says for them.
        evidence: (step, peer): the value of that step convicts the peer of two rows.
        set_: other settings than usual.
    """
    files = [csv_of(root, peer) for peer in range(4)]
    identities, cards = [], []
    for peer, name in enumerate(NAMES):
        own_rows, salt = claims.file_rows(files[peer], OWN), bytes([peer]) * 32
        commitment = keys.Commitment(claims.commit(own_rows, salt), len(own_rows), salt) if commit else None
        cards.append(keys.make(name, f"tls/127.0.0.1:{7500 + peer}", root / f"id-{name}", commitment=commitment))
        identities.append(root / f"id-{name}")
    fields = {
        "model": "tiny-llama",
        "own": OWN,
        "payload": "coefficients",
        "steps": steps,
        "batch_size": 2,
        "lr": 1e-3,
        "eps": 1e-3,
    }
    config = settings.shared({**fields, "scheme": "full", "queries": 4, "seed": 3, **set_}, peers=4, f=1)
    data = manifests.make(cards, config, f=1)
    folder = root / "run"
    folder.mkdir()
    manifests.write(folder / manifests.FILE, data)
    manifest = manifests.read(folder)
    loaded = [keys.load(path) for path in identities]
    publics = [one.signing.public_key() for one in loaded]
    rings = [Ed25519Ring(peer, one.signing, publics) for peer, one in enumerate(loaded)]
    group = Group(manifest.run, 4, 1, 4)
    run = WrittenRun(folder, manifest, rings, files, identities, group)
    _decide(run, rows, steps, evidence, truthful)
    return run


def _decide(run: WrittenRun, rows: Rows, steps: int, evidence: tuple[int, int] | None, truthful: Sequence[int]) -> None:
    config = run.manifest.config
    log = DecidedLog(run.folder / "peers.log", run.group)
    rule = AgreedRule(str(config.rule), peers=4, byzantine=1)
    learners = {
        peer: one_peer(config, peer, own={**OWN, "train": str(run.files[peer])}, folder=None if peer else run.folder)
        for peer in {0, *truthful}
    }
    for step in range(steps):
        history = log.history
        signed = []
        for peer in range(4):
            coefficients = rows(step, peer, history)
            if peer in truthful and coefficients is not None:
                own = learners[peer].learner.propose(step, "coefficients")[0].tolist()
                coefficients = [float(np.float32(a * b)) for a, b in zip(own, coefficients, strict=True)]
            if coefficients is not None and peer not in history.banned:
                signed.append(signed_row(run, peer, step, history.digest, coefficients))
        pairs = []
        if evidence is not None and evidence[0] == step:
            both = [signed_row(run, evidence[1], step, history.digest, [value] * 4) for value in (1.0, 2.0)]
            bodies = [schema.row_body(run.group.run, row, step, history.digest) + row.signature for row in both]
            pairs.append((bodies[0], bodies[1]))
        value = schema.pack_value(Value(step, history.digest, 0, history.leader(0), 4, tuple(signed), tuple(pairs)))
        voters = [peer for peer in range(4) if peer not in history.banned][:3]
        matrix, _ = rows_of(schema.parse_value(value))
        mixed = rule.mix(torch.from_numpy(matrix), len(history.banned))
        log.append(value, certificate(run, step, value, voters))
        for one in learners.values():
            one.learner.accept(step, "coefficients", mixed[None])
    log.close()
    for one in learners.values():
        one.close()


def signed_row(run: WrittenRun, peer: int, step: int, previous: bytes, coefficients: Sequence[float]) -> Row:
    """A row as its peer signs it."""
    row = Row(peer, 0, schema.pack_coefficients(coefficients), b"")
    return row._replace(signature=run.rings[peer].sign(schema.row_body(run.group.run, row, step, previous)))


def certificate(run: WrittenRun, step: int, value: bytes, voters: Sequence[int]) -> bytes:
    """Precommits of some peers for a value."""
    digest = schema.digest(run.group.run, value)
    body = schema.pack_head
    votes = {peer: run.rings[peer].sign(body(run.group.run, Kind.PRECOMMIT, peer, step) + digest) for peer in voters}
    return schema.pack_certificate(0, votes)


def random_rows(seed: int = 0, flips: Sequence[int] = (), signal: float = 0.8) -> Rows:
    """Rows with a common part of each step, which some peers turn round."""

    def rows(step: int, peer: int, history: History) -> list[float]:
        common = np.random.default_rng([seed, step]).standard_normal(4)
        own = np.random.default_rng([seed, step, peer]).standard_normal(4)
        values = signal * common + own
        return [float(np.float32(value)) for value in (-3 * values if peer in flips else values)]

    return rows


def moves(folder: Path) -> list[Any]:
    """The updates in a ledger."""
    return list(ledger.read(folder / "ledger").moves)


def copied(run: WrittenRun, folder: Path) -> Path:
    """Copy a run's folder."""
    shutil.copytree(run.folder, folder / "copy")
    return folder / "copy"


def rewritten(folder: Path, steps: int | None = None, rate: float | None = None, **settings: Any) -> None:
    """Write the ledger of a run's copy again, shorter or with other rates or settings in its header."""
    contents = ledger.read(folder / "ledger")
    (folder / "ledger").unlink()
    header = {**contents.header, "config": {**contents.header["config"], **settings}}
    written = ledger.Ledger(folder / "ledger", header)
    for move in contents.moves[:steps]:
        written.append(move if rate is None else move._replace(lrs=(rate,)))
    written.close()
