"""A peer with a language model by itself: its rows, its ledger, and what peers who agree may not use."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch

from cli_helpers import call
from gradless import ledger
from gradless.collab.config import CollabConfig
from gradless.collab.learners.alone import one_peer
from gradless.collab.simulation.build import build
from gradless.errors import BadInput
from gradless.runs.replay import rebuild
from gradless.system.hashing import weights_sha256


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("train", 24), ("test", 8)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([(("fine", "poor")[i % 2] + f" {i}", 1 - i % 2) for i in range(count)])
    return folder


@pytest.fixture(scope="module")
def config(rows) -> CollabConfig:
    text_options = {"template": "{text} it is", "label_column": "label", "labels": "0=bad,1=good"}
    own = {"train": str(rows / "train.csv"), "test": str(rows / "test.csv"), **text_options}
    return CollabConfig(
        **{"dataset": None, "model": "tiny-llama", "own": own, "num_train": None, "num_test": None, "scheme": "lora"},
        **{"payload": "coefficients", "algorithm": "mocwtm", "momentum": 0.0, "peers": 4, "byzantine": 1, "queries": 2},
        **{"eps": 1e-3, "lr": 1e-2, "steps": 4, "batch_size": 2, "split": "iid", "split_parameter": None},
    )


def take(peer, steps):
    for step in steps:
        mixed = peer.learner.propose(step, "coefficients") if step != 1 else torch.full((1, 2), torch.nan)
        peer.learner.accept(step, "coefficients", mixed)


def tuned(peer) -> str:
    optimizer = peer.learner.members[0].optimizer
    optimizer.flush()
    return weights_sha256((leaf.name, leaf.param) for leaf in optimizer.leaves)


def test_updates_go_to_an_ordinary_ledger_which_a_restart_takes_again(config, tmp_path):
    peer = one_peer(config, 2, folder=tmp_path)
    take(peer, range(3))
    peer.close()
    contents = ledger.read(tmp_path / "ledger")
    assert [move.skipped for move in contents.moves] == [False, True, False]
    model, _ = rebuild(tmp_path / "ledger", say=lambda line: None)
    model.optimizer.flush()
    assert weights_sha256((leaf.name, leaf.param) for leaf in model.optimizer.leaves) == tuned(peer)
    again = one_peer(config, 2, folder=tmp_path)
    assert (again.start, again.base_sha256) == (3, peer.base_sha256)
    assert tuned(again) == tuned(peer)
    take(again, [3])
    again.close()
    assert len(ledger.read(tmp_path / "ledger").moves) == 4
    with pytest.raises(BadInput, match="other settings"):
        one_peer(dataclasses.replace(config, lr=1e-3), 2, folder=tmp_path)
    assert call("replay", tmp_path / "ledger").exit_code == 0


def test_a_peer_alone_has_the_rows_that_it_has_in_a_simulation(config):
    simulated = build(dataclasses.replace(config, delivery=dataclasses.replace(config.delivery, deadline=1e9))).learner
    together = simulated.propose(0, "coefficients")
    for me in (0, 3):
        assert torch.equal(one_peer(config, me).learner.propose(0, "coefficients")[0], together[me])


def test_own_rows_are_all_the_peers_own_and_need_no_test_rows(config, rows):
    text_options = {name: value for name, value in config.own.items() if name not in ("train", "test")}
    peer = one_peer(dataclasses.replace(config, own=text_options), 1, own={"train": str(rows / "test.csv")})
    assert peer.rows == 8
    assert peer.learner.propose(0, "coefficients").shape == (1, 2)
    assert peer.learner.accuracy()[0] != peer.learner.accuracy()[0]  # NaN: nothing to test on


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "zo-sign"}, "not; take mezo"),
        ({"method": "mezo-adam"}, "not; take mezo"),
        ({"sync": 2}, "leave sync out"),
    ],
)
def test_what_could_differ_between_peers_is_refused(config, change, match):
    with pytest.raises(BadInput, match=match):
        one_peer(dataclasses.replace(config, **change), 0)


def test_own_rows_without_a_template_or_training_rows_are_refused(config, rows):
    with pytest.raises(BadInput, match="give --train"):
        one_peer(config, 0, own={"test": "x.csv"})
    with pytest.raises(BadInput, match="template"):
        one_peer(dataclasses.replace(config, own={}, task="sst2"), 0, own={"train": str(rows / "train.csv")})
