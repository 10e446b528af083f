"""Decided values and their certificates: ``peers.log``, a hash chain that anybody with the manifest can check.

A record (`records`) is ``u32 length | value | certificate``. The certificate of a step covers all steps before it,
since each value names the digest of the one before; a peer that joined late keeps certificates of the steps alone whose
signatures it has checked, and none of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gradless.errors import BadInput
from gradless.peers.history import Group, History
from gradless.peers.records import Format, RecordFile, read
from gradless.peers.schema import (
    U32,
    Kind,
    Malformed,
    digest,
    pack_head,
    parse_certificate,
    split,
)
from gradless.peers.signing import Verifier

PEERS_LOG: Final = "peers.log"
FORMAT: Final = Format(
    b"gl-plog\n", "decided values", "restore it from a copy, or remove it and run 'gradless peers join'"
)


class Decision(NamedTuple):
    """One decided step."""

    step: int
    value: bytes
    certificate: bytes  # of precommits; empty where its signatures were not checked


def verify_certificate(
    group: Group,
    ring: Verifier,
    step: int,
    digest: bytes,
    certificate: bytes,
    *,
    banned: frozenset[int] = frozenset(),
    kind: Kind = Kind.PRECOMMIT,
) -> int:
    """Check that a quorum voted for a digest in a step, and return the round.

    Raises:
        Malformed: it did not.

    Cost: one signature check a vote, at most n.
    """
    round, votes = parse_certificate(certificate)
    if len(votes) < group.quorum:
        raise Malformed("certificate without a quorum")
    for sender, signature in votes:
        if sender >= group.peers or sender in banned:
            raise Malformed("certificate sender")
        if not ring.verify(sender, pack_head(group.run, kind, sender, step, round) + digest, signature):
            raise Malformed("certificate signature")
    return round


class DecidedLog:
    """Values in the order of their steps, in a file or in memory.

    Args:
        path: ``peers.log``, made if it is not there; None for a simulation.
        group: the manifest's constants.
        writable: False to look at the log of a peer that may be running.

    Attributes:
        history: bans, leaders and the digest after the newest value.

    Raises:
        BadInput: the file was changed, is of another run, or another process is writing to it.

    Cost: one pass over the file; 0.02 ms a step at n = 7. Values stay on the disk.
    """

    def __init__(self, path: Path | None, group: Group, *, writable: bool = True) -> None:
        self.group, self.path = group, path
        self.history = History(group)
        self._file: RecordFile | None = None
        self._bodies: list[bytes] = []  # in memory alone
        self._places: list[tuple[int, int]] = []  # in the file: where a record's body begins, and its length
        if path is not None:
            self._open(path, writable)

    def _open(self, path: Path, writable: bool) -> None:
        contents = read(path, FORMAT, self.group.run) if path.exists() or not writable else None
        for body, offset in zip(contents.bodies, contents.offsets, strict=True) if contents else ():
            try:
                self.history.append(split(body, U32)[0])
            except Malformed:
                raise BadInput(f"step {len(self)} of {path} is no step of this run: {FORMAT.remedy}") from None
            self._places.append((offset, len(body)))
        if writable:
            self._file = RecordFile(path, FORMAT, self.group.run, contents)

    def __len__(self) -> int:
        return self.history.step

    def __getitem__(self, step: int) -> Decision:
        if not 0 <= step < len(self):
            raise IndexError(step)
        if self.path is None:
            body = self._bodies[step]
        else:
            offset, size = self._places[step]
            with self.path.open("rb") as file:
                file.seek(offset)
                body = file.read(size)
        return Decision(step, *split(body, U32))

    def __iter__(self) -> Iterator[Decision]:
        return (self[step] for step in range(len(self)))

    def values(self, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """Yield the packed values of steps ``first`` to ``last``, exclusive, as long as the log was when called."""
        steps = range(first, len(self) if last is None else last)
        if self.path is None:
            yield from (split(self._bodies[step], U32)[0] for step in steps)
            return
        with self.path.open("rb") as file:
            for step in steps:
                offset, _ = self._places[step]
                file.seek(offset)
                yield file.read(U32.unpack(file.read(U32.size))[0])

    def append(self, value: bytes, certificate: bytes) -> None:
        """Write the next step and wait until it is on the disk.

        Args:
            value: as packed by its proposer; its certificate must have been checked.
            certificate: a quorum's precommits.

        Raises:
            Malformed: it does not continue this log.
            NotWritten: the disk is full; the log is as it was.
        """
        assert self.path is None or self._file is not None, "opened for reading alone"
        advanced = self.history.copy()
        advanced.append(value)
        self._write([_body(value, certificate)])
        self.history = advanced

    def _write(self, bodies: list[bytes]) -> None:
        """Keep records, all or none."""
        if self._file is None:
            self._bodies += bodies
        else:
            offsets = self._file.extend(bodies)
            self._file.sync()
            self._places += zip(offsets, map(len, bodies), strict=True)

    def join(self, decisions: Iterable[tuple[bytes, bytes]], ring: Verifier) -> int:
        """Take over steps that another peer sends, and return how many were new.

        Values are checked by the hash chain up to the newest step that has a certificate, and that by its signatures;
        nothing is written before. Steps behind it are left out.

        Args:
            decisions: (value, certificate) of successive steps from at most the next one on.
            ring: public keys.

        Raises:
            Malformed: they do not continue this log, or no certificate holds.

        Cost: 0.04 ms a step at n = 7, and one certificate.
        """
        ahead = self.history.copy()
        bodies: list[bytes] = []
        certified: tuple[int, bytes, bytes, frozenset[int], History] | None = None
        for value, certificate in decisions:
            if len(value) >= U32.size and U32.unpack_from(value)[0] < ahead.step:
                continue
            banned = ahead.banned
            ahead.append(value)
            bodies.append(_body(value, b""))
            if certificate:
                certified = len(bodies), value, certificate, banned, ahead.copy()
        if certified is None:
            return 0
        count, value, certificate, banned, ahead = certified
        verify_certificate(self.group, ring, ahead.step - 1, ahead.digest, certificate, banned=banned)
        self._write([*bodies[: count - 1], _body(value, certificate)])
        self.history = ahead
        return count

    def since(self, step: int, *, limit: int = 1 << 20) -> list[Decision]:
        """Return steps from this one on, of at most so many bytes in all, the last of them with a certificate.

        More bytes than the limit where certificates are far apart; empty if none follows.
        """
        chosen: list[Decision] = []
        size = 0
        for number in range(max(step, 0), len(self)):
            decision = self[number]
            size += len(decision.value) + len(decision.certificate)
            if size > limit and chosen and chosen[-1].certificate:
                break
            chosen.append(decision)
        while chosen and not chosen[-1].certificate:
            chosen.pop()
        return chosen

    def verify(self, ring: Verifier, *, every: bool = False) -> int:
        """Check the newest certificate, or every one; returns how many were checked.

        The hash chain was checked when the file was read.

        Raises:
            BadInput: a certificate does not hold, or the newest step has none.

        Cost: q signature checks a certificate.
        """
        steps = [step for step in range(len(self)) if self[step].certificate] if every else []
        steps = sorted({*steps, len(self) - 1} - {-1})
        for step in steps:
            _, value, certificate = self[step]
            banned = self.history.banned_at(step)
            try:
                verify_certificate(self.group, ring, step, digest(self.group.run, value), certificate, banned=banned)
            except Malformed as error:
                raise BadInput(f"step {step} of {self.path} was not decided ({error}): {FORMAT.remedy}") from None
        return len(steps)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _body(value: bytes, certificate: bytes) -> bytes:
    return U32.pack(len(value)) + value + certificate
