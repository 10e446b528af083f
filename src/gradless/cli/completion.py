"""Names for the shell to complete, known without importing what they are names of.

A key press must be answered at once, and importing torch takes a second. So the keys of the tables are read from the
text of the modules that hold them; a test compares them with the tables.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

import gradless
from gradless.system.typed import Names

VARIABLE: Final = "_GRADLESS_COMPLETE"
SHELLS: Final[dict[str, tuple[type[ShellComplete], str]]] = {
    "bash": (BashComplete, "gradless completion bash > ~/.local/share/bash-completion/completions/gradless"),
    "zsh": (ZshComplete, "gradless completion zsh > ~/.zfunc/_gradless  # with fpath+=~/.zfunc before compinit"),
    "fish": (FishComplete, "gradless completion fish > ~/.config/fish/completions/gradless.fish"),
}
"""click's class for a shell, and where its script belongs."""


def script(shell: str, group: click.Command) -> str:
    """Return the script that a shell reads, with a note where to put it.

    Args:
        shell: a key of `SHELLS`.
        group: the command line.
    """
    kind, install = SHELLS[shell]
    # Not source() of the subclass, which asks the shell for its version: it may not be this machine's.
    source = ShellComplete.source(kind(group, {}, "gradless", VARIABLE))
    return f"{source.strip()}\n\n# Once: {install}\n# Then open a new shell.\n"


def keys(table: str, **having: str) -> tuple[str, ...]:
    """Return the entries of a tuple, or the keys of a dictionary, that a module of the package writes out.

    Args:
        table: ``module:TABLE`` below ``gradless``.
        having: only keys whose values are calls with these keyword arguments.
    """
    module, _, name = table.partition(":")
    path = Path(gradless.__file__).parent.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        match node:
            case ast.Assign(value=ast.Tuple(elts=keys)):
                return tuple(str(ast.literal_eval(key)) for key in keys)
            case ast.Assign(value=ast.Dict(keys, values)) | ast.AnnAssign(value=ast.Dict(keys, values)):
                pairs = [(key, entry) for key, entry in zip(keys, values, strict=True) if key is not None]
                return tuple(str(ast.literal_eval(key)) for key, entry in pairs if _has(entry, having))
    return ()


def _has(entry: ast.expr, having: dict[str, str]) -> bool:
    arguments = {one.arg: ast.unparse(one.value) for one in entry.keywords} if isinstance(entry, ast.Call) else {}
    return all(arguments.get(name) == repr(value) for name, value in having.items())


def _models() -> tuple[str, ...]:
    tiny = (f"tiny-{family}" for family in keys("lm.tiny_models:FAMILIES"))
    return (*keys("lm.assets:ASSETS", kind="model"), *tiny)


def _tasks() -> Sequence[str]:
    from gradless import tasks  # which needs no torch

    return tasks.names()


def _published() -> Sequence[str]:
    from gradless.runs import recipes  # likewise

    return [*recipes.recipes()]


TABLES: Final[dict[str, Callable[[], Sequence[str]]]] = {
    "model": _models,
    "task": _tasks,
    "objective": lambda: ("accuracy", "f1", "gold", "lm", "option_ce", "reward"),  # whose table is not written out
    "reward": lambda: keys("rewards.builtin:BUILTIN"),
    "rule": lambda: keys("collab.aggregators:AGGREGATORS") + keys("collab.aggregators:PRE_AGGREGATORS"),
    "recipe": lambda: keys("collab.recipes:RECIPES"),
    "published": _published,
    "list": lambda: keys("runs.jobs:TABLES") + keys("collab.recipes:TABLES"),
    "dtype": lambda: ("float32", "bfloat16", "float16"),
    "compute_dtype": lambda: ("auto", "float32", "bfloat16", "float16"),
    "device": lambda: ("cpu", "cuda", "mps"),
    "engine": lambda: ("auto", "stream", "dual", "in-place"),
    "tracker": lambda: (
        *("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"),
    ),
    "mode": lambda: ("zero-shot", "icl", "calibrated", "probe"),
}
"""Names by their kind, where they are not the keys of one table."""
PLUGIN_TABLES: Final = {
    "task": ("tasks",),
    "objective": ("objectives",),
    "reward": ("rewards",),
    "rule": ("aggregators", "pre_aggregators"),
}
"""Tables of `gradless.plugins` by kind of name, where the field does not say which."""
PATHS: Final = ("model",)  # may be a file as well


@functools.cache
def names(one: Names) -> tuple[str, ...]:
    """Return the names of a kind, sorted, with those that installed packages declare."""
    from gradless import plugins

    declared = PLUGIN_TABLES.get(one.kind) or tuple(filter(None, [plugins.table_of(one.table)]))
    own = TABLES[one.kind]() if one.kind in TABLES else keys(one.table)
    return tuple(sorted({*own, *(name for table in declared for name in plugins.installed(table))}))


def items(known: Names | None, incomplete: str, choices: Sequence[str] = ()) -> list[CompletionItem]:
    """Return names that begin like ``incomplete``; files if there is none and a file would do."""
    kind = known.kind if known else ""
    chain, plus, last = incomplete.rpartition("+") if kind == "rule" else ("", "", incomplete)
    fitting = [name for name in (names(known) if known else choices) if name.startswith(last)]
    if not fitting and kind in PATHS:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(chain + plus + name) for name in fitting]


class Named(click.types.StringParamType):
    """Text, of which the shell knows usual values."""

    def __init__(self, kind: str) -> None:
        self.known = Names(kind, "", closed=False)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return names that begin like ``incomplete``."""
        return items(self.known, incomplete)
