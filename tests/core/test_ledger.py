"""The ledger: what it keeps, and that no damage goes unnoticed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import struct
import zlib

import pytest

from gradless import ledger
from gradless.errors import BadInput
from gradless.gradients import Update

HEADER = ledger.header(groups=2, tuned_parameters=7)
MOVES = [
    Update(0, (1.5,), (1e-3, 2e-3), False),
    Update(1, (-0.25, 3.0), (1e-3, 2e-3), False),
    Update(2, (), (1e-3, 2e-3), True),
    Update(3, (0.125,), (5e-4, 1e-3), False),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger"
    book = ledger.Ledger(path, HEADER)
    for move in MOVES:
        book.append(move)
    book.close()
    return path


def test_a_forked_process_that_has_the_file_open_does_not_keep_its_lock(tmp_path):
    path = tmp_path / "ledger"
    book = ledger.Ledger(path, HEADER)
    inherited = os.dup(book.file)  # as a worker of a data loader has it
    book.relabel(gradless="another")
    book.append(MOVES[0])
    also = os.dup(book.file)
    book.close()
    book.close()
    ledger.Ledger(path, HEADER, contents=ledger.read(path)).close()
    assert ledger.read(path).header["gradless"] == "another"
    for one in (inherited, also):
        os.close(one)


def test_reads_back_what_was_written(path):
    contents = ledger.read(path)
    assert contents.header == HEADER
    assert contents.moves == MOVES
    assert contents.torn_bytes == 0


def test_a_step_with_one_query_costs_17_bytes(tmp_path):
    path = tmp_path / "ledger"
    book = ledger.Ledger(path, {"groups": 1})
    sizes = []
    for step in range(3):
        book.append(Update(step, (1.0,), (1e-6,), False))
        sizes.append(path.stat().st_size)
    book.close()
    assert sizes[2] - sizes[1] == 17


def records(path):
    """Header and records of `MOVES` as bytes."""
    ends = [0]
    for count in range(len(MOVES) + 1):
        part = path.with_name(f"part{count}")
        book = ledger.Ledger(part, HEADER)
        for move in MOVES[:count]:
            book.append(move)
        book.close()
        ends.append(part.stat().st_size)
        part.unlink()
    data = path.read_bytes()
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def test_every_flipped_byte_is_refused(path):
    data = path.read_bytes()
    for index in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(data)
            changed[index] ^= flip
            path.write_bytes(changed)
            with pytest.raises(BadInput):
                ledger.read(path)


def tails():
    """What may lie behind the last record after a crash: zeros, ones, other bytes, the beginning of a record."""
    draw = random.Random(0)
    for length in (*range(1, 64), 511, 4096, 3 * 2**20 + 5):
        yield bytes(length)
        yield b"\xff" * length
        yield draw.randbytes(length)
    yield draw.randbytes(5) + bytes(40)


def test_a_tail_of_any_bytes_is_cut_and_a_copy_kept(path):
    whole = path.read_bytes()
    for tail in tails():
        path.write_bytes(whole + tail)
        contents = ledger.read(path)
        assert (contents.moves, contents.good_bytes, contents.torn_bytes) == (MOVES, len(whole), len(tail))
        book = ledger.Ledger(path, HEADER, contents=contents)
        assert path.read_bytes() == whole
        book.append(Update(4, (1.0,), (5e-4, 1e-3), False))
        book.close()
        assert len(ledger.read(path).moves) == 5
        (copy,) = path.parent.glob("ledger.torn-4")
        assert copy.read_bytes() == whole + tail
        copy.unlink()


@pytest.mark.parametrize("hole", [1, 8, 60, 4096])
def test_damage_of_any_length_before_intact_records_is_refused(tmp_path, hole):
    path, draw = tmp_path / "ledger", random.Random(hole)
    book = ledger.Ledger(path, HEADER)
    for step in range(600):
        book.append(Update(step, (draw.random(),), (1e-3, 2e-3), False))
    book.close()
    data, first = path.read_bytes(), path.stat().st_size - 600 * 17
    for content in (bytes(hole), draw.randbytes(hole)):
        for _ in range(40):
            offset = draw.randrange(first, len(data) - hole - 2 * 17)
            path.write_bytes(data[:offset] + content + data[offset + hole :])
            if path.read_bytes() != data:
                with pytest.raises(BadInput, match=r"changed or damaged at step \d+, byte \d+"):
                    ledger.read(path)


def test_repairing_cuts_behind_the_last_intact_record_and_keeps_a_copy(path):
    data, parts = path.read_bytes(), records(path)
    begin = len(parts[0] + parts[1])
    path.write_bytes(data[:begin] + b"\x00\x00" + data[begin + 2 :])
    damaged = path.read_bytes()
    intact, lines = ledger.report(path)
    assert not intact
    assert lines[-2:] == [
        f"1 steps are intact ({begin} bytes)",
        f"tail: {len(data) - begin} bytes from a changed or damaged record on (intact records follow at byte "
        f"{begin + len(parts[2])})",
    ]
    repaired = ledger.repair(path)
    assert repaired == (1, len(data) - begin, path.with_name("ledger.torn-1"))
    assert path.read_bytes() == data[:begin]
    assert repaired.copy.read_bytes() == damaged
    assert ledger.report(path)[0]
    assert ledger.repair(path) == (1, 0, None)


def test_a_torn_tail_loses_only_the_last_step(path):
    data = path.read_bytes()
    whole = [ledger.read(path).good_bytes]
    for cut in range(len(data) - 1, 0, -1):
        path.write_bytes(data[:cut])
        try:
            contents = ledger.read(path)
        except BadInput:
            break  # the cut reached the header
        assert contents.moves == MOVES[: len(contents.moves)]
        assert contents.good_bytes <= cut
        if cut < whole[-1]:
            whole.append(contents.good_bytes)
    assert len(whole) == len(MOVES) + 1


def test_continuing_cuts_the_torn_tail_and_keeps_the_chain(path):
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    contents = ledger.read(path)
    assert contents.torn_bytes > 0
    book = ledger.Ledger(path, HEADER, contents=contents)
    book.append(MOVES[-1])
    book.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 3], [0, 1, 1, 2, 3]])
def test_moved_lost_or_doubled_records_are_refused(path, order):
    head, *parts = records(path)
    path.write_bytes(head + b"".join(parts[i] for i in order))
    with pytest.raises(BadInput, match="changed or damaged"):
        ledger.read(path)


def test_other_files_and_versions_are_refused(tmp_path, path):
    with pytest.raises(BadInput, match="no ledger"):
        ledger.read(tmp_path / "missing")
    other = tmp_path / "other"
    other.write_bytes(b"hello, this is something else")
    with pytest.raises(BadInput, match="not a gradless ledger"):
        ledger.read(other)
    data = bytearray(path.read_bytes())
    data[len(ledger.MAGIC)] = 9
    path.write_bytes(data)
    with pytest.raises(BadInput, match="version 9"):
        ledger.read(path)


def test_a_full_disk_leaves_the_ledger_as_it_was(path, monkeypatch):
    original = path.read_bytes()
    contents = ledger.read(path)
    book = ledger.Ledger(path, HEADER, contents=contents)
    real = os.write

    def half(file, data):
        return real(file, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="no space left"):
        book.append(Update(4, (1.0,), (1e-3, 1e-3), False))
    monkeypatch.undo()
    assert path.read_bytes() == original
    book.append(Update(4, (1.0,), (1e-3, 1e-3), False))
    book.close()
    assert len(ledger.read(path).moves) == 5


def with_header(path, values, version=2):
    """A ledger without records whose header is ``values``."""
    text = json.dumps(values).encode()
    head = ledger.MAGIC + struct.pack("<HI", version, len(text)) + text
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    return path


def test_a_header_says_which_release_streams_and_arithmetic_it_needs(path):
    assert ledger.read(path).header.keys() == {"gradless", "stream", "arithmetic", "groups", "tuned_parameters"}
    ledger.check_release(HEADER)
    with pytest.raises(BadInput, match="arithmetic 3, this gradless has 2: install a release"):
        ledger.check_release({**HEADER, "arithmetic": 3})


@pytest.mark.parametrize(
    ("choice", "uneven"),
    [
        ({"config": {"method": "mezo"}}, False),
        ({"config": {"method": "mezo", "layer_scale": "variance"}}, True),
        ({"config": {"method": "zo-adam", "layer_scale": "none"}}, True),
        ({"trainer": {"method": "mezo_adam", "options": {}}}, True),
        ({"trainer": {"method": "given", "options": {"rule": "stored_adam, scale"}}}, True),
        ({"trainer": {"method": "given", "options": {"rule": "momentum, scale"}}}, False),
        ({}, False),
    ],
)
def test_of_arithmetic_1_what_depended_on_the_processor_is_refused(choice, uneven):
    header = {**HEADER, **choice, "arithmetic": 1}
    with pytest.raises(BadInput, match="arithmetic 1") if uneven else contextlib.nullcontext():
        ledger.check_release(header)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"parent": "abc"}, r"has the field 'parent', which gradless [\d.]+ does not know: use a newer release"),
        ({"stream": None}, "has None in the field 'stream', which holds text: restore the file from a copy"),
        (
            {"groups": 10**9},
            "has 1000000000 in the field 'groups', which holds a whole number .* at most 65535: restore",
        ),
        ({"tuned_parameters": 2**63}, "has 9223372036854775808 in the field 'tuned_parameters'"),
        ({"stream": "x" * 10**6}, "in the field 'stream', which holds text: restore"),
        ({"groups": True}, "has True in the field 'groups', which holds a whole number of at least 0"),
        ({"config": {}}, "lacks the field 'base_sha256': restore the file"),
        ({"trainer": {}}, "lacks the field 'seed': restore the file"),
    ],
)
def test_headers_of_other_releases_are_refused_by_name(tmp_path, change, sentence):
    with pytest.raises(BadInput, match=sentence):
        ledger.read(with_header(tmp_path / "ledger", {**HEADER, **change}))


def test_every_missing_field_is_refused(tmp_path):
    for name in ("gradless", "stream", "arithmetic", "groups"):
        values = {key: value for key, value in HEADER.items() if key != name}
        with pytest.raises(BadInput, match=f"lacks the field '{name}'"):
            ledger.read(with_header(tmp_path / "ledger", values))
    with pytest.raises(BadInput, match="no table of fields"):
        ledger.read(with_header(tmp_path / "ledger", [1]))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1]",
        b"7",
        b"\xff\xfe",
        b"[" * 10**5,
        b"{" * 10**5,
        b'{"groups": ' + b"9" * 5000 + b"}",
        b'{"groups": -1}',
    ],
)
def test_forged_headers_with_a_valid_checksum_are_refused(tmp_path, text, version):
    head = ledger.MAGIC + struct.pack("<HI", version, len(text)) + text
    (tmp_path / "ledger").write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    with pytest.raises(BadInput, match=r"ledger .*: restore|groups.*: restore"):
        ledger.read(tmp_path / "ledger")


def test_a_header_is_checked_before_it_is_written(tmp_path):
    with pytest.raises(BadInput, match="unknown field of a ledger's header 'group': did you mean 'groups'"):
        ledger.Ledger(tmp_path / "ledger", {"group": 1})
    with pytest.raises(BadInput, match="lacks the field 'groups'"):
        ledger.Ledger(tmp_path / "ledger", {})
    assert not (tmp_path / "ledger").exists()


def test_a_ledger_of_version_1_is_continued_as_such(tmp_path):
    path = with_header(tmp_path / "ledger", {"groups": 2, "anything": "goes"}, version=1)
    book = ledger.Ledger(path, HEADER, contents=ledger.read(path))
    book.append(MOVES[0])
    book.close()
    assert ledger.read(path).header == {"groups": 2, "anything": "goes"}
    assert ledger.read(path).moves == MOVES[:1]
    assert path.read_bytes()[len(ledger.MAGIC)] == 1


def test_a_ledger_that_is_being_written_is_not_replaced(path):
    original = path.read_bytes()
    first = ledger.Ledger(path, HEADER, contents=ledger.read(path))
    with pytest.raises(BadInput, match="another process"):
        ledger.Ledger(path, HEADER)
    first.close()
    assert path.read_bytes() == original
