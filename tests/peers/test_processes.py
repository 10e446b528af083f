"""Groups of real processes over mutual TLS. Each starts several Pythons with torch, so they are in the sweep."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gradless.collab.algorithms import COEFFICIENTS
from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.loop import take_steps
from gradless.collab.learners.side_by_side import SideBySide
from gradless.collab.network.simulated import ReplayedNetwork
from gradless.peers import audit, demo, keys, own_data
from gradless.peers.agreed_part import AgreedPart
from gradless.peers.history import Group
from gradless.peers.link import LocalGroup
from gradless.peers.loopback import LoopbackGroup
from gradless.peers.manifest import Manifest
from gradless.peers.mixing import AgreedRule
from gradless.peers.node_files import EVIDENCE, METRICS, VOTES, read_evidence
from gradless.peers.run_folder import RunFolder
from gradless.peers.schema import parse_evidence
from gradless.system import children
from gradless.system.hashing import weights_sha256
from gradless.system.side_files import read_jsonl

pytest.importorskip("zenoh")
pytestmark = pytest.mark.sweep
SECONDS = 600.0  # a loaded machine, whose processes may have to compile the kernels first
NAMES = [f"peer-{peer}" for peer in range(4)]
EVERYBODY = range(4)


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes of a group have: the last bits of a loss depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def groups(tmp_path):
    """Groups of four, whose processes are ended whatever happens."""
    opened: list[LoopbackGroup] = []

    def make(steps: int, **settings: Any) -> LoopbackGroup:
        folder = tmp_path / f"group-{len(opened)}"
        opened.append(demo.group_of(folder, NAMES, 1, steps, "tiny-llama", 0, **settings))
        return opened[-1]

    yield make
    for group in opened:
        group.end()


def ended(group: LoopbackGroup, peers=EVERYBODY) -> list[dict]:
    assert group.wait(lambda: all(group.result(peer) for peer in peers), SECONDS, running=peers), [
        (group.step(peer), group.output(peer)[-300:]) for peer in peers
    ]
    return [group.result(peer) for peer in peers]


def compile_kernels(group: LoopbackGroup) -> None:
    """Take a step of the group's model here, so that its processes do not all compile the same kernels at once."""
    own = own_data.merged(group.manifest.config.own, {"train": group.own[0][1], "test": group.own[0][3]})
    learner = one_peer(group.manifest.config, 0, own=own).learner
    network = ReplayedNetwork({(0, COEFFICIENTS): [[0]]})
    take_steps(SideBySide([learner]), network, AgreedRule("mean", peers=1, byzantine=0), 1)
    learner.members[0].optimizer.flush()


def passed(group: LoopbackGroup, peer: int, step: int) -> bool:
    return group.wait(lambda: group.step(peer) >= step, SECONDS)


def at_rest(group: LoopbackGroup, *peers: int) -> int:
    """Return the step at which all of these stay for four seconds; one that was stopped catches up first."""
    deadline = time.monotonic() + SECONDS
    steps, since = [group.step(peer) for peer in peers], time.monotonic()
    while time.monotonic() - since < 4.0 or len(set(steps)) > 1:
        assert time.monotonic() < deadline, steps
        time.sleep(0.1)
        if (now := [group.step(peer) for peer in peers]) != steps:
            steps, since = now, time.monotonic()
    return steps[0]


def in_process(group: LoopbackGroup, folder: Path) -> list[str]:
    """The weights of the same run through the link of one process."""
    manifest, links = group.manifest, LocalGroup(4)
    hashes = [""] * 4

    def peer(me: int) -> None:
        own = own_data.merged(manifest.config.own, {"train": group.own[me][1], "test": group.own[me][3]})
        one = one_peer(manifest.config, me, own=own, folder=folder / NAMES[me])
        identity = keys.load(group.folder / NAMES[me] / "me")
        part = AgreedPart(manifest, identity._replace(folder=folder / NAMES[me]), folder / NAMES[me])
        step = part.begin(one, links.link(me), liar=None, say=print)
        while step < manifest.config.steps:
            step, _ = part.step(step)
        hashes[me] = part.weights_sha256()
        barrier.wait(SECONDS)
        part.close()
        one.close()

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=peer, args=(me,)) for me in EVERYBODY]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return hashes


def simulated(group: LoopbackGroup, ears: dict) -> set[str]:
    """The weights of all four peers of one process, who hear what the group has heard."""
    config, learners = group.manifest.config, []
    for me in EVERYBODY:
        own = own_data.merged(config.own, {"train": group.own[me][1], "test": group.own[me][3]})
        learners.append(one_peer(config, me, own=own).learner)
    rule = AgreedRule(config.rule, peers=4, byzantine=group.manifest.f)
    take_steps(SideBySide(learners), ReplayedNetwork(ears), rule, config.steps)
    optimizers = [learner.members[0].optimizer for learner in learners]
    for optimizer in optimizers:
        optimizer.flush()
    return {weights_sha256((leaf.name, leaf.param) for leaf in optimizer.leaves) for optimizer in optimizers}


def test_the_network_gives_the_weights_of_the_link_in_one_process(groups, tmp_path):
    group = groups(200)
    for peer in EVERYBODY:
        group.start(peer)
    results = ended(group)
    assert {result["status"] for result in results} == {"done"}
    hashes = {result["weights_sha256"] for result in results}
    assert len(hashes) == 1
    assert len({result["digest"] for result in results}) == 1
    lines = read_jsonl(group.run_folder(0) / METRICS)[0]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(200))
    # A loaded machine may leave a row out. What was heard, fed to the simulated transport, gives the same weights.
    assert simulated(group, {(line["step"], COEFFICIENTS): [line["heard"]] * 4 for line in steps}) == hashes
    if all(line["heard"] == [0, 1, 2, 3] for line in steps):
        assert set(in_process(group, tmp_path / "local")) == hashes


def test_kills_stops_a_full_disk_and_a_lost_vote_log(groups, monkeypatch):
    """One run through all of it: nobody is convicted, and all end with equal weights."""
    group = groups(320)
    for peer in EVERYBODY:
        group.start(peer, "--pace", "0.05")
    assert passed(group, 0, 5)

    group.kill(3)  # -9
    killed = group.step(0)
    assert passed(group, 0, killed + 10)
    group.start(3, "--pace", "0.05")

    group.signal(2, signal.SIGSTOP)
    stopped = group.step(0)
    if group.step(3) < stopped:  # three are needed, and peer 3 may still be on its way
        assert passed(group, 3, stopped)
    assert passed(group, 0, stopped + 10)
    group.signal(2, signal.SIGCONT)
    assert passed(group, 2, stopped + 10)

    for peer in (0, 1):
        group.signal(peer, signal.SIGSTOP)
    still = at_rest(group, 2, 3)  # two of four decide nothing
    for peer in (0, 1):
        group.signal(peer, signal.SIGCONT)
    assert passed(group, 2, still + 5)

    group.kill(2)
    size = (group.run_folder(2) / VOTES).stat().st_size // 1024 + 1  # no file may become larger
    with monkeypatch.context() as patch:
        patch.setattr(children, "PYTHON", ("bash", "-c", f'ulimit -f {size}; exec "$@"', "sh", *children.PYTHON))
        full = group.start(2, "--pace", "0.05")
    assert full.wait(SECONDS) in (1, 2)
    assert "free space" in group.output(2).splitlines()[-1]
    group.start(2, "--pace", "0.05")

    group.kill(1)
    (group.run_folder(1) / VOTES).unlink()
    group.start(1, "--pace", "0.05")
    results = ended(group)
    assert "is missing, and peer-1 has taken part in this run" in group.output(1)
    assert len({result["weights_sha256"] for result in results}) == 1
    assert [result["banned"] for result in results] == [{}] * 4
    assert not any((group.run_folder(peer) / EVIDENCE).exists() for peer in EVERYBODY)


def test_memory_a_kill_a_join_and_a_run_that_continues(groups, tmp_path):
    """A rule with memory ends alike at a peer that was killed and at one that joins; another run goes on from there."""
    group = groups(90, memory=30)
    compile_kernels(group)
    for peer in range(3):
        group.start(peer, "--pace", "0.05")
    assert passed(group, 0, 35)  # from step 30 on the log says whose rows count
    group.kill(2)
    group.start(2, "--pace", "0.05")
    group.start(3, command="join")
    results = ended(group)
    assert group.manifest.config.memory == 30
    assert "fetched steps 0 to" in group.output(3)
    assert len({result["weights_sha256"] for result in results}) == 1
    finding = audit.check_coefficients(RunFolder(group.run_folder(3)))
    assert finding.holds, finding.text

    following = LoopbackGroup(
        tmp_path / "next", NAMES, f=1, settings={"steps": 6}, own=group.own, parent=group.run_folder(0)
    )
    parent = following.manifest.contents.parent
    assert (parent.weights_sha256, parent.steps) == (results[0]["weights_sha256"], 90)
    assert (following.manifest.config.memory, following.manifest.config.steps) == (30, 6)
    try:
        for peer in EVERYBODY:
            following.start(peer)
        ends = ended(following)
        assert len({result["weights_sha256"] for result in ends}) == 1
        assert ends[0]["weights_sha256"] != parent.weights_sha256
    finally:
        following.end()


def test_nobody_joins_what_has_not_begun(groups):
    group = groups(5)
    process = group.start(0, command="join")
    assert process.wait(SECONDS) == 2
    assert "nobody has decided a step yet" in group.output(0).splitlines()[-1]


def convicts(manifest: Manifest, path: Path) -> str:
    """The peer that a file convicts, as somebody finds who has the manifest and nothing else."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from gradless.peers.schema import DOMAIN

    pair = read_evidence(path)
    group = Group(manifest.run, len(manifest.peers), manifest.f, manifest.config.queries)
    (head, first, one), (other, second, two) = (
        parse_evidence(part, group.run, group.peers, group.width) for part in pair
    )
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(manifest.peers[head.sender].key))
    for body, signature in ((first, one), (second, two)):
        key.verify(signature, DOMAIN + body)  # raises InvalidSignature
    assert head == other
    assert first != second
    return manifest.names[head.sender]


@pytest.mark.parametrize("liar", ["equivocate", pytest.param("propose", marks=pytest.mark.long)])
def test_a_liar_is_banned_by_all_and_the_evidence_convinces_a_third_party(groups, liar):
    group = groups(40)
    for peer in range(3):
        group.start(peer)
    group.start(3, "--liar", liar)
    results = ended(group, range(3))
    assert len({result["weights_sha256"] for result in results}) == 1
    (bans,) = {tuple(result["banned"].items()) for result in results}
    ((name, step),) = bans
    assert name == "peer-3"
    assert step < 40
    for peer in range(3):
        (file,) = (group.run_folder(peer) / EVIDENCE).iterdir()
        assert convicts(group.manifest, file) == "peer-3"
        (line,) = [one for one in read_jsonl(group.run_folder(peer) / METRICS)[0] if one["event"] == "banned"]
        assert (line["step"], line["peer"], line["evidence"]) == (step, 3, file.name)
    after = [
        one for one in read_jsonl(group.run_folder(0) / METRICS)[0] if one["event"] == "step" and one["step"] > step
    ]
    assert after
    assert all(3 not in line["heard"] for line in after)


@pytest.mark.long
def test_models_are_mixed_by_processes_one_of_which_is_killed(tmp_path):
    settings = {"steps": 60, "eval_every": 60}
    group = LoopbackGroup(tmp_path / "g", NAMES, f=1, settings=settings, mode="parameters", recipe="monna-digits")
    try:
        for peer in EVERYBODY:
            group.start(peer)
        assert passed(group, 0, 10)
        group.kill(3)
        group.start(3)
        results = ended(group)
        assert min(result["accuracy"] for result in results) > 0.8
        assert "going on there with the trimmed mean of n - f models" in group.output(3)
    finally:
        group.end()


@pytest.mark.long
def test_ten_processes(tmp_path, record_property):
    """On two cores: each process computes for a fifth of the time."""
    names = [f"peer-{peer}" for peer in range(10)]
    group = demo.group_of(tmp_path / "ten", names, 3, 60, "tiny-llama", 0)
    compile_kernels(group)
    try:
        for peer in range(10):
            group.start(peer)
        assert group.wait(lambda: all(group.result(peer) for peer in range(10)), 3600.0, running=range(10)), [
            group.step(peer) for peer in range(10)
        ]
        results = [group.result(peer) for peer in range(10)]
        for name in ("seconds", "seconds_per_step", "agree_seconds", "bytes_per_step"):
            record_property(name, results[0][name])
        assert len({result["weights_sha256"] for result in results}) == 1
        assert [result["banned"] for result in results] == [{}] * 10
    finally:
        group.end()
