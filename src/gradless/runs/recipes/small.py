"""Recipes of ours for a masked model that anybody can train: 4.4 million weights, milliseconds a step on one thread.

k training and k dev rows of each class, as in MeZO's experiments with RoBERTa-large. 512 is more than CR has: 256.
"""

from __future__ import annotations

from typing import Any, Final

from gradless.runs.recipes.record import MODELS, Recipe, Row, Table

TASKS: Final = {
    **{"SST-2": "sst2", "SST-5": "sst5", "MR": "mr", "CR": "cr", "AG News": "agnews"},
    **{"MNLI": "mnli", "SNLI": "snli", "RTE": "rte"},
}
TEST: Final = {"sst2": 872, "rte": 277}
METHODS: Final[dict[str, dict[str, Any]]] = {
    "mezo": {"method": "mezo", "lr": 3e-5, "eps": 1e-3, "steps": 10000},
    "adamw": {"method": "fo-adam", "lr": 1e-4, "steps": 625},
}
LOCAL: Final = {"snli": "; files with fewer rows of a class take --k-shot 256"}


def _run(key: str, method: str) -> Recipe:
    task, _, shots = key.partition("-k")
    k = int(shots)
    settings = {
        **{"model": MODELS["splade-tiny"].source, "task": task, "scheme": "full", **METHODS[method], "batch_size": 16},
        **{"k_shot": k, "num_test": TEST.get(task, 1000), "select": "metric"},
    }
    return Recipe(
        kind="run",
        model="splade-tiny",
        settings=settings,
        data=f"the task {task}, from the hub, or from a folder with --data{LOCAL.get(task, '')}",
    )


def _table(k: int) -> Table:
    columns = {label: f"{task}-k{256 if (task, k) == ('cr', 512) else k}" for label, task in TASKS.items()}

    def maker(method: str) -> Any:
        return lambda key: _run(key, method)

    return Table(
        name="small",
        title="BERT-tiny (splade-tiny)",
        source="ours",
        columns=columns,
        rows=(Row("MeZO", key="mezo", make=maker("mezo")), Row("AdamW", key="adamw", make=maker("adamw"))),
    )


TABLES: Final = (_table(16), _table(512))
