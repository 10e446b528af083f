"""Messages: what is packed is read back, and whatever differs in one byte of its length or schema is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest

from agreement_fuzz import WIDTH, corpus
from agreement_helpers import RUN
from gradless.peers import history
from gradless.peers.schema import (
    LARGEST,
    SIGNATURE,
    Kind,
    Malformed,
    Row,
    Value,
    finite,
    largest_message,
    largest_value,
    pack_certificate,
    pack_coefficients,
    pack_head,
    pack_justification,
    pack_value,
    parse_certificate,
    parse_justification,
    parse_value,
    value_rows,
)
from gradless.peers.signing import Ed25519Ring, hash_rings
from gradless.peers.wire import Decided, Proposal, Timeout, Vote, parse


@pytest.fixture(scope="module")
def by_kind() -> dict[Kind, list[bytes]]:
    kinds: dict[Kind, list[bytes]] = {}
    for data in corpus():
        kinds.setdefault(parse(data, RUN, 4, WIDTH).head.kind, []).append(data)
    return kinds


def test_sizes_are_those_of_the_protocol(by_kind):
    assert {len(data) for data in by_kind[Kind.ROW]} == {109 + 4 * WIDTH}
    assert {len(data) for data in by_kind[Kind.PREVOTE]} == {186}
    assert {len(data) for data in by_kind[Kind.PRECOMMIT]} == {122}
    assert min(len(data) for data in by_kind[Kind.TIMEOUT]) == 126
    assert {len(data) for data in by_kind[Kind.HELLO]} == {34}
    values = [parse(data, RUN, 4, WIDTH).value for data in by_kind[Kind.PROPOSAL]]
    assert {(len(value) - 45) % (67 + 4 * WIDTH) for value in values} == {0}


@pytest.mark.parametrize(("peers", "byzantine", "width"), [(1, 0, 1), (4, 1, 1), (7, 2, 4), (10, 3, 300)])
def test_the_largest_value_has_rows_of_all_and_evidence_against_f(peers, byzantine, width):
    rows = tuple(Row(peer, 0, bytes(4 * width), bytes(SIGNATURE)) for peer in range(peers))
    messages = (109 + 4 * width, 126)  # ROW and TIMEOUT, the longest of which one convicts
    pair = (bytes(max(messages)),) * 2
    value = Value(0, bytes(32), 0, 0, width, rows, (pair,) * byzantine)
    assert len(pack_value(value)) == largest_value(peers, byzantine, width)
    assert largest_message(peers, byzantine, width) > largest_value(peers, byzantine, width)


def test_rows_are_read_at_once_as_one_by_one(by_kind):
    values = [parse(data, RUN, 4, WIDTH).value for data in by_kind[Kind.PROPOSAL]]
    value = parse_value(values[0])
    silent = value.rows[1]._replace(flags=1, coefficients=bytes(4 * WIDTH))
    pair = ((b"some", b"evidence"),)
    values.append(pack_value(value._replace(rows=(value.rows[0], silent, *value.rows[2:]), evidence=pair)))
    values.append(pack_value(value._replace(rows=())))
    for data in values:
        coefficients, senders = history.rows(parse_value(data))
        read, by = value_rows(data)
        assert np.array_equal(read, coefficients)
        assert tuple(by) == senders
    assert 1 not in value_rows(values[-2])[1]


def test_every_cut_and_every_longer_message_is_refused_or_read_otherwise(by_kind):
    for messages in by_kind.values():
        data = max(messages, key=len)
        whole = parse(data, RUN, 4, WIDTH)
        for size in range(len(data)):
            try:
                assert parse(data[:size], RUN, 4, WIDTH) != whole
            except Malformed:
                continue
            assert isinstance(whole, Timeout | Proposal | Decided), "fixed length"
        if not isinstance(whole, Timeout | Proposal | Decided):
            with pytest.raises(Malformed):
                parse(data + b"\0", RUN, 4, WIDTH)


def test_values_certificates_and_justifications_are_read_back(by_kind):
    for data in (data for messages in by_kind.values() for data in messages):
        message = parse(data, RUN, 4, WIDTH)
        if isinstance(message, Proposal | Decided | Timeout) and message.value:
            value = parse_value(message.value)
            assert pack_value(value) == message.value
            for size in range(len(message.value)):
                with pytest.raises(Malformed):
                    parse_value(message.value[:size])
            with pytest.raises(Malformed):
                parse_value(message.value + b"\0")
            break
    for data in by_kind[Kind.DECIDED][:1]:
        certificate = parse(data, RUN, 4, WIDTH).certificate
        round, votes = parse_certificate(certificate)
        assert pack_certificate(round, dict(votes)) == certificate
        for size in range(len(certificate)):
            with pytest.raises(Malformed):
                parse_certificate(certificate[:size])
    justified = [parse(data, RUN, 4, WIDTH) for data in by_kind[Kind.PROPOSAL]]
    justification = next(each.justification for each in justified if each.justification)
    assert pack_justification(parse_justification(justification)) == justification


def test_order_senders_flags_and_floats_are_checked(by_kind):
    value = parse_value(parse(by_kind[Kind.DECIDED][0], RUN, 4, WIDTH).value)
    first, second, *rest = value.rows
    nan = first._replace(coefficients=pack_coefficients([float("nan")] * WIDTH))
    wrong = {
        "order": (second, first, *rest),
        "twice": (first, first, *rest),
        "flags": (first._replace(flags=2), second, *rest),
        "abstains with numbers": (first._replace(flags=1), second, *rest),
        "not finite": (nan, second, *rest),
    }
    for rows in wrong.values():
        with pytest.raises(Malformed):
            parse_value(pack_value(Value(*value._replace(rows=rows))))
    zeros = first._replace(flags=1, coefficients=bytes(4 * WIDTH))
    assert parse_value(pack_value(value._replace(rows=(zeros, second, *rest)))).rows[0].flags == 1
    assert finite(pack_coefficients([3e38, -3e38]))
    assert not finite(pack_coefficients([float("inf")]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(25),
        bytes(LARGEST + 1),
        pack_head(RUN, Kind.HIGH, 0, 0) + bytes(60),
        pack_head(bytes(16), Kind.HELLO, 0, 0) + bytes(8),
        pack_head(RUN, Kind.HELLO, 4, 0) + bytes(8),
        b"\2" + (pack_head(RUN, Kind.HELLO, 0, 0) + bytes(8))[1:],
    ],
    ids=["nothing", "short", "too large", "a record of the vote log", "another run", "no peer", "another version"],
)
def test_other_heads_are_refused(data):
    with pytest.raises(Malformed):
        parse(data, RUN, 4, WIDTH)


def test_random_bytes_raise_nothing_but_malformed():
    """Some are well formed: `parse` looks at no signature."""
    rng, refused = random.Random(0), 0
    for _ in range(2000):
        head = pack_head(RUN, Kind(rng.randrange(1, 10)), rng.randrange(4), rng.randrange(3), rng.randrange(3))
        try:
            parse(head + rng.randbytes(rng.choice((0, 8, 34, 96, 160, 400))), RUN, 4, WIDTH)
        except Malformed:
            refused += 1
    assert 1000 < refused < 2000


def test_prevotes_show_what_their_leader_signed(by_kind):
    vote = parse(by_kind[Kind.PREVOTE][0], RUN, 4, WIDTH)
    assert isinstance(vote, Vote)
    offers = {parse(data, RUN, 4, WIDTH).signature for data in by_kind[Kind.PROPOSAL]}
    assert vote.witness in offers


def test_ed25519_signs_for_its_own_peer_and_domain():
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    keys = [ed25519.Ed25519PrivateKey.generate() for _ in range(3)]
    publics = [key.public_key() for key in keys]
    rings = [Ed25519Ring(peer, key, publics) for peer, key in enumerate(keys)]
    signature = rings[1].sign(b"body")
    assert len(signature) == 64
    assert rings[0].verify(1, b"body", signature)
    assert not rings[0].verify(2, b"body", signature)
    assert not rings[0].verify(1, b"other", signature)
    assert not rings[0].verify(1, b"body", signature[:-1])
    assert not rings[0].verify(1, b"body", keys[1].sign(b"body"))  # without the domain
    assert len(hash_rings(3)[0].sign(b"body")) == 64
