"""Rewards by name: which names there are, and what each bad one is told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gradless import rewards
from gradless.errors import BadInput
from gradless.rewards.loading import MOST_BYTES, source_of

ONE = "def one(completions, **columns):\n    return [1.0] * len(completions)\n"


def ask(names, completions=("x",), columns=(), **keywords):
    """The rewards by these names."""
    with rewards.load(names, say=lambda _: None, **keywords) as reward:
        return reward([""] * len(completions), list(completions), dict(columns)).tolist()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a file in the current folder, and return the name of its reward."""
    monkeypatch.chdir(tmp_path)

    def write(text=ONE, name="own.py", function="one"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"{name}:{function}"

    return write


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("exact_mach", "unknown reward 'exact_mach': did you mean 'exact_match'? (known: answer_tag, "),
        ("lenght:5", "unknown reward 'lenght': did you mean 'length'?"),
        ("", "unknown reward ''"),
        ("two\nlines:", r"unknown reward 'two\nlines'"),
        ("two\nlines.py:one", r"the reward two\nlines.py:one is in two\nlines.py, which cannot be read ("),
        (":", "unknown reward ''"),
        ("own.py", "the reward own.py is a file alone: name a function in it, as own.py:reward"),
        ("own.py:", "the reward own.py: names no function: give one of the file, as own.py:reward"),
        ("own.py:a.b", "the reward own.py:a.b names no function"),
        ("gone.py:one", "the reward gone.py:one is in "),
        ("folder.py:one", "is in folder.py, which is no file: give another file"),
        ("own\0.py:one", "which cannot be read (embedded null byte): give another file"),
        ("~nobody-at-all/own.py:one", "cannot be read ("),
        ("big.py:one", "big.py, which is larger than 10 MB: give another file"),
        ("latin.py:one", "the reward latin.py:one cannot be read ("),
        ("some/own:one", "the reward some/own:one names no Python file: your own function is FILE.py:NAME or"),
        ("format", "the reward format needs a REGEX: give format:REGEX"),
        ("format:", "the reward format: needs a REGEX: give format:REGEX"),
        ("json_schema", "the reward json_schema needs a FILE: give json_schema:FILE"),
        ("json_schema:gone.json", "the reward json_schema:gone.json is in gone.json, which cannot be read (No such"),
        ("json_schema:latin.py", "the reward json_schema:latin.py is not UTF-8: save the file in that encoding"),
        ("exact_match:x", "the reward exact_match:x takes nothing after the name: give exact_match"),
        ("length:x", "the reward length:x cannot be used: the length is 'x': give a whole number from 1 to 1000000"),
    ],
)
def test_a_name_that_is_none(own, tmp_path, name, sentence):
    own()
    (tmp_path / "folder.py").mkdir()
    own(b"# \xe9", "latin.py")
    with (tmp_path / "big.py").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(BadInput) as error:
        rewards.load(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"names": []}, "no reward is named: choose one of answer_tag, .*; your own function is FILE.py:NAME"),
        ({"weights": [1, 2, 3]}, "3 weights for 2 rewards: give one weight for each, in the same order"),
        ({"weights": [1]}, "1 weights for 2 rewards"),
        ({"weights": [1, float("nan")]}, "the weight of a reward is nan: give a finite number"),
        ({"weights": [1, "x"]}, "the weight of a reward is 'x': give a finite number"),
        ({"timeout": 0}, "the timeout of a reward is 0: give a finite number above 0"),
        ({"timeout": float("inf")}, "the timeout of a reward is inf"),
        ({"columns": ["text"]}, r"the reward exact_match needs a column called .* \(columns: text\)"),
    ],
)
def test_settings_that_cannot_be(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        rewards.load(**{"names": ["length:3", "exact_match"], **settings})


def test_weights_and_single_names():
    assert ask("length:4", ["four", "ab"]) == [1.0, 0.5]
    assert ask(["length:4", "exact_match"], ["four"], {"label": ["Four"]}, weights=[2, -0.5]) == [1.5]
    assert ask(["length:4", "length:4", lambda completions: [7]], ["ab"]) == [8.0]


def test_a_source_is_what_was_read(own):
    name = own("# coding: latin-1\n# \xe9\n".encode("latin-1") + ONE.encode())
    source = source_of(name)
    assert source.text == f"# coding: latin-1\n# \xe9\n{ONE}"
    assert source.sha256 == hashlib.sha256(Path("own.py").read_bytes()).hexdigest()
    assert (source.kind, source.name, source.title) == ("file", "one", "the reward own.py:one")
    assert source_of("os.path:join")[1:4] == ("module", "os.path", "join")
    assert source_of("format:a:b.py:c")[1:5] == ("built-in", "format", "", "a:b.py:c")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def ono(completions): pass", "has no 'one': did you mean 'ono'?"),
        ("x = 3", "own.py has no 'one': name one of its functions (there is none)"),
        ("one = 3", "the reward own.py:one is 3, not a function"),
        ("class one: pass", "the reward own.py:one is a class, not a function"),
        ("def one(x): pass", "the reward own.py:one takes (x) and no completions: define it as def reward("),
        ("def one(completions, answr): pass", "needs 'answr', which is no column of the data (did you mean 'answer'?)"),
        ("\n\n1 / 0", "the reward own.py:one fails with ZeroDivisionError (division by zero) in line 3: correct it"),
        ("def one(:", "the reward own.py:one fails with SyntaxError (invalid syntax) in line 1: correct it"),
        ("import nowhere_at_all", "the reward own.py:one needs 'nowhere_at_all' in line 1: install it"),
        ("import sys; sys.exit(2)", "the reward own.py:one ends the program in line 1 when it is imported"),
        ("import os; os._exit(3)", "the import of the rewards own.py:one ended its process with exit code 3: correct"),
    ],
)
def test_a_file_that_cannot_be(own, text, sentence):
    with pytest.raises(BadInput) as error:
        rewards.load(own(text), columns=["answer"])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.sweep
def test_a_module_that_cannot_be():
    with pytest.raises(BadInput, match="there is no module nowhere_at_all to import: install it, or give a file"):
        rewards.load("nowhere_at_all:one")
    with pytest.raises(BadInput, match=r"the reward os.path:joinn does not exist, for os.path has no 'joinn': did you"):
        rewards.load("os.path:joinn")


@pytest.mark.sweep
def test_an_import_that_hangs(own, monkeypatch):
    monkeypatch.setattr("gradless.rewards.process.IMPORT", 5.0)
    with pytest.raises(BadInput, match=r"the import of the rewards own.py:one took more than 5 s and was ended: corr"):
        rewards.load(own("while True: pass"), timeout=0.1)
