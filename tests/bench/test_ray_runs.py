"""Runs on a Ray cluster of two nodes, which are processes here: their rows are those of local runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gradless.bench import ray_runs
from gradless.bench.runner import bench
from gradless.collab.config import CollabConfig
from gradless.collab.simulation import study
from gradless.cost import workload
from gradless.errors import BadInput
from gradless.system import ray_cluster
from gradless.system.progress import Reporter

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("ignore")]

GRID = """
search_seeds = [0]
seeds = [1]
budget = { forwards = 24, search = 12 }
[base]
model = "tiny-llama"
own = { train = "train.csv", test = "test.csv", template = "{text} so", label_column = "label", labels = "0=no,1=yes" }
batch_size = 4
num_dev = 8
[axes]
scheme = ["full"]
method = ["mezo"]
[grid]
lr = [1e-4, 1e-3]
"""
RUNS = 2 + 1 + 1  # search, final, zero-shot
CLOCK = {"peak_memory_bytes", "inference_memory_bytes", "train_seconds", "seconds_per_step", "wall_seconds", "overhead"}
SAME = ("config.json", "ledger", "best.safetensors", "predictions.jsonl")


class Group:
    """A cluster, the folder in which its tasks have theirs, and its second node."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 10**8}
        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        self.small, self.second = small, self.cluster.add_node(**small)

    @property
    def address(self) -> str:
        return self.cluster.address

    def tasks(self) -> set[Path]:
        return {*self.folder.glob("gradless-*")}


@pytest.fixture(scope="module")
def group():
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # sockets of Ray have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, value in ray_cluster.QUIET.items():
            patch.setenv(name, value)
        group = Group(folder)
        yield group
        ray.shutdown()
        group.cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def grid(tmp_path):
    words = [("0", "awful"), ("1", "lovely"), ("0", "dull"), ("1", "great")]
    for name, count in (("train", 32), ("test", 16)):
        rows = [f"film {i} is {words[i % 4][1]},{words[i % 4][0]}" for i in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


class Lines(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def rows(out: Path) -> list[dict[str, Any]]:
    """results.jsonl without what the clock and the memory of a machine say."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line["curve"] = [{name: value for name, value in point.items() if name != "seconds"} for point in line["curve"]]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def results(out: Path, name: str) -> list[Any]:
    return [json.loads(path.read_text()).get(name) for path in sorted(out.glob("runs/*/result.json"))]


def test_rows_of_a_cluster_that_loses_a_node_are_those_of_a_local_benchmark(group, grid, tmp_path):
    bench(grid, tmp_path / "here", threads=1, reporter=Lines())

    def remove_when_both_work():
        until = time.monotonic() + 300
        while len(group.tasks()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(2)  # their processes have begun
        group.cluster.remove_node(group.second, allow_graceful=False)

    remover, reporter = threading.Thread(target=remove_when_both_work), Lines()
    remover.start()
    outcome = bench(grid, tmp_path / "there", threads=1, on=group.address, reporter=reporter)
    remover.join()
    group.second = group.cluster.add_node(**group.small)
    assert outcome.done == outcome.total == RUNS
    assert reporter.lines[0] == "Ray cluster: 2 nodes, 2 CPUs"
    (lost,) = [line for line in reporter.lines if "lost" in line]
    assert lost.startswith("1 run was lost: its ")
    assert lost.endswith("(1 in all so far); what is lost starts again")
    assert rows(tmp_path / "there") == rows(tmp_path / "here")
    hashes = results(tmp_path / "there", "weights_sha256")
    assert hashes == results(tmp_path / "here", "weights_sha256")
    assert sum(one is not None for one in hashes) == RUNS - 1
    for path in (tmp_path / "here").glob("runs/*/*"):
        there = tmp_path / "there" / path.relative_to(tmp_path / "here")
        assert there.exists()
        if path.name in SAME:
            assert there.read_bytes() == path.read_bytes()
    text = "".join(path.read_text() for path in (tmp_path / "there").rglob("*.json"))
    assert str(group.folder) not in text

    again = Lines()
    assert bench(grid, tmp_path / "there", threads=1, reporter=again).done == RUNS
    assert len(again.lines) == 1  # nothing is made again
    known = [tmp_path / "there" / "results.jsonl"]
    assert bench(grid, tmp_path / "reused", threads=1, on=group.address, known=known, reporter=Lines()).done == RUNS


def test_a_run_begun_here_goes_on_there(group, grid, tmp_path):
    bench(grid, tmp_path / "here", threads=1, reporter=Lines())
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    run = next(one["id"] for one in rows(tmp_path / "here") if one["phase"] == "final")
    folder, whole = tmp_path / "there" / "runs" / run, tmp_path / "here" / "runs" / run
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    metrics = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(metrics.replace('"event"', '"old": 1, "event"'))
    bench(grid, tmp_path / "there", threads=1, on=group.address, reporter=Lines())
    assert json.loads((folder / "result.json").read_text())["weights_sha256"] == result["weights_sha256"]
    assert (folder / "ledger").read_bytes() == (whole / "ledger").read_bytes()
    assert '"old": 1' in (folder / "metrics.jsonl").read_text()  # its steps were replayed, and not made again


def test_ctrl_c_cancels_tasks_and_the_same_command_continues(group, grid, tmp_path):
    out, old = tmp_path / "out", group.tasks()
    command = [sys.executable, "-m", "gradless", "bench", grid, "--out", out, "--threads", "1", "--on", group.address]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    while not lines or not lines[-1].startswith("1/"):
        lines.append(process.stdout.readline())
        assert lines[-1]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].endswith(f"runs are finished in {out}; the same command continues")
    until = time.monotonic() + 30
    while group.tasks() - old and time.monotonic() < until:
        time.sleep(0.1)
    assert not group.tasks() - old
    finished = len((out / "results.jsonl").read_text().splitlines())
    reporter = Lines()
    assert bench(grid, out, threads=1, on=group.address, reporter=reporter).done == RUNS
    assert sum(f"/{RUNS}  " in line for line in reporter.lines) == RUNS - finished


def test_comparisons_of_groups_run_on_a_cluster(group, tmp_path):
    configs = [CollabConfig(peers=4, byzantine=1, attack="sign-flip", steps=4, seed=seed) for seed in (0, 1)]
    configs.append(CollabConfig(peers=4, byzantine=1, steps=4, lr=1e30))  # which diverges
    with workload.threads(1):  # as many as nodes of one CPU have: rows say how many
        here = study.run_all(configs, tmp_path / "here", reporter=Lines())
    reporter = Lines()
    there = study.run_all(configs, tmp_path / "there", on=group.address, reporter=reporter)
    clock = {"train_seconds", "seconds_per_step", "peak_memory_bytes"}
    assert [{name: one[name] for name in one.keys() - clock} for one in there] == [
        {name: one[name] for name in one.keys() - clock} for one in here
    ]
    assert reporter.lines[0].startswith("Ray cluster: 2 nodes")
    assert {path.name for path in (tmp_path / "here").rglob("*")} == {
        path.name for path in (tmp_path / "there").rglob("*")
    }


# ---------------------------------------------------------------------------------------------------------------
# what is refused before anything starts


def refused(grid, tmp_path, **how):
    with pytest.raises(BadInput) as error:
        bench(grid, tmp_path / "out", reporter=Lines(), **how)
    assert not (tmp_path / "out").exists()
    assert not ray.is_initialized()
    return str(error.value)


def test_a_run_that_fits_on_no_node_is_refused(group, grid, tmp_path, monkeypatch):
    sentence = refused(grid, tmp_path, on=group.address, threads=64)
    assert sentence.endswith("it takes 64 CPUs, and the largest node has 1: lower --threads")
    monkeypatch.setattr(ray_runs, "RUNTIME", 10**15)
    sentence = refused(grid, tmp_path, on=group.address, threads=1)
    assert sentence.startswith("cell ")
    assert "it needs 1000000.0 GB of memory, and the largest node has " in sentence


def test_a_node_of_another_version_is_refused(group, grid, tmp_path, monkeypatch):
    real = ray_cluster.Cluster._probed

    def probed(self, nodes, arguments):
        answers = real(self, nodes, arguments)
        assert len(answers) == 2
        answers[1]["versions"]["torch"] = "1.0"
        return answers

    monkeypatch.setattr(ray_cluster.Cluster, "_probed", probed)
    sentence = refused(grid, tmp_path, on=group.address, threads=1)
    assert "has torch 1.0, and this machine has torch " in sentence


def test_no_running_cluster_here_is_one_sentence(grid, tmp_path, monkeypatch):
    def none(**_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", none)
    assert refused(grid, tmp_path, on="auto").startswith("no Ray cluster runs on this machine: start one ('ray start")


def test_a_local_benchmark_does_not_import_ray(grid, tmp_path):
    code = (
        "import sys; from pathlib import Path; from gradless.bench import bench; "
        f"bench(Path({str(grid)!r}), Path({str(tmp_path / 'out')!r}), dry_run=True); "
        "assert not [name for name in sys.modules if name == 'ray' or name.startswith('ray.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ}, stdout=subprocess.DEVNULL)
