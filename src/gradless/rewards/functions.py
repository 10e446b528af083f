"""Reward functions in TRL's form: which arguments one takes, how it is called, and what its answer may be.

A reward function is ``reward(prompts, completions, **columns) -> list[float | None]``. It gets N prompts and N
completions, both texts or both conversations (lists of ``{"role", "content"}``), and the columns of the data with N
entries each. It returns a number for each completion, or None where it does not apply. `trl.GRPOTrainer` takes the same
functions.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, nearest, scalar
from gradless.plugins.imports import line_of
from gradless.system import terminal
from gradless.system.typed import shown as shortened

RewardFunction = Callable[..., Any]
Answers = list[float | None]
"""The rewards of N completions; None where there is none."""

FORM: Final = "define it as def reward(prompts, completions, **columns)"
TEXTS: Final = ("prompts", "completions")
STATE: Final = "trainer_state"
LOGGING: Final = ("log_extra", "log_metric")
OF_THE_RUN: Final = ("completion_ids", STATE, *LOGGING)
"""What TRL hands over beside the columns."""
LONGEST: Final = 200  # characters of what an exception says


class Raised(Exception):
    """A reward function raised, or its process ended, so this batch has no rewards of it.

    Args:
        kind: name of the exception's type.
        reason: in one line, after "the reward NAME".
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class TimedOut(Exception):
    """A reward function took longer than it may."""


class Parameters(NamedTuple):
    """The arguments of a reward function."""

    takes: tuple[str, ...] | None
    """Their names; None: any, by ``**``."""
    needs: tuple[str, ...]
    """Those without a default."""

    def check(self, title: str, columns: Collection[str]) -> None:
        """Refuse a function that needs what is no column.

        Raises:
            BadInput: naming the argument.
        """
        for name in self.needs:
            if name not in (*TEXTS, *OF_THE_RUN, *columns):
                raise BadInput(_no_column(title, name, columns))

    def arguments(
        self, title: str, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the function is called with.

        Raises:
            BadInput: a column that it needs is missing, or has the name of another argument.
        """
        if reserved := [name for name in TEXTS if name in columns]:
            raise BadInput(
                f"a column is called '{reserved[0]}', as is an argument of reward functions: rename the column"
            )
        every = {**dict.fromkeys(LOGGING, ignore), **columns, "prompts": prompts, "completions": completions}
        if absent := [name for name in self.needs if name not in every]:
            raise BadInput(_no_column(title, absent[0], columns))
        return every if self.takes is None else {name: every[name] for name in self.takes if name in every}


class Function(NamedTuple):
    """A reward function that can be asked."""

    name: str
    """As it was named; of a function of Python its own."""
    parameters: Parameters
    run: Callable[[Mapping[str, Any]], Answers]
    """Takes the arguments by name; raises `Raised`, `TimedOut` or `BadInput`."""
    sha256: str = ""
    """Of what it was loaded from; empty if that is gradless, or not known."""

    @property
    def title(self) -> str:
        """The function in a sentence."""
        return titled(self.name)


def titled(name: str) -> str:
    """Return a reward function in a sentence, in one line."""
    return f"the reward {terminal.escaped(name)}"


def parameters(title: str, function: Any) -> Parameters:
    """Return the arguments of a reward function, which is called by their names.

    Args:
        title: of the function, for sentences.
        function: anything.

    Raises:
        BadInput: it is no function, or does not take completions.
    """
    if inspect.isclass(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else _shown(function)
        raise BadInput(f"{title} is {what}, not a function: {FORM}")
    if hasattr(function, "state_dict"):
        raise BadInput(f"{title} is a model: write a function that asks it, and {FORM}")
    try:
        signature = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise BadInput(f"{title} does not say which arguments it takes: {FORM}") from None
    by_name = [one for one in signature if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    takes = None if any(one.kind is one.VAR_KEYWORD for one in signature) else tuple(one.name for one in by_name)
    fixed = next((one.name for one in signature if one.kind is one.POSITIONAL_ONLY and one.default is one.empty), None)
    if fixed is not None:
        raise BadInput(f"{title} takes '{fixed}' by position alone, and is called by names: {FORM}")
    needs = tuple(one.name for one in by_name if one.default is one.empty)
    if takes is not None and "completions" not in takes:
        raise BadInput(f"{title} takes ({', '.join(takes)}) and no completions: {FORM}")
    return Parameters(takes, needs)


def _no_column(title: str, name: str, columns: Collection[str]) -> str:
    if name in OF_THE_RUN:
        return f"{title} needs '{name}', which this run does not have: give it a default"
    names = sorted(map(str, columns))
    near = nearest(name, names)
    hint = f" (did you mean '{near}'?)" if near else ""
    return f"{title} needs '{name}', which is no column of the data{hint}: name one of {', '.join(names) or 'none'}"


def ignore(*_: Any, **__: Any) -> None:
    """Take what a function logs (`LOGGING`) where nobody reads it."""


def called(title: str, function: RewardFunction, arguments: Mapping[str, Any], *, file: str = "") -> Answers:
    """Call a reward function, wait if it is asynchronous, and return its answers.

    Args:
        title: of the function, for sentences.
        function: the function.
        arguments: by name.
        file: its file, in which an exception is located; may be empty.

    Raises:
        Raised: it raised, or ended the program.
        BadInput: it returned something else than a number or None for each completion.
    """
    count = len(arguments["completions"])  # before the call, which may change the list
    try:
        returned = function(**arguments)
        if inspect.isawaitable(returned):
            returned = _awaited(returned)
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        where = line_of(error, file) if file else ""
        raise Raised(type(error).__name__, f"raised {described(error)}{where}") from error
    return answers(title, returned, count)


def described(error: BaseException) -> str:
    """Return the type and the text of an exception in one line, cut."""
    try:
        text = terminal.sentence(error)
    except Exception:  # its __str__ raises
        text = ""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return type(error).__name__ + (f" ({short})" if short else "")


def _awaited(returned: Any) -> Any:
    """Return the result of a coroutine, in a thread of its own: this one may be inside a loop, as in a notebook."""
    import asyncio  # late: few functions need it

    outcome: list[Any] = []

    async def result() -> Any:
        return await returned

    def run() -> None:
        try:
            outcome.extend((True, asyncio.run(result())))
        except BaseException as error:
            outcome.extend((False, error))

    thread = threading.Thread(target=run, name="reward", daemon=True)
    thread.start()
    thread.join()
    if not outcome[0]:
        raise outcome[1]
    return outcome[1]


def answers(title: str, returned: Any, count: int) -> Answers:
    """Return rewards as floats, with None for NaN and infinity.

    Args:
        title: of the function, for sentences.
        returned: what it returned: a list, tuple, array or tensor of numbers, bools and None.
        count: completions.

    Raises:
        BadInput: another type, or another length.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, list | tuple):
        raise BadInput(f"{title} returned {_shown(values)}: return a list with a number or None for each completion")
    if len(values) != count:
        raise BadInput(f"{title} returned {len(values)} rewards for {count} completions: return one, or None, for each")
    return [_answer(title, one) for one in values]


def _answer(title: str, value: Any) -> float | None:
    plain = scalar(value)
    if plain is None:
        return None
    if not isinstance(plain, Real):
        raise BadInput(f"{title} returned {_shown(plain)} as a reward: return numbers, or None where there is none")
    try:
        number = float(plain)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    return terminal.sentence(shortened(value))
