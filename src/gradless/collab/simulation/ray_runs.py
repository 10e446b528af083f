"""Simulations on a Ray cluster: each is a task on one of its nodes, and this machine alone writes their folders."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gradless.collab.config import CollabConfig
from gradless.collab.simulation.simulate import finished_result
from gradless.collab.simulation.workers import Job, Results
from gradless.errors import BadInput
from gradless.runs import shipped_config
from gradless.system import ray_address, ray_cluster, ray_work
from gradless.system.locks import LOCK
from gradless.system.progress import Reporter
from gradless.system.ray_cluster import Cluster, Need, Outcome, Work
from gradless.system.ray_node import ROOT
from gradless.system.shipped import Shipment

CONFIG: Final = "config.json"
FOLDER: Final = "run"
MODULE: Final = "gradless.collab.simulation.workers"
OURS: Final = (LOCK, "results.jsonl", CONFIG)
"""Files that a task does not get from the folder of its run."""


class Simulations:
    """A cluster that was asked whether it can make these simulations.

    Args:
        cluster: joined and checked.
        shipment: files that they need.
        need: of each of them.
    """

    def __init__(self, cluster: Cluster, shipment: Shipment, need: Need) -> None:
        self._cluster, self._shipment, self._need = cluster, shipment, need

    def results(self, jobs: Sequence[Job], workers: int | None, reporter: Reporter) -> Results:
        """Simulate all; yields each with its result as it ends.

        Args:
            jobs: configurations and their run directories, which are claimed.
            workers: runs at a time; None: as many as have room.
            reporter: where losses are told.

        Raises:
            BadInput: what a simulation refuses, or one was lost `gradless.system.ray_work.LIVES` times; runs that
                ended at the same time are yielded before.
        """
        waiting, working, losses = list(jobs), dict[str, Job](), dict[str, int]()
        try:
            while waiting or working:
                while waiting and len(working) < (workers or len(jobs)):
                    config, folder = job = waiting.pop(0)
                    self._start(config, folder)
                    working[config.id()] = job
                lost, failures = list[str](), list[BadInput]()
                for work, outcome in ray_work.ended(self._cluster, 1.0):
                    config, folder = job = working.pop(work.name)
                    if outcome.lost:
                        lost.append(outcome.lost)
                        losses[work.name] = losses.get(work.name, 0) + 1
                        waiting.append(job)
                        if losses[work.name] >= ray_work.LIVES:
                            failures.append(BadInput(f"{ray_work.failure(outcome)}: mend its node or add one"))
                        continue
                    try:
                        result = self._result(folder, work, outcome)
                    except BadInput as error:
                        failures.append(error)
                        continue
                    yield config, result
                if lost:
                    reporter.say(ray_work.lost(lost, sum(losses.values())))
                if failures:
                    raise failures[0]
        finally:
            self._cluster.cancel()

    def _start(self, config: CollabConfig, folder: Path) -> None:
        values = json.dumps(shipped_config.shipped(config.to_json(), self._shipment))
        kept = ray_work.kept(folder, OURS)
        texts = {CONFIG: values} | ({f"{FOLDER}/{CONFIG}": values} if (folder / CONFIG).exists() else {})
        work = Work(
            name=config.id(),
            need=self._need,
            module=MODULE,
            arguments=(f"{ROOT}/{CONFIG}", f"{ROOT}/{FOLDER}"),
            texts=texts,
            folder=FOLDER,
            kept=kept,
            environment=ray_work.environment(self._need.cpus),
        )
        self._cluster.start(work, self._shipment)

    def _result(self, folder: Path, work: Work, outcome: Outcome) -> dict[str, Any]:
        stderr = ray_work.stderr(folder, work, outcome, self._shipment)
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        if outcome.code:
            killed = f"a run was killed on {outcome.host} (out of memory?): finished runs are kept; add a larger node"
            raise BadInput(lines[-1].removeprefix("gradless: ") if lines and outcome.code > 0 else killed)
        ray_work.write(folder, work, outcome, self._shipment)
        result = finished_result(folder)
        if result is None:
            raise BadInput(f"a run on {outcome.host} has no result: the same command tries it again")
        return result


@contextlib.contextmanager
def joined(address: str, configs: Sequence[CollabConfig]) -> Iterator[tuple[Simulations, str]]:
    """Yield a cluster on which simulations can be made, and a line about it.

    Each gets OMP_NUM_THREADS CPUs, or else one, and a GPU if it computes on one; what memory it takes is not known
    beforehand.

    Raises:
        BadInput: the cluster is not there, its nodes differ from this machine, a run fits on none of them, or a file
            cannot be sent.
    """
    ray_address.check_form(address)
    shipment = Shipment()
    values = [config.to_json() for config in configs]
    for one in values:
        shipped_config.shipped(one, shipment)
    modules = dict.fromkeys(name for one in values for name in shipped_config.modules(one))
    with ray_cluster.joined(address) as cluster:
        has_gpu = cluster.has_gpu()
        gpus = int(any(ray_work.on_gpu(config.device, has_gpu=has_gpu) for config in configs))
        need = Need(ray_work.cpus(None), gpus)
        line = cluster.check([("a run", need)], [*modules], shipment)
        yield Simulations(cluster, shipment, need), line
