"""Generated puzzles, the parser of expressions, and the verifier."""

from __future__ import annotations

import ast
import operator
from collections import Counter
from fractions import Fraction

import pytest

from gradless import rng, tasks
from gradless.errors import BadInput
from gradless.lm.metrics import solved
from gradless.tasks import expressions
from gradless.tasks.countdown import OPERATORS, SIZES, countdown, generate
from gradless.testing import check_task

PUZZLES = tasks.get("countdown")
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@pytest.fixture(scope="module")
def pools():
    return generate()


def by_python(text):
    """The value of an expression as Python's own parser reads it."""

    def value(node):
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        return SIGNS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(text, mode="eval").body)


def score(text, nums=(2, 3, 4), target=20):
    (reward,) = countdown([""], [text], nums=[list(nums)], target=[target])
    return reward


def tagged(expression):
    return f"<answer>{expression}</answer>"


def test_every_puzzle_is_solvable(pools):
    assert {split: len(rows) for split, rows in pools.items()} == SIZES
    for row in (row for rows in pools.values() for row in rows):
        assert by_python(row["solution"]) == row["target"]
        numbers = [node.value for node in ast.walk(ast.parse(row["solution"])) if isinstance(node, ast.Constant)]
        assert sorted(numbers) == sorted(row["nums"])
        assert len(numbers) in (3, 4)
        assert 10 <= row["target"] <= 99
        assert all(1 <= n <= 99 for n in numbers)


def test_the_verifier_takes_every_solution(pools):
    rows = pools["dev"]
    texts = [tagged(row["solution"]) for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("nums", "target", "solution")}
    assert countdown(texts, texts, **columns) == [1.0] * len(rows)
    assert solved(texts, [PUZZLES.render(row).answers for row in rows]) == 1.0
    columns["target"] = [row["target"] + 1 for row in rows]
    assert countdown(texts, texts, **columns) == [0.1] * len(rows)


def test_no_puzzle_is_in_two_splits(pools):
    keys = [{(row["target"], *sorted(row["nums"])) for row in rows} for rows in pools.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == sum(SIZES.values())


def test_puzzles_are_various(pools):
    """No order of the numbers, no target and no operator gives the solution away, and the splits are alike."""
    for rows in pools.values():
        n = len(rows)
        first = sum(row["solution"].replace("(", "").startswith(f"{row['nums'][0]} ") for row in rows) / n
        assert 0.2 < first < 0.45  # of 3 or 4 shuffled numbers, sometimes equal ones
        for sign in set(OPERATORS):
            assert 0.1 < sum(sign in row["solution"] for row in rows) / n < 0.9
        assert max(Counter(row["target"] for row in rows).values()) < 0.05 * n
        assert 0.4 < sum(len(row["nums"]) == 3 for row in rows) / n < 0.75


@pytest.mark.sweep
def test_the_stream_of_candidates_is_uniform_and_its_columns_are_independent():
    draws = rng.uniform(0, "task/countdown/0", (8192, 12))
    cells = 16
    for column in range(12):
        counts = (draws[:, column] * cells).long().bincount(minlength=cells).double()
        assert float(((counts - 512) ** 2 / 512).sum()) < 55  # chi-square with 15 degrees: 1e-6
    correlation = (draws - 0.5).T @ (draws - 0.5) / 8192 * 12
    assert float((correlation - correlation.diag().diag()).abs().max()) < 6 / 8192**0.5


def test_the_rows_are_the_same_everywhere():
    splits = tasks.load(PUZZLES, data=None, num_train=10, num_dev=10, num_test=10, seed=0)
    assert splits.fingerprint == "b83d80a7a01f7d68613088f1ecd124523840a0d882dd4253efffb9f61d620840"


def test_too_many_rows_are_refused():
    with pytest.raises(BadInput, match="asked for 9000 train rows, but its generator has 8192: lower"):
        tasks.load(PUZZLES, data=None, num_train=9000, num_dev=1, num_test=1, seed=0)


def test_promises_of_a_task(pools):
    check_task(PUZZLES, rows=pools["dev"][:20])


@pytest.mark.parametrize(
    "text",
    ["(2 + 3) * 4", "4*(3+2)", "+4 * -(-2 - 3)", " ( ( 2 ) + 3 ) * 4 ", "(3 - -2) * 4", "(2.0+3)*4"],
)
def test_right(text):
    assert score(tagged(text)) == 1.0


def test_fractions_are_exact():
    assert score(tagged("8 / (3 - 8 / 3)"), [3, 3, 8, 8], 24) == 1.0
    assert score(tagged("1 / 3 * 3 * 10"), [1, 3, 3, 10], 10) == 1.0
    assert score(tagged("100000000 / 3 * 3"), [3, 3, 100000000], 100000000) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "2 + 3 + 4",  # another value
        "5 * 4",  # a number that is not there
        "20",
        "(2 + 3) * 4 * 4 / 4",  # a number three times
        "(2 + 3) * 2 * 2",
        "(2 - 2) / (3 - 3)",
        "4 / (2 - 2)",
        "2 / (3 - 3) * 4",
        "*".join(["999999999"] * 20_000),  # which is not computed
    ],
)
def test_well_formed_but_wrong(text):
    assert score(tagged(text)) == 0.1
    assert score(text) == score(f"<answer>{text}") == 0.0


def test_a_division_by_zero_with_the_right_numbers():
    assert score(tagged("4 / (2 - 2)"), [2, 2, 4], 4) == 0.1


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "()", "(", ")", "((2 + 3) * 4", "(2 + 3)) * 4", "2 3 4", "(2 + 3) 4", "4 (2 + 3)", "2 + * 3", "2 +"),
        *(
            "* 2",
            "2 ** 3",
            "9 ** 9 ** 9",
            "2 // 3",
            "2 % 3",
            "2^3",
            "(2 + 3) * 4 = 20",
            "(2 + 3) \u00d7 4",
            "\uff12 + 3",
            "٢+3",
        ),
        *("(2 + 3) * x", "__import__('os').system('true')", "2e9", "0x10", "1_0", "1234567890", "2.", ".5", "1.2.3"),
        *("2, 3", "[2]", "2\x003", "2; 3", "five", "²", "½"),
    ],
)
def test_no_expression(text):
    assert score(tagged(text)) == 0.0
    assert expressions.parse(text) is None


@pytest.mark.parametrize("depth", [10, 10_000])
def test_deep_brackets_and_many_signs(depth):
    assert score(tagged("(" * depth + "2 + 3" + ")" * depth + " * 4")) == 1.0
    assert score(tagged("(" * depth)) == score(tagged("(" * depth + "2" + ")" * (depth - 1))) == 0.0
    assert score(tagged("-" * (2 * depth) + "(2 + 3) * 4")) == 1.0
    assert score(tagged("1" + " + 1" * depth)) == 0.1


def test_the_parser_reads_as_python_does():
    """Random expressions, from the counter streams: the same value, or a division by zero in both."""
    for i in range(300):
        draws = iter(rng.uniform(0, f"test/expression/{i}", (64,)).tolist())

        def grown(depth, draws=draws):
            kind = int(next(draws) * 6)
            if depth == 0 or kind == 0:
                return str(int(next(draws) * 5))
            if kind == 1:
                return f"-{grown(depth - 1)}"
            if kind == 2:
                return f"({grown(depth - 1)})"
            return f"{grown(depth - 1)} {'+-*/'[int(next(draws) * 4)]} {grown(depth - 1)}"

        text = grown(4)
        parsed = expressions.parse(text)
        assert parsed is not None, text
        try:
            expected = by_python(text)
        except ZeroDivisionError:
            expected = None
        assert expressions.evaluate(parsed) == expected, text
