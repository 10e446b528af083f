"""Published configurations of collaborative runs by name, and the comparisons that were made with them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gradless.collab import aggregators, attacks
from gradless.collab.algorithms import ALGORITHMS, PARAMETERS
from gradless.collab.config import CollabConfig
from gradless.collab.data.splits import SPLITS
from gradless.collab.network.delivery import Delivery
from gradless.collab.network.topology import COMPLETE
from gradless.errors import pick

COMPARED = ("monna", "nna", "mocwtm", "bridge", "mogm", "gm", "scc", "clipped-gossip", "d-sgd", "learn")
PUBLISHED = ("alie", "foe", "sign-flip", "label-flip")
# As published: a peer goes on with n - f rows, among them those of all attackers, and keeps n - 2 f.
ASYNCHRONOUS = Delivery(mode="first")


class Recipe(NamedTuple):
    """One configuration, and the values that its comparison takes instead of some of its own."""

    base: CollabConfig
    comparison: Mapping[str, Sequence[Any]]
    summary: str
    source: str
    needs: str = ""
    """What --data must hold."""
    plain_lr: float | None = None
    """Learning rate of algorithms without momentum: what is right with it diverges without."""


_BASES = {
    "mnist": CollabConfig(
        dataset="mnist", peers=26, byzantine=5, algorithm="monna", attack="alie", steps=600, batch_size=25, lr=0.75,
        decay=50, refresh=50, momentum=0.99, weight_decay=1e-4, radius=2.0, split="dirichlet-classes",
        split_parameter=5.0, seed=1, delivery=ASYNCHRONOUS,
    ),
    "cifar10": CollabConfig(
        dataset="cifar10", peers=16, byzantine=3, algorithm="monna", attack="alie", steps=2000, batch_size=50, lr=0.5,
        decay=167, refresh=1500, momentum=0.99, weight_decay=1e-2, radius=5.0, split="dirichlet-classes",
        split_parameter=5.0, eval_every=100, eval_rows=500, seed=1, delivery=ASYNCHRONOUS,
    ),
    "digits": CollabConfig(
        dataset="digits", peers=16, byzantine=3, algorithm="monna", attack="alie", steps=300, batch_size=16, lr=0.5,
        momentum=0.9, weight_decay=1e-4, split="dirichlet-classes", split_parameter=5.0, eval_rows=None, seed=1,
    ),
    "coefficients": CollabConfig(
        dataset=None, model="gemma-3-270m", task="sst2", peers=7, byzantine=2, algorithm="bridge", attack="sign-flip",
        payload="coefficients", momentum=0.0, scheme="full", freeze=("embed",), queries=4, steps=100, batch_size=8,
        lr=3e-6, split="iid", num_test=400, eval_every=25, eval_rows=200, seed=1,
    ),
    "lora": CollabConfig(
        dataset=None, model="gemma-3-270m", task="sst2", peers=7, byzantine=2, algorithm="monna", attack="sign-flip",
        momentum=0.9, scheme="lora", steps=50, batch_size=8, lr=1e-2, split="iid", num_test=400, eval_every=25,
        eval_rows=200, seed=1,
    ),
}  # fmt: skip
# Seeds first: a comparison that is cut short has all algorithms under one seed.
_COMPARED: dict[str, Sequence[Any]] = {"seed": (1, 2, 3), "attack": PUBLISHED, "algorithm": COMPARED}

RECIPES: dict[str, Recipe] = {
    "monna-digits": Recipe(_BASES["digits"], _COMPARED, "scikit-learn's digits; needs no files and a minute", "ours"),
    "monna-mnist": Recipe(
        _BASES["mnist"], _COMPARED, "26 peers, 5 Byzantine, a CNN on MNIST, 600 steps", "arXiv 2209.10931",
        "MNIST's IDX files", plain_lr=0.3,
    ),
    "monna-cifar10": Recipe(
        _BASES["cifar10"], _COMPARED, "16 peers, 3 Byzantine, a CNN on CIFAR-10, 2000 steps", "arXiv 2209.10931",
        "CIFAR-10's binary batches, or a folder or archive of its images", plain_lr=0.1,
    ),
    "heatmap-digits": Recipe(
        dataclasses.replace(_BASES["digits"], split="gamma-similarity", split_parameter=1.0),
        {
            "algorithm": ("monna", "mocwtm", "mogm"), "attack": ("alie", "foe", "sign-flip"), "byzantine": (1, 2, 3, 4),
            "split_parameter": (0.0, 0.33, 0.66, 1.0), "seed": (1,),
        },
        "worst attack over the number of attackers and the similarity of the peers' data", "ByzFL's benchmark",
    ),
    "graphs-digits": Recipe(
        dataclasses.replace(
            _BASES["digits"], peers=24, byzantine=2, split="gamma-similarity", split_parameter=0.33, steps=60,
            eval_every=20, topology="k-ring", degree=6,
        ),
        {
            "seed": (1, 2, 3), "topology": ("k-ring", "random"), "degree": (6, 12, 22),
            "attack": ("none", "alie", "dissensus"), "algorithm": ("nna", "bridge", "clipped-gossip", "d-sgd"),
        },
        "accuracy over the connectivity of the graph on which peers hear each other", "ours",
    ),
    "coefficients-sst2": Recipe(
        _BASES["coefficients"], {"attack": ("none", "sign-flip", "alie"), "seed": (1, 2, 3)},
        "a language model whose peers exchange 4 numbers a step", "ours", "SST-2",
    ),
    "lora-sst2": Recipe(
        _BASES["lora"], {"attack": ("none", "sign-flip", "alie"), "seed": (1, 2, 3)},
        "a language model whose peers exchange LoRA weights", "ours", "SST-2",
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """Return the recipe of a name."""
    return pick("recipe", name, RECIPES)


def compared(of: Recipe, others: Mapping[str, Sequence[Any]] | None = None) -> list[CollabConfig]:
    """All runs of a recipe's comparison, D-SGD without attackers in front as what they are measured against.

    D-SGD has as many peers as the attacked runs have honest ones, with the same rows, and all of them hear each other.

    Args:
        of: the recipe.
        others: values in place of the comparison's, by field.
    """
    runs = grid(of, {**of.comparison, **(others or {})})
    free = [
        dataclasses.replace(
            run,
            algorithm="d-sgd",
            lr=of.base.lr,
            rule=None,
            rule_options={},
            attack="none",
            attackers=0,
            attack_options={},
            byzantine=0,
            peers=run.peers - (run.resolved().attackers or 0),
            delivery=Delivery(),
            topology=COMPLETE,
            degree=None,
            graph=None,
        )
        for run in runs
        if run.payload == PARAMETERS
    ]
    return list({run.resolved().id(): run for run in (*free, *runs)}.values())


def grid(of: Recipe, axes: Mapping[str, Sequence[Any]]) -> list[CollabConfig]:
    """Return a recipe with all combinations of values of some fields; algorithms without momentum at their own rate."""
    points = itertools.product(*axes.values())
    runs = [dataclasses.replace(of.base, **dict(zip(axes, values, strict=True))) for values in points]
    return [dataclasses.replace(run, lr=of.plain_lr) if of.plain_lr and _plain(run) else run for run in runs]


def _plain(run: CollabConfig) -> bool:
    """Whether a run has no momentum because its algorithm has none."""
    row = ALGORITHMS.get(run.algorithm)  # an unknown name is refused later
    return row is not None and row.momentum == 0.0


def _about(row: Any) -> str:
    """Return a table's row in one line."""
    paper = getattr(row, "paper", "") or getattr(row, "source", "")
    facts = [paper] if paper and paper != "-" else []
    if isinstance(row, aggregators.Entry):
        facts += [row.condition, f"cost {row.cost}"]
    return f"{row.summary} ({'; '.join(facts)})" if facts else row.summary


def _rows(*tables: Mapping[str, Any]) -> dict[str, str]:
    return {name: _about(row) for table in tables for name, row in table.items()}


def _recipes() -> dict[str, str]:
    """Return each recipe in one line, with what it sets in place of the defaults of ``gradless collab simulate``."""
    usual = CollabConfig().to_json()
    rows = {}
    for name, about in _rows(RECIPES).items():
        base = RECIPES[name].base.to_json()
        changed = {**{key: value for key, value in base.items() if value != usual.get(key)}, **_network(base, usual)}
        rows[name] = f"{about}: {', '.join(f'{key} {value}' for key, value in changed.items() if value is not None)}"
    return rows


def _network(base: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "delivery": None,
        **{key: value for key, value in base["delivery"].items() if value != usual["delivery"][key]},
    }


TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "aggregators": lambda: _rows(aggregators.AGGREGATORS, aggregators.PRE_AGGREGATORS),
    "attacks": lambda: _rows(attacks.ATTACKS),
    "algorithms": lambda: _rows(ALGORITHMS),
    "splits": lambda: _rows(SPLITS),
    "recipes": _recipes,
}
