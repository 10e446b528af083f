"""The file of a ledger: a header and one record a step, each with a checksum.

Format, version 2, little-endian::

    file    magic "gradless" | u16 version | u32 length | header (JSON, UTF-8) | u32 crc | record ...
    record  u32 step | u16 K | u8 flags | u16 check | K x f32 coeffs | [G x f64 lrs] | u32 crc

``lrs`` is in a record only when it changed (flag 1); flag 2 marks a step that was skipped because its loss was not
finite (K = 0). ``check`` guards the fields that give the record its length, so that a damaged length is never taken
for a torn tail; ``crc`` is chained through all records before it, so a lost, doubled or moved record is noticed too.
A tail that ends inside a record is what a crash leaves: it is cut. Any other damage is refused.

The header's fields are those of `gradless.ledger.header`. Version 1 differs in the header alone, which holds any JSON;
it is read, and continued as version 1.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.ledger.header import COMMAND, Header, check
from gradless.ledger.header import header as complete

MAGIC = b"gradless"
VERSION = 2  # of new ledgers; version 1 is read as well
FIXED = struct.Struct("<IHB")
LRS, SKIPPED = 1, 2
SYNC_SECONDS = 1.0  # a power cut loses at most this much; a killed process loses nothing that was written


class Contents(NamedTuple):
    """A ledger read back."""

    header: Header
    moves: list[Update]
    torn_bytes: int  # bytes of an unfinished record at the end
    good_bytes: int  # length of everything before it
    crc: int  # chain value after the last good record

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the command that wrote it.

        Raises:
            BadInput: no command did, but a training loop.
        """
        if COMMAND not in self.header:
            raise BadInput(
                "the ledger was written by ZOTrainer, whose model only its script knows: rebuild it in Python with "
                "gradless.integrations.replay.rebuild(model, folder)"
            )
        config: dict[str, Any] = self.header[COMMAND]
        return config


class Ledger:
    """Appends records; one write a record, so a killed process leaves at most one torn record.

    Args:
        path: file to create, or to continue when ``contents`` (from `read`) is given.
        header: fields of `gradless.ledger.FIELDS`; what this release says of itself is added. Ignored when continuing.
        contents: the ledger as read; its torn tail is cut from the file, and its format kept.

    Raises:
        BadInput: a header that no reader would take, or another process is writing to the file.
    """

    def __init__(self, path: Path, header: Header, *, contents: Contents | None = None) -> None:
        self.path = path
        if contents is None:
            text = json.dumps(complete(**header), sort_keys=True, separators=(",", ":")).encode()
            head = MAGIC + struct.pack("<HI", VERSION, len(text)) + text
            self.crc = zlib.crc32(head)
            self.lrs: tuple[float, ...] = ()
            with contextlib.suppress(FileNotFoundError):
                os.close(_opened(path))  # nobody else writes to what is replaced
            self._create(head + struct.pack("<I", self.crc))
        else:
            self.crc = contents.crc
            self.lrs = contents.moves[-1].lrs if contents.moves else ()
        self.file = _opened(path)
        if contents is not None:
            os.truncate(path, contents.good_bytes)
        self.synced = time.monotonic()

    def _create(self, head: bytes) -> None:
        """The header appears whole or not at all."""
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            with temporary.open("wb") as file:
                file.write(head)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def append(self, move: Update) -> None:
        """Write one step. On a full disk the record is taken back and OSError is raised."""
        changed = move.lrs != self.lrs
        body = pack(move, with_lrs=changed)
        crc = zlib.crc32(body, self.crc)
        record = body + struct.pack("<I", crc)
        size = os.fstat(self.file).st_size
        try:
            if os.write(self.file, record) != len(record):
                raise OSError(28, "no space left on device", str(self.path))
        except OSError:
            os.truncate(self.path, size)
            raise
        self.crc, self.lrs = crc, move.lrs
        if time.monotonic() - self.synced > SYNC_SECONDS:
            os.fsync(self.file)
            self.synced = time.monotonic()

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self.file)
        os.close(self.file)


def _opened(path: Path) -> int:
    """Open a ledger for one process at a time: two would interleave their records and spoil the chain."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        locked = filelock.lock_descriptor(file, blocking=False)
    except OSError:  # a file system without locks
        locked = True
    if not locked:
        os.close(file)
        raise BadInput(f"another process is working on {path.parent}: wait for it, or stop it")
    return file


def pack(move: Update, *, with_lrs: bool) -> bytes:
    """A record without its closing crc."""
    flags = (LRS if with_lrs else 0) | (SKIPPED if move.skipped else 0)
    coeffs = () if move.skipped else move.coeffs
    fixed = FIXED.pack(move.step, len(coeffs), flags)
    lrs = struct.pack(f"<{len(move.lrs)}d", *move.lrs) if with_lrs else b""
    return fixed + struct.pack("<H", _check(fixed)) + struct.pack(f"<{len(coeffs)}f", *coeffs) + lrs


def read(path: Path) -> Contents:
    """Read and check a ledger.

    Raises:
        BadInput: not a ledger, written by a newer release, or a byte was changed. A torn tail is not an error.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"there is no ledger at {path}: give the directory of a run") from None
    header, offset, crc = _read_header(path, data)
    groups = int(header["groups"])
    moves: list[Update] = []
    lrs: tuple[float, ...] = ()
    while offset < len(data):
        start, offset = offset, offset + FIXED.size + 2
        if offset > len(data):
            return Contents(header, moves, len(data) - start, start, crc)
        fixed = data[start : start + FIXED.size]
        step, count, flags = FIXED.unpack(fixed)
        if struct.unpack_from("<H", data, start + FIXED.size)[0] != _check(fixed):
            raise BadInput(_damaged(path, len(moves)))
        end = offset + 4 * count + (8 * groups if flags & LRS else 0)
        if end + 4 > len(data):
            return Contents(header, moves, len(data) - start, start, crc)
        crc = zlib.crc32(data[start:end], crc)
        if struct.unpack_from("<I", data, end)[0] != crc or step != len(moves):
            raise BadInput(_damaged(path, len(moves)))
        coeffs = struct.unpack_from(f"<{count}f", data, offset)
        if flags & LRS:
            lrs = struct.unpack_from(f"<{groups}d", data, end - 8 * groups)
        moves.append(Update(step, coeffs, lrs, bool(flags & SKIPPED)))
        offset = end + 4
    return Contents(header, moves, 0, offset, crc)


def _read_header(path: Path, data: bytes) -> tuple[Header, int, int]:
    """Header, offset of the first record, chain value."""
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + 6:
        raise BadInput(f"{path} is not a gradless ledger")
    version, length = struct.unpack_from("<HI", data, len(MAGIC))
    if not 1 <= version <= VERSION:
        raise BadInput(
            f"{path} has ledger version {version}, but this gradless reads versions up to {VERSION}: use a newer one"
        )
    end = len(MAGIC) + 6 + length
    crc = zlib.crc32(data[:end])
    if len(data) < end + 4 or struct.unpack_from("<I", data, end)[0] != crc:
        raise BadInput(f"the header of {path} is damaged: restore the file from a copy")
    values = json.loads(data[end - length : end])
    return values if version == 1 else check(values, path), end + 4, crc


def _check(fixed: bytes) -> int:
    return binascii.crc_hqx(fixed, 0xFFFF)


def _damaged(path: Path, step: int) -> str:
    return f"{path} was changed or damaged at step {step}: restore the file from a copy"
