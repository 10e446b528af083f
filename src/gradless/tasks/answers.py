"""How a free-text answer is compared with an accepted one: SQuAD's rules (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Final

ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
"""Also beside dashes and curly quotes, which are not in `NO_PUNCTUATION`."""
NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return SQuAD's normal form: lower case, no punctuation, no a / an / the, single spaces.

    Example:
        >>> normalize("The  Beat-les, (a band)")
        'beatles band'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def word_f1(answer: str, accepted: str) -> float:
    """Return the F1 of the words that two answers share, in [0, 1].

    Example:
        >>> word_f1("the red fox", "a fox")
        0.6666666666666666
    """
    mine, theirs = normalize(answer).split(), normalize(accepted).split()
    shared = (Counter(mine) & Counter(theirs)).total()
    # Where both are articles and punctuation only, SQuAD 1.1 and MeZO count 0 (SQuAD 2.0 would count 1).
    return 2 * shared / (len(mine) + len(theirs)) if shared else 0.0
