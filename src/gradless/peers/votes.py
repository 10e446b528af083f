"""Write-ahead log of a peer's own signed messages: ``votes.wal``.

A peer that forgets a vote can vote twice, which is a lie even if an accident caused it. So each signed message, and the
certificate that it rests on, is on the disk before it is sent, and a peer that starts again repeats what it said.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from gradless.peers.records import Format, RecordFile, read
from gradless.peers.schema import HEAD, NO_NONCE

VOTES_LOG: Final = "votes.wal"
FORMAT: Final = Format(
    b"gl-vote\n",
    "votes",
    "remove it and run 'gradless peers join', which signs nothing before the group says what this peer may have signed",
)
LARGEST: Final = 1 << 20  # bytes after which records of decided steps are dropped
DECLARED: Final = struct.Struct("<BI")
"""A record of five bytes: whether this log holds all that was signed from a step on, or may lack something (then 0)."""


class Votes:
    """Records of the steps that are not decided yet, in a file or in memory.

    Args:
        path: ``votes.wal``, made if it is not there; None for a simulation.
        run: 16 bytes.
        complete: whether a new log holds all that this peer ever signed in the run, because it never ran before. An
            existing file says so itself.
        nonce: 8 bytes that mark this start of a peer without a complete log, by default from the system.

    Attributes:
        newest: the newest step that a record is of, or before which nothing that was signed matters. A decided value
            with a row of this peer for a later step shows that records were lost.

    Raises:
        BadInput: the file was changed, is of another run, or another process is writing to it.
    """

    def __init__(self, path: Path | None, run: bytes, *, complete: bool, nonce: bytes = b"") -> None:
        self.complete = complete
        self.newest = -1
        self.nonce = nonce or os.urandom(len(NO_NONCE))
        self._file: RecordFile | None = None
        self._synced = True
        self._records: dict[int, list[bytes]] = {}
        if path is not None:
            contents = read(path, FORMAT, run) if path.exists() else None
            self.complete = complete and contents is None  # until a record says otherwise
            self._file = RecordFile(path, FORMAT, run, contents, (DECLARED.pack(complete, 0),))
            for record in contents.bodies if contents else ():
                self._keep(record)

    def _keep(self, record: bytes) -> None:
        if len(record) < HEAD.size:
            self.complete, since = bool(record[0]), DECLARED.unpack(record)[1]
            self.newest = max(self.newest, since - 1)
        else:
            step = HEAD.unpack_from(record)[4]
            self.newest = max(self.newest, step)
            self._records.setdefault(step, []).append(record)

    def append(self, record: bytes) -> None:
        """Write a message of one's own, or HIGH. It must not be sent before `sync` has returned.

        Raises:
            NotWritten: the disk is full.
        """
        if self._file is not None:
            self._file.extend([record])
            self._synced = False
        self._keep(record)

    def sync(self) -> None:
        """Wait until everything is on the disk, if something was written since the last time.

        Raises:
            NotWritten: it may not be, and must not be sent.

        Cost: one ``fdatasync`` for all that one handler wrote.
        """
        if self._file is not None and not self._synced:
            self._file.sync()
            self._synced = True

    def declare(self, *, complete: bool, since: int = 0) -> None:
        """Write whether this log holds all signatures of this peer that could hurt; none before step ``since`` can.

        Raises:
            NotWritten: the disk is full.
        """
        self.append(DECLARED.pack(complete, since))
        self.sync()

    def of(self, step: int) -> tuple[bytes, ...]:
        """Return the records of a step in the order in which they were written."""
        return tuple(self._records.get(step, ()))

    def forget(self, step: int) -> None:
        """Drop records of steps before this one, which are decided and on the disk; the file shrinks now and then.

        Raises:
            NotWritten: the file cannot be written anew.
        """
        for old in [old for old in self._records if old < step]:
            del self._records[old]
        if self._file is not None and self._file.size > LARGEST:
            kept = (record for records in self._records.values() for record in records)
            self._file.replace([DECLARED.pack(self.complete, self.newest + 1), *kept])
            self._synced = True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
