"""Records of a ledger's file, and what damaged ones look like: bytes that were changed, or a torn tail.

A crash leaves behind the last intact record a part of one, zeros, or whatever lay on the disk, and nothing behind that.
"""

from __future__ import annotations

import binascii
import struct
import zlib
from collections.abc import Iterator

import numpy as np

FIXED, WORD = struct.Struct("<IHB"), struct.Struct("<I")
HEAD = FIXED.size + 2  # of a record: its first fields and their check
LRS, SKIPPED = 1, 2
MOST_QUERIES = 2**16 - 1  # coefficients of a record
CRC_ZERO = zlib.crc32(b"\x00")
CRC_TABLE = {zlib.crc32(bytes([byte])) ^ CRC_ZERO: byte for byte in range(256)}  # crc register to the byte fed to 0
LAST_INDEX = {register >> 24: byte for register, byte in CRC_TABLE.items()}
SCANNED = 2**20  # bytes that are searched for intact records at a time


def record_end(data: bytes, offset: int, groups: int) -> int | None:
    """Return where the closing crc of a record begins; None unless its first fields are intact and all of it is there.

    Cost: constant.
    """
    if offset + HEAD > len(data):
        return None
    fixed = data[offset : offset + FIXED.size]
    _, count, flags = FIXED.unpack(fixed)
    if struct.unpack_from("<H", data, offset + FIXED.size)[0] != checksum(fixed) or flags & ~(LRS | SKIPPED):
        return None
    end = offset + HEAD + 4 * count + (8 * groups if flags & LRS else 0)
    return end if end + WORD.size <= len(data) else None


def damage(data: bytes, damaged: int, groups: int, steps: int, crc: int) -> str:
    """Return what shows that a byte was changed, or a record moved or lost, or "" for a torn tail.

    A crash leaves a part of a record, zeros, or whatever lay on the disk, and nothing behind it.
    """
    end = record_end(data, damaged, groups)
    if end is not None and FIXED.unpack_from(data, damaged)[0] != steps:
        return "a record of another step is there"
    if _one_byte_changed(data[damaged:], groups, steps, crc):
        return "one byte differs from an intact record"
    intact = _intact_behind(data, damaged, groups, steps, crc)
    return "" if intact is None else f"intact records follow at byte {intact}"


def _one_byte_changed(tail: bytes, groups: int, steps: int, crc: int) -> bool:
    """Return whether changing a single byte makes the tail a record of this step. Cost: linear.

    The difference of two crc registers is a linear function of what was fed to them. Rolled back over the bytes behind
    the changed one, the difference of the crcs is that of the changed byte alone, which is in the table of crc32.
    """
    if not HEAD + WORD.size <= len(tail) <= HEAD + 4 * MOST_QUERIES + 8 * groups + WORD.size:
        return False
    difference = zlib.crc32(tail[: -WORD.size], crc) ^ WORD.unpack(tail[-WORD.size :])[0]
    candidates = [(len(tail) - WORD.size + i, flip) for i, flip in enumerate(WORD.pack(difference))]
    candidates = candidates if sum(flip != 0 for _, flip in candidates) == 1 else []
    for position in range(len(tail) - WORD.size - 1, -1, -1):
        if difference in CRC_TABLE:
            candidates.append((position, CRC_TABLE[difference]))
        last = LAST_INDEX[difference >> 24]
        difference = ((difference ^ zlib.crc32(bytes([last])) ^ CRC_ZERO) << 8 | last) & 0xFFFFFFFF
    for position, flip in candidates:
        fixed = tail[:position] + bytes([tail[position] ^ flip]) + tail[position + 1 :]
        whole = record_end(fixed, 0, groups) == len(fixed) - WORD.size and FIXED.unpack_from(fixed)[0] == steps
        if whole and zlib.crc32(fixed[: -WORD.size], crc) == WORD.unpack(fixed[-WORD.size :])[0]:
            return True
    return False


def _intact_behind(data: bytes, damaged: int, groups: int, steps: int, crc: int) -> int | None:
    """Return where an intact record lies behind damaged bytes.

    Its crc follows from the four bytes before it, which close its predecessor, or from the damaged record itself, if
    these bytes are what was changed; or it ends the file.
    """
    own_end = record_end(data, damaged, groups)
    own_crc = None if own_end is None else zlib.crc32(data[damaged:own_end], crc)
    for offset in _plausible(data, damaged + 1, steps):
        end = record_end(data, offset, groups)
        if end is None:
            continue
        checksums = [WORD.unpack_from(data, offset - WORD.size)[0]]
        if own_end is not None and own_crc is not None and offset == own_end + WORD.size:
            checksums.append(own_crc)
        closing = WORD.unpack_from(data, end)[0]
        if end + WORD.size == len(data) or any(
            zlib.crc32(data[offset:end], checksum) == closing for checksum in checksums
        ):
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


def checksum(fixed: bytes) -> int:
    """Return the check of a record's first fields."""
    return binascii.crc_hqx(fixed, 0xFFFF)
