"""Sentences of the command line in the words of Python: ``--label-column`` is ``label_column=``.

What is wrong with settings is said once, by code that both use, with the options of the command line. A function of
Python that takes them as arguments is decorated by `keywords`, so that its errors name the arguments.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from gradless.errors import BadInput
from gradless.system import typed
from gradless.system.typed import Flag, Record

P = ParamSpec("P")
T = TypeVar("T")
VALUE: Final = r"(?:auto|batch|full|lora|cpu|cuda|[a-z]+-?\d+)\b"
OPTION: Final = re.compile(
    rf"""gradless\ [a-z]+(?:\ [^,;:()]*)?                       # a command, which stays as it is
    |(?<![\w-])--set\ (?P<key>\w+)=(?P<value>[^\s,;]+)        # an option of a method
    |(?P<before>(?:leave\ out|lower|raise|another|for)\ )?
     (?<![\w-])(?P<option>--[a-z][a-z0-9-]*)
     (?:(?P<verb>\ (?:is|takes|needs)\b)
       |\ (?P<text>[A-Z]{{2,}}\b|"[^"]*"|'[^']*'|-?\d[\d.,e+-]*(?<![.,])|{VALUE})(?P<more>\ or\ {VALUE})?)?""",
    re.X,
)
"""An option with what may stand behind it; words that are values of some option count as one."""


def keywords(*records: type[Record], **others: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator: `BadInput` from the function names its arguments where it named options.

    Args:
        records: settings that the function takes by name beside its own arguments.
        others: options of the command line that have another name here, such as ``save="folder"``.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except BadInput as error:
                error.args = (spoken(str(error), names_of(function, *records) | _others(others)),)
                raise

        return called

    return decorate


def spoken(text: str, names: Mapping[str, str]) -> str:
    """Return a sentence with arguments in place of options; options that are no argument stay.

    Args:
        text: as the command line says it.
        names: option -> argument, such as ``label_column=`` or ``resume=True``.

    Example:
        >>> spoken("add --resume, or choose another --out", {"--resume": "resume=True", "--out": "out="})
        'add resume=True, or choose another out'
    """

    def argument(match: re.Match[str]) -> str:
        prefix = match["before"] or ""
        if match["key"] and "--set" in names:
            return f'{names["--set"]}{{"{match["key"]}": {match["value"]}}}'
        name = names.get(match["option"] or "")
        if name is None:
            return match[0]
        behind = match[0].removeprefix(prefix + match["option"])
        if not name.endswith("="):
            return prefix + name + behind
        if match["text"]:
            return prefix + name + _value(match["text"]) + _more(match["more"])
        return prefix + (name[:-1] if match["verb"] or prefix else name) + behind

    return OPTION.sub(argument, text)


def _value(text: str) -> str:
    return text if text.isupper() or text[0] in "\"'-0123456789" else f'"{text}"'


def _more(text: str | None) -> str:
    return f" or {_value(text.removeprefix(' or '))}" if text else ""


def names_of(function: Callable[..., Any], *records: type[Record]) -> dict[str, str]:
    """Return the options of the command line that are arguments of a function, see `spoken`."""
    names = {}
    for parameter in inspect.signature(function).parameters.values():
        switch = "bool" in str(parameter.annotation)
        names[f"--{parameter.name.replace('_', '-')}"] = f"{parameter.name}=" + ("True" if switch else "")
        if switch:
            names[f"--no-{parameter.name.replace('_', '-')}"] = f"{parameter.name}=False"
    for record in records:
        for setting in typed.settings(record).values():
            flag = setting.metadata(Flag)
            spelling = flag.spelling if flag and flag.spelling else f"--{setting.name.replace('_', '-')}"
            positive, _, negative = spelling.partition("/")
            names[positive] = f"{setting.name}=" + ("True" if negative else "")
            names |= {negative: f"{setting.name}=False"} if negative else {}
    return names


def _others(others: Mapping[str, str]) -> dict[str, str]:
    return {f"--{option.replace('_', '-')}": f"{name}=" for option, name in others.items()}
