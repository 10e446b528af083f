"""Late join: values by the hash chain, checked by the newest certificate alone."""

from __future__ import annotations

import time

import pytest

from agreement_helpers import RUN, certificate, decided, long_chain
from gradless.errors import BadInput
from gradless.peers.history import Group, convicted, history_of
from gradless.peers.log import DecidedLog, verify_certificate
from gradless.peers.schema import Malformed, digest, pack_value, parse_value
from gradless.peers.signing import hash_rings

GROUP = Group(RUN, 4, 1, 2)
RINGS = hash_rings(4)


def test_joining_takes_over_what_the_newest_certificate_covers(tmp_path):
    chain = decided(GROUP, 10, RINGS)
    log = DecidedLog(tmp_path / "peers.log", GROUP)
    log.append(*chain[0])
    assert log.join(chain[:8], RINGS[0]) == 7  # the first is there already
    assert log.history.digest == digest(RUN, chain[7][0])
    assert [bool(decision.certificate) for decision in log] == [True, *[False] * 6, True]
    assert log.join(chain[8:], RINGS[0]) == 2
    assert log.join(chain, RINGS[0]) == 0
    assert log.verify(RINGS[0]) == 1
    assert log.verify(RINGS[0], every=True) == 3
    log.close()
    again = DecidedLog(tmp_path / "peers.log", GROUP)
    assert [each.value for each in again] == [value for value, _ in chain]
    assert again.history.digest == log.history.digest
    again.close()


def test_values_behind_the_newest_certificate_wait():
    chain = decided(GROUP, 6, RINGS)
    bare = [(value, proof if step == 3 else b"") for step, (value, proof) in enumerate(chain)]
    log = DecidedLog(None, GROUP)
    assert log.join(bare, RINGS[0]) == 4
    assert log.join([(value, b"") for value, _ in chain[4:]], RINGS[0]) == 0
    assert len(log) == 4


def test_a_lying_peer_is_not_believed():
    chain = decided(GROUP, 6, RINGS)
    other = decided(GROUP, 6, RINGS, proposer=2)
    forged = certificate(GROUP, hash_rings(4, seed=1), 5, digest(RUN, other[5][0]))
    few = Group(RUN, 4, 0, 2)
    lies = {
        "another history under the certificate": [*other[:5], (other[5][0], chain[5][1])],
        "a forged certificate": [*other[:5], (other[5][0], forged)],
        "a certificate of the step before": [*chain[:5], (chain[5][0], chain[4][1])],
        "a step left out": [*chain[:3], *chain[4:]],
        "no value": [*chain[:3], (b"", chain[3][1])],
        "cut": [*chain[:5], (chain[5][0][:-1], chain[5][1])],
        "too few votes": [*chain[:5], (chain[5][0], certificate(few, RINGS, 5, digest(RUN, chain[5][0]))[:-66])],
    }
    for lie in lies.values():
        log = DecidedLog(None, GROUP)
        log.append(*chain[0])
        with pytest.raises(Malformed):
            log.join(lie, RINGS[0])
        assert len(log) == 1  # nothing was written before it was checked


def test_what_is_served_ends_with_a_certificate():
    chain = decided(GROUP, 10, RINGS)
    log = DecidedLog(None, GROUP)
    log.join(chain[:6], RINGS[0])
    log.join(chain[6:], RINGS[0])
    assert [each.step for each in log.since(0, limit=1)] == [0, 1, 2, 3, 4, 5]
    assert [each.step for each in log.since(6, limit=1)] == [6, 7, 8, 9]
    assert [each.step for each in log.since(3)] == [3, 4, 5, 6, 7, 8, 9]
    assert log.since(10) == []


def test_a_log_whose_newest_certificate_is_forged_is_refused(tmp_path):
    chain = decided(GROUP, 3, RINGS)
    log = DecidedLog(tmp_path / "peers.log", GROUP)
    for value, proof in chain[:2]:
        log.append(value, proof)
    log.append(chain[2][0], chain[1][1])
    with pytest.raises(BadInput, match=r"step 2 of .* was not decided \(certificate signature\)"):
        log.verify(RINGS[0])
    log.close()


def test_certificates_count_distinct_peers_that_are_not_banned():
    value, proof = decided(GROUP, 1, RINGS)[0]
    its_digest = digest(RUN, value)
    assert verify_certificate(GROUP, RINGS[0], 0, its_digest, proof) == 0
    for banned in (frozenset((0,)), frozenset((2,))):
        with pytest.raises(Malformed):
            verify_certificate(GROUP, RINGS[0], 0, its_digest, proof, banned=banned)
    twice = proof[:4] + proof[4:70] * 3
    with pytest.raises(Malformed):
        verify_certificate(GROUP, RINGS[0], 0, its_digest, twice)


def test_a_history_is_a_function_of_its_values():
    chain = [value for value, _ in decided(GROUP, 8, RINGS)]
    history = history_of(GROUP, chain)
    assert history.order == (0, 1, 2, 3)
    assert history_of(GROUP, chain[:5]).order == (1, 2, 3, 0)
    last = parse_value(chain[7])
    missing = pack_value(last._replace(rows=last.rows[:1] + last.rows[2:]))
    assert history_of(GROUP, [*chain[:7], missing]).order == (0, 2, 3, 1)
    assert convicted(GROUP, last) == frozenset()
    with pytest.raises(Malformed):
        history_of(GROUP, chain[1:])


def test_a_leader_whose_round_failed_stands_back():
    ((failed, _),) = decided(GROUP, 1, RINGS, round=1, proposer=1)
    history = history_of(GROUP, [failed])
    assert history.order == (1, 2, 3, 0)  # peer 0 failed in round 0: it leads again from step 1 + 4 * 2 on
    for step in range(1, 10):
        assert history.order[-1] == 0
        value = parse_value(decided(GROUP, 1, RINGS)[0][0])
        history.append(pack_value(value._replace(step=step, before=history.digest)))
    assert history.order == (2, 3, 0, 1)


@pytest.mark.sweep
def test_twenty_thousand_steps_are_joined(tmp_path):
    """Of seven peers: 12.5 MB. benchmarks/peers_agreement.py has the time; the limit here is for a loaded machine."""
    group = Group(RUN, 7, 2, 4)
    decisions = long_chain(group, 20_000, hash_rings(7))
    log = DecidedLog(tmp_path / "peers.log", group)
    begun = time.process_time()
    assert log.join(decisions, hash_rings(7)[0]) == 20_000
    assert time.process_time() - begun < 8.0
    log.close()
