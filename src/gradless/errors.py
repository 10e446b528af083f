"""How bad input is reported: an exception whose message is one sentence that says what is wrong and how to fix it.

Numbers that callers of the core give are converted here, too.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

__all__ = ["BadInput", "Diverged", "NotFinite"]

T = TypeVar("T")
SHORT: Final = reprlib.Repr()
SHORT.maxlong = SHORT.maxother = SHORT.maxstring = 40
ELSEWHERE: Final = {
    **{"learning_rate": "lr", "batch": "batch_size", "bs": "batch_size", "per_device_train_batch_size": "batch_size"},
    **dict.fromkeys(("epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"), "steps"),
    **dict.fromkeys(("epsilon", "zo_eps", "perturbation_scale"), "eps"),
    **dict.fromkeys(("lora_r", "lora_rank", "r"), "rank"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "schedule"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "warmup"),
    **dict.fromkeys(("max_seq_length", "max_len", "seq_length"), "max_length"),
    **dict.fromkeys(("output_dir", "output", "output_folder"), "out"),
    **dict.fromkeys(("model_name_or_path", "model_name", "base_model"), "model"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulation_steps"), "micro_batch_size"),
    **dict.fromkeys(("quantize", "quantization", "load_in_4bit", "load_in_8bit", "quant_type"), "quantise"),
    **dict.fromkeys(("offload_folder", "cpu_offload", "device_map"), "offload"),
    **{"optimizer": "method", "algorithm": "method", "num_queries": "queries", "eval_steps": "eval_every"},
    **{"train_file": "train", "validation_file": "dev", "validation": "dev", "test_file": "test", "prompt": "template"},
}
"""What other programs call a setting -> its name here."""


class BadInput(ValueError):
    """Input of the user cannot be used; the message is one sentence that names the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class NotFinite(BadInput):
    """A model's logits are NaN or infinite, so that nothing can be scored by them."""


class UnknownArgument(BadInput, TypeError):
    """A function was called with an argument that it does not have; Python's own error for that is a TypeError."""


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
    if isinstance(name, str) and name in table:
        return table[name]
    raise BadInput(unknown(kind, str(name), table))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown name, with the nearest known one if there is any."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f": did you mean '{near}'?" if near else ""
    return f"unknown {kind} '{name}'{hint} (known: {', '.join(names)})"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is meant: what other programs call so, or what is written alike.

    Example:
        >>> nearest("learning-rate", ["eps", "lr"]), nearest("momentun", ["momentum"]), nearest("x", ["lr"])
        ('lr', 'momentum', None)
    """
    names = list(known)
    plain = name.lower().replace("-", "_")
    for candidate in (plain, ELSEWHERE.get(plain)):
        if candidate in names:
            return candidate
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return near[0] if near else None


def real(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """Return a finite number as a float; scalars of NumPy and torch are numbers too.

    Args:
        name: for the sentence.
        value: what was given.
        least: the smallest number that is allowed.
        above: a number that it must exceed.
        below: a number that it must not reach.

    Raises:
        BadInput: another type, NaN or infinity, or out of range.

    Example:
        >>> real("eps", 1, above=0)
        1.0
    """
    plain = scalar(value)
    try:
        number = float(plain) if isinstance(plain, (int, float)) and not isinstance(plain, bool) else math.nan
    except OverflowError:
        number = math.inf
    if math.isfinite(number) and least <= number < below and number > above:
        return number
    limits = (("of at least", least), ("above", above), ("below", below))
    bounds = " and ".join(f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit))
    raise BadInput(f"{name} is {_shown(plain)}: give a finite number {bounds}".rstrip())


def whole(name: str, value: Any, *, least: int, most: int) -> int:
    """Return a whole number as an int; ``8.0`` is one.

    Raises:
        BadInput: another type, a fraction, or out of range.

    Example:
        >>> whole("rank", 8.0, least=1, most=32), whole("seed", 3, least=0, most=9)
        (8, 3)
    """
    plain = scalar(value)
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if isinstance(plain, int) and not isinstance(plain, bool) and least <= plain <= most:
        return plain
    raise BadInput(f"{name} is {_shown(plain)}: give a whole number from {least} to {most}")


def scalar(value: Any) -> Any:
    """Return Python's number in a scalar of NumPy or torch, which are not imported for it; other values as they are."""
    if not hasattr(value, "item") or str(getattr(value, "device", "")) == "meta":
        return value
    count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
    return value.item() if count == 1 else value


def _shown(value: Any) -> str:
    """A value in a sentence: one line, shortened."""
    if hasattr(value, "item"):
        return f"an array of shape {list(value.shape)}"
    try:
        return " ".join(SHORT.repr(value).split())
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
