"""Devices by name, refused in a sentence where this machine has none of that name."""

from __future__ import annotations

from typing import Any, Final

import torch

from gradless.errors import BadInput

KINDS: Final = ("cpu", "cuda", "xpu", "mps")


def parsed(name: str) -> torch.device:
    """Return the device of a name, whether this machine has it or not.

    Raises:
        BadInput: it is no name of a device, or one of a kind that is not supported.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"unknown device '{name}': use cpu, cuda, cuda:0 or auto") from None
    if device.type not in KINDS:
        raise BadInput(f"device '{name}' is of a kind that is not supported: use cpu, cuda, mps, xpu or auto")
    return device


def device_of(name: str) -> torch.device:
    """Return the device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        BadInput: this machine has no such device.
    """
    device = parsed(name)
    there = 1 if device.type == "cpu" else _count(device.type, getattr(torch, device.type))
    if (device.index or 0) >= there:
        raise BadInput(f"device '{name}' is not there ({there} found): use --device {'cpu' if not there else 'auto'}")
    if name == "cuda":  # a process of a job on several GPUs has chosen its own
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def idle(name: str) -> str:
    """Return a sentence about a graphics card that a run on the CPU leaves alone; "" where there is none."""
    if name != "cpu":
        return ""
    there = next((kind for kind in KINDS[1:] if _count(kind, getattr(torch, kind, None))), None)
    return f"this runs on the CPU, and a graphics card is here: --device {there} uses it" if there else ""


def _count(kind: str, backend: Any) -> int:
    """Return the number of devices of a kind."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return int(backend.device_count()) if backend is not None and backend.is_available() else 0
