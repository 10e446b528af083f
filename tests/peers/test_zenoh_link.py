from __future__ import annotations

import contextlib
import json
import socket
import time
from types import SimpleNamespace

import pytest

from gradless.errors import BadInput
from gradless.peers import manifest, zenoh_config, zenoh_link
from gradless.peers.zenoh_link import ZenohLink
from peers_helpers import identities, manifest_of, text

zenoh = pytest.importorskip("zenoh")
NAMES = ("anna", "ben", "cleo")
MIXED = {"payload": "parameters", "model": None, "own": {}, "dataset": "digits", "algorithm": "monna", "momentum": 0.9}
SECONDS = 30.0  # a loaded machine


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return identities(tmp_path_factory.mktemp("identities"), NAMES)


@pytest.fixture
def links(group):
    """The links of anna, ben and cleo, connected, and what else a test opens."""
    with contextlib.ExitStack() as stack:

        def opened(*numbers, run=None, who=group):
            run = run or manifest_of(group, f=0)
            new_links = []
            for number in numbers:
                new_links.append(ZenohLink(run, who[number]))
                stack.callback(new_links[-1].close)
            return new_links

        yield opened


def until(reached, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not (result := reached()) and time.monotonic() < end:
        time.sleep(0.02)
    return result


def connected(links):
    return until(lambda: all(len(link.alive()) == len(links) for link in links))


def test_messages_reach_all_or_one(links):
    anna, ben, cleo = both = links(0, 1, 2)
    assert connected(both)
    anna.send(b"to all")
    assert ben.receive(SECONDS) == cleo.receive(SECONDS) == (0, b"to all")
    cleo.send(b"to ben", to=1)
    assert ben.receive(SECONDS) == (2, b"to ben")
    assert anna.receive(0.2) is None
    assert (anna.sent, ben.received) == (12, 12)

    records = [bytes([number % 256]) * 1000 for number in range(300)]  # more than one part
    ben.serve(lambda since: records[since:])
    assert anna.fetch(1, 0) == records
    assert anna.fetch(1, 290) == records[290:]
    assert anna.fetch(1, 300) == []
    assert anna.fetch(2, 0) == []  # cleo serves nothing

    ben.state(b"statement")
    assert until(anna.stated) == [(1, b"statement")]
    ben.close()
    ben.close()
    assert until(lambda: anna.alive() == {0, 2})
    anna.send(b"to who is there")
    assert cleo.receive(SECONDS) == (0, b"to who is there")


def test_a_peer_that_comes_back_is_heard(links, group):
    run = manifest_of(group, f=0)
    anna, ben = links(0, 1, run=run)
    assert until(lambda: anna.alive() == {0, 1})
    anna.close()  # to which the others connect
    assert until(lambda: ben.alive() == {1})
    (anna,) = links(0, run=run)
    assert until(lambda: ben.alive() == {0, 1})
    anna.send(b"again")
    assert ben.receive(SECONDS) == (0, b"again")


def raw(run, identity, number, *, listen_at=None, access=False):
    """A session of a liar: its own program does not deny it anything."""
    settings = zenoh_config.settings(run, identity, listen=listen_at, limit=zenoh_link.LIMIT)
    settings["connect/endpoints"] = [member.endpoint for index, member in enumerate(run.peers) if index != number]
    settings["listen/endpoints"] = []
    if not access:
        del settings["access_control"]
    config = zenoh.Config()
    for path, value in settings.items():
        config.insert_json5(path, json.dumps(value))
    return zenoh.open(config)


def test_what_is_written_under_another_name_is_dropped(links, group):
    run = manifest_of(group, f=0)
    anna, ben = links(0, 1, run=run)
    session = raw(run, group[2], 2)
    try:
        key = f"lv/cleo/{run.run.hex()}"
        token = session.liveliness().declare_token(key)
        forged = session.liveliness().declare_token(f"lv/ben/{'0' * 32}")
        assert until(lambda: 2 in anna.alive() and 2 in ben.alive())
        for name in ("ben", "anna", "nobody"):
            session.put(f"zo/{name}/all", b"forged")
            session.put(f"zo/{name}/to/anna", b"forged")
            session.put(f"st/{name}", b"forged")
        session.put("zo/cleo/all", b"true")
        assert anna.receive(SECONDS) == (2, b"true")
        assert ben.receive(SECONDS) == (2, b"true")
        time.sleep(0.5)
        assert anna.receive(0.0) is None
        assert ben.receive(0.0) is None
        assert anna.stated() == []
        assert anna.strangers == {}
        ben.serve(lambda since: [b"record"])
        assert [reply for reply in session.get("lg/ben/anna/0", timeout=1.0) if reply.ok] == []  # asks as another
        assert [bytes(reply.ok.payload) for reply in session.get("lg/ben/cleo/0", timeout=10.0)] == [b"\6\0\0\0record"]
        del token, forged
    finally:
        session.close()


def test_without_the_list_the_same_message_is_believed(links, group, monkeypatch):
    """The control: it is the access control list that drops what another name stands on."""
    run = manifest_of(group, f=0)
    monkeypatch.setattr(zenoh_config, "_access", lambda names, me: {"enabled": False, "default_permission": "allow"})
    anna, _ = links(0, 1, run=run)
    session = raw(run, group[2], 2)
    try:
        assert until(lambda: anna.alive() == {0, 1})
        assert until(lambda: session.put("zo/ben/all", b"forged") or anna.receive(0.1)) == (1, b"forged")
    finally:
        session.close()


@pytest.mark.sweep
def test_a_peer_with_a_certificate_of_another_ca_never_appears(links, group):
    run, foreign = manifest_of(group, f=0), manifest_of(group, f=0)
    anna, ben = links(0, 1, run=run)
    (cleo,) = links(2, run=foreign)
    assert until(lambda: anna.alive() == {0, 1})
    time.sleep(3.0)
    cleo.send(b"from elsewhere")
    assert anna.alive() == ben.alive() == {0, 1}
    assert cleo.alive() == {2}
    assert anna.receive(0.5) is None
    assert anna.strangers == {}


def test_who_holds_another_manifest_of_the_same_ca_is_told(links, group):
    data = text(group, f=0)
    anna, ben = manifest.parse(data), manifest.parse(data.replace(b"seed = 3", b"seed = 4"))
    one, two = links(0, run=anna)[0], links(1, run=ben)[0]
    assert until(lambda: one.strangers == {"ben": ben.run.hex()} and two.strangers == {"anna": anna.run.hex()})
    assert one.alive() == {0}


def test_a_token_that_names_no_run_is_passed_over(links, group):
    run = manifest_of(group, f=0)
    (anna,) = links(0, run=run)
    put = zenoh.SampleKind.PUT

    def notice(name: str) -> None:
        anna._notice(SimpleNamespace(key_expr=f"lv/ben/{name}", kind=put))

    for name in ("x", "0" * 31, "0" * 33, "A" * 32, "\x1b[2J" + "0" * 28):
        notice(name)
    assert anna.strangers == {}
    notice("0" * 32)
    assert anna.strangers == {"ben": "0" * 32}


def test_long_messages_and_floods_are_dropped(links, group):
    run = manifest_of(group, f=0)
    anna, ben = links(0, 1, run=run)
    assert until(lambda: ben.alive() == anna.alive() == {0, 1})
    ben.send(b"x" * (zenoh_link.LIMIT + 1))
    ben.send(b"x" * zenoh_link.LIMIT)
    assert anna.receive(SECONDS) == (1, b"x" * zenoh_link.LIMIT)
    for _ in range(2000):
        ben.send(b"y" * 100)
    until(lambda: anna.inbox.dropped[1] > 0)
    assert len(anna.inbox._waiting[1]) <= 512


def test_models_wait_for_a_peer_only_once_their_size_is_known(group):
    run = manifest_of(group, f=0)
    with contextlib.closing(ZenohLink(run, group[0], limit=1 << 28)) as anna:
        assert anna.inbox.size == 4 << 20
        anna.allow(500_000)
        assert (anna.inbox.limit, anna.inbox.size) == (500_000, 4 << 20)


def test_a_peer_that_reads_nothing_is_cut_off_soon(group):
    """A full queue to it holds up what is sent to all: models get longer than the coefficients of a step."""
    path = "transport/link/tx/queue/congestion_control/block/wait_before_close"
    waits = []
    for run in (manifest_of(group, f=0), manifest_of(group, f=0, **MIXED)):
        settings = zenoh_config.settings(run, group[0], listen=None, limit=zenoh_link.LIMIT)
        zenoh.Config().insert_json5(path, json.dumps(settings[path]))
        waits.append(settings[path])
    assert waits == [200_000, 1_000_000]  # microseconds


def test_a_port_in_use_is_one_sentence(group):
    run = manifest_of(group, f=0)
    port = int(run.peers[0].endpoint.rsplit(":", 1)[1])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # earlier tests listened there
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(
            BadInput, match=rf"port {port} of 127\.0\.0\.1 cannot be used \(another process listens there\)"
        ):
            ZenohLink(run, group[0])


def test_records_are_packed_in_parts():
    records = [b"", b"a", b"b" * 100_000, b"c" * 10]
    parts = list(zenoh_link.packed(records))
    assert len(parts) == 3
    assert [record for part in parts for record in zenoh_link.unpacked(part)] == records
    assert zenoh_link.unpacked(parts[1][:-1]) == []  # what is torn is no record
    huge = list(zenoh_link.packed([b"x" * 40_000] * 1000))
    assert sum(map(len, huge)) <= zenoh_link.ANSWER + 50_000
