"""Recipes: the settings behind the numbers of papers, by name, as files that commands take.

``gradless recipe`` shows them. Each paper has a module of tables; `recipes` has every recipe of all of them. Importing
this imports no torch, since the shell completes the names.
"""

from __future__ import annotations

import functools
from typing import Final

from gradless.errors import BadInput, nearest
from gradless.runs.recipes import groups, mezo_opt, mezo_roberta, small, zobench
from gradless.runs.recipes.record import Recipe as Recipe
from gradless.runs.recipes.record import Row as Row
from gradless.runs.recipes.record import Table as Table

TABLES: Final = (
    *mezo_opt.TABLES,
    *mezo_roberta.TABLES,
    *zobench.TABLES,
    *groups.TABLES,
    *small.TABLES,
)
"""All tables, in the order of the papers."""
FOLDERS: Final = {
    "mezo/table1": "MeZO, table 1: OPT-13B on 11 tasks",
    "mezo/table2/opt-30b": "MeZO, tables 2 and 20: OPT-30B",
    "mezo/table2/opt-66b": "MeZO, tables 2 and 20: OPT-66B",
    "mezo/table3": "MeZO, table 3: OPT-13B trained on F1",
    "mezo/table3/roberta-large": "MeZO, table 3: RoBERTa-large trained on accuracy",
    "mezo/roberta": "MeZO, table 18: RoBERTa-large, 16 and 512 rows of each class",
    "mezo/table5": "MeZO, table 5: with and without a prompt",
    "mezo/table6": "MeZO, table 6: several directions a step",
    "mezo/table9": "MeZO, table 9: perturbations scaled by parameter norms",
    "mezo/table10": "MeZO, table 10: the expectation modified",
    "mezo/table11": "MeZO, table 11: two-point and one-point estimates",
    "mezo/table12": "MeZO, table 12: memory of forward mode",
    "mezo/table22": "MeZO, table 22: memory",
    "mezo/table23": "MeZO, table 23: seconds a step",
    "zo-bench/table2": "ZO-Bench: OPT-1.3B on SST-2, 8 methods and 4 schemes",
    "zo-bench/copa": "ZO-Bench: COPA, 5 models, 8 methods and 4 schemes",
    "zo-bench/winogrande": "ZO-Bench: WinoGrande, 5 models, 8 methods and 4 schemes",
    "zo-bench/alignment": "ZO-Bench: without the words that align a task",
    "zo-bench/sparsity": "ZO-Bench: random sparsity",
    "zo-bench/memory": "ZO-Bench: memory by length",
    "monna/mnist": "MoNNA: MNIST, 26 peers",
    "monna/mnist-alpha-1": "MoNNA: MNIST, the other split",
    "monna/cifar10": "MoNNA: CIFAR-10, 16 peers",
    "groups": "ours: groups of peers (gradless list recipes)",
    "small": "ours: a masked model of 4.4 million weights, 8 tasks",
}
"""What the folders of names hold."""


@functools.cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name.

    Example:
        >>> recipes()["mezo/table1/sst2-mezo"].published
        '91.4 (accuracy, %)'
    """
    return {recipe.name: recipe for table in TABLES for recipe in table.recipes()}


def get(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        BadInput: there is none; the sentence has the nearest one.
    """
    known = recipes()
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f": did you mean '{near}'?" if near else ""
    raise BadInput(f"unknown recipe '{name}'{hint} (gradless recipe lists them)")


def below(prefix: str) -> list[Recipe]:
    """Return the recipes whose names begin with a prefix, in their order."""
    return [recipe for name, recipe in recipes().items() if name.startswith(prefix)]


def sections() -> dict[str, list[Recipe]]:
    """Return the recipes by the folder that their names begin with: ``mezo/table1``, ``zo-bench/copa`` and so on."""
    folders: dict[str, list[Recipe]] = {}
    for name, recipe in recipes().items():
        folders.setdefault(name.rpartition("/")[0], []).append(recipe)
    return folders
