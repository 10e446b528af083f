"""A check: one promise that parts of a kind make, as a function that raises when it is broken.

A body takes a part and the settings of its suite and calls `demand`. The first line of its docstring is the promise,
its name the check's name; so a suite is a tuple of functions.

Random numbers come from the counter streams, so a check gives the same verdict every time. Those that are statistical
have thresholds that a sound part would exceed with probability below `ALARM` if its seeds were drawn anew.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from gradless.errors import BadInput

ALARM: Final = 1e-6
"""Chance that a statistical check refuses a sound part, over the choice of its seeds."""


class Broken(AssertionError):
    """A promise that was not kept; `Check` puts it into a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise; call it with the part that gives it.

    Pytest shows its name without further ado: ``@pytest.mark.parametrize("check", direction_checks())``.
    """

    kind: str
    """What it is about, in the singular."""
    name: str
    promise: str
    body: Callable[[Any], None]
    called: Callable[[Any], str]
    """How the part is called in a sentence."""

    @property
    def __name__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    def __call__(self, part: Any) -> None:
        """Check ``part``.

        Raises:
            AssertionError: one sentence with the promise, and how to see it broken.
        """
        head = f"breaks '{self.name}' ({self.promise.rstrip('.')})"
        try:
            head = f"the {self.kind} {self.called(part)} {head}"
            self.body(part)
        except Broken as broken:
            raise AssertionError(f"{head}: {broken}") from None
        except Exception as error:
            lines = f"{error}".strip().splitlines()
            reason = f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
            raise AssertionError(f"{head}: it raised {reason}") from error


def suite(
    kind: str,
    bodies: Sequence[Callable[[Any, Any], None]],
    settings: Any,
    called: Callable[[Any], str] | None = None,
) -> tuple[Check, ...]:
    """The checks of a kind, bound to their settings."""

    def bound(body: Callable[[Any, Any], None]) -> Callable[[Any], None]:
        return lambda part: body(part, settings)

    return tuple(
        Check(
            kind=kind,
            name=body.__name__,
            promise=(body.__doc__ or "").splitlines()[0],
            body=bound(body),
            called=called or title,
        )
        for body in bodies
    )


def run(checks: Sequence[Check], part: Any) -> None:
    """Run checks in order; the first broken promise is raised."""
    for check in checks:
        check(part)


def demand(kept: bool, sentence: str) -> None:
    """Go on if ``kept``; else the promise is broken as ``sentence`` says.

    Raises:
        Broken: with the sentence.
    """
    if not kept:
        raise Broken(sentence)


def title(part: Any) -> str:
    """How a part is called in a sentence."""
    inner = getattr(part, "func", part)  # of a functools.partial
    name = getattr(inner, "name", None) or getattr(inner, "__name__", None)
    return f"'{name}'" if isinstance(name, str) else f"of type {type(part).__name__}"


def refused(action: Callable[[], Any], what: str) -> None:
    """Demand that ``action`` raises `BadInput` with one line."""
    try:
        action()
    except BadInput as error:
        sentence = str(error)
        one_line = bool(sentence.strip()) and "\n" not in sentence
        demand(one_line, f"{what} is refused without one sentence that names the fix")
        return
    demand(False, f"{what} is accepted: raise gradless.errors.BadInput with a sentence that names the fix")


@contextmanager
def generators_untouched() -> Iterator[None]:
    """Demand that no global generator moves meanwhile."""
    earlier = _generators()
    yield
    later = _generators()
    moved = [name for name in earlier if not np.array_equal(earlier[name], later[name])]
    demand(not moved, f"the global generator of {' and '.join(moved)} moved: draw from gradless.rng instead")


def _generators() -> dict[str, Any]:
    """The states of all global generators. They are only looked at, and by name: nobody here draws from them."""
    numpy_, python = (importlib.import_module(name) for name in ("numpy.random", "random"))
    state = numpy_.get_state(legacy=False)["state"]
    return {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.append(state["key"], state["pos"]) if "pos" in state else np.array([repr(state)]),
        "random": np.array(python.getstate()[1]),
    }


def chance_bound(count: int) -> float:
    """Bound of |sum x| / sqrt(sum x^2) for ``count`` sums of independent symmetric variables.

    Such a sum exceeds t with probability below 2 exp(-t^2 / 2) whatever the distributions are (Efron 1969), so all of
    them stay within the bound but for a chance of `ALARM`.

    Example:
        >>> round(chance_bound(1), 2), round(chance_bound(100_000), 2)
        (5.39, 7.21)
    """
    return math.sqrt(2 * math.log(2 * max(count, 1) / ALARM))
