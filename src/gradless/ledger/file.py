"""The file of a ledger: a header and one record a step, each with a checksum.

Format, version 2, little-endian::

    file    magic "gradless" | u16 version | u32 length | header (JSON, UTF-8) | u32 crc | record ...
    record  u32 step | u16 K | u8 flags | u16 check | K x f32 coeffs | [G x f64 lrs] | u32 crc

``lrs`` is in a record only when it changed (flag 1); flag 2 marks a step that was skipped because its loss was not
finite (K = 0). ``check`` guards the fields that give the record its length; ``crc`` is chained through all records
before it, so a lost, doubled or moved record is noticed too. Bytes behind the last intact record are what a crash
leaves (part of a record, zeros, anything): a torn tail, which is cut. Where intact records follow such bytes, or they
are a record but for one byte, they were changed: the file is refused.

The header's fields are those of `gradless.ledger.header`. Version 1 differs in the header alone, which holds any JSON;
it is read, and continued as version 1.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.ledger.header import COMMAND, Header, check
from gradless.ledger.header import header as complete
from gradless.ledger.records import FIXED, HEAD, LRS, SKIPPED, WORD, checksum, damage, record_end
from gradless.system.locks import CLOSED, close_appended, opened_for_appending

MAGIC = b"gradless"
VERSION = 2  # of new ledgers; version 1 is read as well
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
            head = _head(VERSION, complete(**header))
            self.crc = zlib.crc32(head)
            self.lrs: tuple[float, ...] = ()
            with contextlib.suppress(FileNotFoundError):
                close_appended(opened_for_appending(path))  # nobody else writes to what is replaced
            _write_whole(path, head + WORD.pack(self.crc))
        else:
            self.crc = contents.crc
            self.lrs = contents.moves[-1].lrs if contents.moves else ()
        self.groups = int((header if contents is None else contents.header)["groups"])
        self.file = opened_for_appending(path)
        if contents is not None:
            cut(path, contents)
        self.synced = time.monotonic()

    def append(self, move: Update) -> None:
        """Write one step. On a full disk the record is taken back and OSError is raised.

        Raises:
            BadInput: a step of another number of parameter groups than the run began with.
        """
        if len(move.lrs) != self.groups:
            raise BadInput(
                f"the ledger is of a run with {self.groups} parameter group(s), and this step has {len(move.lrs)}: add "
                "groups before the run begins"
            )
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

    def relabel(self, **fields: Any) -> None:
        """Add fields of `gradless.ledger.FIELDS` to the header, or replace them. Cost: one pass over the file."""
        self.close()
        try:
            contents = read(self.path)
            self.crc = relabel(self.path, contents, {**contents.header, **fields}).crc
        finally:
            self.file = opened_for_appending(self.path)

    def close(self) -> None:
        """Flush to disk and close; once more does nothing."""
        file, self.file = self.file, CLOSED
        if file != CLOSED:
            try:
                os.fsync(file)
            finally:
                close_appended(file)


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


def relabel(path: Path, contents: Contents, header: Header) -> Contents:
    """Replace the header of a ledger, whole or not at all, and return what it then holds; its records stay.

    Args:
        path: the file.
        contents: the ledger as read; its torn tail is cut as by `cut`.
        header: all fields; the version of the format is kept.

    Raises:
        BadInput: the file is not the one that was read, or another process is writing to it.
        OSError: there is no room; the file then holds what it held.

    Cost: one pass over the file.
    """
    close_appended(opened_for_appending(path))  # nobody else writes to what is replaced
    cut(path, contents)
    data = path.read_bytes()
    _, version, offset, _ = _read_header(path, data)
    head = _head(version, header)
    crc = zlib.crc32(head)
    parts = [head, WORD.pack(crc)]
    while (end := record_end(data, offset, header["groups"])) is not None:
        crc = zlib.crc32(data[offset:end], crc)
        parts += [data[offset:end], WORD.pack(crc)]
        offset = end + WORD.size
    _write_whole(path, b"".join(parts))
    return read(path)


def _head(version: int, header: Header) -> bytes:
    """Everything before the first checksum."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return MAGIC + struct.pack("<HI", version, len(text)) + text


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


def pack(move: Update, *, with_lrs: bool) -> bytes:
    """A record without its closing crc."""
    flags = (LRS if with_lrs else 0) | (SKIPPED if move.skipped else 0)
    coeffs = () if move.skipped else move.coeffs
    fixed = FIXED.pack(move.step, len(coeffs), flags)
    lrs = struct.pack(f"<{len(move.lrs)}d", *move.lrs) if with_lrs else b""
    return fixed + struct.pack("<H", checksum(fixed)) + struct.pack(f"<{len(coeffs)}f", *coeffs) + lrs


class Examined(NamedTuple):
    """What a ledger holds, damaged or not."""

    contents: Contents  # up to the first byte that is no part of an intact record
    version: int
    changed: str  # what shows that this byte was changed, and is no torn tail; empty if nothing does


def read(path: Path) -> Contents:
    """Read and check a ledger.

    Raises:
        BadInput: not a ledger, written by a newer release, or a byte was changed. A torn tail is not an error.
    """
    contents, _, changed = examine(path)
    if changed:
        raise BadInput(
            f"{path} was changed or damaged at step {len(contents.moves)}, byte {contents.good_bytes} ({changed}): "
            "restore the file from a copy, or cut it there with 'gradless ledger repair'"
        )
    return contents


def examine(path: Path) -> Examined:
    """Read a ledger as far as it is intact, and look at what lies behind that.

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
    while (end := record_end(data, offset, groups)) is not None:
        step, count, flags = FIXED.unpack_from(data, offset)
        chained = zlib.crc32(data[offset:end], crc)
        if WORD.unpack_from(data, end)[0] != chained or step != len(moves):
            break
        if flags & LRS:
            lrs = struct.unpack_from(f"<{groups}d", data, end - 8 * groups)
        moves.append(Update(step, struct.unpack_from(f"<{count}f", data, offset + HEAD), lrs, bool(flags & SKIPPED)))
        crc, offset = chained, end + WORD.size
    changed = damage(data, offset, groups, len(moves), crc) if offset < len(data) else ""
    return Examined(Contents(header, moves, len(data) - offset, offset, crc), version, changed)


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
