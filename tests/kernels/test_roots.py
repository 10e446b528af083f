"""Square roots are those of IEEE 754, on any processor."""

from __future__ import annotations

import math
import random
import re
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

import gradless
from gradless.kernels.roots import sqrt_


def nearest_root(value: float) -> float:
    """The float32 nearest to the root of a float32, from forty digits."""
    with localcontext() as context:
        context.prec = 40
        root = Fraction(Decimal(value).sqrt())
    guess = np.float32(float(root))
    around = [guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(np.inf))]
    return float(min(around, key=lambda one: abs(Fraction(float(one)) - root)))


def test_every_root_is_the_nearest_float():
    draw = random.Random(0)
    values = torch.tensor([draw.random() * 2.0 ** draw.randint(-126, 127) for _ in range(3000)])
    expected = [nearest_root(value) for value in values.tolist()]
    assert sqrt_(values).tolist() == expected


def test_the_tensor_itself_is_written_whatever_its_strides():
    values = torch.arange(12.0).reshape(3, 4)
    column = values[:, 1]
    assert sqrt_(column) is column
    assert values[:, 1].tolist() == [1.0, float(np.sqrt(np.float32(5))), 3.0]
    assert values[0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_numbers_without_a_root_become_nan_in_silence(recwarn):
    values = sqrt_(torch.tensor([-1.0, math.inf, math.nan, 0.0]))
    assert [math.isnan(value) for value in values.tolist()] == [True, False, True, False]
    assert not list(recwarn)


def test_rules_take_roots_from_nowhere_else():
    """MKL's, which torch calls, differ between processors, and fused operations of torch round as a processor can."""
    forbidden = re.compile(r"\.sqrt\(|\.sqrt_\(|rsqrt|lerp|addcmul|addcdiv")
    allowed = {"muon.py"}  # whose replay on another machine may differ, which its docstring says
    folder = Path(gradless.__file__).parent / "rules"
    lines = [
        f"{path.name}: {line.strip()}"
        for path in sorted(folder.glob("*.py"))
        if path.name not in allowed
        for line in path.read_text().splitlines()
        if forbidden.search(line.partition("#")[0]) and "math.sqrt" not in line
    ]
    assert lines == []
