"""Commitments to rows, the steps that the log draws, and what computing them again tells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradless.errors import BadInput
from gradless.peers.claims import (
    ALLOWED,
    Checked,
    commit,
    drawn,
    is_committed,
    judge,
    new_nonce,
    open_rows,
    read_nonce,
    row_bytes,
    tolerance,
)
from gradless.peers.opened import read_opened, write_opened

SALT = bytes(range(32))


def rows_of(count: int) -> list[bytes]:
    return [row_bytes({"columns": {"text": f"row {i}"}, "label": i % 2}) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_every_row_opens_and_no_other_row_place_or_count_does(count: int) -> None:
    rows = rows_of(count)
    root = commit(rows, SALT)
    for index, opening in enumerate(open_rows(rows, SALT, range(count))):
        assert is_committed(opening, count, root)
        assert not is_committed(opening._replace(row=b"other"), count, root)
        assert not is_committed(opening._replace(salt=bytes(32)), count, root)
        assert not is_committed(opening._replace(place=(index + 1) % count), count, root) or count == 1
        assert not is_committed(opening._replace(place=count), count, root)
        assert not is_committed(opening, count + 1, root)
        assert not is_committed(opening._replace(path=(*opening.path, bytes(32))), count, root)
        assert not is_committed(opening._replace(path=opening.path[:-1]), count, root) or not opening.path


def test_a_commitment_depends_on_rows_their_order_and_the_salt() -> None:
    rows = rows_of(6)
    roots = {commit(rows, SALT), commit(rows[::-1], SALT), commit(rows[:5], SALT), commit(rows, bytes(32))}
    assert len(roots) == 4
    first, second = open_rows(rows, SALT, [0, 1])
    assert first.salt != second.salt  # one row that is opened must not help to guess others
    assert SALT not in (first.salt, second.salt)


def test_bad_rows_and_salts_are_refused() -> None:
    with pytest.raises(BadInput, match="no rows to commit to"):
        commit([], SALT)
    with pytest.raises(BadInput, match="31 bytes instead of 32"):
        commit(rows_of(2), SALT[:31])
    with pytest.raises(BadInput, match="not among the 2 rows"):
        open_rows(rows_of(2), SALT, [2])


def test_openings_survive_their_file_and_belong_to_one_peer_of_one_run(tmp_path: Path) -> None:
    path, rows = tmp_path / "anna.json", rows_of(5)
    openings = open_rows(rows, SALT, [1, 4])
    write_opened(path, "ab" * 32, "anna", openings)
    assert read_opened(path, "ab" * 32, "anna") == openings
    for run, name in (("cd" * 32, "anna"), ("ab" * 32, "bert")):
        with pytest.raises(BadInput, match="opens rows of 'anna' in run"):
            read_opened(path, run, name)
    path.write_text('{"run": "x", "peer": "anna", "rows": [{"place": 0}]}', encoding="utf-8")
    with pytest.raises(BadInput, match="holds no opened rows"):
        read_opened(path, "x", "anna")
    with pytest.raises(BadInput, match="cannot be read"):
        read_opened(tmp_path / "none.json", "x", "anna")


def test_steps_are_drawn_by_the_last_digest_and_a_nonce_and_only_where_the_peer_sent_a_row() -> None:
    newest, run, nonce = hashlib.sha256(b"newest").digest(), bytes(16), bytes.fromhex(new_nonce())
    present = [step for step in range(200) if step % 3]
    steps = drawn(newest, run, 2, present, nonce=nonce)
    assert len(steps) == 32
    assert steps == sorted(steps)
    assert set(steps) <= set(present)
    others = [
        drawn(newest, run, 2, present),
        drawn(newest, run, 2, present, nonce=bytes(16)),
        drawn(newest, run, 1, present, nonce=nonce),
        drawn(newest, bytes(15) + b"\1", 2, present, nonce=nonce),
        drawn(bytes(32), run, 2, present, nonce=nonce),
    ]
    assert steps not in others
    assert len(set(map(tuple, others))) == len(others)
    assert drawn(newest, run, 2, [3, 1], nonce=nonce) == [1, 3]
    assert drawn(b"", run, 2, [], nonce=nonce) == []


def test_a_nonce_is_32_hexadecimal_digits() -> None:
    one, other = new_nonce(), new_nonce()
    assert one != other
    assert read_nonce(one) == bytes.fromhex(one)
    assert read_nonce(one.upper()) == bytes.fromhex(one)
    assert read_nonce(None) == b""
    for text in ("", one[:-1], one[:-2], one + "00", "my nonce", "\udcff"):
        with pytest.raises(BadInput, match="is not 32 hexadecimal digits"):
            read_nonce(text)


def test_a_peer_that_tries_rows_until_the_draw_suits_it_gains_nothing_against_a_nonce_made_afterwards() -> None:
    """It lies in a fifth of 400 steps, and sends the last row of the log: each that it tries gives another digest."""
    run, present = bytes(16), list(range(400))
    lies = set(np.flatnonzero(np.random.default_rng(1).random(400) < 0.2).tolist())

    def hits(newest: bytes, nonce: bytes = b"") -> int:
        return len(lies & set(drawn(newest, run, 3, present, nonce=nonce)))

    tried = (hashlib.sha256(bytes([attempt, attempt >> 8])).digest() for attempt in range(2000))
    suits = next(digest for digest in tried if hits(digest) <= ALLOWED)  # so the log alone draws what it likes
    asked = [hits(suits, bytes([number]) * 16) for number in range(100)]
    assert sum(count > ALLOWED for count in asked) >= 90
    assert 5.5 <= sum(asked) / len(asked) <= 7.5  # a fifth of 32


def check(claimed: float, computed: float, loss: float = 0.7, step: int = 0) -> Checked:
    return Checked(step, (claimed, 1.0), (computed, 1.0), loss)


def test_two_misses_of_32_are_let_pass_and_a_third_convicts() -> None:
    eps = 1e-3
    allowed = tolerance(0.7, eps)
    assert allowed == pytest.approx(0.0107, rel=0.01)
    near = [check(1.0, 1.0 + 0.9 * allowed) for _ in range(29)]
    far = [check(1.0, 1.0 + 1.1 * allowed, step=number) for number in range(3)]
    assert not judge([*near, *far[:2]], eps=eps, exact=True).convicted
    verdict = judge([*near, *far], eps=eps, exact=True)
    assert verdict.convicted
    assert verdict.text == "3 of 32 drawn steps miss (steps 0, 1, 2), at most 2 are allowed"
    assert judge([check(1.0, float("nan"))] * 3, eps=eps, exact=True).convicted
    assert not judge([], eps=eps, exact=True).convicted


LIES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "sign": lambda true, noise: -true,
    "scale 3": lambda true, noise: 3 * true,
    "scale 1000": lambda true, noise: 1000 * true,
    "push 1e6": lambda true, noise: true + 1e6,
    "push of three spreads": lambda true, noise: true + 30.0,
    "noise": lambda true, noise: noise.normal(0, 10, true.shape),
    "huge noise": lambda true, noise: noise.normal(0, 1e6, true.shape),
    "zeros": lambda true, noise: 0 * true,
    "one step": lambda true, noise: np.where(np.arange(32)[:, None] == 7, 100 * true, true),
    "behind one huge step": lambda true, noise: np.where(np.abs(true) > 1e3, true, -true),
    "none": lambda true, noise: np.full_like(true, np.nan),
}


@pytest.mark.parametrize("lie", [*LIES, "honest", "honest, with a huge step"])
def test_16_bit_verdicts_convict_whoever_claims_something_else_and_nobody_who_rounds(lie: str) -> None:
    draw = np.random.default_rng(4)
    measured = draw.normal(0, 10, (32, 4))
    if "huge step" in lie:
        measured[3] = 1e5
    rounded = measured * (1 + draw.normal(0, 0.1, measured.shape)) + draw.normal(0, 3, measured.shape)
    claimed = LIES[lie](rounded, draw) if lie in LIES else rounded
    checks = [Checked(step, tuple(claimed[step]), tuple(measured[step]), 1.0) for step in range(32)]
    assert judge(checks, eps=1e-3, exact=False).convicted == (lie in LIES)


def test_16_bit_claims_of_rows_that_give_nothing_are_nothing() -> None:
    nothing = [Checked(step, (0.0,) * 4, (0.0,) * 4, 1.0) for step in range(32)]
    assert not judge(nothing, eps=1e-3, exact=False).convicted
    some = [*nothing[1:], Checked(31, (1.0,) * 4, (0.0,) * 4, 1.0)]
    assert judge(some, eps=1e-3, exact=False).convicted


def test_of_16_bit_weights_only_the_variance_of_many_differences_tells() -> None:
    honest = [check(10.0 * (-1) ** i, 10.0 * (-1) ** i + 3.0, step=i) for i in range(32)]
    liar = [check(10.0 * (-1) ** i, -10.0 * (-1) ** i, step=i) for i in range(32)]
    assert judge(honest, eps=1e-3, exact=True).convicted  # which is why it is not asked of them
    assert not judge(honest, eps=1e-3, exact=False).convicted
    assert judge(liar, eps=1e-3, exact=False).convicted
    assert not judge(liar[:31], eps=1e-3, exact=False).convicted  # 62 coefficients tell nothing
