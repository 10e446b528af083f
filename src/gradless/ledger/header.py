"""What the header of a ledger holds: named fields with types, the same for every reader.

A reader refuses a field that it does not know, by name: a later release that adds a field which changes what a replay
gives is thereby never misread by an older one, and the version of the format stays 2. Version 1 had the same fields
without `arithmetic`, and was not checked.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from gradless import __version__
from gradless.errors import BadInput, unknown
from gradless.kernels import ARITHMETIC_VERSION
from gradless.rng import STREAM_VERSION

Header = dict[str, Any]
SHORT: Final = reprlib.Repr()
SHORT.maxlong = SHORT.maxstring = SHORT.maxother = 60


class Kind(NamedTuple):
    """A type of JSON values."""

    name: str  # as it stands in a sentence
    fits: Callable[[Any], bool]


def _is_number(value: Any, kinds: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


LARGEST: Final = 2**63 - 1
MOST_GROUPS: Final = 2**16 - 1
LONGEST: Final = 200  # characters of a hash, a version or a name
INTEGER: Final = Kind("a whole number", lambda value: _is_number(value, int) and -LARGEST <= value <= 2 * LARGEST + 1)
COUNT: Final = Kind("a whole number of at least 0", lambda value: _is_number(value, int) and 0 <= value <= LARGEST)
GROUPS: Final = Kind(
    f"a whole number of at least 0 and at most {MOST_GROUPS}", lambda value: COUNT.fits(value) and value <= MOST_GROUPS
)
TEXT: Final = Kind(
    "text", lambda value: isinstance(value, str) and len(value) <= LONGEST and (value.isprintable() or not value)
)
TEXT_OR_NULL: Final = Kind("text or null", lambda value: value is None or TEXT.fits(value))
TABLE: Final = Kind("a table", lambda value: isinstance(value, dict))
COUNTS: Final = Kind(
    "a list of whole numbers of at least 0", lambda value: isinstance(value, list) and all(map(COUNT.fits, value))
)
NUMBERS: Final = Kind(
    "a list of finite numbers",
    lambda value: isinstance(value, list) and all(_is_number(one) and math.isfinite(one) for one in value),
)

COMMAND, TRAINER = "config", "trainer"  # the field that tells who wrote a ledger


class Field(NamedTuple):
    """One field of a header."""

    kind: Kind
    summary: str
    writer: str | None = None  # `COMMAND` or `TRAINER`: only in ledgers with that field
    required: bool = True  # in the ledgers of its writer


FIELDS: Final[Mapping[str, Field]] = {
    "gradless": Field(TEXT, "release that wrote the ledger"),
    "stream": Field(TEXT, "version of the random streams (`gradless.rng.STREAM_VERSION`)"),
    "arithmetic": Field(COUNT, "version of the arithmetic of updates (`gradless.kernels.ARITHMETIC_VERSION`)"),
    "groups": Field(GROUPS, "parameter groups G: learning rates in a record"),
    "tuned_parameters": Field(COUNT, "tuned weights", required=False),
    "engine": Field(TABLE, "how the engine was chosen, where `auto` was asked for", required=False),
    "initial_sha256": Field(TEXT_OR_NULL, "first values of the tuned weights; null: the base model's", required=False),
    COMMAND: Field(TABLE, "the run's configuration", COMMAND),
    "base_sha256": Field(TEXT, "weights of the base model", COMMAND),
    "data_sha256": Field(TEXT, "rows of all splits", COMMAND),
    "label_token_ids": Field(COUNTS, "tokens whose rows begin a label head", COMMAND),
    "dtype": Field(TEXT, "of the weights", COMMAND),
    "norms_sha256": Field(TEXT, "input norms that masks were made from", COMMAND, required=False),
    "parent_sha256": Field(
        TEXT,
        "last value of the peers' log whose rows were mixed anew (`gradless peers excise`)",
        COMMAND,
        required=False,
    ),
    "without": Field(TEXT, "peers whose rows were left out of it", COMMAND, required=False),
    TRAINER: Field(TABLE, "the method and its options", TRAINER),
    "seed": Field(INTEGER, "run seed", TRAINER),
    "frozen_sha256": Field(TEXT, "weights that are not tuned", TRAINER),
    "weight_decay": Field(NUMBERS, "of each parameter group", TRAINER),
}


def header(**fields: Any) -> Header:
    """A complete header: ``fields``, and what this release says of itself.

    Args:
        fields: some of `FIELDS`; ``groups`` at least.

    Raises:
        BadInput: an unknown or missing field, or one of the wrong type.

    Example:
        >>> sorted(header(groups=1))
        ['arithmetic', 'gradless', 'groups', 'stream']
    """
    own = {"gradless": __version__, "stream": STREAM_VERSION, "arithmetic": ARITHMETIC_VERSION}
    complete = {**own, **fields}
    for name in complete:
        if name not in FIELDS:
            raise BadInput(unknown("field of a ledger's header", name, FIELDS))
    if problem := _problem(complete):
        raise BadInput(f"the ledger's header {problem}: correct it")
    return complete


def check(values: Any, path: Any, *, version: int) -> Header:
    """The header of a ledger that was read, if this release understands all of it.

    Of version 1, which had no rules for other fields, the number of groups alone is checked.

    Raises:
        BadInput: with the field that is unknown, missing or of the wrong type.
    """
    if not isinstance(values, dict):
        raise BadInput(f"the header of {path} is no table of fields: restore the file from a copy")
    if version == 1:
        if not GROUPS.fits(values.get("groups")):
            raise BadInput(f"{path} has no number of groups: restore the file from a copy")
        return values
    for name in values:
        if name not in FIELDS:
            raise BadInput(
                f"{path} has the field {_shown(name)}, which gradless {__version__} does not know: use a newer release"
            )
    if problem := _problem(values):
        raise BadInput(f"{path} {problem}: restore the file from a copy")
    return values


def _is_processors_own(values: Header) -> bool:
    """Whether bits of arithmetic 1 depended on the processor, for this choice of parts; with others it is as 2."""
    choice = values.get(COMMAND) or values.get(TRAINER) or {}
    options = choice.get("options")
    rule = options.get("rule") if isinstance(options, dict) else None  # of an optimizer that a Trainer was given
    return "adam" in f"{choice.get('method')} {rule}" or choice.get("layer_scale", "none") != "none"


def _problem(values: Header) -> str:
    """What is wrong with known fields, as the end of a sentence; empty if nothing is."""
    for name, field in FIELDS.items():
        if name not in values:
            if field.required and (field.writer is None or field.writer in values):
                return f"lacks the field '{name}'"
        elif not field.kind.fits(values[name]):
            return f"has {_shown(values[name])} in the field '{name}', which holds {field.kind.name}"
    return ""


def _shown(value: Any) -> str:
    """A value in a sentence, shortened in the middle."""
    try:
        return SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"


def check_release(values: Header) -> None:
    """Refuse to replay what was computed with other random streams or another arithmetic.

    Raises:
        BadInput: with the version that is needed.
    """
    for name, what, here, same in (
        ("stream", "random stream", STREAM_VERSION, False),
        ("arithmetic", "arithmetic", ARITHMETIC_VERSION, not _is_processors_own(values)),
    ):
        there = values.get(name, 1)  # version 1 of the format knew one arithmetic only
        if there != here and not (there == 1 and same):
            raise BadInput(
                f"the ledger was written with {what} {there}, this gradless has {here}: install a release that has the "
                "former"
            )
