"""What is done with tasks that a Ray cluster returns, loses or refuses; the cluster is a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
from types import SimpleNamespace

import pytest

from gradless.bench import ray_runs
from gradless.bench.grid import ZERO_SHOT, Request
from gradless.bench.ray_runs import RayNodes, RayRuns
from gradless.collab.config import CollabConfig
from gradless.collab.simulation import ray_runs as simulations
from gradless.errors import BadInput
from gradless.runs.config import TuneConfig
from gradless.system import ray_address, ray_cluster, ray_work
from gradless.system.ray_cluster import Cluster, Need, Outcome, Work
from gradless.system.shipped import Shipment

FULL_DISK = "No space left on device"
LOST = Outcome(lost=f"node7 could not make it ({FULL_DISK})", host="node7")


class Lines:
    """Keeps what is said."""

    def __init__(self):
        self.lines = []
        self.say = self.lines.append


class Answers:
    """A cluster that ends tasks as it was told, batch by batch."""

    def __init__(self, *batches):
        self.batches, self.works = [*batches], []

    def start(self, work, shipment):
        self.works.append(work)

    def ended(self, seconds):
        outcomes = self.batches.pop(0)
        works, self.works = self.works[: len(outcomes)], self.works[len(outcomes) :]
        return list(zip(works, outcomes, strict=True))

    def cancel(self):
        self.works = []


# ---------------------------------------------------------------------------------------------------------------
# runs of a benchmark


@pytest.fixture
def begun(tmp_path):
    """A run that was begun here, with files of its own."""
    request = Request("a", "final", {"method": "mezo"}, {}, 0, TuneConfig(model="tiny-llama"))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for name in ("ledger", "checkpoint", "config.json"):
        (folder / name).write_text("{}")
    return request, folder


def ended(begun, tmp_path, *outcomes, shipment=None):
    """How a run ends that is started anew after each loss."""
    request, _ = begun
    nodes = RayNodes(
        Answers(*([one] for one in outcomes)), shipment or Shipment(), {"a": Need(1)}, {"a": request.config.to_json()}
    )
    ends = []
    with RayRuns(nodes, tmp_path, 1) as runs:
        for _ in outcomes:
            runs.start(request, os.open(os.devnull, os.O_RDONLY))
            (end,) = runs.ended(0)
            os.close(end.lock)
            ends.append(end)
    return ends


PROCESS_FULL = Outcome(
    host="node7", root="/n", code=2, stderr=f"gradless: cannot write /n/bench ({FULL_DISK}): free space\n"
)


@pytest.mark.parametrize("outcome", [LOST, PROCESS_FULL])
def test_a_node_that_cannot_make_a_run_takes_no_file_of_it(begun, tmp_path, outcome):
    _, folder = begun
    ends = ended(begun, tmp_path, outcome, outcome)
    assert [end.stop for end in ends] == ["", ""]
    assert all("lost: node7" in end.note and FULL_DISK in end.note for end in ends)
    assert {path.name for path in folder.iterdir()} == {"ledger", "checkpoint", "config.json"}
    ended(begun, tmp_path, *3 * [outcome])
    assert {path.name for path in folder.iterdir()} == {"ledger", "checkpoint", "config.json", "failed.json"}
    reason = json.loads((folder / "failed.json").read_text())["reason"]
    assert reason.startswith("node7")
    assert reason.endswith(", 3 times")


def test_files_that_a_process_removed_are_removed(begun, tmp_path):
    _, folder = begun
    ended(begun, tmp_path, Outcome(host="node7", root="/n", code=1, files={"ledger": b"new"}))
    assert (folder / "ledger").read_text() == "new"
    assert not (folder / "checkpoint").exists()


def test_errors_name_paths_of_this_machine(begun, tmp_path):
    _, folder = begun
    rows, shipment = tmp_path / "rows.csv", Shipment()
    rows.write_text("x")
    there = shipment.add(str(rows)).replace(ray_cluster.ray_node.ROOT, "/n")
    stderr = f"gradless: {there} has no rows, see /n/bench/runs/a/ledger\n"
    ended(begun, tmp_path, Outcome(host="node7", root="/n", code=2, stderr=stderr), shipment=shipment)
    record = json.loads((folder / "failed.json").read_text())
    assert record["reason"] == f"{rows} has no rows, see {folder}/ledger"
    assert "/n/" not in record["stderr"]


# ---------------------------------------------------------------------------------------------------------------
# what runs need


def needs_of(configs, **how):
    requests = [Request(str(i), "search", {}, {}, 0, one) for i, one in enumerate(configs)]
    return [*ray_runs.needed(requests, 1, **how).values()]


def test_a_run_asks_for_a_gpu_where_there_is_one_and_then_for_little_memory(monkeypatch):
    monkeypatch.setattr(ray_runs, "_memory", lambda settings, tunes: 7)
    configs = [TuneConfig(model="tiny-llama", device=device) for device in ("cpu", "auto", "cuda:0")]
    gpu = Need(1, 1, ray_runs.ON_GPU)
    assert needs_of(configs, has_gpu=False) == [Need(1, 0, 7), Need(1, 0, 7), gpu]
    assert needs_of(configs, has_gpu=True) == [Need(1, 0, 7), gpu, gpu]


@pytest.mark.parametrize("largest", [0, 1])
def test_the_largest_run_of_a_cell_is_checked(monkeypatch, largest):
    """Whichever of the runs of a searched batch size comes last."""
    monkeypatch.setattr(ray_address, "check_form", lambda address: None)
    monkeypatch.setattr(ray_runs, "_memory", lambda settings, tunes: settings.batch_size * 10**9)
    cluster = object.__new__(Cluster)
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0, "memory": 8e9}}]
    cluster._ray = SimpleNamespace(nodes=lambda: nodes)
    monkeypatch.setattr(ray_cluster, "joined", lambda address: contextlib.nullcontext(cluster))
    sizes = [64, 4] if largest == 0 else [4, 64]
    configs = [TuneConfig(model="tiny-llama", batch_size=size) for size in sizes]
    requests = [Request(str(i), "search", {"method": "mezo"}, {}, 0, one) for i, one in enumerate(configs)]
    requests.append(requests[0]._replace(id="zero", phase=ZERO_SHOT, config=TuneConfig(model="tiny-llama")))
    with pytest.raises(BadInput, match=r"^cell mezo: it needs 64.0 GB"), ray_runs.joined("auto", requests, 1):
        pass


# ---------------------------------------------------------------------------------------------------------------
# simulations


def simulated(tmp_path, monkeypatch, outcomes):
    """Which of several simulations are yielded before an error, and the error."""
    monkeypatch.setattr(simulations, "finished_result", lambda folder: (folder / "result.json").exists() or None)
    configs = [CollabConfig(peers=4, steps=4, seed=seed) for seed in range(len(outcomes[0]))]
    jobs = [(config, tmp_path / str(config.seed)) for config in configs]
    run = simulations.Simulations(Answers(*outcomes), Shipment(), Need(1))
    ends, reporter = [], Lines()
    results = run.results(jobs, None, reporter)
    with pytest.raises(BadInput) as error:
        ends.extend(config.seed for config, _ in results)
    return ends, str(error.value), reporter.lines


GOOD = Outcome(host="node7", root="/n", files={"result.json": b"{}"})


def test_good_simulations_are_written_before_a_failed_one_is_told(tmp_path, monkeypatch):
    failed = Outcome(host="node7", root="/n", code=2, stderr="gradless: no /n/run/config.json\n")
    ends, error, _ = simulated(tmp_path, monkeypatch, [[failed, GOOD, GOOD]])
    assert ends == [1, 2]
    assert error == f"no {tmp_path / '0'}/config.json"
    assert (tmp_path / "2" / "result.json").exists()


def test_good_simulations_are_written_before_a_third_loss_is_told(tmp_path, monkeypatch):
    ends, error, lines = simulated(tmp_path, monkeypatch, [[LOST, LOST], [LOST, LOST], [LOST, GOOD]])
    assert ends == [1]
    assert error == f"{LOST.lost}, 3 times: mend its node or add one"
    assert len(lines) == 3


# ---------------------------------------------------------------------------------------------------------------
# errors of Ray


def cluster_with(**functions):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    cluster = object.__new__(Cluster)
    cluster._ray = SimpleNamespace(exceptions=ray.exceptions, **functions)
    cluster._tasks, cluster._contents = {}, {}
    return cluster


def fails(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(("cause", "reason"), [(OSError(28, FULL_DISK), FULL_DISK), (MemoryError(), "MemoryError")])
def test_a_task_that_raises_is_lost_and_its_node_named(cause, reason):
    nodes = [{"NodeManagerAddress": "10.0.0.7", "NodeManagerHostname": "node7"}]
    cluster = cluster_with(nodes=lambda: nodes)
    error = cluster._ray.exceptions.RayTaskError("run", "", cause, ip="10.0.0.7")
    cluster._ray.get = fails(error)
    outcome = cluster._outcome("task")
    assert outcome.host == "node7"
    assert outcome.lost.startswith("node7 could not make it (")
    assert reason in outcome.lost


def test_a_cluster_that_is_gone_at_a_start_is_one_sentence(tmp_path):
    (tmp_path / "rows").write_text("x")
    shipment = Shipment()
    work = Work("a", Need(1), "gradless", (shipment.add(str(tmp_path / "rows")),), {}, "run", {}, {})
    for error in (ConnectionError("client is closed"), cluster_with()._ray.exceptions.RaySystemError("gone")):
        cluster = cluster_with(put=fails(error))
        with pytest.raises(BadInput, match=r"^the Ray cluster is gone \(.*\): the same command then continues"):
            cluster.start(work, shipment)


def test_another_cluster_than_that_of_the_program_is_refused(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr(ray_cluster, "check_there", lambda address: None)
    monkeypatch.setattr(ray_cluster, "Cluster", lambda: "joined")
    for address in ("auto", "10.0.0.1:6379"):
        with ray_cluster.joined(address) as cluster:
            assert cluster == "joined"
    for address in ("ray", "10.0.0.2:6379", "ray://10.0.0.1:10001"):
        sentence = rf"has joined the Ray cluster 10\.0\.0\.1:6379 already, and cannot join {address}: "
        with pytest.raises(BadInput, match=sentence), ray_cluster.joined(address):
            pass


def test_a_cluster_of_this_machine_listens_on_it_alone_also_where_ray_was_imported_before(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray._private import ray_constants, services

    monkeypatch.delenv(ray_cluster.LOOPBACK, raising=False)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray_cluster, "Cluster", lambda: "joined")
    addresses = []
    monkeypatch.setattr(ray_cluster, "_init", lambda *_: addresses.append(services.get_node_ip_address()))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_cluster.joined("ray"):
        assert addresses == ["127.0.0.1"]
        assert ray_constants.ENABLE_RAY_CLUSTER
        assert ray_cluster.LOOPBACK not in os.environ


def test_lost_runs_have_no_files_to_write(tmp_path):
    work = Work("a", Need(1), "gradless", (), {}, "run", {"ledger": b""}, {})
    with pytest.raises(AssertionError):
        ray_work.write(tmp_path, work, LOST, Shipment())
