"""The random numbers that a closure draws: every evaluation of one step starts from the same state of the generators.

An estimate is a difference of losses, so whatever a forward draws (dropout, masks, noise, the batch itself) must be the
same at all points of a step. A `RandomState` remembers where the generators stand that code draws from without naming
one: torch's on the CPU and on the accelerators in use, NumPy's global one, and `random`'s. Nothing is seeded, and where
nothing is drawn nothing changes. After a step the generators stand where one evaluation leaves them.

A `torch.Generator` or data loader of the closure's own is not seen: `LossEvaluator` evaluates one point twice for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradless.ranks import DIRECTIONS, Ranks

T = TypeVar("T")
TWISTER: Final = 4 * 625  # bytes of a Mersenne twister in memory: 624 words and a position


class RandomState(NamedTuple):
    """Where the generators stood when `capture` was called. Cost: 12 us, and 5 us to put it back (see docs/log.md)."""

    cpu: Tensor
    devices: dict[torch.device, Tensor]
    numpy: NumPy
    python: tuple[Any, ...]

    @classmethod
    def capture(cls, devices: Iterable[torch.device] = ()) -> RandomState:
        """The present state; ``devices`` are accelerators, each of which is asked for the generator of its own."""
        states = {device: _of_device(device, "get_rng_state") for device in devices}
        return cls(torch.get_rng_state(), states, NumPy.capture(), random.getstate())

    def restore(self) -> None:
        """Put all generators back."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            _of_device(device, "set_rng_state", state)
        self.numpy.restore()
        random.setstate(self.python)

    def pinned(self, closure: Callable[[], T]) -> Callable[[], T]:
        """The closure, every call of which draws what it would have drawn at this state."""

        def same() -> T:
            self.restore()
            return closure()

        return same

    @contextlib.contextmanager
    def revisited(self) -> Iterator[None]:
        """Around evaluations of a step that is over: behind them the generators stand as before."""
        present = self.capture(self.devices)
        try:
            yield
        finally:
            present.restore()

    def same(self, other: RandomState) -> bool:
        """Whether nothing was drawn between the two."""
        return (
            torch.equal(self.cpu, other.cpu)
            and all(torch.equal(state, other.devices[device]) for device, state in self.devices.items())
            and self.numpy.same(other.numpy)
            and self.python == other.python
        )

    def to_bytes(self) -> bytes:
        """The state for another process of the same program, on the same kinds of devices."""
        devices = [state.tolist() for state in self.devices.values()]
        return json.dumps([self.cpu.tolist(), devices, self.numpy.words(), self.python]).encode()

    def replaced(self, content: bytes) -> RandomState:
        """The state that `to_bytes` wrote, for the devices of this one."""
        cpu, devices, words, (version, internal, gauss) = json.loads(content)
        states = {
            device: torch.tensor(state, dtype=torch.uint8) for device, state in zip(self.devices, devices, strict=True)
        }
        return RandomState(
            torch.tensor(cpu, dtype=torch.uint8), states, NumPy(None, words), (version, tuple(internal), gauss)
        )


class SharedRandom:
    """The random state of steps whose points ranks split: all of them take that of rank 0, while closures draw.

    Args:
        devices: of the tuned weights.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.accelerators = sorted((device for device in devices if device.type != "cpu"), key=str)
        self.draws: bool | None = None  # whether some rank's closure draws random numbers; None: not known yet

    def begin(self, ranks: Ranks | None) -> RandomState:
        """The state that the evaluations of a step start from."""
        start = RandomState.capture(self.accelerators)
        if self._shared(ranks):
            start = start.replaced(ranks.broadcast(start.to_bytes()))
        return start

    def end(self, ranks: Ranks | None, start: RandomState) -> None:
        """After the evaluations of a step that began with ``start``."""
        if not self._shared(ranks):
            return
        end = RandomState.capture(self.accelerators)
        if self.draws is None:
            self.draws = any(drew for (drew,) in ranks.gather((float(not end.same(start)),)))
        if self.draws:
            end.replaced(ranks.broadcast(end.to_bytes())).restore()

    def _shared(self, ranks: Ranks | None) -> TypeGuard[Ranks]:
        return ranks is not None and ranks.split == DIRECTIONS and self.draws is not False


class NumPy(NamedTuple):
    """State of NumPy's global generator.

    NumPy takes 50 us to tell or to take it. The words in memory, compared in 0.5 us, say whether that is needed: while
    they are the same, and no half of a pair of normal numbers is kept, nothing was drawn.
    """

    memory: bytes | None  # of the generator's words; None where they do not tell
    state: dict[str, Any]

    @classmethod
    def capture(cls) -> NumPy:
        """The present state."""
        global _latest
        memory = _memory()
        if memory is None or _latest is None or _latest.memory != memory:
            state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
            _latest = cls(None if state["has_gauss"] else memory, state)
        return _latest

    def restore(self) -> None:
        """Put the generator back."""
        if self.memory is None or self.memory != _memory():
            np.random.set_state(self.state)  # noqa: NPY002

    def same(self, other: NumPy) -> bool:
        """Whether nothing was drawn between the two."""
        return self.memory == other.memory if self.memory and other.memory else self.words() == other.words()

    def words(self) -> dict[str, Any]:
        """The state in plain lists and numbers."""
        inner = {name: np.asarray(value).tolist() for name, value in self.state["state"].items()}
        return {**self.state, "state": inner}


_latest: NumPy | None = None


def _memory() -> bytes | None:
    """The words of NumPy's global generator; None for another kind than its Mersenne twister."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, TWISTER)


def _of_device(device: torch.device, function: str, *arguments: Tensor) -> Any:
    """Call ``get_rng_state`` or ``set_rng_state`` of an accelerator."""
    module = torch.get_device_module(device)
    return getattr(module, function)(*arguments, *(() if device.type == "mps" else (device,)))
