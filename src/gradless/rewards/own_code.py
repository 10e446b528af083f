"""The user's own reward functions: a file or a module is imported, and a function of it is looked up."""

from __future__ import annotations

import functools
import importlib
import site
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from gradless.errors import BadInput, nearest
from gradless.plugins.imports import explained, package_sha256, run_file
from gradless.rewards.builtin import BUILTIN
from gradless.rewards.functions import Function, RewardFunction, called, parameters, titled


class Source(NamedTuple):
    """Where a reward function comes from: what its process is told."""

    reward: str
    """The name of the reward, as it was chosen."""
    kind: Literal["built-in", "file", "module"]
    key: str
    """Name of the built-in, absolute path of the file, or dotted name of the module."""
    name: str = ""
    """Of the function in it."""
    text: str = ""
    """The argument of a built-in, or what its file or the user's held when it was read, once."""
    sha256: str = ""
    """Of that file."""

    @property
    def title(self) -> str:
        """The function in a sentence."""
        return titled(self.reward)


def load_source(source: Source) -> Function:
    """Import what a source names, to run it in this process; the file of several functions runs once.

    Raises:
        BadInput: the import fails, there is no function of that name, or it takes other arguments.
    """
    if source.kind == "built-in":
        return function_of(source.reward, _built_in_function(source), sha256=source.sha256)
    with explained(source.title, source.key):
        if source.kind == "module":
            module = importlib.import_module(source.key)
            file, sha256 = getattr(module, "__file__", None) or "", package_sha256(module)
        else:
            module = _run_once(source.key, source.text)
            file, sha256 = source.key, source.sha256
    if hasattr(module, source.name):
        return function_of(source.reward, getattr(module, source.name), file, sha256)
    names = sorted(name for name, one in vars(module).items() if callable(one) and not name.startswith("_"))
    near = nearest(source.name, names)
    hint = f"did you mean '{near}'?" if near else f"name one of its functions ({', '.join(names) or 'there is none'})"
    where = Path(file).name if source.kind == "file" else source.key
    raise BadInput(f"{source.title} does not exist, for {where} has no '{source.name}': {hint}")


def function_of(name: str, function: Any, file: str = "", sha256: str = "") -> Function:
    """Return a function of Python as one that can be asked.

    Args:
        name: of the reward.
        function: anything.
        file: its file, in which exceptions are located; may be empty.
        sha256: of what it was loaded from.

    Raises:
        BadInput: it is no function, or takes other arguments.
    """
    run = functools.partial(called, titled(name), function, file=file)
    return Function(name, parameters(titled(name), function), run, sha256)


def _built_in_function(source: Source) -> RewardFunction:
    row = BUILTIN[source.key]
    if row.prepare is not None:
        row.prepare()
    if not row.argument:
        return row.reward
    try:
        function: RewardFunction = row.reward(source.text)
    except ModuleNotFoundError as error:
        raise BadInput(f"{source.title} needs '{error.name}': pip install 'gradless[rewards]'") from None
    except BadInput as error:
        raise BadInput(f"{source.title} cannot be used: {error}") from None
    return function


@functools.cache
def _run_once(file: str, text: str) -> ModuleType:
    """Return the module of a file, which may import its neighbours."""
    _make_importable(Path(file).parent)
    return run_file("gradless_reward", file, text)


def _make_importable(folder: Path) -> None:
    """Add a folder to where Python looks for modules: after its own library, before what is installed."""
    if str(folder) in sys.path:
        return
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    position = next((index for index, path in enumerate(sys.path) if path in installed), len(sys.path))
    sys.path.insert(position, str(folder))
