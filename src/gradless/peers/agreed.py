"""Coefficients over a network: every peer gets the same decided rows, step for step.

The agreement runs in a thread of its own, which answers messages and timers while the model computes: a peer that is
slow to probe is never slow to vote.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregation.receivers import Received
from gradless.collab.algorithms import COEFFICIENTS
from gradless.collab.learners.coefficients import CoefficientPeers
from gradless.collab.learners.loop import Settle
from gradless.collab.network.exchange import Arrivals
from gradless.errors import BadInput
from gradless.peers.agreement import Agreement, Outgoing
from gradless.peers.history import rows as rows_of
from gradless.peers.link import Link
from gradless.peers.log import DecidedLog
from gradless.peers.mixing import AgreedRule, updates_of
from gradless.peers.schema import LAST_ROUND, parse_value, value_rows
from gradless.peers.wire import pack_decided

TICK: Final = 0.01  # seconds between two looks at the timers
AGAIN: Final = 0.5  # seconds after which a row is offered again
KEPT: Final = 1024  # newest steps of which `Agreed.facts` are kept
AT_ONCE: Final = 4096  # decided steps that are mixed at once


class Facts(NamedTuple):
    """How a step was decided, as one peer saw it."""

    heard: tuple[int, ...]
    """Senders of the rows of the value, abstaining ones too."""
    left_out: tuple[int, ...]
    """Peers of which no row was in it and which are not banned."""
    late: tuple[int, ...]
    """Of these, those whose row had not come here when the step was decided."""
    leader: int
    """Who proposed it."""
    round: int
    """In which it was first proposed."""
    seconds: float
    """From this peer's signed row to the decision; NaN without one."""


class Liar(Protocol):
    """What becomes of a peer's words: a hook that only liars have (`gradless.peers.liars`)."""

    def row(self, coefficients: Sequence[float]) -> Sequence[float]:
        """Return the coefficients that the peer claims."""

    def messages(self, messages: Iterable[Outgoing]) -> list[Outgoing]:
        """Return what the peer sends in place of these messages."""


class Agreed:
    """The `gradless.collab.network.exchange.Transport` of one peer that agrees on coefficients over a link.

    An exchange ends when its step is decided, perhaps without this peer's own row. It waits for as long as the group
    stands still.

    Args:
        link: to the others; it stays open.
        agreement: of this peer, at the step where its log ends.
        log: that agreement's decided values.
        clock: seconds, as the agreement was told at its beginning.
        liar: what it says in place of the truth.
    """

    def __init__(
        self,
        link: Link,
        agreement: Agreement,
        log: DecidedLog,
        *,
        clock: Callable[[], float] = time.monotonic,
        liar: Liar | None = None,
    ) -> None:
        self.link, self.agreement, self.log, self.clock, self.liar = link, agreement, log, clock, liar
        self.facts: dict[int, Facts] = {}
        """Of the newest steps, by step."""
        self.failure: BaseException | None = None
        """What ended the agreement's thread."""
        self._changed = threading.Condition()
        self._signed: dict[int, float] = {}  # when the row of a step was signed
        self._stopped = False
        link.serve(self._answer)
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"peer {link.me} agrees")
        self._thread.start()

    def known(self, step: int, tag: str) -> Arrivals | None:
        """Return a step that was decided already; see `gradless.collab.network.exchange.Transport`."""
        with self._changed:
            return self._arrivals(step) if step < len(self.log) else None

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """Offer a row [1, K] and return the decided ones; a row that is not finite abstains.

        Raises:
            BadInput: another kind of exchange, the transport was closed, or votes could not be written.
        """
        if tag != COEFFICIENTS:
            raise BadInput(f"peers agree on coefficients, not on {tag}: leave sync out, or exchange parameters alone")
        row = [float(number) for number in rows[0].tolist()]
        again = -math.inf
        while True:
            with self._changed:
                if step < len(self.log):
                    return self._arrivals(step)
                self._check()
                if self.agreement.step != step or self.clock() < again:
                    self._changed.wait(AGAIN)
                    continue
                outgoing = self._offer(step, row)
                again = self.clock() + AGAIN  # an agreement that is silent for now takes no row
            self._send(outgoing)

    def close(self) -> None:
        """End the thread; the link and the log stay open."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    # -----------------------------------------------------------------------------------------------------------

    def _offer(self, step: int, row: Sequence[float]) -> list[Outgoing]:
        now = self.clock()
        abstain = not all(map(math.isfinite, row))
        claimed = row if self.liar is None or abstain else self.liar.row(row)
        self.agreement.row(step, [0.0] * len(row) if abstain else claimed, now, abstain=abstain)
        self._signed.setdefault(step, now)
        return self._collected()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.agreement.exhausted:
            raise BadInput(
                f"step {self.agreement.step} was not decided in {LAST_ROUND + 1:,} rounds, and messages can name no "
                "later one: run again in case another peer has decided it, or begin a new run with the weights of "
                "'gradless replay RUN --save DIR'"
            )
        if self._stopped:
            raise BadInput("the connection to the group was closed: run again to go on")

    def _run(self) -> None:
        try:
            while not self._stopped:
                message = self.link.receive(TICK)
                with self._changed:
                    now = self.clock()
                    if message is not None:
                        self.agreement.handle(message[1], now, sent_by=message[0])
                    self.agreement.tick(now)
                    outgoing = self._collected()
                self._send(outgoing)
        except BaseException as error:  # told to the thread that waits
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def _collected(self) -> list[Outgoing]:
        """Take what the agreement has to send and has decided; the caller holds the lock."""
        decisions = self.agreement.take_decisions()
        for decision in decisions:
            self.facts[decision.step] = self._told(decision.step, decision.value)
            self.facts.pop(decision.step - KEPT, None)
        if decisions:
            self._changed.notify_all()
        messages = self.agreement.take_outbox()
        return messages if self.liar is None else self.liar.messages(messages)

    def _send(self, messages: Iterable[Outgoing]) -> None:
        for message in messages:
            self.link.send(message.data, message.to)

    def _told(self, step: int, data: bytes) -> Facts:
        value = parse_value(data)
        heard = tuple(row.sender for row in value.rows)
        missing = set(range(self.link.peers)) - set(heard) - self.log.history.banned_at(step)
        signed = self._signed.pop(step, math.nan)
        late = missing - self.agreement.in_time.get(step, frozenset())
        return Facts(
            heard, tuple(sorted(missing)), tuple(sorted(late)), value.proposer, value.round, self.clock() - signed
        )

    def _arrivals(self, step: int) -> Arrivals:
        return arrivals_of(self.log, step)

    def _answer(self, since: int) -> list[bytes]:
        """Answer a peer that joins: decided steps, as many as one answer holds.

        Without the lock, so that no question delays a vote: the log counts a step once it is written, and only grows.
        """
        run, me = self.log.group.run, self.link.me
        return [pack_decided(run, me, *decision) for decision in self.log.since(since)]


def arrivals_of(log: DecidedLog, step: int) -> Arrivals:
    """Return what every peer gets in a decided step: the rows that do not abstain, and who was banned before."""
    rows, senders = rows_of(parse_value(log[step].value))
    basis = torch.from_numpy(rows)
    received = Received((basis,), (torch.eye(len(basis), dtype=torch.float64),), (0,))
    return Arrivals(received, (0,), (senders,), banned=log.history.banned_at(step))


def catch_up(log: DecidedLog, rule: Settle, learner: CoefficientPeers, *, start: int) -> int:
    """Take all decided steps from ``start`` on at once, in the learner's weights and its ledger.

    Args:
        log: the decided steps.
        rule: of the run.
        learner: its weights are those of step ``start``.
        start: the first step that they have not taken.

    Returns:
        The number of decided steps.

    Cost: that of `mixed_steps` and one replay (`gradless.ZerothOrder.replay`); no forward pass.
    """
    replay(log, rule, learner, start=start, stop=len(log))
    return len(log)


def replay(log: DecidedLog, rule: Settle, learner: CoefficientPeers, *, start: int, stop: int) -> None:
    """Take decided steps ``start`` to ``stop``, exclusive, as `catch_up` does."""
    mixed = mixed_steps(log, rule, start, stop)
    learner.replay(list(updates_of(mixed, learner.members[0].optimizer, start=start)))


def mixed_steps(log: DecidedLog, rule: Settle, start: int, stop: int) -> Iterator[Sequence[float]]:
    """Yield the mixed coefficients of decided steps, K numbers each.

    Cost: per step about 0.02 ms at n = 7 and K = 4 for a rule that looks at one step alone; one with memory goes step
    by step, for the cost of its scores.
    """
    if not isinstance(rule, AgreedRule):
        for step in range(start, stop):
            yield rule(arrivals_of(log, step), None, step)[0].tolist()
        return
    for first in range(start, stop, AT_ONCE):
        steps = range(first, min(first + AT_ONCE, stop))
        rows = np.full((len(steps), log.group.peers, log.group.width), np.nan, np.float32)
        for row, value in zip(rows, log.values(steps.start, steps.stop), strict=True):
            coefficients, senders = value_rows(value)
            row[senders] = coefficients
        yield from rule.mix_steps(rows, [len(log.history.banned_at(step)) for step in steps]).tolist()
