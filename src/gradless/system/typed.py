"""Typed settings: what a field may hold is written once, beside it, and checked wherever its value comes from.

A record of settings is a frozen dataclass. The annotation of a field is its type; ``Annotated`` adds a range
(`msgspec.Meta`), the table whose keys are its values (`Names`) and the spelling of its option (`Flag`); the docstring
below it is its help. TOML and JSON files, the command line and calls from Python all go through `value`, so that each
mistake has one sentence, which names the key and says what to give.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import re
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta

from gradless.errors import BadInput, unknown
from gradless.system.strict_json import parse_json as parse_json

T = TypeVar("T")
LARGEST: Final = 2**63 - 1
MOST: Final = 10**9
"""Steps, rows and tokens that a run may be asked for: work beyond it would not end."""
Count = Annotated[int, Meta(ge=1, le=MOST)]
Amount = Annotated[int, Meta(ge=0, le=MOST)]
Seed = Annotated[int, Meta(ge=0, le=LARGEST)]
Few = Annotated[int, Meta(ge=1, le=10**6)]
"""Things of which each takes memory or a forward of its own: directions, rows of a batch, ranks of an adapter."""
FAR: Final = 1024
"""Upper ends from here on are not told to those who give something else that is wrong."""
Processes = Annotated[int, Meta(ge=1, le=FAR)]
"""Workers and threads."""
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0, le=MOST)]

WORDS: Final = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
"""A type in a sentence."""
PLURALS: Final = {str: "texts", int: "whole numbers", float: "finite numbers"}
SHORT: Final = reprlib.Repr()
SHORT.maxlong = SHORT.maxstring = SHORT.maxother = 60


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Names(NamedTuple):
    """The values of a field are the keys of a table; its module is imported when a value is checked."""

    kind: str
    """What the table holds, for the sentence about an unknown name."""
    table: str = ""
    """``module:TABLE`` below ``gradless``."""
    closed: bool = True
    """Whether other values are refused; otherwise the names are suggestions for a shell."""

    def load(self) -> Iterable[str]:
        """Return the names, from the table itself."""
        module, _, table = self.table.partition(":")
        names: Iterable[str] = getattr(importlib.import_module(f"gradless.{module}"), table)
        return names

    def all(self) -> set[str]:
        """Return the names, and those that installed packages declare."""
        from gradless import plugins  # late: help needs none

        table = plugins.table_of(self.table)
        return {*self.load(), *(plugins.installed(table) if table else ())}

    def knows(self, name: Any) -> bool:
        """Return whether the table has a name; an installed package that declares it is imported."""
        from gradless import plugins

        if name not in self.load() and (table := plugins.table_of(self.table)):
            plugins.find(table, name)
        return name in self.load()


class Flag(NamedTuple):
    """How the command line spells a field if not as ``--its-name``."""

    spelling: str = ""
    """Such as ``--target``, or ``--zero-shot/--no-zero-shot``."""
    path: Literal["", "data", "folder"] = ""
    """What the text is a path of."""


class Setting(NamedTuple):
    """A field of a record."""

    name: str
    hint: Any
    default: Any
    """`dataclasses.MISSING` if it must be given."""
    help: str
    """The first paragraph of its docstring, in one line."""
    details: str = ""
    """The rest of it, in one line."""

    @property
    def types(self) -> tuple[Any, ...]:
        """Its plain types without None, such as ``(float, Literal)``."""
        return plain_types(self.hint)

    def metadata(self, kind: type[T]) -> T | None:
        """Return the first metadata of a kind, if there is any."""
        return next((one for _, metadata in _parts(self.hint) for one in metadata if isinstance(one, kind)), None)


@functools.cache
def settings(record: type[Record]) -> Mapping[str, Setting]:
    """Return the fields of a record by name, its own before those of the records that it extends."""
    hints = typing.get_type_hints(record, include_extras=True)
    helps, own = docstrings(record), vars(record)["__annotations__"]
    return {
        field.name: Setting(field.name, hints[field.name], field.default, *helps.get(field.name, ("",)))
        for field in sorted(dataclasses.fields(record), key=lambda field: field.name not in own)
    }


def value(name: str, raw: Any, hint: Any) -> Any:
    """Return a value in the type that a hint asks for: lists become tuples, whole numbers floats.

    Args:
        name: of the setting, for the sentence.
        raw: what was written or passed.
        hint: a type, with metadata.

    Raises:
        BadInput: another type, a number out of range, NaN or infinity, an unknown name.
    """
    if isinstance(raw, float):
        raw = float(raw)  # NumPy's float64 is a float too
    else:
        refuse_odd(name, raw)
    try:
        converted = msgspec.convert(raw, hint)
    except (msgspec.ValidationError, OverflowError):
        raise BadInput(_refusal(name, raw, hint)) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise BadInput(_refusal(name, raw, hint))
    named = [one for _, metadata in _parts(hint) for one in metadata if isinstance(one, Names) and one.closed]
    for names in named if converted is not None else ():
        for one in converted if isinstance(converted, tuple) else (converted,):
            if not names.knows(one):
                raise BadInput(unknown(names.kind, one, names.all()))
    return converted


def _refusal(name: str, raw: Any, hint: Any) -> str:
    words = choices(hint)
    numbers = any(kind in (int, float) for kind, _ in _parts(hint))
    if isinstance(raw, str) and len(words) > 1 and not numbers:
        return unknown(name.replace("_", " "), raw, words)
    return f"{name} is {shown(raw)}: give {_most(raw, hint) or expected(hint)}"


def _most(raw: Any, hint: Any) -> str:
    """In words what to give where only the upper end of the range is passed, which need not be known otherwise."""
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        return ""
    limits = [
        one.le for _, metadata in _parts(hint) for one in metadata if isinstance(one, Meta) and one.le is not None
    ]
    limit = limits[0] if limits else sys.float_info.max
    most = limit if isinstance(limit, int) else f"{limit:.6g}"
    return f"a number of at most {most}" if limit < raw < math.inf else ""


def refuse_odd(name: str, raw: Any) -> None:
    """Refuse what a JSON or TOML file can hold and nothing behind it can: in texts NUL and halves of surrogate pairs.

    Tables and lists are searched, and NaN and infinity in them are refused as well.

    Raises:
        BadInput: with what it is.
    """
    try:
        _refuse_odd(name, raw)
    except RecursionError:
        raise BadInput(f"{name} is nested too deeply: write it flat") from None


def _refuse_odd(name: str, raw: Any) -> None:
    if isinstance(raw, str):
        if "\0" in raw or any("\ud800" <= letter <= "\udfff" for letter in raw):
            raise BadInput(f"{name} is {shown(raw)}, which is no text in UTF-8: correct or rename it")
    elif isinstance(raw, float):
        if not math.isfinite(raw):
            raise BadInput(f"{name} is {raw}: give a finite number")
    elif isinstance(raw, Mapping):
        for key, one in raw.items():
            _refuse_odd("a name", key)
            _refuse_odd(str(key), one)
    elif isinstance(raw, list | tuple):
        for one in raw:
            _refuse_odd(name, one)


def table(raw: Mapping[str, Any], record: type[Record], *, kind: str = "setting") -> dict[str, Any]:
    """Return some fields of a record in their types; a number stays as written, for hashes of runs are of the text.

    Raises:
        BadInput: a field that the record does not have, or as `value`.
    """
    known = settings(record)
    for name in raw:
        if name not in known:
            raise BadInput(unknown(kind, name, known))
    converted = {name: value(name, one, known[name].hint) for name, one in raw.items()}
    return {name: raw[name] if one == raw[name] else one for name, one in converted.items()}


def check(record: Record) -> None:
    """Refuse a record in which a field holds what it may not; a field that is a record is left to itself.

    Raises:
        BadInput: as `value`.
    """
    for setting in settings(type(record)).values():
        raw = getattr(record, setting.name)
        if not dataclasses.is_dataclass(raw):
            value(setting.name, raw, setting.hint)


def load(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file, or in a JSON file if its name ends in ``.json``.

    Raises:
        BadInput: no such file, or it holds something else.
    """
    import tomllib  # late: help needs none

    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = read_text(path)
        content: Any = parse_json(text) if kind == "JSON" else tomllib.loads(text)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}): give a file that exists") from None
    except RecursionError:
        raise BadInput(f"{path} is nested too deeply: write it flat") from None
    except ValueError as error:
        raise BadInput(f"{path} is not {kind} ({error}): correct it") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds no settings: write them as name = value")
    return content


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a mark, as redirections of Windows write it.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another encoding.
    """
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return path.read_text(encoding="utf-16" if wide else "utf-8-sig")


@contextlib.contextmanager
def within(where: object) -> Iterator[None]:
    """Put a file, table or cell in front of what is wrong in it."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def expected(hint: Any) -> str:
    """What to give for a hint, in words.

    Example:
        >>> expected(Count | None), expected(Positive | Literal["auto"])
        ('a whole number of at least 1', 'a finite number above 0 or auto')
    """
    words = []
    for kind, metadata in _parts(hint):
        bounds = " and ".join(bound for one in metadata if isinstance(one, Meta) for bound in _bounds(one))
        plain = typing.get_origin(kind) or kind
        if plain is Literal:
            words += choices(kind)
        elif plain is tuple:
            ((item, _), *_) = _parts(typing.get_args(kind)[0])
            words.append(f"{WORDS[list]} of {PLURALS[item]}")
        elif plain is dict and typing.get_args(kind)[1] is str:
            words.append(f"{WORDS[dict]} of {PLURALS[str]}")
        elif plain is not types.NoneType:
            words.append(f"{WORDS[plain]} {bounds}".strip())
    return " or ".join(words)


def plain_types(hint: Any) -> tuple[Any, ...]:
    """Return the plain types of a hint without None, such as ``(float, Literal)``."""
    return tuple(typing.get_origin(kind) or kind for kind, _ in _parts(hint) if kind is not types.NoneType)


def item_hint(hint: Any) -> Any:
    """Return the hint of what a list holds, and any other hint as it is.

    Example:
        >>> item_hint(tuple[float, ...]), item_hint(int)
        (<class 'float'>, <class 'int'>)
    """
    ((kind, _), *others) = _parts(hint)
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple and not others else hint


def _bounds(meta: Meta) -> list[str]:
    most = None if meta.le is not None and meta.le >= FAR else meta.le  # said to those who pass it
    limits = (("of at least", meta.ge), ("above", meta.gt), ("below", meta.lt), ("at most", most))
    return [f"{words} {limit:g}" for words, limit in limits if limit is not None]


def choices(hint: Any) -> list[str]:
    """Return the words of the ``Literal`` in a hint."""
    literals = [kind for kind, _ in _parts(hint) if typing.get_origin(kind) is Literal]
    return [choice for kind in literals for choice in typing.get_args(kind)]


def _parts(hint: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """The members of a union, each with the metadata that applies to it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return [(kind, (*inner, *arguments[1:])) for kind, inner in _parts(arguments[0])]
    if origin in (typing.Union, types.UnionType):
        return [part for argument in arguments for part in _parts(argument)]
    return [(hint, ())]


def shown(raw: Any) -> str:
    """Return a value for a sentence, shortened in the middle."""
    try:
        return SHORT.repr(raw)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"


def docstrings(record: type) -> dict[str, tuple[str, str]]:
    """Return the first paragraph below each field of a class and what follows it, each in one line."""
    helps: dict[str, tuple[str, str]] = {}
    for one in reversed(record.__mro__):
        helps |= _own_docstrings(one) if one is record or dataclasses.is_dataclass(one) else {}
    return helps


def _own_docstrings(record: type) -> dict[str, tuple[str, str]]:
    try:
        source = inspect.getsource(sys.modules[record.__module__])
    except OSError:  # a program that is shipped without sources has no help, but works
        return {}
    # Fields stand in front of methods: only they are parsed, since every command needs them before it answers.
    block = re.search(rf"^class {record.__name__}\b.*?(?=^(?:    )?(?:def |@)|^[^\s)]|\Z)", source, re.M | re.S)
    assert block is not None
    (body,) = (node.body for node in ast.parse(block[0]).body if isinstance(node, ast.ClassDef))
    helps = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                first, _, rest = text.partition("\n\n")
                helps[name] = " ".join(first.split()), " ".join(rest.split())
    return helps
