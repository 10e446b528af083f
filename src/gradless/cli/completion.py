"""Names for the shell to complete, known without importing what they are names of.

A key press must be answered at once, and importing torch takes a second. So the keys of the tables are read from the
text of the modules that hold them; a test compares them with the tables.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

import gradless

VARIABLE: Final = "_GRADLESS_COMPLETE"
SHELLS: Final[dict[str, tuple[type[ShellComplete], str]]] = {
    "bash": (BashComplete, "gradless completion bash > ~/.local/share/bash-completion/completions/gradless"),
    "zsh": (ZshComplete, "gradless completion zsh > ~/.zfunc/_gradless  # with fpath+=~/.zfunc before compinit"),
    "fish": (FishComplete, "gradless completion fish > ~/.config/fish/completions/gradless.fish"),
}
"""What click makes of a shell, and where its script belongs."""


def script(shell: str, group: click.Command) -> str:
    """The script that a shell reads, with a note where to put it.

    Args:
        shell: a key of `SHELLS`.
        group: the command line.
    """
    kind, place = SHELLS[shell]
    maker = kind(group, {}, "gradless", VARIABLE)
    # Not source() of the subclass, which asks the shell for its version: it may not be this machine's.
    return f"{ShellComplete.source(maker).strip()}\n\n# Once: {place}\n# Then open a new shell.\n"


def keys(path: str, table: str, kind: str = "") -> tuple[str, ...]:
    """The keys of a dictionary that a module of the package writes out.

    Args:
        path: of the module, from the package's folder.
        table: name of the dictionary.
        kind: only values that are calls with ``kind=`` this word.
    """
    tree = ast.parse((Path(gradless.__file__).parent / path).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict) and any(isinstance(t, ast.Name) and t.id == table for t in targets):
            return tuple(
                key.value
                for key, entry in zip(value.keys, value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and (not kind or _is(entry, kind))
            )
    return ()


def _is(entry: ast.expr, kind: str) -> bool:
    return isinstance(entry, ast.Call) and any(
        word.arg == "kind" and isinstance(word.value, ast.Constant) and word.value.value == kind
        for word in entry.keywords
    )


def _models() -> tuple[str, ...]:
    return (*keys("assets.py", "ASSETS", "model"), *(f"tiny-{name}" for name in keys("tiny.py", "FAMILIES")))


def _tasks() -> tuple[str, ...]:
    from gradless import tasks  # which needs no torch

    return tuple(tasks.names())


def _rules() -> tuple[str, ...]:
    return keys("collab/aggregators.py", "AGGREGATORS") + keys("collab/aggregators.py", "MIXES")


NAMES: Final[dict[str, Callable[[], Sequence[str]]]] = {
    "model": _models,
    "task": _tasks,
    "method": lambda: keys("methods/__init__.py", "METHODS"),
    "scheme": lambda: keys("schemes.py", "SCHEMES"),
    "objective": lambda: ("accuracy", "f1", "gold", "lm", "option_ce"),  # whose table is not written out
    "recipe": lambda: keys("recipes.py", "RECIPES"),
    "algorithm": lambda: keys("collab/algorithms.py", "ALGORITHMS"),
    "attack": lambda: keys("collab/attacks.py", "ATTACKS"),
    "rule": _rules,
    "split": lambda: keys("collab/splits.py", "SPLITS"),
    "what": lambda: keys("jobs.py", "TABLES") + keys("recipes.py", "TABLES"),
    "dtype": lambda: ("float32", "bfloat16", "float16"),
    "device": lambda: ("cpu", "cuda", "mps"),
    "engine": lambda: ("stream", "dual", "in-place"),
    "schedule": lambda: ("constant", "linear", "cosine"),
    "mode": lambda: ("zero-shot", "icl", "calibrated"),
}
"""Completions by the name of an option or argument."""
PATHS: Final = ("model",)  # may be a file as well


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """The names of a kind, sorted."""
    return tuple(sorted(NAMES[kind]()))


class Named(click.types.StringParamType):
    """Text, of which the shell knows usual values."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin as the user did; files if none does and they would do."""
        before, joined = incomplete.rpartition("+")[::2] if self.kind == "rule" else ("", incomplete)
        head = f"{before}+" if before else ""
        found = [CompletionItem(head + name) for name in names(self.kind) if name.startswith(joined)]
        return found or ([CompletionItem(incomplete, type="file")] if self.kind in PATHS else [])


def teach(command: click.Command) -> None:
    """Give the options of a command, and of all below it, the names that they may take."""
    for param in command.params:
        if param.name is not None and isinstance(param.type, click.types.StringParamType):
            kind = param.name.removesuffix("s") if param.name == "engines" else param.name
            if kind in NAMES:
                param.type = Named(kind)
    below: dict[str, Any] = getattr(command, "commands", {})
    for inner in below.values():
        teach(inner)
