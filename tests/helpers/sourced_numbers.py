"""Numbers on pages that look measured, and whether the section that they stand in names a file that holds them.

What is checked: README and all pages but the log. Blocks of code, generated regions (``<!-- fields: ... -->``), inline
code, targets of links and versions are passed over. A number looks measured if it has a ±, a decimal point, a percent
sign, or stands before "times" or "x". The section (from a heading to the next) has to name a file of
``benchmarks/results``, or the passage is on the list of `ALLOWED` with a reason: a setting, a shape, a bound that is
computed, a number that a paper published. That the file holds the number is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import NamedTuple

RESULT_REGION = re.compile(r"<!-- file: benchmarks/results/(\S+) -->.*?<!-- end -->", re.S)
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.S | re.M)
REGION = re.compile(r"<!-- (?:fields|file): .*?<!-- end -->", re.S)
HEADING = re.compile(r"^#{1,6} ", re.M)
PASSED_OVER = re.compile(
    r"`[^`\n]+`"  # code
    r"|\]\([^)]*\)"  # the target of a link
    r"|<https?:[^>]*>|https?://\S+"
    r"|\b(?:arXiv|Python|torch|transformers|numpy|numba|TRL|peft|ByzFL|ByzPy|Triton) v?\d+(?:\.\d+)+"
    r"|\b(?:TLS|wheel `\w+`) \d+\.\d+|\bApache-\d\.\d"
    r"|\b\d+\.\d+\.\d+\b"  # versions
    r"|\bv\d+\.\d+\b"
    r"|\b\d{4}\.\d{4,5}\b",  # arXiv
)
MEASURED = re.compile(
    r"± ?\d"
    r"|(?<![\w.])[+-]?\d[\d,]*\.\d+(?:e[+-]?\d+)?"
    r"|\b\d[\d,]*(?:\.\d+)? ?%"
    r"|\b\d[\d,]*(?:\.\d+)? (?:times|x)\b(?! \d)",
)
NAMED = re.compile(r"[\w*.-]+\.(?:jsonl|json|md|txt|toml)\b")


ALLOWED = {
    "docs/how-to/memory.md: gradless: models/llama-8b needs at least": "what a command prints, computed from headers",
    "docs/how-to/reward.md: is that of training; 0 is greedy": "a default",
    "docs/how-to/reward.md: `--pass-reward` (1.0)": "a default, and the level of intervals",
    "docs/how-to/rewards.md: 0.1 for any other expression": "a reward by definition",
    "docs/how-to/robust-groups.md: with momentum (the recipe's 0.99)": "a setting",
    "docs/how-to/robust-groups.md: of what a fine grid finds": "bounds that test_line_search.py asserts",
    "docs/reference/measured.md: Intervals of one run are 95 %": "the level of intervals",
    "docs/reference/measured.md: numbers may differ by 5 %": "a tolerance of a test",
    "docs/reference/optimizer.md: A tie, up to 2 %": "a threshold of the program",
}
"""Passages without a file: page and words of the paragraph, and why they need none."""


class Unsourced(NamedTuple):
    """A number without a file."""

    page: str
    heading: str
    number: str
    around: str

    def __str__(self) -> str:
        return f"{self.page}, {self.heading}: {self.number} in '{self.around}': name its file, or remove it"


def sections(text: str) -> Iterable[tuple[str, str]]:
    """Yield heading and text of each section, without blocks of code and generated regions."""
    plain = FENCE.sub("", REGION.sub("", RESULT_REGION.sub(r"`\1`", text)))
    starts = [0, *(match.start() for match in HEADING.finditer(plain)), len(plain)]
    for start, end in pairwise(starts):
        part = plain[start:end]
        yield part.partition("\n")[0].lstrip("# ") if part.startswith("#") else "", part


def files_named(text: str, known: Iterable[str]) -> set[str]:
    """Return the files of results that a text names; a ``*`` stands for anything."""
    names = set(NAMED.findall(text)) | set(re.findall(r"`([\w*.-]+\*)`", text))
    return {file for file in known for name in names if fnmatchcase(file, name)}


def unsourced(page: str, text: str, known: Iterable[str], allowed: Mapping[str, str] | None = None) -> list[Unsourced]:
    """Return the numbers of a page that no file is named for.

    Args:
        page: its path, for the answer.
        text: of the page, in Markdown.
        known: names of the files of results.
        allowed: passages that need no file, by page and words in them (``page: words``), with the reason.
    """
    files = list(known)
    words = [key.partition(": ")[2] for key in allowed or {} if key.partition(": ")[0] == page]
    listed = []
    for heading, part in sections(text):
        if files_named(part, files):
            continue
        for paragraph in re.split(r"\n\s*\n|\n(?=[-*|] )|\n(?=\d+\. )", part):
            if any(one in " ".join(paragraph.split()) or one == f"# {heading}" for one in words):
                continue
            plain = PASSED_OVER.sub(" ", paragraph)
            for match in MEASURED.finditer(plain):
                around = " ".join(plain[max(0, match.start() - 40) : match.end() + 30].split())
                listed.append(Unsourced(page, heading, match[0], around))
    return listed
