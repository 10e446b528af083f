"""Ideas that may learn more from a forward than MeZO, as prototypes, before any of them becomes a method.

    python benchmarks/candidates.py --data FOLDER --out benchmarks/results/candidates.jsonl [--only NAME ...]

On the small masked model of the long study, in forwards of 16 rows: `mezo` has ``--forwards`` with a constant rate,
every other candidate half of them, `head` a quarter. Three rates are tried with one seed, the best of these, judged on
dev rows, on two more; what counts is accuracy on test rows at the end. `per-example` gives every row of a batch its own
direction in one forward (in the manner of Flipout: Wen et al. 2018, arXiv 1803.04386; for ZO: GRZO, arXiv 2606.02857):
rank-1 signs beside each linear layer, which is all that it tunes. `linear` is MeZO over the same weights, `mezo-decay`
over all. The rates of these three fall to zero linearly. `svrg` takes the noise of batches away by differences from an
anchor whose gradient is estimated on more rows (MeZO-SVRG, arXiv 2404.08080). `lozo-momentum` is LOZO with a momentum
that lasts as long as its basis (arXiv 2410.07698). `head` is MeZO, with a falling rate too, and 16 directions a step
over the output rows of the label words alone: the 32 evaluations share one forward of the frozen body, and that is what
counts, since all of them together take less than a thousandth of its multiply-adds. `probe` is no tuning at all but a
logistic regression on features of the frozen model (`gradless.lm.probe`): one forward of each training row. Lines are
written as runs end, and runs that have a line are passed over.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradless as gl
from gradless.lm import evaluate, load, objectives, probe, schemes, scoring
from gradless.lm.scoring import scores
from gradless.runs import build
from gradless.runs.config import TuneConfig
from gradless.system.machine import processor

EPS: Final = 1e-3
BATCH: Final = 16
TEST_ROWS: Final = 872
SEEDS: Final = (1, 2, 3)
EVALUATIONS: Final = 5
ANCHOR_ROWS: Final = 256
ANCHOR_STEPS: Final = 20


class Setting(NamedTuple):
    """What every candidate works with."""

    lm: Any
    batch: Callable[[int], Any]  # step -> the rows of its batch, ready to score
    rows: Callable[[int, int], Any]  # number of rows, step -> so many rows
    seed: int

    def losses(self, batch: Any) -> Tensor:
        """The loss of every row, ``[B]``."""
        return functional.cross_entropy(scores(self.lm, batch).mean, batch.gold, reduction="none")


Step = Callable[[int, float], int]  # step, learning rate -> forwards that it took, in batches of `BATCH` rows


class Candidate(NamedTuple):
    begin: Callable[[Setting], Step]
    rates: tuple[float, ...]
    share: float = 0.5  # of the forwards that MeZO has
    decay: bool = False  # whether the rate falls to zero linearly
    scheme: str = "full"


def tuned_linears(model: nn.Module) -> list[nn.Linear]:
    """Linear layers whose weight is not an embedding's."""
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) not in tied]


def per_example(setting: Setting) -> Step:
    """Each row has a direction u v^T of signs in every linear layer; two forwards measure a slope for each row."""
    linears = tuned_linears(setting.lm.model)

    def step(number: int, lr: float) -> int:
        batch, draw = setting.batch(number), torch.Generator().manual_seed(setting.seed * 10**6 + number)
        size = len(batch.input_ids)
        factors = [(_signs(draw, size, one.out_features), _signs(draw, size, one.in_features)) for one in linears]
        sides = []
        for sign in (EPS, -EPS):
            with beside(linears, factors, sign):
                sides.append(setting.losses(batch))
        slopes = (sides[0] - sides[1]) / (2 * EPS) / size
        for one, (left, right) in zip(linears, factors, strict=True):
            one.weight.data.addmm_((slopes[:, None] * left).T, right, alpha=-lr)
        return 2

    return step


@contextmanager
def beside(linears: Sequence[nn.Linear], factors: Sequence[tuple[Tensor, Tensor]], size: float) -> Iterator[None]:
    """Add size (x v_i) u_i to what each linear layer makes of row i, inputs ``[B, tokens, in]`` or ``[B, in]``."""

    def hook(left: Tensor, right: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            (x,) = inputs
            assert len(x) == len(right), "rows come first"
            thin = torch.einsum("b...i,bi->b...", x, right)
            return output + size * thin[..., None] * left.view(len(left), *[1] * (x.ndim - 2), -1)

        return add

    handles = [one.register_forward_hook(hook(*pair)) for one, pair in zip(linears, factors, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _signs(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=draw).float().mul_(2).sub_(1)


def with_optimizer(
    make: Callable[[Any, float, int], gl.ZerothOrder], weights: Callable[[nn.Module], Any]
) -> Callable[[Setting], Step]:
    """A candidate that is a combination of parts that there are."""

    def candidate(setting: Setting) -> Step:
        optimizer = make(weights(setting.lm.model), 1.0, setting.seed)

        def step(number: int, lr: float) -> int:
            batch = setting.batch(number)
            earlier = optimizer.forwards
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step(lambda: setting.losses(batch).mean())
            return int(optimizer.forwards - earlier)

        return step

    return candidate


def head(setting: Setting) -> Step:
    """A step of MeZO over the label words' rows, whose evaluations all read the hidden states of one forward."""
    optimizer = gl.mezo(schemes.trainable(setting.lm), eps=EPS, seed=setting.seed, queries=16)
    layer: Any = setting.lm.model.label_head

    def step(number: int, lr: float) -> int:
        batch = setting.batch(number)
        hidden = scoring.features(setting.lm, batch)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step(lambda: functional.cross_entropy(layer(hidden), batch.gold))
        return 1

    return step


def svrg(setting: Setting) -> Step:
    """The difference of slopes at the weights and at the anchor along one z, and the anchor's own estimate."""
    weights = [p.data for _, p in every(setting.lm.model)]
    anchor: list[Tensor] = []
    wide: tuple[int, float] = (0, 0.0)

    def slope(batch: Any, seed: int) -> float:
        sides = []
        for sign in (1.0, -2.0):
            _move(weights, seed, sign * EPS)
            sides.append(float(setting.losses(batch).mean()))
        _move(weights, seed, EPS)
        return (sides[0] - sides[1]) / (2 * EPS)

    def step(number: int, lr: float) -> int:
        nonlocal wide
        seed, spent = setting.seed * 10**6 + number, 4
        if number % ANCHOR_STEPS == 0:
            anchor[:] = [one.clone() for one in weights]
            wide = (seed + 5 * 10**5, slope(setting.rows(ANCHOR_ROWS, number), seed + 5 * 10**5))
            spent += 2 * ANCHOR_ROWS // BATCH
        batch = setting.batch(number)
        here = slope(batch, seed)
        kept = [one.clone() for one in weights]
        for one, old in zip(weights, anchor, strict=True):
            one.copy_(old)
        there = slope(batch, seed)
        for one, old in zip(weights, kept, strict=True):
            one.copy_(old)
        _move(weights, seed, -lr * (here - there))
        _move(weights, wide[0], -lr * wide[1])
        return spent

    return step


def _move(weights: Sequence[Tensor], seed: int, size: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    for one in weights:
        one.add_(_signs(draw, *one.shape), alpha=size)


def every(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


def linear_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    wanted = {id(one.weight) for one in tuned_linears(model)}
    return [(name, p) for name, p in model.named_parameters() if id(p) in wanted]


def mezo(params: Any, lr: float, seed: int) -> gl.ZerothOrder:
    return gl.mezo(params, lr=lr, eps=EPS, seed=seed)


def lozo(params: Any, lr: float, seed: int) -> gl.ZerothOrder:
    return gl.lozo(params, lr=lr, eps=EPS, seed=seed, rank=2, refresh=50)


def lozo_momentum(params: Any, lr: float, seed: int) -> gl.ZerothOrder:
    rule = gl.chain(gl.momentum(0.9), gl.scale(lr))
    return gl.ZerothOrder(
        params, directions=gl.low_rank(2, refresh=50), estimator=gl.spsa(eps=EPS), rule=rule, seed=seed
    )


CANDIDATES: Final = {
    "mezo": Candidate(with_optimizer(mezo, every), (1e-5, 3e-5, 6e-5), share=1.0),
    "per-example": Candidate(per_example, (5e-5, 1e-4, 2e-4), decay=True),
    "linear": Candidate(with_optimizer(mezo, linear_weights), (5e-5, 1e-4, 2e-4), decay=True),
    "mezo-decay": Candidate(with_optimizer(mezo, every), (3e-5, 6e-5, 1e-4), decay=True),
    "lozo": Candidate(with_optimizer(lozo, every), (1e-5, 3e-5, 6e-5)),
    "lozo-momentum": Candidate(with_optimizer(lozo_momentum, every), (1e-6, 3e-6, 1e-5)),
    "head": Candidate(head, (3e-4, 1e-3, 3e-3), share=0.25, decay=True, scheme="head"),
    "svrg": Candidate(svrg, (1e-5, 3e-5, 6e-5)),
}
PROBE: Final = "probe"
LONGEST: Final = {"agnews": 64}  # tokens: the end of an article
SHOTS: Final = {"cr": 256}  # it has 691 negative rows, for training and dev


def run(args: argparse.Namespace, name: str, task_name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once; dev evaluations at equal shares of the forwards. The probe has no rate."""
    config = TuneConfig(
        **{"model": "splade-tiny", "task": task_name, "data": str(args.data / task_name), "seed": seed},
        **{"k_shot": SHOTS.get(task_name, 512), "max_length": LONGEST.get(task_name)},
        **{"batch_size": BATCH, "num_test": TEST_ROWS},
    ).resolved()
    task, splits = build.load_task(config)
    lm = load(config.model, dtype="float32")
    objective = objectives.choose(task, config.objective)
    encoded = build.encode_rows(lm, task, splits.train, config.max_length)
    line = {"candidate": name, "task": task_name, "lr": lr, "seed": seed, "processor": processor()}
    if name == PROBE:
        begin = time.process_time()
        others = (build.encode_rows(lm, task, rows, config.max_length) for rows in (splits.dev, splits.test))
        result, chosen = probe.evaluate(lm, task, encoded, *others)
        spent = -(-len(encoded) // BATCH)
        curve = [{"forwards": spent, "loss": None, "accuracy": round(chosen.dev_accuracy, 5)}]
        test = {"loss": None, "accuracy": round(result.metrics["accuracy"], 5)}
        took = round(time.process_time() - begin, 1)
        return {**line, "steps": 0, "forwards": spent, "cpu_seconds": took, "curve": curve, "test": test}

    def rows(count: int, step: int) -> Any:
        chosen = [encoded[i] for i in build.batch_indices(len(encoded), count, seed, step)]
        return objective.prepare(lm, chosen)

    candidate = CANDIDATES[name]
    if candidate.scheme != "full":
        lm = schemes.apply(lm, candidate.scheme, label_token_ids=build.label_tokens(lm, task, splits.train[0]))
    setting = Setting(lm, lambda step: rows(BATCH, step), rows, seed)
    whole = round(args.forwards * candidate.share)
    spent, step, curve, begin = 0, 0, [], time.process_time()
    with torch.no_grad():
        advance = candidate.begin(setting)
        while spent < whole:
            spent += advance(step, lr * (1 - spent / whole) if candidate.decay else lr)
            step += 1
            if spent * EVALUATIONS >= whole * (len(curve) + 1):
                curve.append({"forwards": spent, **_measured(lm, task, splits.dev, objective)})
                if curve[-1]["loss"] is None:
                    break
        test = _measured(lm, task, splits.test, objective)
    took = round(time.process_time() - begin, 1)
    return {**line, "steps": step, "forwards": spent, "cpu_seconds": took, "curve": curve, "test": test}


def _measured(lm: Any, task: Any, rows: Any, objective: Any) -> dict[str, float | None]:
    try:
        result = evaluate.evaluate(lm, task, rows, objective=objective)
    except gl.errors.NotFinite:
        return {"loss": None, "accuracy": None}
    return {"loss": round(float(result.loss), 5), "accuracy": round(float(result.metrics["accuracy"]), 5)}


def judged(line: dict[str, Any]) -> float:
    """Mean dev loss of the last two evaluations; infinite where the run diverged."""
    losses = [point["loss"] for point in line["curve"]]
    return float("inf") if None in losses else sum(losses[-2:]) / len(losses[-2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of sst2, agnews, ...")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/candidates.jsonl"))
    parser.add_argument("--tasks", nargs="+", default=["sst2", "agnews", "mr", "cr", "sst5"])
    parser.add_argument("--only", nargs="+", default=[PROBE, *CANDIDATES])
    parser.add_argument("--forwards", type=int, default=4000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []

    def once(*wanted: Any) -> dict[str, Any]:
        keys = ("candidate", "task", "lr", "seed")
        for line in lines:
            if tuple(line[key] for key in keys) == wanted:
                return line
        lines.append(run(args, *wanted))
        with args.out.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(wanted, lines[-1]["curve"][-1:], lines[-1]["test"], lines[-1]["cpu_seconds"], flush=True)
        return lines[-1]

    for task in args.tasks:
        best = {}
        for name in args.only:
            rates = (0.0,) if name == PROBE else CANDIDATES[name].rates
            tried = [once(name, task, lr, SEEDS[0]) for lr in rates]
            best[name] = min(tried, key=judged)["lr"]
        for seed in SEEDS[1:]:
            for name in args.only:
                once(name, task, best[name], seed)


if __name__ == "__main__":
    main()
