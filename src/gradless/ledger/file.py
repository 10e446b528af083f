"""The file of a ledger: a header and one record a step, each with a checksum.

Format, version 2, little-endian::

    file    magic "gradless" | u16 version | u32 length | header (JSON, UTF-8) | u32 crc | record ...
    record  u32 step | u16 K | u8 flags | u16 check | K x f32 coeffs | [G x f64 lrs] | u32 crc

``lrs`` is in a record only when it changed (flag 1); flag 2 marks a step that was skipped because its loss was not
finite (K = 0). ``check`` guards the fields that give the record its length; ``crc`` is chained through all records
before it, so a lost, doubled or moved record is noticed too. Bytes behind the last intact record are what a crash
leaves (part of a record, zeros, anything): a torn tail, which is cut. Where intact records follow such bytes, they were
changed: the file is refused.

The header's fields are those of `gradless.ledger.header`. Version 1 differs in the header alone, which holds any JSON;
it is read, and continued as version 1.
"""

from __future__ import annotations

import binascii
import contextlib
import itertools
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.ledger.header import COMMAND, Header, check
from gradless.ledger.header import header as complete

MAGIC = b"gradless"
VERSION = 2  # of new ledgers; version 1 is read as well
FIXED, WORD = struct.Struct("<IHB"), struct.Struct("<I")
HEAD = FIXED.size + 2  # of a record: its first fields and their check
LRS, SKIPPED = 1, 2
SCANNED = 2**20  # bytes that are searched for intact records at a time
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
        contents: the ledger as read; its torn tail is cut from the file as by `cut`, and its format kept.

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
                os.close(opened(path))  # nobody else writes to what is replaced
            _write_whole(path, head + WORD.pack(self.crc))
        else:
            self.crc = contents.crc
            self.lrs = contents.moves[-1].lrs if contents.moves else ()
        self.file = opened(path)
        if contents is not None:
            cut(path, contents)
        self.synced = time.monotonic()

    def append(self, move: Update) -> None:
        """Write one step. On a full disk the record is taken back and OSError is raised."""
        changed = move.lrs != self.lrs
        body = pack(move, with_lrs=changed)
        crc = zlib.crc32(body, self.crc)
        record = body + WORD.pack(crc)
        size = os.fstat(self.file).st_size
        try:
            if os.write(self.file, record) != len(record):
                raise OSError(28, "no space left on device", str(self.path))
        except OSError:
            os.ftruncate(self.file, size)
            raise
        self.crc, self.lrs = crc, move.lrs
        if time.monotonic() - self.synced > SYNC_SECONDS:
            os.fsync(self.file)
            self.synced = time.monotonic()

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self.file)
        os.close(self.file)


def cut(path: Path, contents: Contents) -> Path | None:
    """Cut a ledger behind its last intact record; returns the copy of the whole file that is kept, if any was needed.

    Raises:
        BadInput: the file is not the one that was read.
        OSError: there is no room for the copy; the file is then as it was.
    """
    if not contents.torn_bytes:
        return None
    data = path.read_bytes()
    if len(data) != contents.good_bytes + contents.torn_bytes:
        raise BadInput(f"{path} has changed since it was read: make sure that no other process works in {path.parent}")
    name = f"{path.name}.torn-{len(contents.moves)}"
    numbered = (path.with_name(f"{name}-{number}" if number else name) for number in itertools.count())
    copy = next(free for free in numbered if not os.path.lexists(free))
    _write_whole(copy, data)
    os.truncate(path, contents.good_bytes)
    return copy


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def opened(path: Path) -> int:
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


class Examined(NamedTuple):
    """What a ledger holds, damaged or not."""

    contents: Contents  # up to the first byte that is no part of an intact record
    version: int
    follows: int | None  # where an intact record lies behind that byte, which no crash leaves: None if there is none


def read(path: Path) -> Contents:
    """Read and check a ledger.

    Raises:
        BadInput: not a ledger, written by a newer release, or a byte was changed. A torn tail is not an error.
    """
    contents, _, follows = examine(path)
    if follows is not None:
        raise BadInput(
            f"{path} was changed or damaged at step {len(contents.moves)}, byte {contents.good_bytes} (intact records "
            "follow): restore the file from a copy, or cut it there with 'gradless ledger repair'"
        )
    return contents


def examine(path: Path) -> Examined:
    """Read a ledger as far as it is intact, and look for intact records behind that.

    Raises:
        BadInput: not a ledger, written by a newer release, or a header that is damaged or holds what none may.

    Cost: one pass over the file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"there is no ledger at {path}: give the directory of a run") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): restore the ledger from a copy") from None
    header, version, offset, crc = _read_header(path, data)
    groups: int = header["groups"]
    moves: list[Update] = []
    lrs: tuple[float, ...] = ()
    while (end := _end(data, offset, groups)) is not None:
        step, count, flags = FIXED.unpack_from(data, offset)
        chained = zlib.crc32(data[offset:end], crc)
        if WORD.unpack_from(data, end)[0] != chained or step != len(moves):
            break
        if flags & LRS:
            lrs = struct.unpack_from(f"<{groups}d", data, end - 8 * groups)
        moves.append(Update(step, struct.unpack_from(f"<{count}f", data, offset + HEAD), lrs, bool(flags & SKIPPED)))
        crc, offset = chained, end + WORD.size
    follows = _intact_behind(data, offset, groups, len(moves), crc) if offset < len(data) else None
    return Examined(Contents(header, moves, len(data) - offset, offset, crc), version, follows)


def _end(data: bytes, offset: int, groups: int) -> int | None:
    """Return where the closing crc of a record begins; None unless its first fields are intact and all of it is there.

    Cost: constant.
    """
    if offset + HEAD > len(data):
        return None
    fixed = data[offset : offset + FIXED.size]
    _, count, flags = FIXED.unpack(fixed)
    if struct.unpack_from("<H", data, offset + FIXED.size)[0] != _check(fixed) or flags & ~(LRS | SKIPPED):
        return None
    end = offset + HEAD + 4 * count + (8 * groups if flags & LRS else 0)
    return end if end + WORD.size <= len(data) else None


def _intact_behind(data: bytes, damaged: int, groups: int, steps: int, crc: int) -> int | None:
    """Return where a record lies that shows that a byte was changed, or a record moved or lost, and nothing torn off.

    A crash leaves a part of a record, zeros, or whatever lay on the disk. An intact record behind such bytes is one
    whose crc follows from the four bytes before it, which close its predecessor, or from the damaged record itself, if
    these bytes are what was changed; or it ends the file.
    """
    own_end = _end(data, damaged, groups)
    if own_end is not None and FIXED.unpack_from(data, damaged)[0] != steps:
        return damaged
    own_crc = None if own_end is None else zlib.crc32(data[damaged:own_end], crc)
    for offset in _plausible(data, damaged + 1, steps):
        end = _end(data, offset, groups)
        if end is None:
            continue
        befores = [WORD.unpack_from(data, offset - WORD.size)[0]]
        if own_end is not None and own_crc is not None and offset == own_end + WORD.size:
            befores.append(own_crc)
        closing = WORD.unpack_from(data, end)[0]
        if end + WORD.size == len(data) or any(zlib.crc32(data[offset:end], before) == closing for before in befores):
            return offset
    return None


def _plausible(data: bytes, start: int, steps: int) -> Iterator[int]:
    """Yield offsets at which a record of a later step may begin, by its step and its flags."""
    last = steps + (len(data) - start) // (HEAD + WORD.size) + 1
    for begin in range(start, len(data) - HEAD + 1, SCANNED):
        part = np.frombuffer(data, np.uint8, min(SCANNED + FIXED.size, len(data) - begin), begin).astype(np.uint32)
        count = len(part) - FIXED.size + 1
        numbers = sum((part[i : i + count] << (8 * i) for i in range(4)), np.zeros(count, np.uint32))
        likely = (numbers >= steps) & (numbers <= last) & (part[FIXED.size - 1 :] <= LRS | SKIPPED)
        yield from (begin + int(i) for i in np.flatnonzero(likely[:SCANNED]))


def _read_header(path: Path, data: bytes) -> tuple[Header, int, int, int]:
    """Header, version, offset of the first record, chain value."""
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + 6:
        raise BadInput(f"{path} is not a gradless ledger: give one, or the directory of a run")
    version, length = struct.unpack_from("<HI", data, len(MAGIC))
    if not 1 <= version <= VERSION:
        raise BadInput(
            f"{path} has ledger version {version}, but this gradless reads versions up to {VERSION}: use a newer one"
        )
    end = len(MAGIC) + 6 + length
    crc = zlib.crc32(data[:end])
    if len(data) < end + 4 or WORD.unpack_from(data, end)[0] != crc:
        raise BadInput(f"the header of {path} is damaged: restore the file from a copy")
    try:
        values = json.loads(data[end - length : end])
    except (ValueError, RecursionError):  # a checksum shows what was changed, not who wrote it
        raise BadInput(f"the header of {path} is no table of fields: restore the file from a copy") from None
    return check(values, path, version=version), version, end + 4, crc


def _check(fixed: bytes) -> int:
    return binascii.crc_hqx(fixed, 0xFFFF)
