"""Checks of what a rule or an attack is told: each raises one sentence with the option, its value and the fix."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from gradless.errors import BadInput, unknown


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number, not a bool, that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def count(name: str, value: int, what: str = "f", least: int = 0) -> int:
    """Return ``value`` if it is a whole number of at least ``least``.

    Raises:
        BadInput: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{what} of {name} is {value!r}: give a whole number of at least {least}")
    return value


def positive(name: str, value: float, what: str) -> float:
    """Return ``value`` if it is a positive finite number.

    Raises:
        BadInput: otherwise.
    """
    if not is_finite(value) or value <= 0:
        raise BadInput(f"{what} of {name} is {value!r}: it must be a positive number")
    return float(value)


def finite_or_none(name: str, strength: float | str | None, also: str = "") -> float | None:
    """Return the strength of the attack ``name`` if it is a finite number or None.

    Args:
        name: of the attack.
        strength: as the user gave it.
        also: what else would be right, for the sentence.

    Raises:
        BadInput: otherwise.
    """
    if strength is None:
        return None
    if not is_finite(strength):
        raise BadInput(f"the strength of {name} is {strength!r}: give a finite number{also}")
    return float(strength)


def one_of(kind: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the ``known`` words.

    Raises:
        BadInput: otherwise, with the nearest word.
    """
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise BadInput(unknown(kind, str(value), names))
    return value


def interval(name: str, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the bounds of the search of the attack ``name`` if they are finite and in order, or None.

    Raises:
        BadInput: otherwise.
    """
    if bounds is None:
        return None
    pair = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(is_finite(bound) for bound in bounds)
    if not pair or not bounds[0] < bounds[1]:
        raise BadInput(f"the bounds of {name} are {bounds!r}: give the least and the greatest strength, e.g. [0, 10]")
    return float(bounds[0]), float(bounds[1])


def more_than(name: str, factor: int, f: int, extra: int = 0) -> Callable[[int], None]:
    """Return a check that N rows are more than factor * f + extra.

    Example:
        >>> more_than("krum", 2, 3)(6)
        Traceback (most recent call last):
        ...
        gradless.errors.BadInput: krum with f = 3 needs n > 2 f, that is 7 rows or more, and got 6: lower f or add peers
    """
    condition = f"n > {f'{factor} ' if factor != 1 else ''}f{f' + {extra}' if extra else ''}"

    def check(rows: int) -> None:
        least = factor * f + extra + 1
        if rows < least:
            raise BadInput(
                f"{name} with f = {f} needs {condition}, that is {least} rows or more, and got {rows}: "
                "lower f or add peers"
            )

    return check


def any_number(rows: int) -> None:
    """Accept any number of rows: the check of rules that work with all."""
