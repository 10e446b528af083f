"""Lines on the terminal: the one place where text that came from data, names and files meets it.

A label, a path or the name of a model may hold escape sequences, line breaks, marks that turn the direction of writing,
or halves of surrogate pairs. Printed as they are, they could move the cursor, retitle the window, or show a line that
gradless never wrote. So each character that is not printable is shown as Python writes it in a string, and nothing in
a table is read as rich's markup.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

PLAIN = str.maketrans({"\u27e6": "[[", "\u27e7": "]]"})
"""Brackets around what is scored, for streams that may lack them."""
SPACES = ("Zs",)  # spaces of other scripts are not "printable" for Python, but do no harm


def escaped(text: object) -> str:
    r"""Return a text with its control, format and surrogate characters written out.

    Example:
        >>> print(escaped("red \x1b[31m alert\nsecond line"))
        red \x1b[31m alert\nsecond line
    """
    whole = str(text)
    return whole if whole.isprintable() else "".join(map(_shown, whole))


def _shown(letter: str) -> str:
    harmless = letter.isprintable() or unicodedata.category(letter) in SPACES
    return letter if harmless else letter.encode("unicode_escape").decode()


def sentence(text: object) -> str:
    """Return a text, such as the message of another library, in one escaped line."""
    return escaped(" ".join(str(text).split()))


def say(line: object = "", *, err: bool = False) -> None:
    """Print one line, escaped; what the encoding of the stream lacks is written out too.

    A stream that nobody reads any more (``| head``) takes the rest in silence: a run does not end for it.
    """
    stream: Any = sys.stderr if err else sys.stdout
    if stream is None:  # closed by whoever started us
        return
    text, encoding = escaped(line), getattr(stream, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(PLAIN)
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def live(*, err: bool = False) -> bool:
    """Return whether lines go to a terminal, which can show tables in colour and bars."""
    stream = sys.stderr if err else sys.stdout
    return stream is not None and stream.isatty()


def cell(text: object, style: str = "") -> Text:
    """Return an escaped text for a table of rich, which would read ``[red]`` in a string as a colour."""
    from rich.text import Text

    return Text(escaped(text), style)
