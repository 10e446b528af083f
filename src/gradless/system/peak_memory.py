"""Peak memory of a stretch of a run: the allocator's on CUDA, the process's resident set on Linux."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


class PeakMeter:
    """Peak bytes over all blocks ``with meter.measured():``.

    On CUDA the peak of allocated memory; on Linux the high-water mark of the resident set, reset before each
    block; on macOS and Windows the process's peak, which cannot be reset. On Windows psutil reads it, which comes with
    the extra ``lm``; without it the peak is 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the block; ``peak`` is the maximum over all blocks."""
        _reset(self.device)
        try:
            yield
        finally:
            self.note()

    def note(self) -> None:
        """Update ``peak`` in the midst of a block."""
        self.peak = max(self.peak, _peak(self.device))


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the mark then covers the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return _process_peak()


def _process_peak() -> int:
    """Return the peak of the process since it began, or 0 where nothing knows it."""
    with contextlib.suppress(ModuleNotFoundError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with contextlib.suppress(ModuleNotFoundError):
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return 0
