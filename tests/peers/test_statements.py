from __future__ import annotations

from gradless.peers import statements
from gradless.peers.signing import hash_rings
from gradless.peers.statements import Board, Statement

RUN = b"r" * 16


def test_a_statement_is_signed_and_of_one_run():
    rings = hash_rings(3)
    statement = Statement(1, 50, b"h" * 32)
    data = statements.pack(RUN, statement, rings[1])
    assert statements.parse(RUN, data, rings[0], sender=1) == statement
    assert statements.parse(b"s" * 16, data, rings[0], sender=1) is None
    assert statements.parse(RUN, data, rings[0], sender=2) is None  # another one passes it on as its own
    assert statements.parse(RUN, statements.pack(RUN, statement, rings[2]), rings[0], sender=1) is None
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1
        assert statements.parse(RUN, bytes(changed), rings[0], sender=1) is None
    for size in range(len(data)):
        assert statements.parse(RUN, data[:size], rings[0], sender=1) is None


def test_f_liars_outvote_nobody():
    board = Board(0, byzantine=1)
    board.hear(Statement(0, 50, b"a" * 32))
    board.hear(Statement(1, 50, b"b" * 32))
    assert board.outvoted(50) is None
    board.hear(Statement(2, 50, b"c" * 32))
    assert board.outvoted(50) is None  # two others, who do not agree
    board.hear(Statement(1, 50, b"c" * 32))  # a second word of one peer does not count
    assert board.outvoted(50) is None
    board.hear(Statement(3, 50, b"c" * 32))
    assert board.outvoted(50) == b"c" * 32
    assert board.outvoted(60) is None


def test_equal_weights_are_never_outvoted():
    board = Board(0, byzantine=1)
    for peer, letter in enumerate(b"aabb"):
        board.hear(Statement(peer, 50, bytes([letter]) * 32))
    assert board.outvoted(50) == b"b" * 32  # two others agree on another hash
    board = Board(0, byzantine=2)
    for peer, letter in enumerate(b"aaabb"):
        board.hear(Statement(peer, 50, bytes([letter]) * 32))
    assert board.outvoted(50) is None


def test_memory_is_bounded():
    board = Board(0, byzantine=1)
    for step in range(10_000):
        board.hear(Statement(1, step, b"a" * 32))
    assert sum(map(len, board._stated.values())) <= statements.KEPT
    assert board.latest[1].step == 9999


def test_statements_of_one_peer_take_the_place_of_its_own_alone():
    board = Board(0, byzantine=1)
    board.hear(Statement(1, 50, b"b" * 32))
    board.hear(Statement(2, 50, b"b" * 32))
    for step in range(2**32 - 100, 2**32):  # a liar
        board.hear(Statement(3, step, b"c" * 32))
    board.hear(Statement(0, 50, b"a" * 32))
    assert board.outvoted(50) == b"b" * 32


def test_the_newest_statement_that_is_outvoted_counts():
    board = Board(0, byzantine=1)
    for step in (50, 100, 150, 200):
        board.hear(Statement(0, step, b"a" * 32))
    assert board.newest_outvoted() is None
    for peer in (1, 2):
        for step in (50, 100, 150):
            board.hear(Statement(peer, step, b"a" * 32 if step == 50 else b"b" * 32))
    assert board.is_shared(50)
    assert not board.is_shared(100)
    assert not board.is_shared(200)
    assert board.newest_outvoted() == (Statement(0, 150, b"a" * 32), b"b" * 32)
    board.withdraw()
    assert board.newest_outvoted() is None
    board.hear(Statement(0, 150, b"b" * 32))
    assert board.newest_outvoted() is None
    assert board.is_shared(150)
