"""A simulated group: seeded delays, reordering, losses, duplicates, partitions, crashes, and liars that work together.

Checked: no two honest peers ever decide different values of a step (`TwoValues`), once the network is well all honest
peers go on (`Stuck`), and no message of an honest peer counts as a fault at another one, which would mute it.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from unittest import mock

from agreement_liars import STYLES, Liar
from gradless.peers import history
from gradless.peers.agreement import Agreement, Timing
from gradless.peers.agreement.instance import Instance
from gradless.peers.agreement.validity import Validity
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog
from gradless.peers.schema import HEAD, NO_DIGEST, SIGNATURE, STATED, Kind, digest, pack_head, parse_head, parse_value
from gradless.peers.signing import Ring, hash_rings
from gradless.peers.votes import Votes

RUN = bytes(range(16))
TICK = 0.01


class TwoValues(AssertionError):
    """Honest peers decided differently."""


class Stuck(AssertionError):
    """The group did not go on in a network that is well."""


@contextlib.contextmanager
def flawed(*flaws: str) -> Iterator[None]:
    """A protocol without one of its parts.

    ``quorum``: one vote fewer; ``n``: n = 3 f with n - f votes; ``justification``: leaders need none; ``no-ban``: no
    evidence in values, so that liars stay.
    """

    def without_evidence(instance: Instance) -> bytes:
        with mock.patch.object(instance.books, "evidence", {}):
            return new_value(instance)

    def votes_of_n_minus_f(peers: int, byzantine: int) -> int:
        return peers - byzantine

    new_value, quorum = Instance.new_value, history.quorum
    patches = {
        "quorum": lambda: mock.patch.object(history, "quorum", lambda n, f: quorum(n, f) - 1),
        "n": lambda: mock.patch.multiple(history, quorum=votes_of_n_minus_f, check_bound=mock.DEFAULT),
        "justification": lambda: mock.patch.object(Validity, "check_justification", return_value=-1),
        "no-ban": lambda: mock.patch.object(Instance, "new_value", without_evidence),
    }
    with contextlib.ExitStack() as stack:
        for flaw in flaws:
            stack.enter_context(patches[flaw]())
        yield


class World:
    """One schedule.

    Args:
        seed: everything that is drawn.
        peers: n.
        byzantine: f.
        steps: how many must be decided.
        liars: how many there are; f by default, less those that lose their logs.
        style: of the liars; drawn by default.
        well_from: second from which on the network is well; drawn by default.
        forgets: peers that crash once and lose all their files; ``careless`` ones do not say so.
        careless: whether they sign again at once.
        failed: round of step 0 that f + 1 honest peers are in at the beginning, while the others were away.
        rings: keys; fast ones by default.
        timing: waiting times; drawn by default.
    """

    def __init__(
        self,
        seed: int,
        peers: int,
        byzantine: int,
        *,
        steps: int = 4,
        width: int = 2,
        liars: int | None = None,
        style: str | None = None,
        well_from: float | None = None,
        forgets: int = 0,
        careless: bool = False,
        failed: int = 0,
        rings: Sequence[Ring] | None = None,
        timing: Timing | None = None,
    ) -> None:
        rng = self.rng = random.Random(seed)
        self.group = Group(RUN, peers, byzantine, width)
        self.steps, self.careless = steps, careless
        count = max(0, byzantine - forgets) if liars is None else liars
        chosen = rng.sample(range(peers), count + forgets)
        self.bad, self.forgetful = sorted(chosen[:count]), sorted(chosen[count:])
        self.honest = [peer for peer in range(peers) if peer not in self.bad]
        # Short waits against slow probes and slow messages: rounds fail often.
        drawn = Timing(rng.choice((0.01, 0.05)), rng.choice((0.03, 0.1)))
        self.timing = timing or drawn
        self.rings = rings or hash_rings(peers, seed)
        self.votes = [self._new_votes(complete=True) for _ in range(peers)]
        self.logs = [DecidedLog(None, self.group) for _ in range(peers)]
        for peer in self.honest[: byzantine + 1] if failed else ():
            body = pack_head(RUN, Kind.TIMEOUT, peer, 0, failed) + STATED.pack(-1, NO_DIGEST)
            self.votes[peer].append(body + self.rings[peer].sign(body))
        self.cores = [self._core(peer, 0.0) for peer in range(peers)]
        self.style = style or rng.choice(sorted(STYLES))
        self.targeted = rng.random() < 0.5  # whoever votes crashes
        self.well_from = rng.choice((0.5, 2.0, 6.0)) if well_from is None else well_from
        self.loss = rng.choice((0.0, 0.05, 0.3))
        self.mean = rng.choice((0.005, 0.05, 0.3))
        self.partitions = self._partitions()
        self.crashes = sorted(
            rng.uniform(0, self.well_from) for _ in range(rng.choice((0, 0, 2, 6)) if self.well_from else 0)
        )
        self.amnesia = {peer: rng.uniform(0, self.well_from) for peer in self.forgetful}
        self.probe = [rng.choice((0.01, 0.05)) * (10 if rng.random() < 0.1 else 1) for _ in range(peers)]
        self.queue: list[tuple[float, int, Callable[[float], int | None]]] = []
        self.serial = 0
        self.down: set[int] = set()
        self.alone: dict[int, float] = {}  # until when a peer is cut off
        self.asked: dict[int, tuple[int, int]] = {}
        # What liars share.
        self.known: dict[int, dict[bytes, bytes]] = collections.defaultdict(dict)  # step -> digest -> value
        self.offers: dict[tuple[int, int, bytes], bytes] = {}  # leader's signature by step, round, digest
        self.story: dict[tuple[int, int], tuple[bytes, ...]] = {}
        self.seen: collections.deque[bytes] = collections.deque(maxlen=200)
        self._sides: dict[tuple[int, int], list[int]] = {}
        self.liars: dict[int, Liar] = {peer: STYLES[self.style](self.cores[peer], self, rng) for peer in self.bad}
        self.agreed: dict[int, bytes] = {}
        self.rounds: collections.Counter[int] = collections.Counter()
        self.messages = self.bytes = self.restarts = 0

    def _new_votes(self, *, complete: bool) -> Votes:
        return Votes(None, RUN, complete=complete, nonce=self.rng.randbytes(8))

    def _core(self, peer: int, now: float) -> Agreement:
        ring, votes, log = self.rings[peer], self.votes[peer], self.logs[peer]
        return Agreement(peer, self.group, ring=ring, votes=votes, log=log, timing=self.timing, now=now)

    def _partitions(self) -> list[tuple[float, float, list[int]]]:
        partitions, begin = [], 0.0
        while begin < self.well_from and self.rng.random() < 0.7:
            begin += self.rng.uniform(0, self.well_from / 2)
            sides = [self.rng.randrange(2) for _ in range(self.group.peers)]
            partitions.append((begin, begin + self.rng.uniform(0, self.well_from / 2), sides))
        return partitions

    def sides(self, step: int, round: int) -> list[int]:
        """Which story a peer is told in a round."""
        if (step, round) not in self._sides:
            halves = [self.rng.randrange(2) for _ in range(self.group.peers)]
            if self.rng.random() < 0.5:
                halves = [0] * self.group.peers
                halves[self.rng.randrange(self.group.peers)] = 1
            self._sides[step, round] = halves
        return self._sides[step, round]

    def remember(self, data: bytes) -> None:
        """Let the liars know a proposal."""
        head = parse_head(data, RUN, self.group.peers)
        end = HEAD.size + 32
        its_digest, signature = data[HEAD.size : end], data[end : end + SIGNATURE]
        self.offers[head.step, head.round, its_digest] = signature
        length = int.from_bytes(data[end + SIGNATURE : end + SIGNATURE + 4], "little")
        value = data[end + SIGNATURE + 4 : end + SIGNATURE + 4 + length]
        if digest(RUN, value) == its_digest:
            self.known[head.step][its_digest] = value

    # -- the network --------------------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[float], int | None]) -> None:
        self.serial += 1
        heapq.heappush(self.queue, (time, self.serial, action))

    def post(self, source: int, now: float) -> None:
        """Send what a peer has in its outbox."""
        sent = self.cores[source].take_outbox()
        rng = self.rng
        votes = any(data[1] in (Kind.PREVOTE, Kind.PRECOMMIT) for _, data in sent)
        if self.targeted and now < self.well_from and source not in self.liars and votes and rng.random() < 0.25:
            self.crash(source, now, rng.uniform(0.01, 0.5))  # dies having said it to some
        if source in self.liars:
            posted = self.liars[source].act(sent, now)
        else:
            everybody = range(self.group.peers)
            posted = [(peer, data) for to, data in sent for peer in (everybody if to is None else (to,))]
        for peer, data in posted:
            if peer != source:
                self._transmit(source, peer, data, now)

    def _transmit(self, source: int, peer: int, data: bytes, now: float) -> None:
        if data[1] == Kind.PROPOSAL:
            self.remember(data)
        self.messages += 1
        self.bytes += len(data)
        rng = self.rng
        if self.bad and rng.random() < 0.02:
            self.seen.append(data)
        if now < self.well_from and self.style in ("split", "yes") and source not in self.liars:
            head = parse_head(data, RUN, self.group.peers)
            sides = self.sides(head.step, head.round)
            if sides[source] != sides[peer] and rng.random() < 0.7:
                return
        self._deliver(source, peer, data, now)
        if now < self.well_from and rng.random() < 0.05:
            self._deliver(source, peer, data, now)

    def _deliver(self, source: int, peer: int, data: bytes, now: float) -> None:
        rng = self.rng
        if now < self.well_from:
            if self.alone.get(source, 0) > now or self.alone.get(peer, 0) > now or rng.random() < self.loss:
                return
            delay = rng.expovariate(1 / self.mean) * (20 if rng.random() < 0.02 else 1)
            if any(begin <= now < end and side[source] != side[peer] for begin, end, side in self.partitions):
                if rng.random() < 0.5:
                    return
                delay += self.well_from
        else:
            delay = rng.uniform(0.001, 0.01)

        def arrive(time: float) -> int | None:
            if peer in self.down:
                return None
            faults = self.cores[peer].faults[source]
            self.cores[peer].handle(data, time)
            honest = source not in self.liars and peer not in self.liars
            assert not honest or self.cores[peer].faults[source] == faults, "an honest peer is blamed for its message"
            for to, answer in self.liars[peer].answer(source, data) if peer in self.liars else ():
                if to != peer:
                    self._transmit(peer, to, answer, time)
            return peer

        self.at(now + delay, arrive)

    # -- peers --------------------------------------------------------------------------------------------------------

    def crash(self, peer: int, now: float, seconds: float, *, forget: bool = False) -> None:
        """End a peer, and start it again later from its files, or without them."""
        if peer in self.down:
            return
        self.down.add(peer)

        def start(time: float) -> int:
            if forget:
                self.votes[peer] = self._new_votes(complete=self.careless)
                self.logs[peer] = DecidedLog(None, self.group)
            self.cores[peer] = self._core(peer, time)
            self.down.discard(peer)
            self.restarts += 1
            return peer

        self.at(now + seconds, start)

    def _after(self, peer: int, now: float) -> None:
        """Look at what a peer decided, send what it says, and let it probe if it is in a new step."""
        core = self.cores[peer]
        for step, value, _ in core.take_decisions():
            if peer in self.liars:
                continue
            if (
                step not in self.agreed
                and self.style in ("split", "yes")
                and now < self.well_from
                and self.rng.random() < 0.6
            ):
                self.alone[peer] = now + self.rng.uniform(0, self.well_from)  # who decides first is cut off
            its_digest = digest(RUN, value)
            if self.agreed.setdefault(step, its_digest) != its_digest:
                raise TwoValues(f"step {step} has two values")
            self.rounds[parse_value(value).round] += 1
        self.post(peer, now)
        self._probe(peer, now)

    def _probe(self, peer: int, now: float) -> None:
        step = self.cores[peer].step
        key = (step, id(self.cores[peer]))
        if self.asked.get(peer) == key:
            return
        self.asked[peer] = key
        coefficients = [self.rng.gauss(1, 1) for _ in range(self.group.width)]

        def finished(time: float) -> int | None:
            if peer in self.down or key[1] != id(self.cores[peer]):
                return None
            self.cores[peer].row(step, coefficients, time)
            return peer

        self.at(now + self.rng.expovariate(1 / self.probe[peer]), finished)

    def run(self, limit: float = 120.0) -> float:
        """Let the group work until all honest peers have decided the steps; returns the second at which they had."""
        now = tick = 0.0
        for peer in range(self.group.peers):
            self._after(peer, now)
        while now < limit:
            if min(len(self.logs[peer]) for peer in self.honest) >= self.steps:
                return now
            if self.queue and self.queue[0][0] <= tick:
                now, _, action = heapq.heappop(self.queue)
                peer = action(now)
                if peer is not None and peer not in self.down:
                    self._after(peer, now)
                continue
            now, tick = tick, tick + TICK
            self._accidents(now)
            for peer, core in enumerate(self.cores):
                if peer not in self.down:
                    core.tick(now)
                    self._after(peer, now)
        raise Stuck(f"decided steps after {limit:g} s: {[len(log) for log in self.logs]}")

    def _accidents(self, now: float) -> None:
        while self.crashes and now >= self.crashes[0]:
            self.crashes.pop(0)
            self.crash(self.rng.choice(self.honest), now, self.rng.uniform(0.01, 1.0))
        for peer, when in list(self.amnesia.items()):
            if now >= when and peer not in self.down:
                del self.amnesia[peer]
                self.crash(peer, now, self.rng.uniform(0.01, 1.0), forget=True)


def run_many(
    seeds: Iterable[int],
    peers: int,
    byzantine: int,
    flaws: tuple[str, ...] = (),
    limit: float = 120.0,
    **settings: object,
) -> Counts:
    """Run a schedule for every seed, and count; `limit` is the second after which a group is stuck."""
    counts = Counts()
    with flawed(*flaws):
        for seed in seeds:
            world = World(seed, peers, byzantine, **settings)  # type: ignore[arg-type]
            try:
                world.run(limit)
            except TwoValues:
                counts.unsafe.append(seed)
            except Stuck:
                counts.stuck.append(seed)
            counts.add(world)
    return counts


class Counts:
    """What happened in many schedules."""

    def __init__(self) -> None:
        self.schedules = self.messages = self.restarts = self.banned = 0
        self.unsafe: list[int] = []  # seeds
        self.stuck: list[int] = []
        self.rounds: collections.Counter[int] = collections.Counter()
        self.lies: collections.Counter[str] = collections.Counter()

    def add(self, world: World) -> None:
        self.schedules += 1
        self.messages += world.messages
        self.restarts += world.restarts
        self.rounds += world.rounds
        self.banned += any(world.cores[peer].banned for peer in world.honest)
        for liar in world.liars.values():
            self.lies += liar.lies

    def facts(self) -> dict[str, object]:
        """For a result file."""
        numbers = {name: getattr(self, name) for name in ("schedules", "messages", "restarts", "banned")}
        rounds = {str(round): count for round, count in sorted(self.rounds.items())}
        seeds = {"two_values": self.unsafe, "stuck": self.stuck}
        return {**numbers, **seeds, "decided_in_round": rounds, "lies": dict(sorted(self.lies.items()))}
