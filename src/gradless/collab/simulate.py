"""One run: honest peers, attackers who have seen everything, and the network between them."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradless import rng
from gradless.collab import sweeps
from gradless.collab.algorithms import PARAMETERS
from gradless.collab.build import Parts, build
from gradless.collab.config import CollabConfig, from_json
from gradless.collab.measure import Mixing, mixing
from gradless.collab.scene import Scene, State
from gradless.collab.strength import strongest
from gradless.collab.transport import meet
from gradless.collab.views import aggregate
from gradless.errors import BadInput
from gradless.hashing import weights_sha256
from gradless.memory import PeakMeter
from gradless.notes import DIVERGED, DONE, INTERRUPTED, versions, write_json
from gradless.progress import Reporter


def simulate(config: CollabConfig, folder: Path, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a group and return the contents of ``result.json``.

    A folder that holds the finished run of the same configuration is left as it is; an unfinished run starts over.

    Args:
        config: what to run.
        folder: run directory.
        reporter: where progress goes.

    Raises:
        BadInput: anything wrong with the configuration or the data, or another run in the folder.
    """
    reporter = reporter or Reporter()
    config = config.resolved()
    finished = _claim(config, folder)
    if finished is not None:
        reporter.say(f"{folder} is finished; nothing to do")
        return finished
    parts = build(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_json())
    with (folder / "metrics.jsonl").open("w") as file:
        notes, meter = _Notes(file), PeakMeter(torch.device(config.device))
        with sweeps.without_denormals(), meter.measured():
            status, spent = _loop(parts, notes, reporter)
            final = parts.learner.accuracy(None)
            notes.evaluated(notes.steps, final, parts.learner.consensus())
        os.fsync(file.fileno())  # before the result, which says that all of it is there
    result = _result(parts, notes, status, spent, final) | {"peak_memory_bytes": meter.peak}
    write_json(folder / "result.json", result)
    return result


def _claim(config: CollabConfig, folder: Path) -> dict[str, Any] | None:
    """Make sure that ``folder`` is free or holds this very run; the result if it is finished."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file, not a folder: choose another --out")
    if not (folder / "config.json").exists():
        return None
    try:
        held = from_json(json.loads((folder / "config.json").read_text()))
    except (TypeError, ValueError):
        raise BadInput(f"{folder} holds something else than a collaborative run: choose another --out") from None
    if held.id() != config.id():
        raise BadInput(f"{folder} holds a run with other settings: choose another --out")
    if not (folder / "result.json").exists():
        return None
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except ValueError:  # torn by a crash of the machine: as good as none
        return None
    return None if result.get("status", INTERRUPTED) == INTERRUPTED else result


class _Notes:
    """``metrics.jsonl``, and what the result needs of it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.steps = 0
        self.mixings: list[tuple[str, Mixing]] = []
        self.consensus = math.nan
        self.bytes = 0.0

    def write(self, **line: Any) -> None:
        self.file.write(json.dumps({name: plain(value) for name, value in line.items()}) + "\n")
        self.file.flush()

    def evaluated(self, step: int, accuracy: list[float], consensus: float) -> None:
        self.consensus = consensus
        self.write(
            event="eval", step=step, accuracy=accuracy, worst_accuracy=min(accuracy),
            mean_accuracy=statistics.fmean(accuracy), consensus_distance=consensus,
        )  # fmt: skip

    def mixed(self, which: str) -> list[float]:
        """What mixing did to models ("alpha" or "lam"), or, where no models are exchanged, to what is."""
        models = [one for tag, one in self.mixings if _of_models(tag)]
        found = [getattr(one, which) for one in models or [one for _, one in self.mixings]]
        return [value for value in found if math.isfinite(value)]


def _of_models(tag: str) -> bool:
    return tag.startswith(PARAMETERS)


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _loop(parts: Parts, notes: _Notes, reporter: Reporter) -> tuple[str, float]:
    """Take all steps; returns how they ended and the seconds spent on them."""
    config, learner = parts.config, parts.learner
    memory = _Memory()
    spent = 0.0
    title = f"{config.algorithm} under {config.attack}"
    with reporter.job(title, config.steps) as show:
        try:
            for step in range(config.steps):
                if step and step % config.eval_every == 0:
                    accuracy = learner.accuracy(config.eval_rows)
                    notes.evaluated(step, accuracy, learner.consensus())
                    show(step, f"worst {min(accuracy):.3f}  mean {statistics.fmean(accuracy):.3f}")
                begun = time.perf_counter()
                healthy = _step(parts, memory, step, notes)
                spent += time.perf_counter() - begun
                notes.steps = step + 1
                if not healthy:
                    return DIVERGED, spent
                show(step + 1, f"loss {float(learner.losses.mean()):.4f}")
        except KeyboardInterrupt:
            return INTERRUPTED, spent
    return DONE, spent


class _Memory:
    """What one exchange leaves to the next."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        """What the attack remembers of each kind of exchange."""
        self.mixed: Tensor | None = None
        """[1 or H, D] the mixed rows, whose memory the next ones may take."""


@torch.no_grad()
def _step(parts: Parts, memory: _Memory, step: int, notes: _Notes) -> bool:
    """All exchanges of one step; whether there is still a peer whose row is finite."""
    config, learner = parts.config, parts.learner
    for tag in learner.exchanges(step):
        honest = learner.propose(step, tag)
        flipped = learner.poisoned(step, tag) if parts.attack.flips else None
        with sweeps.small_operations():
            state = memory.states[tag] if tag in memory.states else parts.attack.start()
            mixed, strength, memory.states[tag] = exchange(
                parts, honest, state, step, tag, flipped=flipped, out=memory.mixed
            )
            memory.mixed = mixed[:1] if mixed.stride(0) == 0 else mixed
            found = mixing(honest, mixed)
        notes.mixings.append((tag, found))
        notes.bytes += honest.shape[1] * honest.element_size() * (config.peers - 1)
        learner.accept(step, tag, mixed)
        if not math.isfinite(found.consensus):
            return False
        notes.write(
            event="step", step=step, exchange=tag, loss=float(learner.losses.mean()), alpha=found.alpha,
            **{"lambda": found.lam}, consensus_distance=found.consensus if _of_models(tag) else None, strength=strength,
        )  # fmt: skip
    return True


def exchange(
    parts: Parts, honest: Tensor, state: State, step: int, tag: str, *, flipped: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, float | None, State]:  # fmt: skip
    """One exchange: what attackers say, who hears whom, what each honest peer makes of it.

    Args:
        parts: of the run.
        honest: [H, D] what honest peers send.
        state: what the attack remembers.
        step: of the run.
        tag: of the exchange.
        flipped: [1, D] what flipped labels lead to, for attacks that ask.
        out: memory that the result may lie in; see `gradless.collab.views.aggregate`.

    Returns:
        Rows [H, D] (a peer that hears too few keeps its own), the attack's strength, and what it remembers now.
    """
    config, attack, rule = parts.config, parts.attack, parts.rule
    attackers = config.attackers or 0
    room = meet(
        config.delivery, peers=config.peers, byzantine=config.byzantine, attackers=attackers,
        key=(config.seed, step, tag), honest=honest,
    )  # fmt: skip
    if not room.reached:
        return honest.clone(), None, state
    scene = Scene(honest, flipped, attackers, config.byzantine, step, config.seed)
    key = rng.fold(config.seed, step)  # of rules that shuffle
    said = strongest(attack, scene, rule, partial(room.views, honest), state, key=key)
    views = room.views(honest, said.extras, said.coefficients)
    mixed = aggregate(rule, views, key=key, geometry=said.geometry, out=out)
    return _all(mixed, honest, room.reached), said.strength, said.state


def _all(mixed: Tensor, honest: Tensor, reached: tuple[int, ...]) -> Tensor:
    """Rows of all honest peers: mixed where a peer heard enough, else its own."""
    if len(reached) == len(honest):
        return mixed
    everybody = honest.clone()
    everybody[list(reached)] = mixed
    return everybody


def _result(parts: Parts, notes: _Notes, status: str, spent: float, final: list[float]) -> dict[str, Any]:
    config, steps = parts.config, max(1, notes.steps)
    alphas, lams = notes.mixed("alpha"), notes.mixed("lam")
    return {
        "status": status,
        "worst_accuracy": min(final),
        "mean_accuracy": statistics.fmean(final),
        "accuracy": final,
        "consensus_distance": plain(notes.consensus),
        "alpha": statistics.median(alphas) if alphas else None,
        "lambda": statistics.median(lams) if lams else None,
        "alpha_max": max(alphas, default=None),
        "lambda_max": max(lams, default=None),
        "gradients_per_peer": parts.learner.samples,
        "gradient_overhead": parts.learner.samples / (steps * config.batch_size),
        "bytes_per_peer_step": notes.bytes / steps,
        "weights_sha256": weights_sha256(parts.learner.weights()),
        "steps": notes.steps,
        "train_seconds": spent,
        "seconds_per_step": spent / steps,
        "config": parts.config.to_json(),
        "versions": versions(),
    }
