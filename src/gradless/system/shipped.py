"""Files that a job on another machine needs: collected here, read once, and named by where they will lie there."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from gradless.errors import BadInput
from gradless.system.ray_node import ROOT, size_of

LARGEST: Final = 2 * 10**9
"""Bytes of one source that are sent with a run."""
TEXTS: Final = (".json", ".jsonl", ".md", ".toml", ".txt")
"""Files in which paths of the other machine are put right."""


class Source(NamedTuple):
    """Files below one folder."""

    folder: Path
    """Here."""
    target: str
    """There, below the folder of the task."""
    files: tuple[Path, ...]

    def read(self) -> tuple[list[tuple[str, str]], list[bytes]]:
        """Return for each file where it will lie with its SHA-256, and its contents."""
        contents = [path.read_bytes() for path in self.files]
        names = [str(PurePosixPath(self.target, path.relative_to(self.folder).as_posix())) for path in self.files]
        return [(name, hashlib.sha256(data).hexdigest()) for name, data in zip(names, contents, strict=True)], contents


class Shipment:
    """What runs need beside their settings.

    Args:
        largest: bytes of a source that may be sent; a larger one has to lie at the same path on all nodes.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest
        self.sources: dict[str, Source] = {}
        """What is sent, by what was asked for."""
        self.in_place: dict[str, int] = {}
        """Paths that are too large to be sent, with their bytes."""

    def add(self, text: str) -> str:
        """Return what to write where a run reads a file, a folder, a pattern of files, or ``FOLDER:SPLIT``.

        Text that names nothing here stays as it is.
        """
        path, rest, files = _local(text)
        if path is None:
            return text
        size = sum(one.stat().st_size for one in files)
        if size > self._largest:
            for one in [path] if path.is_dir() or not rest else files:
                self.in_place[str(one)] = size_of(str(one))
            return text
        folder = path if path.is_dir() else path.parent
        key = f"{folder}\0" + ("*" if path.is_dir() and not glob.has_magic(rest) else text)
        if key not in self.sources:
            target = f"files-{len(self.sources)}/{folder.name if path.is_dir() and folder.name else 'files'}"
            self.sources[key] = Source(folder, target, tuple(files))
        base = f"{ROOT}/{self.sources[key].target}"
        return base + rest if path.is_dir() else f"{base}/{path.name}"

    def used(self, text: str) -> list[str]:
        """Return the keys of sources that lie where a text says."""
        return [key for key, one in self.sources.items() if f"{ROOT}/{one.target.partition('/')[0]}/" in text]

    def returned(self, name: str, data: bytes, root: str) -> bytes:
        """Return a file of a run with paths of this machine instead of those below ``root`` there."""
        if not name.endswith(TEXTS):
            return data
        is_json = name.endswith((".json", ".jsonl"))
        for source in self.sources.values():
            there, here = f"{root}/{source.target}", str(source.folder)
            for ascii_only in (True, False) if is_json else ():
                old, new = (json.dumps(one, ensure_ascii=ascii_only)[1:-1].encode() for one in (there, here))
                data = data.replace(old, new)
            data = data if is_json else data.replace(there.encode(), here.encode())
        return data


def _local(text: str) -> tuple[Path | None, str, list[Path]]:
    """Return the path that a text begins with, the rest of the text, and the files that it names."""
    path = Path(text).expanduser()
    try:
        if path.exists():
            return path, "", _files(path)
        if glob.has_magic(text):
            parts = Path(text).parts
            plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
            files = sorted(Path(one) for one in glob.glob(text, recursive=True) if Path(one).is_file())
            return (Path(*parts[:plain]), "/" + "/".join(parts[plain:]), files) if files else (None, "", [])
        folder, colon, split = text.rpartition(":")
        if colon and folder and Path(folder).exists():
            return Path(folder), f":{split}", _files(Path(folder))
    except OSError:
        pass
    return None, "", []


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())


def refuse_missing(sizes: Iterable[tuple[str, dict[str, int]]], in_place: dict[str, int]) -> None:
    """Refuse what is too large to be sent and does not lie on every node.

    Args:
        sizes: of each node its name, and the bytes at each path.
        in_place: the bytes that there have to be.

    Raises:
        BadInput: naming the path and a node without it.
    """
    for host, there in sizes:
        for path, size in in_place.items():
            if there.get(path) != size:
                raise BadInput(
                    f"{path} has {size / 1e9:.1f} GB, more than is sent to a node, and {host} has not the same "
                    "there: copy it to that path on every node"
                )
