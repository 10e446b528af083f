"""The output directory of a run: one run at a time, and nothing in it that a killed one left half-made.

While a checkpoint is written, ``.saving`` names it and the complete ones beside it, of which Trainer then deletes the
oldest. So the next run knows what a kill left: a checkpoint without its last file, or one half deleted.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from torch import nn

from gradless.integrations import checkpoints
from gradless.ranks import Ranks, agreed
from gradless.system import locks
from gradless.system.atomic import NEW, write_json
from gradless.system.tensor_state import write_tensors

SAVING, RESUMING = ".saving", ".resuming"
NAME: Final = re.compile(r"(?:[\w-]+/)?checkpoint-\d+")  # of a checkpoint, or of one in the folder of a search's trial
WRITTEN: Final = (checkpoints.LEDGER, checkpoints.STATE, checkpoints.INITIAL, SAVING)


@contextlib.contextmanager
def claimed(output: Path, ranks: Ranks | None) -> Iterator[None]:
    """Hold the output directory inside the block, and clean it before and after. The first rank does, for all.

    Raises:
        BadInput: another process works in it.
    """
    first = ranks is None or not ranks.rank
    with contextlib.ExitStack() as stack:
        with agreed(ranks):
            if first:
                stack.enter_context(locks.claimed(output, option="output_dir", say=_warn))
                clean(output)
        try:
            yield
        finally:
            if first:
                clean(output)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def clean(output: Path) -> None:
    """Remove what a run that was killed while it wrote has left half-made."""
    for path in output.glob(f"{RESUMING}-*"):
        shutil.rmtree(path, ignore_errors=True)
    for name in WRITTEN:
        (output / (name + NEW)).unlink(missing_ok=True)
    if (output / SAVING).exists():
        for name in _being_changed(output / SAVING):
            if not checkpoints.complete(output / name):
                shutil.rmtree(output / name, ignore_errors=True)
        (output / SAVING).unlink(missing_ok=True)


def _being_changed(path: Path) -> list[str]:
    """The checkpoints that a `SAVING` file names; none if it is of no use."""
    try:
        names = json.loads(path.read_bytes())["checkpoints"]
        return [name for name in names if isinstance(name, str) and NAME.fullmatch(name)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


@contextlib.contextmanager
def saving(output: Path, folder: Path) -> Iterator[None]:
    """Around writing a checkpoint up to Trainer's last file of it; an error in the block removes it.

    `saved` says that Trainer has written that file, too, and deleted older checkpoints.
    """
    inside = folder.is_relative_to(output)
    if inside:
        others = [path for path in folder.parent.glob("checkpoint-*") if checkpoints.has_all(path)]
        names = {path.relative_to(output).as_posix() for path in (*others, folder)}
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / SAVING, {"checkpoints": sorted(names)})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoints.LOOP).unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def saved(output: Path) -> None:
    """Forget the checkpoint that was being saved: it is complete."""
    (output / SAVING).unlink(missing_ok=True)


@contextlib.contextmanager
def stand_in(saved: checkpoints.Saved, output: Path, model: nn.Module | None, ranks: Ranks | None) -> Iterator[str]:
    """Yield a folder that a training loop resumes from without finding weights, so that it keeps the model's."""

    def hush(module: nn.Module, keys: Any) -> None:
        keys.missing_keys.clear()  # all are, on purpose

    folder = output / f"{RESUMING}-{0 if ranks is None else ranks.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        shutil.copy(saved.folder / checkpoints.LOOP, folder)
        write_tensors(folder / "model.safetensors", {})
        if model is not None:
            stack.callback(model.register_load_state_dict_post_hook(hush).remove)
        yield str(folder)
