"""Reward functions that gradless brings, under the names that the command line has for them.

Each is a function in TRL's form (`gradless.rewards.functions`), so `trl.GRPOTrainer` takes it as well. Those that
compare a completion with the right answer find it in the first of the columns `REFERENCES`, as in data sets for TRL; a
row whose reference is missing has no reward.
"""

from __future__ import annotations

import collections
import functools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, whole
from gradless.rewards.functions import Answers, RewardFunction, parameters
from gradless.tasks.answer_tags import answer_tag, completion_text
from gradless.tasks.answers import normalize, word_f1
from gradless.tasks.arithmetic import arithmetic
from gradless.tasks.countdown import countdown

REFERENCES: Final = ("answers", "answer", "solution", "label")
"""Columns with the right answers: a list of accepted texts, or SQuAD's ``{"text": [...]}``, or one text or number."""
NUMBER: Final = re.compile(
    r"(?P<sign>(?<![\w)])-)?"  # not that of "7-3"
    r"(?P<decimal>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?"
    r"(?:/(?P<denominator>[0-9]+))?"
)
LONGEST_NUMBER: Final = 1000  # characters; what is longer is not read


class BuiltIn(NamedTuple):
    """A reward of a name."""

    reward: RewardFunction
    """The reward function; with `argument`, what makes it of that text."""
    about: str
    """What it rewards, in a line."""
    argument: str = ""
    """What follows the name and a colon, such as ``REGEX``; of a ``FILE`` the content is handed over."""
    one_of: tuple[str, ...] = ()
    """Columns of which the data needs one."""
    unbounded: bool = False
    """Whether a call may take for ever, so that it needs a process of its own; rows of gradless alone."""
    prepare: Callable[[], object] | None = None
    """Imports what the reward needs, when it is loaded and not within the time of its first call."""

    def problem(self) -> str:
        """Return what is wrong with a plugin's row, as the end of a sentence; empty if nothing is."""
        if self.unbounded:
            return "as unbounded, but a plugin's functions run in this process: leave that out"
        try:
            if not self.argument:
                parameters("the function", self.reward)
        except BadInput as error:
            return f"with a function that cannot be used ({error})"
        return "" if callable(self.reward) else "without a function: give one"


def references(columns: Mapping[str, Sequence[Any]]) -> list[tuple[str, ...]]:
    """Return the accepted answers of each row, from the first of the columns `REFERENCES`; empty where there are none.

    Raises:
        BadInput: there is no such column.

    Example:
        >>> references({"answer": ["4", None], "label": ["a", "b"]})
        [('4',), ()]
    """
    name = next((name for name in REFERENCES if name in columns), None)
    if name is None:
        raise BadInput(no_reference("the reward", REFERENCES, columns))
    return [tuple(_accepted(one)) for one in columns[name]]


def no_reference(title: str, one_of: Sequence[str], columns: Iterable[str]) -> str:
    """Return the sentence about data without any of the columns that a reward compares with."""
    known = ", ".join(sorted(map(str, columns))) or "none"
    return f"{title} needs a column called {' or '.join(one_of)}: rename the right one (columns: {known})"


def _accepted(value: Any) -> Iterable[str]:
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return _accepted(value.get("text"))
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (str(value),)
    return (str(one) for one in value if one is not None)


def exact_match(completions: Sequence[Any], **columns: Any) -> Answers:
    """Return 1.0 where a completion equals an accepted answer in SQuAD's normal form, else 0.0.

    Example:
        >>> exact_match(["The Beatles!", "no idea", "x"], answer=["beatles", "beatles", None])
        [1.0, 0.0, None]
    """
    return [
        float(normalize(completion_text(one)) in set(map(normalize, accepted))) if accepted else None
        for one, accepted in zip(completions, references(columns), strict=True)
    ]


def token_f1(completions: Sequence[Any], **columns: Any) -> Answers:
    """Return the best F1 of words with an accepted answer, in [0, 1] (SQuAD, arXiv 1606.05250).

    Example:
        >>> token_f1(["a red fox"], answers=[["fox", "red foxes"]])
        [0.6666666666666666]
    """
    return [
        max(word_f1(completion_text(one), answer) for answer in accepted) if accepted else None
        for one, accepted in zip(completions, references(columns), strict=True)
    ]


def number_equal(completions: Sequence[Any], **columns: Any) -> Answers:
    """Return 1.0 where the last number of a completion equals the last number of an accepted answer, else 0.0.

    Numbers are compared as fractions, without rounding. With the package math-verify (``gradless[rewards]``) a
    completion also counts where that takes it for equal, such as a formula in LaTeX. A row whose answers cannot be
    read has no reward.

    Example:
        >>> number_equal(["4 + 4 = 8.0", "so it is 1,000", "none"], answer=["8", "10 #### 1000", "3"])
        [1.0, 1.0, 0.0]
    """
    equal = _verifier()
    return [
        _number_reward(completion_text(one), accepted, equal)
        for one, accepted in zip(completions, references(columns), strict=True)
    ]


Verifier = Callable[[str, str], bool | None]


def _number_reward(completion: str, accepted: Sequence[str], equal: Verifier) -> float | None:
    numbers = {last_number(answer) for answer in accepted} - {None}
    if last_number(completion) in numbers:
        return 1.0
    verdicts = [equal(answer, completion) for answer in accepted]
    known = bool(numbers) or any(verdict is not None for verdict in verdicts)
    return float(any(verdicts)) if known else None


@functools.cache
def _verifier() -> Verifier:
    """Return math-verify as ``equal(answer, completion)``: None if it cannot read the answer, or is not installed."""
    try:
        from math_verify import parse, verify
    except ImportError:
        return lambda *_: None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of its timeouts, of which ours takes the place

    def equal(answer: str, completion: str) -> bool | None:
        gold = parse(answer, parsing_timeout=None) or parse(f"${answer}$", parsing_timeout=None)
        if not gold:
            return None
        return bool(verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None))

    return equal


def last_number(words: str) -> Fraction | None:
    """Return the last number of a text, exactly; commas between thousands, exponents and ``a/b`` are read.

    Example:
        >>> last_number("from -3 to 1,250.5."), last_number("3/4"), last_number("none")
        (Fraction(2501, 2), Fraction(3, 4), None)
    """
    last = next(iter(collections.deque(NUMBER.finditer(words.replace("\u2212", "-")), maxlen=1)), None)
    if last is None or len(last[0]) > LONGEST_NUMBER or (last["denominator"] and not int(last["denominator"])):
        return None
    number = Fraction((last["decimal"].replace(",", "")) + (last["exponent"] or "")) / int(last["denominator"] or 1)
    return -number if last["sign"] else number


def matches(pattern: str) -> RewardFunction:
    """Return a reward that is 1.0 where a completion, without space around it, matches a regular expression as a whole.

    ``.`` matches line breaks too.

    Raises:
        BadInput: it is no regular expression.

    Example:
        >>> matches("<answer>.*</answer>")(completions=[" <answer>4</answer>", "4"])
        [1.0, 0.0]
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(f"{pattern!r} is no regular expression ({error}): correct the pattern") from None

    def reward(completions: Sequence[Any], **_: Any) -> Answers:
        return [float(compiled.fullmatch(completion_text(one).strip()) is not None) for one in completions]

    return reward


def valid_json(schema: str) -> RewardFunction:
    """Return a reward that is 1.0 where a completion is JSON, nothing else, that a JSON schema allows.

    Needs jsonschema (``gradless[rewards]``). References to other documents are refused, never fetched.

    Args:
        schema: the text of the schema.

    Raises:
        BadInput: it is no JSON schema.
    """
    import jsonschema
    import referencing

    try:
        parsed = json.loads(schema)
        kind = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
        kind.check_schema(parsed, format_checker=kind.FORMAT_CHECKER)  # regular expressions in it are checked too
    except (ValueError, RecursionError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", error)
        raise BadInput(f"the file is no JSON schema ({reason}): correct it") from None
    # A registry of one's own: the default one fetches what a schema refers to.
    validator = kind(parsed, registry=referencing.Registry())

    def allowed(completion: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(completion, parse_constant=_no_constant)))
        except referencing.exceptions.Unresolvable as error:
            raise BadInput(f"the JSON schema refers to {error.ref}, which is not in it: put it below $defs") from None
        except (ValueError, RecursionError):
            return False

    def reward(completions: Sequence[Any], **_: Any) -> Answers:
        return [float(allowed(completion_text(one))) for one in completions]

    return reward


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def near_length(characters: str) -> RewardFunction:
    """Return a reward that is 1.0 at a number of characters, and elsewhere the smaller length divided by the larger.

    Raises:
        BadInput: it is no whole number above 0.

    Example:
        >>> near_length("4")(completions=["four", "ab", "12345678", ""])
        [1.0, 0.5, 0.5, 0.0]
    """
    number = int(characters) if re.fullmatch("[0-9]{1,9}", characters) else characters
    target = whole("the length", number, least=1, most=10**6)

    def reward(completions: Sequence[Any], **_: Any) -> Answers:
        lengths = [len(completion_text(one)) for one in completions]
        return [min(one, target) / max(one, target) for one in lengths]

    return reward


BUILTIN: Final[dict[str, BuiltIn]] = {
    "exact_match": BuiltIn(exact_match, "the text of an accepted answer, in SQuAD's normal form", one_of=REFERENCES),
    "token_f1": BuiltIn(token_f1, "words shared with an accepted answer (F1)", one_of=REFERENCES),
    "number_equal": BuiltIn(
        number_equal,
        "its last number is the answer's; formulas with math-verify",
        one_of=REFERENCES,
        unbounded=True,
        prepare=_verifier,
    ),
    "format": BuiltIn(matches, "matches a regular expression as a whole", "REGEX", unbounded=True),
    "json_schema": BuiltIn(valid_json, "is JSON that the schema in a file allows", "FILE", unbounded=True),
    "length": BuiltIn(near_length, "is about N characters long", "N"),
    "answer_tag": BuiltIn(answer_tag, "how much of <answer>NUMBER</answer> it has"),
    "arithmetic": BuiltIn(arithmetic, "answer_tag, and the right number in it (column answer)"),
    "countdown": BuiltIn(countdown, "reaches a target with each number once (columns nums, target)"),
}
"""Every built-in reward by name."""
