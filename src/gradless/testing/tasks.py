"""Checks of tasks: every row becomes a prompt, options and a right one among them; splits do not overlap."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, get_args

from gradless.errors import BadInput
from gradless.lm.metrics import METRICS
from gradless.tasks import MASK, Example, Row, Task, load, target
from gradless.tasks.base import Kind, Render
from gradless.testing.checks import Check, demand, refused, run, suite

Pools: TypeAlias = dict[str, list[Row]]
MOST: Final = 2000  # rows of files that are looked at


class Setting(NamedTuple):
    """What a suite of checks is run on."""

    originals: tuple[Row, ...]
    data: Path | None
    overlap: float

    @property
    def rows(self) -> tuple[Row, ...]:
        """Fresh copies, since a prompt that writes to its row must not disturb other checks."""
        return copy.deepcopy(self.originals)


def task_checks(*, rows: Sequence[Row], data: Path | None = None, overlap: float = 0.0) -> tuple[Check, ...]:
    """Return the checks of a `Task`, each called with it.

    Args:
        rows: some rows in canonical form, four different ones at least.
        data: a folder with the task's files; its reader is checked too.
        overlap: share of the test rows that may be training rows as well, in data that come so.

    Raises:
        BadInput: fewer than four different rows.
    """
    if len({_line(row) for row in rows}) < 4:
        raise BadInput(f"there are {len(rows)} rows: give four different ones at least")
    return suite("task", CHECKS, Setting(tuple(rows), data, overlap))


def check_task(task: Task, *, rows: Sequence[Row], data: Path | None = None, overlap: float = 0.0) -> None:
    """Run all checks of `task_checks`.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless import tasks
        >>> words = ("a joy .", "a bore .", "so so .", "great fun .")
        >>> check_task(tasks.get("sst2"), rows=[{"sentence": s, "label": i % 2} for i, s in enumerate(words)])
    """
    run(task_checks(rows=rows, data=data, overlap=overlap), task)


def record(task: Task, setting: Setting) -> None:
    """Its fields are sound: a name in lower case, a known kind, known metrics, a source, words for labels."""
    demand(task.name == task.name.lower() and bool(task.name.strip()), f"its name is {task.name!r}")
    demand(task.kind in get_args(Kind), f"its kind is {task.kind!r}: one of {', '.join(get_args(Kind))} is needed")
    known = bool(task.metrics) and all(name in METRICS for name in task.metrics)
    demand(known, f"its metrics are {task.metrics}: choose from {', '.join(sorted(METRICS))}")
    demand(bool(task.source.strip()), "its source is empty: say where the data and the prompt come from")
    demand(task.render is not None or task.render_masked is not None, "it has no prompt at all")
    classes = task.kind == "classification"
    demand(classes == (task.labels is not None), f"its kind is {task.kind}, but its labels are {task.labels}")
    for what, words in (("label_words", task.label_words), ("masked_words", task.masked_words)):
        fits = words is None or task.labels is None or len(words) == len(task.labels)
        demand(fits, f"there are {len(task.labels or ())} labels and {len(words or ())} {what}")


def renders(task: Task, setting: Setting) -> None:
    """Every row becomes an example whose prompt is text that does not end with a space."""
    for prompt, _, example in _examples(task, setting):
        demand(isinstance(example, Example), f"{prompt} is a {type(example).__name__}, not an Example")
        texts = (example.prompt, example.content_free, example.tail, *example.options, *example.answers)
        demand(all(isinstance(text, str) for text in texts), f"{prompt} holds something that is no text")
        demand(not example.prompt.endswith(" "), f"{prompt} ends with a space, which belongs to the option")


def has_options(task: Task, setting: Setting) -> None:
    """Every row has different options that are not empty, two at least; generation has answers instead."""
    for prompt, _, example in _examples(task, setting):
        options, answers = example.options, example.answers
        if task.kind == "generation":
            sound = not options and bool(answers) and all(text.strip() for text in answers)
            demand(sound, f"{prompt} has options {options} and answers {answers}")
        else:
            sound = len(set(options)) == len(options) >= 2 and all(text.strip() for text in options)
            demand(sound, f"{prompt} has the options {options}")


def gold_in_range(task: Task, setting: Setting) -> None:
    """The right options of every row are among its options, and there is one at least."""
    for prompt, _, example in _examples(task, setting) if task.kind != "generation" else ():
        sound = bool(example.correct) and all(0 <= index < len(example.options) for index in example.correct)
        demand(sound, f"{prompt} has {len(example.options)} options, and right are {example.correct}")


def words_are_the_options(task: Task, setting: Setting) -> None:
    """`label_words` and `masked_words` are the options of every row, and the label says which is right."""
    for prompt, row, example in _examples(task, setting):
        words = task.masked_words if prompt.startswith("render_masked") else task.label_words
        if words is not None:
            demand(example.options == words, f"{prompt} has options {example.options}, but the words are {words}")
            right = row.get("label", example.correct[0])
            demand(example.correct == (right,), f"{prompt} with label {right} says that {example.correct} is right")


def deterministic(task: Task, setting: Setting) -> None:
    """A row gives the same example every time and stays as it is."""
    for kind, render in _renderers(task):
        for i, row in enumerate(setting.rows):
            original = copy.deepcopy(row)
            example = render(row)
            demand(row == original, f"{kind} changed row {i}")
            demand(example == render(row), f"{kind} of row {i} is another one the second time")


def one_mask(task: Task, setting: Setting) -> None:
    """A masked prompt holds the mask once, and `first` marks a part of it; other prompts hold none."""
    for prompt, _, example in _examples(task, setting):
        count = example.prompt.count(MASK)
        demand(count == prompt.startswith("render_masked"), f"{prompt} holds the mask {count} times")
        if example.first is not None:
            begin, end = example.first
            inside = 0 <= begin <= end <= len(example.prompt) and MASK not in example.prompt[begin:end]
            demand(inside, f"`first` is {example.first} in {prompt}, of {len(example.prompt)} characters")


def has_a_target(task: Task, setting: Setting) -> None:
    """Training has something to append to every prompt."""
    for i, row in enumerate(setting.rows):
        if task.render is not None:
            text = target(task, task.render(row))
            ends = task.kind != "generation" or text.endswith(task.stop)
            demand(bool(text.strip()) and ends, f"the target of row {i} is {text!r}")


def rows_are_plain(task: Task, setting: Setting) -> None:
    """Rows survive JSON, and a class label is a whole number that has a name."""
    for i, row in enumerate(setting.rows):
        again = json.loads(json.dumps(row, allow_nan=False))
        demand(again == row, f"row {i} is not the same after a trip through JSON")
        if task.labels is not None and "label" in row:
            label = row["label"]
            sound = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(task.labels)
            demand(sound, f"row {i} has the label {label!r}, and there are {len(task.labels)} labels")


def reads_its_files(task: Task, setting: Setting) -> None:
    """Files and a generator give the same rows every time, each of which keeps what is promised here of rows."""
    for source, _, pools in _sources(task, setting):
        splits = pools()
        demand(splits == pools(), f"{source} gives other rows the second time")
        whole = tuple(row for rows in splits.values() for row in rows)[:MOST]
        for body in (renders, has_options, gold_in_range, words_are_the_options, one_mask, rows_are_plain):
            body(task, setting._replace(originals=whole))


def splits_are_disjoint(task: Task, setting: Setting) -> None:
    """No row is drawn for two of train, dev and test, and the seed decides which ones are."""
    for source, data, pools in _sources(task, setting):
        sizes = _all_of(pools())
        splits, again = (load(task, data=data, seed=3, **sizes) for _ in range(2))
        demand(splits == again, f"seed 3 draws other rows of {source} the second time")
        drawn = {split: [_line(row) for row in getattr(splits, split)] for split in ("train", "dev", "test")}
        for one, other in itertools.combinations(drawn, 2):
            seen = set(drawn[one])
            shared = sum(line in seen for line in drawn[other])
            few = shared <= setting.overlap * len(drawn[other])
            demand(few, f"{shared} of {len(drawn[other])} {other} rows of {source} are {one} rows too (seed 3)")


def refuses_missing_files(task: Task, setting: Setting) -> None:
    """A folder that is not there is refused with a sentence."""
    if task.read is not None:
        nowhere = Path("this folder is not there")
        refused(lambda: load(task, data=nowhere, num_train=1, num_dev=0, num_test=1, seed=0), f"'{nowhere}'")


CHECKS = (
    *(record, renders, has_options, gold_in_range, words_are_the_options, deterministic, one_mask, has_a_target),
    *(rows_are_plain, reads_its_files, splits_are_disjoint, refuses_missing_files),
)


def _sources(task: Task, setting: Setting) -> Iterator[tuple[str, Path | None, Callable[[], Pools]]]:
    """Yield where a task's rows come from: how a sentence calls it, the folder, and what returns them by split."""
    if task.generate is not None:
        yield "its generator", None, task.generate
    if setting.data is not None and task.read is not None:
        yield str(setting.data), setting.data, functools.partial(task.read, setting.data)


def _all_of(pools: Pools) -> dict[str, int]:
    """Return the sizes that take all rows; dev rows are a quarter of the training rows if there is no dev split."""
    train, held = len(pools.get("train", [])), 0 if "dev" in pools else len(pools.get("train", [])) // 4
    return {
        "num_train": train - held,
        "num_dev": len(pools.get("dev", [])) or held,
        "num_test": len(pools.get("test", [])),
    }


def _line(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


def _renderers(task: Task) -> list[tuple[str, Render]]:
    """Return all prompt functions of a task, by the field's name."""
    kinds = ("render", "render_unaligned", "render_masked")
    return [(kind, getattr(task, kind)) for kind in kinds if getattr(task, kind) is not None]


def _examples(task: Task, setting: Setting) -> Iterator[tuple[str, Row, Example]]:
    """Yield every row under every prompt: how a sentence calls it, the row and the example."""
    for kind, render in _renderers(task):
        for i, row in enumerate(setting.rows):
            yield f"{kind} of row {i}", row, render(row)
