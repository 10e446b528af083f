"""The option memory of a simulated group: liars who push against the others for long are left out."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradless import rng
from gradless.collab import attacks
from gradless.collab.aggregation.pair_scores import FEWEST, Memory
from gradless.collab.aggregation.receivers import seen_by_all
from gradless.collab.config import CollabConfig
from gradless.collab.network.exchange import Arrivals, settle
from gradless.collab.simulation.build import Simulation, mixing_rule, network
from gradless.collab.simulation.memory_rule import narrowed, remembering
from gradless.collab.simulation.progress import SimulationState
from gradless.errors import BadInput

CONFIG = CollabConfig(
    dataset=None,
    model="tiny-llama",
    task="sst2",
    payload="coefficients",
    algorithm="bridge",
    rule="trimmed-mean",
    momentum=0.0,
    peers=4,
    byzantine=1,
    attack="sign-flip",
    split="iid",
    memory=100,
)


def exchanges(config, steps, factor):
    """Mixed rows of every step, and the honest ones; the liar sends ``factor`` times their mean."""
    config = config.resolved()
    simulation = Simulation(config, None, mixing_rule(config), attacks.named("none"))
    memory, random = Memory(config.memory), np.random.default_rng(0)
    for _ in range(steps):
        honest = torch.from_numpy((0.8 * random.standard_normal(4) + random.standard_normal((3, 4))).astype(np.float32))
        sent = torch.cat([honest, factor * honest.mean(0, keepdim=True)])
        arrivals = Arrivals(seen_by_all(sent, (0,)), (0,))
        yield remembering(simulation, memory, arrivals, honest), honest, sent


def test_a_liar_is_left_out_once_the_log_shows_it_and_the_rule_expects_one_fewer():
    rule = mixing_rule(CONFIG.resolved())
    for step, (mixed, honest, sent) in enumerate(exchanges(CONFIG, 80, -3.0)):
        assert mixed.shape == (3, 4)
        if step < FEWEST:
            torch.testing.assert_close(mixed[0], rule(sent))
        if step >= 50:
            torch.testing.assert_close(mixed[0], honest.mean(0))


def test_without_liars_nothing_changes():
    rule = mixing_rule(CONFIG.resolved())
    for mixed, _, sent in exchanges(CONFIG, 80, 1.0):
        assert torch.equal(mixed[0], rule(sent))


@pytest.mark.parametrize(
    "changed",
    [
        {"attack": "nan", "rule": "mean"},
        {"attack": "nan"},
        {"attack": "inf"},
        {"attack": "alie", "rule": "bucketing+median", "rule_options": {"size": 2}},
    ],
    ids=lambda changed: f"{changed['attack']}-{changed.get('rule', 'trimmed-mean')}",
)
def test_before_anybody_is_left_out_an_exchange_ends_as_without_memory(changed):
    config = dataclasses.replace(CONFIG, peers=7, **changed).resolved()
    simulation = Simulation(config, None, mixing_rule(config), attacks.named(config.attack))
    learner = SimpleNamespace(poisoned=None)
    transport = network(simulation._replace(learner=learner))
    for step in range(3):
        honest = rng.normal(step, "honest", (6, 4)) + 5
        arrivals, key = transport.exchange(step, "coefficients", honest), rng.fold(config.seed, step)
        mixed = remembering(simulation, Memory(config.memory), arrivals, honest, key=key)
        plain = settle(simulation.rule, arrivals, honest, key=key)
        torch.testing.assert_close(mixed, plain, equal_nan=True)


def against(peers, rows):
    """Memory of 40 steps in which these peers pushed against all others."""
    memory = Memory()
    for step in range(40):
        shared = rng.normal(step, "shared", (1, 4)).numpy()
        sent = shared + 0.3 * rng.normal(step, "own", (rows, 4)).numpy()
        sent[list(peers)] *= -1.0
        memory.append(sent)
    assert memory.left_out(len(peers)) == peers
    return memory


@pytest.mark.parametrize("rule", ["trimmed-mean", "nnm+trimmed-mean"])
@pytest.mark.parametrize("attack", ["ipm", "alie", "foe"])
@pytest.mark.parametrize("gone", [(5,), (0,)], ids=["a-liar", "an-honest-peer"])
def test_attackers_search_against_the_rows_that_the_rule_keeps(attack, rule, gone):
    config = dataclasses.replace(CONFIG, peers=6, byzantine=2, attack=attack, rule=rule).resolved()
    simulation = Simulation(config, SimpleNamespace(poisoned=None), mixing_rule(config), attacks.named(attack))
    memory, honest = against(gone, 6), rng.normal(0, "honest", (4, 4)) + 2

    def damage(attack):
        held = Memory()
        held.rows = list(memory.rows)
        transport = network(simulation._replace(attack=attack), partial(narrowed, config, held))
        arrivals = transport.exchange(0, "coefficients", honest)
        mixed = remembering(simulation, held, arrivals, honest, key=rng.fold(config.seed, 0))
        return float((mixed[0] - honest.mean(0)).square().sum())

    worst = max(damage(attacks.named(attack, strength=strength)) for strength in np.linspace(-4, 4, 41).tolist())
    assert damage(attacks.named(attack, bounds=(-4.0, 4.0))) > 0.95 * worst


def test_attackers_who_are_all_left_out_send_what_does_no_harm(tmp_path):
    config = dataclasses.replace(CONFIG, attack="ipm").resolved()
    simulation = Simulation(config, SimpleNamespace(poisoned=None), mixing_rule(config), attacks.named("ipm"))
    honest = rng.normal(0, "honest", (3, 4)) + 2
    with contextlib.closing(SimulationState(simulation, tmp_path)) as run:
        assert run.network.exchange(0, "coefficients", honest).strength != -1.0
        run.memory.rows = against((3,), 4).rows
        assert run.network.exchange(0, "coefficients", honest).strength == -1.0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"payload": "parameters"}, "memory is of coefficients"),
        ({"memory": 29}, "memory"),
        ({"sync": 5}, "memory needs rows that all peers see"),
        ({"delivery": dataclasses.replace(CONFIG.delivery, drop=0.1)}, "memory needs rows that all peers see"),
    ],
)
def test_where_memory_cannot_work_it_is_refused(changed, sentence):
    with pytest.raises(BadInput, match=sentence):
        dataclasses.replace(CONFIG, **changed).resolved()


def test_runs_without_memory_keep_their_names():
    plain = dataclasses.replace(CONFIG, memory=None)
    assert "memory" not in plain.to_json()
    assert plain.id() != CONFIG.id()
