"""What the simulated network does with messages: the settings, known without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from gradless.errors import BadInput
from gradless.system import typed
from gradless.system.typed import Amount, Flag, Names, Positive

MODES: Final = {
    "all": "synchronous: every message arrives before anybody goes on",
    "first": "asynchronous: a peer goes on with the first messages that arrive; attackers are always in time",
    "adversarial": "asynchronous, and the adversary chooses whom each peer hears: those on its side of the group",
}
ALL, FIRST, ADVERSARIAL = MODES


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """What the simulated network does with messages."""

    mode: Annotated[str, Names("delivery", "collab.network.delivery:MODES"), Flag("--delivery")] = ALL
    """all, first or adversarial: who hears whom."""
    wait_for: int | None = None
    """Rows with which a peer goes on.

    Its own is among them (``first``, ``adversarial``); None: n - f."""
    drop: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Probability that a message is lost.

    It is one of an honest peer to another."""
    slow: Amount = 0
    """So many honest peers are late.

    They are the last ones, and send later than the others."""
    slowness: Annotated[float, Meta(ge=1)] = 10.0
    """How many times later they are.

    The factor is one of mean latencies."""
    deadline: Positive | None = None
    """Latest arrival, in mean latencies.

    The latency is one of a peer that is not slow; None: peers wait for ever."""

    def check(self, peers: int, byzantine: int, attackers: int | None = None) -> None:
        """Refuse numbers that mean nothing.

        Args:
            peers: n.
            byzantine: f, declared.
            attackers: b, actual; None: f.

        Raises:
            BadInput: with the fix.
        """
        typed.check(self)
        honest = peers - (byzantine if attackers is None else attackers)
        if self.slow > honest:
            raise BadInput(f"slow is {self.slow}: at most the {honest} honest peers can be slow")
        if self.wait_for is not None and not byzantine < self.wait_for <= peers:
            raise BadInput(
                f"wait_for is {self.wait_for}: with {byzantine} of {peers} peers Byzantine wait for more than "
                f"{byzantine} and at most {peers} rows"
            )
