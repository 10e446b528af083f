"""What a recipe is: the settings behind one number of a paper, as a file that a command takes.

A paper's table is a `Table` of `Row` records, which hold the published numbers; each number whose settings can be
expressed here is a `Recipe`, named ``PAPER/TABLE/COLUMN-ROW``. Nothing here imports torch, since the shell completes
the names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["run", "grid", "evaluation", "command"]
PAPER, AUTHOR, SECOND_HAND, UNVERIFIED = "paper", "an author's page", "second-hand", "not verified"
"""How a published number is known: from the paper, from a page of an author, quoted by another publication, or not."""
NO_DROPOUT: Final = "Backpropagation here has no dropout: all methods train the loss of evaluation."


class Model(NamedTuple):
    """A model of a paper."""

    source: str
    """What ``--model`` takes."""
    shape: str
    """What ``gradless plan`` takes without fetching anything."""


MODELS: Final = {
    **{name: Model(f"facebook/{name}", f"shape:{name}") for name in ("opt-1.3b", "opt-2.7b", "opt-6.7b")},
    **{name: Model(f"facebook/{name}", f"shape:{name}") for name in ("opt-13b", "opt-30b", "opt-66b")},
    "roberta-large": Model("FacebookAI/roberta-large", "shape:roberta-large"),
    "llama-2-7b": Model("meta-llama/Llama-2-7b-hf", "shape:llama-2-7b"),
    "llama-2-13b": Model("meta-llama/Llama-2-13b-hf", "shape:llama-2-13b"),
    "vicuna-7b": Model("lmsys/vicuna-7b-v1.5", "shape:llama-2-7b"),
    "mistral-7b": Model("mistralai/Mistral-7B-v0.1", "shape:mistral-7b"),
    "splade-tiny": Model("splade-tiny", "splade-tiny"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings that make one number."""

    name: str = ""
    kind: Kind
    about: str = ""
    source: str = ""
    """Paper, table, and where the settings are from."""
    model: str = ""
    """A key of `MODELS`; empty if the recipe needs no language model."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of ``gradless tune --config`` or ``gradless eval --config``; of a grid its file, table by table."""
    command: tuple[str, ...] = ()
    """Words behind ``gradless``; of an evaluation the options that its file does not hold."""
    data: str = ""
    """Rows that it needs."""
    published: str = ""
    mark: str = ""
    differs: tuple[str, ...] = ()
    """What is not as published, in sentences."""

    @property
    def flat(self) -> dict[str, Any]:
        """The settings of one run: of a grid those of its first point."""
        if self.kind != "grid":
            return dict(self.settings)
        varied = {**self.settings.get("axes", {}), **self.settings.get("grid", {})}
        first = {name: values[0] for name, values in varied.items()}
        base = {name: value for name, value in self.settings["base"].items() if name != "evaluations"}
        point = {name.removeprefix("options."): first.pop(name) for name in [*first] if name.startswith("options.")}
        options = {**base.pop("options", {}), **point}
        steps = self.settings["budget"]["steps"]
        evaluations = self.settings["base"].get("evaluations", 5)
        more = {"steps": steps, "eval_every": -(-steps // evaluations), "seed": self.settings["seeds"][0]}
        select = "loss" if self.settings["select"] == "loss" else "metric"
        return {
            **{**base, **first, **more, "select": select},
            **({"options": options} if options else {}),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a paper's table."""

    label: str
    published: tuple[str, ...] = ()
    """A number for each column; "" where there is none. Empty: none of them is known."""
    mark: str = PAPER
    key: str = ""
    """Last part of the names of its recipes."""
    make: Callable[[str], Recipe | None] | None = None
    """Returns the recipe of a column, without name, source and number; None where it cannot be expressed."""
    why: str = ""
    """Why there is no recipe."""

    def number(self, column: int) -> str:
        """The published number of a column."""
        return self.published[column] if self.published else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table or figure of a paper, or a set of recipes of ours."""

    name: str
    """``mezo/table1``: the names of its recipes begin with it."""
    title: str
    source: str
    columns: Mapping[str, str]
    """What the paper calls a column, and the same in names."""
    rows: tuple[Row, ...]
    metric: str = "accuracy, %"
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Of columns that have another one, by their names."""
    note: str = ""
    """What a reader of the page must know of the settings."""

    def recipes(self) -> list[Recipe]:
        """All recipes of the table, by column."""
        every = (self.recipe(row, column) for column in range(len(self.columns)) for row in self.rows)
        return [recipe for recipe in every if recipe is not None]

    def recipe(self, row: Row, column: int) -> Recipe | None:
        """The recipe of a row and the column of a number (from 0), or None."""
        label, key = [*self.columns.items()][column]
        recipe = row.make(key) if row.make is not None else None
        if recipe is None:
            return None
        number = row.number(column)
        known = bool(number) or row.mark == UNVERIFIED
        metric = self.metrics.get(key, self.metric)
        return dataclasses.replace(
            recipe,
            name="/".join((self.name, "-".join(filter(None, (key, row.key))))),
            about=recipe.about or ", ".join(filter(None, (self.title, label, row.label))),
            source=recipe.source or self.source,
            published=f"{number} ({metric})" if number else "",
            mark=row.mark if known else "",
        )


def search(
    model: str,
    task: str,
    *,
    base: Mapping[str, Any],
    axes: Mapping[str, list[Any]],
    budget: Mapping[str, Any],
    cells: Mapping[str, list[Any]] | None = None,
    seeds: tuple[int, ...] = (0,),
    select: str = "loss",
    data: str = "",
    differs: tuple[str, ...] = (),
) -> Recipe:
    """Return a grid over the values that a paper searched; one run if there is one value and one seed.

    Args:
        model: a key of `MODELS`.
        task: a built-in task.
        base: settings of every run.
        axes: searched settings.
        budget: as in a grid file.
        cells: settings of which each value is a result of its own.
        seeds: of the final runs.
        select: what dev rows are compared by.
        data: where the rows come from.
        differs: what is not as published.
    """
    single = {name: values[0] for name, values in axes.items() if len(values) == 1}
    axes = {name: values for name, values in axes.items() if name not in single}
    whole = {"model": MODELS[model].source, "task": task, **base, **single}
    # Published searches look at the best evaluation of each run, on the seeds of the table itself.
    searched = {"search_seeds": list(seeds), "judge": "best"} if axes else {}
    settings = {
        **{"seeds": list(seeds), **searched, "budget": dict(budget), "select": select, "zero_shot": False},
        "base": whole,
        **({"axes": dict(cells)} if cells else {}),
        **({"grid": axes} if axes else {}),
    }
    return Recipe(kind="grid", model=model, settings=settings, data=data, differs=differs)


def evaluated(model: str, task: str, *, settings: Mapping[str, Any], mode: str = "zero-shot", data: str = "") -> Recipe:
    """Return an evaluation of an untouched model."""
    words = ("--mode", mode) if mode != "zero-shot" else ()
    whole = {"model": MODELS[model].source, "task": task, **settings}
    return Recipe(kind="evaluation", model=model, settings=whole, command=words, data=data)
