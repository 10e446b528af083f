"""What this installation can do, and what to repair: versions, devices, kernels, cache, extras, the hub.

Every section is a function that yields lines; one that fails is a line too, so that a broken part does not hide the
others. Nothing is sent anywhere unless the hub is asked for.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from gradless import __version__
from gradless.system import cache, support

PACKAGES: Final = (
    *(
        "torch",
        "numpy",
        "click",
        "rich",
        "safetensors",
        "msgspec",
        "packaging",
        "numba",
        "triton",
        "transformers",
        "peft",
        "accelerate",
    ),
    *("datasets", "trl", "gguf", "scikit-learn", "matplotlib", "tensorboard", "huggingface-hub"),
)
LOW_DISK_BYTES: Final = 2_000_000_000
HUB: Final = "https://huggingface.co"
TIMEOUT_SECONDS: Final = 5.0


class Line(NamedTuple):
    """One fact about the installation."""

    name: str
    value: str
    advice: str = ""
    """What to do about it, one sentence; empty if all is well."""
    broken: bool = False
    """Whether results cannot be trusted before it is repaired."""
    section: str = ""


def diagnose(*, online: bool = False, timeout: float = TIMEOUT_SECONDS) -> list[Line]:
    """Return all lines, section by section.

    Args:
        online: ask the hub whether it can be reached; otherwise nothing goes to the network.
        timeout: seconds to wait for it.

    Cost: the imports of torch and the kernels, and seconds where kernels are compiled for the first time.
    """
    lines = []
    for name, section in SECTIONS.items():
        try:
            yielded = list(section() if name != "hub" else hub(online=online, timeout=timeout))
        except Exception as error:  # whatever is wrong with the installation: it is what this command reports
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            advice = f"{name} could not be examined: reinstall with pip install --force-reinstall gradless"
            yielded = [Line("error", reason, advice, broken=True)]
        lines += [line._replace(section=name) for line in yielded]
    return lines


def as_json(lines: list[Line]) -> dict[str, Any]:
    """Return the values by section and name, all advice, and what is broken."""
    values: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}
    for line in lines:
        values[line.section][line.name] = line.value
    return {
        **values,
        "advice": [line.advice for line in lines if line.advice],
        "broken": [f"{line.section}: {line.name}" for line in lines if line.broken],
    }


# ---------------------------------------------------------------------------------------------------------------
# sections


def versions() -> Iterator[Line]:
    """Of Python and of the packages that matter; those that gradless needs must be there and new enough."""
    yield Line("gradless", __version__)
    yield Line("python", f"{platform.python_version()} ({sys.executable})")
    needed = {one.name: one for one, extra in _requirements() if not extra}
    for name in PACKAGES:
        installed, asked = _version(name), needed.get(name)
        if installed is None:
            advice = f"gradless needs {name}: pip install '{asked}'" if asked else ""
            yield Line(name, "-", advice, broken=asked is not None)
        else:
            old = asked is not None and _old(installed, asked)
            advice = f"{name} {installed} is too old: pip install -U '{asked}'" if old else ""
            yield Line(name, installed, advice, broken=old)


def machine() -> Iterator[Line]:
    """The processor, its threads, products and memory, and accelerators."""
    import torch

    from gradless.kernels import products

    yield Line("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield from supported(support.DEVICES["CUDA"] if torch.cuda.is_available() else None)
    usable, threads = cores(), torch.get_num_threads()
    yield Line("cores", f"{usable} of {os.cpu_count()}")
    advice = ""
    if threads > usable:
        advice = f"torch uses {threads} threads on {usable} cores, which slows it down: set OMP_NUM_THREADS={usable}"
    yield Line("threads", str(threads), advice)
    yield Line("float32 products", "oneDNN's, faster than MKL's here" if products.is_faster() else "torch's")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield Line("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Line(f"cuda:{index}", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    else:
        unused = torch.version.cuda is None and shutil.which("nvidia-smi") is not None
        advice = "there is an NVIDIA driver, but this torch is built without CUDA: see pytorch.org/get-started"
        yield Line("cuda", "none", advice if unused else "")
    if torch.backends.mps.is_available():
        yield Line("mps", f"available; {support.DEVICES['MPS'].state}: {support.DEVICES['MPS'].about}")


def supported(cuda: support.Support | None) -> Iterator[Line]:
    """What docs/reference/platforms.md says of this Python, system and device."""
    name, system = support.of_system()
    rows = {f"Python {platform.python_version()}": support.of_python(), name: system, "CUDA": cuda}
    for what, row in rows.items():
        if row is not None:
            yield Line(f"support of {what}", row.state + ("" if row.state == "tested" else f": {row.about}"))


def kernels() -> Iterator[Line]:
    """Which kernels serve which device, and whether their bits are those of the reference."""
    import torch

    from gradless import kernels as fused

    off = os.environ.get("GRADLESS_KERNELS") == "reference"
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        module = fused.backend(torch.device(device))
        name = module.__name__.rpartition(".")[2] if module is not None else "reference"
        shown = {"cpu": "Numba", "cuda": "Triton", "reference": "torch reference"}.get(name, name)
        advice = ""
        if off:
            advice = "GRADLESS_KERNELS=reference turns fused kernels off: unset it, and steps are several times faster"
        elif module is None and device == "cpu":
            advice = (
                "numba is missing, so sweeps over the weights are several times slower: pip install 'gradless[cpu]'"
            )
        elif module is None:
            advice = "triton is missing, so sweeps over the weights are several times slower: pip install triton"
        yield Line(device, shown, advice)
        wrong = self_test(device)
        advice = f"{shown} gives other bits than the reference ({wrong}): runs would not replay; set "
        advice += "GRADLESS_KERNELS=reference and report this with the output of gradless doctor"
        value = f"FAILED: {wrong}" if wrong else "same bits"
        yield Line(f"{device} self-test", value, advice if wrong else "", bool(wrong))


def self_test(device: str = "cpu") -> str:
    """Return the first stream and dtype in which the kernel in use differs from the torch reference, or ""."""
    import torch

    from gradless import kernels as fused
    from gradless import rng
    from gradless.kernels import reference
    from gradless.kernels.program import Region, on

    leaf, count = rng.leaf_id("doctor"), 4099
    steps = fused.program([(0.999, [5, 2**127 + 2**63 + 9], [1e-2, -3e-3])], rounding=[2**63 + 1])
    for stream in (rng.RADEMACHER, rng.GAUSSIAN, rng.Stream("low_rank", 4)):
        for dtype in fused.DTYPES:
            p = (rng.normal(1, "doctor", (count, 1)) * 0.1).to(device, dtype)
            expected, actual = torch.empty_like(p), torch.empty_like(p)
            whole = Region(leaf, torch.zeros(1, dtype=torch.int64), count, 1)
            reference.sweep(expected.view(-1), p.view(-1), whole, on(steps, stream, 0.7), None)
            fused.sweep(actual, p, steps, leaf=leaf, stream=stream, amplitude=0.7)
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            if not torch.equal(actual.view(bits), expected.view(bits)):
                return f"{stream.kind} in {str(dtype).removeprefix('torch.')}"
    zero = torch.zeros(count, device=device)
    signs = fused.sweep(zero, zero, fused.program([(1.0, [7], [1.0])]), leaf=leaf)
    return "signs that are not balanced" if abs(float(signs.mean())) > 0.1 else ""


def cache_folder() -> Iterator[Line]:
    """Where fetched and converted files are, how much of the disk they take, and what is left."""
    root = cache.cache_root()
    yield Line("folder", str(root))
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Line("writable", "no", f"the cache {root} cannot be written: point GRADLESS_CACHE to a folder that can")
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()] if root.is_dir() else []
    yield Line("size", f"{sum(path.stat().st_size for path in files) / 1e6:,.0f} MB in {len(files)} files")
    yield Line("models", ", ".join(_kept(root)) or "none")
    free = shutil.disk_usage(existing).free
    advice = f"only {free / 1e9:.1f} GB are free where the cache is: free some space or point GRADLESS_CACHE elsewhere"
    yield Line("free", f"{free / 1e9:.1f} GB", advice if free < LOW_DISK_BYTES else "")
    left = [path for path in root.rglob(f"{cache.TEMPORARY}*") if _stale(path)] if root.is_dir() else []
    if left:
        advice = f"{len(left)} unfinished entries of the cache are older than a day: rm -r {' '.join(map(str, left))}"
        yield Line("left behind", str(len(left)), advice)


def extras() -> Iterator[Line]:
    """Which groups of optional packages are complete."""
    groups: dict[str, list[Requirement]] = {}
    for one, extra in _requirements():
        if extra:
            groups.setdefault(extra, []).append(one)
    for extra, asked in sorted(groups.items()):
        installed = {one: _version(one.name) for one in asked}
        missing = [one.name for one, version in installed.items() if version is None]
        old = [one.name for one, version in installed.items() if version is not None and _old(version, one)]
        lacks = [f"no {', '.join(missing)}"] * bool(missing) + [f"old {', '.join(old)}"] * bool(old)
        fix = f": pip install{' -U' if old else ''} 'gradless[{extra}]'"
        # Not having what one does not need is no reason for advice; having half of it, and too old, is.
        advice = f"{', '.join(old)} of gradless[{extra}] are too old{fix}" if old else ""
        yield Line(extra, "; ".join(lacks) + fix if lacks else "installed", advice)


def hub(*, online: bool = False, timeout: float = TIMEOUT_SECONDS) -> Iterator[Line]:
    """Whether the Hugging Face hub answers; it is asked only if the user wants that."""
    endpoint = os.environ.get("HF_ENDPOINT", HUB)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        advice = "HF_HUB_OFFLINE is set, so hub ids work only if their files are cached: unset it to fetch models"
        yield Line(endpoint, "switched off by HF_HUB_OFFLINE", advice)
    elif not online:
        yield Line(endpoint, "not tried (--online tries it)")
    else:
        yield _answer(endpoint, timeout)


SECTIONS: Final[dict[str, Callable[[], Iterator[Line]]]] = {
    "versions": versions,
    "machine": machine,
    "kernels": kernels,
    "cache": cache_folder,
    "extras": extras,
    "hub": hub,
}


def _answer(endpoint: str, timeout: float) -> Line:
    """What one request for a page's head gets, through the user's proxy."""
    import urllib.error
    import urllib.request

    begun = time.perf_counter()
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout):
            pass
    except urllib.error.HTTPError as error:
        status = f"answers with {error.code}"
        advice = f"{endpoint} {status}: check HF_ENDPOINT and the proxy" if error.code >= 400 else ""
        return Line(endpoint, status, advice)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)).splitlines()[0][:120]
        advice = (
            f"{endpoint} cannot be reached ({reason}): use a model of gradless list models, a folder or a GGUF file, "
            "and --data for tasks"
        )
        return Line(endpoint, f"cannot be reached: {reason}", advice)
    return Line(endpoint, f"reachable, {1000 * (time.perf_counter() - begun):.0f} ms")


def cores() -> int:
    """Return the processor cores that this process may use: affinity and a container's share, rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()[:2]
        return min(usable, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return usable


def _requirements() -> Iterator[tuple[Requirement, str]]:
    """Yield what gradless asks for by its own metadata, each with its extra, or ""."""
    for line in metadata.requires("gradless") or []:
        asked = Requirement(line)
        extra = re.search(r'extra == "([\w-]+)"', str(asked.marker))
        if asked.name != "gradless":
            yield Requirement(f"{asked.name}{asked.specifier}"), extra[1] if extra else ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _old(installed: str, asked: Requirement) -> bool:
    """Whether an installed version, or what it is a candidate of, is not among those that are asked for.

    Example:
        >>> [_old(version, Requirement("peft>=5.0")) for version in ("5.10.1+cpu", "4.57.1", "5.0.0rc1")]
        [False, True, False]
    """
    return not asked.specifier.contains(Version(installed).base_version)


def _kept(root: Path) -> list[str]:
    """Models of `gradless.lm.assets` that are in the cache."""
    from gradless.lm.assets import ASSETS, cached_folder

    return [
        name for name, asset in ASSETS.items() if asset.kind == "model" and cached_folder(asset, name, root).is_dir()
    ]


def _stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > cache.STALE_SECONDS
    except OSError:
        return False
