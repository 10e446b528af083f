"""Image data sets as two pairs of tensors, read from the files their owners publish.

Nothing is downloaded. `load` reads MNIST's IDX files, CIFAR-10's binary batches, a folder or archive of image files, an
``.npz`` file, or scikit-learn's digits, which need no files. Images of 8 bits stay so until a batch is prepared.

Shapes: N images, P peers, B rows of a batch; an image is ``[C, H, W]``.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.data import arrays, image_files
from gradless.errors import BadInput, pick
from gradless.system.cache import Say, quiet

CIFAR_CLASSES: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR_ROWS: Final = 10_000  # images of one binary batch
CIFAR_BYTES: Final = 1 + 3 * 32 * 32  # label, then the three colour planes
DIGITS_TEST: Final = 360
DIGITS_SEED: Final = 1797


class Images(NamedTuple):
    """A data set in memory."""

    name: str
    train_images: Tensor  # uint8 [N, C, H, W], or float32 in any unit
    train_labels: Tensor  # int64 [N]
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]  # name of each label
    mean: tuple[float, ...]  # of each channel, of values / 255
    std: tuple[float, ...]
    flip: bool  # training images may be mirrored left to right

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> Images:
        """Return the same data on another device."""
        return self._replace(
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )


def needs_files(name: str) -> bool:
    """Return whether a row of `DATASETS` reads files.

    Raises:
        BadInput: unknown name.
    """
    return bool(pick("data set", name, DATASETS).files)


def load(name: str, folder: Path | str | None = None, *, size: int | None = None, say: Say = quiet) -> Images:
    """Read a data set.

    Args:
        name: row of `DATASETS`.
        folder: where its files are; a single archive will do where the data set comes as one.
        size: height and width that the images of a folder are scaled to; None: see `image_files.read`.
        say: told when something takes long, and what was guessed or left out.

    Cost: MNIST 0.5 s, CIFAR-10's binary batches 0.3 s. An archive of image files is decoded once (60,000 JPEGs: half a
    minute) and then comes from the cache in under a second.

    Raises:
        BadInput: unknown name; a file that is missing, torn, of another format, or disagrees with the others.
    """
    row = pick("data set", name, DATASETS)
    if row.files and folder is None:
        raise BadInput(f"the data set '{name}' needs files: give the folder that holds {row.files}")
    path = Path("." if folder is None else folder).expanduser()
    if row.files and not path.exists():
        raise BadInput(f"{path} does not exist: give the folder that holds {row.files}")
    if size is not None and name != "folder":
        raise BadInput(f"--image-size scales the images of a folder: leave it out for {name}")
    return _folder(path, say, size) if name == "folder" else row.load(path, say)


# ---------------------------------------------------------------------------------------------------------------
# batches


def prepare(images: Tensor, mean: Sequence[float], std: Sequence[float], flip: Tensor | None = None) -> Tensor:
    """Pixels as a network takes them: ``(x / 255 - mean) / std``, float32 of the shape of ``images``.

    Args:
        images: uint8 or float32 ``[..., C, H, W]``; not changed.
        mean: of each channel.
        std: of each channel.
        flip: bool ``[...]``, which images to mirror left to right; None: none.
    """
    if flip is not None:
        images = torch.where(flip[..., None, None, None], images.flip(-1), images)
    factor = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(-1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(-1, 1, 1)
    return images.to(torch.float32, copy=True).mul_(factor).sub_(shift)


def flips(seed: int, step: int, peer: int, count: int) -> Tensor:
    """Return which images of a peer's batch are mirrored: bool ``[count]``, each with probability 1/2."""
    return rng.rademacher(rng.fold(seed, step, peer), rng.leaf_id("collab/flips"), 0, count) < 0


def training_batch(
    data: Images, rows: Tensor, *, seed: int, step: int, peers: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the training images of one step of all peers, mirrored at random where the data set allows it.

    Args:
        data: the data set.
        rows: int64 ``[P, B]`` indices of training images (`gradless.collab.data.splits.gather`).
        seed: of the run.
        step: of the run.
        peers: their numbers; 0 to P - 1 by default.

    Returns:
        Images float32 ``[P, B, C, H, W]`` and labels int64 ``[P, B]``.
    """
    rows = rows.to(data.train_labels.device)
    flip = None
    if data.flip:
        numbers = range(len(rows)) if peers is None else peers
        flip = torch.stack([flips(seed, step, peer, rows.shape[1]) for peer in numbers]).to(rows.device)
    return prepare(data.train_images[rows], data.mean, data.std, flip), data.train_labels[rows]


def test_batch(data: Images, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: PT028
    """Test images float32 ``[N, C, H, W]`` and labels int64 ``[N]``, never mirrored; all, or those of ``rows``."""
    chosen = slice(None) if rows is None else rows
    return prepare(data.test_images[chosen], data.mean, data.std), data.test_labels[chosen]


# ---------------------------------------------------------------------------------------------------------------
# MNIST


def _mnist(folder: Path, _say: Say) -> Images:
    parts = []
    for split in ("train", "t10k"):
        images = _idx(_find(folder, f"{split}-images", "idx3-ubyte"), dimensions=3)
        labels = _idx(_find(folder, f"{split}-labels", "idx1-ubyte"), dimensions=1)
        if len(images) != len(labels):
            raise BadInput(f"{folder} has {len(images)} {split} images but {len(labels)} labels: fetch the files again")
        if images.shape[1:] != (28, 28) or int(labels.max()) > 9:
            raise BadInput(f"{folder} does not hold MNIST: its {split} images are not 28 x 28 with labels 0 to 9")
        parts += [images.unsqueeze(1), labels.long()]
    train, labels, test, gold = parts
    return Images("mnist", train, labels, test, gold, tuple("0123456789"), (0.1307,), (0.3081,), flip=False)


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz")]
    for directory in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for name in names:
            if (directory / name).is_file():
                return directory / name
    raise BadInput(f"{folder} has no {names[0]} (plain or .gz): put MNIST's four IDX files there")


def _idx(path: Path, *, dimensions: int) -> Tensor:
    """Return an IDX file of unsigned bytes, plain or compressed: uint8 of its shape."""
    raw = _read(path)
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise BadInput(f"{path} is not an IDX file of {dimensions}-dimensional bytes: fetch it again")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != math.prod(shape) or 0 in shape:
        raise BadInput(
            f"{path} promises {math.prod(shape)} bytes of data but holds {len(raw) - start}: it is torn, fetch it again"
        )
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).view(shape)


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({error}): fetch it again") from error


# ---------------------------------------------------------------------------------------------------------------
# CIFAR-10


def _cifar10(path: Path, say: Say) -> Images:
    batches = _cifar_batches(path)
    if batches is None:
        read = image_files.read(path, say=say, mode="RGB")
        if read.classes != CIFAR_CLASSES:
            raise BadInput(f"{path} does not hold CIFAR-10's ten classes but {', '.join(read.classes)}")
        train, labels, test, gold = read[:4]
        if train.shape[1:] != (3, 32, 32):
            raise BadInput(f"{path} does not hold CIFAR-10: its images are not 32 x 32")
    else:
        parts = [_cifar_batch(f"data_batch_{number}.bin", batches) for number in range(1, 6)]
        train, labels = (torch.cat(both) for both in zip(*parts, strict=True))
        test, gold = _cifar_batch("test_batch.bin", batches)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return Images("cifar10", train, labels, test, gold, CIFAR_CLASSES, mean, std, flip=True)


def _cifar_batches(path: Path) -> dict[str, bytes] | None:
    """Return the binary batches by name; None where there are none (then it should be an image folder)."""
    if path.is_file():
        names = image_files.names_in_archive(path, most=8)
    else:
        inner = path / "cifar-10-batches-bin"
        directory = inner if inner.is_dir() else path
        archive = path / "cifar-10-binary.tar.gz"
        names = [file.name for folder in (directory, path) for file in folder.iterdir()]
        if archive.is_file() and not any(name.endswith("_batch.bin") for name in names):
            return _cifar_batches(archive)
    short = {name.rsplit("/", 1)[-1] for name in names}
    if any(name.startswith("data_batch_") and name.endswith(".bin") for name in short) or "test_batch.bin" in short:
        if path.is_file():
            return image_files.files_in_archive(path, ".bin")
        return {file.name: file.read_bytes() for file in directory.glob("*.bin")}
    if short & {"data_batch_1", "test_batch", "cifar-10-batches-py", "cifar-10-python.tar.gz"}:
        raise BadInput(
            f"{path} holds CIFAR-10 as pickles, which can run code when they are read: fetch the binary version, "
            "cifar-10-binary.tar.gz"
        )
    return None


def _cifar_batch(name: str, batches: dict[str, bytes]) -> tuple[Tensor, Tensor]:
    if name not in batches:
        raise BadInput(f"CIFAR-10's {name} is missing: unpack cifar-10-binary.tar.gz again, it holds six batches")
    raw = batches[name]
    if len(raw) != CIFAR_ROWS * CIFAR_BYTES:
        raise BadInput(f"CIFAR-10's {name} has {len(raw)} bytes instead of {CIFAR_ROWS * CIFAR_BYTES}: fetch it again")
    table = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(CIFAR_ROWS, CIFAR_BYTES)
    if int(table[:, 0].max()) > 9:
        raise BadInput(
            f"CIFAR-10's {name} has a label above 9: it is not a batch of the binary version, fetch it again"
        )
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0].long()


# ---------------------------------------------------------------------------------------------------------------
# digits and own images


def _digits(_folder: Path, _say: Say) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadInput("the digits come with scikit-learn: pip install 'gradless[collab]'") from error
    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    # 0..16 becomes 0..240, so that digits are prepared like all other pixels.
    images = torch.from_numpy(digits.images * 15).to(torch.uint8).unsqueeze(1)
    order = torch.from_numpy(rng.permutation(len(labels), DIGITS_SEED, "collab/digits"))
    by_class = order[torch.argsort(labels[order], stable=True)]
    # Every fifth row of the rows sorted by class: as stratified as whole numbers allow.
    rank = torch.arange(len(by_class)) * DIGITS_TEST
    chosen = (rank % len(by_class)) < DIGITS_TEST
    train, test = by_class[~chosen].sort().values, by_class[chosen].sort().values
    return _own("digits", images[train], labels[train], images[test], labels[test], tuple("0123456789"))


def _folder(path: Path, say: Say, size: int | None = None) -> Images:
    return _checked(path, "folder", image_files.read(path, say=say, size=size), say)


def _npz(path: Path, say: Say) -> Images:
    return _checked(path, "npz", arrays.read(path, say=say), say)


def _checked(path: Path, name: str, read: image_files.Decoded, say: Say) -> Images:
    """Refuse a data set without two classes; say what a score on it does not tell."""
    if len(read.classes) < 2:
        raise BadInput(f"{path} holds one class ({', '.join(read.classes)}): a group needs two at least to tell apart")
    if absent := untested(read.classes, read.test_labels):
        say(f"{path.name}: no test row has the class {', '.join(absent)}")
    return _own(name, *read[:4], classes=read.classes)


def untested(classes: Sequence[str], test_labels: Tensor) -> list[str]:
    """Return the classes that no test row has."""
    return [name for number, name in enumerate(classes) if not bool((test_labels == number).any())]


def _own(name: str, train: Tensor, labels: Tensor, test: Tensor, gold: Tensor, classes: tuple[str, ...]) -> Images:
    """With the mean and standard deviation of its own training images."""
    mean, std = _moments(train) if train.dtype == torch.uint8 else _float_moments(train)
    return Images(name, train, labels, test, gold, classes, mean, std, flip=False)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of values / 255; a channel without any variation keeps its unit."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        shares = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        centre = float(shares @ levels)
        mean.append(centre)
        deviation = float(shares @ (levels - centre) ** 2) ** 0.5
        std.append(deviation if float(shares.max()) < 1.0 else 1 / 255)
    return tuple(mean), tuple(std)


def _float_moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of values / 255, as `prepare` takes them; a channel without any variation keeps its unit."""
    mean, std = images.mean((0, 2, 3), dtype=torch.float64), images.double().std((0, 2, 3), correction=0)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


class Dataset(NamedTuple):
    """A row of `DATASETS`."""

    load: Callable[[Path, Say], Images]
    files: str  # what its folder holds; empty: it needs none
    summary: str


DATASETS: Final[dict[str, Dataset]] = {
    "digits": Dataset(_digits, "", "scikit-learn's 1,797 digits of 8 x 8, no files needed"),
    "mnist": Dataset(_mnist, "MNIST's four IDX files, plain or .gz", "60,000 + 10,000 digits of 28 x 28"),
    "cifar10": Dataset(
        _cifar10,
        "CIFAR-10's binary batches or <split>/<class>/<name>.jpg",
        "50,000 + 10,000 photographs of 32 x 32 in ten classes",
    ),
    "folder": Dataset(
        _folder,
        "<class>/<name>.png, or train/<class>/<name>.png and test/<class>/<name>.png (or an archive of them)",
        "your own images",
    ),
    "npz": Dataset(
        _npz,
        "an .npz file with x_train, y_train, x_test and y_test, or x and y",
        "your own arrays: images [N, H, W] or [N, H, W, C], or features [N, D]",
    ),
}
OWN: Final = ("folder", "npz")
"""Data sets whose images, classes and number the user decides."""
