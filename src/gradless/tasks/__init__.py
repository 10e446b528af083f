"""Tasks: data sets with the prompts that turn their rows into text.

>>> from gradless import tasks
>>> tasks.get("SST-2").render({"sentence": "a joy .", "label": 1}).prompt
'a joy . It was'
"""

from __future__ import annotations

from typing import Final

from gradless.errors import pick
from gradless.tasks import choices, pairs, questions, sentences, superglue
from gradless.tasks.base import MASK, Example, Row, Splits, Task, target
from gradless.tasks.own import custom, read_task_file
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
    "read_task_file",
    "target",
]

TASKS: Final[dict[str, Task]] = {
    task.name: task for module in (sentences, pairs, superglue, choices, questions) for task in module.TASKS
}
"""Every built-in task by name."""

ALIASES: Final = {"winograndem": "winogrande", "rottentomatoes": "mr"}


def _folded(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def get(name: str) -> Task:
    """The task of that name; case, hyphens and underscores do not matter ("SST-2", "Copa", "ag_news").

    Raises:
        BadInput: If there is none; the message names the nearest.
    """
    folded = {_folded(known): known for known in TASKS} | ALIASES
    return pick("task", folded.get(_folded(name), name), TASKS)


def names() -> list[str]:
    """Names of the built-in tasks, sorted."""
    return sorted(TASKS)
