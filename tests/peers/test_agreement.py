"""Random schedules of a simulated group: never two values, never stuck; and the same without a part of the protocol."""

from __future__ import annotations

import pytest

from agreement_world import Counts, Stuck, TwoValues, World, run_many
from gradless.errors import BadInput
from gradless.peers.history import Group

RUN = bytes(16)


def check(counts: Counts, schedules: int) -> None:
    assert counts.schedules == schedules
    assert not counts.unsafe
    assert not counts.stuck


def test_twenty_schedules():
    counts = run_many(range(16), 4, 1)
    counts_of_seven = run_many(range(100, 104), 7, 2)
    check(counts, 16)
    check(counts_of_seven, 4)
    # The schedules are what they claim to be: liars lied, peers crashed, rounds failed, liars were banned.
    assert all(counts.lies[lie] for lie in ("rows", "proposals", "votes", "timeouts"))
    assert counts.restarts
    assert counts.banned
    assert max(counts.rounds) > 0


@pytest.mark.sweep
@pytest.mark.parametrize("first", range(1000, 1120, 20))
def test_more_schedules(first):
    check(run_many(range(first, first + 20), 4, 1), 20)


@pytest.mark.sweep
def test_more_schedules_of_other_groups():
    check(run_many(range(2000, 2010), 7, 2, ("no-ban",)), 10)
    check(run_many(range(2100, 2108), 7, 2), 8)
    check(run_many(range(2200, 2202), 10, 3), 2)
    check(run_many(range(2300, 2304), 5, 1), 4)  # more peers than the bound asks for
    check(run_many(range(2400, 2404), 6, 1), 4)


@pytest.mark.sweep
def test_schedules_with_peers_that_lose_their_logs():
    """They are honest, do not count among the f for safety, and sign again once they may."""
    check(run_many(range(3000, 3016), 4, 1, forgets=1), 16)
    check(run_many(range(3100, 3106), 7, 2, forgets=1), 6)


@pytest.mark.sweep
def test_liars_gain_nothing_from_peers_that_lose_their_logs():
    """Too many faults to go on, perhaps, but never two values."""
    assert not run_many(range(3200, 3212), 4, 1, limit=8.0, liars=1, forgets=1, style="yes").unsafe
    assert not run_many(range(3300, 3304), 7, 2, limit=8.0, liars=2, forgets=2, style="yes").unsafe


def test_a_peer_that_lost_its_logs_comes_back():
    check(run_many(range(3), 4, 1, forgets=1), 3)


MANY = [
    *((4, 1, (), {}, first, 500) for first in range(100_000, 103_500, 500)),
    *((4, 1, ("no-ban",), {}, first, 500) for first in range(110_000, 112_500, 500)),
    *((7, 2, ("no-ban",), {}, first, 200) for first in range(120_000, 121_400, 200)),
    *((7, 2, (), {}, first, 200) for first in range(130_000, 130_600, 200)),
    *((10, 3, ("no-ban",), {}, first, 100) for first in range(140_000, 140_200, 100)),
    *((4, 1, (), {"forgets": 1}, first, 500) for first in range(150_000, 151_000, 500)),
    *((7, 2, (), {"forgets": 1}, first, 200) for first in range(160_000, 160_400, 200)),
    *((7, 2, (), {"forgets": 2}, first, 200) for first in range(170_000, 170_400, 200)),
]


@pytest.mark.long
@pytest.mark.parametrize(("peers", "byzantine", "flaws", "settings", "first", "count"), MANY)
def test_ten_thousand_schedules(peers, byzantine, flaws, settings, first, count, record_property):
    counts = run_many(range(first, first + count), peers, byzantine, flaws, **settings)
    for name, value in counts.facts().items():
        record_property(name, value)
    check(counts, count)


CONTROLS = [  # the liars that say yes to everybody find them most often
    pytest.param(4, 1, ("quorum", "no-ban"), {}, id="one vote fewer"),
    pytest.param(3, 1, ("n", "no-ban"), {}, id="n = 3 f"),
    pytest.param(4, 1, ("no-ban",), {"liars": 2}, id="f + 1 liars"),
]


@pytest.mark.parametrize(("peers", "byzantine", "flaws", "settings"), CONTROLS)
def test_controls_make_two_values(peers, byzantine, flaws, settings):
    for seed in range(30_000, 30_060):
        if run_many([seed], peers, byzantine, flaws, limit=8.0, style="yes", **settings).unsafe:
            return
    pytest.fail("sixty schedules without two values: the simulation finds nothing")


@pytest.mark.long
@pytest.mark.parametrize(("peers", "byzantine", "flaws", "settings"), CONTROLS)
def test_controls_two_hundred_times(peers, byzantine, flaws, settings, record_property):
    counts = run_many(range(30_000, 30_200), peers, byzantine, flaws, limit=8.0, **settings)
    for name, value in counts.facts().items():
        record_property(name, value)
    assert counts.unsafe


def test_the_simulation_notices_a_group_that_stands_still():
    """Two of four are silent: nobody decides, and nobody decides wrongly."""
    world = World(1, 4, 1, liars=0, well_from=0.0)
    world.down = {1, 2}
    with pytest.raises(Stuck):
        world.run(limit=5.0)
    assert not world.agreed


def test_the_simulation_notices_two_values():
    world = World(1, 4, 1, liars=0, well_from=0.0)
    world.agreed[0] = bytes(32)
    with pytest.raises(TwoValues):
        world.run()


@pytest.mark.parametrize(("peers", "byzantine"), [(3, 1), (6, 2), (0, 0), (4, -1)])
def test_too_few_peers_are_refused(peers, byzantine):
    with pytest.raises(BadInput, match=r"cannot agree while .* take at least \d+ peers"):
        Group(RUN, peers, byzantine, 4)


def test_rows_that_fit_no_message_are_refused():
    Group(RUN, 4, 1, 1000)
    with pytest.raises(BadInput, match="do not fit into messages of 65536 bytes: set queries lower"):
        Group(RUN, 4, 1, 10_000)
