"""Agreeing on coefficients: a peer's part in a run whose weights are equal at all honest peers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradless.collab.aggregation.pair_scores import WINDOW, pair_scores
from gradless.collab.learners.alone import OnePeer
from gradless.collab.learners.coefficients import CoefficientPeers
from gradless.collab.learners.loop import Settle, take_step
from gradless.errors import BadInput
from gradless.peers import liars
from gradless.peers.agreed import Agreed, catch_up, replay
from gradless.peers.agreement import Agreement, Timing
from gradless.peers.history import Group, History
from gradless.peers.history import rows as rows_of
from gradless.peers.keys import Identity
from gradless.peers.link import Link
from gradless.peers.log import DecidedLog
from gradless.peers.manifest import Manifest
from gradless.peers.memory import MemoryRule
from gradless.peers.mixing import AgreedRule
from gradless.peers.node_files import LEDGER, LOG, VOTES, write_evidence
from gradless.peers.part import ring_of
from gradless.peers.schema import LARGEST, Kind, Malformed, parse_evidence, parse_value
from gradless.peers.signing import Ed25519Ring
from gradless.peers.votes import Votes
from gradless.peers.wire import Decided, parse
from gradless.system.hashing import weights_sha256

LEAST_RATE: Final = 32.0
"""New steps a second below which a peer's answers are of no use: the agreement itself fetches as many from all."""
WHAT: Final = {
    Kind.ROW: "signed two rows",
    Kind.PROPOSAL: "signed two proposals",
    Kind.PREVOTE: "signed two prevotes",
    Kind.PRECOMMIT: "signed two precommits",
    Kind.TIMEOUT: "signed two timeouts",
}
"""What two messages of a kind convict their signer of."""


class AgreedPart:
    """The mode coefficients: see `Part`.

    Args:
        manifest: of the run.
        identity: of this peer.
        folder: of this peer's run.

    Raises:
        BadInput: ``peers.log`` or ``votes.wal`` was changed, or is of another run.
    """

    def __init__(self, manifest: Manifest, identity: Identity, folder: Path) -> None:
        config = manifest.config
        assert config.rule is not None
        self.manifest, self.identity, self.folder, self.me = manifest, identity, folder, manifest.number(identity)
        self.ring = ring_of(manifest, identity)
        self.group = Group(manifest.run, len(manifest.peers), manifest.f, config.queries)
        self.log = DecidedLog(folder / LOG, self.group)
        rule = AgreedRule(config.rule, peers=len(manifest.peers), byzantine=manifest.f)
        self.rule: Settle = rule if config.memory is None else MemoryRule(rule, self.log, config.memory)
        self.started = 0
        self._told = len(self.log.history.bans)
        self._past = History(self.group)

    @staticmethod
    def message_limit(manifest: Manifest) -> int:
        """See `Part`."""
        return LARGEST

    def begin(self, one: OnePeer, link: Link, *, liar: str | None, say: Callable[[str], None]) -> int:
        """See `Part`."""
        held = len(self.log)
        if fetched := join(self.log, self.ring, link):
            say(f"fetched steps {held} to {held + fetched} of the log and checked their chain and newest certificate")
        self._adopt(one)
        self.votes = self._votes(say)
        now = time.monotonic()
        timing = Timing(grace=self.manifest.contents.timing.grace, base=self.manifest.contents.timing.base)
        self.agreement = Agreement(
            self.me, self.group, ring=self.ring, votes=self.votes, log=self.log, timing=timing, now=now
        )
        lie = liars.liar(liar, self.me, self.group, self.ring) if liar else None
        self.transport = Agreed(link, self.agreement, self.log, liar=lie)
        self.started = len(self.log)
        return self.started

    def _votes(self, say: Callable[[str], None]) -> Votes:
        """Open the log of votes; without one the peer may have signed what it does not remember."""
        path, run = self.folder / VOTES, self.manifest.run
        signed = self.identity.has_taken_part(run) or self.me in self.log.history.last_present
        if signed and not path.exists():
            say(
                f"{path} is missing, and {self.identity.name} has taken part in this run: it asks "
                f"{self.manifest.quorum} peers how far they are, and signs nothing that may contradict what it said"
            )
        self.identity.take_part(run)
        return Votes(path, run, complete=not signed)

    def _adopt(self, one: OnePeer) -> None:
        """Take the decided steps that the ledger lacks."""
        if one.start > len(self.log):
            raise BadInput(
                f"{self.folder / LEDGER} holds {one.start} steps and {self.folder / LOG} only {len(self.log)}: wait "
                "until other peers can be reached, which have the log, or remove the ledger"
            )
        self.learner = _coefficients(one)
        catch_up(self.log, self.rule, self.learner, start=one.start)

    def step(self, step: int) -> tuple[int, float | None]:
        """See `Part`."""
        known = step < len(self.log)
        step, _ = take_step(self.learner, self.transport, self.rule, step)
        loss = float(self.learner.losses[0])
        return step, None if known or not math.isfinite(loss) else loss

    def facts(self, step: int) -> dict[str, Any]:
        """See `Part`."""
        failed = self._failed(step)
        facts = self.transport.facts.get(step)
        if facts is None:  # fetched
            value = parse_value(self.log[step].value)
            heard = [row.sender for row in value.rows]
            left_out = sorted(set(range(self.group.peers)) - {*heard, *self.log.history.banned_at(step)})
            return {
                "heard": heard,
                "left_out": left_out,
                "late": [],
                "leader": value.proposer,
                "round": value.round,
                "failed": failed,
            }
        seconds = round(facts.seconds, 6) if math.isfinite(facts.seconds) else None
        return {
            "heard": list(facts.heard),
            "left_out": list(facts.left_out),
            "late": list(facts.late),
            "leader": facts.leader,
            "round": facts.round,
            "failed": failed,
            "agree_seconds": seconds,
        }

    def _failed(self, step: int) -> list[int]:
        """Return the leaders of the rounds of a step that decided nothing."""
        while self._past.step < step:
            self._past.append(self.log[self._past.step].value)
        return [self._past.leader(round) for round in range(parse_value(self.log[step].value).round)]

    def scores(self) -> list[float | None]:
        """See `Part`."""
        steps = range(max(0, len(self.log) - WINDOW), len(self.log))
        rows = np.full((len(steps), self.group.peers, self.group.width), np.nan, np.float32)
        for index, step in enumerate(steps):
            matrix, senders = rows_of(parse_value(self.log[step].value))
            rows[index, list(senders)] = matrix
        return [score if score is None or math.isfinite(score) else None for score in pair_scores(rows)]

    def new_bans(self) -> list[dict[str, Any]]:
        """See `Part`."""
        bans = self.log.history.bans[self._told :]
        self._told += len(bans)
        return [self._ban(step, peer) for step, peer in bans]

    def _ban(self, step: int, peer: int) -> dict[str, Any]:
        """Write the evidence of a ban, which the value before it holds."""
        for pair in parse_value(self.log[step - 1].value).evidence:
            head = parse_evidence(pair[0], self.group.run, self.group.peers, self.group.width)[0]
            if head.sender == peer:
                file = write_evidence(self.folder, self.manifest.names[peer], head.step, pair)
                return {"step": step, "peer": peer, "evidence": file, "what": WHAT[head.kind]}
        raise AssertionError("a ban without evidence")

    def banned(self) -> Mapping[int, int]:
        """See `Part`."""
        return {peer: step for step, peer in self.log.history.bans}

    def faults(self) -> Mapping[int, int]:
        """See `Part`; the agreement itself does not listen to who sends too many, either."""
        return self.agreement.faults

    def muted(self) -> frozenset[int]:
        """See `Part`."""
        return self.agreement.muted

    def weights_sha256(self) -> str:
        """See `Part`."""
        optimizer = self.learner.members[0].optimizer
        optimizer.flush()
        return weights_sha256((leaf.name, leaf.param) for leaf in optimizer.leaves)

    def digest(self) -> str:
        """See `Part`."""
        return self.log.history.digest.hex()

    def accuracy(self, rows: int | None) -> float | None:
        """See `Part`."""
        share = self.learner.accuracy(rows)[0]
        return float(share) if share is not None and math.isfinite(share) else None

    def put_ledger_aside(self) -> None:
        """See `Part`."""
        path = self.folder / LEDGER
        path.replace(path.with_name(f"{LEDGER}.differs"))

    def rebuild(self, one: OnePeer, step: int, stop: int) -> str:
        """See `Part`."""
        self.learner = _coefficients(one)
        replay(self.log, self.rule, self.learner, start=one.start, stop=step)
        sha256 = self.weights_sha256()
        replay(self.log, self.rule, self.learner, start=step, stop=stop)
        return sha256

    def close(self) -> None:
        """See `Part`."""
        self.transport.close()
        self.log.close()
        self.votes.close()


def _coefficients(one: OnePeer) -> CoefficientPeers:
    assert isinstance(one.learner, CoefficientPeers)
    return one.learner


def join(log: DecidedLog, ring: Ed25519Ring, link: Link) -> int:
    """Fetch decided steps from the peers that can be reached; return how many were new.

    Values are checked by the chain of their digests, and the newest certificate by its signatures, so any peer will do.
    Peers are asked in turn, so that one which answers late and little delays the others by one answer. A peer that
    sends something else, or fewer new steps a second than `LEAST_RATE`, is not asked again.

    Cost: 0.04 ms a step at n = 7.
    """
    length = len(log)
    asked = sorted(link.alive() - {link.me})
    while asked:
        asked = [peer for peer in asked if _helps(log, ring, link, peer)]
    return len(log) - length


def _helps(log: DecidedLog, ring: Ed25519Ring, link: Link, peer: int) -> bool:
    """Take over what a peer answers, and return whether another answer of it is worth the time."""
    begun = time.monotonic()
    records = link.fetch(peer, len(log))
    try:
        new = log.join(decisions(records, log.group), ring)
    except Malformed:
        return False
    return new > LEAST_RATE * (time.monotonic() - begun)


def decisions(records: list[bytes], group: Group) -> list[tuple[bytes, bytes]]:
    """Return the values and certificates in DECIDED messages.

    Raises:
        Malformed: another message is among them.
    """
    parsed = [parse(record, group.run, group.peers, group.width) for record in records]
    if not all(isinstance(message, Decided) for message in parsed):
        raise Malformed("no decided step")
    return [(message.value, message.certificate) for message in parsed if isinstance(message, Decided)]
