"""Options of commands from the fields of configurations: name, type, default and help are written at the field."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from gradless.cli import completion
from gradless.cli.options import PATH, is_first, options
from gradless.errors import BadInput
from gradless.runs.config_io import ESCAPED, spelling, unescape
from gradless.system import terminal, typed
from gradless.system.typed import Flag, Names, Record, Setting

AGAIN = "may be repeated."


def of_fields(
    record: type[Record],
    names: str,
    *,
    defaults: bool = True,
    told: bool = False,
    several: Collection[str] = (),
    **helps: str,
) -> Callable:
    """Return click options for fields of a configuration.

    Args:
        record: the configuration.
        names: of the fields, in the order of the options.
        defaults: whether options have the defaults of the fields; otherwise none, and none is required.
        told: whether the help names the defaults of the fields where options have none, since something else, such as
            a recipe, may set them.
        several: fields whose options may be repeated, besides those that hold a list or a table.
        helps: by name of a field, where an option means something else than the field says.
    """
    settings = [typed.settings(record)[name] for name in names.split()]
    if told:
        settings = [setting._replace(help=f"{setting.help}{_default(setting)}") for setting in settings]
    return options(*(_option(one, defaults, one.name in several, helps.get(one.name, "")) for one in settings))


def _default(setting: Setting) -> str:
    """Return a default as click shows it, if there is one to show."""
    empty = setting.default is None or setting.default is dataclasses.MISSING or setting.default == ()
    return "" if empty or callable(setting.default) else f"  [default: {setting.default}]"


def of_hint(name: str, hint: Any, text: str, default: Any = None) -> Callable:
    """Return the option of a value that is no field of a configuration, checked like one."""
    return _option(Setting(name, hint, default, text), True, False, "", alone=True)


def _option(setting: Setting, defaults: bool, several: bool, text: str, *, alone: bool = False) -> Callable:
    several = several or (bool({tuple, dict} & set(setting.types)) and str not in setting.types)
    about: dict[str, Any] = {"help": text or _help(setting, several) or None}
    if bool in setting.types:
        about |= {"default": setting.default if defaults else None}
    else:
        about |= {"type": Value(setting, alone=alone), "multiple": several}
        if defaults and not several:
            required = setting.default is dataclasses.MISSING
            about |= {"required": True} if required else {"default": setting.default, "show_default": True}
    return click.option(spelling(setting), setting.name, **about)


def _help(setting: Setting, several: bool) -> str:
    if not several:
        return setting.help
    text, mark, default = setting.help.partition("  [default")
    return (f"{text.removesuffix('.')}; {AGAIN}" if text else AGAIN.capitalize()) + mark + default


class Value(click.ParamType):
    """What a setting takes: a number, checked as in a file (`gradless.system.typed.value`), a path, or text.

    Text that is a name of a table is looked up when the configuration is resolved, which imports the table.

    Args:
        setting: its name and type.
        alone: whether it belongs to no configuration, which would refuse words that are none of the known ones.
    """

    def __init__(self, setting: Setting, *, alone: bool = False) -> None:
        self.setting, self.alone = setting, alone
        self.hint = typed.item_hint(setting.hint)
        self.numbers = [kind for kind in typed.plain_types(self.hint) if kind in (int, float)]
        words = typed.choices(setting.hint)
        self.name = {int: "integer", float: "float"}[self.numbers[0]] if self.numbers else "text"
        if self.numbers and words:
            self.name = "|".join(["number", *words])
        flag = setting.metadata(Flag)
        self.path = PATH if flag and flag.path else None
        if self.path is not None:
            self.name = self.path.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value in the setting's type."""
        if self.path is not None:
            return self.path.convert(value, param, ctx)
        for kind in self.numbers if isinstance(value, str) else ():
            with contextlib.suppress(ValueError):
                value = kind(value)
        try:
            if self.numbers or self.alone:
                return typed.value(self.setting.name, value, self.hint)
            typed.refuse_odd(self.setting.name, value)
        except BadInput as error:
            raise click.UsageError(str(error), ctx) from None  # which one process of a torchrun job reports
        return _escaped(value, self.setting.name, ctx) if self.setting.name in ESCAPED and ctx is not None else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return names that begin like ``incomplete``, or files."""
        if self.path is not None:
            return self.path.shell_complete(ctx, param, incomplete)
        return completion.items(self.setting.metadata(Names), incomplete, typed.choices(self.setting.hint))


def _escaped(text: Any, name: str, ctx: click.Context) -> Any:
    r"""Return a text with ``\n`` and ``\t`` as newline and tab if it was typed: shells keep two characters."""
    if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        return text  # files have escapes of their own
    plain = unescape(text)
    if plain != text and is_first("LOCAL_RANK"):
        terminal.say(f"--{name}: a backslash and n is a newline, and t a tab (two backslashes are one)", err=True)
    return plain
