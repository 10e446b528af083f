"""What is sent to a node of a cluster, under which names, and what comes back; no cluster is needed."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from gradless.errors import BadInput
from gradless.runs import shipped_config
from gradless.system import ray_address, ray_cluster, ray_node
from gradless.system.ray_cluster import Need
from gradless.system.ray_node import ROOT
from gradless.system.shipped import Shipment, refuse_missing


@pytest.fixture
def folder(tmp_path):
    for name in ("rows.csv", "parts/train-1.csv", "parts/train-2.csv", "parts/other.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def sent(shipment):
    return sorted(name for source in shipment.sources.values() for name, _ in source.read()[0])


def test_a_file_a_folder_a_pattern_and_a_split_are_sent_once(folder):
    shipment = Shipment()
    there = [shipment.add(str(folder / name)) for name in ("rows.csv", "parts", "parts:train", "parts/train-*.csv")]
    assert there == [
        f"{ROOT}/files-0/files/rows.csv",
        f"{ROOT}/files-1/parts",
        f"{ROOT}/files-1/parts:train",
        f"{ROOT}/files-2/parts/train-*.csv",
    ]
    assert shipment.add(str(folder / "rows.csv")) == there[0]
    assert sent(shipment) == [
        "files-0/files/rows.csv",
        *(f"files-1/parts/{name}" for name in ("other.csv", "train-1.csv", "train-2.csv")),
        *(f"files-2/parts/{name}" for name in ("train-1.csv", "train-2.csv")),
    ]
    assert shipment.used(there[3]) == [*shipment.sources][2:]


@pytest.mark.parametrize("text", ["tiny-llama", "google/gemma-3-270m", "hub:a/b:train", "nothing/here-*.csv"])
def test_names_that_are_no_files_stay(text):
    shipment = Shipment()
    assert shipment.add(text) == text
    assert not shipment.sources


def test_paths_of_the_node_come_back_as_those_of_this_machine(folder):
    shipment = Shipment()
    folders = [folder / f'quote"{i}' for i in range(12)]  # of two digits, too, and a letter that JSON writes otherwise
    for one in folders:
        one.mkdir()
        (one / "a.csv").write_text("x")
    there = [f"{shipment.add(str(one))}/a.csv".replace(ROOT, "/node") for one in folders]
    for how in ({}, {"ensure_ascii": False}):
        written = shipment.returned("config.json", json.dumps(there, **how).encode(), "/node")
        assert json.loads(written) == [str(one / "a.csv") for one in folders]
    assert shipment.returned("best.safetensors", there[0].encode(), "/node") == there[0].encode()


def test_what_is_too_large_has_to_lie_on_every_node(folder):
    shipment, rows = Shipment(largest=3), str(folder / "rows.csv")
    assert shipment.add(rows) == rows
    assert shipment.in_place == {rows: len("rows.csv")}
    refuse_missing([("a", {rows: 8})], shipment.in_place)
    with pytest.raises(BadInput, match=r"rows.csv has .* b has not the same there: copy it to that path on every node"):
        refuse_missing([("a", {rows: 8}), ("b", {rows: 7})], shipment.in_place)


def test_settings_name_files_as_a_node_has_them(folder):
    plugin, graph, reward = folder / "own.py", folder / "graph.txt", folder / "score.py"
    for path in (plugin, graph, reward):
        path.write_text("")
    values = {
        **{"model": "tiny-llama", "task": "sst2", "data": str(folder / "parts"), "device": "cuda:1"},
        **{"own": {"train": str(folder / "rows.csv"), "template": str(folder), "labels": "0=a,1=b"}},
        **{"plugins": {str(plugin): "ab", "package.module": "cd"}, "topology": str(graph)},
        "reward": [f"{reward}:score", f"json_schema:{folder / 'rows.csv'}", "format:<a>", "package.rewards:one"],
    }
    there = shipped_config.shipped(values, Shipment())
    assert there["own"] == {**values["own"], "train": f"{ROOT}/files-2/files/rows.csv"}
    assert (there["model"], there["device"]) == ("tiny-llama", "cuda")
    assert [key.rpartition("/")[2] for key in there["plugins"]] == ["own.py", "package.module"]
    for text in (there["data"], there["topology"], there["reward"][0], there["reward"][1].partition(":")[2]):
        assert text.startswith(ROOT)
    assert there["reward"][2:] == values["reward"][2:]
    assert shipped_config.modules(values) == ["package.module", "package.rewards"]


def test_an_adapter_of_another_folder_is_refused(folder):
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder / "parts")}))
    with pytest.raises(BadInput, match="save the merged model"):
        shipped_config.shipped({"model": str(adapter)}, Shipment())


# ---------------------------------------------------------------------------------------------------------------
# a task, without Ray


def task(script, **more):
    usual = {"module": "own", "arguments": [ROOT], "environment": {"WORD": "so", "PYTHONPATH": "."}, "sources": []}
    texts = {"own.py": script, "text": f"in {ROOT}/x"}
    return {**usual, "texts": texts, "folder": "run", "kept": {"old": b"1"}, **more}


WRITES = """
import os, pathlib, sys
root = pathlib.Path(sys.argv[1])
assert (root / "text").read_text() == f"in {root}/x"
(root / "run" / "old").unlink()
(root / "run" / "deep").mkdir()
(root / "run" / "deep" / "new").write_text(os.environ["WORD"])
print("last words", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def importable(monkeypatch):
    """Lets ``-m own`` be found in the folder of the task."""
    monkeypatch.setattr(ray_node, "SCRIPT", ray_node.SCRIPT.replace("runpy.run", "sys.path.insert(0, root); runpy.run"))


def test_a_task_returns_the_files_of_its_folder_and_how_it_ended(importable, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = ray_node.run(task(WRITES))
    assert outcome["files"] == {"deep/new": b"so"}
    assert (outcome["code"], outcome["stderr"].strip()) == (3, "last words")
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_damaged_on_its_way_is_refused(importable):
    with pytest.raises(OSError, match="rows has not arrived as it was sent"):
        ray_node.run(task(WRITES, sources=[[("rows", "0" * 64)]]), [b"other"])


def test_a_process_ends_with_the_task_that_started_it(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "own.py").write_text("import time; print('begun', flush=True); time.sleep(600)")
    script = ray_node.SCRIPT.replace("runpy.run", "sys.path.insert(0, root); runpy.run")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(root), "own"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begun\n"
    process.stdin.close()  # as the system does when the task is killed
    assert process.wait(timeout=30) == 1
    process.stdout.close()
    assert not root.exists()


# ---------------------------------------------------------------------------------------------------------------
# clusters that cannot be joined


def refused(address):
    with pytest.raises(BadInput) as error, ray_cluster.joined(address):
        pass
    return str(error.value)


@pytest.mark.parametrize("address", ["", "cluster", "10.0.0.1", "http://10.0.0.1:1", "a b:1", "ray:"])
def test_what_names_no_cluster_is_refused(address):
    assert "names no cluster: write ray (a cluster of this machine alone), auto" in refused(address)


def test_without_ray_a_sentence_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    assert refused("ray") == "'ray' is not installed: pip install 'gradless[ray]'"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_known_at_once(monkeypatch, scheme):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        assert (
            refused(address) == f"there is no Ray cluster at {address} (Connection refused): start it, or correct --on"
        )
    assert "there is no Ray cluster at 127.0.0.1:99999 (" in refused("127.0.0.1:99999")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_another_service_is_no_cluster(monkeypatch, answer):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ray_address, "CONNECTING", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert refused(address).startswith(f"there is no Ray cluster at {address} (another service listens there)")
        thread.join()


def test_the_answer_of_a_cluster_may_come_in_parts(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for part in (b"\0\0", b"\0\4\0", b"\0\0\0\0"):
                    connection.sendall(part)
                    time.sleep(0.1)
                connection.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        ray_address.check_there(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


# ---------------------------------------------------------------------------------------------------------------
# nodes that cannot make a run


def test_versions_and_sources_of_nodes_must_be_ours():
    own = ray_node.probe()
    ray_cluster._check_versions(own, own)
    for name in ("Python", "torch", "gradless"):
        other = {**own, "host": "b", "versions": {**own["versions"], name: "9.9"}}
        with pytest.raises(BadInput, match=rf"b has {name} 9.9, and this machine has {name} .*: install the same"):
            ray_cluster._check_versions(own, other)
    with pytest.raises(BadInput, match="b has no torch"):
        ray_cluster._check_versions(own, {**own, "host": "b", "versions": {**own["versions"], "torch": ""}})
    with pytest.raises(BadInput, match="b has other sources of gradless"):
        ray_cluster._check_versions(own, {**own, "host": "b", "gradless": "0"})


@pytest.mark.parametrize(
    ("need", "sentence"),
    [
        (Need(3), "cell a: it takes 3 CPUs, and the largest node has 2: lower --threads"),
        (Need(1, gpus=1), "cell a: it runs on a GPU, and no node has one"),
        (Need(1, memory=5 * 10**9), "cell a: it needs 5.0 GB of memory, and the largest node has 4.0 GB"),
        (Need(2, memory=3 * 10**9), "cell a: no node has 2 CPUs, 0 GPUs and 3.0 GB of memory"),
    ],
)
def test_a_run_that_fits_on_no_node_is_refused(need, sentence):
    cluster = object.__new__(ray_cluster.Cluster)
    nodes = [{"Resources": {"CPU": 2.0, "memory": 1e9}}, {"Resources": {"CPU": 1.0, "memory": 4e9}}]
    cluster._check_needs([("cell b", Need(1, memory=10**9))], nodes)
    with pytest.raises(BadInput) as error:
        cluster._check_needs([("cell a", need)], nodes)
    assert str(error.value).startswith(sentence)
