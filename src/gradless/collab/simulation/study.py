"""Many runs of a group in one folder: each in its own directory, finished ones kept, one line for each in a table."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradless import lm, plugins
from gradless.collab import attacks
from gradless.collab.algorithms import PARAMETERS
from gradless.collab.config import GRAPH_FIELDS, CollabConfig, from_json
from gradless.collab.data.datasets import OWN
from gradless.collab.learners import nets
from gradless.collab.learners.vision import show_own_data
from gradless.collab.network import topology
from gradless.collab.simulation import workers as worker_processes
from gradless.collab.simulation.build import check_used, mixing_rule, topology_of
from gradless.collab.simulation.simulate import finished_result, unmixed
from gradless.errors import BadInput
from gradless.runs.record import DIVERGED, DONE, INTERRUPTED
from gradless.system import finished_runs, locks, typed
from gradless.system.atomic import write_json, write_text
from gradless.system.progress import Reporter
from gradless.system.side_files import read_json, read_jsonl
from gradless.system.typed import Processes, parse_json

Executor = Callable[[Sequence[worker_processes.Job]], worker_processes.Results]
"""Makes runs, and yields each with its result as it ends."""
RESULTS = "results.jsonl"
ASKED = (
    *("algorithm", "rule", "rule_options", "attack", "attack_options", "split", "split_parameter", "byzantine"),
    *("attackers", "peers", "seed", "payload", "lr", "steps", "rounds", "delivery", "dataset", "model", "task"),
    *("batch_size", "momentum"),
)
FOUND = (
    *("status", "worst_accuracy", "mean_accuracy", "consensus_distance", "gradients_per_peer", "gradient_overhead"),
    *("bytes_per_peer_step", "train_seconds", "alpha_max", "lambda_max"),
)
SINCE = ("mixed_share",)  # what results of older versions lack
REWARDED = ("worst_reward", "mean_reward")  # of groups that learn from a reward
# A point of a curve, and the fields of an evaluation that it holds; of such groups also the rewards.
CURVE = {"step": "step", "worst": "worst_accuracy", "mean": "mean_accuracy", "consensus": "consensus_distance"}
# What all runs of one folder have in common, beside the network between attacked peers and the rate of an algorithm.
SHARED = (
    *(
        "dataset",
        "own",
        "image_size",
        "net",
        "model",
        "task",
        "scheme",
        "num_train",
        "num_test",
        "freeze",
        "payload",
        "method",
    ),
    *("queries", "eps", "sync", "steps", "batch_size", "decay", "refresh", "momentum", "weight_decay", "rounds"),
    *("radius", "eval_every", "eval_rows", "method_options", "chat", "reward_weight", "memory"),
    *("pass_reward", "max_new_tokens", "stop", "temperature"),
)


def run_all(
    configs: Sequence[CollabConfig],
    out: Path,
    *,
    recipe: str = "",
    known: Sequence[Path] = (),
    named: Iterable[str] = (),
    workers: int | None = None,
    on: str | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Run what is not finished yet; returns the results in order.

    One configuration is run in ``out`` itself, several in ``out/runs/ID``. ``out/results.jsonl`` has a line for each
    finished run and is what `gradless report` reads.

    Args:
        configs: what to run, in this order.
        out: the folder.
        recipe: what asked for them.
        known: ``results.jsonl`` of other folders; runs that are finished there are not made again.
        named: settings that somebody named; one that no run reads is refused.
        workers: runs at a time, each a process; None: one, or on a cluster as many as have room.
        on: a Ray cluster that makes the runs (`gradless.system.ray_address.FORMS`); None: processes here.
        reporter: where progress goes.

    Raises:
        BadInput: before anything runs, if one of the configurations cannot work, or ``out`` holds something else.
    """
    reporter = reporter or Reporter()
    typed.value("workers", workers, Processes | None)
    try:
        configs = list({config.id(): config for config in (config.resolved() for config in configs)}.values())
        for config in configs:
            _check(config)
    except BadInput:
        _require_plugins(out)  # a name that only they have is the likelier reason
        raise
    check_used(configs, named)
    lines: dict[str, dict[str, Any]] = {}
    for path in known:
        lines |= finished_runs.finished(path, [config.id() for config in configs], (DONE, DIVERGED))
    alone = len(configs) == 1 and not lines and not (out / "runs").exists()
    if not alone and (out / "config.json").exists():
        raise BadInput(f"{out} holds a single run: choose another --out for {len(configs)} runs")
    with _executor(on, configs, workers, reporter) as run, locks.claimed(out, say=reporter.warn):
        _check_folder(configs, out)
        finished_runs.take_over(lines, out / "runs")
        folders = {config.id(): out if alone else out / "runs" / config.id() for config in configs}
        return _run_all(configs, folders, out, recipe, run, reporter)


@contextlib.contextmanager
def _executor(
    on: str | None, configs: Sequence[CollabConfig], workers: int | None, reporter: Reporter
) -> Iterator[Executor]:
    """Yield what makes runs: processes here, or a cluster that was checked."""
    if on is None:
        yield lambda jobs: worker_processes.results(jobs, workers or 1, reporter)
        return
    from gradless.collab.simulation import ray_runs

    with ray_runs.joined(on, configs) as (simulations, about):
        reporter.say(about)
        yield lambda jobs: simulations.results(jobs, workers, reporter)


def _run_all(
    configs: Sequence[CollabConfig],
    folders: Mapping[str, Path],
    out: Path,
    recipe: str,
    run: Executor,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    asked = {config.id(): recipe for config in configs}
    results: dict[str, dict[str, Any]] = {}
    for config in configs:
        taken_over = finished_runs.line(folders[config.id()])
        if taken_over is not None:
            write_json(folders[config.id()] / "config.json", config.to_json())
            results[config.id()] = {**_asked(config), **taken_over}
    if results:
        table(out, asked)
    jobs = [(config, folders[config.id()]) for config in configs if config.id() not in results]
    limits: list[str] = []
    if jobs:
        for remark in remarks(configs):
            reporter.say(remark)
        limits = show_own_data(jobs[0][0], reporter.say)
    with contextlib.closing(_ended(jobs, run, reporter)) as ended:
        for config, result in ended:
            results[config.id()] = result
            table(out, asked)
            if result["status"] == INTERRUPTED:
                done = f"{len(results) - 1} of {len(configs)} runs are finished in {out}"
                reporter.say(f"interrupted: {done}; the same command continues")
                break
            reporter.say(
                f"{len(results)}/{len(configs)}  {config.title()}, seed {config.seed}: "
                f"{outcome(result)}  ({result['train_seconds']:.0f} s)"
            )
    for limit in limits:
        reporter.say(limit)
    for sentence, count in Counter(unmixed(one, results[one.id()]) for one in configs if one.id() in results).items():
        if sentence:
            reporter.warn(sentence if len(configs) == 1 else f"{count} of {len(configs)} runs: {sentence}")
    return [results[config.id()] for config in configs if config.id() in results]


def _ended(jobs: Sequence[worker_processes.Job], run: Executor, reporter: Reporter) -> worker_processes.Results:
    """Yield all runs as they end, finished ones first: they take no worker."""
    finished = [job for job in jobs if line(job[1], {}) is not None]
    yield from worker_processes.results(finished, 1, reporter)
    yield from run([job for job in jobs if job not in finished])


def _check(config: CollabConfig) -> None:
    """Check names, options and numbers of Byzantine peers, without reading any data."""
    attackers = config.attackers or 0
    attacks.named(config.attack, **config.attack_options).check(config.peers - attackers, attackers)
    lm.device_of(config.device)
    if config.net is not None:
        nets.named(config.net)
    if config.data is not None and not os.path.exists(config.data):
        raise BadInput(f"there is no {config.data}: give --data the folder that holds the files")
    try:
        mixing_rule(config)
    except BadInput as error:
        raise BadInput(f"{config.algorithm} with {config.byzantine} of {config.peers} Byzantine: {error}") from None


def remarks(configs: Sequence[CollabConfig]) -> list[str]:
    """Return what about the attackers of resolved configurations may be a slip, though it is allowed."""
    told, notes = max((config.byzantine for config in configs), default=0), []
    if told and all(config.attack == "none" for config in configs):
        peers = "all peers" if len({config.peers for config in configs}) > 1 else f"all {configs[0].peers} peers"
        notes.append(f"no attack: {peers} are honest; f = {told} is only what the rule is told (--attack names one)")
    for attack, byzantine in dict.fromkeys(_more_attackers(config) for config in configs):
        if attack:
            notes.append(f"{attack}, more than the {byzantine} that the rule is told to withstand (--byzantine)")
    return notes


def _more_attackers(config: CollabConfig) -> tuple[str, int]:
    """Return how many attackers a peer may hear, in words where they are more than f, and f."""
    graph = topology_of(config)
    attackers = (config.attackers or 0) if graph is None else graph.exposed()
    if attackers <= config.byzantine:
        return "", config.byzantine
    if graph is not None:
        return f"an honest peer on the topology {graph.name} hears {attackers} attackers", config.byzantine
    return f"{attackers} peers attack" if attackers > 1 else "1 peer attacks", config.byzantine


def _check_folder(configs: Sequence[CollabConfig], out: Path) -> None:
    """Raise BadInput for a folder that holds anything but runs of the same experiment."""
    if (out / RESULTS).exists() and not (out / "runs").exists() and not (out / "config.json").exists():
        raise BadInput(f"{out} holds results of something else: choose another --out")
    held = [config for folder in _folders(out) if (config := _config(folder)) is not None]
    for old in held:
        for new in configs:
            names = list(SHARED)
            names += ["lr"] if old.algorithm == new.algorithm else []
            names += ["delivery"] if (old.attackers or 0) and (new.attackers or 0) else []
            pairs = {name: (getattr(old, name), getattr(new, name)) for name in names}
            if old.dataset in OWN and new.dataset in OWN:  # a known data set may have moved
                pairs["data"] = (old.data, new.data)
            pairs["reward"] = (old.shared_rewards, new.shared_rewards)  # wherever their files lie
            pairs["SHA-256 of reward files"] = (old.reward_sha256, new.reward_sha256)
            first, second = plugins.named(old.plugins), plugins.named(new.plugins)
            pairs |= {f"plugin {name}": (first[name][:12], second[name][:12]) for name in sorted({*first} & {*second})}
            changed = next((name for name, (there, here) in pairs.items() if there != here), None)
            if changed:
                there, here = pairs[changed]
                raise BadInput(
                    f"{out} holds runs with other settings ({changed} {there} there, {here} here): choose another --out"
                )


def _folders(out: Path) -> list[Path]:
    return [folder for folder in (out, *sorted((out / "runs").glob("*"))) if (folder / "config.json").exists()]


def _require_plugins(out: Path) -> None:
    """Raise BadInput if runs of a folder need plugins that are not loaded."""
    for folder in _folders(out):
        held = read_json(folder / "config.json")
        recorded = held.get("plugins") if isinstance(held, dict) else None
        if isinstance(recorded, dict):
            plugins.require({}, {str(key): str(value) for key, value in recorded.items()})


def _config(folder: Path) -> CollabConfig | None:
    try:
        return from_json(parse_json((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None


def table(out: Path, recipes: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Write ``results.jsonl`` from all finished runs of a folder, sorted by id.

    Args:
        out: the folder.
        recipes: by id, what asked for a run; others keep what was written.
    """
    path = out / RESULTS
    known = {str(one.get("id")): one.get("recipe", "") for one in read_jsonl(path)[0]} | dict(recipes or {})
    lines = [one for folder in _folders(out) if (one := line(folder, known)) is not None]
    lines.sort(key=lambda one: one["id"])
    write_text(path, "".join(json.dumps(one, allow_nan=False) + "\n" for one in lines))
    return lines


def line(folder: Path, recipes: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the line of one run in ``results.jsonl``; None if it is not finished."""
    config = _config(folder)
    taken_over = finished_runs.line(folder)
    if config is not None and taken_over is not None:
        return {**_asked(config), **taken_over, "recipe": recipes.get(config.id(), "")}
    result = finished_result(folder)
    if config is None or result is None:
        return None
    events = [event for event in read_jsonl(folder / "metrics.jsonl")[0] if event.get("event") == "eval"]
    whole = [event for event in events if event.keys() >= {*CURVE.values()}]
    fields = CURVE | {name: name for name in REWARDED if name in result}
    curve = [{name: event.get(recorded) for name, recorded in fields.items()} for event in whole]
    return {
        "id": config.id(),
        "recipe": recipes.get(config.id(), ""),
        **_asked(config),
        **{name: result[name] for name in (*FOUND, *(one for one in (*SINCE, *REWARDED) if one in result))},
        "alpha_mixing": result["alpha"],
        "lambda_mixing": result["lambda"],
        "versions": result["versions"],
        **({"graph": result["graph"]} if "graph" in result else {}),
        "curve": curve,
    }


def _asked(config: CollabConfig) -> dict[str, Any]:
    values = config.to_json()
    if config.graph is not None:  # a file, which may lie anywhere
        values["topology"] = topology.title(config.topology)
    return {name: values[name] for name in (*ASKED, *GRAPH_FIELDS) if name in values}


def outcome(result: dict[str, Any]) -> str:
    """Return "diverged", or the accuracies of a run in half a sentence."""
    accuracy = f"worst honest accuracy {result['worst_accuracy']:.4f}  mean {result['mean_accuracy']:.4f}"
    if result.get("mean_reward") is not None:
        accuracy = f"mean reward {result['mean_reward']:.4f}  {accuracy}"
    return "diverged" if result["status"] == DIVERGED else accuracy


def advice(config: CollabConfig, result: dict[str, Any]) -> str | None:
    """Return what to do about a run that went wrong, as far as its mixing can tell, or None."""
    alpha = result.get("alpha", result.get("alpha_mixing"))  # of a run, of its line
    if config.payload == PARAMETERS and alpha is not None and alpha >= 1.01:
        return (
            f"mixing drives honest peers apart (alpha {alpha:.2f} at the median, where below 1 is needed): let them "
            "hear everybody (--delivery all), have more honest peers for each liar, or choose another --rule"
        )
    if result["status"] == DIVERGED and result.get("rewards", {}).get("last_error"):
        return f"no text had a reward: {result['rewards']['last_error']}"
    if result["status"] == DIVERGED:
        return "honest models are not finite: try a lower --lr or another --rule"
    return None


def failed(results: Sequence[dict[str, Any]]) -> bool:
    """Whether one was interrupted, or the only one did not come to its end: in a comparison divergence is a result."""
    return any(one["status"] == INTERRUPTED for one in results) or (len(results) == 1 and results[0]["status"] != DONE)
