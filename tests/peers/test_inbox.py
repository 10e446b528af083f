from __future__ import annotations

import threading

from gradless.peers import muting
from gradless.peers.inbox import BYTES, Inbox


def take(box, count):
    return [box.get(0.0) for _ in range(count)]


def test_messages_come_in_order_and_senders_in_turn():
    box = Inbox(3, limit=100)
    for message in (b"a", b"b", b"c"):
        assert box.put(0, message)
    assert box.put(2, b"x")
    assert take(box, 4) == [(0, b"a"), (2, b"x"), (0, b"b"), (0, b"c")]
    assert box.get(0.0) is None


def test_a_flood_fills_its_own_share_alone():
    box = Inbox(2, limit=100, messages=5, size=1000)
    assert sum(box.put(0, b"x" * 50) for _ in range(100)) == 5
    assert sum(box.put(0, b"x") for _ in range(100)) == 0
    assert box.put(1, b"honest")
    assert box.get(0.0) == (0, b"x" * 50)
    assert box.get(0.0) == (1, b"honest")
    assert box.dropped == [195, 0]


def test_bytes_and_lengths_are_limited():
    box = Inbox(1, limit=100, messages=1000, size=250)
    assert not box.put(0, b"x" * 101)
    assert [box.put(0, b"x" * 100) for _ in range(3)] == [True, True, False]
    box.get(0.0)
    assert box.put(0, b"x" * 100)


def test_the_bytes_that_wait_follow_the_largest_message():
    box = Inbox(1, limit=BYTES)
    assert [box.put(0, bytes(BYTES)) for _ in range(2)] == [True, False]
    box.allow(500_000)  # a small model
    box.get(0.0)
    assert not box.put(0, bytes(500_001))
    assert sum(box.put(0, bytes(500_000)) for _ in range(100)) == BYTES // 500_000
    box = Inbox(1, limit=BYTES)
    box.allow(3 * BYTES)
    assert [box.put(0, bytes(3 * BYTES)) for _ in range(3)] == [True, True, False]


def test_twenty_faults_in_a_minute_mute_for_ten():
    box = Inbox(2, limit=100)
    box.put(0, b"waiting")
    assert not any(box.fault(0, now=second) for second in range(19))
    assert box.fault(0, now=19.0)
    assert box.muted(0, now=19.0 + muting.MUTED - 1)
    assert not box.muted(0, now=19.0 + muting.MUTED)
    assert not box.put(0, b"x", now=20.0)
    assert box.put(1, b"y", now=20.0)
    assert box.get(0.0) == (1, b"y")  # what waited is gone
    assert box.put(0, b"x", now=20.0 + muting.MUTED)


def test_rare_faults_mute_nobody():
    box = Inbox(1, limit=100)
    assert not any(box.fault(0, now=4.0 * count) for count in range(1000))


def test_closing_wakes_who_waits():
    box, results = Inbox(1, limit=100), []
    waiter = threading.Thread(target=lambda: results.append(box.get(60.0)))
    waiter.start()
    box.close()
    waiter.join(10.0)
    assert results == [None]
    assert not box.put(0, b"x")
