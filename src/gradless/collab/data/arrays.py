"""Data sets in an ``.npz`` file of NumPy, under the names that people give their arrays.

``x_train`` and ``y_train`` with or without ``x_test`` and ``y_test`` (Keras), ``train_images`` and ``train_labels``
(MedMNIST), ``x`` and ``y``: a word for inputs or labels, before or after one for the split. Nothing in the file is
executed: arrays of Python objects, which are pickles, are refused.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from gradless.collab.data.image_files import SHOWN, SPLITS, Decoded, held_out
from gradless.errors import BadInput
from gradless.system.cache import Say, quiet

INPUTS: Final = ("x", "images", "image", "imgs", "data", "features", "inputs", "arr0")
LABELS: Final = ("y", "labels", "label", "targets", "target", "classes", "arr1")
SPELLED: Final = {
    f"{a}{b}": (split, kind)
    for split, words in {**SPLITS, "": ("",)}.items()
    for word in words
    for kind, names in (("x", INPUTS), ("y", LABELS))
    for name in names
    for a, b in ((word, name), (name, word))
}
"""Name of an array without signs -> its split ("" if it has none), and whether it holds inputs or labels."""
CHANNELS: Final = 16
"""Of an image at most, where its shape must tell which dimension they are."""


def read(path: Path, *, say: Say = quiet) -> Decoded:
    """Return the data set of an ``.npz`` file.

    Args:
        path: the file, or a folder with one.
        say: told what was held out or left out.

    Returns:
        Inputs uint8 or float32 ``[N, C, H, W]``. Features ``[N, D]`` become ``[N, D, 1, 1]``, each a channel with its
        own mean; if all lie in one range they may be pixels of flat images, and become ``[N, 1, 1, D]``.

    Raises:
        BadInput: no such arrays, arrays of objects, shapes that disagree, labels that are no single class, NaN.
    """
    path = _file(path)
    arrays = _arrays(path)
    chosen, notes = _chosen(path, arrays)
    inputs, labels = {}, {}
    for split in ("train", "test"):
        if (split, "x") in chosen:
            x, y = chosen[split, "x"], chosen[split, "y"]
            inputs[split], labels[split] = _inputs(path, x, arrays[x]), _labels(path, y, arrays[y])
            if len(inputs[split]) != len(labels[split]):
                counts = f"{len(inputs[split])} rows in {x} but {len(labels[split])} labels in {y}"
                raise BadInput(f"{path} has {counts}: save as many of both")
    classes = np.unique(labels["train"]).tolist()
    if "test" in inputs and inputs["test"].shape[1:] != inputs["train"].shape[1:]:
        raise BadInput(f"{path} has test inputs of another shape than training inputs: save both alike")
    if surplus := sorted(set(labels.get("test", classes[:0])) - set(classes)):
        listed = ", ".join(map(str, surplus[:SHOWN]))
        raise BadInput(f"{path} has test rows of the class {listed} but no training rows of it")
    index = {of: number for number, of in enumerate(classes)}
    gold = {split: torch.tensor([index[one] for one in of.tolist()]) for split, of in labels.items()}
    if "test" not in inputs:
        test = torch.tensor(held_out(gold["train"].tolist()))
        notes.append(f"every fifth row of a class is for testing: {int(test.sum())} of {len(test)}")
        inputs = {"train": inputs["train"][~test], "test": inputs["train"][test]}
        gold = {"train": gold["train"][~test], "test": gold["train"][test]}
    for note in notes:
        say(f"{path.name}: {note}")
    parts = (inputs["train"], gold["train"], inputs["test"], gold["test"])
    return Decoded(*parts, tuple(map(str, classes)), tuple(notes))


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.npz"))
    if len(files) != 1:
        raise BadInput(f"{path} holds {len(files) or 'no'} .npz files: give the file itself")
    return files[0]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays whose names say what they are; others are None and stay on the disk."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise BadInput(f"{path} holds one array: save inputs and labels with numpy.savez, as {_example()}")
            return {name: file[name] if _slot(name) else np.empty(0) for name in file.files}
    except BadInput:
        raise
    except ValueError as error:
        if "pickle" in str(error):
            what = "holds Python objects, which can run code when they are read, or is no .npz file"
            raise BadInput(f"{path} {what}: save numbers, and texts as array.astype(str), with numpy.savez") from None
        raise BadInput(f"{path} is not a whole .npz file ({error}): save it again") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise BadInput(f"{path} is not a whole .npz file ({error}): save it again") from None


def _slot(name: str) -> tuple[str, str] | None:
    return SPELLED.get(re.sub(r"[^a-z0-9]", "", name.lower()))


def _example() -> str:
    return "x_train, y_train, x_test, y_test or x, y"


def _chosen(path: Path, arrays: dict[str, np.ndarray]) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Return the names of the arrays by split (train, test) and kind (x, y), and what is left out."""
    chosen: dict[tuple[str, str], str] = {}
    for name in arrays:
        if (slot := _slot(name)) is None:
            continue
        if slot in chosen:
            raise BadInput(f"{path} has both {chosen[slot]} and {name}: leave out one")
        chosen[slot] = name
    notes = []
    for split, instead, note in (("train", "", ""), ("test", "validation", "validation rows are the test rows")):
        if not any(one == split for one, _ in chosen) and any(one == instead for one, _ in chosen):
            chosen = {(split if one == instead else one, kind): name for (one, kind), name in chosen.items()}
            notes += [note] if note else []
    used = {slot: name for slot, name in chosen.items() if slot[0] in ("train", "test")}
    for split in {"train", *(one for one, _ in used)}:
        if missing := {"x", "y"} - {kind for one, kind in used if one == split}:
            what = " and ".join({"x": "inputs", "y": "labels"}[kind] for kind in sorted(missing))
            have = ", ".join(arrays) or "nothing"
            raise BadInput(f"{path} has no {split} {what} (it has {have}): name the arrays {_example()}")
    if others := [name for name in arrays if name not in used.values()]:
        notes.append(f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} left out")
    return used, notes


def _inputs(path: Path, name: str, array: np.ndarray) -> Tensor:
    """Return inputs as ``[N, C, H, W]``."""
    if array.dtype.kind not in "buif":
        raise BadInput(f"{path}: {name} holds {array.dtype}: save numbers")
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise BadInput(f"{path}: {name} has the shape {list(array.shape)}: save [N, H, W], [N, H, W, C] or [N, D]")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        listed = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
        raise BadInput(f"{path}: {name} holds NaN or infinity in {len(rows)} rows ({listed}): fill in or remove them")
    low, high = float(array.min()), float(array.max())
    if array.ndim == 2:
        array = array[:, None, None, :] if low >= 0 and high in (1, 255) else array[:, :, None, None]
    elif array.ndim == 3:
        array = array[:, None]
    else:
        array = _channels_first(path, name, array)
    whole = array.dtype.kind in "bui" and low >= 0 and high <= 255
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8 if whole else np.float32))


def _channels_first(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    first = array.shape[1] <= CHANNELS and array.shape[1] < min(array.shape[2:])
    last = array.shape[3] <= CHANNELS and array.shape[3] < min(array.shape[1:3])
    if first == last:
        shape = list(array.shape)
        raise BadInput(f"{path}: which dimension of {name} {shape} are channels is not clear: save [N, C, H, W]")
    return array if first else array.transpose(0, 3, 1, 2)


def _labels(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Return one label for each row: whole numbers or texts; ``[N, 1]`` and one-hot rows are read as such."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "buif" and ((array == 0) | (array == 1)).all():
        if not (array.sum(1) == 1).all():
            raise BadInput(f"{path}: {name} gives rows several classes or none: save one label for each row")
        array = array.argmax(1)
    if array.ndim != 1:
        raise BadInput(f"{path}: {name} has the shape {list(array.shape)}: save one label for each row")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array == np.round(array)).all()):
            raise BadInput(f"{path}: {name} holds numbers that are no classes: save whole numbers or texts")
        array = array.astype(np.int64)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "buiU":
        raise BadInput(f"{path}: {name} holds {array.dtype}: save whole numbers or texts")
    return array
