"""Attackers who have seen every honest row before they speak: only a simulated network has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import Attack, AttackContext, State
from gradless.collab.adversary.line_search import strongest
from gradless.collab.aggregation import threads
from gradless.collab.aggregation.base import Aggregator
from gradless.collab.network.exchange import Arrivals
from gradless.collab.network.neighbours import GraphNetwork, GraphRound
from gradless.collab.network.simulated import Round, SimulatedNetwork


class Omniscient:
    """A simulated network (`gradless.collab.network.exchange.Transport`) in which attackers answer last.

    They know the honest rows, who will hear whom, the rule, and its shuffle.

    Args:
        network: who hears whom.
        attack: what they send.
        rule: of the honest peers.
        poisoned: (step, tag) -> [1, D], what a peer with flipped labels would send; asked of attacks that want it.
    """

    def __init__(
        self,
        network: SimulatedNetwork | GraphNetwork,
        attack: Attack,
        rule: Aggregator,
        poisoned: Callable[[int, str], Tensor] | None = None,
    ) -> None:
        self.network, self.attack, self.rule, self.poisoned = network, attack, rule, poisoned
        self.states: dict[str, State] = {}
        """What the attack remembers of each kind of exchange."""

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """Deliver the rows [H, D] of honest peers, and what attackers make of them."""
        network = self.network
        flipped = self.poisoned(step, tag) if self.poisoned is not None and self.attack.flips else None
        with threads.small_operations():
            return self._answered(network.meet(step, tag, rows), step, tag, rows, flipped)

    def known(self, step: int, tag: str) -> None:
        """See `gradless.collab.network.exchange.Transport`."""

    def _answered(
        self, delivered: Round | GraphRound, step: int, tag: str, rows: Tensor, flipped: Tensor | None
    ) -> Arrivals:
        if not delivered.reached:
            return Arrivals(None, ())
        network = self.network
        context = AttackContext(rows, flipped, network.attackers, network.byzantine, step, network.seed)
        if isinstance(network, GraphNetwork):
            context = context._replace(leverage=network.leverage)
        key = rng.fold(network.seed, step)  # of rules that shuffle
        state = self.states[tag] if tag in self.states else self.attack.start()
        message = strongest(self.attack, context, self.rule, partial(delivered.received, rows), state, key=key)
        self.states[tag] = message.state
        received = delivered.received(rows, message.extras, message.coefficients)
        heard = delivered.senders()
        return Arrivals(received, delivered.reached, heard, gram=message.gram, strength=message.strength)
