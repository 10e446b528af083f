"""Whole runs: the same twice, robust where the papers say so, survivors of whatever a peer sends."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from collab_helpers import Quadratic
from gradless.collab.config import CollabConfig, from_json
from gradless.collab.learners.loop import take_steps
from gradless.collab.learners.parameters import Local, ParameterPeers
from gradless.collab.network.delivery import Delivery
from gradless.collab.network.exchange import Arrivals, gather, settle
from gradless.collab.recipes import RECIPES, compared
from gradless.collab.simulation import study, workers
from gradless.collab.simulation.build import build, network
from gradless.collab.simulation.simulate import simulate
from gradless.errors import BadInput
from gradless.report import tables
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
SMALL = CollabConfig(
    dataset="digits", peers=11, byzantine=2, steps=40, batch_size=8, lr=0.5, momentum=0.9, eval_every=20, seed=3
)


def run(folder, **changes):
    return simulate(dataclasses.replace(SMALL, **changes), folder, reporter=QUIET)


def test_a_run_is_the_same_twice_and_has_what_the_contract_says(tmp_path):
    first = run(tmp_path / "a", attack="alie")
    second = run(tmp_path / "b", attack="alie")
    other = run(tmp_path / "c", attack="alie", seed=4)
    for name in ("train_seconds", "seconds_per_step", "peak_memory_bytes"):
        assert first.pop(name) > 0
        del second[name]
    assert first == second
    assert other["accuracy"] != first["accuracy"]
    assert first["status"] == "done"
    assert first["worst_accuracy"] <= first["mean_accuracy"]
    assert first["gradients_per_peer"] == 40 * 8
    assert first["gradient_overhead"] == 1.0
    assert first["bytes_per_peer_step"] == 4810 * 4 * 10
    assert 0.0 < first["alpha"] < 1.0
    assert len(first["accuracy"]) == 9
    assert len(first["weights_sha256"]) == 64
    assert other["weights_sha256"] != first["weights_sha256"]
    notes = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes if note["event"] == "eval"] == [20, 40]
    assert sum(note["event"] == "step" for note in notes) == 40
    held = from_json(json.loads((tmp_path / "a" / "config.json").read_text()))
    assert held == dataclasses.replace(SMALL, attack="alie").resolved()


@pytest.mark.sweep
def test_learning_works_and_averaging_does_not_survive(tmp_path):
    free = run(tmp_path / "free", algorithm="d-sgd", steps=150)
    assert free["mean_accuracy"] > 0.85
    robust = run(tmp_path / "robust", attack="sign-flip", steps=150)
    assert robust["worst_accuracy"] > free["worst_accuracy"] - 0.08
    broken = run(tmp_path / "broken", algorithm="d-sgd", attack="sign-flip", steps=150)
    assert broken["mean_accuracy"] < free["mean_accuracy"] - 0.3


@pytest.mark.parametrize("attack", ["nan", "inf", "gaussian"])
def test_rows_of_rubbish_are_survived(tmp_path, attack):
    result = run(tmp_path, attack=attack)
    assert result["status"] == "done"
    assert result["worst_accuracy"] > 0.3


def test_averaging_rubbish_is_recorded_as_divergence(tmp_path):
    result = run(tmp_path, algorithm="d-sgd", attack="nan")
    assert result["status"] == "diverged"
    assert result["steps"] < 40
    assert result["mean_accuracy"] == 0.0


def test_more_attackers_than_declared_end_no_run(tmp_path):
    result = run(tmp_path, attack="sign-flip", byzantine=1, attackers=4)
    assert result["status"] == "done"
    assert len(result["accuracy"]) == 7


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(mode="first"),
        Delivery(mode="adversarial"),
        Delivery(drop=0.1),
        Delivery(deadline=2.0),
        Delivery(slow=2),
    ],
    ids=str,
)
def test_late_and_lost_messages_are_survived(tmp_path, delivery):
    result = run(tmp_path, delivery=delivery, attack="alie", steps=15)
    assert result["status"] == "done"
    assert math.isfinite(result["consensus_distance"])


@pytest.mark.parametrize(
    ("changes", "share", "fix"),
    [
        ({"delivery": Delivery(deadline=1e-9)}, 0.0, "too few messages come in time: raise --deadline"),
        ({"delivery": Delivery(drop=0.99, deadline=1e-3)}, 0.0, "raise --deadline or lower --drop"),
        ({"delivery": Delivery(mode="first", wait_for=1), "rule": "mean"}, 0.0, "before one comes: raise --wait-for"),
        ({"delivery": Delivery(deadline=1e-9), "peers": 1}, 0.0, None),
        ({"delivery": Delivery(mode="first", wait_for=2), "rule": "mean"}, 1.0, None),
        ({}, 1.0, None),
    ],
)
def test_a_group_that_never_mixes_is_warned_of_once(tmp_path, capsys, changes, share, fix):
    config = dataclasses.replace(SMALL, **{"byzantine": 0, "peers": 4, "steps": 2, "algorithm": "d-sgd", **changes})
    results = [
        simulate(config, tmp_path / "a", reporter=QUIET),
        *study.run_all([config], tmp_path / "b", reporter=QUIET),
        *study.run_all([config, dataclasses.replace(config, seed=4)], tmp_path / "c", reporter=QUIET),
    ]
    assert [result["mixed_share"] for result in results] == [share] * 4
    written = (tmp_path / "c" / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["mixed_share"] for line in written} == {share}
    lines = [line for line in capsys.readouterr().err.splitlines() if "in no step did an honest peer" in line]
    assert len(lines) == (3 if fix else 0)
    assert all(line.endswith(str(fix)) for line in lines)
    assert not fix or lines[2].startswith("2 of 2 runs: ")


@pytest.mark.sweep
def test_an_attack_on_each_receiver_drives_peers_apart(tmp_path):
    same = run(tmp_path / "a", attack="alie", steps=15)
    each = run(tmp_path / "b", attack="dissensus", steps=15)
    assert each["alpha"] > same["alpha"]


@pytest.mark.parametrize(
    "algorithm", ["monna", "nna", "mocwtm", "bridge", "mogm", "gm", "scc", "clipped-gossip", "learn"]
)
@pytest.mark.parametrize("attack", ["label-flip", "foe"])
def test_every_algorithm_runs(tmp_path, algorithm, attack):
    result = run(tmp_path, algorithm=algorithm, attack=attack, steps=6)
    assert result["status"] == "done"
    expected = sum(range(1, 7)) if algorithm == "learn" else 6 * 8
    assert result["gradients_per_peer"] == expected


@pytest.mark.sweep
def test_several_mixing_rounds_contract_more(tmp_path):
    once = run(tmp_path / "1", attack="dissensus", steps=10)
    thrice = run(tmp_path / "3", attack="dissensus", steps=10, rounds=3)
    assert thrice["consensus_distance"] < once["consensus_distance"]
    assert thrice["bytes_per_peer_step"] == 3 * once["bytes_per_peer_step"]


# ---------------------------------------------------------------------------------------------------------------
# one peer on a network does what it does in a simulation


class Hub:
    """A network in one process: what all peers said, for everybody to see."""

    def __init__(self, liars: Mapping[int, object]) -> None:
        self.liars, self.changed = liars, threading.Condition()
        self.messages: dict[tuple[int, str], dict[int, object]] = {}


class Ear:
    """One peer's transport."""

    def __init__(self, hub: Hub, me: int, need: int) -> None:
        self.hub, self.me, self.need = hub, me, need

    def known(self, step: int, tag: str) -> None:
        """Nothing is over before this peer has spoken."""

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        with self.hub.changed:
            heard = self.hub.messages.setdefault((step, tag), dict(self.hub.liars))
            heard[self.me] = rows[0].clone()
            self.hub.changed.notify_all()
            self.hub.changed.wait_for(lambda: len(heard) >= self.need, 60.0)
            return Arrivals(gather(heard, rows[0], self.me), (0,))


@pytest.mark.parametrize("liars", [{}, {9: torch.zeros(3), 10: "a word"}], ids=["nobody lies", "two send rubbish"])
def test_peers_alone_and_peers_together_make_the_same_models(liars):
    targets = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    local = Local(lr=lambda step: 0.3, momentum=0.9, weight_decay=0.01, batch_size=1)
    parts = build(dataclasses.replace(SMALL, attack="none", attackers=0, peers=9))
    together = ParameterPeers(Quadratic(targets), local)
    parts = parts._replace(learner=together)
    alone = [ParameterPeers(Quadratic(targets[i : i + 1]), local) for i in range(9)]
    take_steps(together, network(parts), lambda got, rows, step: settle(parts.rule, got, rows), 10)
    hub = Hub(liars)
    with ThreadPoolExecutor(len(alone)) as pool:
        lives = [
            pool.submit(
                take_steps,
                peer,
                Ear(hub, i, len(alone) + len(liars)),
                lambda got, rows, step: settle(parts.rule, got, rows),
                10,
            )
            for i, peer in enumerate(alone)
        ]
        for life in lives:
            life.result()
    assert torch.allclose(torch.cat([peer.theta for peer in alone]), together.theta, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# folders, studies, recipes


def test_a_finished_run_is_kept_and_another_one_refused(tmp_path):
    first = run(tmp_path, steps=3)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    assert run(tmp_path, steps=3) == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    with pytest.raises(BadInput, match="holds a run with other settings"):
        run(tmp_path, steps=4)


def test_an_unfinished_run_starts_over(tmp_path):
    first = run(tmp_path, steps=3)
    (tmp_path / "result.json").unlink()
    again = run(tmp_path, steps=3)
    assert again["accuracy"] == first["accuracy"]


def test_a_comparison_goes_on_where_it_was(tmp_path):
    configs = [dataclasses.replace(SMALL, steps=3, attack=attack) for attack in ("alie", "foe", "sign-flip")]
    study.run_all(configs[:2], tmp_path, reporter=QUIET)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert len(done) == 2
    results = study.run_all(configs, tmp_path, recipe="mine", reporter=QUIET)
    assert len(results) == 3
    assert {path: path.stat().st_mtime_ns for path in done} == done
    lines = [json.loads(line) for line in (tmp_path / study.RESULTS).read_text().splitlines()]
    assert sorted(line["attack"] for line in lines) == ["alie", "foe", "sign-flip"]
    assert all(len(line["curve"]) == 1 for line in lines)


def test_a_folder_holds_runs_on_one_data_set_alone(tmp_path):
    inputs = np.arange(240.0).reshape(60, 4)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x=inputs, y=np.arange(60) % 2)
    files = [str(tmp_path / f"{name}.npz") for name in "ab"]
    small = dataclasses.replace(SMALL, dataset="npz", net="logreg", steps=1, split="iid", split_parameter=None)
    both = [[dataclasses.replace(small, data=file, seed=seed) for seed in (1, 2)] for file in files]
    study.run_all(both[0], tmp_path / "out", reporter=QUIET)
    with pytest.raises(BadInput, match=r"holds runs with other settings .data"):
        study.run_all(both[1], tmp_path / "out", reporter=QUIET)


def test_a_folder_holds_runs_of_one_version_of_a_plugin(tmp_path, monkeypatch):
    configs = [dataclasses.replace(SMALL, plugins={"/a/own.py": digits * 64}).resolved for digits in "01"]
    monkeypatch.setattr("gradless.plugins.require", lambda *some: None)
    monkeypatch.setattr("gradless.plugins.used_again", lambda names, recorded: recorded)
    old, new = (config() for config in configs)
    (tmp_path / "runs" / old.id()).mkdir(parents=True)
    (tmp_path / "runs" / old.id() / "config.json").write_text(json.dumps(old.to_json()))
    with pytest.raises(BadInput, match=r"other settings .plugin own.py 000"):
        study.run_all([new, dataclasses.replace(new, seed=9)], tmp_path, reporter=QUIET)


def test_runs_with_and_without_memory_are_of_two_folders():
    assert "memory" in study.SHARED  # the lines of results.jsonl do not tell them apart
    told = {*study.SHARED, *study.ASKED, *study.GRAPH_FIELDS}
    fields = {one.name for one in dataclasses.fields(CollabConfig)} - told
    compared = {"data", "reward", "reward_sha256", "plugins"}  # by what they hold
    assert fields == {*compared, "reward_timeout", "device"}


def test_runs_that_are_finished_elsewhere_are_not_made_again(tmp_path, monkeypatch):
    configs = [dataclasses.replace(SMALL, steps=3, attack=attack) for attack in ("alie", "foe", "sign-flip")]
    first, second = tmp_path / "a", tmp_path / "b"
    study.run_all(configs[:2], first, reporter=QUIET)
    old = {line["attack"]: line for line in map(json.loads, (first / study.RESULTS).read_text().splitlines())}
    assert old["foe"]["delivery"]["mode"] == "all"
    brief = [{key: value for key, value in line.items() if key != "delivery"} for line in old.values()]
    (first / study.RESULTS).write_text("".join(json.dumps(line) + "\n" for line in brief))  # as it was written once
    attacks: list[str] = []
    real = workers.simulate_claimed

    def counted(config, *more):
        attacks.append(config.attack)
        return real(config, *more)

    monkeypatch.setattr(workers, "simulate_claimed", counted)
    results = study.run_all(configs, second, known=[first / study.RESULTS], reporter=QUIET)
    assert attacks == ["sign-flip"]
    assert [one["worst_accuracy"] for one in results[:2]] == [
        json.loads((first / "runs" / config.resolved().id() / "result.json").read_text())["worst_accuracy"]
        for config in configs[:2]
    ]
    assert results[0]["delivery"] == old["alie"]["delivery"]
    study.run_all(configs, second, recipe="mine", reporter=QUIET)
    assert set(attacks) == {"sign-flip"}
    lines = {line["attack"]: line for line in map(json.loads, (second / study.RESULTS).read_text().splitlines())}
    assert set(lines) == {"alie", "foe", "sign-flip"}
    assert lines["foe"] == {**old["foe"], "reused": "results.jsonl", "recipe": "mine"}
    assert any("taken over from results.jsonl" in table.caption for table in tables(second))
    with pytest.raises(BadInput, match="no finished run"):
        study.run_all([dataclasses.replace(SMALL, steps=4)], tmp_path / "c", known=[first / study.RESULTS])
    assert not (tmp_path / "c").exists()


def test_nothing_runs_if_one_of_the_runs_cannot(tmp_path):
    configs = [SMALL, dataclasses.replace(SMALL, algorithm="mocwtm", byzantine=6, attack="foe")]
    with pytest.raises(BadInput, match="mocwtm with 6 of 11"):
        study.run_all(configs, tmp_path / "out", reporter=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"byzantine": 11}, "byzantine is 11"),
        ({"attack": "none", "attackers": 2}, "need an --attack"),
        ({"attack": "foe", "byzantine": 0}, "needs attackers"),
        ({"attack": "foo"}, "unknown attack 'foo'"),
        ({"algorithm": "mona"}, "did you mean 'monna'"),
        ({"dataset": None}, "name a --dataset"),
        ({"dataset": "mnist"}, "needs files"),
        ({"dataset": "mnist", "data": "/nowhere"}, "does not exist"),
        ({"net": "cnn-mnist"}, "takes images"),
        ({"split": "dirichlet"}, "unknown split"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"rule": "nnm+krum", "byzantine": 6}, "6"),
        ({"payload": "coefficients", "momentum": 0.0}, "language model"),
        ({"payload": "coefficients", "momentum": 0.0, "method": "meso"}, "did you mean 'mezo'"),
        ({"method": "mezo-adam"}, "add --payload coefficients"),
        ({"refresh": 5}, "nothing decays"),
        ({"freeze": ("bias",)}, "leave freeze out"),
        ({"rule": "median", "byzantine": 6}, "needs n > 2 f"),
        ({"algorithm": "scc", "byzantine": 6}, "needs n > 2 f"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, change, match):
    with pytest.raises(BadInput, match=match):
        run(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_sound(name):
    recipe = RECIPES[name]
    runs = compared(recipe)
    points = [run.resolved().id() for run in runs]
    attacked = [run for run in runs if run.byzantine]
    assert len(set(points)) == len(points)
    # Each point of the comparison is a run of its own: none was lost among its likes.
    axes = recipe.comparison
    honest = "byzantine" in axes and 0 in axes["byzantine"]
    if not honest:
        assert len(attacked) == math.prod(map(len, axes.values()))
    assert recipe.base.resolved().steps > 0
    if recipe.base.payload == "parameters":
        assert any(one.algorithm == "d-sgd" and one.attack == "none" for one in runs)


def test_published_configurations():
    mnist, cifar = RECIPES["monna-mnist"].base, RECIPES["monna-cifar10"].base
    assert (mnist.peers, mnist.byzantine, mnist.steps, mnist.batch_size, mnist.momentum) == (26, 5, 600, 25, 0.99)
    assert [mnist.lr_at(0.75, step) for step in (0, 49, 50, 599)] == [0.75, 0.75, 0.375, 0.0625]
    assert (cifar.peers, cifar.byzantine, cifar.steps, cifar.batch_size) == (16, 3, 2000, 50)
    assert cifar.lr_at(0.5, 1499) == 0.5
    assert cifar.lr_at(0.5, 1500) == pytest.approx(0.050, abs=1e-3)
