"""Rewards: functions that score completions, in TRL's form, by name or from Python, with weights.

>>> from gradless import rewards
>>> with rewards.load(["exact_match", "length:4"], weights=[1.0, 0.5]) as reward:
...     reward(["2 + 2 ="], ["four"], {"answer": ["Four"]}).tolist()
[1.5]
"""

from gradless.rewards.builtin import BUILTIN, BuiltIn, references
from gradless.rewards.loading import load
from gradless.rewards.weighted import Counts, Rewards

__all__ = ["BUILTIN", "BuiltIn", "Counts", "Rewards", "load", "references"]
