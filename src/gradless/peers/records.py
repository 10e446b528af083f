"""Append-only files of checksummed records: decided values, and votes.

Little-endian::

    file    8 magic | u16 version | 16 run | u32 crc | record ...
    record  u32 length | u32 ~length | body | u32 crc

``crc`` is chained through everything before it. What a crash leaves of the last record (fewer bytes than it says, or
zeros of a power cut) is a torn tail, which is cut. Any other difference is a change, and the file is refused: a vote
whose record was damaged must not pass for one that was never cast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gradless.errors import BadInput
from gradless.system.atomic import replacing
from gradless.system.locks import CLOSED, close_appended, opened_for_appending

VERSION: Final = 1
HEADER: Final = struct.Struct("<8sH16s")
LENGTH: Final = struct.Struct("<II")
CRC: Final = struct.Struct("<I")
COMPLEMENT: Final = 0xFFFFFFFF


class NotWritten(BadInput):
    """A record could not be written; nothing that needed it was sent."""


class Format(NamedTuple):
    """What a file holds, for its header and for errors."""

    magic: bytes  # 8 bytes
    holds: str
    remedy: str  # how to go on without the file, as an imperative


class Records(NamedTuple):
    """A file read back."""

    bodies: list[bytes]
    offsets: list[int]  # where each body begins
    size: int  # bytes up to the last whole record
    torn_bytes: int
    crc: int


def pack_record(body: bytes, crc: int) -> tuple[bytes, int]:
    """Return a record, and the chained checksum that it ends with."""
    framed = LENGTH.pack(len(body), len(body) ^ COMPLEMENT) + body
    crc = zlib.crc32(framed, crc)
    return framed + CRC.pack(crc), crc


def read(path: Path, format: Format, run: bytes) -> Records:
    """Read and check a file.

    Raises:
        BadInput: there is none, it is no such file, of a newer release or another run, or it was changed.

    Cost: one pass over the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): {format.remedy}") from None
    return parse(path, data, format, run)


def parse(path: Path, data: bytes, format: Format, run: bytes) -> Records:
    """Check the bytes of a file, whose path is for the sentences, and return its records.

    Raises:
        BadInput: as `read`.
    """
    crc = _check_header(path, data, format, run)
    offset = HEADER.size + CRC.size
    bodies, offsets = [], []
    while offset + LENGTH.size <= len(data):
        length, complement = LENGTH.unpack_from(data, offset)
        begin, end = offset + LENGTH.size, offset + LENGTH.size + length
        if complement != length ^ COMPLEMENT:
            if not any(data[offset:]):
                break
            raise _changed(path, offset, format)
        if end + CRC.size > len(data):
            break
        crc = zlib.crc32(data[offset:end], crc)
        if CRC.unpack_from(data, end)[0] != crc:
            raise _changed(path, offset, format)
        bodies.append(data[begin:end])
        offsets.append(begin)
        offset = end + CRC.size
    return Records(bodies, offsets, offset, len(data) - offset, crc)


def _check_header(path: Path, data: bytes, format: Format, run: bytes) -> int:
    """Check the header, and return its checksum."""
    if len(data) < HEADER.size + CRC.size or data[:8] != format.magic:
        raise BadInput(f"{path} is no file of {format.holds}: {format.remedy}")
    _, version, its_run = HEADER.unpack_from(data)
    crc = zlib.crc32(data[: HEADER.size])
    if CRC.unpack_from(data, HEADER.size)[0] != crc:
        raise BadInput(f"the header of {path} was changed or damaged: {format.remedy}")
    if version != VERSION:
        raise BadInput(f"{path} has version {version}, but this gradless reads version {VERSION}: use a newer one")
    if its_run != run:
        raise BadInput(
            f"{path} belongs to run {its_run.hex()[:12]}, and the manifest to run {run.hex()[:12]}: give the manifest "
            "of that run, or another --out"
        )
    return crc


def _changed(path: Path, offset: int, format: Format) -> BadInput:
    return BadInput(f"{path} was changed or damaged at byte {offset}: {format.remedy}")


class RecordFile:
    """Appends records to a file that is made, or was read; one process at a time.

    Args:
        path: the file.
        format: what it holds.
        run: 16 bytes.
        contents: the file as read, whose torn tail is cut; None to make a new one.
        first: records that a new file begins with.

    Raises:
        BadInput: another process is writing to it.
        NotWritten: it cannot be made.
    """

    def __init__(
        self, path: Path, format: Format, run: bytes, contents: Records | None = None, first: Sequence[bytes] = ()
    ) -> None:
        self.path, self.format, self.run = path, format, run
        if contents is None:
            self._make(first)
        else:
            self._file = opened_for_appending(path)
            self.size, self._crc = contents.size, contents.crc
            if os.fstat(self._file).st_size != contents.size + contents.torn_bytes:
                close_appended(self._file)
                raise BadInput(
                    f"{path} has changed since it was read: make sure that no other process works in its folder"
                )
            os.ftruncate(self._file, self.size)

    def _make(self, bodies: Sequence[bytes]) -> None:
        """Write the file anew, whole or not at all, and onto the disk, its name included."""
        header = HEADER.pack(self.format.magic, VERSION, self.run)
        crc = zlib.crc32(header)
        parts = [header, CRC.pack(crc)]
        for body in bodies:
            record, crc = pack_record(body, crc)
            parts.append(record)
        try:
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join(parts))
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._not_written(error) from None
        self._file = opened_for_appending(self.path)
        self.size, self._crc = sum(map(len, parts)), crc

    def extend(self, bodies: Sequence[bytes]) -> list[int]:
        """Write records, which `sync` puts onto the disk; returns where their bodies begin.

        Raises:
            NotWritten: they are not; the file holds what it held.
        """
        records, offsets = [], []
        size, crc = self.size, self._crc
        for body in bodies:
            record, crc = pack_record(body, crc)
            records.append(record)
            offsets.append(size + LENGTH.size)
            size += len(record)
        try:
            self._write_all(b"".join(records))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise self._not_written(error) from None
        self.size, self._crc = size, crc
        return offsets

    def sync(self) -> None:
        """Wait until what was written is on the disk.

        Raises:
            NotWritten: it may not be.

        Cost: one ``fdatasync``, 0.05 to 10 ms.
        """
        try:
            _sync(self._file)
        except OSError as error:
            raise self._not_written(error) from None

    def _write_all(self, data: bytes) -> None:
        """Write everything; a write of nothing at all is a full disk."""
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view = view[written:]

    def replace(self, bodies: Sequence[bytes]) -> None:
        """Write the file anew with these records.

        Raises:
            NotWritten: the file is as it was, and closed.
        """
        self.close()
        self._make(bodies)

    def _not_written(self, error: OSError) -> NotWritten:
        return NotWritten(
            f"{self.path} cannot be written ({error.strerror}), and nothing was sent that is not in it: free space on "
            "its disk and start the peer again"
        )

    def close(self) -> None:
        """Close the file, which gives up its lock; a file that is closed stays so."""
        file, self._file = self._file, CLOSED
        if file != CLOSED:
            close_appended(file)


def _sync(file: int) -> None:
    """Wait until a file's bytes are on the disk; systems without ``fdatasync`` write its dates too."""
    getattr(os, "fdatasync", os.fsync)(file)


def _sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
