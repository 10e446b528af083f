"""What a reward function may take and answer, called in this process."""

from __future__ import annotations

import asyncio
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from gradless import rewards
from gradless.errors import BadInput
from gradless.rewards.functions import LONGEST, answers, parameters

TEXTS = (["p"] * 3, ["a", "bb", ""])


def ask(function, columns=(), prompts=TEXTS[0], completions=TEXTS[1], **keywords):
    """The rewards of a function, and the counts."""
    with rewards.load(function, say=lambda _: None, **keywords) as reward:
        return reward(prompts, completions, dict(columns)).tolist(), reward.counts


def lengths(completions, **_):
    return [len(one) for one in completions]


async def later(completions, **_):
    await asyncio.sleep(0)
    return lengths(completions)


class Judge:
    def __call__(self, prompts, completions):
        return lengths(completions)

    def judge(self, completions):
        return lengths(completions)


FUNCTIONS = [
    lengths,
    later,
    Judge(),
    Judge().judge,
    functools.partial(lambda factor, completions: [factor * one for one in lengths(completions)], 1),
    lambda prompts, completions: tuple(lengths(completions)),
    lambda prompts, completions, extra=3: np.array(lengths(completions), dtype=np.float32),
    lambda *, completions: torch.tensor(lengths(completions)),
    lambda completions: [torch.tensor(1.0), np.int64(2), False],
    lambda completions: [True, Fraction(4, 2), torch.zeros(1)],
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_function_may_be_and_return(function):
    assert ask(function)[0] == [1.0, 2.0, 0.0]


def test_a_function_gets_the_columns_that_it_names():
    calls = []

    def named(completions, answer, log_metric, other=7):
        log_metric("length", 1.0)
        calls.append((answer, other))
        return [0] * len(completions)

    def every(**columns):
        calls.append(sorted(columns))
        return [0] * len(columns["completions"])

    columns = {"answer": [1, 2, 3], "text": ["x"] * 3}
    ask([named, every], columns)
    assert calls == [([1, 2, 3], 7), ["answer", "completions", "log_extra", "log_metric", "prompts", "text"]]


def test_conversations_arrive_as_they_are():
    completions = [[{"role": "assistant", "content": "four"}]]
    assert ask(lambda completions: [len(completions[0][0]["content"])], (), [[{}]], completions)[0] == [4.0]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x, y: [], r"takes \(x, y\) and no completions: define it as def reward\("),
        (lambda completions, answr: [], r"needs 'answr', which is no column of the data \(did you mean 'answer'\?\)"),
        (lambda completions, /: [], "takes 'completions' by position alone"),
        (lambda prompts: [], r"takes \(prompts\) and no completions"),
        (lambda *all_of_it: [], r"takes \(\) and no completions"),
        (Judge, "is a class, not a function"),
        (torch.nn.Linear(1, 1), "is a model: write a function that asks it, and define it as"),
        (max, "does not say which arguments it takes"),
        (3, "is 3, not a function"),
    ],
)
def test_other_parameters_are_refused_when_it_is_loaded(function, sentence):
    with pytest.raises(BadInput, match=rf"^the reward .* {sentence}"):
        rewards.load([function], columns=["answer", "text"])


def test_columns_are_checked_when_they_are_known():
    with pytest.raises(BadInput, match="needs 'answer', which is no column"):
        ask(lambda completions, answer: [0] * 3, {"text": ["x"] * 3})
    with pytest.raises(BadInput, match="needs 'trainer_state', which this run does not have"):
        ask(lambda completions, trainer_state: [0] * 3)
    with pytest.raises(BadInput, match=r"a column is called 'completions'.*: rename the column"):
        ask(lengths, {"completions": ["x"] * 3})
    with pytest.raises(BadInput, match="text has length 2, and there are 3 completions"):
        ask(lengths, {"text": ["x"] * 2})
    with pytest.raises(BadInput, match="prompts has length 1"):
        ask(lengths, prompts=["p"])


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ([1.0], "returned 1 rewards for 3 completions: return one, or None, for each"),
        ([], "returned 0 rewards"),
        (None, "returned None: return a list"),
        (1.0, r"returned 1.0: return a list"),
        (np.float64(1), r"returned 1.0: return a list"),
        ("abc", "returned 'abc': return a list"),
        ({"a": 1, "b": 2, "c": 3}, "returned {.*}: return a list"),
        (["1", "2", "3"], "returned '1' as a reward: return numbers, or None"),
        ([[1.0], [1.0], [1.0]], r"returned \[1.0\] as a reward"),
        (np.ones((3, 2)), r"returned \[1.0, 1.0\] as a reward"),
        ([1j, 1, 1], "returned 1j as a reward"),
        (iter([1, 2, 3]), "returned <list_iterator object at .*>: return a list"),
    ],
)
def test_another_answer_is_refused_at_once(returned, sentence):
    with pytest.raises(BadInput, match=f"^the reward <lambda> {sentence}") as error:
        ask(lambda completions: returned)
    assert "\n" not in str(error.value)


def test_none_nan_and_infinity_are_no_reward():
    values = [None, math.nan, math.inf, -math.inf, 10**400, np.float32("nan"), torch.tensor(torch.inf), 0]
    assert answers("it", values, 8) == [None] * 7 + [0.0]
    told = []
    with rewards.load(lambda completions: [None, math.nan, 2], say=told.append) as reward:
        for _ in range(2):
            np.testing.assert_array_equal(reward(*TEXTS, {}), [np.nan, np.nan, 2.0])
    assert (reward.counts.missing, reward.counts.completions, reward.counts.calls) == (4, 6, 2)
    assert told == [
        "the reward <lambda> returned None, NaN or infinity for 2 of 3 completions (counted, said once)",
    ]


def test_a_sum_has_the_functions_that_have_a_reward():
    def some(completions):
        return [1, None, None]

    def others(completions):
        return [2, 2, None]

    sums, _ = ask([some, others], weights=[1.0, 0.5])
    np.testing.assert_array_equal(sums, [2.0, 1.0, np.nan])
    huge, _ = ask([lambda completions: [1e308] * 3] * 2, weights=[1.0, 1.0])
    assert np.isnan(huge).all()  # beyond the largest number


def test_a_call_that_fails_ranks_nobody_by_the_others():
    """Members of a population are rewarded one after the other: a service that is down for one would rank it last."""
    calls = iter(range(3))

    def service(completions):
        if next(calls) == 1:
            raise OSError("the service is down")
        return [5.0] * len(completions)

    with rewards.load([lambda completions: [1.0] * len(completions), service], say=lambda _: None) as reward:
        members = [float(reward([""], [""], {})[0]) for _ in range(3)]
    np.testing.assert_array_equal(members, [6.0, np.nan, 6.0])


def test_what_raises_is_counted_and_told_once_for_each_kind():
    calls, told = iter(range(5)), []

    def odd(completions):
        index = next(calls)
        if index == 4:
            return [1, 1, 1]
        raise [ValueError, ValueError, KeyError, SystemExit][index](f"at\n{'x' * 1000}")

    with rewards.load([odd, lengths], say=told.append) as reward:
        values = [reward(*TEXTS, {}) for _ in range(5)]
    np.testing.assert_array_equal(values, [[np.nan] * 3] * 4 + [[2.0, 3.0, 1.0]])
    assert (reward.counts.raised, reward.counts.calls, reward.counts.missing) == (4, 5, 0)
    assert [line.split(" (")[0] for line in told] == [
        "the reward odd raised ValueError",
        "the reward odd raised KeyError",
        "the reward odd raised SystemExit",
    ]
    assert all("\n" not in line and len(line) < LONGEST + 150 for line in told)
    assert "in line" in reward.counts.last_error


def test_an_exception_without_words_and_an_interrupt():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    def mute(completions):
        raise Mute

    def stopped(completions):
        raise KeyboardInterrupt

    assert ask(mute)[1].last_error.startswith("the reward mute raised Mute in line")
    with pytest.raises(KeyboardInterrupt):
        ask(stopped)


def test_an_asynchronous_function_inside_a_loop():
    async def notebook():
        return ask(later)[0]

    assert asyncio.run(notebook()) == [1.0, 2.0, 0.0]

    async def fails(completions):
        raise ValueError("late")

    assert "ValueError (late)" in ask(fails)[1].last_error


def test_no_completions_need_no_function():
    values, counts = ask(lambda completions: 1 / 0, (), [], [])
    assert (values, counts.calls, counts.raised) == ([], 0, 0)


def test_functions_have_names_and_hashes_of_their_files():
    with rewards.load([lengths, Judge(), "exact_match"]) as reward:
        assert reward.names == ("lengths", "Judge", "exact_match")
        assert reward.sources.keys() == {"lengths", "Judge"}
        assert len(reward.sources["lengths"]) == 64
    with rewards.load(eval("lambda completions: [1]")) as typed:
        assert typed.sources == {}


def test_parameters_of_what_takes_all():
    assert parameters("it", lambda completions, a, b=1, **rest: 0) == (None, ("completions", "a"))
