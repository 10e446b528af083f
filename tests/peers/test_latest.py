"""Parameters over a network: the first n - f models, echoes of digests, peers that come late or come back."""

from __future__ import annotations

import dataclasses
import threading
import time
from functools import partial

import pytest
import torch

from gradless.collab.aggregators import named
from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.loop import take_steps
from gradless.collab.learners.parameters import Local, ParameterPeers
from gradless.collab.learners.side_by_side import SideBySide
from gradless.collab.network.exchange import Recorded, settle_alone
from gradless.collab.network.simulated import ReplayedNetwork
from gradless.collab.recipes import RECIPES
from gradless.collab.simulation.build import mixing_rule
from gradless.errors import BadInput
from gradless.peers.latest import Latest, settle_with
from gradless.peers.link import Link, LocalGroup
from gradless.peers.schema import HEAD, Malformed
from gradless.peers.signing import Ring, hash_rings
from gradless.peers.vectors import MODEL_SIZE, Format
from peer_groups import RUN, in_threads

WIDTH = 6
LOCAL = Local(lr=lambda step: 0.3, momentum=0.9, weight_decay=0.0, batch_size=1)


class Pull:
    """A workload whose gradient pulls the model towards a target."""

    def __init__(self, peer: int) -> None:
        self.peers, self.dimension = 1, WIDTH
        self.target = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(peer))

    def start(self):
        return torch.zeros(1, WIDTH)

    def gradients(self, theta, step):
        return theta - self.target, (theta - self.target).square().sum(1)


class Peers:
    """A group on one link group; each peer's transport is closed at the end."""

    def __init__(self, count: int, byzantine: int, *, width: int = WIDTH, echo: bool = True, **options) -> None:
        self.group, self.rings = LocalGroup(count, **options), hash_rings(count)
        self.byzantine, self.width, self.echo = byzantine, width, echo
        self.open: list[Latest] = []

    def transport(self, me: int) -> Latest:
        own = Latest(
            *(self.group.link(me), self.rings[me]),
            **{"run": RUN, "width": self.width, "byzantine": self.byzantine, "echo": self.echo},
        )
        self.open.append(own)
        return own

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error: object) -> None:
        for transport in self.open:
            transport.close()


def check_replay(links: list[Link], rings: list[Ring], steps: int) -> None:
    """Mix models over links, then let the simulated transport repeat who was heard: equal weights."""
    count = len(links)
    config = dataclasses.replace(RECIPES["monna-digits"].base, attack="none", peers=count, byzantine=1, steps=steps)
    rule = mixing_rule(config)
    learners = [one_peer(config, me).learner for me in range(count)]
    width = learners[0].theta.shape[1]
    transports = [Latest(links[me], rings[me], run=RUN, width=width, byzantine=1) for me in range(count)]
    try:
        recorded = [Recorded(transport) for transport in transports]
        settle = settle_with(rule, config.seed)
        together = threading.Barrier(count)  # else a slow one may be left two steps behind

        def watch(*seen: object) -> bool:
            return together.wait(120.0) >= 0

        work = [partial(take_steps, learners[me], recorded[me], settle, steps, watch=watch) for me in range(count)]
        assert in_threads(work) == [steps] * count
    finally:
        for transport in transports:
            transport.close()
    ears = {key: [one.heard[key] for one in recorded] for key in recorded[0].heard}
    assert all(len(own) >= count - 1 for row in ears.values() for own in row)
    again = SideBySide([one_peer(config, me).learner for me in range(count)])
    take_steps(again, ReplayedNetwork(ears), lambda got, rows, step: settle_alone(rule, got, rows), steps)
    for peer, learner in zip(again.peers, learners, strict=True):
        assert torch.equal(peer.theta, learner.theta)


def test_recorded_arrivals_give_a_simulation_the_weights_of_the_network():
    check_replay(LocalGroup(6, seed=4, delay=0.003).links(), hash_rings(6), 12)


@pytest.mark.sweep
def test_recorded_arrivals_give_a_simulation_the_weights_of_zenoh_peers(tmp_path):
    pytest.importorskip("zenoh")
    from gradless.peers.part import ring_of
    from gradless.peers.zenoh_link import ZenohLink
    from peers_helpers import identities, manifest_of

    group = identities(tmp_path)
    manifest = manifest_of(group, f=1)
    links = [ZenohLink(manifest, identity, limit=1 << 22) for identity in group]
    try:
        end = time.monotonic() + 60
        while any(len(link.alive()) < 4 for link in links) and time.monotonic() < end:
            time.sleep(0.05)
        check_replay(links, [ring_of(manifest, identity) for identity in group], 8)
    finally:
        for link in links:
            link.close()


def test_a_group_goes_on_without_a_dead_peer_and_takes_it_back():
    with Peers(4, 1) as peers:
        learners = [ParameterPeers(Pull(me), LOCAL) for me in range(4)]
        settle, transports = settle_with(named("trimmed-mean", f=0), 0), [peers.transport(me) for me in range(4)]
        assert in_threads([lambda me=me: take_steps(learners[me], transports[me], settle, 3) for me in range(4)])
        transports[3].close()  # dies with all it knew
        peers.group.link(3).close()
        in_threads([lambda me=me: take_steps(learners[me], transports[me], settle, 9, start=3) for me in range(3)])
        back = peers.transport(3)
        newest = back.rejoin()
        assert newest is not None
        step, theta = newest
        assert step == 8
        own = torch.stack([learner.theta[0] for learner in learners[:3]])
        assert bool((theta >= own.min(0).values - 1).all() and (theta <= own.max(0).values + 1).all())
        learners[3] = ParameterPeers(Pull(3), LOCAL)
        learners[3].adopt(theta[None])
        transports[3] = back
        in_threads([lambda me=me: take_steps(learners[me], transports[me], settle, 14, start=9) for me in range(4)])
        spread = torch.cat([learner.theta for learner in learners]).std(0).max()
        assert float(spread) < 1.0


def test_a_peer_that_was_left_behind_goes_on_where_the_group_is(monkeypatch):
    monkeypatch.setattr("gradless.peers.latest.RESEND", 0.1)
    with Peers(4, 1) as peers:
        learners = [ParameterPeers(Pull(me), LOCAL) for me in range(4)]
        settle, transports = settle_with(named("median"), 0), [peers.transport(me) for me in range(4)]
        peers.group.part(3)  # its messages and theirs are lost
        in_threads([lambda me=me: take_steps(learners[me], transports[me], settle, 6) for me in range(3)])
        peers.group.part()

        def late() -> int:
            return take_steps(learners[3], transports[3], settle, 12)

        work = [lambda me=me: take_steps(learners[me], transports[me], settle, 12, start=6) for me in range(3)]
        assert in_threads([late, *work]) == [12] * 4
        assert transports[3].counts["overtaken"] >= 1


def test_of_an_equivocators_vectors_one_counts_at_most_and_two_are_evidence():
    """Control: without echoes both of its vectors are believed."""
    believed = {}
    for echo in (True, False):
        with Peers(4, 1, echo=echo) as peers:
            form, ring, liar = Format(RUN, 4, WIDTH), peers.rings[3], peers.group.link(3)
            transports = [peers.transport(me) for me in range(3)]
            for peer in range(3):
                lie = form.model(ring, 3, (0, 0), torch.full((WIDTH,), float(peer % 2)))
                liar.send(lie.data, to=peer)
            time.sleep(0.2)  # the lies are there before the others' models
            work = [partial(one.exchange, 0, "parameters", torch.zeros(1, WIDTH)) for one in transports]
            believed[echo] = {
                float(arrivals.received.basis[0][arrivals.heard[0].index(3), 0])
                for arrivals in in_threads(work)
                if 3 in arrivals.heard[0]
            }
            if echo:  # one peer hears both
                liar.send(form.model(ring, 3, (0, 0), torch.full((WIDTH,), 5.0)).data, to=0)
                end = time.monotonic() + 10
                while 3 not in transports[0].evidence and time.monotonic() < end:
                    time.sleep(0.01)
                first, second = (form.parse(data, ring) for data in transports[0].evidence[3])
                assert first.digest != second.digest
    assert believed[True] <= {0.0}  # two honest peers and the liar are a quorum for it, one and the liar are none
    assert believed[False] == {0.0, 1.0}


def test_lost_messages_are_said_again(monkeypatch):
    monkeypatch.setattr("gradless.peers.latest.RESEND", 0.1)
    with Peers(4, 1, seed=1, loss=0.3) as peers:
        learners = [ParameterPeers(Pull(me), LOCAL) for me in range(4)]
        settle, transports = settle_with(named("median"), 0), [peers.transport(me) for me in range(4)]
        work = [lambda me=me: take_steps(learners[me], transports[me], settle, 8) for me in range(3)]
        assert in_threads(work) == [8] * 3  # with one dead peer all three others are needed in each step


def test_rubbish_is_counted_and_changes_nothing():
    with Peers(4, 1) as peers:
        transport, others = peers.transport(0), [peers.group.link(me) for me in (1, 2, 3)]
        form = Format(RUN, 4, WIDTH)
        good = form.model(peers.rings[1], 1, (0, 0), torch.ones(WIDTH)).data
        echo = form.echo(peers.rings[1], 1, (0, 0), {0: bytes(32), 2: bytes(32)})
        flipped = bytes([good[MODEL_SIZE - 1] ^ 1])
        wrong = {
            "nothing": b"",
            "short": good[:-1],
            "long": good + b"\0",
            "signature": good[: MODEL_SIZE - 1] + flipped + good[MODEL_SIZE:],
            "vector": good[:-4] + b"abcd",
            "version": bytes([2]) + good[1:],
            "run": good[:2] + bytes(16) + good[18:],
            "short echo": echo[:-1],
            "echo of nothing": echo[: HEAD.size] + echo[-64:],
            "long ask": form.ask(1, (0, 0)) + b"\0",
        }
        for what, data in wrong.items():
            with pytest.raises(Malformed):
                pytest.fail(f"{what}: {form.parse(data, peers.rings[0])}")
            others[0].send(data, to=0)
        others[1].send(good, to=0)  # signed by another one
        far = form.model(peers.rings[1], 1, (7, 0), torch.ones(WIDTH)).data
        other_tag = form.model(peers.rings[1], 1, (0, 9), torch.ones(WIDTH)).data
        others[0].send(far, to=0)
        others[0].send(other_tag, to=0)
        end = time.monotonic() + 10
        while transport.counts.total() < len(wrong) + 3 and time.monotonic() < end:
            time.sleep(0.01)
        assert transport.counts == {"malformed": len(wrong) + 1, "early": 2}
        assert not transport._gatherings


def test_a_third_vector_of_one_exchange_is_a_fault_and_the_first_two_are_hashed_once(monkeypatch):
    """A peer that starts again in a step may send another vector; who sends many costs a hash of each."""
    with Peers(4, 1) as peers:
        transport = peers.transport(0)
        form = Format(RUN, 4, WIDTH)
        vectors = [form.model(peers.rings[1], 1, (0, 0), torch.full((1, WIDTH), float(n))).data for n in range(6)]
        transport.close()  # what comes is taken by hand
        parsed: list[bytes] = []
        parse = Format.parse
        monkeypatch.setattr(Format, "parse", lambda form, data, ring: parsed.append(data) or parse(form, data, ring))
        for data in (vectors[0], vectors[1], *vectors[:2] * 30):
            transport._take(1, data)
        assert parsed == vectors[:2]
        assert transport.evidence == {1: (vectors[0], vectors[1])}
        assert not transport.faults
        for data in vectors[2:]:
            transport._take(1, data)
        assert transport.faults == {1: 4}
        assert transport._gatherings[0, 0].unsaid == {1}


def test_a_link_takes_no_message_longer_than_a_vector():
    with Peers(4, 1) as peers:
        transport, other = peers.transport(0), peers.group.link(1)
        other.send(bytes(transport.format.largest() + 1), to=0)
        other.send(bytes(transport.format.largest()), to=0)
        end = time.monotonic() + 10
        while not transport.counts and time.monotonic() < end:
            time.sleep(0.01)
        assert transport.counts == {"malformed": 1}


def test_echoes_among_too_many_liars_and_a_closed_transport_say_so():
    with Peers(6, 2) as peers, pytest.raises(BadInput, match="n > 3 f"):
        peers.transport(0)
    with Peers(4, 1) as peers:
        transport = peers.transport(0)
        assert transport.rejoin() is None
        transport.close()
        with pytest.raises(BadInput, match="was closed"):
            transport.exchange(0, "parameters", torch.zeros(1, WIDTH))
