"""What data prints to a terminal moves nothing on it, is read as no markup, and stays in its line."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradless
from gradless.system import tables, terminal
from gradless.system.progress import Reporter

HOSTILE = "\x1b]0;title\x07\x1b[31m[red]x[/red]\r\n\u202egpj.exe\u2066\ud800\x9b5m\u2028end\x00\x7f"
SHOWN = r"\x1b]0;title\x07\x1b[31m[red]x[/red]\r\n\u202egpj.exe\u2066\ud800\x9b5m\u2028end\x00\x7f"
SOURCE = Path(gradless.__file__).parent


class Screen(io.StringIO):
    """A terminal that keeps what it is sent."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def screen(monkeypatch):
    """Make standard output a terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Screen())
    return sys.stdout


def assert_harmless(text):
    assert "[red]x[/red]" in text
    assert not re.search("\x1b\\]0|\x1b\\[31m|\u202e|\x9b|\ud800|\u2028", text)


def test_what_is_not_printable_is_written_out():
    assert terminal.escaped(HOSTILE) == SHOWN
    assert terminal.escaped(SHOWN) == SHOWN


def test_texts_of_all_languages_stay_as_they_are():
    for text in (
        "naïve café",
        "\u65e5\u672c\u8a9e\u3000\u5168\u89d2",
        "\u05e9\u05dc\u05d5\u05dd",
        "🙂 ±",
        "a\u00a0b",
    ):
        assert terminal.escaped(text) == text


def test_a_sentence_is_one_line():
    assert terminal.sentence("two\n  lines\tof \x1b[1mtext\n") == r"two lines of \x1b[1mtext"


def test_a_line_of_a_reporter(capsys):
    Reporter().say(HOSTILE)
    Reporter(quiet=True).warn(HOSTILE)
    assert capsys.readouterr() == (SHOWN + "\n", SHOWN + "\n")


def test_a_job_on_a_terminal(monkeypatch):
    shown = screen(monkeypatch)
    reporter = Reporter()
    with reporter.job(HOSTILE, 2) as show:
        reporter.say(HOSTILE)
        show(1, HOSTILE)
    assert_harmless(shown.getvalue())


def test_a_table_on_a_terminal(monkeypatch):
    shown = screen(monkeypatch)
    tables.show(HOSTILE, [HOSTILE], [[HOSTILE]])
    assert_harmless(shown.getvalue())


def test_a_table_elsewhere_keeps_its_lines(capsys):
    tables.show("title", ["name"], [["two\nlines"]])
    assert capsys.readouterr().out == "title\nname\ntwo\\nlines\n"


def test_letters_that_a_terminal_lacks_are_written_out(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.say("naïve")
    assert stream.buffer.getvalue() == b"na\\xefve\n"


@pytest.mark.parametrize("end", ["| true", ">&-"])
def test_a_reader_that_has_gone_does_not_end_the_work(end):
    code = "import time; from gradless.system.terminal import say; time.sleep(0.5); [say('x' * 999) for _ in range(99)]"
    script = f'{{ "{sys.executable}" -c "{code}"; echo $? >&2; }} {end}'
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ}, timeout=60)
    assert run.stderr == "0\n"


def test_lines_are_printed_in_one_place():
    """Scripts, example files and the code of cards are no lines; doctests show what functions return."""
    for path in SOURCE.rglob("*.py"):
        code = "\n".join(line for line in path.read_text().splitlines() if not line.strip().startswith((">>>", "...")))
        printed = re.findall(
            r"(?<![\w.])print\(|click\.echo\(.*|\.print\((?!terminal|table(?:\(\))?\)|grid\)|examples\)|facts\)).*",
            code,
        )
        own = {
            "system/terminal.py": 1,
            "cli/doctor.py": 1,
            "cli/options.py": 1,
            "cli/recipe.py": 1,
            "lm/gguf.py": 2,
            "runs/usage.py": 3,
        }
        assert len(printed) == own.get(path.relative_to(SOURCE).as_posix(), 0), (path, printed)
