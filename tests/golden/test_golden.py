"""Ledgers of version 1, one of every method with full and LoRA tuning, replay for ever, with the same hashes."""

from __future__ import annotations

import json
import shutil

import pytest
from record import HERE, invoke

from gradless import ledger
from gradless.errors import BadInput
from gradless.methods import METHODS

EXPECTED = HERE / "expected"
TUNED = json.loads((EXPECTED / "tune.json").read_text())
REPLAYABLE = [name for name in TUNED if METHODS[name.split("/")[0]].replays]
UNEVEN = [name for name in REPLAYABLE if "adam" in name]


def ledger_of(name):
    return f"{name.replace('/', '-')}.ledger"


@pytest.mark.parametrize("name", [name for name in REPLAYABLE if name not in UNEVEN])
def test_a_ledger_of_version_1_replays(name, monkeypatch):
    monkeypatch.chdir(EXPECTED / "ledgers")
    assert invoke(["replay", ledger_of(name)]).split()[-1] == TUNED[name]["replayed_until_end"]


@pytest.mark.parametrize("name", UNEVEN)
def test_steps_of_adam_give_the_same_bits_on_every_processor(name, monkeypatch, tmp_path):
    """Their ledgers of arithmetic 1 are refused: whose roots they hold is not known. Its steps replay as those of 2."""
    shutil.copytree(EXPECTED / "ledgers", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ledger_of(name)
    contents = ledger.read(path)
    with pytest.raises(BadInput, match="written with arithmetic 1, this gradless has 2: install a release"):
        ledger.check_release(contents.header)
    ledger.relabel(path, contents, {**contents.header, "arithmetic": 2})
    assert invoke(["replay", path.name]).split()[-1] == TUNED[name]["replayed_until_end"]


def test_every_method_that_replays_has_a_ledger():
    names = {f"{name}/{scheme}" for name, method in METHODS.items() if method.replays for scheme in ("full", "lora")}
    assert names == set(REPLAYABLE)
