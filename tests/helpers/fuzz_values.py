"""Values that the type of an option or a field does not take."""

from __future__ import annotations

import random
import sys
import typing
from typing import Any

from msgspec import Meta

from gradless.system import typed
from gradless.system.typed import Names

DIGITS = "9" * 400
NUMBERS = (
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    DIGITS,
    "9" * 5000,
    "10" + "0" * 11,
    "ten",
    "",
    "1e",
)


def fits(hint: Any, value: Any) -> bool:
    """Whether a hint takes a value: written apart from `gradless.system.typed`, which is on trial here."""
    for kind, metadata in typed._parts(hint):
        plain = typing.get_origin(kind) or kind
        if plain is typing.Literal:
            good = any(type(value) is type(one) and value == one for one in typing.get_args(kind))
        elif plain is float:
            good = type(value) in (int, float) and abs(value) <= sys.float_info.max and _inside(value, metadata)
        elif plain is int:
            good = type(value) is int and _inside(value, metadata)
        elif plain is tuple:
            good = isinstance(value, list | tuple) and all(fits(typing.get_args(kind)[0], one) for one in value)
            good = good and all(len(value) >= (one.min_length or 0) for one in metadata if isinstance(one, Meta))
        elif plain is dict:
            value_hint = typing.get_args(kind)[1]
            good = isinstance(value, dict) and (value_hint is Any or all(fits(value_hint, v) for v in value.values()))
        elif plain is str:
            names = [one for one in metadata if isinstance(one, Names) and one.closed]
            good = isinstance(value, str) and all(value in one.load() for one in names)
        else:
            good = value is None if plain is type(None) else isinstance(value, plain)
        if good:
            return True
    return False


def _inside(value: float, metadata: tuple[Any, ...]) -> bool:
    ranges = [one for one in metadata if isinstance(one, Meta)]
    return all(
        (one.ge is None or value >= one.ge)
        and (one.gt is None or value > one.gt)
        and (one.le is None or value <= one.le)
        and (one.lt is None or value < one.lt)
        for one in ranges
    )


def parsed(kinds: list[type], text: str) -> Any:
    """Return text as the command line reads it: the first type that takes it."""
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def odd_values(hint: Any, draw: random.Random) -> Any:
    """Return a JSON value that a hint does not take."""
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    values = [None, True, -1, 0, 1.5, -0.5, 10**12, 10**30, 10**400, 1e308, "word", "", "nan", [], [[]], {}, {"a": 1}]
    values += [deep, "half \ud800", "nul \0", [1], [True], -(10**400)]
    odd = [value for value in values if not fits(hint, value) or _no_text(value)]
    return draw.choice(odd)


def _no_text(value: Any) -> bool:
    return isinstance(value, str) and ("\ud800" in value or "\0" in value)
