"""One run: honest peers, attackers who have seen everything, and the network between them."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import AttackContext, State
from gradless.collab.adversary.line_search import strongest
from gradless.collab.aggregation import threads
from gradless.collab.aggregation.base import aggregate
from gradless.collab.config import CollabConfig, from_json
from gradless.collab.contraction import mixing
from gradless.collab.learners.vision import show_own_data
from gradless.collab.network.simulated import meet
from gradless.collab.simulation.build import Simulation, build
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
        return simulate_claimed(config, folder, reporter)


def simulate_claimed(config: CollabConfig, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """`simulate` in a folder that is claimed, or lies in one that is."""
    config = config.resolved()
    make_room(folder, ("metrics.jsonl", "result.json", CHECKPOINT), reporter.say)
    finished = _finished(config, folder)
    if finished is not None:
        forget(folder)
        reporter.say(f"{folder} is finished; nothing to do")
        return finished
    simulation = build(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_json())
    with contextlib.closing(SimulationState(simulation, folder)) as run:
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
                if not healthy:
                    return DIVERGED
                show(step + 1, f"loss {float(learner.losses.mean()):.4f}")
                run.save(reporter)
        except KeyboardInterrupt:
            return INTERRUPTED
    return DONE


@torch.no_grad()
def _step(run: SimulationState) -> bool:
    """Run all exchanges of one step; return whether there is still a peer whose row is finite."""
    simulation, step = run.simulation, run.step
    config, learner = simulation.config, simulation.learner
    for tag in learner.exchanges(step):
        honest = learner.propose(step, tag)
        flipped = learner.poisoned(step, tag) if simulation.attack.flips else None
        with threads.small_operations():
            state = run.states[tag] if tag in run.states else simulation.attack.start()
            mixed, strength, run.states[tag] = exchange(
                simulation, honest, state, step, tag, flipped=flipped, out=run.mixed
            )
            run.mixed = mixed[:1] if mixed.stride(0) == 0 else mixed
            measured = mixing(honest, mixed)
        run.bytes += honest.shape[1] * honest.element_size() * (config.peers - 1)
        learner.accept(step, tag, mixed)
        run.exchanged(tag, measured, strength)
        if not math.isfinite(measured.consensus):
            return False
    return True


def exchange(
    simulation: Simulation,
    honest: Tensor,
    state: State,
    step: int,
    tag: str,
    *,
    flipped: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, float | None, State]:
    """Run one exchange: what attackers send, who hears whom, what each honest peer makes of it.

    Args:
        simulation: of the run.
        honest: [H, D] what honest peers send.
        state: what the attack remembers.
        step: of the run.
        tag: of the exchange.
        flipped: [1, D] what flipped labels lead to, for attacks that ask.
        out: memory that the result may lie in; see `gradless.collab.aggregation.base.aggregate`.

    Returns:
        Rows [H, D] (a peer that hears too few keeps its own), the attack's strength, and what it remembers now.
    """
    config, attack, rule = simulation.config, simulation.attack, simulation.rule
    attackers = config.attackers or 0
    delivered = meet(
        config.delivery,
        peers=config.peers,
        byzantine=config.byzantine,
        attackers=attackers,
        key=(config.seed, step, tag),
        honest=honest,
    )
    if not delivered.reached:
        return honest.clone(), None, state
    context = AttackContext(honest, flipped, attackers, config.byzantine, step, config.seed)
    key = rng.fold(config.seed, step)  # of rules that shuffle
    message = strongest(attack, context, rule, partial(delivered.received, honest), state, key=key)
    received = delivered.received(honest, message.extras, message.coefficients)
    mixed = aggregate(rule, received, key=key, gram=message.gram, out=out)
    return _all(mixed, honest, delivered.reached), message.strength, message.state


def _all(mixed: Tensor, honest: Tensor, reached: tuple[int, ...]) -> Tensor:
    """Return the rows of all honest peers: mixed where a peer heard enough, else its own."""
    if len(reached) == len(honest):
        return mixed
    everybody = honest.clone()
    everybody[list(reached)] = mixed
    return everybody


def _result(run: SimulationState, status: str, final: list[float]) -> dict[str, Any]:
    config, learner, steps = run.simulation.config, run.simulation.learner, max(1, run.step)
    alphas, lams = run.mixings("alpha"), run.mixings("lam")
    return {
        "status": status,
        "worst_accuracy": min(final),
        "mean_accuracy": statistics.fmean(final),
        "accuracy": final,
        "consensus_distance": finite_or_null(run.consensus),
        "alpha": statistics.median(alphas) if alphas else None,
        "lambda": statistics.median(lams) if lams else None,
        "alpha_max": max(alphas, default=None),
        "lambda_max": max(lams, default=None),
        "gradients_per_peer": learner.samples,
        "gradient_overhead": learner.samples / (steps * config.batch_size),
        "bytes_per_peer_step": run.bytes / steps,
        "weights_sha256": weights_sha256(learner.weights()),
        "steps": run.step,
        "train_seconds": run.spent,
        "seconds_per_step": run.spent / steps,
        "peak_memory_bytes": run.meter.peak,
        "config": config.to_json(),
        "versions": versions(config.plugins),
    }
