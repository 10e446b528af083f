"""Attacks that tell all receivers the same: naive twins, ByzFL's classes, what they may not do."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from gradless.collab.adversary import identical, mimic
from gradless.collab.adversary.base import AttackContext
from gradless.collab.adversary.identical import alie, deviation, quantile
from gradless.collab.adversary.mimic import watch
from gradless.collab.attacks import ATTACKS, named
from gradless.errors import BadInput
from gradless.testing import attack_checks

H, B, D = 7, 3, 40


def attack_context(honest=None, *, attackers=B, declared=None, step=0, seed=0, flipped=None):
    if honest is None:
        honest = normal(H, D, seed=seed + 100)
    return AttackContext(honest, flipped, attackers, attackers if declared is None else declared, step, seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def play(attack, context, *, strength=None, state=None):
    """Rows [R, b, D] that are sent, in float64, and the state after."""
    state = attack.start() if state is None else state
    extras, state = attack.extras(context, state)
    if strength is None:
        strength = 0.7 if attack.strength is None else attack.strength
    if callable(strength):
        strength = strength(context)
    sent = attack.send(context, strength, state)
    assert sent.dtype == torch.float64
    assert sent.shape[1:] == (context.attackers, len(context.honest) + len(extras))
    assert len(sent) in (1, len(context.honest))
    assert extras.dtype == context.honest.dtype
    assert extras.shape[1] == context.honest.shape[1]
    return sent @ torch.cat([context.honest, extras]).double(), state


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("check", attack_checks(), ids=str)
def test_every_attack_keeps_the_contract(name, check):
    claims = {"sees": name not in ("gaussian", "nan", "inf"), "finite": name not in ("nan", "inf")}
    (claimed,) = (c for c in attack_checks(**claims) if c.name == check.name)
    claimed(named(name))


def test_naive_twins():
    context = attack_context()
    x = context.honest.numpy()
    mean, sigma = x.mean(0), x.std(0, ddof=1)
    cases = {
        "none": (named("none"), mean),
        "flip": (named("sign-flip"), -mean),
        "strong flip": (named("sign-flip", strength=2.5), -2.5 * mean),
        "scaled flip": (named("sign-flip", scaled=True), -(H + B - B) / B * mean),
        "alie": (named("alie", strength=1.5), mean - 1.5 * sigma),
        "alie against": (named("alie", strength=1.5, against=True), mean - 1.5 * sigma * np.sign(mean)),
        "foe": (named("foe", strength=0.3), 0.7 * mean),
        "ipm": (named("ipm", strength=0.3), -0.3 * mean),
        "mimic": (named("mimic", target=4), x[4]),
        "nan": (named("nan"), np.full(D, np.nan)),
        "inf": (named("inf"), np.full(D, np.inf)),
    }
    for case, (attack, expected) in cases.items():
        rows, _ = play(attack, context)
        assert len(rows) == 1, case
        np.testing.assert_allclose(rows[0].numpy(), np.tile(expected, (B, 1)), rtol=1e-12, atol=1e-12, err_msg=case)


def test_scaled_sign_flip_brings_the_mean_of_all_to_zero():
    context = attack_context()
    rows, _ = play(named("sign-flip", scaled=True), context)
    assert torch.cat([context.honest, rows[0]]).mean(0).abs().max() < 1e-12


def test_sides_with_byzfl(byzfl):
    context = attack_context()
    x = context.honest.numpy()
    pairs = [
        (named("sign-flip"), byzfl.SignFlipping()),
        (named("ipm", strength=2.0), byzfl.InnerProductManipulation(tau=2.0)),
        (named("alie", strength=-1.5), byzfl.ALittleIsEnough(tau=1.5)),  # which adds sigma
        (named("mimic", target=3), byzfl.Mimic(epsilon=3)),
        (named("inf"), byzfl.Inf()),
    ]
    for attack, theirs in pairs:
        rows, _ = play(attack, context)
        np.testing.assert_allclose(rows[0, 0].numpy(), theirs(x), rtol=1e-12, err_msg=attack.name)


def test_more_attackers_than_declared_are_the_callers_decision():
    rows, _ = play(named("foe", strength=0.5), attack_context(attackers=6, declared=2))
    assert rows.shape == (1, 6, D)


def test_alie_of_the_paper():
    # Baruch et al. 2019: n = 50, m = 24 leaves s = 2 and Phi(z) = 24 / 26.
    context = attack_context(normal(26, 5), attackers=24)
    assert quantile(context) == pytest.approx(NormalDist().inv_cdf(24 / 26))
    assert quantile(context) == pytest.approx(1.4261, abs=1e-4)
    rows, _ = play(alie(strength="paper"), context)
    x = context.honest
    torch.testing.assert_close(rows[0, 0], x.mean(0) - quantile(context) * x.std(0))
    with pytest.raises(BadInput, match="no z for 6 attackers among 10"):
        quantile(attack_context(normal(4, 5), attackers=6))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_deviation_in_tiles(monkeypatch, dtype, error):
    monkeypatch.setattr(identical, "TILE", 16)
    rows = normal(6, 50).to(dtype)
    deviations = deviation(rows)
    assert deviations.dtype == dtype
    torch.testing.assert_close(deviations.double()[0], rows.double().std(0), rtol=error, atol=error)
    assert torch.equal(deviation(rows[:1]), torch.zeros(1, 50, dtype=dtype))


def test_deviation_of_long_rows_that_hardly_differ():
    rows = (300.0 + 1e-2 * normal(8, 64)).float()
    torch.testing.assert_close(deviation(rows)[0].double(), rows.double().std(0), rtol=1e-5, atol=0)


def test_label_flip_sends_what_it_is_given():
    flipped = normal(1, D, seed=5)
    rows, _ = play(named("label-flip"), attack_context(flipped=flipped))
    torch.testing.assert_close(rows, flipped.expand(1, B, D))
    assert named("label-flip").flips
    with pytest.raises(BadInput, match=r"give AttackContext\.flipped"):
        play(named("label-flip"), attack_context())


def test_gaussian_is_named_by_seed_step_and_attacker():
    honest = normal(3, 20_000)
    first, _ = play(named("gaussian", strength=2.0), attack_context(honest, seed=1, step=1))
    assert abs(float(first.mean())) < 0.05
    assert float(first.std()) == pytest.approx(2.0, rel=0.02)
    assert not torch.equal(first[0, 0], first[0, 1])
    for other in (attack_context(honest, seed=1, step=2), attack_context(honest, seed=2, step=1)):
        assert not torch.equal(play(named("gaussian", strength=2.0), other)[0], first)
    around, _ = play(named("gaussian", strength=2.0, around="mean"), attack_context(honest, seed=1, step=1))
    torch.testing.assert_close(around, first + honest.mean(0))


def test_anticge_gets_all_attackers_among_the_shortest():
    honest = normal(9, D) * torch.linspace(0.5, 2.0, 9, dtype=torch.float64)[:, None] + 0.3
    context = attack_context(honest, attackers=3)
    rows, _ = play(named("anticge"), context)
    everybody = torch.cat([rows[0], honest])
    shortest = everybody.norm(dim=1).argsort(stable=True)[: len(everybody) - 3]
    assert {0, 1, 2} <= set(shortest.tolist())
    kept = honest[honest.norm(dim=1).argsort()[:6]].mean(0)
    assert float(torch.nn.functional.cosine_similarity(rows[0, 0], -kept, dim=0)) == pytest.approx(1.0)
    # No longer vector would do.
    longest = honest.norm(dim=1).sort().values[6]
    assert float(rows[0, 0].norm()) == pytest.approx(float(longest), rel=1e-5)


def planted(step, *, scale=1.0, offset=100.0):
    """Rows around a common point that moves; peer 5 is farthest out along a fixed direction."""
    direction = normal(200, seed=77)
    direction /= direction.norm()
    positions = torch.tensor([0.5, -1.0, 0.8, -0.6, 1.0, 3.0, -2.0], dtype=torch.float64)
    noise = 0.05 * normal(7, 200, seed=1000 + step)
    return scale * (positions[:, None] * direction + noise) + offset + step, direction


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mimic_learns_the_planted_direction_and_peer(dtype, monkeypatch):
    monkeypatch.setattr(mimic, "TILE", 64)
    attack = named("mimic", learn=15)
    state = attack.start()
    assert state.target == 0
    for step in range(20):
        honest, direction = planted(step, scale=2.0**-step if dtype == torch.float64 else 1.0)
        context = attack_context(honest.to(dtype), step=step)
        rows, state = play(attack, context, state=state)
        if step >= 2:
            assert torch.equal(rows[0, 0], context.honest[5].double())
    assert state.exchanges == 15  # the phase is over
    assert abs(float(state.direction.double() @ direction)) > 0.99
    assert state.direction.dtype == dtype


def test_mimic_without_learning_copies_the_first():
    rows, state = play(named("mimic", learn=0), attack_context())
    assert state.exchanges == 0
    torch.testing.assert_close(rows[0, 0], attack_context().honest[0])


def test_mimic_is_a_function_of_state_and_seed():
    honest, _ = planted(0)
    known = watch(attack_context(honest, seed=3), mimic.Learnt())
    same, other = (watch(attack_context(honest, seed=seed), mimic.Learnt()) for seed in (3, 4))
    assert torch.equal(known.direction, same.direction)
    assert not torch.equal(known.direction, other.direction)
    kept = known.direction.clone()
    watch(attack_context(planted(1)[0]), known)
    assert torch.equal(known.direction, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mimic_passes_over_rows_that_are_not_finite(dtype):
    attack = named("mimic")
    state = attack.start()
    for step in range(12):
        honest, direction = planted(step)
        whole = honest.to(dtype)
        if step >= 6:  # the peer that was copied diverges, and is first; later it is there again
            whole[5, 3] = math.nan if step % 2 else math.inf
            whole[0] = math.nan if step > 8 else whole[0]
        previous = state
        _, state = play(attack, attack_context(whole, step=step), state=previous)
        assert state.exchanges == step + 1
        assert bool(state.places.isfinite().all())
        if step >= 6:
            sent = attack.send(attack_context(whole, step=step), 0.0, state)
            assert torch.equal(sent[0, 0], torch.eye(7, dtype=torch.float64)[6])  # the next one, at the other end
            assert state.places[5] == previous.places[5]
    assert abs(float(state.direction.double() @ direction)) > 0.99
    assert state.places[5].abs() > 8.0  # six exchanges at about 2.7, one of them an estimate
    nobody = torch.full((4, 30), math.nan)
    assert watch(attack_context(nobody), state) is state
    lost = named("mimic", target=1).send(attack_context(torch.cat([normal(1, 30), nobody[:1].double()])), 0.0, state)
    assert lost[0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("broken", [(0,), (2, 6)])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("nan", "inf")])
def test_diverged_honest_peers_change_nothing_but_their_number(name, broken):
    honest = normal(H, D, seed=1)
    fine = [p for p in range(H) if p not in broken]
    honest[broken[0], 3] = math.nan
    honest[broken[-1]] = math.inf if len(broken) > 1 else honest[broken[-1]]
    flipped = normal(1, D, seed=2)
    attack = named(name)

    def sent(rows, attackers):
        context = AttackContext(rows, flipped, attackers, 2, 0, 0)
        extras, state = attack.extras(context, attack.start())
        strength = attack.strength if isinstance(attack.strength, float) else 0.7
        coefficients = attack.send(context, strength, state)
        basis = torch.cat([rows, extras])
        assert bool((coefficients[..., : len(rows)][..., ~rows.isfinite().all(1)] == 0).all())
        return coefficients @ torch.where(basis.isfinite(), basis, 0.0)

    messages = sent(honest, 2)
    assert bool(messages.isfinite().all())
    if attack.equivocates and "sides" not in ATTACKS[name].options():
        expected = sent(honest[fine], 2)
        torch.testing.assert_close(messages[fine], expected)
    elif name == "anticge":  # declared attackers and broken rows together are what the rule leaves out
        assert float(messages[0, 0].norm()) <= float(honest[fine].norm(dim=1).max())
    elif name == "mimic":
        assert (honest[fine] == messages[0, 0]).all(1).any()
    else:
        torch.testing.assert_close(messages[:1], sent(honest[fine], 2)[:1])
    none = torch.full((3, D), math.nan, dtype=torch.float64)
    assert bool(sent(none, 2).isfinite().all())


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("alei", {}, "did you mean 'alie'"),
        ("alie", {"stength": 1.0}, "did you mean 'strength'"),
        ("nan", {"strength": 1.0}, "has no options"),
        ("alie", {"strength": "papr"}, "give a finite number or paper"),
        ("foe", {"strength": math.inf}, "give a finite number"),
        ("foe", {"strength": True}, "give a finite number"),
        ("ipm", {"bounds": (3.0, 1.0)}, "the least and the greatest"),
        ("sign-flip", {"scaled": True, "strength": 2.0}, "give one of them"),
        ("gaussian", {"around": "median"}, "unknown centre"),
        ("mimic", {"learn": -1}, "at least 0"),
        ("mimic", {"learn": "abc"}, "learn of mimic is 'abc': give a whole number"),
        ("mimic", {"learn": 1.5}, "learn of mimic is 1.5"),
        ("mimic", {"learn": True}, "learn of mimic is True"),
        ("mimic", {"target": 1.5}, "target of mimic is 1.5"),
        ("alie", {"bounds": 5}, "the least and the greatest"),
        ("alie", {"bounds": ["a", "b"]}, "the least and the greatest"),
        ("dissensus", {"bounds": "05"}, "the least and the greatest"),
        ("foe", {"bounds": [0, 10**400]}, "the least and the greatest"),
        ("foe", {"strength": 10**400}, "give a number of at most"),
        ("two-faced", {"of": 5}, "unknown attack '5'"),
        ("two-faced", {"sides": 3}, "unknown kind of sides '3'"),
        ("equivocating-foe", {"sides": [1]}, "unknown kind of sides"),
        ("gaussian", {"around": 1}, "unknown centre of gaussian '1'"),
        ("gaussian", {"around": ["zero"]}, "unknown centre of gaussian"),
        ("gaussian", {"strength": -1}, "give a finite number of at least 0"),
        ("gaussian", {"strength": None}, "give a finite number of at least 0"),
        ("anticge", {"strength": None}, "give a finite number"),
        ("sign-flip", {"scaled": "yes"}, "give true or false"),
        ("alie", {"name": 1}, "unknown option"),
        ("equivocating-alie", {"sides": "left"}, "unknown kind of sides"),
        ("two-faced", {"of": "two-faced"}, "give another attack"),
        ("two-faced", {"of": "aile"}, "did you mean 'alie'"),
    ],
)
def test_bad_input_is_refused(name, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        named(name, **options)


def test_mimic_refuses_a_peer_that_is_not_there():
    with pytest.raises(BadInput, match="there are 7 honest peers"):
        play(named("mimic", target=7), attack_context())


def test_groups_that_an_attack_cannot_work_in_are_refused_before_it_begins():
    for name in ATTACKS:
        named(name).check(1, 5)
    named("mimic", target=6).check(7, 2)
    with pytest.raises(BadInput, match="there are 7 honest peers"):
        named("mimic", target=7).check(7, 2)
    named("alie", strength="paper").check(26, 24)
    with pytest.raises(BadInput, match="no z for 6 attackers among 10"):
        named("equivocating-alie", strength="paper").check(4, 6)


def test_the_table_tells_what_one_must_know():
    for entry in ATTACKS.values():
        assert all((entry.summary, entry.paper, entry.needs, entry.cost))
    assert ATTACKS["alie"].options() == {"strength": None, "bounds": None, "against": False}
