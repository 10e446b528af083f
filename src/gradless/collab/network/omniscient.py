"""Attackers who have seen every honest row before they speak: only a simulated network has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import Attack, AttackContext, State
from gradless.collab.adversary.line_search import ViewsOf, strongest
from gradless.collab.aggregation import threads
from gradless.collab.aggregation.base import Aggregator
from gradless.collab.aggregation.receivers import Received
from gradless.collab.network.exchange import Arrivals
from gradless.collab.network.neighbours import GraphNetwork, GraphRound
from gradless.collab.network.simulated import Round, SimulatedNetwork


class Omniscient:
    """A simulated network (`gradless.collab.network.exchange.Transport`) in which attackers answer last.

    They know the honest rows, who will hear whom, the rule, its shuffle, and whose rows it leaves out.

    Args:
        network: who hears whom.
        attack: what they send.
        rule: of the honest peers.
        poisoned: (step, tag) -> [1, D], what a peer with flipped labels would send; asked of attacks that want it.
        narrowed: () -> (rule, peers), the rule of the next exchange and the peers whose rows it takes, ascending, where
            it looks back at earlier ones; everybody hears everybody there. None: ``rule``, and all rows that arrive.
    """

    def __init__(
        self,
        network: SimulatedNetwork | GraphNetwork,
        attack: Attack,
        rule: Aggregator,
        poisoned: Callable[[int, str], Tensor] | None = None,
        narrowed: Callable[[], tuple[Aggregator, Sequence[int]]] | None = None,
    ) -> None:
        self.network, self.attack, self.rule, self.poisoned, self.narrowed = network, attack, rule, poisoned, narrowed
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
        rule, views_of = self.rule, partial(delivered.received, rows)
        if self.narrowed is not None and self.attack.strength is None:  # scores are for a search alone
            rule, peers = self.narrowed()
            views_of = partial(_of_peers, peers, views_of)
        message = strongest(self.attack, context, rule, views_of, state, key=key)
        self.states[tag] = message.state
        received = delivered.received(rows, message.extras, message.coefficients)
        heard = delivered.senders()
        return Arrivals(received, delivered.reached, heard, gram=message.gram, strength=message.strength)


def _of_peers(peers: Sequence[int], views_of: ViewsOf, extras: Tensor, sent: Tensor) -> Received:
    """Return what was received of some peers alone, for a rule that does not ask which row is the receiver's own."""
    received = views_of(extras, sent)
    views = tuple(view[list(peers)] for view in received.views)
    return received._replace(views=views, pivots=(0,) * len(received.pivots))
