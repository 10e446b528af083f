"""Where gradless is tested, expected to work, works less well, or is refused: for the docs and the doctor."""

from __future__ import annotations

import platform
import sys
from typing import Final, Literal, NamedTuple

State = Literal["tested", "expected", "degraded", "refused"]
STATES: Final[dict[State, str]] = {
    "tested": "tests ran there, as said on the right",
    "expected": "nothing in the code depends on it, and the packages that are needed exist for it; no test ran there",
    "degraded": "expected to work with what is said on the right; no test ran there",
    "refused": "it cannot be installed",
}


class Support(NamedTuple):
    """One row of the table."""

    state: State
    about: str


PYTHONS: Final[dict[str, Support]] = {
    "3.11": Support("tested", "all tests but the long ones, in every run of CI"),
    "3.12": Support("expected", "on 3.12.1 the modules compile and the command line answers; no run was made"),
    "3.13": Support("expected", "on 3.13.0 the modules compile and the command line answers; no run was made"),
    "3.14": Support("expected", "wheels of all dependencies exist; no interpreter was at hand"),
}
OLDER: Final = Support("refused", "pip refuses: gradless needs 3.11")
SYSTEMS: Final[dict[str, Support]] = {
    "Linux x86-64": Support("tested", "all tests but the long ones, in every run of CI"),
    "Linux ARM": Support("expected", "gradless doctor tests whether the kernels give the bits of the reference"),
    "macOS ARM": Support(
        "degraded",
        "no fork server, so each run of gradless bench imports torch anew (seconds); peak memory is that of the whole "
        "process",
    ),
    "macOS Intel": Support("refused", "torch has no wheels for it since 2.3, and gradless needs 2.6"),
    "Windows x86-64": Support(
        "degraded",
        "no fork server, as on macOS; Ctrl-C in gradless bench ends its runs at once, and they go on from their "
        "ledgers; peak memory is that of the whole process, and needs psutil (in the extra lm); one process only, "
        "no torchrun",
    ),
}
DEVICES: Final[dict[str, Support]] = {
    "CPU": Support(
        "tested",
        "all tests but the long ones; compiled kernels (Numba, extra cpu or lm), else those in torch, which are slower",
    ),
    "CUDA": Support(
        "expected",
        "the Triton kernels give the bits of the reference in Triton's interpreter, in every run of CI; nothing ran on "
        "a GPU: benchmarks/gpu_check.py checks and measures everything there",
    ),
    "MPS": Support(
        "degraded",
        "kernels in torch instead of compiled ones; zo-muon and the mask wanda compute in float64, which Apple's GPUs "
        "lack, on the CPU",
    ),
}


def of_python(version: tuple[int, ...] = tuple(sys.version_info[:2])) -> Support:
    """Return the row of a version of Python; a later one than all in the table is like the last."""
    if version[:2] < (3, 11):
        return OLDER
    return PYTHONS.get(f"{version[0]}.{version[1]}", Support("expected", "later than all that were looked at"))


def of_system(system: str = "", machine: str = "") -> tuple[str, Support]:
    """Return name and row of an operating system, by default of this one.

    Example:
        >>> of_system("Darwin", "arm64")[0], of_system("Linux", "AMD64")[0]
        ('macOS ARM', 'Linux x86-64')
    """
    system, machine = system or platform.system(), (machine or platform.machine()).lower()
    intel = machine in ("x86_64", "amd64")
    kind = ("Intel" if intel else "ARM") if system == "Darwin" else "x86-64" if intel else "ARM"
    name = f"{ {'Darwin': 'macOS'}.get(system, system) } {kind}"
    return name, SYSTEMS.get(name, Support("expected", "no package or test was looked at"))
