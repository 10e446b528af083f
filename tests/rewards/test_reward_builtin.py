"""Built-in rewards: known values, and what all of them promise."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest

from gradless import plugins, rewards
from gradless.errors import BadInput
from gradless.rewards.builtin import (
    BUILTIN,
    REFERENCES,
    BuiltIn,
    last_number,
    matches,
    near_length,
    number_equal,
    references,
    valid_json,
)
from gradless.rewards.functions import called, parameters
from gradless.runs.config import TuneConfig
from plugin_helpers import tables_as_before
from repository import ROOT

SCHEMA = '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'
# Of each built-in reward: its argument, a completion with the best reward, one with the worst, and their row.
CASES = {
    "exact_match": ("", "The Beatles!", "Stones", {"answers": ["Beatles", "Fab Four"]}),
    "token_f1": ("", "beatles", "Stones", {"answer": "the Beatles"}),
    "number_equal": ("", "2 + 2 = 4", "five", {"solution": "4.0"}),
    "format": (r"<a>.*</a>", " <a>1\n2</a>\n", "<a>1</a> so", {}),
    "json_schema": (SCHEMA, '{"a": 1}', '{"a": NaN}', {}),
    "length": ("4", "four", "", {}),
    "answer_tag": ("", "<answer>7</answer>", "7", {}),
    "arithmetic": ("", "<answer>7</answer>", "7", {"answer": 7}),
    "countdown": ("", "<answer>3 + 4</answer>", "7", {"nums": [3, 4], "target": 7}),
}
ODD = ["", " ", "\0", "\ud800", "\u0661\u06f2", "9" * 10**4, "-" * 10**4, "(" * 10**4, "1," * 10**4, "<answer>" * 10**3]
ODD += ["1e999", "1e99999999", "1/0", "[" * 10**5, '{"a": 1e999}', "NaN"]


@pytest.fixture(params=sorted(BUILTIN))
def case(request):
    """A reward that is ready to be called, and its case."""
    argument, best, worst, row = CASES[request.param]
    if request.param == "json_schema":
        pytest.importorskip("jsonschema")
    built_in = BUILTIN[request.param]
    assert bool(argument) == bool(built_in.argument)
    return (built_in.reward(argument) if argument else built_in.reward), best, worst, row


def call(function, completions, row):
    columns = {name: [value] * len(completions) for name, value in row.items()}
    return called("it", function, {"prompts": ["p"] * len(completions), "completions": completions, **columns})


def test_every_built_in_has_a_case():
    assert CASES.keys() == BUILTIN.keys()


def test_best_and_worst(case):
    function, best, worst, row = case
    assert call(function, [best, worst, best], row) == [1.0, 0.0, 1.0]


def test_conversations_are_worth_what_their_texts_are(case):
    function, best, worst, row = case
    talks = [[{"role": "assistant", "content": text}] for text in (best, worst)]
    assert call(function, talks, row) == [1.0, 0.0]


def test_odd_completions_have_rewards_from_0_to_1(case):
    function, _, _, row = case
    together = call(function, ODD, row)
    assert all(0.0 <= one <= 1.0 for one in together)
    assert together == [call(function, [text], row)[0] for text in ODD]  # a row does not depend on the others


def test_more_columns_do_no_harm(case):
    function, best, _, row = case
    assert call(function, [best], {"unrelated": 1, **row}) == [1.0]
    assert parameters("it", function).takes is None


@pytest.mark.parametrize("name", [name for name, row in BUILTIN.items() if row.one_of])
def test_references_stand_in_the_first_column_of_these(name):
    reward, right = BUILTIN[name].reward, CASES[name][1]
    accepted = next(iter(CASES[name][3].values()))
    for column in REFERENCES:
        assert call(reward, [right], {column: accepted}) == [1.0]
        assert call(reward, [right, right], {column: None}) == [None, None]
        assert call(reward, [right], {column: []}) == [None]
    with pytest.raises(BadInput, match=rf"the reward {name} needs a column called answers or .*columns: text"):
        rewards.load(name, columns=["text"])
    with pytest.raises(BadInput, match="needs a column called answers or answer or solution or label"):
        call(reward, [right], {"text": "x"})


def test_forms_of_references():
    rows = [["a", None, "b"], ("c",), "d", 4, None, {"text": ["e"], "answer_start": [3]}, []]
    assert references({"answers": rows, "label": [0] * 7}) == [
        *(("a", "b"), ("c",), ("d",), ("4",), (), ("e",), ()),
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 4.", 4),
        ("-3", -3),
        ("7-3", 3),
        ("x=-3", -3),
        ("f(2)-3", 3),
        ("\u22123", -3),
        ("$1,250.50", Fraction(2501, 2)),
        ("1,2", 2),
        ("1,2345", 2345),
        ("12,345,678", 12345678),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("2e3", 2000),
        ("5E-1", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("1/0", None),
        ("50%", 50),
        ("#### 72", 72),
        ("none", None),
        ("9" * 2000, None),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == number


def test_numbers_are_compared_exactly():
    assert number_equal(["0.3", "0.30000000000000004", "1e2"], answer=[0.3, 0.3, 100]) == [1.0, 0.0, 1.0]
    assert number_equal(["5", "6"], answers=[["4", "5"], ["4", "5"]]) == [1.0, 0.0]
    assert number_equal(["5"], answer=["none"]) in ([None], [0.0])  # math-verify reads words as symbols


def test_formulas_with_math_verify():
    pytest.importorskip("math_verify", reason="needs the extra rewards")
    values = number_equal([r"so \boxed{\frac{1}{2}}", "$1 + x$", "$x$"], answer=["0.5", "$x + 1$", "$y$"])
    assert values == [1.0, 1.0, 0.0]


def test_length_has_a_slope_on_both_sides():
    rewarded = near_length("10")(completions=["x" * n for n in (0, 1, 9, 10, 11, 20, 1000)])
    assert rewarded == [0.0, 0.1, 0.9, 1.0, 10 / 11, 0.5, 0.01]


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "9" * 5000, "", "\u0663", "4 "])
def test_a_length_is_a_whole_number(number):
    with pytest.raises(BadInput, match=r"the length is .*: give a whole number from 1"):
        near_length(number)


@pytest.mark.parametrize("pattern", ["(", "[", "a{3,2}", "(?<n>x)", "*"])
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(BadInput, match=re.escape(f"{pattern!r} is no regular expression (")):
        matches(pattern)


@pytest.mark.parametrize("schema", ["", "{", '{"type": "objct"}', "[]", "[" * 10**5, '"text"', '{"pattern": "("}'])
def test_a_schema_that_is_none(schema):
    pytest.importorskip("jsonschema")
    with pytest.raises(BadInput, match=r"the file is no JSON schema \(.+\): correct it"):
        valid_json(schema)


def test_json_is_all_that_a_completion_may_be():
    pytest.importorskip("jsonschema")
    texts = ['{"a": 1}', ' {"a": 1}\n', '```json\n{"a": 1}\n```', '{"a": 1} so', '{"a": "1"}', "[]", '{"a": 1']
    assert valid_json(SCHEMA)(completions=texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert valid_json("true")(completions=["1", "x"]) == [1.0, 0.0]
    local = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert valid_json(json.dumps(local))(completions=["[1]", '["1"]']) == [1.0, 0.0]


def test_a_schema_fetches_nothing(monkeypatch):
    pytest.importorskip("jsonschema")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("went to the network"))
    reward = valid_json('{"$ref": "http://example.invalid/schema.json"}')
    with pytest.raises(BadInput, match=r"refers to http://example.invalid/schema.json, which is not in it"):
        reward(completions=["1"])


def test_a_plugin_may_add_a_reward(tmp_path):
    def write(name, row):
        path = tmp_path / name
        path.write_text(
            "from gradless.rewards import BUILTIN, BuiltIn\n"
            f"def vowels(completions, **_): return [sum(c in 'aeiou' for c in one) for one in completions]\n{row}\n"
        )
        return path

    with tables_as_before():
        (plugin,) = plugins.load(write("own_reward.py", "BUILTIN['vowels'] = BuiltIn(vowels, 'vowels')"))
        with rewards.load("vowels") as reward:
            assert reward([""], ["banana"], {}).tolist() == [3.0]
        parts = TuneConfig(model="tiny-llama", task="arithmetic", method="es", reward=("vowels", "length:3")).parts()
        assert parts["rewards"] == ["vowels", "length"]
        assert plugins.used(parts) == {plugin.key: plugin.record}
        for index, row in enumerate(("BuiltIn(vowels, '', unbounded=True)", "BuiltIn(len, '')", "BuiltIn(3, '')")):
            with pytest.raises(BadInput, match=rf"other{index}.py defines 'other' of the rewards (as|with)"):
                plugins.load(write(f"other{index}.py", f"BUILTIN['other'] = {row}"))
        assert "other" not in BUILTIN


@pytest.mark.sweep
def test_functions_of_trl_and_functions_for_trl():
    pytest.importorskip("trl", reason="needs TRL")
    from trl.rewards import think_format_reward

    talks = [[{"role": "assistant", "content": text}] for text in ("<think>a</think>b", "b")]
    with rewards.load([think_format_reward, "trl.rewards:think_format_reward"], timeout=None) as reward:
        assert reward([[{"role": "user", "content": "?"}]] * 2, talks, {"answer": ["b", "c"]}).tolist() == [2.0, 0.0]
    extra = {"completion_ids": [[1], [2]], "trainer_state": None, "log_extra": None, "log_metric": None}
    assert number_equal(prompts=["", ""], completions=["4", "5"], answer=["4", "4"], **extra) == [1.0, 0.0]


def test_rows_are_complete():
    page = (ROOT / "docs" / "how-to" / "rewards.md").read_text(encoding="utf-8")
    for name, row in BUILTIN.items():
        assert f"| `{name}{row.argument and ':' + row.argument}` |" in page, name
    assert all(isinstance(row, BuiltIn) and row.about and not row.about.endswith(".") for row in BUILTIN.values())
