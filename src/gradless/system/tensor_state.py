"""Nested states of numbers, texts, lists and tensors, as JSON beside tensors or as one safetensors file."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from gradless.system.atomic import NEW as NEW
from gradless.system.atomic import replacing

OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a state as JSON and add its tensors to ``tensors``, by name. Tuples become lists."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: pack(item, tensors) for key, item in value.items()}
    return [pack(item, tensors) for item in value] if isinstance(value, (list, tuple)) else value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the state that `pack` turned into ``value`` and ``tensors``."""
    if isinstance(value, dict) and value.keys() == {"tensor"} and isinstance(value["tensor"], str):
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: unpack(item, tensors) for key, item in value.items()}
    return [unpack(item, tensors) for item in value] if isinstance(value, list) else value


def write(path: Path, value: Any) -> None:
    """Write a state to a file, whole or not at all. Cost: its size on disk.

    Raises:
        OSError: the disk is full, for instance.
    """
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(pack(value, tensors))
    write_tensors(path, tensors, {"state": packed})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: the disk is full, for instance.
    """
    from safetensors.torch import save_file

    with native_errors(path), replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


@contextlib.contextmanager
def native_errors(path: Path) -> Iterator[None]:
    """Raise the system's errors of libraries written in Rust (safetensors, tokenizers) as what they are.

    Raises:
        OSError: the block raised an error that names the system's number of one, such as that of a full disk.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def read(path: Path) -> Any:
    """Return the state that `write` wrote; None if there is no such file, or a crash of the machine tore it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return unpack(json.loads(file.metadata()["state"]), tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
