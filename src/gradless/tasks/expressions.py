"""Arithmetic expressions of numbers, + - * / and brackets, parsed without ``eval`` and computed in exact fractions.

The parser keeps a stack of its own (Dijkstra 1961, the shunting-yard algorithm), so that deep brackets are no deep
recursion. It computes nothing: whoever calls checks the numbers first, and a long product costs nothing until then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, TypeAlias

from gradless.tasks.answer_tags import NUMBER, parse_answer

TOKEN: Final = re.compile(rf"\s*(?:(?P<number>{NUMBER})|(?P<sign>[-+*/()]))")
NEGATE: Final = "neg"
PRECEDENCE: Final = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, NEGATE: 3}

Postfix: TypeAlias = Sequence[Fraction | str]
"""An expression with each operator behind its operands."""


def parse(text: str) -> Postfix | None:
    """Return an expression in postfix order; None for a text that is none. Cost: linear in the text.

    Example:
        >>> [str(part) for part in parse("2 * (3 - 1)")]
        ['2', '3', '1', '-', '*']
        >>> parse("2 ** 3"), parse("2 (3)"), parse("")
        (None, None, None)
    """
    output: list[Fraction | str] = []
    waiting: list[str] = []
    operand_next = True
    position, end = 0, len(text.rstrip())
    while position < end:
        token = TOKEN.match(text, position, end)
        if token is None:
            return None
        position = token.end()
        number, sign = token["number"], token["sign"]
        if (number is not None or sign == "(") != operand_next and not (operand_next and sign in ("+", "-")):
            return None
        if number is not None:
            output.append(Fraction(number))
            operand_next = False
        elif sign == "(":
            waiting.append(sign)
        elif operand_next:  # a sign in front of a number or bracket
            waiting += [NEGATE] if sign == "-" else []
        elif sign == ")":
            while waiting and waiting[-1] != "(":
                output.append(waiting.pop())
            if not waiting:
                return None
            waiting.pop()
        else:
            while waiting and PRECEDENCE[waiting[-1]] >= PRECEDENCE[sign]:
                output.append(waiting.pop())
            waiting.append(sign)
            operand_next = True
    if operand_next or "(" in waiting:
        return None
    return output + waiting[::-1]


def numbers(expression: Postfix) -> list[Fraction]:
    """Return the numbers of an expression, in ascending order."""
    return sorted(part for part in expression if isinstance(part, Fraction))


def evaluate(expression: Postfix) -> Fraction | None:
    """Return the exact value; None where it divides by zero. Cost: that of the numbers' products, without a limit.

    Example:
        >>> evaluate(parse("1 / 3 + 2 / 3")), evaluate(parse("1 / (2 - 2)"))
        (Fraction(1, 1), None)
    """
    stack: list[Fraction] = []
    for part in expression:
        if isinstance(part, Fraction):
            stack.append(part)
        elif part == NEGATE:
            stack.append(-stack.pop())
        else:
            right, left = stack.pop(), stack.pop()
            if part == "/" and right == 0:
                return None
            stack.append(_apply(part, left, right))
    (value,) = stack
    return value


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right


def solves(expression: Postfix, available: Sequence[Fraction | int], target: Fraction | int) -> bool:
    """Return whether an expression has a value and holds each of the available numbers exactly once."""
    return numbers(expression) == sorted(map(Fraction, available)) and evaluate(expression) == target


def same_answer(text: str, accepted: str) -> bool:
    """Return whether the answer in a text has the numbers and the value of an accepted one, in whatever order.

    Example:
        >>> same_answer("<answer>(5 + 4) * 3</answer>", "<answer>3 * (4 + 5)</answer>")
        True
    """
    answers = parse_answer(text), parse_answer(accepted)
    mine, theirs = (parse(answer.content) if answer.closed else None for answer in answers)
    if mine is None or theirs is None:
        return False
    value = evaluate(theirs)
    return value is not None and solves(mine, numbers(theirs), value)
