"""A peer whose weights went apart is told so, whoever of the group speaks first and whatever a liar states."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradless.errors import BadInput
from gradless.peers import node, statements
from gradless.peers.inbox import Inbox
from gradless.peers.monitor import Monitor
from gradless.peers.node import Node
from gradless.peers.node_files import METRICS, RESULT, Metrics
from gradless.peers.part import ring_of
from gradless.peers.statements import Statement
from peers_helpers import identities, manifest_of

RIGHT, WRONG = "a" * 64, "b" * 64
STEPS = 20


class Group:
    """A link of peer 0 whose other peers state what a test lets them state."""

    def __init__(self, folder: Path) -> None:
        who = identities(folder)
        self.manifest = manifest_of(who, steps=STEPS)
        self.rings = [ring_of(self.manifest, one) for one in who]
        self.inbox, self.strangers = Inbox(4, limit=100), dict[str, str]()
        self.sent, self.waiting = 0, list[tuple[int, bytes]]()

    def say(self, peer: int, step: int, sha256: str) -> None:
        statement = Statement(peer, step, bytes.fromhex(sha256))
        self.waiting.append((peer, statements.pack(self.manifest.run, statement, self.rings[peer])))

    def state(self, payload: bytes) -> None:
        pass

    def stated(self) -> list[tuple[int, bytes]]:
        received, self.waiting = self.waiting, []
        return received

    def alive(self) -> frozenset[int]:
        return frozenset(range(4))


class Part:
    """Weights that go apart at some step, and are right when they are taken anew."""

    started = 0

    def __init__(self, apart_from: int, *, broken: bool = False) -> None:
        self.taken, self.apart_from, self.broken = 0, apart_from, broken
        self.rebuilt: list[tuple[int, int]] = []

    def weights_sha256(self) -> str:
        return WRONG if self.taken >= self.apart_from else RIGHT

    def step(self, step: int) -> tuple[int, float | None]:
        self.taken = step + 1
        return self.taken, 1.0

    def rebuild(self, one: Any, step: int, stop: int) -> str:
        self.rebuilt.append((step, stop))
        self.apart_from = self.apart_from if self.broken else STEPS + 1
        return WRONG if self.broken else RIGHT

    def facts(self, step: int) -> dict[str, Any]:
        return {"heard": [], "left_out": [], "late": [], "failed": [], "leader": None}

    def banned(self) -> dict[int, int]:
        return {}

    faults = banned

    def muted(self) -> frozenset[int]:
        return frozenset()

    def new_bans(self) -> list[dict[str, Any]]:
        return []

    def scores(self) -> list[None]:
        return [None] * 4

    def accuracy(self, rows: int | None) -> None:
        return None

    def digest(self) -> str:
        return ""

    def put_ledger_aside(self) -> None:
        pass


@pytest.fixture
def started(tmp_path, monkeypatch) -> Iterator[Any]:
    """A peer of four before its first step, its link to the others, and its part."""
    monkeypatch.setattr(node, "LINGER", 0.0)
    monkeypatch.setattr(node, "AWAITED", 0.0)
    with contextlib.ExitStack() as stack:

        def start(apart_from: int, *, check_every: int = 5, broken: bool = False) -> tuple[Node, Group, Part]:
            group, part = Group(tmp_path / "who"), Part(apart_from, broken=broken)
            contents = SimpleNamespace(check_every=check_every)
            manifest: Any = group.manifest
            peer = Node.__new__(Node)
            peer.settings = SimpleNamespace(out=tmp_path, pace=0.0, serve=0.0)  # type: ignore[assignment]
            learner = SimpleNamespace(texts=None)
            peer.one = SimpleNamespace(learner=learner, close=lambda: None)  # type: ignore[assignment]
            peer._built = lambda: peer.one  # type: ignore[method-assign]
            peer.manifest = SimpleNamespace(  # type: ignore[assignment]
                agreed=True, f=1, names=manifest.names, config=manifest.config, contents=contents
            )
            show = contextlib.nullcontext(lambda step, words: None)
            warned: list[str] = []
            peer.reporter = SimpleNamespace(warn=warned.append, say=warned.append, job=lambda *a, **k: show)  # type: ignore[assignment]
            peer.part, peer.link = part, group  # type: ignore[assignment]
            peer.me, peer.step, peer.steps, peer.begun = 0, 0, STEPS, 0.0
            peer.agree_seconds, peer.zero_shot = [], {}
            peer.metrics = Metrics(tmp_path / METRICS)
            stack.callback(peer.metrics.close)
            peer.monitor = Monitor(manifest, 0, tmp_path, group, group.rings[0], warned.append)  # type: ignore[arg-type]
            stack.callback(peer.monitor.close)
            return peer, group, part

        yield start


def test_who_speaks_first_is_told_later(started):
    peer, group, part = started(3)
    take = part.step

    def step(number: int) -> tuple[int, float | None]:
        if number == 7:  # peer 0 has stated step 5 long ago
            group.say(1, 5, RIGHT)
            group.say(2, 5, RIGHT)
        return take(number)

    part.step = step
    peer._train()
    assert part.rebuilt == [(5, 8)]  # it goes on where it is
    assert peer.part.weights_sha256() == RIGHT


def test_who_speaks_first_at_the_last_step_does_not_end_with_other_weights(started, monkeypatch):
    peer, group, part = started(STEPS)
    monkeypatch.setattr(node, "AWAITED", 10.0)

    def sleep(seconds: float) -> None:
        if peer.monitor.has_stated(STEPS):
            group.say(1, STEPS, RIGHT)
            group.say(2, STEPS, RIGHT)

    monkeypatch.setattr(node, "time", SimpleNamespace(sleep=sleep, monotonic=node.time.monotonic))
    peer._train()
    assert part.rebuilt == [(STEPS, STEPS)]


def test_the_result_is_written_anew_if_the_others_speak_later_still(started):
    peer, group, part = started(STEPS)
    peer._train()
    peer._write_result("done")
    assert json.loads((peer.settings.out / RESULT).read_text())["weights_sha256"] == WRONG
    for other in (1, 2, 3):
        group.say(other, STEPS, RIGHT)
    peer._serve()
    assert part.rebuilt == [(STEPS, STEPS)]
    assert (
        json.loads((peer.settings.out / RESULT).read_text())["weights_sha256"] == peer.result["weights_sha256"] == RIGHT
    )


def test_weights_that_stay_different_leave_no_result(started):
    peer, group, _ = started(STEPS, broken=True)
    peer._train()
    peer._write_result("done")
    for other in (1, 2):
        group.say(other, STEPS, RIGHT)
    with pytest.raises(BadInput, match=f"the weights at step {STEPS} differ from those of f [+] 1 others even when"):
        peer._serve()
    assert not (peer.settings.out / RESULT).exists()


def test_a_liar_who_states_steps_to_come_hides_nothing(started):
    peer, group, part = started(3)
    for step in range(2**32 - 40, 2**32):
        group.say(3, step, WRONG)
    take = part.step

    def step(number: int) -> tuple[int, float | None]:
        if number == 3:
            group.say(1, 5, RIGHT)
            group.say(2, 5, RIGHT)
            for later in range(2**32 - 80, 2**32 - 40):
                group.say(3, later, WRONG)
        return take(number)

    part.step = step
    peer._train()
    assert part.rebuilt == [(5, 5)]
    assert group.manifest.f == 1


def test_one_liar_has_nobody_rebuild(started):
    peer, group, part = started(STEPS + 1)
    for step in (5, 10, 15, 20):
        group.say(3, step, WRONG)
        group.say(1, step, RIGHT)
    peer._train()
    assert not part.rebuilt
    assert peer.monitor.is_shared(STEPS) is False  # one other peer is not f + 1
