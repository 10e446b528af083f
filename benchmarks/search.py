"""What a search's choice is worth: simulated losses over learning rates, with noise by seed and a diverging side.

    python benchmarks/search.py --out benchmarks/results/search.json

Nothing is trained. A run at r times the largest stable rate has, after f forwards, the expected dev loss

    0.45 + 0.25 exp(-r f / 400) + 0.1 r,

progress and the noise floor of stochastic steps; the best rate for 4,000 forwards is 0.32 of the stable limit, and
shorter runs favour higher ones, up to the limit. Each run has an offset (standard deviation 0.01), each evaluation
noise that grows with the rate (0.005 + 0.03 r^2). Beyond the limit evaluations scatter, and a run diverges at a rate of
r - 1 in 1,000 forwards. The best rate lies anywhere on the five values of the axis or up to a decade beyond either end.

Rules of gradless are run by `gradless.bench.search` itself. If Optuna is installed, its TPE sampler with its pruner of
successive halving gets about the same forwards, the amounts of `NEW` and the range that the extended axis can reach.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gradless.bench import grid
from gradless.bench.search import Search

FINAL: Final = 4000
BEST: Final = math.log(25) / 10  # of the stable limit, for FINAL forwards
RATES: Final = (1e-6, 3.2e-6, 1e-5, 3.2e-5, 1e-4)
EVALUATIONS: Final = 4
GRID: Final = """
search_seeds = {seeds}
seeds = [1]
budget = {{ forwards = {final}, search = {search} }}
select = "loss"
judge = "{judge}"
{extend}
zero_shot = false
[base]
model = "tiny-llama"
task = "sst2"
[axes]
method = ["mezo"]
[grid]
lr = {rates}
"""
RULES: Final[dict[str, dict[str, Any]]] = {
    "one seed, best evaluation": {"seeds": [0], "search": 1000, "judge": "best"},
    "one seed, best evaluation, twice the forwards": {"seeds": [0], "search": 2000, "judge": "best"},
    "two seeds, best evaluation": {"seeds": [0, 100], "search": 1000, "judge": "best"},
    "two seeds, last two evaluations": {"seeds": [0, 100], "search": 1000, "judge": "last"},
    "the same, rungs of 300 and 1,500": {"seeds": [0, 100], "search": [300, 1500], "judge": "last"},
    "the same, one rung, extended": {"seeds": [0, 100], "search": 1000, "judge": "last", "extend": 2},
    "rungs of 400 and 1,000, extended": {"seeds": [0, 100], "search": [400, 1000], "judge": "last", "extend": 2},
    "rungs of 300 and 1,500, extended": {"seeds": [0, 100], "search": [300, 1500], "judge": "last", "extend": 2},
    "rungs of 400 and 1,600, extended": {"seeds": [0, 100], "search": [400, 1600], "judge": "last", "extend": 2},
    "rungs of 250, 600 and 1,500, extended": {
        "seeds": [0, 100],
        "search": [250, 600, 1500],
        "judge": "last",
        "extend": 2,
    },
}
NEW: Final = "rungs of 400 and 1,600, extended"


def expected(ratio: float, forwards: float) -> float:
    """Return the mean loss of a run that has not diverged, at a rate in units of the stable limit."""
    return 0.45 + 0.25 * math.exp(-ratio * forwards / 400) + 0.1 * ratio


def simulated(ratio: float, forwards: int, name: str) -> tuple[str, list[float]]:
    """Return how a run ends, and the dev losses of its evaluations; the same name is the same run."""
    noise = random.Random(name)
    offset, losses = noise.gauss(0, 0.01), []
    for number in range(1, EVALUATIONS + 1):
        if noise.random() > math.exp(-max(ratio - 1, 0.0) * forwards / EVALUATIONS / 1000):
            return "diverged", losses
        scatter = 0.005 + 0.03 * min(ratio, 3.0) ** 2
        losses.append(expected(ratio, forwards * number / EVALUATIONS) + offset + noise.gauss(0, scatter))
    return "done", losses


def line(one: grid.Request, limit: float, trial: int) -> dict[str, Any]:
    """Return a finished run as ``results.jsonl`` has it."""
    status, losses = simulated(one.point["lr"] / limit, 2 * one.config.steps, f"{trial} {one.id}")
    told = {key: value for key, value in one.to_json().items() if key != "config"}
    curve = [{"loss": loss} for loss in losses]
    return {**told, "status": status, "dev": {"loss": min(losses)} if losses else {}, "curve": curve}


def of_grid(keys: dict[str, Any]) -> Callable[[float, int], tuple[float | None, int]]:
    """Return a rule as a function of the stable limit and the trial: the chosen rate and the forwards of the search."""
    extend = f"extend = {keys['extend']}" if "extend" in keys else ""
    text = GRID.format(final=FINAL, rates=list(RATES), **{**keys, "extend": extend})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.toml"
        path.write_text(text)
        search = Search(grid.read(path), lambda config: 2)

    def choose(limit: float, trial: int) -> tuple[float | None, int]:
        lines: dict[str, dict[str, Any]] = {}
        while True:
            wanted = [one for one in search.standing(lines.values()).wanted if one.phase == grid.SEARCH]
            left = [one for one in wanted if one.id not in lines]
            if not left:
                break
            lines |= {one.id: line(one, limit, trial) for one in left}
        (point,) = search.choose(lines.values()).values()
        spent = sum(2 * one.config.steps for one in wanted)
        return (None if point is None else point["lr"]), spent

    return choose


def of_optuna(budget: int, seeds: int) -> Callable[[float, int], tuple[float | None, int]]:
    """Return Optuna's TPE and successive halving with the rungs of NEW, stopped when the budget is spent."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def choose(limit: float, trial: int) -> tuple[float | None, int]:
        spent = 0

        def objective(one: optuna.Trial) -> float:
            nonlocal spent
            lr = one.suggest_float("lr", RATES[0] / 10, RATES[-1] * 10, log=True)
            value, done = math.inf, 0
            for forwards in RULES[NEW]["search"]:  # the run goes on, as Optuna's would
                runs = [simulated(lr / limit, forwards, f"{trial} {one.number} {seed}") for seed in range(seeds)]
                spent += seeds * (forwards - done)
                done = forwards
                if any(status != "done" for status, _ in runs):
                    raise optuna.TrialPruned
                value = statistics.fmean(statistics.fmean(losses[-2:]) for _, losses in runs)
                one.report(value, forwards)
                if one.should_prune():
                    raise optuna.TrialPruned
            return value

        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=trial),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=min(RULES[NEW]["search"]), reduction_factor=2),
        )
        while spent < budget:
            study.optimize(objective, n_trials=1)
        complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        return (study.best_params["lr"] if complete else None), spent

    return choose


def measured(rule: Callable[[float, int], tuple[float | None, int]], trials: int) -> dict[str, float]:
    """Return shares and costs of a rule over some trials, each with a stable limit of its own."""
    near: dict[bool, list[bool]] = {True: [], False: []}
    diverging, regrets, costs = 0, [], []
    for trial in range(trials):
        position = random.Random(f"limit {trial}").uniform(-1, 1 + math.log10(RATES[-1] / RATES[0]))
        limit = RATES[0] * 10**position / BEST
        rate, spent = rule(limit, trial)
        ratio = math.inf if rate is None else rate / limit
        inside = 0 <= position <= math.log10(RATES[-1] / RATES[0])
        near[inside].append(BEST / 2 <= ratio <= BEST * 2)
        diverging += ratio > 1
        costs.append(spent)
        regrets.append(0.25 if ratio > 1 else min(0.25, expected(ratio, FINAL) - expected(BEST, FINAL)))
    return {
        "within_factor_2": round(sum(near[True] + near[False]) / trials, 3),
        "within_factor_2_best_on_axis": round(statistics.fmean(near[True]), 3),
        "within_factor_2_best_beyond": round(statistics.fmean(near[False]), 3),
        "beyond_the_limit": round(diverging / trials, 3),
        "mean_excess_loss": round(statistics.fmean(regrets), 4),
        "mean_search_forwards": round(statistics.fmean(costs)),
        "largest_search_forwards": max(costs),
    }


def main() -> None:
    """Measure every rule and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    rules = {name: of_grid(keys) for name, keys in RULES.items()}
    results = {name: measured(rule, args.trials) for name, rule in rules.items()}
    report: dict[str, Any] = {"trials": args.trials, "final_forwards": 3 * FINAL}
    if importlib.util.find_spec("optuna"):
        import optuna

        report["optuna"] = optuna.__version__
        budget = results[NEW]["mean_search_forwards"]
        for seeds in (1, 2):
            name = f"Optuna, TPE and successive halving, {seeds} seed{'s' if seeds > 1 else ''}"
            results[name] = measured(of_optuna(int(budget), seeds), args.trials)
    report["rules"] = results
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, numbers in results.items():
        print(f"{name:<48}", "  ".join(f"{key} {value}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
