"""Checks of what a rule or an attack is told: each raises one sentence with the option, its value and the fix."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from msgspec import Meta

from gradless.errors import BadInput, unknown
from gradless.system import typed
from gradless.system.typed import Positive

Pair = Annotated[list, Meta(min_length=2, max_length=2)]


def count(name: str, value: int, what: str = "f", least: int = 0) -> int:
    """Return ``value`` if it is a whole number of at least ``least``, and of at most a million.

    Raises:
        BadInput: otherwise.
    """
    number: int = typed.value(f"{what} of {name}", value, Annotated[int, Meta(ge=least, le=10**6)])
    return number


def positive(name: str, value: float, what: str) -> float:
    """Return ``value`` if it is a positive finite number.

    Raises:
        BadInput: otherwise.
    """
    number: float = typed.value(f"{what} of {name}", value, Positive)
    return number


def flag(name: str, value: bool, what: str) -> bool:
    """Return ``value`` if it is true or false.

    Raises:
        BadInput: otherwise.
    """
    truth: bool = typed.value(f"{what} of {name}", value, bool)
    return truth


def finite_or_none(name: str, strength: float | str | None, hint: Any = float | None) -> float | None:
    """Return the strength of the attack ``name`` if it is a finite number or None.

    Args:
        name: of the attack.
        strength: as the user gave it.
        hint: a type that takes more than that, for the sentence.

    Raises:
        BadInput: otherwise.
    """
    number: float | None = typed.value(f"strength of {name}", strength, hint)
    return number


def checked_part(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Return ``make(**options)``, with options refused that are no numbers where their defaults are.

    For rules and attacks that do not check what they are told; those that do have their say first.

    Args:
        name: of the rule or the attack.
        make: a function whose arguments have the defaults.
        options: its options, as the user gave them.

    Raises:
        BadInput: the option, and what ``make`` refuses.
    """
    numbers = {
        option: p.default
        for option, p in inspect.signature(make).parameters.items()
        if isinstance(p.default, int | float) and not re.search("str|Literal", str(p.annotation))  # which take words
    }
    wanted = {option: value for option, value in options.items() if option in numbers}

    def check() -> None:
        for option, value in wanted.items():
            typed.value(f"{option} of {name}", value, bool if isinstance(numbers[option], bool) else float | None)

    try:
        part = make(**options)
    except TypeError:
        check()
        raise
    check()
    return part


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
    try:
        pair = typed.value("bounds", list(bounds) if isinstance(bounds, tuple) else bounds, Pair)
        low, high = (typed.value("bounds", bound, float) for bound in pair)
    except BadInput:
        low = high = 0.0
    if not low < high:
        raise BadInput(
            f"the bounds of {name} are {typed.shown(bounds)}: give the least and the greatest strength, e.g. [0, 10]"
        )
    return low, high


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
