"""Folders and archives of image files, decoded once and then read from the cache.

A folder or a tar archive (plain, .gz, .bz2, .xz) holds ``train/<class>/<name>`` and ``test/<class>/<name>``. Archives
are read as streams: nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.errors import BadInput
from gradless.system import cache
from gradless.system.cache import Say, quiet
from gradless.system.hashing import file_sha256

ENDINGS: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
FORMAT: Final = "images/1"  # of a cache entry
_TORN: Final = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


class Decoded(NamedTuple):
    """The images of a folder: uint8 ``[N, C, H, W]`` and int64 labels ``[N]``, in the order of classes and names."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def read(path: Path, *, say: Say = quiet, mode: str | None = None) -> Decoded:
    """Decode a folder or archive of images, or take what was decoded before.

    The cache entry is keyed by an archive's SHA-256, a folder's names, sizes and times of change.

    Args:
        path: the folder, the archive, or a folder with one archive in it.
        say: told before a long decoding.
        mode: ``"RGB"`` or ``"L"`` (grey); None: grey if the first image is.

    Raises:
        BadInput: no images, a torn archive or image, images of different sizes, or classes that differ between train
            and test.
    """
    source = _source(path)
    if source.is_file():
        name = file_sha256(source)
    else:
        listing = [(path.relative_to(source).as_posix(), path.stat()) for path in _paths(source)]
        text = json.dumps([(relative, stat.st_size, stat.st_mtime_ns) for relative, stat in listing])
        name = hashlib.sha256(f"{source.resolve()}\n{text}".encode()).hexdigest()
    target = cache.cache_root() / "images" / hashlib.sha256(f"{FORMAT} {mode} {name}".encode()).hexdigest()[:32]
    if not target.is_dir():
        say(f"decoding the images of {source} (once: they are kept in {target})")
        cache.ensure(target, lambda scratch: _save(_decode(source, mode), scratch))
    return _load(target)


def names_in_archive(path: Path, *, most: int) -> list[str]:
    """Names of the first ``most`` files of an archive."""
    names = []
    for name, _ in _members(path, wanted=()):
        names.append(name)
        if len(names) == most:
            break
    return names


def files_in_archive(path: Path, ending: str) -> dict[str, bytes]:
    """Return the files of an archive whose name ends so, by their last name."""
    return {PurePosixPath(name).name: raw for name, raw in _members(path, wanted=(ending,)) if name.endswith(ending)}


def _source(path: Path) -> Path:
    if path.is_file() or ((path / "train").is_dir() and (path / "test").is_dir()):
        return path
    archives = sorted(file for file in path.iterdir() if file.name.endswith(ARCHIVES))
    if len(archives) == 1:
        return archives[0]
    raise BadInput(
        f"{path} has neither train/<class>/ and test/<class>/ folders nor one archive of them: give the folder or the "
        "archive itself"
    )


def _paths(folder: Path) -> list[Path]:
    paths = [path for split in ("train", "test") for path in (folder / split).glob("*/*")]
    return sorted(path for path in paths if path.suffix.lower() in ENDINGS and not path.name.startswith("."))


def _members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Files of an archive in its own order: name, and content where the name ends in ``wanted``."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isfile():
                    stream = archive.extractfile(member) if member.name.lower().endswith(wanted) else None
                    yield member.name, b"" if stream is None else stream.read()
    except _TORN as error:
        raise BadInput(f"{path} is not a whole tar archive ({error}): fetch it again") from error


def _decode(source: Path, mode: str | None) -> Decoded:
    pixels: dict[tuple[str, str, str], np.ndarray] = {}
    for name, raw in _images(source):
        split, label, file = PurePosixPath(name).parts[-3:]
        image = _pixels(raw, f"{name} in {source}", mode)
        mode = mode or ("L" if image.shape[0] == 1 else "RGB")
        pixels[split, label, file] = image
    classes = {split: sorted({label for s, label, _ in pixels if s == split}) for split in ("train", "test")}
    if not classes["train"] or not classes["test"]:
        raise BadInput(f"{source} has no images at train/<class>/<name> and test/<class>/<name>: lay them out so")
    if surplus := set(classes["test"]) - set(classes["train"]):
        raise BadInput(f"{source} has test images of {', '.join(sorted(surplus))} but no training images of it")
    shapes = {image.shape for image in pixels.values()}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width} x {height}" for _, height, width in sorted(shapes)[:4])
        raise BadInput(f"the images of {source} have different sizes ({sizes}): scale them to one")
    parts: list[Tensor] = []
    for split in ("train", "test"):
        order = sorted(key for key in pixels if key[0] == split)
        parts.append(torch.from_numpy(np.stack([pixels[key] for key in order])))
        parts.append(torch.tensor([classes["train"].index(label) for _, label, _ in order]))
    train, labels, test, gold = parts
    return Decoded(train, labels, test, gold, tuple(classes["train"]))


def _images(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image that lies at <split>/<class>/<name>."""
    if source.is_dir():
        yield from ((path.relative_to(source).as_posix(), path.read_bytes()) for path in _paths(source))
        return
    for name, raw in _members(source, wanted=ENDINGS):
        parts = PurePosixPath(name).parts
        if raw and len(parts) >= 3 and parts[-3] in ("train", "test") and not parts[-1].startswith("."):
            yield name, raw


def _pixels(raw: bytes, name: str, mode: str | None) -> np.ndarray:
    """One image as uint8 ``[C, H, W]``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BadInput("reading image files needs Pillow: pip install 'gradless[collab]'") from error
    try:
        with Image.open(io.BytesIO(raw)) as image:
            array: Any = np.asarray(image.convert(mode or ("L" if image.mode in ("1", "L") else "RGB")))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{name} is not a whole image ({error}): replace or remove it") from error
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _save(decoded: Decoded, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = dict(zip(Decoded._fields[:4], decoded[:4], strict=True))
    save_file(tensors, folder / "images.safetensors", metadata={"classes": json.dumps(decoded.classes)})


def _load(folder: Path) -> Decoded:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "images.safetensors", framework="pt") as file:
            train, labels, test, gold = (file.get_tensor(name) for name in Decoded._fields[:4])
            return Decoded(train, labels, test, gold, tuple(json.loads(file.metadata()["classes"])))
    except (SafetensorError, OSError, KeyError) as error:
        raise BadInput(f"the cache entry {folder} is damaged ({error}): delete it, it will be made again") from error
