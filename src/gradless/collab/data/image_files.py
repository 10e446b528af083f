"""Folders and archives of image files, decoded once and then read from the cache.

A folder or an archive (zip, or tar: plain, .gz, .bz2, .xz) holds ``train/<class>/<name>`` and ``test/<class>/<name>``,
or just ``<class>/<name>``, of which every fifth image of a class is then for testing. Archives are read as streams:
nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.errors import BadInput
from gradless.system import cache
from gradless.system.cache import Say, quiet
from gradless.system.hashing import file_sha256

ENDINGS: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".zip")
SPLITS: Final = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
"""Names of folders that hold a split, in any case."""
FORMAT: Final = "images/2"  # of a cache entry
LONGEST: Final = 64
"""Pixels of the longer side of images whose size nobody chose."""
DEEP: Final = ("I", "F")
"""Modes of images with more than 8 bits a pixel begin so."""
HELD_OUT: Final = 5
"""Every so many rows of a class are for testing where nothing says which are."""
SPLIT_SEED: Final = 1797
SHOWN: Final = 5
_TORN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
)


class Decoded(NamedTuple):
    """The images of a folder: ``[N, C, H, W]`` and int64 labels ``[N]``, in the order of classes and names.

    Pixels are uint8, or float32 if some have more than 8 bits.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was left out, scaled or held out."""


class Located(NamedTuple):
    """Where the images of a data set lie."""

    labelled: dict[str, tuple[str, str]]
    """File -> split (train, test, or "" if there is none) and class."""
    notes: list[str]


def read(path: Path, *, say: Say = quiet, mode: str | None = None, size: int | None = None) -> Decoded:
    """Decode a folder or archive of images, or take what was decoded before.

    The cache entry is keyed by an archive's SHA-256, a folder's names, sizes and times of change.

    Args:
        path: the folder, the archive, or a folder with one archive in it.
        say: told before a long decoding, and what was left out, scaled or held out.
        mode: ``"RGB"`` or ``"L"`` (grey) of a known data set, which is never scaled; None: grey if all images are, and
            scaled if their sizes differ or are large.
        size: height and width that images are scaled to.

    Raises:
        BadInput: no images, fewer than two classes, a torn archive, images that cannot be decoded, or classes that
            differ between train and test.
    """
    source = _source(path)
    if source.is_file():
        name = file_sha256(source)
    else:
        listing = [(path.relative_to(source).as_posix(), path.stat()) for path in _paths(source)]
        text = json.dumps([(relative, stat.st_size, stat.st_mtime_ns) for relative, stat in listing])
        name = hashlib.sha256(f"{source.resolve()}\n{text}".encode()).hexdigest()
    key = f"{FORMAT} {mode} {size} {name}"
    target = cache.cache_root() / "images" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not target.is_dir():
        say(f"decoding the images of {source} (once: they are kept in {target})")
        cache.ensure(target, lambda scratch: _save(_decode(source, mode, size), scratch))
    decoded = _load(target)
    for note in decoded.notes:
        say(f"{source.name}: {note}")
    return decoded


def held_out(labels: Sequence[int]) -> list[bool]:
    """Return which rows are for testing where nothing says so: every fifth of each class, always the same ones."""
    order = torch.from_numpy(rng.permutation(len(labels), SPLIT_SEED, "collab/own")).tolist()
    seen: Counter[int] = Counter()
    chosen = [False] * len(labels)
    for row in order:
        seen[labels[row]] += 1
        chosen[row] = seen[labels[row]] % HELD_OUT == 0
    return chosen


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


# ---------------------------------------------------------------------------------------------------------------
# where images lie


def _source(path: Path) -> Path:
    if path.is_file():
        if not path.name.endswith(ARCHIVES):
            raise BadInput(
                f"{path} is no folder and no archive (tar, zip): give one of them, or --dataset npz for an .npz file"
            )
        return path
    archives = sorted(file for file in path.iterdir() if file.name.endswith(ARCHIVES))
    folders = [file for file in path.iterdir() if file.is_dir() and not file.name.startswith(".")]
    return archives[0] if len(archives) == 1 and not folders else path


def _paths(folder: Path) -> list[Path]:
    """Return all files below a folder; links to folders are followed, each once."""
    paths, visited = list[Path](), set[str]()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in visited:
            folders.clear()
        else:
            visited.add(real)
            paths += [Path(root, file) for file in files]
    return sorted(paths)


def _located(source: Path) -> Located:
    """Return the split and class of every image; files that are none are counted."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in _paths(source)]
    else:
        names = [name for name, _ in _members(source, wanted=())]
    hidden = [name for name in names if any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)]
    images = [name for name in names if name.lower().endswith(ENDINGS) and name not in set(hidden)]
    notes = []
    if others := sorted(set(names) - set(images)):
        notes.append(f"{len(others)} file{'s' if len(others) > 1 else ''} without an image left out: {_listed(others)}")
    inner = _unwrapped({name: PurePosixPath(name).parts for name in images})
    firsts = {parts[0].lower() for parts in inner.values() if len(parts) > 1}
    kinds = {name: kind for kind, several in SPLITS.items() for name in several}
    has_splits = bool(firsts) and (
        firsts <= set(kinds) or {"train"} < {kinds[first] for first in firsts if first in kinds}
    )
    labelled, outside, used = {}, list[str](), {kinds[first] for first in firsts if first in kinds}
    for name, parts in inner.items():
        split = kinds.get(parts[0].lower(), "other") if has_splits else ""
        below = parts[1:] if has_splits else parts
        if len(below) < 2:
            outside.append(name)
        elif split != "other":
            labelled[name] = (split, below[0])
    if outside:
        several = f"{len(outside)} image{'s' if len(outside) > 1 else ''}"
        notes.append(f"{several} outside the folders of classes left out: {_listed(outside)}")
    if has_splits and used >= {"test", "validation"}:
        notes.append("the images for validation are left out")
    elif has_splits and "validation" in used:
        notes.append("the images for validation are the test images")
        labelled = {name: ("test" if split == "validation" else split, of) for name, (split, of) in labelled.items()}
    return Located({name: pair for name, pair in labelled.items() if pair[0] != "validation"}, notes)


def _listed(names: Sequence[str]) -> str:
    """Return the first few names."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _unwrapped(names: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return paths without the folders that all of them share, as long as a class's folder is left."""
    splits = {name for several in SPLITS.values() for name in several}
    while names and all(len(parts) > 2 for parts in names.values()):
        firsts = {parts[0] for parts in names.values()}
        if len(firsts) > 1 or firsts.pop().lower() in splits:
            break
        names = {name: parts[1:] for name, parts in names.items()}
    return names


def _members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Files of an archive in its own order: name, and content where the name ends in ``wanted``."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as zipped:
                for info in zipped.infolist():
                    if not info.is_dir():
                        read = info.filename.lower().endswith(wanted)
                        yield info.filename, zipped.read(info) if read else b""
            return
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isfile():
                    stream = archive.extractfile(member) if member.name.lower().endswith(wanted) else None
                    yield member.name, b"" if stream is None else stream.read()
    except _TORN as error:
        kind = "zip" if path.suffix.lower() == ".zip" else "tar"
        raise BadInput(f"{path} is not a whole {kind} archive ({error}): fetch it again") from error


def _files(source: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of some files."""
    chosen = set(names)
    if source.is_dir():
        yield from ((name, (source / name).read_bytes()) for name in sorted(chosen))
    else:
        yield from ((name, raw) for name, raw in _members(source, wanted=ENDINGS) if name in chosen)


# ---------------------------------------------------------------------------------------------------------------
# from files to tensors


def _decode(source: Path, mode: str | None, size: int | None) -> Decoded:
    _need_pillow()
    labelled, notes = _located(source)
    if not labelled:
        raise BadInput(
            f"{source} has no images at train/<class>/<name> and test/<class>/<name>, or at <class>/<name>: "
            "lay them out so"
        )
    target, grey, deep = _form(source, labelled, mode, size, notes)
    pixels: dict[str, np.ndarray] = {}
    broken: list[str] = []
    for name, raw in _files(source, labelled):
        try:
            pixels[name] = _pixels(raw, grey, deep, target)
        except _unreadable() as error:
            reason = "" if "cannot identify" in str(error) else f" ({error})"
            broken.append(f"{name}{reason}")
    if broken:
        listed = _listed(broken)
        what = "is not a whole image" if len(broken) == 1 else f"are {len(broken)} files that are not whole images"
        raise BadInput(f"in {source} {what}: {listed}: replace or remove {'it' if len(broken) == 1 else 'them'}")
    return _sorted(source, labelled, pixels, notes)


def _form(
    source: Path, labelled: Iterable[str], mode: str | None, size: int | None, notes: list[str]
) -> tuple[tuple[int, int] | None, bool, bool]:
    """Return the width and height that all images get, whether they are grey, and whether they have more than 8 bits.

    What is scaled is added to the notes.
    """
    from PIL import Image

    sizes: Counter[tuple[int, int]] = Counter()
    modes: set[str] = set()
    for _, raw in _files(source, labelled):
        try:
            with Image.open(io.BytesIO(raw)) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                sizes[image.size[::-1] if turned else image.size] += 1
                modes.add(image.mode)
        except _unreadable():
            continue  # it is named when it is decoded
    deep = any(one.startswith(DEEP) for one in modes)
    grey = mode == "L" or (mode is None and (deep or modes <= {"1", "L", "LA", "La"}))
    if mode is not None:
        if len(sizes) > 1:
            listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:4])
            raise BadInput(f"the images of {source} have different sizes ({listed}): scale them to one")
        return None, grey, False
    if not sizes:
        return None, grey, deep
    ((width, height), _), *_ = sizes.most_common(1)
    shrink = min(1.0, LONGEST / max(width, height))
    target = (size, size) if size else (max(1, round(width * shrink)), max(1, round(height * shrink)))
    if {*sizes} != {target}:
        have = f"have {len(sizes)} sizes, mostly {width} x {height}" if len(sizes) > 1 else f"are {width} x {height}"
        fix = "" if size else " (--image-size sets it)"
        notes.append(f"images {have}: they are scaled to {target[0]} x {target[1]}{fix}")
    return target, grey, deep


def _need_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise BadInput("reading image files needs Pillow: pip install 'gradless[collab]'") from error


def _unreadable() -> tuple[type[Exception], ...]:
    from PIL import Image, UnidentifiedImageError

    return (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)


def _pixels(raw: bytes, grey: bool, deep: bool, size: tuple[int, int] | None) -> np.ndarray:
    """One image as ``[C, H, W]``, upright and of the given width and height."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(raw)) as file:
        image: Any = ImageOps.exif_transpose(file)
        if deep:
            plain = image if image.mode.startswith(DEEP) else image.convert("L")
            image = Image.fromarray(np.asarray(plain).astype(np.float32))
        else:
            image = image.convert("L" if grey else "RGB")
        if size is not None and image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _sorted(
    source: Path, labelled: dict[str, tuple[str, str]], pixels: dict[str, np.ndarray], notes: list[str]
) -> Decoded:
    """Return images by split, in the order of classes and names."""
    order = sorted(labelled, key=lambda name: (labelled[name][1], name))
    classes = sorted({of for split, of in labelled.values() if split != "test"})
    if not any(split == "test" for split, _ in labelled.values()):
        chosen = held_out([classes.index(labelled[name][1]) for name in order])
        test = {name for name, held in zip(order, chosen, strict=True) if held}
        notes.append(f"every fifth image of a class is for testing: {len(test)} of {len(order)}")
    else:
        test = {name for name, (split, _) in labelled.items() if split == "test"}
    if surplus := {labelled[name][1] for name in test} - {labelled[name][1] for name in order if name not in test}:
        raise BadInput(f"{source} has test images of {', '.join(sorted(surplus))} but no training images of it")
    parts: list[Tensor] = []
    for names in ([name for name in order if name not in test], [name for name in order if name in test]):
        if not names:
            raise BadInput(f"{source} has too few images for training and testing: five of a class are the least")
        parts.append(torch.from_numpy(np.stack([pixels[name] for name in names])))
        parts.append(torch.tensor([classes.index(labelled[name][1]) for name in names]))
    train, labels, test_images, gold = parts
    return Decoded(train, labels, test_images, gold, tuple(classes), tuple(notes))


def _save(decoded: Decoded, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = dict(zip(Decoded._fields[:4], decoded[:4], strict=True))
    texts = {"classes": json.dumps(decoded.classes), "notes": json.dumps(decoded.notes)}
    save_file(tensors, folder / "images.safetensors", metadata=texts)


def _load(folder: Path) -> Decoded:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "images.safetensors", framework="pt") as file:
            train, labels, test, gold = (file.get_tensor(name) for name in Decoded._fields[:4])
            classes, notes = (tuple(json.loads(file.metadata()[name])) for name in ("classes", "notes"))
            return Decoded(train, labels, test, gold, classes, notes)
    except (SafetensorError, OSError, KeyError) as error:
        raise BadInput(f"the cache entry {folder} is damaged ({error}): delete it, it will be made again") from error
