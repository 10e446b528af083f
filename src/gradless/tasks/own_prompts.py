"""Prompts made from a user's own rows, for generation that reward functions score: a template, no labels.

Reward functions are told all columns of a row as they stand in the file, not only those that the template shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gradless.errors import BadInput
from gradless.system import terminal
from gradless.tasks import own_rows
from gradless.tasks.base import Example, Splits, Task
from gradless.tasks.files import Row
from gradless.tasks.own import Template, fill, parse_template, read_all
from gradless.tasks.sources import resolve
from gradless.tasks.split import draw
from gradless.tasks.text_rows import Wanted

NEW_TOKENS: Final = 128
"""Of a text behind a prompt, where a run does not say."""


def prompts(
    *,
    template: str,
    train: Any = None,
    dev: Any = None,
    test: Any = None,
    name: str = "prompts",
    num_train: int | None = None,
    num_dev: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    k_shot: int | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    say: Callable[[str], None] = terminal.say,
) -> tuple[Task, Splits]:
    """Return a task of generation made from a user's own rows, which reward functions score.

    Args are those of `gradless.tasks.custom`, without labels.

    Returns:
        The task, and its rows as ``{"columns": {...}}`` with all columns of the file.

    Raises:
        BadInput: The template or a file cannot be used, or nothing can be fetched.
    """
    if k_shot is not None:
        raise BadInput("--k-shot draws rows of each label, and a reward has none: give --num-train")
    task = prompt_task(template, name)
    parsed = parse_template(template)
    paths = {"train": train, "dev": dev, "test": test}
    if all(source is None for source in paths.values()):
        raise BadInput("no data given: pass a train or a test file")
    sources = {split: resolve(source, split) for split, source in paths.items() if source is not None}
    wanted = Wanted(parsed.columns, "", (), delimiter, encoding, whole=True)
    read = read_all({source.name: source for source in sources.values()}, wanted, say)
    pools = {split: read[source.name] for split, source in sources.items()}
    where = ", ".join(source.name for source in sources.values())
    sizes = {"num_train": num_train, "num_dev": num_dev, "num_test": num_test}
    return task, draw(task, pools, where=where, seed=seed, **sizes)


def prompt_task(template: str, name: str = "prompts") -> Task:
    """Return the task of a template alone.

    Raises:
        BadInput: the template cannot be used.
    """
    parsed = parse_template(template)
    if parsed.masked:
        raise BadInput("masked models do not generate text, which a reward scores: take {mask} out of the template")
    return Task(
        name=name,
        title=name,
        kind="generation",
        metrics=(),
        render=partial(_render, parsed),
        read=None,
        source="your own files",
        max_new_tokens=NEW_TOKENS,
        stop="",
    )


def _render(template: Template, row: Row) -> Example:
    columns = own_rows.row_texts(row["columns"], template.columns)
    prompt, contents = fill(template, columns)
    return Example(prompt, (), (), contents=contents, columns=row["columns"])
