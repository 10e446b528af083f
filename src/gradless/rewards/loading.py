"""Names on the command line, and functions of Python, become `Rewards`."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gradless import plugins
from gradless.errors import BadInput, real, unknown
from gradless.rewards.builtin import BUILTIN, no_reference
from gradless.rewards.functions import Function, RewardFunction, titled
from gradless.rewards.own_code import Source, function_of, load_source
from gradless.rewards.process import RewardProcess
from gradless.rewards.weighted import Rewards
from gradless.system import terminal

OWN: Final = "your own function is FILE.py:NAME or MODULE:NAME"
MOST_SECONDS: Final = 1e9  # that a timer takes
MOST_BYTES: Final = 10**7
"""Of a file of the user's."""


def load(
    names: str | RewardFunction | Sequence[str | RewardFunction],
    weights: Sequence[float] = (),
    *,
    timeout: float | None = 60.0,
    columns: Iterable[str] | None = None,
    say: Callable[[str], object] = terminal.say,
) -> Rewards:
    """Return reward functions by name, checked, with their weights.

    Functions of Python run in this process, and so do built-in ones whose time is bounded; the others share a process
    of their own (`RewardProcess`), which gets the columns as JSON.

    Args:
        names: each is a built-in (`BUILTIN`, as ``format:REGEX`` where it takes an argument), ``FILE.py:NAME``,
            ``MODULE:NAME``, or a function.
        weights: one for each; 1 by default.
        timeout: seconds that a call in the other process may take; None: for ever.
        columns: of the data, to check what the functions need; None: that is checked when they are called.
        say: takes a sentence, once for each kind of failure.

    Raises:
        BadInput: there is no such function, its import fails, it takes other arguments, or a column is missing.
    """
    chosen = [names] if isinstance(names, str) or callable(names) else list(names)
    if not chosen:
        raise BadInput(f"no reward is named: choose one of {', '.join(sorted(BUILTIN))}; {OWN}")
    if len(weights) not in (0, len(chosen)):
        raise BadInput(f"{len(weights)} weights for {len(chosen)} rewards: give one weight for each, in the same order")
    factors = [real("the weight of a reward", one) for one in weights] or [1.0] * len(chosen)
    limit = None if timeout is None else min(real("the timeout of a reward", timeout, above=0), MOST_SECONDS)
    sources = {one: source_of(one) for one in chosen if isinstance(one, str)}
    apart = [one for one in sources.values() if one.kind != "built-in" or BUILTIN[one.key].unbounded]
    process = RewardProcess(apart, limit) if apart else None
    try:
        remote = process.functions if process is not None else {}
        functions = [
            _of_python(one) if not isinstance(one, str) else remote.get(one) or load_source(sources[one])
            for one in chosen
        ]
        if columns is not None:
            _check_columns(functions, sources, tuple(columns))
    except BaseException:
        if process is not None:
            process.close()
        raise
    return Rewards(functions, factors, say=say, close=process.close if process is not None else lambda: None)


def source_of(name: str) -> Source:
    """Return where the reward of a name comes from; files are read, and nothing is imported.

    Raises:
        BadInput: the name has another form, or there is no such file.
    """
    head, colon, argument = name.partition(":")
    plugins.find("rewards", head)
    if head in BUILTIN:
        return _built_in(name, head, argument if colon else None)
    path, colon, function = name.rpartition(":")
    if name.endswith(".py"):
        raise BadInput(f"{titled(name)} is a file alone: name a function in it, as {terminal.escaped(name)}:reward")
    is_file = path.endswith(".py")
    if not colon or not function.isidentifier():
        if is_file:
            raise BadInput(
                f"{titled(name)} names no function: give one of the file, as {terminal.escaped(path)}:reward"
            )
        raise BadInput(f"{unknown('reward', terminal.escaped(head), BUILTIN)}; {OWN}")
    if is_file:
        file, content = _read(titled(name), path)
        try:
            text = importlib.util.decode_source(content)
        except (SyntaxError, UnicodeDecodeError) as error:
            raise BadInput(f"{titled(name)} cannot be read ({terminal.sentence(error)}): save it as UTF-8") from None
        return Source(name, "file", str(file), function, text, hashlib.sha256(content).hexdigest())
    if not all(part.isidentifier() for part in path.split(".")):
        raise BadInput(f"{titled(name)} names no Python file: {OWN}")
    return Source(name, "module", path, function)


def _built_in(name: str, key: str, argument: str | None) -> Source:
    kind = BUILTIN[key].argument
    if kind and not argument:
        raise BadInput(f"{titled(name)} needs a {kind}: give {key}:{kind}")
    if not kind and argument is not None:
        raise BadInput(f"{titled(name)} takes nothing after the name: give {key}")
    if kind != "FILE":
        return Source(name, "built-in", key, text=argument or "")
    _, content = _read(titled(name), argument or "")
    try:
        return Source(name, "built-in", key, "", content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest())
    except UnicodeDecodeError:
        raise BadInput(f"{titled(name)} is not UTF-8: save the file in that encoding") from None


def _read(title: str, name: str) -> tuple[Path, bytes]:
    """Return the absolute path of a file of the user's, and its bytes."""
    try:
        path = Path(name).expanduser().resolve()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            problem = "is no file"
        elif status.st_size > MOST_BYTES:
            problem = f"is larger than {MOST_BYTES // 10**6} MB"
        else:
            return path, path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # also names with NUL, and homes of nobody
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise BadInput(f"{title} is in {terminal.escaped(name)}, which {problem}: give another file")


def _of_python(function: Any) -> Function:
    """Return a function of Python as one that can be asked, with the file that defines it, where there is one."""
    plain = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    name = str(getattr(plain, "__name__", type(plain).__name__))
    file = sha256 = ""
    try:
        file = inspect.getsourcefile(plain if inspect.isroutine(plain) else type(plain)) or ""
        sha256 = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (TypeError, OSError):  # built in, or typed into a notebook
        pass
    return function_of(name, function, file, sha256)


def _check_columns(functions: Sequence[Function], sources: Mapping[str, Source], columns: Collection[str]) -> None:
    for function in functions:
        function.parameters.check(function.title, columns)
    for source in sources.values():
        one_of = BUILTIN[source.key].one_of if source.kind == "built-in" else ()
        if one_of and not set(one_of) & set(columns):
            raise BadInput(no_reference(source.title, one_of, columns))
