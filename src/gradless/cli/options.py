"""What the command line is made of: errors as one sentence, and settings from files."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradless.cli import ends
from gradless.errors import ELSEWHERE, BadInput, BrokenRanks, ReportedElsewhere, nearest, unknown
from gradless.system import terminal

if TYPE_CHECKING:
    from gradless.runs.config import TuneConfig

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP),
)
LONGEST = 160  # characters of another library's message in a sentence
EXTRAS = {
    **dict.fromkeys(("transformers", "peft", "accelerate", "tokenizers", "sklearn", "gguf", "huggingface_hub"), "lm"),
    **{
        "matplotlib": "plots",
        "datasets": "data",
        "pyarrow": "data",
        "PIL": "collab",
        "scipy": "bench",
        "tensorboard": "tensorboard",
    },
    **{"ray": "ray", "zenoh": "peers", "cryptography": "peers", "networkx": "collab"},
    **dict.fromkeys(("bitsandbytes", "torchao"), "quantised"),
    **dict.fromkeys(("math_verify", "jsonschema", "referencing"), "rewards"),
}
"""What installs a module that is missing."""


class UsablePath(click.Path):
    """A path at which the system can look, be there something or not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a `Path`; refuses an empty one, NUL, a circle of links, names too long, and folders closed to us."""
        path = super().convert(value, param, ctx)
        reason = "it is empty" if not os.fspath(value) else "it holds NUL" if "\0" in os.fspath(value) else ""
        try:
            os.stat("." if reason else path)
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = error.strerror or "the system refuses it"
        if reason:
            self.fail(f"the path {terminal.escaped(value)} cannot be used ({reason}): give another one", param, ctx)
        return path


PATH = UsablePath(path_type=Path)
FILE = UsablePath(path_type=Path, dir_okay=False)
FOLDER = UsablePath(path_type=Path, file_okay=False)


class Commands(click.Group):
    """Suggests the nearest command, and turns bad input into one sentence and exit code 2."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command by name."""
        unfinished = ctx.resilient_parsing or not args or args[0].startswith("-")
        if not unfinished and self.get_command(ctx, args[0]) is None:
            raise BadInput(unknown("command", args[0], self.commands))
        if args[:1] not in ([], ["tune"]) and "TORCHELASTIC_RUN_ID" in os.environ and not ctx.parent:
            raise BadInput(f"only tune runs in several processes: call 'gradless {args[0]}' without torchrun")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what was typed, and keep it for the sentence that says how to go on."""
        ctx.meta.setdefault(ends.ARGUMENTS, list(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error ends it with one sentence, and on a terminal with what to do next."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            return self._run(ctx)
        except SystemExit as end:
            if end.__context__ is not None:
                ends.stopped(ctx, end.__context__)
            raise
        except Exception as error:  # of which nobody has a sentence
            if not ends.waits(ctx):
                raise
            traceback.print_exc()
            ends.stopped(ctx, error)
            sys.exit(1)

    def _run(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong becomes a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if is_first("RANK"):
                _complain(": ".join(("interrupted", *map(str, stop.args))))
            sys.exit(1)
        except ReportedElsewhere:
            sys.exit(2)
        except BrokenRanks as error:
            _complain(error)
            sys.exit(1)
        except BadInput as error:
            _complain(error)
            sys.exit(2)
        except click.NoSuchOption as error:
            if is_first("LOCAL_RANK"):
                _complain(_no_such_option(error))
            sys.exit(2)
        except click.UsageError as error:
            help_ = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            if is_first("LOCAL_RANK"):
                _complain(f"{error.format_message().rstrip('.')}{help_}")
            sys.exit(2)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            _complain(f"'{error.name}' is not installed: pip install 'gradless[{EXTRAS[error.name]}]'")
            sys.exit(2)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            where = f" at {error.filename}" if error.filename else ""
            _complain(f"cannot write{where} ({error.strerror}): free space or choose another folder")
            sys.exit(1)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0][:LONGEST] or type(error).__name__
            _complain(f"out of memory ({reason}): lower --batch-size, or set --micro-batch-size")
            sys.exit(1)


def _no_such_option(error: click.NoSuchOption) -> str:
    """Return a sentence about an option that a command does not have, and what was meant by it."""
    command, path = (error.ctx.command, error.ctx.command_path) if error.ctx else (None, "gradless")
    known = {flag for one in (command.params if command else ()) for flag in (*one.opts, *one.secondary_opts)}
    name = error.option_name.lstrip("-")
    plain = name.replace("-", "_")
    near = nearest(plain, [flag[2:].replace("-", "_") for flag in sorted(known) if flag.startswith("--")])
    meant = f"--{near.replace('_', '-')}" if near else ""
    if "--set" in known and plain not in ELSEWHERE:
        from gradless.methods import METHODS

        if methods := [key for key, method in METHODS.items() if plain in method.options()]:
            meant = f"--set {plain}=... (of {', '.join(methods)})"
    return f"no option {error.option_name}{f': did you mean {meant}?' if meant else ''} (see {path} --help)"


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether the system, torch's allocator or a GPU had no memory left; torch has no class for all of them."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: " in text
        or "out of memory" in text
    )


def _complain(reason: object) -> None:
    """Print one line on stderr, whatever the reason holds."""
    terminal.say(f"gradless: {terminal.sentence(reason)}", err=True)


def is_first(variable: str) -> bool:
    """Whether this is the first (or only) process of a job, or of a machine's part of it."""
    return os.environ.get(variable, "0") == "0"


class SomeRepeat(click.Command):
    """A command some of whose options make a run for each of their values; it says which value of another counts."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and say which of several values counts."""
        with contextlib.suppress(click.UsageError):  # raised again below
            values, _, parameters = self.make_parser(ctx).parse_args(args=list(args))
            for option in dict.fromkeys(parameters):
                single = isinstance(option, click.Option) and not (option.multiple or option.is_flag or option.count)
                if single and parameters.count(option) > 1 and not ctx.resilient_parsing:
                    flag = max(option.opts, key=len)
                    terminal.say(f"{flag} takes one value: the last one, {values[option.name]}, counts", err=True)
        return super().parse_args(ctx, args)


class FromFile(click.Command):
    """A command whose options may come from the file behind ``--config``; those on the command line win."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the file first: its settings are defaults."""
        arguments: dict[str, Any] = {}
        if ctx.resilient_parsing:  # for the completion of a line that is not finished
            return super().parse_args(ctx, args)
        with contextlib.suppress(click.UsageError):  # raised again below
            arguments = self.make_parser(ctx).parse_args(args=list(args))[0]
        if arguments.get("cell") and not arguments.get("config"):
            raise BadInput("--cell chooses among the cells of a file: give the file with --config")
        if arguments.get("config") or arguments.get("resume"):
            load_plugins(ctx, arguments.get("plugins") or ())  # before names in a file are checked
        file, settings = arguments.get("config"), _held(arguments)
        if file or settings:
            from gradless.runs import config_io

            if file:
                held = config_io.read(Path(file), arguments.get("cell"))
                ctx.meta["gradless.by_hand"] = {*held} if config_io.is_by_hand(Path(file)) else set()
                settings |= held
            options = {**settings.pop("options", {}), **config_io.parse_options(arguments.get("options") or ())}
            ctx.meta["gradless.options"] = options  # merged one by one, and not list by list
            ctx.meta["gradless.recorded"] = settings.pop("plugins", {})
            values = {**settings.pop("own", {}), **settings}
            ctx.meta["gradless.task_name"] = values.get("name")  # of own files, which no option says
            ctx.default_map = {name: value for name, value in values.items() if value is not None}
        return super().parse_args(ctx, args)


def _held(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--resume`` takes from the run in ``--out`` as defaults.

    That is its number of steps, which may have been raised since it began, and, where the command names neither a
    model nor a file, all of its settings.

    Raises:
        BadInput: nothing says what to run.
    """
    if not arguments.get("resume") or not arguments.get("out"):
        return {}
    from gradless.runs import config_io

    path, named = Path(arguments["out"]) / "config.json", arguments.get("model") or arguments.get("config")
    if os.path.isfile(path):
        settings = config_io.read(path)
        return {"steps": settings.get("steps")} if named else settings
    if named:
        return {}
    raise BadInput(f"{path.parent} holds no run to continue (no config.json): give its --out, or all of its settings")


def load_plugins(ctx: click.Context, specs: Sequence[str]) -> None:
    """Load what ``--plugin`` names; in a torchrun job one process complains.

    Raises:
        BadInput: as `gradless.plugins.load`.
    """
    if ctx.resilient_parsing or not specs:  # a shell that completes a line runs nobody's code
        return
    from gradless import plugins

    try:
        ctx.meta["gradless.plugins"] = plugins.load(specs)
    except BadInput as error:
        raise error if is_first("LOCAL_RANK") else ReportedElsewhere(str(error)) from None


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    expose_value=False,
    callback=lambda ctx, parameter, specs: load_plugins(ctx, specs),
    metavar="FILE.py|MODULE",
    help="Methods, tasks and other parts of your own; may be repeated.",
)
"""``--plugin``, which is loaded before the command begins; the command itself gets no argument."""


cluster_option = click.option(
    "--on",
    metavar="CLUSTER",
    help="Make the runs on a Ray cluster: HOST:PORT, ray://HOST:PORT, auto (the one here), or ray (a new one here).",
)
"""``--on``, for runs that outgrow one machine."""

force_option = click.option("--force", is_flag=True, help="Go on where the memory here is too small for the model.")


def fitting(config: TuneConfig, force: bool, *, tunes: bool = True) -> TuneConfig:
    """Return a configuration whose model fits in memory, or whose user does not want to know.

    Raises:
        BadInput: as `gradless.cost.memory_guard.check`.
    """
    if not force:
        from gradless.cost import memory_guard

        memory_guard.check(config, tunes=tunes)
    return config


def note_unused(parts: Mapping[str, Iterable[str]]) -> None:
    """Say on stderr which plugins of the command line define nothing that a run names (`gradless.plugins.TABLES`)."""
    loaded = click.get_current_context().meta.get("gradless.plugins", [])
    if loaded and is_first("RANK"):
        from gradless import plugins

        if sentence := plugins.unused(loaded, plugins.used(parts)):
            terminal.say(sentence, err=True)


def need(extra: str, *modules: str) -> None:
    """Refuse at once what would fail after minutes of fetching for want of a module.

    Raises:
        BadInput: naming the extra that brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"'{module}' is not installed: pip install 'gradless[{extra}]'")


def options(*decorators: Callable) -> Callable:
    """Return several click decorators as one."""

    def wrap(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


def example(words: str, *, named: bool) -> Callable:
    """Return the option ``--example``, which prints a file of `gradless.cli.examples` and ends the command.

    Args:
        words: help of the option.
        named: whether it takes the name of a grid; otherwise the file is that of a run.
    """

    def show(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value in (None, False) or ctx.resilient_parsing:
            return
        from gradless.cli import examples

        click.echo(examples.grid(value) if named else examples.run(), nl=False)
        ctx.exit()

    how: dict[str, Any] = {"is_flag": False, "flag_value": "", "metavar": "[NAME]"} if named else {"is_flag": True}
    return click.option("--example", is_eager=True, expose_value=False, callback=show, help=words, **how)
