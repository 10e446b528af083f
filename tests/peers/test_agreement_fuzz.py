"""Nothing that comes in makes a peer fail or grow: mutated, spliced, replayed, and signed by a liar."""

from __future__ import annotations

import pytest

from agreement_fuzz import attack


def test_five_thousand_messages():
    counts = attack(1, 5000)
    assert counts["handled"] == 5000
    # What comes in gets past the schema and past the signatures often enough to matter.
    assert 500 < counts["refused by the schema"] < 4000
    for name in ("malformed", "checks", "failed", "decided", "convicted"):
        assert counts[name], name
    assert counts["largest outbox"] < 32 * 1000  # bytes that one message brings about


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_million_messages(seed, record_property):
    counts = attack(seed, 100_000)
    for name, value in sorted(counts.items()):
        record_property(name, value)
    assert counts["handled"] == 100_000
    assert counts["decided"]
    assert counts["convicted"]
