"""How bad input is reported: an exception whose message is one sentence that says what is wrong and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

__all__ = ["BadInput", "Diverged", "NotFinite"]

T = TypeVar("T")


class BadInput(ValueError):
    """Input of the user cannot be used; the message is one sentence that names the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class NotFinite(BadInput):
    """A model's logits are NaN or infinite, so that nothing can be scored by them."""


class ReportedElsewhere(BadInput):
    """Bad input that another rank of the same run reports."""


class BrokenRanks(RuntimeError):
    """A rank of a run ended, hangs or holds other weights than the others; the message says how to continue."""


class Diverged(RuntimeError):
    """Too many losses in a row were not finite; the message says what to change."""


def pick(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return ``table[name]``, or raise `BadInput` that names the nearest entry.

    Example:
        >>> pick("rule", "momentun", {"momentum": 1, "scale": 2})
        Traceback (most recent call last):
        ...
        gradless.errors.BadInput: unknown rule 'momentun': did you mean 'momentum'? (known: momentum, scale)
    """
    if name in table:
        return table[name]
    raise BadInput(unknown(kind, name, table))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown name, with the nearest known one if there is any."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}(known: {', '.join(names)})"
