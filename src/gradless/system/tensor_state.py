"""Nested states of numbers, texts, lists and tensors, as JSON beside tensors or as one safetensors file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from torch import Tensor

NEW: Final = ".new"  # ends the name of a file that is being written


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON; its tensors go into the dictionary. Tuples come back as lists."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: pack(item, tensors) for key, item in value.items()}
    return [pack(item, tensors) for item in value] if isinstance(value, (list, tuple)) else value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` packed."""
    if isinstance(value, dict) and value.keys() == {"tensor"} and isinstance(value["tensor"], str):
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: unpack(item, tensors) for key, item in value.items()}
    return [unpack(item, tensors) for item in value] if isinstance(value, list) else value


def write(path: Path, value: Any) -> None:
    """Write a state into a file, whole or not at all. Cost: its size on disk.

    Raises:
        OSError: the disk is full, for instance.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    packed = json.dumps(pack(value, tensors))
    temporary = path.with_name(path.name + NEW)
    try:
        save_file(tensors, temporary, metadata={"state": packed})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from None


def read(path: Path) -> Any:
    """What `write` wrote; None if there is no such file, or a crash of the machine tore it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return unpack(json.loads(file.metadata()["state"]), tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
