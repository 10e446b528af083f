"""Groups with a language model: coefficients by forward passes, LoRA weights by backpropagation."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import torch

from gradless.collab.config import CollabConfig
from gradless.collab.learners.loop import take_steps
from gradless.collab.network.delivery import Delivery
from gradless.collab.network.exchange import settle
from gradless.collab.simulation.build import build, network
from gradless.collab.simulation.simulate import simulate
from gradless.errors import BadInput
from gradless.system.hashing import weights_sha256
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
GOOD, BAD = ("fine", "great", "lovely", "superb"), ("poor", "awful", "dull", "bad")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CollabConfig:
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("train", 64), ("test", 24)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([(GOOD, BAD)[i % 2][i // 2 % 4] + f" {i}", 1 - i % 2] for i in range(count))
    own = {
        "train": str(folder / "train.csv"),
        "test": str(folder / "test.csv"),
        "template": "{text} it is",
        "label_column": "label",
        "labels": "0=bad,1=good",
    }
    return CollabConfig(
        dataset=None,
        model="tiny-llama",
        own=own,
        num_train=None,
        num_test=None,
        scheme="full",
        payload="coefficients",
        algorithm="mocwtm",
        momentum=0.0,
        peers=6,
        byzantine=1,
        queries=3,
        eps=1e-3,
        lr=1e-2,
        steps=5,
        batch_size=4,
        eval_every=3,
        split="iid",
        split_parameter=None,
    )


def test_coefficients_are_a_few_bytes_and_models_stay_equal_bit_for_bit(config, tmp_path):
    """With a rule that treats all alike, one set of weights stands for all; separate ones agree with it exactly."""
    shared = build(config)
    assert len({id(member.optimizer) for member in shared.learner.members}) == 1
    result = simulate(dataclasses.replace(config, attack="sign-flip"), tmp_path, reporter=QUIET)
    assert result["status"] == "done"
    assert result["bytes_per_peer_step"] == 3 * 4 * 5
    assert result["consensus_distance"] == 0.0
    assert result["gradients_per_peer"] == 5 * 4 * 2 * 3


def step_all(parts, steps: int) -> list[str]:
    take_steps(parts.learner, network(parts), lambda got, rows, step: settle(parts.rule, got, rows), steps)
    hashes = []
    for member in parts.learner.members:
        member.optimizer.flush()
        hashes.append(weights_sha256((leaf.name, leaf.param) for leaf in member.optimizer.leaves))
    return hashes


def test_peers_with_their_own_weights_end_with_the_same_bits(config):
    config = dataclasses.replace(config, attack="sign-flip")
    together = step_all(build(config), 4)
    # Nobody is ever late here, but weights are kept apart because somebody might be.
    apart = build(dataclasses.replace(config, delivery=Delivery(deadline=1e9)))
    assert len({id(member.optimizer) for member in apart.learner.members}) == 5
    assert set(step_all(apart, 4)) == set(together)
    assert len(set(together)) == 1


def test_own_pivots_let_models_drift_and_an_exchange_of_parameters_pulls_them_together(config):
    drifting = dataclasses.replace(config, algorithm="monna", attack="none", steps=6, peers=5)
    hashes = step_all(build(drifting), 6)
    assert len(set(hashes)) > 1
    group = build(drifting).learner
    assert group.consensus() == 0.0
    leaves = list(group._leaves())
    for tensors in leaves:
        for peer, leaf in enumerate(tensors):
            leaf.param.data += peer  # from 0 to 4: the mean square distance of a number is 2
    assert group.consensus() == pytest.approx((2 * sum(one[0].param.numel() for one in leaves)) ** 0.5, rel=1e-3)
    parts = build(dataclasses.replace(drifting, sync=3))
    assert parts.learner.exchanges(1) == ("coefficients",)
    assert parts.learner.exchanges(2) == ("coefficients", "parameters")
    rows = parts.learner.propose(2, "parameters")
    parts.learner.accept(2, "parameters", rows.mean(0).expand_as(rows))
    assert len(set(step_all(parts, 0))) == 1


def test_a_run_may_exchange_both(config, tmp_path):
    both = dataclasses.replace(config, algorithm="monna", attack="sign-flip", sync=2, steps=4)
    result = simulate(both, tmp_path, reporter=QUIET)
    assert result["status"] == "done"
    notes = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [note for note in notes if note["event"] == "step"]
    assert [note["exchange"] for note in steps] == ["coefficients", "coefficients", "parameters"] * 2
    models = [note for note in steps if note["exchange"] == "parameters"]
    assert [note["consensus_distance"] is None for note in steps] == [True, True, False] * 2  # models' only
    assert result["consensus_distance"] == pytest.approx(models[-1]["consensus_distance"], rel=1e-3)
    assert result["alpha_max"] == max(note["alpha"] for note in models)  # coefficients are not pooled with models


def test_one_honest_peer_alone_is_plain_mezo(config):
    from gradless.methods import METHODS

    alone = build(dataclasses.replace(config, peers=1, byzantine=0, attack="none", algorithm="d-sgd"))
    member = alone.learner.members[0]
    start = [leaf.param.detach().clone() for leaf in member.optimizer.leaves]
    sha256 = step_all(alone, 4)[0]
    for leaf, value in zip(member.optimizer.leaves, start, strict=True):
        leaf.param.detach().copy_(value)
    named = [(leaf.name, leaf.param) for leaf in member.optimizer.leaves]
    engine = member.optimizer.engine
    twin = METHODS["mezo"].make(named, lr=1e-2, eps=1e-3, seed=config.seed, queries=3, engine=engine)
    for step in range(4):
        twin.step(member.closure(step))
    assert weights_sha256(named) == sha256


def test_a_loss_that_is_not_finite_is_an_infinitely_far_row(config):
    parts = build(dataclasses.replace(config, attack="none"))
    members = parts.learner.members
    broken = members[0]._replace(closure=lambda step: lambda: members[0].closure(step)() * float("nan"))
    parts.learner.members = [broken, *members[1:]]
    rows = parts.learner.propose(0, "coefficients")
    assert rows[0].isnan().all()
    assert rows[1:].isfinite().all()
    parts.learner.accept(0, "coefficients", torch.full_like(rows, float("nan")))
    assert members[1].optimizer.skipped == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("attack", ["alie", "label-flip", "nan"])
def test_lora_weights_are_mixed_like_any_others(config, attack, tmp_path):
    lora = dataclasses.replace(config, payload="parameters", scheme="lora", algorithm="monna", lr=0.1, attack=attack)
    first = simulate(lora, tmp_path / "a", reporter=QUIET)
    second = simulate(lora, tmp_path / "b", reporter=QUIET)
    assert first["status"] == "done"
    assert first["accuracy"] == second["accuracy"]
    assert (first["consensus_distance"] > 0.0) == (attack != "nan")  # without rubbish rows all average the same ones


def test_gradients_of_lora_are_those_of_backpropagation(config):
    parts = build(dataclasses.replace(config, payload="parameters", scheme="lora", attack="none"))
    work = parts.learner.workload
    theta = work.start()
    theta += 0.01 * torch.sin(torch.arange(theta.numel())).view(theta.shape)
    gradient, losses = work.gradients(theta, 0)
    step = 1e-3 * gradient[1] / gradient[1].norm()
    moved = theta.clone()
    moved[1] += step
    change = float(work.gradients(moved, 0)[1][1] - losses[1])
    assert change == pytest.approx(float(gradient[1] @ step), rel=0.1)
    assert not torch.equal(gradient[0], gradient[1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rounds": 2}, "once a step"),
        ({"algorithm": "learn"}, "once a step"),
        ({"payload": "bits"}, "unknown payload"),
        ({"method": "fo-adam"}, "forward"),
        ({"own": {}, "task": "drop"}, "drop.* has no options to choose from"),
        ({"momentum": 0.9}, "mezo-momentum"),
        ({"decay": 10.0}, "does not decay"),
        ({"method": "zo-cons"}, "tries every step on its own batch"),
        ({"method": "zo-blockwise"}, "takes no number of directions"),
    ],
)
def test_bad_input(config, change, match, tmp_path):
    with pytest.raises(BadInput, match=match):
        simulate(dataclasses.replace(config, **change), tmp_path / "out", reporter=QUIET)
    assert not (tmp_path / "out").exists()
