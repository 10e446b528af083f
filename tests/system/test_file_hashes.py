import hashlib
import os
import time
from pathlib import Path

import pytest

from gradless.system import file_hashes, remembered


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settled(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file, and let the clock be a minute later."""
    path.write_bytes(content)
    later = path.stat().st_ctime + 60
    monkeypatch.setattr(time, "time", lambda: later)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def sha256(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(file_hashes, "file_sha256", sha256)
    return read


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "f", counted(monkeypatch)
    settled(path, b"abc", monkeypatch)
    expected = hashlib.sha256(b"abc").hexdigest()
    assert [file_hashes.sha256(path) for _ in range(3)] == [expected] * 3
    assert len(read) == 1
    assert file_hashes.sha256(path, anew=True) == expected
    assert len(read) == 2


def test_a_change_is_seen_even_where_size_and_mtime_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    settled(path, b"abc", monkeypatch)
    file_hashes.sha256(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"abd")
    os.utime(path, ns=times)
    assert file_hashes.sha256(path) == hashlib.sha256(b"abd").hexdigest()
    other = tmp_path / "g"
    settled(other, b"xyz", monkeypatch)
    os.utime(other, ns=times)
    os.replace(other, path)
    assert file_hashes.sha256(path) == hashlib.sha256(b"xyz").hexdigest()


def test_a_file_that_was_changed_just_now_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "f", counted(monkeypatch)
    path.write_bytes(b"abc")
    for seconds in (-5.0, 0.0, 1.9):  # also where the clock of a file server is ahead
        monkeypatch.setattr(time, "time", lambda seconds=seconds: path.stat().st_ctime + seconds)
        file_hashes.sha256(path)
    assert len(read) == 3
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    settled(path, b"abc", monkeypatch)

    def sha256(changing: Path) -> str:
        changing.write_bytes(b"longer")
        return "0" * 64

    monkeypatch.setattr(file_hashes, "file_sha256", sha256)
    file_hashes.sha256(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"key": 1, "sha256": 2}', b"\xff"])
def test_damaged_memory_is_no_memory(
    damage: bytes, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    settled(path, b"abc", monkeypatch)
    file_hashes.sha256(path)
    (entry,) = (cache / "hashes").iterdir()
    entry.write_bytes(damage)
    assert file_hashes.sha256(path) == hashlib.sha256(b"abc").hexdigest()


def test_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "file" / "below"))
    path = tmp_path / "f"
    settled(path, b"abc", monkeypatch)
    assert file_hashes.sha256(path) == hashlib.sha256(b"abc").hexdigest()


def test_several_files_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        settled(path, path.name.encode(), monkeypatch)
    one, other = (hashlib.sha256(name.encode()).hexdigest() for name in "ab")
    assert file_hashes.files_sha256(paths[:1]) == one
    assert file_hashes.files_sha256(paths) == hashlib.sha256((one + other).encode()).hexdigest()
    assert file_hashes.files_sha256(paths[::-1]) != file_hashes.files_sha256(paths)


def test_the_newest_entries_are_kept(cache: Path) -> None:
    for number in range(4):
        remembered.write("some", {"number": number}, {"value": number}, most=2)
        os.utime(remembered.path_of("some", {"number": number}), (number, number))
    assert [remembered.read("some", {"number": number}) is None for number in range(4)] == [True, True, False, False]
