"""The executor of a Ray cluster: each run is a task on one of its nodes, and this machine alone writes the directory.

A task gets its request and the files that it needs, runs the command that a run here is, and returns the files of its
run directory. A run whose node is lost starts again, as one does whose process here was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from gradless.bench import process, results
from gradless.bench.executor import Ended
from gradless.bench.grid import ZERO_SHOT, Request, cell_name
from gradless.cost import memory_guard, plan
from gradless.cost.settings import PlanSettings
from gradless.errors import BadInput
from gradless.forward.engines import AUTO, STREAM
from gradless.runs import shipped_config
from gradless.runs.config import TuneConfig
from gradless.system import ray_address, ray_cluster, ray_work
from gradless.system.ray_cluster import Cluster, Need, Outcome, Work
from gradless.system.ray_node import ROOT
from gradless.system.shipped import Shipment

MOST: Final = 200
"""Runs that are handed to a cluster at once, each with a lock that is open here."""
RUNTIME: Final = 400 * 10**6
"""Bytes of Python, torch and transformers, which a plan leaves out."""
ON_GPU: Final = 2 * 10**9
"""Bytes of a node's memory for a run on a GPU, which has its weights there: Python, libraries and CUDA's context."""
PLANNED: Final = ("model", "method", "scheme", "dtype", "compute_dtype", "device", "quantise", "offload", "rank")
PROCESS: Final = ("process.json", "failed.json", "reused.json")
"""What this machine writes of a run."""
CONFIG: Final = "config.json"
ASKED: Final = Path(ROOT) / "bench"


@contextlib.contextmanager
def joined(address: str, requests: Sequence[Request], threads: int | None) -> Iterator[tuple[RayNodes, str]]:
    """Yield a cluster on which all of these runs can be made, and a line about it.

    Args:
        address: see `gradless.system.ray_address.FORMS`.
        requests: all runs that may be asked for.
        threads: of each run; None: OMP_NUM_THREADS, or else one.

    Raises:
        BadInput: the cluster is not there, its nodes differ from this machine, a run fits on none of them, or a file
            cannot be sent.
    """
    ray_address.check_form(address)
    shipment = Shipment()
    there = {one.id: shipped_config.shipped(one.config.to_json(), shipment) for one in requests}
    modules = dict.fromkeys(name for one in requests for name in shipped_config.modules(one.config.to_json()))
    with ray_cluster.joined(address) as cluster:
        needs = needed(requests, ray_work.cpus(threads), has_gpu=cluster.has_gpu())
        named = dict.fromkeys((f"cell {cell_name(one.cell)}", needs[one.id]) for one in requests)
        line = cluster.check(named, [*modules], shipment)
        yield RayNodes(cluster, shipment, needs, there), line


class RayNodes:
    """A cluster that was asked whether it can make the runs of a benchmark.

    Args:
        cluster: joined and checked.
        shipment: files that the runs need.
        needs: of each run, by id.
        there: settings of each run with the paths of a node, by id.
    """

    def __init__(
        self, cluster: Cluster, shipment: Shipment, needs: dict[str, Need], there: dict[str, dict[str, Any]]
    ) -> None:
        self.cluster, self.shipment, self.needs, self.there = cluster, shipment, needs, there

    def executor(self, out: Path, workers: int | None) -> RayRuns:
        """Return the executor of a bench directory; ``workers``: runs at a time, None: as many as have room."""
        return RayRuns(self, out, workers or MOST)


class RayRuns:
    """Runs of one directory on a cluster.

    Args:
        nodes: the cluster.
        out: bench directory.
        workers: runs that it has at a time, waiting ones included.
    """

    def __init__(self, nodes: RayNodes, out: Path, workers: int) -> None:
        self._nodes, self._out, self._workers = nodes, out, workers
        self._runs: dict[str, tuple[Request, int]] = {}
        self._losses: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what still works, and give its locks back."""
        try:
            self._nodes.cluster.cancel()
        finally:
            for _, lock in self._runs.values():
                os.close(lock)
            self._runs.clear()

    def free(self) -> bool:
        """Return whether the cluster may be given another run."""
        return len(self._runs) < self._workers

    def busy(self) -> bool:
        """Return whether it has one."""
        return bool(self._runs)

    def has(self, request: Request) -> bool:
        """Return whether it has this one."""
        return request.id in self._runs

    def start(self, request: Request, lock: int) -> None:
        """Hand a run to the cluster, which starts it as soon as a node has room."""
        nodes, folder = self._nodes, results.run_folder(self._out, request.id)
        folder.mkdir(parents=True, exist_ok=True)
        asked = {**request.to_json(), "config": nodes.there[request.id]}
        texts = {_below(results.request_file(ASKED, request.id)): json.dumps(asked, allow_nan=False)}
        config = dataclasses.replace(request.config, plugins=nodes.there[request.id].get("plugins", {}))
        command = process.command(request._replace(config=config), ASKED)
        kept, inside = ray_work.kept(folder, PROCESS), results.run_folder(ASKED, request.id)
        with contextlib.suppress(ValueError, AttributeError):  # of a damaged file the run itself says so
            begun = shipped_config.shipped(json.loads(kept.get(CONFIG, b"")), nodes.shipment)
            texts[_below(inside / CONFIG)] = json.dumps(begun)
        work = Work(
            name=request.id,
            need=nodes.needs[request.id],
            module="gradless",
            arguments=tuple(command[len(process.GRADLESS) :]),
            texts=texts,
            folder=_below(inside),
            kept=kept,
            environment=ray_work.environment(nodes.needs[request.id].cpus),
        )
        nodes.cluster.start(work, nodes.shipment)
        self._runs[request.id] = request, lock

    def ended(self, seconds: float) -> list[Ended]:
        """Wait for tasks, and write what they return."""
        outcomes = ray_work.ended(self._nodes.cluster, seconds)
        runs = [(*self._runs.pop(work.name), work, outcome) for work, outcome in outcomes]
        lost = [outcome.lost for *_, outcome in runs if outcome.lost]
        self._losses |= {one.id: self._losses.get(one.id, 0) + 1 for one, *_, outcome in runs if outcome.lost}
        note = ray_work.lost(lost, sum(self._losses.values())) if lost else ""
        try:
            return [
                Ended(one, lock, self._recorded(one, work, outcome), note if outcome.lost else "")
                for one, lock, work, outcome in runs
            ]
        except BaseException:
            for _, lock, *_ in runs:
                os.close(lock)
            raise

    def _recorded(self, request: Request, work: Work, outcome: Outcome) -> str:
        """Write the files of a run, and how its process ended; returns as `gradless.bench.process.recorded`."""
        folder = results.run_folder(self._out, request.id)
        if outcome.lost:
            if self._losses[request.id] >= ray_work.LIVES:
                results.failed(folder, ray_work.failure(outcome), 1, "")
            return ""
        results.began(folder, self._nodes.needs[request.id].cpus)
        ray_work.write(folder, work, outcome, self._nodes.shipment)
        stderr = ray_work.stderr(folder, work, outcome, self._nodes.shipment)
        stop = process.recorded(request, self._out, outcome.code, stderr, outcome.seconds)
        return f"{stop} on {outcome.host}" if stop else ""


def _below(path: Path) -> str:
    """Return a path below the folder of a task as text."""
    return path.relative_to(ROOT).as_posix()


def needed(requests: Iterable[Request], cpus: int, *, has_gpu: bool) -> dict[str, Need]:
    """Return what each run needs, by its id.

    Args:
        requests: the runs.
        cpus: of each.
        has_gpu: whether a node has a GPU, on which runs with the device auto are then made.

    Cost: a second for each way of using a model (`gradless.cost.plan`).
    """
    known: dict[tuple[PlanSettings, bool], int] = {}
    needs = {}
    for one in requests:
        if ray_work.on_gpu(one.config.device, has_gpu=has_gpu):
            needs[one.id] = Need(cpus, 1, ON_GPU)
            continue
        settings, tunes = planned(one.config), one.phase != ZERO_SHOT
        if (settings, tunes) not in known:
            known[settings, tunes] = _memory(settings, tunes=tunes)
        needs[one.id] = Need(cpus, memory=known[settings, tunes])
    return needs


def planned(config: TuneConfig) -> PlanSettings:
    """Return what `gradless plan` is asked for a run."""
    return PlanSettings(
        **{name: getattr(config, name) for name in PLANNED},
        batch_size=config.micro_batch_size or config.batch_size,
        length=config.max_length or PlanSettings(model=config.model).length,
        engine=STREAM if config.engine in (None, AUTO) else config.engine,
        objective="lm" if config.objective == "lm" else "option_ce",
    )


def _memory(settings: PlanSettings, *, tunes: bool) -> int:
    """Return the bytes of a run; 0 where that is not known without the model's weights, which the run then finds."""
    for length in dict.fromkeys((settings.length, min(settings.length, memory_guard.LENGTH))):
        try:
            subject = plan.subject(dataclasses.replace(settings, length=length), settings.scheme if tunes else "full")
            if not tunes:
                return plan.inference(subject).total + RUNTIME
            return plan.of_method(subject, settings.method, settings.engine, "").total + RUNTIME
        except (BadInput, ValueError, RuntimeError, OSError, AttributeError, TypeError, KeyError):
            continue
    return 0
