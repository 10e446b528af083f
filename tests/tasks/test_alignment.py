"""Tasks with and without task alignment: the published prompts, typed out, and what must stay the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from gradless import lm, tasks
from gradless.errors import BadInput
from gradless.lm.encode import content_free, encode
from gradless.lm.evaluate import evaluate
from gradless.tasks import Example, Row

JOY: Row = {"sentence": "a joy to watch .", "label": 1}
TOE: Row = {
    "premise": "The man broke his toe.",
    "choice1": "He dropped a hammer on it.",
    "choice2": "I laughed.",
    "question": "cause",
    "label": 0,
}
NAP: Row = {"premise": "A man naps.", "hypothesis": "He is awake.", "label": 1}

# name -> row, full texts of the options without alignment, then with it (ZO-Bench's template versions 1 and 0)
TEXTS = {
    "sst2": (
        JOY,
        ("a joy to watch . terrible", "a joy to watch . great"),
        ("a joy to watch . It was terrible", "a joy to watch . It was great"),
    ),
    "copa": (
        TOE,
        ("The man broke his toe he dropped a hammer on it.", "The man broke his toe I laughed."),
        ("The man broke his toe because he dropped a hammer on it.", "The man broke his toe because I laughed."),
    ),
    "rte": (
        NAP,
        ('A man naps.\n"He is awake."\nYes', 'A man naps.\n"He is awake."\nNo'),
        (
            'A man naps.\nDoes this mean that "He is awake." is true? Yes or No?\nYes',
            'A man naps.\nDoes this mean that "He is awake." is true? Yes or No?\nNo',
        ),
    ),
}
# What calibration scores: the option alone. ZO-Bench's empty SST-2 form is one space, which is the option's here.
BLANKS = {
    "sst2": (" terrible", " great"),
    "copa": (" he dropped a hammer on it.", " I laughed."),
    "rte": ("Yes", "No"),
}
CHANGED = {"title", "render", "render_masked", "masked_words", "first_limit"}


def rendered(task: tasks.Task, row: Row) -> Example:
    assert task.render is not None
    return task.render(row)


def texts(example: Example) -> tuple[str, ...]:
    return tuple(example.prompt + option + example.tail for option in example.options)


@pytest.mark.parametrize("name", TEXTS)
def test_published_prompts(name: str) -> None:
    row, without, aligned = TEXTS[name]
    task = tasks.get(name)
    bare = rendered(tasks.unaligned(task), row)
    assert texts(bare) == without
    assert texts(rendered(task, row)) == aligned
    assert bare.options == rendered(task, row).options
    assert bare.correct == (row["label"],)
    assert not bare.prompt.endswith(" ")


@pytest.mark.parametrize("name", TEXTS)
def test_content_free_prompt_is_the_option_alone(name: str) -> None:
    bare = rendered(tasks.unaligned(tasks.get(name)), TEXTS[name][0])
    assert texts(content_free(bare)) == BLANKS[name]


def test_copa_without_alignment_does_not_tell_cause_from_effect() -> None:
    task = tasks.get("copa")
    cause, effect = TOE, TOE | {"question": "effect"}
    assert rendered(tasks.unaligned(task), cause) == rendered(tasks.unaligned(task), effect)
    assert rendered(task, cause) != rendered(task, effect)


@pytest.mark.parametrize("name", TEXTS)
def test_only_the_prompt_changes(name: str) -> None:
    task = tasks.get(name)
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    bare = tasks.unaligned(task)
    assert {key for key, value in values.items() if getattr(bare, key) != value} <= CHANGED
    assert (bare.name, bare.version, bare.label_words) == (task.name, 1, task.label_words)
    assert bare.title == f"{task.title} without the aligning prompt"
    assert bare.render_masked is None, "a masked model must not run the aligned prompt in its place"
    assert {field.name: getattr(task, field.name) for field in fields(task)} == values, "the table's task is untouched"
    assert tasks.get(name) is task


@pytest.mark.parametrize("name", TEXTS)
def test_taking_it_away_twice_changes_nothing_more(name: str) -> None:
    bare = tasks.unaligned(tasks.get(name))
    assert tasks.unaligned(bare) == bare


@pytest.mark.parametrize("name", TEXTS)
def test_same_prompt_as_the_task_of_its_own_name(name: str) -> None:
    row = TEXTS[name][0]
    named = tasks.get(f"{name}-bare")
    assert rendered(named, row) == rendered(tasks.unaligned(tasks.get(name)), row)
    assert named.title == tasks.unaligned(tasks.get(name)).title


def test_no_other_prompts_are_invented() -> None:
    assert {name for name in tasks.names() if tasks.get(name).render_unaligned is not None} == set(TEXTS)


@pytest.mark.parametrize("name", [name for name in tasks.names() if name not in TEXTS])
def test_tasks_without_one_name_those_with_one(name: str) -> None:
    with pytest.raises(BadInput) as raised:
        tasks.unaligned(tasks.get(name))
    assert str(raised.value) == (
        f"task '{name}' has no prompt without alignment: choose one of copa, rte, sst2, or keep it aligned"
    )


def test_own_files_have_none(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text("text,label\nfine,1\nbad,0\n", encoding="utf-8")
    task, _ = tasks.custom(template="{text} It was", label_column="label", labels="0=terrible,1=great", test=file)
    with pytest.raises(BadInput, match="task 'custom' has no prompt without alignment"):
        tasks.unaligned(task)


@pytest.mark.parametrize("architecture", ["opt", "qwen"])
@pytest.mark.parametrize("name", ["sst2", "copa"])
def test_calibration_scores_the_option_after_the_start_of_a_document(architecture: str, name: str) -> None:
    """OPT puts a start token in front by itself, Qwen has none."""
    model = lm.tiny(architecture)
    task = tasks.unaligned(tasks.get(name))
    blank = encode(model, content_free(rendered(task, TEXTS[name][0])))
    assert len(blank.prompt) == 1
    for tokens, text in zip(blank.options, BLANKS[name], strict=True):
        assert list(tokens) == model.tokenizer(text.strip(" "), add_special_tokens=False)["input_ids"]
    assert all(len(blank.context(option)) == 1 for option in range(len(blank.options)))
    evaluation = evaluate(model, task, [TEXTS[name][0]] * 2, mode="calibrated")
    assert evaluation.predictions[0] == evaluation.predictions[1]
    assert evaluation.predictions[0] in (0, 1)


def test_masked_models_are_refused() -> None:
    with pytest.raises(BadInput, match="task 'sst2' has no prompt for masked models: choose a causal one"):
        evaluate(lm.tiny("roberta"), tasks.unaligned(tasks.get("sst2")), [JOY])
