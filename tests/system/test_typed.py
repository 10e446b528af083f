"""Settings are checked by the annotation of their field, and refused with one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from msgspec import Meta

from gradless.errors import BadInput
from gradless.system import typed
from gradless.system.typed import Amount, Count, Flag, Names, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Example:
    """A record with a field of every kind."""

    steps: Count = 10
    """Updates of the weights.

    More is better."""
    warmup: Amount = 0
    lr: Positive | Literal["auto"] | None = None
    decay: NotNegative = 0.0
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    schedule: Literal["constant", "linear"] = "constant"
    method: Annotated[str, Names("method", "methods:METHODS")] = "mezo"
    model: Annotated[str, Names("model", closed=False)] = "any"
    freeze: Annotated[tuple[str, ...], Flag("--frozen")] = ()
    seeds: tuple[int, ...] = ()
    quiet: bool = False
    options: dict[str, Any] | None = None
    labels: str | dict[str, str] = ""


@pytest.mark.parametrize(
    ("name", "raw", "sentence"),
    [
        ("steps", "ten", "steps is 'ten': give a whole number of at least 1"),
        ("steps", 0, "steps is 0: give a whole number of at least 1"),
        ("steps", 2.0, "steps is 2.0: give a whole number of at least 1"),
        ("steps", True, "steps is True: give a whole number of at least 1"),
        ("steps", None, "steps is None: give a whole number of at least 1"),
        ("steps", 10**12, "steps is 1000000000000: give a number of at most 1000000000"),
        ("warmup", -1, "warmup is -1: give a whole number of at least 0"),
        ("lr", "fast", "lr is 'fast': give a finite number above 0 or auto"),
        ("lr", float("nan"), "lr is nan: give a finite number above 0 or auto"),
        ("lr", float("inf"), "lr is inf: give a finite number above 0 or auto"),
        ("lr", True, "lr is True: give a finite number above 0 or auto"),
        ("decay", float("-inf"), "decay is -inf: give a finite number of at least 0"),
        ("decay", 10**400, "give a number of at most"),
        ("share", 1.0, "share is 1.0: give a finite number of at least 0 and below 1"),
        ("schedule", "linaer", "unknown schedule 'linaer': did you mean 'linear'? (known: constant, linear)"),
        ("schedule", 3, "schedule is 3: give constant or linear"),
        ("method", "mezzo", "unknown method 'mezzo': did you mean 'mezo'?"),
        ("method", 1, "method is 1: give text"),
        ("freeze", "embed", "freeze is 'embed': give a list of texts"),
        ("freeze", ["embed", 1], "freeze is ['embed', 1]: give a list of texts"),
        ("seeds", [1.5], "seeds is [1.5]: give a list of whole numbers"),
        ("quiet", 1, "quiet is 1: give true or false"),
        ("options", [], "options is []: give a table"),
        ("labels", {"0": 1}, "labels is {'0': 1}: give text or a table of texts"),
        ("stepz", 3, "unknown setting 'stepz': did you mean 'steps'?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(name, raw, sentence):
    with pytest.raises(BadInput) as caught:
        typed.table({name: raw}, Example)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_integer_that_python_does_not_write_is_refused_too():
    with pytest.raises(BadInput, match="decay is a number of thousands of digits: give a number of at most"):
        typed.table({"decay": 10**5000}, Example)


def test_what_fits_is_converted():
    raw = {"steps": 3, "lr": "auto", "freeze": ["a", "b"], "method": "lozo", "model": "mine", "options": {"x": [1]}}
    assert typed.table(raw, Example) == {**raw, "freeze": ("a", "b")}
    assert isinstance(typed.table({"lr": 1}, Example)["lr"], int), "hashes of runs are of the text"
    assert isinstance(typed.value("lr", 1, Positive), float)
    assert typed.value("lr", np.float64(0.5), Positive) == 0.5
    typed.check(Example(lr=np.float64(0.5), freeze=("a",)))
    with pytest.raises(BadInput, match="steps is -1"):
        typed.check(Example(steps=-1))


def test_a_field_says_all_about_its_option():
    steps, freeze = (typed.settings(Example)[name] for name in ("steps", "freeze"))
    assert (steps.help, steps.default, steps.types) == ("Updates of the weights.", 10, (int,))
    assert freeze.metadata(Flag) == Flag("--frozen")
    assert steps.metadata(Flag) is None
    assert typed.choices(typed.settings(Example)["lr"].hint) == ["auto"]


def test_files_are_read_or_refused(tmp_path):
    for name, text, sentence in (
        ("a.toml", "steps = = 1", "is not TOML"),
        ("a.json", "[1]", "holds no settings"),
        ("b.json", "{", "is not JSON"),
        ("c.toml", None, "cannot be read"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=sentence):
            typed.load(tmp_path / name)
    (tmp_path / "d.toml").write_bytes(b"\xff")
    with pytest.raises(BadInput, match="is not TOML"):
        typed.load(tmp_path / "d.toml")
    with pytest.raises(BadInput, match=r"^a: b: wrong$"), typed.within("a"), typed.within("b"):
        raise BadInput("wrong")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"lr": NaN}', "NaN is no number"),
        ('{"lr": -Infinity}', "-Infinity is no number"),
        ('{"lr": 1e999}', "1e999 is no number"),
        ('{"lr": 1, "lr": 2}', "the key 'lr' occurs twice"),
        ("[" * 5000, "nested too deeply"),
        ('{"lr": %s}' % ("9" * 5000), "a number of thousands of digits"),
        ("", "Expecting value"),
        ("[]", "holds no settings"),
    ],
)
def test_json_that_is_none_is_refused_with_its_file(tmp_path, text, reason):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match=f"a.json .*{reason}"):
        typed.load(tmp_path / "a.json")


def test_toml_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "a.toml").write_text(f"a = {'[' * 5000}")
    with pytest.raises(BadInput, match="nested too deeply"):
        typed.load(tmp_path / "a.toml")


@pytest.mark.parametrize("odd", ["half \ud800", "nul \0", ["x", "\udfff"], {"\0": 1}, {"a": [{"b": float("nan")}]}])
def test_what_no_file_or_library_can_hold_is_refused_wherever_it_is_nested(odd):
    with pytest.raises(BadInput, match=r"no text in UTF-8|give a finite number"):
        typed.value("options", odd, Any)


def test_upper_ends_are_told_to_those_who_pass_them():
    for raw, hint, sentence in (
        (10**12, typed.Few, "give a number of at most 1000000"),
        (0, typed.Few, "give a whole number of at least 1"),
        (2000, typed.Processes, "give a number of at most 1024"),
        (10**400, typed.Positive, "give a number of at most 1.79769e"),
        (-1, typed.Seed, "give a whole number of at least 0"),
        (2**63, typed.Seed, "give a number of at most 9223372036854775807"),
    ):
        with pytest.raises(BadInput, match=sentence):
            typed.value("n", raw, hint)
