"""A CUDA driver for Triton that compiles, loads and launches nothing, so that the host's work can be counted and timed.

Tensors stay on the CPU and keep whatever they held: losses are those of unperturbed, or of uninitialised, weights. What
is real is all that a machine with a GPU does before a kernel runs: gradless, torch's dispatch, Triton's launcher.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradless import kernels

LAUNCHES: Counter[str] = Counter()  # by name of the kernel
ARGUMENTS: list[tuple[Any, ...]] = []  # of every launch: kernel, grid, what it is called with
COMPILED: list[str] = []  # names of kernels, as they are compiled


class Utils:
    """What Triton asks of a device."""

    def load_binary(self, name: str, *rest: Any) -> tuple[Any, ...]:
        COMPILED.append(name)
        return object(), 0, 64, 0, 1024

    def unload_module(self, module: Any) -> None: ...

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class Launcher:
    """In place of the launch itself."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = source.fn.__name__

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *arguments: Any) -> None:
        LAUNCHES[self.name] += 1
        plain = (a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
        ARGUMENTS.append((self.name, (x, y, z), *plain))


class Driver:
    """An H100, as Triton sees it."""

    utils = Utils()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return "int"

    def allocate_default_profile_scratch(self, *size: Any) -> None: ...


class Silent:
    """In place of a compiled kernel."""

    def __init__(self, name: str) -> None:
        self.name = name
        COMPILED.append(name)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, stream: int) -> None:
            LAUNCHES[self.name] += 1
            ARGUMENTS.append((self.name, grid, *arguments))

        return run


class Waits(TorchDispatchMode):
    """Notes, for every function that returns a value or a number of rows to the host, the launches that preceded it."""

    KINDS = (
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "_unique",
        "_unique2",
        "unique_dim",
        "masked_select",
    )

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        for name in ("tolist", "numpy", "cpu"):  # which on the CPU are no functions of the dispatcher
            self.patch.setattr(torch.Tensor, name, self._noted(getattr(torch.Tensor, name)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.undo()

    def _noted(self, function: Any) -> Any:
        def noted(*arguments: Any, **more: Any) -> Any:
            self.read.append(sum(LAUNCHES.values()))
            return function(*arguments, **more)

        return noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.KINDS:
            self.read.append(sum(LAUNCHES.values()))
        return func(*args, **(kwargs or {}))


def forget() -> None:
    """Forget the launches so far."""
    LAUNCHES.clear()
    ARGUMENTS.clear()
    COMPILED.clear()


def cuda_kernels(interpreted: bool) -> Any:
    """The package of CUDA kernels, imported anew: how functions are run is decided when they are defined."""
    return interpreted_module("gradless.kernels.cuda", interpreted=interpreted)


def interpreted_module(name: str, *, interpreted: bool) -> Any:
    """A module with functions of Triton, imported anew with the package of CUDA kernels."""

    def among(loaded: str) -> bool:
        return loaded.split(".")[:3] == ["gradless", "kernels", "cuda"] or loaded == name

    kept = {loaded: sys.modules.pop(loaded) for loaded in [*sys.modules] if among(loaded)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
            return importlib.import_module(name)
    finally:
        for loaded in [*filter(among, sys.modules)]:
            del sys.modules[loaded]
        sys.modules.update(kept)


@contextlib.contextmanager
def kernels_on_the_cpu(*, interpreted: bool, compiled: bool = True) -> Iterator[Any]:
    """Inside, leaves on the CPU go to the kernels of CUDA: to Triton's interpreter, or to the driver above.

    What is not compiled is still looked at by Triton, which says when it would compile.
    """
    import triton
    from triton.runtime.jit import JITFunction

    module = cuda_kernels(interpreted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
        if not interpreted:
            patch.setattr(triton.runtime.driver, "_active", Driver())
        if not (interpreted or compiled):
            patch.setattr(JITFunction, "_do_compile", lambda self, *_: Silent(self.fn.__name__))
        # What the real path pays: a look at the environment, and a cached module.
        patch.setattr(kernels, "on_accelerator", lambda device: True)
        patch.setattr(kernels, "backend", lambda device: (os.environ.get("GRADLESS_KERNELS"), module)[1])
        forget()
        yield module
