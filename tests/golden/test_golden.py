"""Ledgers of version 1, one of every method with full and LoRA tuning, replay for ever, with the same hashes."""

from __future__ import annotations

import json

import pytest
from record import HERE, invoke

from gradless.methods import METHODS

EXPECTED = HERE / "expected"
TUNED = json.loads((EXPECTED / "tune.json").read_text())
REPLAYABLE = [name for name in TUNED if METHODS[name.split("/")[0]].replays]


@pytest.mark.parametrize("name", REPLAYABLE)
def test_a_ledger_of_version_1_replays(name, monkeypatch):
    monkeypatch.chdir(EXPECTED / "ledgers")
    printed = invoke(["replay", f"{name.replace('/', '-')}.ledger"])
    assert printed.split()[-1] == TUNED[name]["replayed_until_end"]


def test_every_method_that_replays_has_a_ledger():
    names = {f"{name}/{scheme}" for name, method in METHODS.items() if method.replays for scheme in ("full", "lora")}
    assert names == set(REPLAYABLE)
