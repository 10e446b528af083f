"""Golden strings: the exact text of every task's prompt, typed out."""

from __future__ import annotations

import pytest

from gradless import tasks
from gradless.errors import BadInput
from gradless.lm.metrics import METRICS
from gradless.tasks import MASK, Example

JOY = {"sentence": "a joy to watch .", "label": 1}
PAIR = {"premise": "A man naps.", "hypothesis": "He is awake.", "label": 1}
PAIR3 = {"premise": "A man naps.", "hypothesis": "He is awake.", "label": 2}
MIND = "The man lost his mind."
COPA = {
    "premise": "The man broke his toe.",
    "choice1": "He dropped a hammer on it.",
    "choice2": "I laughed.",
    "question": "cause",
    "label": 0,
}
WSC = {"text": "Ann told Bo that She won.", "span1_text": "Ann", "span2_text": "She", "label": 1}
RECORD = {
    "passage": "Ann met Bo Li in Rome.\n@highlight\nBo Li was late\n@highlight\nAnn left",
    "query": "Later @placeholder said sorry.",
    "entities": ["Ann", "Bo Li", "Rome", "Bo"],
    "answers": ["Bo Li", "Bo"],
}
WINO = {"sentence": "Ann beat Bo, so _ was sad.", "option1": "Ann", "option2": "Bo", "label": 1}
SQUAD = {
    "title": "Super_Bowl_50",
    "context": "It was 308.",
    "question": "How many?",
    "answers": ["308", "it"],
}

TAGGED = {"arithmetic": ("<answer>85</answer>",), "countdown": ("<answer>(7 + 3) * 4</answer>",)}

# name -> row, prompt, options, correct, answers, content-free prompt
CAUSAL = {
    "sst2": (JOY, "a joy to watch . It was", (" terrible", " great"), (1,), "It was"),
    "arithmetic": (
        {"a": 27, "b": 58, "answer": 85},
        "Question: What is 27 + 58? Write the number as <answer>n</answer>.\nAnswer:",
        (),
        (),
        "",
    ),
    "countdown": (
        {"nums": [4, 7, 3], "target": 40, "solution": "(7 + 3) * 4"},
        "Question: Make 40 from 4, 7 and 3, each used once, with + - * / and brackets. "
        "Write it as <answer>(1 + 2) / 3</answer>.\nAnswer:",
        (),
        (),
        "",
    ),
    "sst2-bare": (JOY, "a joy to watch .", (" terrible", " great"), (1,), ""),
    "sst5": (
        {"sentence": "fine .", "label": 3},
        "fine . It was",
        (" terrible", " bad", " okay", " good", " great"),
        (3,),
        "It was",
    ),
    "mr": (JOY, "a joy to watch . It was", (" terrible", " great"), (1,), "It was"),
    "cr": (JOY, "a joy to watch . It was", (" terrible", " great"), (1,), "It was"),
    "mpqa": (JOY, "a joy to watch . It was", (" terrible", " great"), (1,), "It was"),
    "imdb": (JOY, "a joy to watch . It was", (" terrible", " great"), (1,), "It was"),
    "subj": (JOY, "a joy to watch . This is", (" subjective", " objective"), (1,), "This is"),
    "cola": (JOY, "a joy to watch . This is", (" incorrect", " correct"), (1,), "This is"),
    "trec": (
        {"sentence": "Who ran ?", "label": 3},
        "Who ran ? Type:",
        (" Description", " Entity", " Expression", " Human", " Location", " Number"),
        (3,),
        "Type:",
    ),
    "agnews": (
        {"sentence": "Oil rose.", "label": 2},
        "Oil rose. This is about",
        (" world", " sports", " business", " technology"),
        (2,),
        "This is about",
    ),
    "rte": (
        PAIR,
        'A man naps.\nDoes this mean that "He is awake." is true? Yes or No?\n',
        ("Yes", "No"),
        (1,),
        "",
    ),
    "rte-bare": (PAIR, 'A man naps.\n"He is awake."\n', ("Yes", "No"), (1,), ""),
    "mnli": (
        PAIR3,
        'A man naps.\nDoes this mean that "He is awake." is true? Yes, No, or Maybe?\n',
        ("Yes", "Maybe", "No"),
        (2,),
        "",
    ),
    "snli": (
        PAIR3,
        'A man naps.\nDoes this mean that "He is awake." is true? Yes, No, or Maybe?\n',
        ("Yes", "Maybe", "No"),
        (2,),
        "",
    ),
    "qnli": (
        {"question": "Who won?", "sentence": "Ann won.", "label": 0},
        'Ann won.\nDoes this answer the question "Who won?"? Yes or No?\n',
        ("Yes", "No"),
        (0,),
        "",
    ),
    "qqp": (
        {"question1": "Who won?", "question2": "Who was first?", "label": 1},
        'Who won?\nDoes "Who was first?" ask the same question? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "",
    ),
    "mrpc": (
        {"sentence1": "Ann won.", "sentence2": "Bo lost.", "label": 0},
        'Ann won.\nDoes "Bo lost." mean the same? Yes or No?\n',
        ("No", "Yes"),
        (0,),
        "",
    ),
    "cb": (
        PAIR3,
        'Suppose A man naps. Can we infer that "He is awake."? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        (2,),
        "",
    ),
    "boolq": (
        {"passage": "Rain is wet.", "question": "is rain {dry}", "label": 1},
        "Rain is wet. Is rain {dry}?\n",
        ("Yes", "No"),
        (1,),
        "",
    ),
    "wsc": (
        WSC,
        'Ann told Bo that She won.\nIn the previous sentence, does the pronoun "she" refer to Ann? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "",
    ),
    "wic": (
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "Bank the money.", "label": 0},
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA river bank.\nBank the money.\n',
        ("No", "Yes"),
        (0,),
        "",
    ),
    "multirc": (
        {"paragraph": "It rained.", "question": "What fell?", "answer": "Rain", "label": 1},
        'It rained.\nQuestion: What fell?\nI found this answer "Rain". Is that correct? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "",
    ),
    "copa": (
        COPA,
        "The man broke his toe because",
        (" he dropped a hammer on it.", " I laughed."),
        (0,),
        "because",
    ),
    "copa-bare": (COPA, "The man broke his toe", (" he dropped a hammer on it.", " I laughed."), (0,), ""),
    "record": (
        RECORD,
        "Ann met Bo Li in Rome.\n- Bo Li was late\n- Ann left\n-",
        (
            " Later Ann said sorry.",
            " Later Bo Li said sorry.",
            " Later Rome said sorry.",
            " Later Bo said sorry.",
        ),
        (1, 3),
        "-",
    ),
    "winogrande": (WINO, "Ann beat Bo, so", (" Ann was sad.", " Bo was sad."), (1,), ""),
    "squad": (
        SQUAD,
        "Title: Super_Bowl_50\nContext: It was 308.\nQuestion: How many?\nAnswer:",
        (),
        (),
        "",
    ),
    "drop": (
        {"passage": "It was 308.", "question": "How many?", "answers": ["308", "three"]},
        "Passage: It was 308.\nQuestion: How many?\nAnswer:",
        (),
        (),
        "",
    ),
}

IT_WAS = "a joy to watch . It was<mask>."
# name -> row, prompt, options, content-free prompt, first sentence
MASKED = {
    "sst2": (JOY, IT_WAS, (" terrible", " great"), "It was<mask>.", "a joy to watch ."),
    "sst5": (
        JOY,
        IT_WAS,
        (" terrible", " bad", " okay", " good", " great"),
        "It was<mask>.",
        "a joy to watch .",
    ),
    "mr": (JOY, IT_WAS, (" terrible", " great"), "It was<mask>.", "a joy to watch ."),
    "cr": (JOY, IT_WAS, (" terrible", " great"), "It was<mask>.", "a joy to watch ."),
    "mpqa": (JOY, IT_WAS, (" terrible", " great"), "It was<mask>.", "a joy to watch ."),
    "imdb": (JOY, IT_WAS, (" terrible", " great"), "It was<mask>.", "a joy to watch ."),
    "subj": (
        JOY,
        "a joy to watch . This is<mask>.",
        (" subjective", " objective"),
        "This is<mask>.",
        "a joy to watch .",
    ),
    "cola": (
        JOY,
        "a joy to watch . This is<mask>.",
        (" incorrect", " correct"),
        "This is<mask>.",
        "a joy to watch .",
    ),
    "trec": (
        {"sentence": "Who ran ?", "label": 1},
        "<mask>: Who ran ?",
        (" Description", " Entity", " Expression", " Human", " Location", " Number"),
        "<mask>:",
        "Who ran ?",
    ),
    "agnews": (
        JOY,
        "a joy to watch . This is about<mask>.",
        (" world", " sports", " business", " technology"),
        "This is about<mask>.",
        "a joy to watch .",
    ),
    "rte": (PAIR, "A man naps?<mask>, he is awake.", (" Yes", " No"), "?<mask>,", "A man naps"),
    "mnli": (PAIR, "A man naps?<mask>, he is awake.", (" Yes", " Maybe", " No"), "?<mask>,", "A man naps"),
    "snli": (PAIR, "A man naps?<mask>, he is awake.", (" Yes", " Maybe", " No"), "?<mask>,", "A man naps"),
    "qnli": (
        {"question": "Who won?", "sentence": "Ann won.", "label": 1},
        "Who won?<mask>, ann won.",
        (" Yes", " No"),
        "?<mask>,",
        "Who won",
    ),
    "qqp": (
        {"question1": "Who won?", "question2": "Who was first?", "label": 1},
        "Who won?<mask>, who was first?",
        (" No", " Yes"),
        "<mask>,",
        "Who won?",
    ),
    "mrpc": (
        {"sentence1": "Ann won.", "sentence2": "Bo lost.", "label": 1},
        "Ann won.<mask>, bo lost.",
        (" No", " Yes"),
        "<mask>,",
        "Ann won.",
    ),
}


def test_tables_cover_every_task() -> None:
    assert set(CAUSAL) == {name for name in tasks.names() if tasks.get(name).render}
    assert set(MASKED) == {name for name in tasks.names() if tasks.get(name).render_masked}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_prompt(name: str) -> None:
    task = tasks.get(name)
    row, prompt, options, correct, blank = CAUSAL[name]
    assert task.render is not None
    answers = tuple(row.get("answers", TAGGED.get(name, ()))) if task.kind == "generation" else ()
    assert task.render(row) == Example(prompt, options, correct, answers, blank)
    assert task.label_words in (None, options)


@pytest.mark.parametrize("name", MASKED)
def test_masked_prompt(name: str) -> None:
    task = tasks.get(name)
    row, prompt, options, blank, first = MASKED[name]
    assert task.render_masked is not None
    example = task.render_masked(row)
    assert example._replace(first=None) == Example(prompt, options, (row["label"],), content_free=blank)
    assert prompt.count(MASK) == blank.count(MASK) == 1
    assert example.first is not None
    assert prompt[slice(*example.first)] == first
    assert task.masked_words == options


def test_copa_effect_and_punctuation() -> None:
    task = tasks.get("copa")
    assert task.render is not None
    row = COPA | {
        "premise": "Why me? ",
        "question": "effect",
        "choice1": "I'm sad.",
        "choice2": "A b C.",
        "label": 1,
    }
    assert task.render(row) == Example("Why me? so", (" i'm sad.", " a b C."), (1,), content_free="so")


def test_winogrande_gap_without_a_space_before() -> None:
    task = tasks.get("winogrande")
    assert task.render is not None
    example = task.render(WINO | {"sentence": "_'s hat fell on _."})
    assert example == Example("", ("Ann's hat fell on _.", "Bo's hat fell on _."), (1,))


def test_boolq_keeps_a_question_mark() -> None:
    task = tasks.get("boolq")
    assert task.render is not None
    assert task.render({"passage": "P.", "question": "Is it?", "label": 0}).prompt == "P. Is it?\n"


def test_squad_without_title() -> None:
    task = tasks.get("squad")
    assert task.render is not None
    assert task.render(SQUAD | {"title": ""}).prompt == "Context: It was 308.\nQuestion: How many?\nAnswer:"


def test_questions_are_stripped_as_mezo_strips_them() -> None:
    for name, row in (("squad", SQUAD), ("drop", {"passage": "It was 308.", "answers": ["308"]})):
        render = tasks.get(name).render
        assert render is not None
        assert render(row | {"question": " How many? \n"}) == render(row | {"question": "How many?"})


def test_targets() -> None:
    for name, expected in {"squad": " 308\n", "record": " Later Bo Li said sorry.", "cb": "Maybe"}.items():
        task = tasks.get(name)
        assert task.render is not None
        assert tasks.target(task, task.render(CAUSAL[name][0])) == expected


@pytest.mark.parametrize("name", tasks.names())
def test_records_are_sound(name: str) -> None:
    task = tasks.get(name)
    assert task.name == name == name.lower()
    assert set(task.metrics) <= set(METRICS)
    assert (task.kind == "classification") == (task.labels is not None) == (task.label_words is not None)
    if task.labels is not None:
        assert task.label_words is not None
        assert len(task.labels) == len(task.label_words)
    if task.masked_words is not None:
        assert all(label_word.startswith(" ") for label_word in task.masked_words)
    assert task.source
    assert task.read is not None


def test_limits_of_lm_bff() -> None:
    limits = {name: (tasks.get(name).first_limit, tasks.get(name).max_length) for name in MASKED}
    assert limits["sst2"] == limits["cola"] == limits["qqp"] == limits["qnli"] == (None, 128)
    assert limits["mr"] == limits["trec"] == limits["subj"] == limits["sst5"] == (110, 128)
    assert limits["mnli"] == limits["rte"] == (240, 256)
    assert limits["snli"] == (None, 256)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("SST-2", "sst2"), ("Copa", "copa"), ("ag_news", "agnews"), ("SST2_bare", "sst2-bare")],
)
def test_aliases(alias: str, name: str) -> None:
    assert tasks.get(alias).name == name


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown task 'sst22': did you mean 'sst2'"):
        tasks.get("sst22")
