"""Who hears whom: late, lost and chosen messages, and rows that do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gradless.collab.aggregation.base import aggregate
from gradless.collab.aggregators import krum, nna, trimmed_mean
from gradless.collab.network.delivery import Delivery
from gradless.collab.network.exchange import gather, mixed
from gradless.collab.network.simulated import meet
from gradless.errors import BadInput

KEY = (0, 0, "parameters")


def rows(count: int = 8, columns: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


def met(delivery: Delivery, honest: torch.Tensor, attackers: int = 2, byzantine: int = 2, key=KEY):
    peers = len(honest) + attackers
    return meet(delivery, peers=peers, byzantine=byzantine, attackers=attackers, key=key, honest=honest)


def test_synchronous_rounds_bring_everything_to_everybody():
    honest, extras = rows(), rows(1, seed=1)
    sent = torch.zeros(1, 2, 9, dtype=torch.float64)
    sent[..., 8] = 1.0
    room = met(Delivery(), honest)
    assert room.reached == tuple(range(8))
    received = room.received(honest, extras, sent)
    assert len(received.views) == 1
    assert received.views[0].shape == (10, 9)
    assert received.pivots == tuple(range(8))
    assert torch.equal(received.views[0][-1], torch.eye(9, dtype=torch.float64)[8])


def test_equivocation_gives_each_receiver_its_own_rows():
    honest = rows()
    sent = torch.zeros(8, 2, 8, dtype=torch.float64)
    sent[torch.arange(8), :, torch.arange(8)] = 2.0
    received = met(Delivery(), honest).received(honest, honest[:0], sent)
    assert len(received.views) == 8
    for receiver in range(8):
        assert torch.equal(received.views[receiver][-1], 2.0 * torch.eye(8, dtype=torch.float64)[receiver])


def test_a_peer_goes_on_with_the_first_n_minus_f_rows():
    honest = rows()
    room = met(Delivery(mode="first"), honest)
    for peer, ears in zip(room.reached, room.heard, strict=True):
        assert len(ears) == 8 - 2  # n - f = 8 rows, both attackers always among them
        assert peer in ears.tolist()
    assert len({tuple(ears.tolist()) for ears in room.heard}) > 1
    assert [e.tolist() for e in met(Delivery(mode="first"), honest).heard] == [e.tolist() for e in room.heard]
    assert [e.tolist() for e in met(Delivery(mode="first"), honest, key=(0, 1, "x")).heard] != [
        e.tolist() for e in room.heard
    ]


def test_every_peer_is_heard_equally_often_and_slow_ones_seldom():
    honest = rows()
    counts, slow = torch.zeros(8), torch.zeros(8)
    for step in range(300):
        for ears in met(Delivery(mode="first"), honest, key=(0, step, "")).heard:
            counts[ears] += 1
        for ears in met(Delivery(mode="first", slow=2), honest, key=(0, step, "")).heard:
            slow[ears] += 1
    # Own rows always, and 5 of the 7 others: 1 + 7 * 5 / 7 = 6 of 8 receivers on average.
    assert (counts / 300 - 6).abs().max() < 0.25
    assert slow[6:].max() < 0.6 * slow[:6].min()


def test_an_adversary_lets_peers_hear_their_own_side():
    honest = torch.cat([torch.zeros(4, 3), torch.ones(4, 3)]) + 0.01 * rows(8, 3)
    room = met(Delivery(mode="adversarial", wait_for=6), honest)
    for peer, ears in zip(room.reached, room.heard, strict=True):
        assert set(ears.tolist()) == ({0, 1, 2, 3} if peer < 4 else {4, 5, 6, 7})


def test_lost_messages_leave_some_peers_alone_but_never_without_themselves():
    honest = rows(12)
    alone = heard = 0
    for step in range(200):
        room = met(Delivery(drop=0.3), honest, key=(0, step, ""))
        alone += 12 - len(room.reached)
        for peer, ears in zip(room.reached, room.heard, strict=True):
            assert peer in ears.tolist()
            assert len(ears) + 2 >= 14 - 2
            heard += len(ears)
    assert alone > 0
    assert heard / (200 * 12 - alone) < 12


def test_a_deadline_cuts_late_messages():
    honest = rows(20)
    room = met(Delivery(deadline=0.05), honest)
    assert room.reached == ()
    received = met(Delivery(deadline=50.0), honest).received(
        honest, honest[:0], torch.zeros(1, 2, 20, dtype=torch.float64)
    )
    assert [len(view) for view in received.views] == [22] * 20


def test_lost_is_lost_however_long_one_waits():
    honest = rows(30)
    room = meet(Delivery(drop=0.5), peers=30, byzantine=20, attackers=0, key=KEY, honest=honest)
    assert room.reached
    assert all(len(ears) < 30 for ears in room.heard)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mode": "later"}, "unknown delivery 'later'"),
        ({"drop": 1.0}, "drop is 1.0"),
        ({"slow": 99}, "at most the 8 honest peers"),
        ({"slowness": 0.5}, "slowness is 0.5"),
        ({"deadline": 0.0}, "deadline is 0.0"),
        ({"wait_for": 2}, "wait for more than 2"),
        ({"wait_for": 11}, "at most 10"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(change, match):
    with pytest.raises(BadInput, match=match):
        dataclasses.replace(Delivery(), **change).check(10, 2)


def test_rows_that_do_not_fit_are_left_out():
    own = torch.tensor([1.0, 2.0])
    messages = {
        0: torch.tensor([3.0, 4.0]),
        1: torch.zeros(3),  # another shape
        2: torch.zeros(2, dtype=torch.float64),  # another type
        3: "no tensor",
        4: torch.tensor([9.0, 9.0]),  # claims to be this peer
        7: torch.tensor([float("nan"), 0.0]),  # a value like any other: the rule deals with it
    }
    received = gather(messages, own, 4)
    assert received.basis[0].shape == (3, 2)
    assert received.pivots == (1,)
    assert torch.equal(received.basis[0][1], own)


def test_peers_that_agree_hear_themselves_whatever_the_adversary_chooses():
    honest = rows(1).repeat(10, 1)
    for key in ((0, 0, "a"), (0, 0, "b")):  # two rounds of one step
        room = met(Delivery(mode="adversarial"), honest, key=key)
        assert room.reached == tuple(range(10))
        for peer, ears in zip(room.reached, room.heard, strict=True):
            assert peer in ears.tolist()
        received = room.received(honest, honest[:0], torch.eye(10, dtype=torch.float64)[None, :2])
        honest = aggregate(krum(f=2), received)
    assert torch.equal(honest, rows(1).expand(10, -1))


def test_more_attackers_than_declared_leave_fewer_peers_to_be_slow():
    honest = rows(5)
    by_adversary = met(Delivery(mode="first", slow=7, slowness=50.0), honest, attackers=5)
    everybody = met(Delivery(mode="first", slow=5, slowness=50.0), honest, attackers=5)
    assert [e.tolist() for e in by_adversary.heard] == [e.tolist() for e in everybody.heard]
    Delivery(slow=7).check(10, 2)
    with pytest.raises(BadInput, match="at most the 5 honest peers"):
        Delivery(slow=7).check(10, 2, 5)
    Delivery(slow=10).check(10, 2, 0)


def test_what_holds_no_numbers_is_left_out():
    own = torch.tensor([1.0, 2.0])
    messages = {
        1: torch.eye(2).to_sparse()[0],
        2: torch.zeros(2, device="meta"),
        3: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
        5: torch.nn.Parameter(torch.zeros(2)),  # a row like any other
        "6": torch.zeros(2),
    }
    received = gather(messages, own, 4)
    assert torch.equal(received.basis[0], torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert not received.basis[0].requires_grad
    assert received.pivots == (0,)


def test_a_peer_with_too_few_rows_keeps_its_own():
    own = torch.tensor([1.0, 2.0])
    wrong = dict.fromkeys((0, 1, 2), torch.zeros(3))
    for rule in (nna(f=1), krum(f=1), trimmed_mean(f=1)):
        received = gather({**wrong, 3: torch.tensor([9.0, 9.0])}, own, 4)
        with pytest.raises(BadInput):
            aggregate(rule, received)
        assert torch.equal(mixed(rule, received), own[None])
        enough = gather({0: own + 1, 1: own - 1}, own, 4)
        assert torch.equal(mixed(rule, enough), aggregate(rule, enough))
    honest = rows(4)
    room = met(Delivery(), honest, attackers=0, byzantine=0)
    received = room.received(honest, honest[:0], torch.zeros(1, 0, 4, dtype=torch.float64))
    some = received._replace(views=(received.views[0][:1], *[received.views[0]] * 3))
    results = mixed(trimmed_mean(f=1), some)
    assert torch.equal(results[0], honest[0])
    assert torch.equal(results[1:], aggregate(trimmed_mean(f=1), received)[1:])
