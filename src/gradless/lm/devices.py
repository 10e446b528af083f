"""Devices by name, refused in a sentence where this machine has none of that name."""

from __future__ import annotations

from typing import Any

import torch

from gradless.errors import BadInput


def device_of(name: str) -> torch.device:
    """Return the device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        BadInput: this machine has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"unknown device '{name}': use cpu, cuda, cuda:0 or auto") from None
    backends: dict[str, Any] = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}
    if device.type not in ("cpu", *backends):
        raise BadInput(f"device '{name}' is of a kind that is not supported: use cpu, cuda, mps, xpu or auto")
    there = 1 if device.type == "cpu" else _count(device.type, backends[device.type])
    if (device.index or 0) >= there:
        raise BadInput(f"device '{name}' is not there ({there} found): use --device {'cpu' if not there else 'auto'}")
    if name == "cuda":  # a process of a job on several GPUs has chosen its own
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _count(kind: str, backend: Any) -> int:
    """Return the number of devices of a kind."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return int(backend.device_count()) if backend.is_available() else 0
