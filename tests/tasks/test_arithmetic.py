"""Generated sums, and the rewards of answers between tags."""

from __future__ import annotations

from collections import Counter

import pytest

from gradless import tasks
from gradless.errors import BadInput
from gradless.lm.metrics import solved
from gradless.tasks.answer_tags import answer_tag, parse_answer
from gradless.tasks.arithmetic import arithmetic, generate
from gradless.testing import check_task

SUMS = tasks.get("arithmetic")


def drawn(num_train=100, seed=0):
    return tasks.load(SUMS, data=None, num_train=num_train, num_dev=50, num_test=50, seed=seed)


def test_every_sum_is_there_once_and_right():
    pools = generate()
    rows = [row for rows in pools.values() for row in rows]
    assert len(rows) == len({(row["a"], row["b"]) for row in rows}) == 90 * 90
    assert all(row["a"] + row["b"] == row["answer"] for row in rows)
    assert all(10 <= row[name] <= 99 for row in rows for name in ("a", "b"))


def test_a_sum_and_its_mirror_are_in_one_split():
    pairs = [{tuple(sorted((row["a"], row["b"]))) for row in rows} for rows in generate().values()]
    assert sum(map(len, pairs)) == len(set.union(*pairs))


def test_the_splits_are_alike():
    """The mean sum is 109 with a standard deviation of 36.7; every tens digit is in a ninth of the rows."""
    for rows in generate().values():
        assert abs(sum(row["answer"] for row in rows) / len(rows) - 109) < 5 * 36.7 / len(rows) ** 0.5
        share = 1 / 9
        for count in Counter(row["a"] // 10 for row in rows).values():
            # Both orders of a pair are there, which doubles the variance at most.
            assert abs(count - share * len(rows)) < 5 * (2 * len(rows) * share * (1 - share)) ** 0.5


def test_the_rows_are_the_same_everywhere():
    assert drawn().fingerprint == "344b9e7814ec5c3c937f6f57e531dec42207fab28d446919598ca415f64aa570"
    assert drawn(seed=1).fingerprint != drawn().fingerprint


def test_sizes_are_as_asked_and_too_many_are_refused():
    assert [len(rows) for rows in drawn(6077)[:3]] == [6077, 50, 50]
    with pytest.raises(BadInput, match="Two-digit sums: asked for 6078 train rows, but its generator has 6077: lower"):
        drawn(6078)


def test_promises_of_a_task():
    check_task(SUMS, rows=generate()["dev"][:20])


def test_own_files_may_take_the_place_of_generated_rows(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": 1, "b": 2}\n' * 3)
    (tmp_path / "test.jsonl").write_text('{"a": 3, "b": "4"}\n')
    splits = tasks.load(SUMS, data=tmp_path, num_train=1, num_dev=1, num_test=1, seed=0)
    assert splits.test == [{"a": 3, "b": 4, "answer": 7}]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", 0.0),
        ("The sum is 85.", 0.0),
        ("85</answer>", 0.0),
        ("answer: <ANSWER>85</ANSWER>", 0.0),
        ("<answer>", 0.25),
        ("<answer> eighty", 0.25),
        ("</answer><answer>", 0.25),
        ("<answer>85", 0.5),
        ("<answer></answer>", 0.5),
        ("<answer>n</answer>", 0.5),
        ("<answer>٨٥</answer>", 0.5),
        ("<answer>8⁵</answer>", 0.75),
        ("<answer>27 + 58 = 85</answer>", 0.75),
        ("<answer>85.</answer>", 0.75),
        ("<answer>1234567890</answer>", 0.5),
        ("<answer>84</answer> <answer>85</answer>", 1.0),
        ("<answer>85</answer> and <answer>", 1.0),
        ("<answer><answer>85</answer></answer>", 1.0),
        ("It is <answer>\n 85 </answer>, I think", 1.0),
        ("<answer>-85.50</answer>", 1.0),
    ],
)
def test_form(text, form):
    assert answer_tag([""], [text]) == [form]
    assert answer_tag([[]], [[{"role": "assistant", "content": text}]]) == [form]
    right = form == 1.0 and "85<" in text.replace(" ", "") and "-" not in text
    assert arithmetic([""], [text], answer=[85]) == [0.5 * form + 0.5 * right]
    assert solved([text], [("<answer>85</answer>",)]) == right


def test_a_long_text_is_read_once():
    assert answer_tag([""], ["<answer>" * 200_000]) == [0.25]
    assert answer_tag([""], ["</answer>" * 200_000]) == [0.0]
    assert parse_answer("<answer>" + "9" * 1_000_000 + "</answer>").closed


def test_answers_may_be_texts_of_a_file():
    assert arithmetic(["", ""], ["<answer>85.0</answer>"] * 2, answer=["85", 85.0]) == [1.0, 1.0]
