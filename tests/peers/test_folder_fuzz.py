"""Folders of runs that somebody changed: an audit, an excision or a new run ends with an answer or with a sentence."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography")

from folder_fuzz import CASES, WAYS, Folder, attack
from gradless.peers.history import History
from peers_audit_helpers import random_rows, write_run

QUICK = {
    "damaged": (4, ("audit", "opened")),
    "odd_excision": (12, ("continue",)),
    "odd_header": (18, ("audit", "continue")),
    "odd_json": (8, ("opened", "continue")),
    "odd_manifest": (12, ("audit", "opened")),
    "odd_moves": (8, ("audit", "check")),
    "odd_value": (8, WAYS),
}
"""Seeds and ways to look at a folder, by kind of case."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    (folder := tmp_path_factory.mktemp("run")).joinpath("run").mkdir()
    noise = random_rows(5)

    def rows(step: int, peer: int, history: History) -> object:
        return noise(step, peer, history) if peer else [1.0] * 4

    run = write_run(folder / "run", rows, steps=6, commit=True, truthful=(0,))  # type: ignore[arg-type]
    return Folder(run, folder)


@pytest.mark.parametrize("kind", CASES)
def test_a_changed_folder_ends_in_an_answer_or_a_sentence(world: Folder, kind: str) -> None:
    seeds, ways = QUICK[kind]
    ends = [attack(world, kind, seed, ways) for seed in range(seeds)]
    assert any(end[way] != "holds" for end in ends for way in ways)


def test_a_folder_that_nobody_changed_holds_in_every_way(world: Folder) -> None:
    ends = attack(world, "unchanged", 0)
    assert {way: ends[way] for way in WAYS} == dict.fromkeys(WAYS, "holds")


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES)
def test_hundreds_of_changed_folders(world: Folder, kind: str) -> None:
    for seed in range(1000, 1200):
        attack(world, kind, seed)
