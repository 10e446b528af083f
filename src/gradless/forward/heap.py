"""The C library's heap between two steps: kept, so that a step on a CPU gets no fresh pages from the kernel.

A forward at two points has twice the activations of a plain one. When they are freed, glibc gives the top of the heap
back to the kernel, and the next forward takes it again, page by page, each zeroed: 70,500 page faults a step of
SmolLM2 135M, 5 % of its time. While an evaluator lives, freed memory therefore stays with the process, which the next
step needs again: the peak stays what it was. When the last evaluator is gone, free memory is given back.

This is a setting of the whole process, so it is made only where it is known to help (glibc on Linux, leaves on the CPU)
and nobody has set it: not if the environment tunes malloc (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``,
``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES``), nor with ``GRADLESS_HEAP=system``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
OWN_MOST = 32 << 20  # glibc's own upper bound of the second; older releases refuse more
SHARE = 8  # a part of the machine's memory that free memory may take at most
LARGEST = (1 << 31) - 1  # mallopt takes an int
TUNED_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")

_lock = threading.RLock()  # a collection, and with it a release, can come at any time
_owners = 0


def keep(owner: Any) -> None:
    """Keep freed memory until ``owner`` (or the last of several) is collected."""
    global _owners
    mallopt = _mallopt()
    if mallopt is None:
        return
    with _lock:
        _owners += 1
        if _owners == 1:
            _hold(mallopt)
    weakref.finalize(owner, _release).atexit = False


def _release() -> None:
    """An owner is gone; after the last one, free memory goes back to the system."""
    global _owners
    mallopt = _mallopt()
    with _lock:
        _owners -= 1
        if not _owners and mallopt is not None:
            _give_back(mallopt)


def is_kept() -> bool:
    """Whether freed memory stays with the process now."""
    return _owners > 0


@contextlib.contextmanager
def as_elsewhere() -> Iterator[None]:
    """Inside, the heap is that of a process without evaluators: for measurements of what others would see."""
    mallopt = _mallopt()
    if mallopt is not None and is_kept():
        _give_back(mallopt)
    try:
        yield
    finally:
        if mallopt is not None and is_kept():
            _hold(mallopt)


def _hold(mallopt: Callable[[int, int], int]) -> None:
    most = min(LARGEST, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE)
    mallopt(M_TRIM_THRESHOLD, most)
    if not mallopt(M_MMAP_THRESHOLD, most):
        mallopt(M_MMAP_THRESHOLD, OWN_MOST)


def _give_back(mallopt: Callable[[int, int], int]) -> None:
    mallopt(M_TRIM_THRESHOLD, 2 * OWN_MOST)  # where glibc's own adaptation ends
    mallopt(M_MMAP_THRESHOLD, OWN_MOST)
    ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The function of that name of glibc; None on other systems, and where others decide about the heap."""
    if os.environ.get("GRADLESS_HEAP") == "system" or any(os.environ.get(name) for name in TUNED_BY):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no confstr, no such name, no such library
        if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
            return mallopt
    return None
