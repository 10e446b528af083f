"""Where a user's own rows come from: files, folders, patterns, the Hugging Face hub, and objects in memory.

A source is named by text, so that a configuration can hold it: ``a.csv``, ``a.parquet``, ``'data/train-*.parquet'``, a
folder (``folder:split``) that `datasets` saved or that holds data files, or ``hub:owner/name:split``.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from gradless.errors import BadInput
from gradless.tasks import arrow_rows, hub, text_rows
from gradless.tasks.arrow_rows import ArrowRows

SPLITS: Final = {
    "train": ("train", "training"),
    "dev": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Options, and names of splits that they take where none is named."""
NOT_DATA: Final = ("dataset_info", "dataset_infos", "dataset_dict", "state", "readme", "license", "requirements")


class Listed(NamedTuple):
    """Rows in memory."""

    name: str
    rows: list[Any]


Part: TypeAlias = Path | ArrowRows | Listed


class Source(NamedTuple):
    """Rows that belong together, in one or more parts."""

    name: str
    parts: tuple[Part, ...]


def beside(source: str, folder: Path) -> str | Path:
    """Return a source that a file in ``folder`` names; relative paths are relative to that folder."""
    return source if hub.is_name(source) else folder / Path(source).expanduser()


def absolute(source: str | Path) -> str:
    """Return a source as text that means the same from every folder."""
    return str(source) if hub.is_name(source) else str(Path(source).expanduser().resolve())


def resolve(source: Any, option: str) -> Source:
    """Return what a source stands for; nothing but its layout is read.

    Args:
        source: text or a path as the module says, a `datasets.Dataset`, a table of pyarrow, pandas or polars, or an
            iterable of dictionaries.
        option: train, dev or test, which names the split if the source has several and names none.

    Raises:
        BadInput: there is no such thing, or no such split of it.
    """
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return _of_hub(text, option) if hub.is_name(text) else _of_path(Path(text), option)
    name = f"{option} (a {type(source).__name__})"
    return Source(name, (_of_object(source, name),))


def _of_hub(text: str, option: str) -> Source:
    name = hub.parse(text)
    loaded = hub.load(name)
    if isinstance(loaded, dict):
        split = _chosen(text if name.split is None else text.rpartition(":")[0], [*loaded], name.split, option)
        name, loaded = name._replace(split=split), loaded[split]
    return Source(str(name), (arrow_rows.of_dataset(loaded, str(name)),))


def _of_path(path: Path, option: str) -> Source:
    if path.is_dir():
        return _of_folder(path, None, option)
    if path.exists():
        return Source(str(path), (_part(path),))
    if glob.has_magic(str(path)):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not files:
            raise BadInput(f"no file matches {path}: correct the pattern")
        return Source(str(path), tuple(map(_part, files)))
    folder, colon, split = str(path).rpartition(":")
    if colon and Path(folder).is_dir():
        return _of_folder(Path(folder), split, option)
    if colon and Path(folder).is_file():
        raise BadInput(f"{folder} is a file, which has no splits: leave out ':{split}'")
    raise BadInput(f"cannot read {path}: No such file or directory{_meant(path)}")


def _meant(path: Path) -> str:
    """Return a hint for what looks like a data set of the hub."""
    if address := re.search(r"(?:huggingface\.co/|hf:/+)datasets/([^/]+/[^/]+)", str(path)):
        return f": write hub:{address[1]}"
    if not path.suffix and not path.parent.exists():
        return f": for a data set on the hub write hub:{path.parent.name}/{path.name}"
    return ""


def _of_folder(folder: Path, split: str | None, option: str) -> Source:
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits")
        chosen = _chosen(str(folder), names if isinstance(names, list) else [], split, option)
        return _saved(folder / chosen)._replace(name=f"{folder}:{chosen}")
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        if split is not None:
            raise BadInput(f"{folder} holds one data set without splits: leave out ':{split}'")
        return _saved(folder)
    files = _by_split(folder)
    if [*files] == [""] and split is None:
        return Source(str(folder), tuple(map(_part, files[""])))
    if [*files] == [""]:
        raise BadInput(f"{folder} holds files whose names tell no split: leave out ':{split}'")
    chosen = _chosen(str(folder), [name for name in files if name], split, option)
    return Source(f"{folder}:{chosen}", tuple(map(_part, files[chosen])))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}): save the data set again") from None
    return content if isinstance(content, dict) else {}


def _saved(folder: Path) -> Source:
    """Return a data set that `Dataset.save_to_disk` wrote."""
    library = hub.need_datasets(folder)
    try:
        dataset = library.load_from_disk(str(folder))
    except Exception as error:  # whatever the library says of a damaged folder
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{folder} cannot be read ({type(error).__name__}: {reason}): save the data set again"
        ) from error
    return Source(str(folder), (arrow_rows.of_dataset(dataset, str(folder)),))


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Return the data files of a folder, its folder ``data`` or its folders, by split; "" is no split.

    As on the hub the first word of a file's name, or its folder's name, tells the split.
    """
    known = (*text_rows.SUFFIXES, *arrow_rows.SUFFIXES)
    files = [
        path
        for pattern in ("*", "*/*")
        for path in sorted(folder.glob(pattern))
        if text_rows.kind_of(path) in known and path.is_file() and not path.name.startswith((".", "_"))
        if path.name.partition(".")[0].lower() not in NOT_DATA
    ]
    kinds = sorted({text_rows.kind_of(path) for path in files})
    if not files:
        raise BadInput(f"{folder} holds no data files: give a file, or a folder of {', '.join(sorted(known))} files")
    if len(kinds) > 1:
        raise BadInput(f"{folder} holds files of several kinds: give one of them, or a pattern such as '*{kinds[0]}'")
    names = [name for aliases in SPLITS.values() for name in aliases]
    by_split: dict[str, list[Path]] = {}
    for path in files:
        words = (re.split(r"[^a-z]+", path.name.lower())[0], path.parent.name.lower() if path.parent != folder else "")
        by_split.setdefault(next((word for word in words if word in names), ""), []).append(path)
    return by_split


def _chosen(name: str, splits: list[str], split: str | None, option: str) -> str:
    """Return the split that is named, else the one that belongs to an option."""
    same = next((aliases for aliases in SPLITS.values() if split in aliases), (split,))
    for one in (split, *same) if split is not None else SPLITS[option]:
        if one in splits:
            return one
    listed = ", ".join(splits) or "none"
    if split is not None:
        raise BadInput(f"{name} has no split '{split}': take one of {listed}")
    raise BadInput(f"{name} has no {SPLITS[option][0]} split: write {name}:SPLIT with one of {listed}")


def _part(path: Path) -> Part:
    kind = text_rows.kind_of(path)
    if kind in arrow_rows.SUFFIXES:
        return arrow_rows.open_file(path)
    if kind in text_rows.SUFFIXES:
        return path
    raise BadInput(f"{path} is of no known type: export it as .parquet, .jsonl, .csv or .tsv (text may end in .gz)")


def _of_object(source: Any, name: str) -> Part:
    """Return rows that Python holds; what they are is told by what they can do, so that no library is imported."""
    if hasattr(source, "with_format") and hasattr(source, "select_columns"):
        if isinstance(source, Mapping):
            raise BadInput(f"{name}: pass one of its splits, {', '.join(map(repr, source))}")
        return arrow_rows.of_dataset(source, name) if hasattr(source, "cache_files") else Listed(name, list(source))
    if hasattr(source, "to_batches") and hasattr(source, "schema"):
        return arrow_rows.of_table(source, name)
    if hasattr(source, "to_dicts"):
        return Listed(name, source.to_dicts())
    if hasattr(source, "notna") and hasattr(source, "columns"):
        plain = source.rename(columns=str).astype(object)
        return Listed(name, plain.where(plain.notna(), None).to_dict("records"))
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise BadInput(f"{name}: pass a path, a Dataset, a DataFrame or a list of dictionaries")
    return Listed(name, list(source))
