"""MoNNA (Farhadkhani et al. 2023, arXiv 2209.10931), and the group recipes that are ours.

Settings are those of `gradless.collab.recipes`, to which the commands refer. The paper's code stores no numbers, and
its text was not at hand: no accuracy of it is quoted.
"""

from __future__ import annotations

from typing import Any, Final

from gradless.runs.recipes.record import UNVERIFIED, Recipe, Row, Table

MONNA: Final = "Farhadkhani et al. 2023 (arXiv 2209.10931); settings of its released code"
ATTACKS: Final = {"ALIE": "alie", "FOE": "foe", "SF": "sign-flip", "LF": "label-flip"}
FREE: Final = "no-attack"
ALGORITHMS: Final = {
    **{"MoNNA": "monna", "NNA": "nna", "MoCWTM": "mocwtm", "BRIDGE": "bridge", "MoGM": "mogm", "GM": "gm"},
    **{"SCC": "scc", "LEARN": "learn", "D-SGD": "d-sgd"},
}
ALONE: Final = {
    "monna-mnist": ("--peers", "21", "--byzantine", "0", "--delivery", "all"),
    "monna-cifar10": ("--peers", "13", "--byzantine", "0", "--delivery", "all"),
}
"""Of D-SGD without attackers: as many peers as the others have honest ones, and all of them are heard."""
DIFFERS: Final = (
    "In the released code the first step of all peers adds up, LEARN sees one peer's gradient and SCC has data of its "
    "own; here they do not.",
    "NNA and the others without momentum take a lower learning rate than published, since they diverge at it.",
)
OURS: Final = {
    "monna-digits": ("ten algorithms on scikit-learn's digits, in a minute each and without files", ""),
    "heatmap-digits": ("worst attack over liars and the similarity of data", ""),
    "graphs-digits": ("accuracy over the connectivity of a graph", ""),
    "coefficients-sst2": ("a language model whose peers exchange 4 numbers a step", "sst2/"),
    "lora-sst2": ("a language model whose peers exchange LoRA weights", "sst2/"),
}
"""Recipes of ``gradless collab simulate`` that are ours, and the folder that each needs."""


def _attacked(key: str, recipe: str, algorithm: str, more: tuple[str, ...]) -> Recipe | None:
    if (algorithm == "d-sgd") != (key == FREE):
        return None
    attack = "none" if key == FREE else key
    data = recipe.removeprefix("monna-")
    words = ("collab", "simulate", "--recipe", recipe, "--data", f"{data}/", "--algorithm", algorithm)
    words += ("--attack", attack, *(ALONE[recipe] if key == FREE else ()), *more)
    seeds = tuple(argument for seed in range(1, 6) for argument in ("--seed", str(seed)))
    return Recipe(kind="command", command=(*words, *seeds), data=f"the files of {data}, in {data}/", differs=DIFFERS)


def _table(name: str, title: str, recipe: str, *more: str) -> Table:
    def maker(algorithm: str) -> Any:
        return lambda key: _attacked(key, recipe, algorithm, more)

    return Table(
        name=f"monna/{name}",
        title=title,
        source=MONNA,
        columns={**ATTACKS, "no attack": FREE},
        metric="accuracy",
        rows=tuple(Row(label, (), UNVERIFIED, key, maker(key)) for label, key in ALGORITHMS.items()),
    )


def _ours(name: str) -> Recipe:
    about, data = OURS[name]
    words = ("collab", "simulate", "--recipe", name, *(("--data", data) if data else ()), "--comparison")
    return Recipe(kind="command", about=about, command=words, data=f"files in {data}" if data else "nothing")


TABLES: Final = (
    _table("mnist", "26 peers, 5 Byzantine, MNIST, Dirichlet 5", "monna-mnist"),
    _table("mnist-alpha-1", "26 peers, 5 Byzantine, MNIST, Dirichlet 1", "monna-mnist", "--split-parameter", "1"),
    _table("cifar10", "16 peers, 3 Byzantine, CIFAR-10, Dirichlet 5", "monna-cifar10"),
    Table(
        name="groups",
        title="Groups",
        source="ours",
        columns={name: name for name in OURS},
        metric="",
        rows=(Row("comparison", make=_ours),),
    ),
)
