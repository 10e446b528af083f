"""Tasks: data sets with the prompts that turn their rows into text.

>>> from gradless import tasks
>>> tasks.get("SST-2").render({"sentence": "a joy .", "label": 1}).prompt
'a joy . It was'
"""

from __future__ import annotations

from typing import Final

from gradless import plugins
from gradless.errors import BadInput, pick
from gradless.tasks import arithmetic, choices, countdown, pairs, questions, sentences, superglue
from gradless.tasks.base import MASK, Example, Splits, Task, target, without_alignment
from gradless.tasks.files import Row
from gradless.tasks.own import custom, read_task_file
from gradless.tasks.own_prompts import prompts
from gradless.tasks.split import load

__all__ = [
    "MASK",
    "TASKS",
    "Example",
    "Row",
    "Splits",
    "Task",
    "custom",
    "get",
    "load",
    "names",
    "prompts",
    "read_task_file",
    "target",
    "unaligned",
]

TASKS: Final[dict[str, Task]] = {
    task.name: task
    for module in (sentences, pairs, superglue, choices, questions, arithmetic, countdown)
    for task in module.TASKS
}
"""Every built-in task by name."""

ALIASES: Final = {"winograndem": "winogrande", "rottentomatoes": "mr"}


def _folded(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def get(name: str) -> Task:
    """Return the task of that name; case, hyphens and underscores do not matter ("SST-2", "Copa", "ag_news").

    Raises:
        BadInput: There is none; the message names the nearest.
    """
    if _spelled(name) not in TASKS:
        plugins.find("tasks", name)
    return pick("task", _spelled(name), TASKS)


def _spelled(name: str) -> str:
    """Return a name as the table has it, if it has it."""
    known = {_folded(one): one for one in TASKS} | ALIASES
    return known.get(_folded(name), name)


def names() -> list[str]:
    """Return the names of the built-in tasks, sorted."""
    return sorted(TASKS)


def unaligned(task: Task) -> Task:
    """Return the task without *task alignment*: the words of its prompt that make the label a likely continuation.

    ZO-Bench (arXiv 2402.11592) compares ``"{text} It was great"`` with ``"{text} great"``. Only tasks for which that
    paper's code has such a prompt have one here (`Task.render_unaligned`). Name, version, rows, options and metrics
    stay, so two runs differ in the prompt alone; the masked prompt is removed, since nobody published one.

    Raises:
        BadInput: The task has no such prompt; the message names those that have.

    Example:
        >>> unaligned(get("sst2")).render({"sentence": "a joy .", "label": 1})[:2]
        ('a joy .', (' terrible', ' great'))
    """
    if task.render_unaligned is None:
        known = ", ".join(sorted(name for name, other in TASKS.items() if other.render_unaligned is not None))
        raise BadInput(f"task '{task.name}' has no prompt without alignment: choose one of {known}, or keep it aligned")
    return task if task.render is task.render_unaligned else without_alignment(task)
