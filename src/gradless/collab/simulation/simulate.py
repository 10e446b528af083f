"""One run: honest peers, attackers who have seen everything, and the network between them."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import Tensor

from gradless import rng
from gradless.collab.aggregation import threads
from gradless.collab.algorithms import COEFFICIENTS
from gradless.collab.config import CollabConfig, from_json
from gradless.collab.contraction import mixing
from gradless.collab.learners.loop import take_step
from gradless.collab.learners.parameters import Learner
from gradless.collab.learners.vision import show_own_data
from gradless.collab.network.delivery import ALL
from gradless.collab.network.exchange import Arrivals, settle
from gradless.collab.simulation.build import build, topology_of
from gradless.collab.simulation.memory_rule import remembering
from gradless.collab.simulation.progress import CHECKPOINT, SimulationState, finite_or_null, forget
from gradless.errors import BadInput
from gradless.runs.record import DIVERGED, DONE, INTERRUPTED, versions
from gradless.system import locks
from gradless.system.atomic import write_json
from gradless.system.hashing import weights_sha256
from gradless.system.progress import Reporter
from gradless.system.side_files import make_room, read_table
from gradless.system.typed import parse_json


class Result(TypedDict):
    """What others read of a ``result.json``."""

    status: Literal["done", "diverged"]
    worst_accuracy: float
    mean_accuracy: float
    consensus_distance: float | None
    alpha: float | None
    alpha_max: float | None
    lambda_max: float | None
    gradients_per_peer: float
    gradient_overhead: float
    bytes_per_peer_step: float
    train_seconds: float
    config: dict[str, Any]
    versions: dict[str, Any]


def simulate(config: CollabConfig, folder: Path, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a group and return the contents of ``result.json``.

    A folder that holds the finished run of the same configuration is left as it is. An unfinished run goes on where it
    last wrote a checkpoint, which it does every five minutes; on as many threads it then ends with the same bits.

    Args:
        config: what to run.
        folder: run directory.
        reporter: where progress goes.

    Raises:
        BadInput: anything wrong with the configuration or the data, or another run in the folder.
    """
    reporter = reporter or Reporter()
    with locks.claimed(folder, say=reporter.warn):
        if finished_result(folder) is None:
            show_own_data(config.resolved(), reporter.say)
        result = simulate_claimed(config, folder, reporter)
    if sentence := unmixed(config.resolved(), result):
        reporter.warn(sentence)
    return result


def unmixed(config: CollabConfig, result: Mapping[str, Any]) -> str:
    """Return a warning about a group in which no honest peer ever had a row of another one in time, or "".

    Args:
        config: of the run, resolved.
        result: of the run, or its line in ``results.jsonl``; those of older versions do not tell.
    """
    attackers = config.attackers or 0
    if result.get("mixed_share") != 0.0 or config.peers - attackers < 2:
        return ""
    delivery = config.delivery
    if delivery.mode != ALL and (delivery.wait_for or config.peers - config.byzantine) <= attackers + 1:
        why, fixes = "each goes on before one comes", ["raise --wait-for"]
    else:
        why, fixes = "too few messages come in time", []
        fixes += ["raise --deadline"] if delivery.deadline is not None else []
        fixes += ["lower --drop"] if delivery.drop else []
    return f"in no step did an honest peer mix a row of another one, since {why}: {' or '.join(fixes)}"


def simulate_claimed(config: CollabConfig, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """`simulate` in a folder that is claimed, or lies in one that is."""
    config = config.resolved()
    make_room(folder, ("metrics.jsonl", "result.json", CHECKPOINT), reporter.say)
    finished = _finished(config, folder)
    if finished is not None:
        forget(folder)
        reporter.say(f"{folder} is finished; nothing to do")
        return finished
    with contextlib.ExitStack() as closing:
        simulation = closing.enter_context(contextlib.closing(build(config)))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.to_json())
        run = closing.enter_context(contextlib.closing(SimulationState(simulation, folder)))
        if run.step:
            reporter.say(f"goes on after step {run.step}")
        with threads.without_denormals(), run.meter.measured():
            status = _loop(run, reporter)
            if status == INTERRUPTED:  # nobody who interrupts waits for all rows
                final = run.evaluated(config.eval_rows)
            else:
                if config.eval_rows is not None:
                    reporter.say(f"{config.title()}: testing on all rows")
                final = run.evaluated(None)
    result = _result(run, status, final)
    write_json(folder / "result.json", result)
    if status != INTERRUPTED:
        forget(folder)
    return result


def _finished(config: CollabConfig, folder: Path) -> dict[str, Any] | None:
    """Check that ``folder`` is free or holds this very run; return its result if it is finished."""
    if not (folder / "config.json").exists():
        return None
    try:
        held = from_json(parse_json((folder / "config.json").read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise BadInput(f"{folder} holds something else than a collaborative run: choose another --out") from None
    if held.id() != config.id():
        raise BadInput(f"{folder} holds a run with other settings: choose another --out")
    return finished_result(folder)


def finished_result(folder: Path) -> dict[str, Any] | None:
    """Return ``result.json`` of a run that has come to its end; None where it was lost or is something else."""
    return read_table(folder / "result.json", Result)


def _loop(run: SimulationState, reporter: Reporter) -> str:
    """Take the remaining steps; return the status that they ended with."""
    config, learner = run.simulation.config, run.simulation.learner
    with reporter.job(config.title(), config.steps, done=run.step, part="step") as show:
        try:
            for step in range(run.step, config.steps):
                if step and step % config.eval_every == 0:
                    accuracy = run.evaluated(config.eval_rows)
                    show(step, f"worst {min(accuracy):.3f}  mean {statistics.fmean(accuracy):.3f}")
                begun = time.perf_counter()
                healthy = _step(run)
                run.spent += time.perf_counter() - begun
                run.step += 1
                if learner.texts is not None and (sentence := learner.texts.sentence(step)):
                    reporter.warn(sentence)
                if not healthy:
                    return DIVERGED
                show(step + 1, _measured(learner, step))
                run.save(reporter)
        except KeyboardInterrupt:
            return INTERRUPTED
    return DONE


def _measured(learner: Learner, step: int) -> str:
    """Return the loss of a step in words, or the reward where a group learns from one."""
    if learner.texts is None:
        return f"loss {float(learner.losses.mean()):.4f}"
    reward = learner.texts.of_step(step)["reward"]
    return "no reward" if reward is None else f"reward {reward:.4f}"


def _step(run: SimulationState) -> bool:
    """Run all exchanges of one step; return whether there is still a peer whose row is finite."""
    learner = run.simulation.learner
    _, healthy = take_step(learner, run.network, partial(_settle, run), run.step, partial(_watch, run))
    return healthy


def _settle(run: SimulationState, arrivals: Arrivals, rows: Tensor | None, step: int) -> Tensor:
    """Return what all honest peers make of an exchange, [H, D], in memory that an earlier result lay in."""
    assert rows is not None  # in a simulation no exchange is over before the rows are there
    simulation = run.simulation
    key = rng.fold(simulation.config.seed, step)  # of rules that shuffle; attackers know it
    if run.memory is not None:
        return remembering(simulation, run.memory, arrivals, rows, key=key)
    with threads.small_operations():
        mixed = settle(simulation.rule, arrivals, rows, key=key, out=run.mixed)
    run.mixed = mixed[:1] if mixed.stride(0) == 0 else mixed
    return mixed


def _watch(run: SimulationState, tag: str, rows: Tensor | None, arrivals: Arrivals, mixed: Tensor) -> bool:
    """Write what an exchange did; return whether there is still a peer whose row is finite, or may be again."""
    assert rows is not None
    with threads.small_operations():
        measured = mixing(rows, mixed)
    run.arrived(arrivals, len(rows))
    run.bytes += rows.shape[1] * rows.element_size() * run.network.network.messages
    texts, step = run.simulation.learner.texts, run.step
    go_on = math.isfinite(measured.consensus)
    if texts is not None and tag == COEFFICIENTS and not go_on:
        go_on = texts.passes_over(step)
    if go_on:
        run.exchanged(tag, measured, arrivals.strength)
    return go_on


def _result(run: SimulationState, status: str, final: list[float]) -> dict[str, Any]:
    config, learner, steps = run.simulation.config, run.simulation.learner, max(1, run.step)
    alphas, lams = run.mixings("alpha"), run.mixings("lam")
    graph = topology_of(config)
    return {
        "status": status,
        "worst_accuracy": min(final),
        "mean_accuracy": statistics.fmean(final),
        "accuracy": final,
        **({} if learner.texts is None else learner.texts.of_result()),
        "consensus_distance": finite_or_null(run.consensus),
        "alpha": statistics.median(alphas) if alphas else None,
        "lambda": statistics.median(lams) if lams else None,
        "alpha_max": max(alphas, default=None),
        "lambda_max": max(lams, default=None),
        "gradients_per_peer": learner.samples,
        "gradient_overhead": learner.samples / (steps * config.batch_size),
        "bytes_per_peer_step": run.bytes / steps,
        "mixed_share": run.mixed_exchanges / run.exchanges if run.exchanges else None,
        **({} if graph is None else {"graph": graph.facts()}),
        "weights_sha256": weights_sha256(learner.weights()),
        "steps": run.step,
        "train_seconds": run.spent,
        "seconds_per_step": run.spent / steps,
        "peak_memory_bytes": run.meter.peak,
        "config": config.to_json(),
        "versions": versions(config.plugins),
    }
