"""The C library's heap between two steps: kept, so that a step on a CPU gets no fresh pages from the kernel.

A forward at two points has twice the activations of a plain one. When they are freed, glibc gives the top of the heap
back to the kernel, and the next forward takes it again, page by page, each zeroed: 70,500 page faults a step of
SmolLM2 135M, 5 % of its time. While an evaluator lives, freed memory therefore stays with the process, which the next
step needs again: the peak stays what it was. When the last evaluator is gone, free memory is given back.

Two more things make fresh pages. A batch of another shape, and glibc's aligned blocks, which do not fit again between
what was allocated around them, let the heap grow by an activation now and then; it grows in steps of `PAD` bytes of
address space, whose pages are huge where the kernel offers that: 10 MB are then 5 faults instead of 2,560. And a thread
that is not the main one has a heap of its own, in pieces of 64 MB, which glibc unmaps when they are empty unless the
padding is as large; blocks above 64 MB are fresh in every step there, whatever is set.

These are settings of the whole process, so they are made only where they are known to help (glibc on Linux, leaves on
the CPU) and nobody has set them: not if the environment tunes malloc (``MALLOC_TRIM_THRESHOLD_``,
``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES``), nor with ``GRADLESS_HEAP=system``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
OWN_MOST = 32 << 20  # glibc's own upper bound of the last one; older releases refuse more
OWN_PAD = 128 << 10  # glibc's own value of the second
PAD = 256 << 20  # bytes of address space by which the heap grows
SHARE = 8  # a part of the machine's memory that one block of the heap may take at most; a larger one is mapped alone
LARGEST = (1 << 31) - 1  # mallopt takes an int
NEVER = -1
TUNED_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")

_lock = threading.RLock()  # a collection, and with it a release, can come at any time
_owners: set[int] = set()  # their ids
_end = 0  # of the part of the heap that huge pages were asked for


def keep(owner: Any) -> None:
    """Keep freed memory until ``owner`` (or the last of several) is collected; called at the begin of a step."""
    mallopt = _mallopt()
    if mallopt is None:
        return
    with _lock:
        if id(owner) not in _owners:
            if not _owners:
                _hold(mallopt)
            _owners.add(id(owner))
            weakref.finalize(owner, _release, id(owner)).atexit = False
        _ask_for_huge_pages()


def _release(owner: int) -> None:
    """An owner is gone; after the last one, free memory goes back to the system."""
    mallopt = _mallopt()
    with _lock:
        _owners.discard(owner)
        if not _owners and mallopt is not None:
            _give_back(mallopt)


def is_kept() -> bool:
    """Whether freed memory stays with the process now."""
    return bool(_owners)


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


@functools.cache
def _most() -> int:
    """The largest block that comes from the heap, in bytes."""
    return min(LARGEST, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE)


def _hold(mallopt: Callable[[int, int], int]) -> None:
    global _end
    most = _most()
    mallopt(M_TRIM_THRESHOLD, NEVER)
    if not mallopt(M_MMAP_THRESHOLD, most):
        mallopt(M_MMAP_THRESHOLD, OWN_MOST)
    mallopt(M_TOP_PAD, min(PAD, most) if _is_address_space_free() else OWN_PAD)
    _end = _heap_end()


def _ask_for_huge_pages() -> None:
    """Ask for huge pages where the heap of the main thread has grown; 2 us where it has not.

    The kernel zeroes 2 MB with one fault there. Pages that are in use stay what they are.
    """
    global _end
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    begin, _end = _end + -_end % mmap.PAGESIZE, _heap_end()
    if begin < _end and advice is not None:
        _libc().madvise(begin, _end - begin, advice)  # refused by a kernel without huge pages


def _is_address_space_free() -> bool:
    """Whether no limit of the process counts addresses that it does not use."""
    try:
        import resource
    except ImportError:
        return False

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return all(limit == resource.RLIM_INFINITY for limit in limits)


def _give_back(mallopt: Callable[[int, int], int]) -> None:
    mallopt(M_TRIM_THRESHOLD, 2 * OWN_MOST)  # where glibc's own adaptation ends
    mallopt(M_MMAP_THRESHOLD, OWN_MOST)
    mallopt(M_TOP_PAD, OWN_PAD)
    _libc().malloc_trim(0)


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.sbrk.argtypes, libc.sbrk.restype = (ctypes.c_ssize_t,), ctypes.c_void_p
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _heap_end() -> int:
    """The address where the heap of the main thread ends."""
    return int(_libc().sbrk(0) or 0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The function of that name of glibc; None on other systems, and where others decide about the heap."""
    if os.environ.get("GRADLESS_HEAP") == "system" or any(os.environ.get(name) for name in TUNED_BY):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no such function, name or library
        if os.sysconf("SC_PHYS_PAGES") > 0 and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            mallopt: Callable[[int, int], int] = _libc().mallopt
            return mallopt
    return None
