"""ZO-Bench (Zhang et al. 2024, arXiv 2402.11592): its experiments, with the grids of its released sweeps.

The released code is under GPL-3.0: these are its values and nothing else of it. 20,000 steps of zeroth order and 625 of
first order; 1,000 training rows (COPA 300). The paper's own text was not at hand: numbers are those that other
publications quote, and all others are "not verified".
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from gradless.runs.recipes.record import (
    AUTHOR,
    NO_DROPOUT,
    SECOND_HAND,
    UNVERIFIED,
    Recipe,
    Row,
    Table,
    search,
)

ZOBENCH: Final = "Zhang et al. 2024 (arXiv 2402.11592)"
SWEEPS: Final = f"{ZOBENCH}; grids of its released sweeps"
SCHEMES: Final[dict[str, dict[str, Any]]] = {
    "ft": {"scheme": "full"},
    "lora": {"scheme": "lora", "rank": 8, "alpha": 16.0},
    "prefix": {"scheme": "prefix", "num_prefix": 5},
    "prompt": {"scheme": "prompt", "num_prompt": 10},
}
LABELS: Final = {"FT": "ft", "LoRA": "lora", "Prefix": "prefix", "Prompt": "prompt"}
DTYPES: Final = {"ft": "float16", "lora": "float32", "prefix": "bfloat16", "prompt": "bfloat16"}
"""What most sweeps of a scheme have; those of Forward-Grad have float32."""
ROWS: Final = {
    "sst2": {"num_train": 1000, "num_dev": 500, "num_test": 872},
    "copa": {"num_train": 300, "num_dev": 100, "num_test": 100},
    "winogrande": {"num_train": 1000, "num_dev": 100, "num_test": 1000},
}
NAMES: Final = {
    **{"opt-1.3b": "OPT-1.3B", "opt-13b": "OPT-13B", "llama-2-7b": "Llama-2-7B", "llama-2-13b": "Llama-2-13B"},
    **{"vicuna-7b": "Vicuna-7B", "mistral-7b": "Mistral-7B"},
}

_X: Final = "5e-3,1e-4,5e-5,1e-5"
_FEW: Final = "1e-4,1e-6,1e-8;1e-3,1e-5"


class Searched(NamedTuple):
    """Grids of a method under a scheme, ``rates;eps``; ``3-6`` stands for 1e-3, 1e-4, 1e-5, 1e-6."""

    sst2: str
    copa: str
    """COPA on OPT and Llama-2."""
    others: str
    """COPA on Vicuna and Mistral, and WinoGrande."""


GRIDS: Final[dict[str, dict[str, Searched]]] = {
    "zo-sgd": {
        "ft": Searched("4-8;3-5", "5-8;2-4", "5-8;2-4"),
        "lora": Searched("3-6;2-4", f"{_X};2-3", "3-7;2-4"),
        "prefix": Searched("2-4;1e-1", "4-8;2-4", "3-7;2-4"),
        "prompt": Searched("3-6;2-4", "4-8;2-4", "3-7;2-4"),
    },
    "zo-sgd-mmt": {
        "ft": Searched("5-8;3-5", "5-8;2-4", "4-8;3-5"),
        "lora": Searched("3-6;2-4", f"{_X};2-3", "3-6;2-4"),
        "prefix": Searched("2-4;1e-1", "3-6;2-4", "3-7;3-5"),
        "prompt": Searched("3-6;2-4", "3-6;2-4", "3-6;2-4"),
    },
    "zo-sgd-cons": {
        "ft": Searched("5-8;2-4", "5-8;2-4", "5-8;2-4"),
        "lora": Searched("4-7;2-4", f"{_X};2-3", "3-7;2-4"),
        "prefix": Searched("3-6;2-4", "3-7;2-4", "3-7;2-4"),
        "prompt": Searched("4-7;2-4", "3-7;2-4", "3-7;2-4"),
    },
    "zo-sgd-sign": {
        "ft": Searched(_FEW, "5-8;2-4", "5-8;2-4"),
        "lora": Searched("3-6;2-4", f"{_X};2-3", "3-7;2-4"),
        "prefix": Searched("2-4;1e-1", "4-8;3-5", "3-7;2-4"),
        "prompt": Searched(_FEW, "4-8;3-5", "3-7;2-4"),
    },
    "zo-adam": {
        "ft": Searched("4-8;3-5", "5-8;2-4", "5-8;2-4"),
        "lora": Searched("4-6;2-5", f"{_X};2-3", "4-8;2-4"),
        "prefix": Searched("4-8;3-5", "4-8;2-4", "4-8;2-4"),
        "prompt": Searched("4-8;3-5", "4-8;2-4", "4-8;2-4"),
    },
    "forward-grad": {
        "ft": Searched("1e-5,1e-6,1e-7,5e-7,1e-8", "4-8", "4-8"),
        "lora": Searched("1e-5,5e-5,1e-6,5e-6,1e-7,5e-7", "4-8", "3-7"),
        "prefix": Searched("5e-3,1e-3,5e-4", "4-8", "3-7"),
        "prompt": Searched("1e-2,1e-3,1e-4,5e-5", "2-6", "3-7"),
    },
    "fo-sgd": {
        "ft": Searched("3-7", "4-7", "3-7"),
        "lora": Searched("2-6", _X, "2-6"),
        "prefix": Searched("2-6", "2-6", "2-6"),
        "prompt": Searched("4-8", "2-6", "2-6"),
    },
    "fo-adam": {
        "ft": Searched("1e-2,1e-4,1e-6", "1e-6,1e-7", "3-7"),
        "lora": Searched("2-6", _X, "2-6"),
        "prefix": Searched("2-6", "2-6", "2-6"),
        "prompt": Searched("1e-2,1e-4,1e-6", "2-6", "2-6"),
    },
}
SPECIAL: Final = {
    ("zo-sgd", "ft", "copa", "opt-13b"): "4-8;2-4",
    ("zo-sgd", "ft", "winogrande", "opt-13b"): "4-8;2-4",
    ("zo-sgd", "lora", "copa", "opt-13b"): "5e-3,1e-3,5e-4,1e-4,5e-5,1e-5;2-3",
    ("forward-grad", "ft", "winogrande", "opt-13b"): "1e-5,5e-6,1e-6,5e-7,1e-7,5e-8",
    ("fo-sgd", "ft", "copa", "opt-13b"): "1e-4",
}
SIGNS: Final = "Directions are +1/-1, of the same variance as the published Gaussian ones."
METHODS: Final[dict[str, tuple[str, dict[str, Any], tuple[str, ...]]]] = {
    "fo-sgd": ("fo-sgd", {}, (NO_DROPOUT,)),
    "forward-grad": ("forward-grad", {}, ()),
    "zo-sgd": ("mezo-gaussian", {}, ()),
    "zo-sgd-mmt": (
        "zo-momentum",
        {"beta": 0.9},
        (SIGNS, "m = 0.9 m + g as the code has it; the paper's form is not verified."),
    ),
    "zo-sgd-cons": (
        "zo-cons",
        {},
        (SIGNS, "The released sweeps hand the update to AdamW, so that a refused step is not taken back; here it is."),
    ),
    "zo-sgd-sign": (
        "zo-scalar-sign",
        {},
        (
            SIGNS,
            "The sign is that of the projected gradient, as in the code; element by element, as in Liu et al. 2019, is "
            "zo-sign.",
            "The released sweeps hand the update to AdamW.",
        ),
    ),
    "zo-adam": ("zo-adam", {}, ("Moments are in float32, in the code in the type of the weights.",)),
    "fo-adam": ("fo-adam", {}, (NO_DROPOUT, "Decoupled weight decay of 0, which is Adam.")),
}
CODE: Final = (
    "Steps and points are chosen on dev rows; the released code chooses them on the test rows.",
    "Types of weights differ within the published comparison; this is what most sweeps of the scheme have.",
)
FIRST_ORDER: Final = "625 steps of 8 rows as in the paper; most released sweeps take 20,000 of 16."


def values(text: str) -> list[float]:
    """Return the values that a grid names, the largest first where they are decades.

    Example:
        >>> values("3-5"), values("5e-3,1e-4")
        ([0.001, 0.0001, 1e-05], [0.005, 0.0001])
    """
    first, dash, last = text.partition("-")
    if dash and first.isdecimal():
        return [float(f"1e-{power}") for power in range(int(first), int(last) + 1)]
    return [float(one) for one in text.split(",")]


def recipe(task: str, model: str, scheme: str, method: str, *, searched: str = "", **more: Any) -> Recipe:
    """Return the grid of a method under a scheme (keys of `METHODS` and `SCHEMES`).

    Args:
        task: a key of `ROWS`.
        model: a key of `NAMES`.
        scheme: a key of `SCHEMES`.
        method: a key of `METHODS`.
        searched: ``rates;eps`` in place of those of `GRIDS` and `SPECIAL`.
        more: other settings.
    """
    ours, options, differs = METHODS[method]
    grids = GRIDS[method][scheme]
    few = task == "copa" and model.startswith(("opt", "llama"))
    usual = grids.sst2 if task == "sst2" else grids.copa if few else grids.others
    text = searched or SPECIAL.get((method, scheme, task, model), usual)
    rates, _, eps = text.partition(";")
    first_order = method.startswith("fo-")
    exact = first_order or method == "forward-grad"
    base = {
        **{"method": ours, **SCHEMES[scheme], **ROWS[task], "batch_size": 8 if first_order else 16},
        **{"max_length": 2048, "dtype": "float32" if exact else DTYPES[scheme], "device": "cuda"},
        **{"evaluations": 5 if first_order else 40, **({"options": options} if options else {}), **more},
    }
    return search(
        model,
        task,
        base=base,
        axes={"lr": values(rates), **({"eps": values(eps)} if eps else {})},
        budget={"steps": 625 if first_order else 20000},
        differs=(*differs, *([FIRST_ORDER] if first_order else []), *CODE),
        data=f"the task {task}, from the hub, or from a folder (data = ...)",
    )


def _of(task: str, method: str) -> Any:
    """Return a maker for columns such as ``opt-13b-lora``."""
    return lambda key: recipe(task, key.removeprefix(f"{task}-").rpartition("-")[0], key.rpartition("-")[2], method)


def _published(method: str) -> tuple[str, ...]:
    """Numbers of OPT-1.3B on SST-2 that ReLIZO (NeurIPS 2024, its table 4) quotes."""
    quoted = {
        "fo-sgd": ("91.1", "93.6", "93.1", "92.8"),
        "zo-sgd": ("90.8", "90.1", "91.4", "84.4"),
        "zo-sgd-sign": ("87.2", "91.5", "89.5", "72.9"),
        "zo-adam": ("84.4", "92.3", "91.4", "75.7"),
    }
    return quoted.get(method, ())


TITLES: Final = {
    **{"fo-sgd": "FO-SGD", "forward-grad": "Forward-Grad", "zo-sgd": "ZO-SGD", "zo-sgd-mmt": "ZO-SGD-MMT"},
    **{"zo-sgd-cons": "ZO-SGD-Cons", "zo-sgd-sign": "ZO-SGD-Sign", "zo-adam": "ZO-Adam", "fo-adam": "FO-Adam"},
}


def _sst2() -> Table:
    rows = [
        Row(title, _published(method), SECOND_HAND if _published(method) else UNVERIFIED, method, _of("sst2", method))
        for method, title in TITLES.items()
    ]
    return Table(
        name="zo-bench/table2",
        title="OPT-1.3B on SST-2",
        source=f"{ZOBENCH}, table 2 (its number is not verified); grids of its released sweeps",
        columns={label: f"sst2-opt-1.3b-{scheme}" for label, scheme in LABELS.items()},
        note="Numbers are those that ReLIZO (NeurIPS 2024) quotes in its table 4.",
        rows=tuple(rows),
    )


def _others(task: str, title: str) -> list[Table]:
    models = [name for name in NAMES if name != "opt-1.3b"]
    return [
        Table(
            name=f"zo-bench/{task}",
            title=f"{NAMES[model]} on {title}",
            source=SWEEPS,
            columns={label: f"{model}-{scheme}" for label, scheme in LABELS.items()},
            rows=tuple(Row(name, (), UNVERIFIED, method, _of(task, method)) for method, name in TITLES.items()),
        )
        for model in models
    ]


def _bare(key: str, method: str) -> Recipe | None:
    task, _, model = key.partition("-")
    if (task, method) == ("sst2", "fo-sgd"):
        return None  # no such sweep was released
    rates = "4-8" if method == "fo-sgd" else ""
    return recipe(task, model, "ft", method, searched=rates, aligned=False)


def _sparse(key: str) -> Recipe:
    """Return random sparsity: the shares that the code's masks keep, which are not those of its labels."""
    # A standard normal number is compared with the ratio s: a share of Phi(s) is zero.
    kept = [0.46, 0.421, 0.382, 0.345, 0.309, 0.274, 0.242, 0.212, 0.184]
    base = {
        **{"method": "zo-sparse", "scheme": "full", **ROWS["sst2"], "lr": 1e-6, "eps": 1e-3, "batch_size": 16},
        **{"max_length": 2048, "dtype": "float16", "device": "cuda", "evaluations": 40, "options": {"mask": "random"}},
    }
    return search(
        "opt-1.3b",
        "sst2",
        base=base,
        axes={},
        cells={"options.keep": kept},
        budget={"steps": 20000},
        data="the task sst2, from the hub, or from a folder (data = ...)",
        differs=(
            SIGNS,
            "keep is the share that the released code leaves for ratios of 0.1 to 0.9: it compares a normal number.",
            "The mask stays; the sweeps draw a new one every 1 to 20,000 steps, of which the last is this.",
            *CODE,
        ),
    )


def _plan(key: str, method: str) -> Recipe:
    words: tuple[str, ...] = ("plan", "--model", "shape:opt-13b", "--method", method, "--batch-size", "2")
    words += ("--length", key.rpartition("-")[2])
    dtype = "float32" if method == "fo-sgd" else "float16"
    return Recipe(
        kind="command",
        model="opt-13b",
        command=(*words, "--dtype", dtype),
        data="nothing",
        differs=("Counts tensors; the published numbers are what a process holds.",),
    )


TABLES: Final = (
    _sst2(),
    Table(
        name="zo-bench/table2/roberta-large",
        title="RoBERTa-large on SST-2",
        source=f"{ZOBENCH}, table 2",
        columns=LABELS,
        note="The one number is quoted by BenchmarkCards.",
        rows=(
            Row("FO-SGD", ("91.4", "", "", ""), SECOND_HAND, why="settings of RoBERTa were not released"),
            Row("all others", (), UNVERIFIED, why="as above"),
        ),
    ),
    *_others("copa", "COPA"),
    *_others("winogrande", "WinoGrande"),
    Table(
        name="zo-bench/alignment",
        title="Without the words that align a task",
        source=SWEEPS,
        columns={"SST-2, OPT-1.3B": "sst2-opt-1.3b", "COPA, OPT-13B": "copa-opt-13b"},
        note="FO-SGD on COPA has rates of its own in the released sweeps; on SST-2 there is no such sweep. No other "
        "grids of this ablation are known to us: the recipes have those of the aligned task. Head tuning is left out.",
        rows=tuple(
            Row(TITLES[method], (), UNVERIFIED, f"bare-{method}", partial(_bare, method=method))
            for method in ("zo-sgd", "forward-grad", "fo-sgd")
        ),
    ),
    Table(
        name="zo-bench/sparsity",
        title="Random sparsity",
        source=SWEEPS,
        columns={"SST-2, OPT-1.3B": "sst2-opt-1.3b"},
        rows=(Row("ZO-SGD, sparse", (), UNVERIFIED, "random", _sparse),),
    ),
    Table(
        name="zo-bench/block-wise",
        title="Block-wise and hybrid",
        source=ZOBENCH,
        columns={},
        rows=(
            Row(
                "block-wise", (), UNVERIFIED, why="settings are not known to us; `--method zo-blockwise` is the method"
            ),
            Row("hybrid", (), UNVERIFIED, why="never released; `--method hybrid` is the method"),
        ),
    ),
    Table(
        name="zo-bench/memory",
        title="Memory by length, OPT-13B, 2 sequences",
        source=f"{ZOBENCH}, figure on a page of an author",
        columns={"700 tokens": "opt-13b-700", "1,470 tokens": "opt-13b-1470"},
        metric="GB, read off a figure",
        rows=(
            Row("FO-SGD", ("about 97", "about 165"), AUTHOR, "fo-sgd", partial(_plan, method="fo-sgd")),
            Row("ZO-SGD", ("25 to 28", "25 to 28"), AUTHOR, "zo-sgd", partial(_plan, method="mezo-gaussian")),
        ),
    ),
    Table(
        name="zo-bench/multirc",
        title="Memory and time on MultiRC",
        source=ZOBENCH,
        columns={},
        rows=(
            Row(
                "all methods",
                (),
                UNVERIFIED,
                why="the numbers are not known to us; `gradless plan` and `gradless profile` give ours",
            ),
        ),
    ),
)
