"""The tables of the paper index: published numbers from the recipes, ours from the result files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gradless.runs import recipes
from gradless.runs.recipes.record import UNVERIFIED, Row, Table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
UNKNOWN = "not verified"
Line = dict[str, Any]
Write = Callable[..., str]


def lines(name: str) -> list[Line]:
    """The lines of a result file."""
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def paper(write: Write, prefix: str) -> str:
    """Every table of a paper: what was published, and by which recipe it can be run."""
    parts: list[str] = []
    unknown: dict[str, list[Table]] = {}
    for table in recipes.TABLES:
        if table.name.startswith(f"{prefix}/"):
            if any(row.published for row in table.rows):
                parts += one(write, table)
            else:
                unknown.setdefault(table.name, []).append(table)
    for tables in unknown.values():
        parts += several(write, tables)
    return "\n\n".join(parts)


def one(write: Write, table: Table) -> Iterable[str]:
    """A table with published numbers: its title, its numbers, and the recipe of each row or why there is none."""
    kinds = [table.metric, *(f"{key}: {metric}" for key, metric in table.metrics.items())]
    yield f"**{table.title}**. {_sentence(table.source)} ({'; '.join(filter(None, kinds))})."
    yield from _notes([table])
    heads = ["", *table.columns, "recipe"]
    yield write(heads, [[row.label, *_numbers(table, row), _recipes(row, [table])] for row in table.rows])


def several(write: Write, tables: list[Table]) -> Iterable[str]:
    """Tables of one name and the same rows, of which no number is known."""
    yield f"**{'; '.join(table.title for table in tables)}**. {_sentence(tables[0].source)}."
    yield from _notes(tables)
    rows = [[row.label, row.mark, _recipes(row, tables)] for row in tables[0].rows]
    yield write(["", "published", "recipe"], rows)


def _notes(tables: list[Table]) -> Iterable[str]:
    """What the tables say of themselves, and which columns their recipes are named by."""
    keys = dict.fromkeys(
        key
        for table in tables
        for column, key in enumerate(table.columns.values())
        if sum(table.recipe(row, column) is not None for row in table.rows) and len(_recipe_names(table)) > 1
    )
    columns = f"COLUMN: {', '.join(f'`{key}`' for key in keys)}." if keys else ""
    if note := " ".join(filter(None, (tables[0].note, columns))):
        yield note


def _recipe_names(table: Table) -> list[str]:
    return [one.name for one in table.recipes()]


def _sentence(source: str) -> str:
    return source[0].upper() + source[1:]


def _numbers(table: Table, row: Row) -> list[str]:
    if row.mark == UNVERIFIED:
        return [UNKNOWN] * len(table.columns)
    mark = "" if row.mark == "paper" else f" ({row.mark})"
    return [f"{number}{mark}" if number else "-" for number in row.published or [""] * len(table.columns)]


def _recipes(row: Row, tables: list[Table]) -> str:
    """The names of a row's recipes, those of all columns in one where they differ in the column alone."""
    own = [(table, line) for table in tables for line in table.rows if line.label == row.label]
    every = [table.recipe(line, column) for table, line in own for column in range(len(table.columns))]
    names = [one.name for one in every if one is not None]
    if len(names) < 2:
        return f"`{names[0]}`" if names else f"none: {row.why}"
    return f"`{tables[0].name}/COLUMN-{row.key}`"


# ---------------------------------------------------------------------------------------------------------------
# ours


def spread(values: list[float], scale: float = 100.0) -> str:
    """Mean and standard deviation in per cent, or the one value."""
    mean = scale * statistics.mean(values)
    return f"{mean:.1f} ± {scale * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f} (one seed)"


def study(write: Write) -> str:
    """ZO-Bench's methods on SST-2 and COPA, on a model that is 48 times smaller than OPT-13B."""
    runs = [run for run in lines("study.jsonl") if run["cell"]["task"] in ("sst2", "copa")]
    columns = [(task, scheme) for task in ("sst2", "copa") for scheme in ("full", "lora")]
    methods = dict.fromkeys(run["cell"]["method"] for run in runs if run["phase"] == "final")
    rows = []
    for method in methods:
        cells = []
        for task, scheme in columns:
            wanted = {"task": task, "scheme": scheme, "method": method}
            own = [run for run in runs if run["phase"] == "final" and wanted.items() <= run["cell"].items()]
            scores = [run["test"]["accuracy"] for run in own if run.get("test")]
            cells.append(spread(scores) if scores else "-")
        rows.append([f"`{method}`", *cells])
    untouched = [[run["test"]["accuracy"] for run in runs if _is_zero_shot(run, task)] for task, _ in columns]
    rows.insert(0, ["untouched", *(spread(scores) if scores else "-" for scores in untouched)])
    return write(["test accuracy, %", *(f"{task}, {scheme}" for task, scheme in columns)], rows)


def _is_zero_shot(run: Line, task: str) -> bool:
    return run["phase"] == "zero-shot" and run["cell"]["task"] == task and bool(run.get("test"))


def groups(write: Write) -> str:
    """MoNNA's algorithms: the worst honest peer."""
    parts = (
        ("MNIST, Dirichlet 5, 600 steps", "collab-mnist.jsonl"),
        ("MNIST, Dirichlet 1, 600 steps", "collab-mnist-alpha-1.jsonl"),
        ("CIFAR-10, 150 of 2,000 steps", "collab-cifar10-150.jsonl"),
    )
    attacks = {"alie": "ALIE", "foe": "FOE", "sign-flip": "SF", "label-flip": "LF", "none": "no attack"}
    rows = []
    for title, name in parts:
        runs = lines(name)
        for algorithm in dict.fromkeys(run["algorithm"] for run in runs):
            cells = []
            for attack in attacks:
                own = [run for run in runs if (run["algorithm"], run["attack"]) == (algorithm, attack)]
                scores = [run["worst_accuracy"] for run in own if run.get("worst_accuracy") is not None]
                cells.append(spread(scores) if scores else "-")
            rows.append([title, algorithm, *cells])
    return write(["", "worst honest peer, %", *attacks.values()], rows, left=2)


def small(write: Write) -> str:
    """What backpropagation reaches with the small masked model."""
    rows = []
    for line in lines("small-model.jsonl"):
        low, high = line["test_interval"]
        rows.append(
            [
                f"`{line['task']}`",
                str(line["k_shot"]),
                f"{100 * line['majority']:.1f}",
                f"{100 * line['untouched']:.1f}",
                f"{100 * line['test']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                f"{line['lr']:g}",
            ]
        )
    heads = ["task", "k", "largest class", "untouched", "AdamW, 625 steps (95 %)", "rate chosen on dev"]
    return write(heads, rows)


def memory(write: Write) -> str:
    """Planned memory beside what was published."""
    planned, rows = json.loads((RESULTS / "recipe-memory.json").read_text()), []
    for name, figures in planned.items():
        published = recipes.get(name).published.partition(" (")[0] or "-"
        total, inference = figures["total_bytes"], figures["inference_bytes"]
        sizes = [f"{total / 1e9:,.1f}", f"{total / 2**30:,.1f}", f"{inference / 2**30:,.1f}"]
        rows.append([f"`{name}`", published, *sizes])
    heads = ["recipe", "published, GB (table 12: MB beside the weights)", "planned here, 10^9 bytes", "2^30 bytes"]
    return write([*heads, "inference, 2^30 bytes"], rows)


def mezo_small(write: Write) -> str:
    """MeZO on SST-2 with Gemma 3 270M."""
    whole = json.loads((RESULTS / "sst2-gemma-3-270m.json").read_text())["runs"].values()
    rows = []
    for scheme in dict.fromkeys(run["config"]["scheme"] for run in whole):
        runs = [run for run in whole if run["config"]["scheme"] == scheme]
        config = runs[0]["config"]
        about = f"{config['steps']} steps of {config['batch_size']}, lr {config['lr']:g}, eps {config['eps']:g}"
        rows.append(
            [
                f"MeZO, {scheme}",
                about,
                spread([run["zero_shot"]["accuracy"] for run in runs[:1]]).split()[0],
                spread([run["test"]["accuracy"] for run in runs]),
            ]
        )
    return write(["", "", "untouched, %", "test accuracy, %"], rows, left=2)


TABLES: dict[str, Callable[[Write], str]] = {
    "papers_mezo": lambda write: paper(write, "mezo"),
    "papers_zobench": lambda write: paper(write, "zo-bench"),
    "papers_monna": lambda write: paper(write, "monna"),
    "papers_study": study,
    "papers_groups": groups,
    "papers_small": small,
    "papers_memory": memory,
    "papers_sst2": mezo_small,
}
