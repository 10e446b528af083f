"""MeZO (Malladi et al. 2023, arXiv 2305.17333): its tables of RoBERTa-large, with the grids of its table 15.

k training and k dev rows of each class (LM-BFF's protocol), 1,000 test rows or as many as there are, five seeds, dev
accuracy at every tenth of a run; MeZO takes 100,000 steps of batch 64, fine-tuning 1,000.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from gradless.runs.recipes.mezo_opt import MEZO, numbers
from gradless.runs.recipes.record import NO_DROPOUT, Recipe, Row, Table, evaluated, search

TASKS: Final = {"SST-2": "sst2", "SST-5": "sst5", "SNLI": "snli", "MNLI": "mnli", "RTE": "rte", "TREC": "trec"}
TEST: Final = {"sst2": 872, "rte": 277, "trec": 500}
SEEDS: Final = (13, 21, 42, 87, 100)
STEPS: Final = 100000
FULL: Final = {"scheme": "full", "eps": 1e-3}
LORA: Final = {"scheme": "lora", "rank": 8, "alpha": 16.0}
PREFIX: Final = {"scheme": "prefix", "num_prefix": 5}
ZO_RATES: Final = [1e-6, 1e-7, 1e-5]
ABLATIONS: Final[dict[str, list[Any]]] = {
    "lr": ZO_RATES,
    "batch_size": [64, 16],
    "eps": [1e-3, 1e-5],
    "weight_decay": [0.0, 0.1],
}
"""What tables 5, 6, 9 and 10 search."""
FINE_TUNED: Final[dict[str, tuple[dict[str, Any], list[Any], list[Any]]]] = {
    "full": ({"scheme": "full"}, [1e-5, 3e-5, 5e-5], [8, 16, 32]),
    "lora": (LORA, [1e-4, 3e-4, 5e-4], [4, 8, 16]),
    "prefix": (PREFIX, [1e-2, 3e-2, 5e-2], [8, 16, 32]),
}
"""Settings, rates and batches of fine-tuning by Adam."""
CODE: Final = (
    "The paper chooses a point for each seed, here one is chosen for all of them.",
    "Rows are drawn by gradless's generator: the same numbers of them, other ones than LM-BFF's seeds draw.",
)
GAUSSIAN: Final = "Directions are Gaussian as published, of another generator."


def tuned(
    task: str, axes: dict[str, list[Any]], *, k: int, differs: tuple[str, ...], steps: int, **base: Any
) -> Recipe:
    """Return a grid of runs from k rows of each class."""
    whole = {**base, "k_shot": k, "num_test": TEST.get(task, 1000), "evaluations": 10}
    whole |= {"dtype": "float32", "device": "cuda"}
    return search(
        "roberta-large",
        task,
        base=whole,
        axes=axes,
        budget={"steps": steps},
        seeds=SEEDS,
        select="metric",
        differs=(*differs, *CODE),
        data=f"the task {task}, from the hub, or from a folder (data = ...)",
    )


def mezo(task: str, *, k: int, scheme: str = "full", steps: int = STEPS, **more: Any) -> Recipe:
    """Return MeZO with all weights, LoRA or a prefix."""
    base, rates = {
        "full": (FULL, ZO_RATES),
        "lora": ({**LORA, "eps": 1e-3, "weight_decay": 0.1}, [1e-5, 5e-5, 1e-4]),
        "prefix": ({**PREFIX, "eps": 1e-1}, [1e-2, 5e-3, 1e-3]),
    }[scheme]
    settings = {"method": "mezo-gaussian", **base, "batch_size": 64, **more}
    return tuned(task, {"lr": rates}, k=k, differs=(GAUSSIAN,), steps=steps, **settings)


def mezo_adam(task: str, *, k: int) -> Recipe:
    """Return MeZO-Adam, whose moments are stored."""
    rates = {"lr": [1e-4, 1e-6, 1e-5, 5e-4, 1e-3]}
    return tuned(task, rates, k=k, differs=(GAUSSIAN,), steps=STEPS, method="zo-adam", batch_size=64, **FULL)


def adam(task: str, *, k: int, scheme: str = "full") -> Recipe:
    """Return fine-tuning by Adam: the batch is searched, too."""
    base, rates, batches = FINE_TUNED[scheme]
    axes = {"lr": rates, "batch_size": [2, 4, 8] if (scheme, k) == ("full", 16) else batches}
    return tuned(task, axes, k=k, differs=(NO_DROPOUT,), steps=1000, method="fo-adam", schedule="linear", **base)


def untouched(task: str, *, mode: str = "zero-shot", **rows: int) -> Recipe:
    """Return the untouched model, or what a mode of evaluation makes of it."""
    settings = {**rows, "num_test": TEST.get(task, 1000), "dtype": "float32", "device": "cuda"}
    data = f"the task {task}, from the hub, or with --data"
    return evaluated("roberta-large", task, mode=mode, settings=settings, data=data)


def ablation(task: str, *, steps: int = 5000, **more: Any) -> Recipe:
    """Return MeZO with all weights for an ablation: k = 16, 10,000 forwards."""
    return tuned(task, ABLATIONS, k=16, differs=(GAUSSIAN,), steps=steps, method="mezo-gaussian", scheme="full", **more)


def _accuracy(task: str) -> Recipe:
    return mezo(task, k=512, objective="accuracy")


def _queries(task: str, *, count: int, schedule: str = "constant", forwards: int = 10000) -> Recipe:
    """Return MeZO with several directions a step, in a budget of 10,000 forwards, which a linear schedule halves."""
    how: dict[str, Any] = {"queries": count}
    steps = forwards // (2 * count)
    if schedule == "linear":
        # max(1, t n / T) directions at step t of T: about n / 2 + 1 / (2 n) on average.
        mean = sum(max(1, t * count // 1000) for t in range(1000)) / 1000
        steps, how["query_schedule"] = round(forwards / (2 * mean)), "linear"
    return ablation(task, steps=steps, **how)


def _table(k: int, rows: dict[str, str]) -> Table:
    makers = {
        "LP": ("probe", partial(untouched, mode="probe", k_shot=k)),
        "MeZO": ("mezo", partial(mezo, k=k)),
        "MeZO, LoRA": ("mezo-lora", partial(mezo, k=k, scheme="lora")),
        "MeZO, prefix": ("mezo-prefix", partial(mezo, k=k, scheme="prefix")),
        "MeZO-Adam": ("mezo-adam", partial(mezo_adam, k=k)),
        "FT": ("ft", partial(adam, k=k)),
        "FT, LoRA": ("ft-lora", partial(adam, k=k, scheme="lora")),
        "FT, prefix": ("ft-prefix", partial(adam, k=k, scheme="prefix")),
    }
    return Table(
        name="mezo/roberta",
        title=f"RoBERTa-large, k = {k}",
        source=f"{MEZO}, table 18; grids of table 15",
        columns={label: f"{task}-k{k}" for label, task in TASKS.items()},
        metric="accuracy, %, mean (standard deviation) of 5 seeds",
        rows=tuple(
            Row(name, numbers(text), key=makers[name][0], make=_by_task(makers[name][1])) for name, text in rows.items()
        ),
    )


def _by_task(make: Any) -> Any:
    """Return a maker for columns such as ``sst2-k16``."""
    return lambda key: make(key.partition("-")[0])


_THREE: Final = {label: TASKS[label] for label in ("SST-2", "SNLI", "TREC")}
_TEN: Final = "accuracy, %, k = 16"


def _ablation(name: str, title: str, rows: tuple[Row, ...], note: str = "") -> Table:
    return Table(
        name=f"mezo/{name}",
        title=title,
        columns=_THREE,
        metric=_TEN,
        rows=rows,
        source=f"{MEZO}, {name.replace('table', 'table ')}; grids of table 15",
        note=f"{note} The paper says 10,000 forwards in one place and 10,000 steps in another.".strip(),
    )


TABLES: Final = (
    Table(
        name="mezo/roberta",
        title="RoBERTa-large, untouched",
        source=f"{MEZO}, table 18",
        columns=TASKS,
        rows=(Row("zero-shot", numbers("79.0 35.5 50.2 48.8 51.4 32.0"), key="zero-shot", make=untouched),),
    ),
    _table(16, {
        "LP": "76.0(2.8) 40.3(1.9) 66.0(2.7) 56.5(2.5) 59.4(5.3) 51.3(5.5)",
        "MeZO": "90.5(1.2) 45.5(2.0) 68.5(3.9) 58.7(2.5) 64.0(3.3) 76.9(2.7)",
        "MeZO, LoRA": "91.4(0.9) 43.0(1.6) 69.7(6.0) 64.0(2.5) 64.9(3.6) 73.1(6.5)",
        "MeZO, prefix": "90.8(1.7) 45.8(2.0) 71.6(2.5) 63.4(1.8) 65.4(3.9) 80.3(3.6)",
        "MeZO-Adam": "90.4(1.4) 45.4(1.5) 74.1(2.7) 64.3(0.8) 59.2(11.1) 78.3(1.4)",
        "FT": "91.9(1.8) 47.5(1.9) 77.5(2.6) 70.0(2.3) 66.4(7.2) 85.0(2.5)",
        "FT, LoRA": "91.4(1.7) 46.7(1.1) 74.9(4.3) 67.7(1.4) 66.1(3.5) 82.7(4.1)",
        "FT, prefix": "91.9(1.0) 47.7(1.1) 77.2(1.3) 66.5(2.5) 66.6(2.0) 85.7(1.3)",
    }),
    _table(512, {
        "LP": "91.3(0.5) 51.7(0.5) 80.9(1.0) 71.5(1.1) 73.1(1.5) 89.4(0.5)",
        "MeZO": "93.3(0.7) 53.2(1.4) 83.0(1.0) 78.3(0.5) 78.6(2.0) 94.3(1.3)",
        "MeZO, LoRA": "93.4(0.4) 52.4(0.8) 84.0(0.8) 77.9(0.6) 77.6(1.3) 95.0(0.7)",
        "MeZO, prefix": "93.3(0.1) 53.6(0.5) 84.8(1.1) 79.8(1.2) 77.2(0.8) 94.4(0.7)",
        "MeZO-Adam": "93.3(0.6) 53.9(0.8) 85.3(0.8) 79.6(0.4) 79.2(1.2) 95.1(0.3)",
        "FT": "93.9(0.7) 55.9(0.9) 88.7(0.8) 84.4(0.8) 82.7(1.4) 97.3(0.2)",
        "FT, LoRA": "94.2(0.2) 55.3(0.7) 88.3(0.5) 83.9(0.6) 83.2(1.3) 97.0(0.3)",
        "FT, prefix": "93.7(0.3) 54.6(0.7) 88.3(0.7) 83.3(0.5) 82.5(0.8) 97.4(0.2)",
    }),
    Table(
        name="mezo/table3/roberta-large",
        title="RoBERTa-large trained on accuracy, k = 512",
        source=f"{MEZO}, table 3",
        columns={label: TASKS[label] for label in ("SST-2", "SST-5", "SNLI", "TREC")},
        note="Rates of this table are not known to us: the recipes have those of table 15.",
        rows=(Row("MeZO, accuracy", numbers("92.7 48.9 82.7 68.6"), key="mezo-accuracy", make=_accuracy),),
    ),
    _ablation("table5", "RoBERTa-large with and without a prompt", (
        Row("prompt", numbers("89.6 65.1 66.7"), key="prompt", make=ablation),
        Row("no prompt", numbers("51.9 34.8 19.5"), why="a new classification head, which gradless does not make"),
    )),
    _ablation("table6", "RoBERTa-large, n directions a step", (
        Row("n = 4, constant", numbers("89.5 68.6 62.3"), key="n4", make=partial(_queries, count=4)),
        Row("n = 4, linear", numbers("89.6 65.3 66.1"), key="n4-linear",
            make=partial(_queries, count=4, schedule="linear")),
        Row("n = 16, constant", numbers("90.4 67.0 62.8"), key="n16", make=partial(_queries, count=16)),
        Row("n = 16, linear", numbers("88.9 62.8 64.2"), key="n16-linear",
            make=partial(_queries, count=16, schedule="linear")),
    )),
    _ablation("table8", "RoBERTa-large, scaled by gradient norms of layers", (
        Row("norms by backpropagation", numbers("89.7 65.2 64.3"), why="its norms need a backward pass"),
        Row("norms by forwards", numbers("87.0 49.6 32.6"),
            why="`gradient_norm_scales` measures them in Python; no option of `gradless tune` does"),
        Row("norms by forwards, every epoch", numbers("79.0 48.9 38.7"), why="scales are measured once here"),
    )),
    _ablation("table9", "RoBERTa-large, scaled by parameter norms of layers", (
        Row("parameter norms", numbers("89.2 65.4 64.8"), key="parameter-norm",
            make=partial(ablation, layer_scale="variance")),
        Row("every epoch", numbers("88.2 65.2 64.7"), why="scales are measured once here"),
    )),
    _ablation("table10", "RoBERTa-large, the expectation modified", (
        Row("normalised", numbers("88.0 60.0 44.0"), key="expectation",
            make=partial(ablation, layer_scale="expectation")),
    )),
    Table(
        name="mezo/table11",
        title="RoBERTa-large, one-point estimates, k = 512",
        source=f"{MEZO}, table 11; grids of table 15",
        columns=TASKS,
        note="That k is 512 is inferred from the numbers.",
        rows=(
            Row("SPSA, 20K steps", numbers("92.8 51.3 82.9 74.4 76.7 92.7"), key="spsa",
                make=partial(mezo, k=512, steps=20000)),
            Row("one-point, 20K steps", numbers("90.0 44.6 70.1 57.2 64.1 57.3"),
                why="the one-point residual estimate is not among the estimators; `mezo-one-sided` takes a difference"),
            Row("one-point, 40K steps", numbers("91.8 45.9 74.4 61.0 68.7 73.0"), why="as above"),
        ),
    ),
    Table(
        name="mezo/appendix-f",
        title="RoBERTa-large, k = 16, other ways",
        source=f"{MEZO}, appendices F.1 and F.4",
        columns={label: TASKS[label] for label in ("SST-2", "SST-5", "SNLI", "RTE", "TREC")},
        rows=(
            Row("LP-MeZO", numbers("91.4(1.4) 41.9(3.3) 70.7(3.4) - 54.0(4.5)"),
                why="MeZO cannot start from a linear probe here: a probe is evaluated and not kept"),
            Row("BBTv2", numbers("90.3(1.7) - 57.3(2.3) 56.7(3.3) -"), why="the method is not in gradless"),
        ),
    ),
    Table(
        name="mezo/table12",
        title="Memory of forward mode, RoBERTa-large",
        source=f"{MEZO}, table 12",
        columns={"batch 16": "batch16"},
        metric="MB beside the weights, JAX",
        rows=(
            Row("inference", ("327.50",), key="inference", make=lambda _: _plan("mezo")),
            Row("backpropagation", ("24156.23",), key="backpropagation", make=lambda _: _plan("fo-sgd")),
            Row("forward mode", ("830.66",), key="forward-mode", make=lambda _: _plan("forward-grad")),
        ),
    ),
    Table(
        name="mezo/table17",
        title="RoBERTa-large, how a prefix starts, k = 16",
        source=f"{MEZO}, table 17",
        columns=TASKS,
        rows=(
            Row("random", numbers("90.7 47.2 70.7 62.6 63.5 83.4"), why="a prefix starts from real activations here"),
            Row("real activations", numbers("91.9 47.7 77.2 66.5 66.6 85.7"),
                why="its numbers are those of FT, prefix with k = 16: `mezo/roberta/sst2-k16-ft-prefix`"),
        ),
    ),
)  # fmt: skip


def _plan(method: str) -> Recipe:
    words = ("plan", "--model", "shape:roberta-large", "--method", method, "--batch-size", "16", "--length", "128")
    differs = ("The number of tokens is not known to us: 128 is the limit of most tasks.",)
    return Recipe(
        kind="command", model="roberta-large", command=(*words, "--dtype", "float32"), data="nothing", differs=differs
    )
