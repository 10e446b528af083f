"""What this machine is, as far as speed and memory depend on it."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

GROUPS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of memory of a container, in both versions of control groups."""

INSTRUCTIONS: Final = frozenset(
    (
        *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
        *("asimd", "sve", "bf16"),
    )
)
"""Instruction sets that change how fast products and sweeps are."""


def device_name(device: torch.device) -> str:
    """Return the name of the processor or GPU."""
    if device.type == "cuda":
        from torch import cuda

        return cuda.get_device_name(device)
    return processor_name()


def processor_name() -> str:
    """Return the name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def is_intel() -> bool:
    """Return whether the processor is one of Intel's."""
    return "Intel" in (_cpuinfo("vendor_id") or platform.processor())


def processor() -> dict[str, object]:
    """Return name, logical cores and instruction sets of the processor; the latter are empty where nothing tells."""
    flags = set(_cpuinfo("flags", "Features").split())
    return {"name": processor_name(), "cores": os.cpu_count(), "flags": sorted(flags & INSTRUCTIONS)}


def _cpuinfo(*names: str) -> str:
    """Return what Linux says of the first processor under one of these names; empty where nothing tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a process may still take on a device, or None where nothing tells."""
    if device.type == "cuda":
        from torch import cuda

        return cuda.mem_get_info(device)[0] + cuda.memory_reserved(device) - cuda.memory_allocated(device)
    known = [number for number in (_available(), *map(_left, *zip(*GROUPS, strict=True))) if number is not None]
    return min(known, default=None)


def _available() -> int | None:
    """Return what the system can give without swapping; where it does not say, half of all it has."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _left(limit: str, used: str) -> int | None:
    """Return what a container's limit leaves; None if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        return max(0, int(Path(limit).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8")))
    return None
