"""What a log of decided values tells about its peers without anybody's data: scores, omissions, copies, trimmed shares.

None of this proves a lie. Unlike data look like lies, and liars who know what is counted can stay below it.

Shapes: T steps, n peers, K coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradless.collab.aggregation.pair_scores import WINDOW, pair_scores
from gradless.peers.history import Group, History, lost_rounds
from gradless.peers.history import rows as rows_of

FEWEST_LED: Final = 10
"""Values of a leader below which what it leaves out tells nothing."""


class Records(NamedTuple):
    """A log as arrays."""

    rows: np.ndarray
    """float32 [T, n, K]; NaN where a row is not in the value, or abstains."""
    present: np.ndarray
    """bool [T, n], whether the value holds a row of the peer."""
    leaders: tuple[int, ...]
    """Who proposed each value."""
    rounds: tuple[int, ...]
    """In which round; 0 if no leader failed before."""
    failed: dict[int, int]
    """Rounds that a leader lost, by leader."""
    digests: tuple[bytes, ...]
    banned: dict[int, int]
    """First step in which a convicted peer's messages count for nothing."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.digests)

    def banned_at(self, step: int) -> frozenset[int]:
        """Return the peers whose messages count for nothing in a step."""
        return frozenset(peer for peer, first in self.banned.items() if first <= step)


def records(values: Iterable[bytes], group: Group) -> Records:
    """Return decided values as arrays.

    Args:
        values: packed, by step.
        group: the run's constants.

    Raises:
        Malformed: the values are no history of this group.
    """
    history, rows, present, facts_of = History(group), [], [], []
    failed: dict[int, int] = {}
    for data in values:
        order = history.order
        value = history.append(data)
        for leader, lost in lost_rounds(order, value.round).items():
            failed[leader] = failed.get(leader, 0) + lost
        matrix, senders = rows_of(value)
        step = np.full((group.peers, group.width), np.nan, np.float32)
        step[list(senders)] = matrix
        rows.append(step)
        present.append([peer in history.present for peer in range(group.peers)])
        facts_of.append((value.proposer, value.round, history.digest))
    return Records(
        np.array(rows, np.float32).reshape(-1, group.peers, group.width),
        np.array(present, bool).reshape(-1, group.peers),
        tuple(leader for leader, _, _ in facts_of),
        tuple(round for _, round, _ in facts_of),
        failed,
        tuple(own for _, _, own in facts_of),
        {peer: step for step, peer in history.bans},
    )


def scores(log: Records, until: int | None = None, window: int | None = WINDOW) -> list[float | None]:
    """Return the score of every peer (`gradless.collab.aggregation.pair_scores`).

    Args:
        log: the records.
        until: steps that count; None: all.
        window: how many of them, the last ones; None: all.
    """
    end = log.steps if until is None else until
    first = 0 if window is None else max(0, end - window)
    return pair_scores(log.rows[first:end])


class PeerFacts(NamedTuple):
    """What the log tells about one peer."""

    peer: int
    heard: int
    """Steps whose value has a row of it."""
    abstained: int
    """Of them those in which its loss was not finite."""
    led: int
    """Values that it proposed."""
    failed: int
    """Rounds that it lost as a leader."""
    omitted: dict[int, int]
    """Steps without a row of it, by the leader who proposed the value; not those from its ban on."""
    trimmed: float | None
    """Share of its coefficients among the f lowest or f highest of their column."""
    expected: float | None
    """That share of a peer like all others: 2 f / n."""
    copies: dict[int, int]
    """Steps in which it sent the very coefficients of another peer, by that peer."""
    repeats: int
    """Steps in which it sent the very coefficients of an earlier step of its own."""
    zeros: int
    """Steps in which all its coefficients were 0."""
    score: float | None
    """Over all steps."""
    banned: int | None
    """First step in which its messages count for nothing."""


def facts(log: Records, byzantine: int) -> list[PeerFacts]:
    """Return what the log tells about every peer. Cost: n^2 T K additions.

    Args:
        log: the records.
        byzantine: f.
    """
    peers = log.rows.shape[1]
    own_scores = scores(log, window=None)
    trimmed = _trimmed(log, byzantine)
    copies, repeats = _copies(log)
    real = np.isfinite(log.rows).all(2)
    sizes = log.present.sum(1)
    usual = float(np.mean(2.0 * byzantine / sizes[sizes > 0])) if byzantine and bool((sizes > 0).any()) else None
    return [
        PeerFacts(
            peer,
            heard=int(log.present[:, peer].sum()),
            abstained=int((log.present[:, peer] & ~real[:, peer]).sum()),
            led=log.leaders.count(peer),
            failed=log.failed.get(peer, 0),
            omitted=_omitted(log, peer),
            trimmed=trimmed[peer],
            expected=usual,
            copies=copies[peer],
            repeats=repeats[peer],
            zeros=int((real[:, peer] & (log.rows[:, peer] == 0).all(1)).sum()),
            score=own_scores[peer],
            banned=log.banned.get(peer),
        )
        for peer in range(peers)
    ]


def _omitted(log: Records, peer: int) -> dict[int, int]:
    end = log.banned.get(peer, log.steps)
    leaders = [leader for leader, here in zip(log.leaders[:end], log.present[:end, peer], strict=True) if not here]
    return {leader: leaders.count(leader) for leader in sorted(set(leaders))}


def _trimmed(log: Records, byzantine: int) -> list[float | None]:
    """Share of each peer's coefficients that a trimmed mean would cut."""
    peers = log.rows.shape[1]
    cut, sent = np.zeros(peers), np.zeros(peers)
    for step in range(log.steps if byzantine else 0):
        here = np.flatnonzero(np.isfinite(log.rows[step]).all(1))
        if len(here) <= 2 * byzantine:
            continue
        ranks = log.rows[step, here].argsort(0, kind="stable").argsort(0, kind="stable")
        cut[here] += ((ranks < byzantine) | (ranks >= len(here) - byzantine)).sum(1)
        sent[here] += log.rows.shape[2]
    return [float(cut[peer] / sent[peer]) if sent[peer] else None for peer in range(peers)]


def _copies(log: Records) -> tuple[list[dict[int, int]], list[int]]:
    """For each peer, steps in which it sent another's bytes, by that peer, and in which it sent its own again.

    Rows of zeros are counted elsewhere. Who copied whom, bytes cannot tell.
    """
    peers = log.rows.shape[1]
    copies: list[dict[int, int]] = [{} for _ in range(peers)]
    repeats = [0] * peers
    earlier: list[set[bytes]] = [set() for _ in range(peers)]
    for step in range(log.steps):
        sent = {
            peer: log.rows[step, peer].tobytes()
            for peer in range(peers)
            if np.isfinite(log.rows[step, peer]).all() and log.rows[step, peer].any()
        }
        for peer, own in sent.items():
            repeats[peer] += own in earlier[peer]
            earlier[peer].add(own)
            for other, theirs in sent.items():
                if other != peer and theirs == own:
                    copies[peer][other] = copies[peer].get(other, 0) + 1
    return copies, repeats


def suspicious(one: PeerFacts, names: Sequence[str]) -> list[str]:
    """Return what about a peer asks for a second look, as ends of sentences that begin with its name."""
    remarks = []
    if one.banned is not None:
        remarks.append(f"is banned from step {one.banned}: it signed two messages where an honest peer signs one")
    if one.score is not None and one.score < -3:
        usual = "honest peers have -1 to 2 with like data, down to -5 with unlike data"
        remarks.append(f"disagrees with most others (score {one.score:.1f}; {usual})")
    if one.trimmed is not None and one.expected and one.heard >= 30 and one.trimmed > min(0.95, 1.6 * one.expected):
        remarks.append(f"is among the extremes in {one.trimmed:.0%} of its coefficients ({one.expected:.0%} are usual)")
    for other, steps in one.copies.items():
        if other < one.peer:
            remarks.append(f"sent the very row of {names[other]} in {steps} step{'s' if steps > 1 else ''}")
    if one.repeats:
        remarks.append(f"sent a row of an earlier step again, {one.repeats} times")
    if one.zeros:
        remarks.append(f"sent rows of zeros in {one.zeros} step{'s' if one.zeros > 1 else ''}")
    return remarks


def omitting(some: Sequence[PeerFacts]) -> list[tuple[int, int, int]]:
    """Return (leader, peer, values) where a leader left a peer out far more often than all others did.

    A slow peer is missing under every leader; one that is missing under one alone was in time for the others.
    """
    led = {one.peer: one.led for one in some}
    omissions = []
    for one in some:
        for leader, count in one.omitted.items():
            elsewhere, others = sum(one.omitted.values()) - count, sum(led.values()) - led[leader]
            if (
                led[leader] >= FEWEST_LED
                and others >= FEWEST_LED
                and count / led[leader] > 0.2 + 3 * elsewhere / others
            ):
                omissions.append((leader, one.peer, count))
    return omissions


def remarks(some: Sequence[PeerFacts], names: Sequence[str]) -> list[str]:
    """Return what asks for a second look, as sentences without a full stop."""
    told = [f"{names[one.peer]} {text}" for one in some for text in suspicious(one, names)]
    led = {one.peer: one.led for one in some}
    return told + [
        f"{names[leader]} left {names[peer]} out of {count} of its {led[leader]} values, which the others hardly did"
        for leader, peer, count in omitting(some)
    ]
