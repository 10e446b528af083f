"""Links between peers of one process."""

from __future__ import annotations

import threading
import time

import pytest

from gradless.errors import BadInput
from gradless.peers.link import Link, LocalGroup


def drained(link: Link, count: int, limit: float = 10.0) -> list[tuple[int, bytes]]:
    end, messages = time.monotonic() + limit, []
    while len(messages) < count and time.monotonic() < end:
        if (message := link.receive(0.05)) is not None:
            messages.append(message)
    return messages


def test_messages_reach_one_or_all_and_say_who_sent_them():
    first, second, third = LocalGroup(3).links()
    first.send(b"all")
    second.send(b"one", to=2)
    third.send(b"self", to=2)
    assert drained(second, 1) == [(0, b"all")]
    assert sorted(drained(third, 2)) == [(0, b"all"), (1, b"one")]
    assert first.receive(0.0) is None
    assert (first.sent, second.sent, third.sent) == (6, 3, 0)
    assert first.alive() == {0, 1, 2}


def test_delays_and_losses_follow_the_seed():
    def run(seed: int) -> list[bytes]:
        sender, receiver = LocalGroup(2, seed=seed, delay=0.02, loss=0.2).links()
        for number in range(60):
            sender.send(bytes([number]), to=1)
        messages = drained(receiver, 60, 0.6)
        return [data for _, data in messages]

    first = run(1)
    assert sorted(first) == sorted(run(1)) != sorted(run(2))  # which ones are lost
    assert 30 <= len(first) < 60
    assert first != sorted(first)  # some overtook others


def test_parted_sides_do_not_hear_each_other_until_they_are_healed():
    group = LocalGroup(4)
    links = group.links()
    group.part(2, 3)
    links[0].send(b"x")
    assert drained(links[1], 1) == [(0, b"x")]
    assert links[2].receive(0.0) is None
    assert links[0].alive() == {0, 1}
    assert links[0].fetch(3, 0) == []
    group.part()
    links[0].send(b"y")
    assert drained(links[2], 1) == [(0, b"y")]


def test_records_are_fetched_from_who_serves_them():
    first, second = LocalGroup(2).links()
    assert first.fetch(1, 0) == []
    second.serve(lambda since: [b"a", b"b", b"c"][since:])
    assert first.fetch(1, 1) == [b"b", b"c"]


def test_a_closed_link_is_silent_and_a_peer_that_comes_back_has_a_new_one():
    group = LocalGroup(2)
    first, second = group.links()
    waiting = threading.Thread(target=second.receive, args=(30.0,))
    waiting.start()
    second.close()
    waiting.join(5.0)
    assert not waiting.is_alive()
    first.send(b"lost")
    assert first.alive() == {0}
    second.send(b"nothing")
    again = group.link(1)
    first.send(b"heard")
    assert drained(again, 1) == [(0, b"heard")]
    assert first.receive(0.0) is None


@pytest.mark.parametrize(
    ("change", "match"), [({"loss": 1.0}, "loss"), ({"delay": -1.0}, "delay"), ({"peers": 0}, "peers")]
)
def test_numbers_that_mean_nothing_are_refused(change, match):
    with pytest.raises(BadInput, match=match):
        LocalGroup(**{"peers": 2, **change})
    with pytest.raises(BadInput, match="no peer 2"):
        LocalGroup(2).link(2)
