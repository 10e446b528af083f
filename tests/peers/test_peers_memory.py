"""The option memory: whose rows are left out is a function of the log alone, also for a peer that starts again."""

from __future__ import annotations

import numpy as np
import pytest

from agreement_helpers import RUN, certificate
from gradless.errors import BadInput
from gradless.peers import memory, settings
from gradless.peers.agreed import arrivals_of, mixed_steps
from gradless.peers.history import Group
from gradless.peers.log import DecidedLog
from gradless.peers.memory import MemoryRule
from gradless.peers.mixing import AgreedRule
from gradless.peers.schema import Row, Value, digest, pack_value
from gradless.peers.signing import hash_rings

GROUP = Group(RUN, 4, 1, 2)
RULE = AgreedRule("trimmed-mean", peers=4, byzantine=1)
WINDOW, STEPS = 40, 90


def rows() -> np.ndarray:
    """Three peers agree a little; the last flips its signs. Now and then a row is not there."""
    draw = np.random.default_rng(5)
    sent = 2.0 * draw.standard_normal((STEPS, 1, 2)) + draw.standard_normal((STEPS, 4, 2))
    sent[:, 3] *= -1
    sent = sent.astype(np.float32)
    sent[draw.random((STEPS, 4)) < 0.05] = np.nan
    return sent


def log_of(sent: np.ndarray, path=None) -> DecidedLog:
    log, rings, previous = DecidedLog(path, GROUP), hash_rings(4), bytes(32)
    for step, row in enumerate(sent):
        here = [peer for peer in range(4) if np.isfinite(row[peer]).all()]
        stated = tuple(Row(peer, 0, row[peer].astype("<f4").tobytes(), bytes(64)) for peer in here)
        value = pack_value(Value(step, previous, 0, step % 4, 2, stated, ()))
        previous = digest(RUN, value)
        log.append(value, certificate(GROUP, rings, step, previous))
    return log


def test_a_peer_that_starts_again_leaves_out_the_same_rows(tmp_path):
    sent = rows()
    log = log_of(sent, tmp_path / "peers.log")
    without_end = MemoryRule(RULE, log, WINDOW)
    mixed = [without_end(arrivals_of(log, step), None, step)[0] for step in range(STEPS)]
    log.close()
    again = DecidedLog(tmp_path / "peers.log", GROUP)
    for start in (0, 31, 50, STEPS - 1):  # killed there: what it remembered is gone
        for step, coefficients in enumerate(mixed_steps(again, MemoryRule(RULE, again, WINDOW), start, STEPS), start):
            assert np.array_equal(coefficients, mixed[step], equal_nan=True)
    again.close()
    for step in range(STEPS):  # as audits and excisions do
        expected, gone = memory.mix(RULE, sent[step], sent[max(0, step - WINDOW) : step], frozenset())
        assert np.array_equal(expected, mixed[step], equal_nan=True)
        assert gone == ((3,) if step > 60 else gone)


def test_memory_stands_in_the_manifest_of_peers_that_agree():
    fields = {"model": "tiny-llama", "own": {"template": "{t}", "label_column": "l", "labels": "0=a,1=b"}}
    fields |= {"payload": "coefficients", "steps": 5}
    config = settings.shared({**fields, "memory": 50}, peers=4, f=1)
    assert settings.table(config)["memory"] == 50
    assert "memory" not in settings.table(settings.shared(fields, peers=4, f=1))
    with pytest.raises(BadInput, match="memory is of coefficients"):
        settings.shared({"dataset": "digits", "payload": "parameters", "memory": 50}, peers=4, f=1)
