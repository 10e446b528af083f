"""A Ray cluster on which runs are made: joined, checked, given tasks, and asked for what they have written.

Ray (Moritz et al. 2018, arXiv 1712.05889) places tasks by the resources that they ask for. A task here is one process
of gradless in a temporary folder of its node (`gradless.system.ray_node`). Nodes share no disk: files go with the task
and come back with its result. A task whose node or worker is lost is told to the caller, who starts it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.system import ray_node, terminal
from gradless.system.ray_address import HERE, RUNNING, check_form, check_joined, check_there
from gradless.system.shipped import Shipment, refuse_missing

PROBING: Final = 120.0  # seconds in which each node has to start a first task
CANCELLING: Final = 10.0
LOOKING: Final = 10.0  # seconds between two looks at which nodes are left
QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as later releases do; else this one warns
}
LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 the services of a cluster of this machine listen on 127.0.0.1 alone, as they do on macOS and Windows."""


class Need(NamedTuple):
    """What a run needs of its node."""

    cpus: int
    gpus: int = 0
    memory: int = 0
    """Bytes."""

    def lacking(self, there: Mapping[str, float]) -> list[str]:
        """Return the names of resources of which a node has too little."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return [name for name, amount in asked.items() if there.get(name, 0) < amount]


class Work(NamedTuple):
    """A task: a module of gradless in a process, see `gradless.system.ray_node.run`."""

    name: str
    need: Need
    module: str
    arguments: tuple[str, ...]
    texts: dict[str, str]
    folder: str
    kept: dict[str, bytes]
    environment: dict[str, str]


class Outcome(NamedTuple):
    """How a task ended."""

    lost: str = ""
    """Why its node or worker is lost, or its node did not bring a process to an end; there are then no files."""
    host: str = ""
    """Name of its node; of a lost one only where that is known."""
    root: str = ""
    code: int = 0
    stderr: str = ""
    seconds: float = 0.0
    files: Mapping[str, bytes] = MappingProxyType({})


@contextlib.contextmanager
def joined(address: str, cpus: int | None = None) -> Iterator[Cluster]:
    """Yield a cluster; one of this machine alone ends with the block.

    Args:
        address: one of `gradless.system.ray_address.FORMS`.
        cpus: of a cluster of this machine alone; None: all.

    Raises:
        BadInput: as `check_form`; the cluster is not there; its Python or Ray are of other versions; this program has
            joined another.
    """
    check_form(address)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    how: dict[str, Any] = {"address": address}
    with contextlib.ExitStack() as restored:
        if address == HERE:
            how = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
            if os.environ.get(LOOPBACK) is None:
                os.environ[LOOPBACK] = "0"
                restored.callback(os.environ.pop, LOOPBACK, None)
        elif address != RUNNING:
            check_there(address)
        import ray

        if ray.is_initialized():  # of a program that uses it
            check_joined(address)
            yield Cluster()
            return
        if address == HERE and os.environ[LOOPBACK] == "0":
            _read_loopback(restored)
        _init(address, how)
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _read_loopback(restored: contextlib.ExitStack) -> None:
    """Let Ray know the variable `LOOPBACK`, which it reads as it is imported: the program may have imported it before.

    ``_node_ip_address="127.0.0.1"`` does not do: Ray puts the address of the network in its stead.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import ray_constants

        restored.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
        ray_constants.ENABLE_RAY_CLUSTER = False


def _init(address: str, how: dict[str, Any]) -> None:
    import logging

    import ray

    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:
        if address == RUNNING and isinstance(error, ConnectionError):
            raise BadInput(
                "no Ray cluster runs on this machine: start one ('ray start --head'), give --on HOST:PORT of another, "
                "or --on ray for one of this machine alone"
            ) from None
        reason = terminal.sentence(str(error).strip().partition("\n")[0])[:200]
        raise BadInput(f"the Ray cluster {address} cannot be joined ({reason}): start it, or correct --on") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ending)  # which Ray takes for itself


class Cluster:
    """A cluster that this process has joined."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        self._run, self._probe = _by_value()
        self._tasks: dict[Any, Work] = {}
        self._looked = time.monotonic()
        self._contents: dict[str, tuple[list[tuple[str, str]], Any]] = {}

    # -----------------------------------------------------------------------------------------------------------
    # before anything runs

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive, as Ray describes them."""
        return [node for node in self._ray.nodes() if node["Alive"]]

    def has_gpu(self) -> bool:
        """Return whether a node has a GPU."""
        return any(node["Resources"].get("GPU", 0) >= 1 for node in self.nodes())

    def check(self, needs: Iterable[tuple[str, Need]], modules: Sequence[str], shipment: Shipment) -> str:
        """Ask every node what it is; returns a line about the cluster.

        Args:
            needs: of runs, each with its name in an error.
            modules: that the nodes have to have, beside gradless.
            shipment: what is too large in it has to lie on every node.

        Raises:
            BadInput: a node has other versions or other sources of gradless, or does not answer; a run fits on none.
        """
        nodes = self.nodes()
        self._check_needs(needs, nodes)
        own = ray_node.probe()
        answers = self._probed(nodes, (tuple(modules), tuple(shipment.in_place)))
        for answer in answers:
            _check_versions(own, answer)
            if answer["modules"]:
                raise BadInput(f"{answer['host']} has no module {answer['modules'][0]}: install it on every node")
        refuse_missing([(one["host"], one["sizes"]) for one in answers], shipment.in_place)
        cpus = sum(int(node["Resources"].get("CPU", 0)) for node in nodes)
        gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
        count = f"{len(nodes)} nodes" if len(nodes) > 1 else "1 node"
        return f"Ray cluster: {count}, {cpus} CPUs{f', {gpus} GPUs' if gpus else ''}"

    def _probed(self, nodes: Sequence[dict[str, Any]], arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

        tasks = {}
        for node in nodes:
            where = OnNode(node["NodeID"], soft=False)
            tasks[self._probe.options(scheduling_strategy=where).remote(*arguments)] = node["NodeManagerHostname"]
        done, late = self._ray.wait([*tasks], num_returns=len(tasks), timeout=PROBING)
        if late:
            raise BadInput(
                f"{tasks[late[0]]} has not started a task within {PROBING:.0f} s: look at its logs, or remove the node"
            )
        answers = []
        for task in done:
            try:
                answers.append(self._ray.get(task))
            except self._ray.exceptions.RayError as error:
                raise BadInput(f"{tasks[task]} cannot run a task ({_reason(error)}): remove the node") from None
        return answers

    def _check_needs(self, needs: Iterable[tuple[str, Need]], nodes: Sequence[dict[str, Any]]) -> None:
        resources = [node["Resources"] for node in nodes]
        for name, need in needs:
            short = [need.lacking(there) for there in resources]
            if not all(short):
                continue
            everywhere = [key for key in ("GPU", "CPU", "memory") if all(key in lacking for lacking in short)]
            raise BadInput(f"{name}: {_shortage(need, everywhere, resources)}")

    # -----------------------------------------------------------------------------------------------------------
    # tasks

    @property
    def tasks(self) -> int:
        """Number of tasks that have not ended."""
        return len(self._tasks)

    def start(self, work: Work, shipment: Shipment) -> None:
        """Start a task; what several tasks need is sent to the cluster once.

        Raises:
            BadInput: the cluster is gone.
            OSError: a file cannot be read.
        """
        options = {"num_cpus": work.need.cpus, "num_gpus": work.need.gpus, "name": work.name}
        if work.need.memory:
            options["memory"] = work.need.memory
        keys = shipment.used("\0".join([*work.texts.values(), *work.arguments]))
        task = {name: value for name, value in work._asdict().items() if name not in ("name", "need")}
        with self._reached():
            sources = [self._content(key, shipment) for key in keys]
            task["sources"] = [names for names, _ in sources]
            self._tasks[self._run.options(**options).remote(task, *(content for _, content in sources))] = work

    def _content(self, key: str, shipment: Shipment) -> tuple[list[tuple[str, str]], Any]:
        if key not in self._contents:
            names, contents = shipment.sources[key].read()
            self._contents[key] = names, self._ray.put(contents)
        return self._contents[key]

    def ended(self, seconds: float) -> list[tuple[Work, Outcome]]:
        """Wait ``seconds`` at most, and return tasks that have ended.

        Raises:
            BadInput: the cluster is gone, or no node is left on which one of the tasks fits.
        """
        if not self._tasks:
            return []
        with self._reached():
            done, _ = self._ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=seconds)
            if not done and time.monotonic() - self._looked > LOOKING:
                self._looked = time.monotonic()
                resources = [node["Resources"] for node in self.nodes()]
                if all(work.need.lacking(there) for work in self._tasks.values() for there in resources):
                    raise BadInput("no node is left on which a run fits: add one; the same command then continues")
        return [(self._tasks.pop(task), self._outcome(task)) for task in done]

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise BadInput where the block finds the cluster gone."""
        try:
            yield
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise BadInput(f"the Ray cluster is gone ({_reason(error)}): the same command then continues") from None

    def _outcome(self, task: Any) -> Outcome:
        failures = self._ray.exceptions
        try:
            return Outcome(**self._ray.get(task))
        except failures.RayTaskError as error:
            cause, host = error.cause or error, self._host(error.ip)
            reason = terminal.sentence(str(cause).strip().rpartition("\n")[2]) or type(cause).__name__
            return Outcome(lost=f"{host} could not make it ({reason})", host=host)
        except failures.RayError as error:
            return Outcome(lost=_reason(error))

    def _host(self, address: str) -> str:
        """Return the name of the node with an IP address; the address where the node is gone."""
        with contextlib.suppress(Exception):  # of a cluster that is gone
            names = {node["NodeManagerAddress"]: node["NodeManagerHostname"] for node in self._ray.nodes()}
            return str(names.get(address, address))
        return address

    def cancel(self) -> None:
        """End all tasks; what they have done is lost."""
        for force in (False, True):
            for task in self._tasks:
                with contextlib.suppress(Exception):  # of a cluster that is gone
                    self._ray.cancel(task, force=force)
            until = time.monotonic() + CANCELLING
            with contextlib.suppress(Exception):
                while self._tasks and time.monotonic() < until:
                    done, _ = self._ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=0.5)
                    for task in done:
                        del self._tasks[task]
        self._tasks.clear()


def _by_value() -> tuple[Any, Any]:
    """Return the tasks of `gradless.system.ray_node`, which travel whole: a node may have no gradless to import."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_node)
    run = ray.remote(max_retries=0)(ray_node.run)
    return run, ray.remote(num_cpus=0, max_retries=0)(ray_node.probe)


def _reason(error: BaseException) -> str:
    """Return why Ray has lost a task."""
    names = {
        "OutOfMemoryError": "its node ran out of memory",
        "NodeDiedError": "its node is gone",
        "WorkerCrashedError": "its process or its node died",
        "ObjectLostError": "its node is gone",
        "OwnerDiedError": "its node is gone",
    }
    kind = type(error).__name__
    return names.get(kind) or terminal.sentence(str(error).strip().partition("\n")[0])[:160] or kind


def _check_versions(own: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    for name, version in own["versions"].items():
        there = node["versions"][name]
        if there != version:
            raise BadInput(
                f"{node['host']} has {f'{name} {there}' if there else f'no {name}'}, and this machine has "
                f"{f'{name} {version}' if version else f'no {name}'}: install the same on every node"
            )
    if node["gradless"] != own["gradless"]:
        raise BadInput(
            f"{node['host']} has other sources of gradless {node['versions']['gradless']} than this machine: install "
            "the same on every node"
        )


def _shortage(need: Need, lacking: Sequence[str], resources: Sequence[Mapping[str, float]]) -> str:
    """Return a sentence about a run that fits on no node."""

    def most(name: str) -> float:
        return max((there.get(name, 0.0) for there in resources), default=0.0)

    if "GPU" in lacking:
        return 'it runs on a GPU, and no node has one: add a node, or set device = "cpu"'
    if "CPU" in lacking:
        return f"it takes {need.cpus} CPUs, and the largest node has {most('CPU'):.0f}: lower --threads"
    if "memory" in lacking:
        return (
            f"it needs {need.memory / 1e9:.1f} GB of memory, and the largest node has {most('memory') / 1e9:.1f} GB: "
            "add a larger node, or lower batch_size or max_length"
        )
    return f"no node has {need.cpus} CPUs, {need.gpus} GPUs and {need.memory / 1e9:.1f} GB of memory: add a larger one"
