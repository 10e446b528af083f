"""What a peer watches while it trains: statements of others, floods, other manifests; it writes ``status.json``."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gradless.peers import statements
from gradless.peers import status as statuses
from gradless.peers.manifest import Manifest, fingerprint
from gradless.peers.signing import Ed25519Ring
from gradless.peers.statements import Board, Statement
from gradless.peers.status import Peer, Status
from gradless.peers.zenoh_link import ZenohLink

if TYPE_CHECKING:
    from gradless.peers.part import Part

EVERY: Final = 1.0
"""Seconds between two looks."""
SCORES_EVERY: Final = 5.0
STILL: Final = 15.0
"""Seconds without a decision after which the group is said to stand still."""
RECENT: Final = 50
"""Steps whose agreement is timed."""


class Monitor:
    """Counts, statements and status of a run, in a thread of its own once it has begun.

    Args:
        manifest: of the run.
        me: this peer.
        folder: of this peer's run.
        link: to the others.
        ring: keys.
        warn: receives lines that somebody must see.
    """

    def __init__(
        self, manifest: Manifest, me: int, folder: Path, link: ZenohLink, ring: Ed25519Ring, warn: Callable[[str], None]
    ) -> None:
        self.manifest, self.me, self.folder, self.link, self.ring, self.warn = manifest, me, folder, link, ring, warn
        self.board = Board(me, manifest.f)
        self.phase = "waiting"
        self.step = 0
        self._heard, self._left_out, self._late = ([0] * len(manifest.peers) for _ in range(3))
        self._led, self._failed = ([0] * len(manifest.peers) for _ in range(2))
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._own = b""
        self._faults: dict[int, int] = {}
        self._scores: list[float | None] = [None] * len(manifest.peers)
        self._scored = 0.0
        self._warned: set[str] = set()
        self._part: Part | None = None
        self._moved = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def begin(self, part: Part, step: int) -> None:
        """Note that training begins at a step."""
        self._part, self.step, self.phase, self._moved = part, step, "training", time.monotonic()

    def decided(self, step: int, following: int, facts: dict[str, Any]) -> None:
        """Note how a step was decided (`gradless.peers.part.Part.facts`)."""
        with self._lock:
            self.step, self._moved = following, time.monotonic()
            for peer in facts["heard"]:
                self._heard[peer] += 1
            for peer in facts["left_out"]:
                self._left_out[peer] += 1
            for peer in facts["late"]:
                self._late[peer] += 1
            for peer in facts["failed"]:
                self._failed[peer] += 1
            if facts["leader"] is not None:
                self._led[facts["leader"]] += 1
            if (seconds := facts.get("agree_seconds")) is not None:
                self._seconds.append(seconds)

    def state(self, step: int, sha256: str) -> dict[str, str]:
        """Say which weights this peer holds after some steps; return what the others said of that step, by name."""
        statement = Statement(self.me, step, bytes.fromhex(sha256))
        with self._lock:
            self.board.hear(statement)
            self._own = statements.pack(self.manifest.run, statement, self.ring)
        self.link.state(self._own)
        self._hear()
        with self._lock:
            return {self.manifest.names[peer]: theirs.hex() for peer, theirs in self.board.others(step).items()}

    def outvoted(self) -> tuple[Statement, bytes] | None:
        """Return this peer's newest statement that f + 1 others contradict with one hash, and that hash."""
        self._hear()
        with self._lock:
            return self.board.newest_outvoted()

    def is_shared(self, step: int) -> bool:
        """Return whether f + 1 others have stated the weights that this peer holds after so many steps."""
        self._hear()
        with self._lock:
            return self.board.is_shared(step)

    def withdraw(self) -> None:
        """Take back what this peer has stated."""
        with self._lock:
            self.board.withdraw()
            self._own = b""

    def has_stated(self, step: int) -> bool:
        """Return whether this peer has said which weights it holds after so many steps."""
        own = self.board.latest.get(self.me)
        return own is not None and own.step >= step

    def behind(self, steps: int) -> list[int]:
        """Return the peers that are not banned and have not said that they have all steps."""
        banned = self._part.banned() if self._part is not None else {}
        with self._lock:
            done = {peer for peer, statement in self.board.latest.items() if statement.step >= steps}
        return [peer for peer in range(len(self.manifest.peers)) if peer not in done and peer not in banned]

    def close(self) -> None:
        """Write the last status and end the thread."""
        self.phase = "ended"
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self._look()
        self._look()

    def _look(self) -> None:
        self._hear()
        self._mute()
        self._score()
        self._warn_of_strangers()
        if self._own:
            self.link.state(self._own)  # who was away hears it now
        try:
            statuses.write(self.folder, self._status())
        except OSError as error:
            self._once(f"status.json cannot be written ({error.strerror}): free space")

    def _hear(self) -> None:
        for sender, data in self.link.stated():
            if self.link.inbox.muted(sender):
                continue
            statement = statements.parse(self.manifest.run, data, self.ring, sender=sender)
            if statement is None:
                self.link.inbox.fault(sender)
                continue
            with self._lock:
                self.board.hear(statement)

    def _mute(self) -> None:
        """Stop listening to peers that send what no honest one does."""
        for peer, count in dict(self._part.faults()).items() if self._part is not None else ():
            for _ in range(min(count - self._faults.get(peer, 0), 100)):
                if self.link.inbox.fault(peer):
                    self.warn(f"{self.manifest.names[peer]} sends what no honest peer does: muted for ten minutes")
                    break
            self._faults[peer] = count

    def _score(self) -> None:
        now = time.monotonic()
        if self._part is not None and now - self._scored > SCORES_EVERY:
            self._scored, self._scores = now, self._part.scores()

    def _warn_of_strangers(self) -> None:
        for name, run in list(self.link.strangers.items()):
            self._once(
                f"{name} has another manifest (fingerprint {fingerprint(run)}, here {self.manifest.fingerprint}): "
                "nothing that it says counts; compare the files",
                about=f"the manifest of {name}",  # which may name another run each second
            )

    def _once(self, line: str, *, about: str | None = None) -> None:
        """Warn, unless there was a warning about the same before; by default the line itself."""
        if (about or line) not in self._warned:
            self._warned.add(about or line)
            self.warn(line)

    def _status(self) -> Status:
        alive, part = self.link.alive(), self._part
        banned, muted = (part.banned(), part.muted()) if part is not None else ({}, frozenset[int]())
        phase = self.phase
        if phase == "training" and time.monotonic() - self._moved > STILL:
            phase = "standing still"
        with self._lock:
            seconds = statistics.median(self._seconds) if self._seconds else None
            peers = [
                self._peer(number, number in alive, banned.get(number), number in muted)
                for number in range(len(self.manifest.peers))
            ]
        return Status(
            run=self.manifest.sha256,
            me=self.manifest.names[self.me],
            step=self.step,
            steps=self.manifest.config.steps,
            updated=time.time(),
            phase=phase,
            agree_ms=None if seconds is None else round(1000 * seconds, 2),
            peers=peers,
        )

    def _peer(self, number: int, alive: bool, banned: int | None, muted: bool) -> Peer:
        statement = self.board.latest.get(number)
        name = self.manifest.names[number]
        return Peer(
            name=name,
            alive=alive,
            heard=self._heard[number],
            left_out=self._left_out[number],
            late=self._late[number],
            led=self._led[number],
            failed=self._failed[number],
            score=self._scores[number],
            weights_sha256=statement.sha256.hex() if statement is not None else None,
            stated_step=statement.step if statement is not None else None,
            banned=banned,
            muted=muted or self.link.inbox.muted(number),
            other_run=self.link.strangers.get(name),
        )
