"""JSON, stricter than Python reads it: no key twice, no NaN or infinity, no number too large for float64."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Return what JSON text holds; stricter than `json.loads`.

    Raises:
        ValueError: no JSON, nested too deeply, a number of thousands of digits, or a key twice, of which one would be
            lost; with ``finite``, NaN, infinity or a number beyond float64.
    """
    numbers: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=_distinct, **numbers)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # Python converts no integer of more than 4300 digits
        if "digits" in str(error):
            raise ValueError("a number of thousands of digits") from None
        raise


def _no_number(literal: str) -> float:
    raise ValueError(f"{literal} is no number")


def _finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _no_number(literal)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in content if names.count(name) > 1)!r} occurs twice")
    return content
