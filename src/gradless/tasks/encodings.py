"""Encodings of a user's own text files: what names one, lines that are decoded, and signs that it is another one."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import Final

from gradless.errors import BadInput
from gradless.system.typed import SHORT
from gradless.tasks.files import listed

MARKS: Final = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""
ABOUT: Final = {"utf-8": "utf-8", "cp1252": "cp1252 (western European Windows)", "utf-16": "utf-16"}
"""Encodings to try, and how they are told."""
CONTROLS: Final = re.compile("[\x80-\x9f]")
"""No text has them; Windows has letters, quotes and dashes at these bytes."""
WINDOWS: Final = {
    **dict.fromkeys(("iso8859-1", "iso8859-15"), "cp1252"),
    **{"iso8859-2": "cp1250", "iso8859-5": "cp1251", "iso8859-7": "cp1253", "iso8859-9": "cp1254"},
    **{"iso8859-8": "cp1255", "iso8859-6": "cp1256", "iso8859-13": "cp1257"},
}
"""What Windows writes where an ISO encoding is expected."""


def encoding_of(name: str) -> str:
    """Return the name of a text encoding that Python knows.

    Raises:
        BadInput: there is none of that name.
    """
    try:
        b"    ".decode(name, "ignore")  # refuses what Python calls an encoding and is none of text, such as hex
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise BadInput(f"unknown encoding {SHORT.repr(name)}: give one such as utf-8, cp1252 or utf-16") from None


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Tell in one sentence why a file cannot be read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{name} is a damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror or error}") from error


def decoded(name: str, data: io.BufferedReader, encoding: str, notes: list[str]) -> Iterator[str]:
    """Yield the lines of a file with their ends; ``notes`` gets a warning if they look like another encoding.

    Raises:
        BadInput: no text of that encoding, or no whole gzip file; with the line.
    """
    number = 0
    wrapper = io.TextIOWrapper(data, encoding=encoding, newline="")
    watched, first = _single_byte(encoding), True
    try:
        with readable(name):
            for text in wrapper:
                number += 1
                if "\0" in text:
                    raise BadInput(f"{name}, line {number} holds a zero byte: {_zero_fix(encoding)}")
                if watched and not text.isascii():
                    doubt = _doubt(text, encoding, first=first)
                    watched, first = not doubt, False
                    notes += [f"warning: line {number} {doubt}"] if doubt else []
                yield text
    except UnicodeError as error:
        # All lines of the bytes before these have been yielded, but for one that may have begun there.
        ahead = error.object[: error.start].count(b"\n") if isinstance(error, UnicodeDecodeError) else 0
        shown = encoding.removesuffix("-sig")
        numbers = _undecodable(data, shown) or [number + ahead + 1]
        problem = ("line", f"this is no {shown} text: {_fix(shown)}")
        raise BadInput(f"{name}, {listed({problem: numbers}, len(numbers))}") from None
    finally:
        with contextlib.suppress(ValueError):  # the file may be closed already
            wrapper.detach()  # whoever opened the file closes it


def _undecodable(data: io.BufferedReader, encoding: str) -> list[int]:
    """Return the lines that an encoding in which lines end as in ASCII cannot read; none of another, or of a pipe."""
    numbers: list[int] = []
    if "16" in encoding or "32" in encoding or not data.seekable():
        return numbers
    data.seek(0)
    for number, line in enumerate(data, start=1):
        try:
            line.decode(encoding)
        except UnicodeError:
            numbers.append(number)
    return numbers


def _wide(encoding: str) -> bool:
    return encoding.startswith(("utf-16", "utf-32"))


def _fix(failed: str) -> str:
    """Return what to do about text that one encoding cannot read; that one is not among what is recommended."""
    others = [name for name in ABOUT if name != failed and not (name == "utf-16" and _wide(failed))]
    first = "convert it to UTF-8, or " if failed == "utf-8" else ""
    return f"{first}give its encoding, such as --encoding {' or '.join(ABOUT[name] for name in others[:2])}"


def _zero_fix(encoding: str) -> str:
    return "take it out" + ("" if _wide(encoding) else ", or give --encoding utf-16 if the file is of that")


def _single_byte(encoding: str) -> bool:
    return len(b"\xe4".decode(encoding, "ignore")) == 1


def _doubt(text: str, encoding: str, *, first: bool) -> str:
    """Return why a line of a single-byte encoding, which reads almost anything, is of another one; mostly "".

    Args:
        text: a line that is not ASCII.
        encoding: of it.
        first: whether it is the first such line, which hardly is UTF-8 by accident.
    """
    if first:
        with contextlib.suppress(UnicodeError):
            text.encode(encoding).decode("utf-8")
            return f"is UTF-8, and is read as {encoding}: leave out --encoding"
    control = CONTROLS.search(text)
    if control is None:
        return ""
    windows = WINDOWS.get(encoding)
    looks = (
        f"looks like {windows} (Windows): give --encoding {windows}" if windows else "is of another: give --encoding"
    )
    return f"holds the control character U+{ord(control[0]):04X} when read as {encoding}, so the file {looks}"
