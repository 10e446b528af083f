"""Parameters over a network: every peer mixes the models of the first n - f peers that it heard in a step.

MoNNA (Farhadkhani et al. 2023, arXiv 2209.10931) needs no agreement: honest models drift apart a little, and mixing
pulls them together. What it cannot stand is a liar who tells every peer something else (attacks ``dissensus`` and
``lookahead`` of the simulation). So peers echo the digests of what they got, and a vector counts once q peers have
echoed the same digest for its sender: q = floor((n + f) / 2) + 1, of which two sets share an honest peer, who echoes
one digest only. That is echo broadcast (Bracha and Toueg 1985; Reiter 1994); it does not say *which* vectors arrive.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.aggregators import Aggregator, trimmed_mean
from gradless.collab.algorithms import PARAMETERS
from gradless.collab.learners.loop import Settle
from gradless.collab.network.exchange import Arrivals, gather, settle
from gradless.errors import BadInput
from gradless.peers.history import quorum
from gradless.peers.link import Link
from gradless.peers.schema import Foreign, Malformed
from gradless.peers.signing import Ring
from gradless.peers.vectors import Ask, Echo, Format, Model, Slot

AHEAD: Final = 1  # steps before this peer takes them of which vectors are kept
BEHIND: Final = 1  # steps after this peer has taken them of which it still helps others
WAIT: Final = 0.05  # seconds after which threads look whether they shall end
RESEND: Final = 2.0  # seconds after which a peer that still waits says again what it has said


class Gathering:
    """What came of one exchange so far.

    Args:
        quorum: echoes with which a vector counts; 0: none are needed.
        me: this peer, whose own vector always counts.
    """

    def __init__(self, quorum: int, me: int) -> None:
        self.quorum, self.me = quorum, me
        self.models: dict[int, Model] = {}
        self.echoes: dict[int, dict[int, bytes]] = {}  # by the sender of the vector, then by who echoed
        self.seconds: dict[int, bytes] = {}  # digest of another vector of a sender than the first
        self.unsaid: set[int] = set()  # senders whose digest this peer has not echoed yet

    def add_model(self, model: Model) -> Model | None:
        """Note a vector; returns the first one of its sender if that is another: evidence."""
        first = self.models.setdefault(model.sender, model)
        if first.digest != model.digest:
            self.seconds.setdefault(model.sender, model.digest)
            return first
        if model.sender != self.me:
            self.unsaid.add(model.sender)
        return None

    def knows(self, sender: int, digest: bytes) -> bool:
        """Return whether a vector of this digest came before, and need not be looked at; the first is echoed again."""
        first = self.models.get(sender)
        if first is not None and first.digest == digest:
            self.unsaid |= {sender} - {self.me}
            return True
        return self.seconds.get(sender) == digest

    def add_echo(self, echo: Echo) -> None:
        """Note what a peer says that it received; of two digests for one vector the first counts."""
        for sender, digest in echo.digests.items():
            self.echoes.setdefault(sender, {}).setdefault(echo.sender, digest)

    def digests(self) -> dict[int, bytes]:
        """Return what there is to echo: the digest of every vector that came, by its sender."""
        return {sender: model.digest for sender, model in self.models.items()}

    def counted(self) -> list[Model]:
        """Return the vectors that count, by sender."""
        return [model for _, model in sorted(self.models.items()) if self._counts(model)]

    def _counts(self, model: Model) -> bool:
        if model.sender == self.me or not self.quorum:
            return True
        votes = self.echoes.get(model.sender, {})
        # Its sender has signed the digest, and this peer has received it.
        return (
            len({peer for peer, one in votes.items() if one == model.digest} | {self.me, model.sender}) >= self.quorum
        )


class Latest:
    """The `gradless.collab.network.exchange.Transport` of one peer that exchanges parameters over a link.

    An exchange ends with n - f vectors, this peer's own among them. A peer whom n - f others have left two steps behind
    takes their newest vectors and goes on where they are (`Arrivals.step`).

    Args:
        link: to the others; it stays open.
        ring: signs for this peer, checks the others.
        run: 16 bytes.
        width: D.
        byzantine: f.
        tags: of the exchanges of a step, in order.
        echo: whether a vector counts only when a quorum has echoed its digest.

    Raises:
        BadInput: an echo among too many liars to be of use.
    """

    def __init__(
        self,
        link: Link,
        ring: Ring,
        *,
        run: bytes,
        width: int,
        byzantine: int,
        tags: Sequence[str] = (PARAMETERS,),
        echo: bool = True,
    ) -> None:
        peers = link.peers
        if echo and peers <= 3 * byzantine:
            raise BadInput(
                f"echoes tell {byzantine} liars among {peers} peers from the honest ones only if n > 3 f: lower f, add "
                "peers, or switch the echo off"
            )
        self.link, self.ring, self.me, self.peers, self.byzantine = link, ring, link.me, peers, byzantine
        self.format = Format(run, peers, width)
        self.quorum = quorum(peers, byzantine) if echo else 0
        self.counts: Counter[str] = Counter()
        """Messages by what became of them."""
        self.faults: Counter[int] = Counter()
        """Messages that no honest peer sends, by sender."""
        self.evidence: dict[int, tuple[bytes, bytes]] = {}
        """Two models of one slot by the peer that signed them."""
        self._changed = threading.Condition()
        self._slot: Slot = (0, 0)
        self._gatherings: dict[Slot, Gathering] = {}
        self._newest: dict[int, Model] = {}
        self._tags = {tag: number for number, tag in enumerate(tags)}
        self._helped: dict[int, float] = {}  # when a peer was told something again
        self._stopped = False
        self._outboxes = {peer: _Outbox(self, peer) for peer in range(peers) if peer != self.me}
        link.allow(self.format.largest())
        link.serve(self._answer)
        self._listener = threading.Thread(target=self._listen, daemon=True, name=f"peer {self.me} listens")
        self._listener.start()

    # -----------------------------------------------------------------------------------------------------------
    # the transport

    def known(self, step: int, tag: str) -> None:
        """See `gradless.collab.network.exchange.Transport`: a peer always has its own model to send."""

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """Send the model [1, D] to all, and return it with those of the first peers that make n - f together.

        Raises:
            BadInput: the transport was closed.
        """
        slot = (step, self._tags[tag])
        own = self.format.model(self.ring, self.me, slot, rows[0])
        with self._changed:
            self._slot = slot
            for old in [key for key in self._gatherings if key[0] < step - BEHIND]:
                del self._gatherings[old]
            self._gathering(slot).add_model(own)
            self._newest[self.me] = own
            self._changed.notify_all()
        self._post(own.data)
        models = self._waited(slot, own)
        others = {model.sender: model.vector() for model in models if model.sender != self.me}
        senders = tuple(sorted({*others, self.me}))
        later = self._later(models, step)
        return Arrivals(gather(others, rows[0], self.me), (0,), (senders,), step=later)

    def rejoin(self) -> tuple[int, Tensor] | None:
        """Return the step that the group is in and the trimmed mean of n - f of its models, for a peer that comes back.

        Returns:
            A step that an honest peer has reached and float32 [D]; None if fewer than n - f peers answered.
        """
        models = []
        for peer in range(self.peers):
            if peer != self.me and (model := self._fetched(peer)) is not None:
                models.append(model)
        if len(models) < self.peers - self.byzantine:
            return None
        rule = trimmed_mean(f=self.byzantine)
        mean: Tensor = rule(torch.stack([model.vector() for model in models]))
        return self._reached(models), mean

    def close(self) -> None:
        """End the threads; the link stays open."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for outbox in self._outboxes.values():
            outbox.close()
        self._listener.join()

    # -----------------------------------------------------------------------------------------------------------
    # waiting

    def _waited(self, slot: Slot, own: Model) -> list[Model]:
        """Wait for enough vectors of an exchange, or of later ones where the group has gone on."""
        need, again = self.peers - self.byzantine, time.monotonic() + RESEND
        while True:
            with self._changed:
                if self._stopped:
                    raise BadInput("the connection to the group was closed: run again to go on")
                counted = self._gathering(slot).counted()
                if len(counted) >= need:
                    return counted
                ahead = [m for m in self._newest.values() if m.slot[0] > slot[0] + AHEAD and m.sender != self.me]
                if len(ahead) >= max(need - 1, self.byzantine + 1):
                    self.counts["overtaken"] += 1
                    return [*ahead, own]
                self._changed.wait(WAIT)
            if time.monotonic() > again:  # a link may lose messages
                again = time.monotonic() + RESEND
                self._post(own.data)
                self._echo(slot, again=True)
                self.link.send(self.format.ask(self.me, slot))

    def _later(self, models: Sequence[Model], step: int) -> int | None:
        others = [model for model in models if model.sender != self.me]
        return self._reached(others) if others and min(model.slot[0] for model in others) > step else None

    def _reached(self, models: Sequence[Model]) -> int:
        """Return a step that at least one honest sender of these models has reached: more than f say so."""
        return sorted((model.slot[0] for model in models), reverse=True)[self.byzantine]

    # -----------------------------------------------------------------------------------------------------------
    # messages

    def _listen(self) -> None:
        while not self._stopped:
            message = self.link.receive(WAIT)
            while message is not None:
                self._take(*message)
                message = self.link.receive(0.0)
            with self._changed:
                news = [slot for slot, gathering in self._gatherings.items() if gathering.unsaid]
            for slot in news:
                self._echo(slot)

    def _take(self, sender: int, data: bytes) -> None:
        try:
            if self.format.sender(data) != sender:
                raise Malformed("sender")
            if self._knows(sender, data):
                return
            message = self.format.parse(data, self.ring)
        except Malformed as error:
            self.counts["malformed"] += 1
            self.faults[sender] += not isinstance(error, Foreign)
            return
        with self._changed:
            if isinstance(message, Model):
                newest = self._newest.get(sender)
                if newest is None or newest.slot < message.slot:
                    self._newest[sender] = message
            if not self._wanted(message.slot):
                self.counts["late" if message.slot < self._slot else "early"] += 1
                return
            gathering = self._gathering(message.slot)
            if isinstance(message, Ask):
                self._help(gathering, sender)
            elif isinstance(message, Echo):
                gathering.add_echo(message)
            elif (first := gathering.add_model(message)) is not None:
                self.evidence.setdefault(sender, (first.data, message.data))
                if gathering.seconds[sender] != message.digest:  # a peer that starts again may have two, and no more
                    self.faults[sender] += 1
            self._changed.notify_all()

    def _knows(self, sender: int, data: bytes) -> bool:
        """Whether a message is a vector that came before: its digest need not be computed again."""
        if (named := self.format.named(data)) is None:
            return False
        with self._changed:
            gathering = self._gatherings.get(named[0])
            return gathering is not None and gathering.knows(sender, named[1])

    def _help(self, gathering: Gathering, peer: int) -> None:
        """Say again what was said in an exchange, to a peer that lacks some of it; not too often."""
        now = time.monotonic()
        if self.me in gathering.models and now > self._helped.get(peer, -RESEND) + RESEND / 2:
            self._helped[peer] = now
            self._outboxes[peer].put(gathering.models[self.me].data)
            gathering.unsaid |= gathering.models.keys() - {self.me}

    def _wanted(self, slot: Slot) -> bool:
        step = self._slot[0]
        return step - BEHIND <= slot[0] <= step + AHEAD and slot[1] < len(self._tags)

    def _gathering(self, slot: Slot) -> Gathering:
        return self._gatherings.setdefault(slot, Gathering(self.quorum, self.me))

    def _echo(self, slot: Slot, *, again: bool = False) -> None:
        """Say which vectors of an exchange have come, if that is news or wanted ``again``."""
        with self._changed:
            gathering = self._gatherings.get(slot)
            if gathering is None or not self.quorum or not (gathering.unsaid or again):
                return
            gathering.unsaid.clear()
            digests = gathering.digests()
        self.link.send(self.format.echo(self.ring, self.me, slot, digests))

    def _post(self, data: bytes) -> None:
        for outbox in self._outboxes.values():
            outbox.put(data)

    def _answer(self, since: int) -> list[bytes]:
        """Answer a peer that comes back: this peer's newest model."""
        with self._changed:
            newest = self._newest.get(self.me)
        return [] if newest is None or newest.slot[0] < since else [newest.data]

    def _fetched(self, peer: int) -> Model | None:
        for data in self.link.fetch(peer, 0)[:1]:
            try:
                message = self.format.parse(data, self.ring)
            except Malformed:
                self.counts["malformed"] += 1
                return None
            if isinstance(message, Model) and message.sender == peer:
                return message
        return None


def settle_with(rule: Aggregator, seed: int) -> Settle:
    """Return what a peer makes of the vectors of an exchange, for `gradless.collab.learners.loop`.

    Args:
        rule: of the run; it may use the peer's own row as a pivot.
        seed: of the run, from which rules that shuffle take their key.
    """

    def settled(arrivals: Arrivals, rows: Tensor | None, step: int) -> Tensor:
        assert rows is not None
        return settle(rule, arrivals, rows, key=rng.fold(seed, step))

    return settled


class _Outbox:
    """Sends vectors to one peer in a thread of its own, so that a slow one delays nobody; old ones are dropped."""

    def __init__(self, owner: Latest, peer: int) -> None:
        self._owner, self._peer = owner, peer
        self._waiting: deque[bytes] = deque(maxlen=1 + BEHIND + AHEAD)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"peer {owner.me} sends to {peer}")
        self._thread.start()

    def put(self, data: bytes) -> None:
        with self._changed:
            self._waiting.append(data)
            self._changed.notify()

    def close(self) -> None:
        """End the thread, unless it is stuck in a send: it ends with the link then."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._stopped:
                        return
                    self._changed.wait()
                data = self._waiting.popleft()
            self._owner.link.send(data, self._peer)
