"""The tokens of an example: what `gradless.lm.encode` makes, and batches are made of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

Tokens: TypeAlias = tuple[int, ...]


class Encoded(NamedTuple):
    """The tokens of one example.

    ``contexts`` holds the tokens in front of an option: one entry if all options share them, else one for
    each option (truncation and merges at the boundary may differ). ``mask`` is the index of the mask in
    ``contexts[0]``, None for causal models. A generation example has its first answer as the only option.
    """

    prompt: Tokens
    contexts: tuple[Tokens, ...]
    options: tuple[Tokens, ...]
    mask: int | None
    correct: tuple[int, ...]
    answers: tuple[str, ...] = ()
    cut: bool = False
    """Whether some of the text is missing, because all of it is longer than the limit."""
    text: str = ""
    """The prompt as the row's task renders it."""
    columns: Mapping[str, Any] = MappingProxyType({})
    """The row itself, which reward functions are told (`gradless.rewards`)."""
    draw: str = ""
    """Names the random numbers by which text is sampled behind the prompt; empty: greedily."""

    @property
    def single(self) -> bool:
        """Whether one sequence scores every option: single tokens after the same context."""
        return len(self.contexts) == 1 and all(len(option) == 1 for option in self.options)

    @property
    def gold(self) -> int:
        """Index of the option that training aims at."""
        return self.correct[0]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence to score; the last token of an option is never read."""
        if self.mask is not None or not self.options:
            return len(self.prompt)
        return max(len(self.context(i)) + len(option) for i, option in enumerate(self.options)) - 1

    @property
    def sequences(self) -> int:
        """Number of sequences that score all options."""
        return 1 if self.single else max(1, len(self.options))

    def context(self, option: int) -> Tokens:
        """Return the tokens in front of an option."""
        return self.contexts[option if len(self.contexts) > 1 else 0]
