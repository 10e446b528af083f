"""The search for the strongest attack: against fine grids, against brute force, on the rows that are delivered."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from collab_helpers import normal
from gradless.collab.adversary import line_search as module
from gradless.collab.adversary.base import SHIFT, AttackContext
from gradless.collab.adversary.line_search import search, strongest, try_out
from gradless.collab.aggregation.receivers import Received
from gradless.collab.aggregators import (
    bucketing,
    caf,
    cge,
    compose,
    geometric_median,
    krum,
    mean,
    median,
    multi_krum,
    nna,
    nnm,
    self_centred_clipping,
    trimmed_mean,
)
from gradless.collab.attacks import named
from gradless.errors import BadInput

SEARCHED = ("alie", "foe", "ipm", "dissensus", "spectral", "equivocating-alie")


def attack_context(honest, f):
    return AttackContext(honest, None, f, f, 0, 0)


def heard_by(honest, ears):
    """Views of peers that hear only ``ears[r]`` of the honest ones, and all attackers; None: everybody."""
    count = len(honest)

    def views(extras, sent):
        total = count + len(extras)
        own = torch.eye(count, total, dtype=torch.float64)
        basis = (honest, extras) if len(extras) else (honest,)
        if ears is None and len(sent) == 1:
            return Received(basis, (torch.cat([own, sent[0]]),), tuple(range(count)))
        mine = [list(range(count))] * count if ears is None else ears
        received = tuple(torch.cat([own[list(mine[r])], sent[r if len(sent) > 1 else 0]]) for r in range(count))
        return Received(basis, received, tuple(list(mine[r]).index(r) for r in range(count)))

    return views


def random_ears(count, keep, seed):
    draw = torch.Generator().manual_seed(seed)
    ears = []
    for r in range(count):
        others = [p for p in torch.randperm(count, generator=draw).tolist() if p != r]
        ears.append(sorted([r, *others[: keep - 1]]))
    return ears


def brute_force(rule, honest, attack, views_of, extras, sent):
    """Damage from whole rows, one receiver after the other."""
    views = views_of(extras, sent)
    basis = torch.cat(views.basis)
    received = views.views * (len(honest) if len(views.views) == 1 else 1)
    outputs = torch.stack([rule(r @ basis, pivot=p) for r, p in zip(received, views.pivots, strict=True)])
    away = outputs - honest.mean(0)
    return float(away.mean(0).square().sum() if attack.goal == SHIFT else away.square().sum(1).mean())


RULES = {
    "mean": lambda f: mean(),
    "nna": lambda f: nna(f=f),
    "krum": lambda f: krum(f=f),
    "multi-krum": lambda f: multi_krum(f=f),
    "geometric-median": lambda f: geometric_median(f=f),
    "self-centred-clipping": lambda f: self_centred_clipping(radius=3.0),
    "cge": lambda f: cge(f=f),
    "trimmed-mean": lambda f: trimmed_mean(f=f),
    "median": lambda f: median(),
    "nnm+trimmed-mean": lambda f: compose(nnm(f=f), trimmed_mean(f=f)),
    "nnm+geometric-median": lambda f: compose(nnm(f=f), geometric_median(f=f)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("attack", SEARCHED)
@pytest.mark.parametrize("partial", [False, True], ids=["all", "some"])
def test_damage_in_gram_space_is_that_of_whole_rows(name, attack, partial):
    f, honest = 2, normal(9, 50, seed=3) + 0.5
    views_of = heard_by(honest, random_ears(9, 7, 1) if partial else None)
    rule, attack = RULES[name](f), named(attack)
    trial = try_out(attack, attack_context(honest, f), rule, views_of, attack.start())
    original = honest.clone()
    for s in (0.0, 0.4, 1.3, 5.0):
        sent = attack.send(trial.context, s, trial.state)
        expected = brute_force(rule, honest, attack, views_of, trial.extras, sent)
        assert trial.damage(s) == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert torch.equal(honest, original)


def setting(seed):
    """A random group: how many, how spread, how far from the origin, who hears whom."""
    draw = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high, (1,), generator=draw))

    count, size, kind = pick(7, 16), pick(20, 60), pick(0, 4)
    f = pick(1, max(2, (count - 1) // 3))
    honest = normal(count, size, seed=seed + 1)
    if kind == 1:
        honest = honest * 2 * torch.rand(count, 1, generator=draw, dtype=torch.float64)
    if kind == 2:
        honest = honest + 3 * normal(3, size, seed=seed + 2)[torch.randint(3, (count,), generator=draw)]
    if kind == 3:
        honest = honest * normal(size, seed=seed + 3).exp()
    honest = honest + 10 ** float(3 * torch.rand(1, generator=draw) - 1) * normal(1, size, seed=seed + 4)
    ears = random_ears(count, max(count - f, 2 * f + 1), seed) if pick(0, 2) else None
    return honest, f, ears


def share_of_the_best(seed, name, attack):
    """What the search finds, in parts of what a fine grid finds."""
    honest, f, ears = setting(seed)
    trial = try_out(
        named(attack), attack_context(honest, f), RULES[name](f), heard_by(honest, ears), named(attack).start()
    )
    (low, high), unit = trial.range()
    ends = [end for end in (low, high) if end]
    best = max(trial.damage(unit * math.sinh(y / 80 * math.asinh(end / unit))) for end in ends for y in range(81))
    return trial.damage(search(trial.damage, (low, high), unit=unit)) / best


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "attack"),
    [
        *itertools.product(
            ("nna", "trimmed-mean", "nnm+trimmed-mean"), ("alie", "foe", "dissensus", "equivocating-alie")
        ),
        ("geometric-median", "alie"),
        ("geometric-median", "dissensus"),
    ],
)
def test_search_reaches_what_a_fine_grid_finds(name, attack):
    shares = sorted(share_of_the_best(100 * k, name, attack) for k in range(2 if name == "geometric-median" else 4))
    assert shares[0] > 0.95
    assert shares[1] > 0.99


@pytest.mark.parametrize("attack", ["alie", "ipm"])
@pytest.mark.parametrize("seeds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_search_in_the_setting_where_published_ones_stop_early(attack, seeds, record_property):
    record_property("seeds", seeds)
    # 10 honest peers, 2 attackers, 500 columns, NNM and trimmed mean, which a first step of 10 jumps over.
    for seed in range(seeds):
        honest = normal(10, 500, seed=seed) + 0.3
        rule = compose(nnm(f=2), trimmed_mean(f=2))
        trial = try_out(named(attack), attack_context(honest, 2), rule, heard_by(honest, None), None)
        message = strongest(named(attack), attack_context(honest, 2), rule, heard_by(honest, None), None)
        grid = max(trial.damage(0.02 * k) for k in range(400))
        assert trial.damage(message.strength) >= 0.99 * grid
        assert trial.damage(10.0) < 0.9 * grid


@pytest.mark.parametrize("rule", ["nna", "krum", "trimmed-mean", "geometric-median"])
def test_inner_products_of_models_close_together_are_searched_around_their_mean(rule):
    f = 5
    honest = normal(21, 300) + 30 * normal(1, 300, seed=1)  # a zero vector is nowhere near
    views, rule = heard_by(honest, None), RULES[rule](f)
    one, other = (strongest(named(name), attack_context(honest, f), rule, views, None) for name in ("ipm", "foe"))
    trial = try_out(named("ipm"), attack_context(honest, f), rule, views, None)
    assert one.strength == pytest.approx(other.strength - 1)
    assert trial.damage(one.strength) > 10


def test_models_that_agree_get_the_mean_from_inner_products():
    honest = normal(1, 30).expand(6, 30)
    message = strongest(named("ipm"), attack_context(honest, 2), nna(f=2), heard_by(honest, None), None)
    assert message.strength == -1.0


CURVES = {
    "cliff": (lambda s: s * s if s < 2.79 else 0.1, 2.79**2),
    "two cliffs": (lambda s: s * s if s < 1.9 else (0.9 * s * s if s < 2.2 else 0.0), 0.9 * 2.2**2),
    "saw": (
        lambda s: s * s * (1 - 0.25 * math.floor(s / 1.1)) if s < 4.4 else 0.0,
        max((1 - 0.25 * k) * (1.1 * (k + 1)) ** 2 for k in range(4)),
    ),
    "hill": (lambda s: s * s * math.exp(-s), 4 * math.exp(-2)),
    "two hills": (lambda s: math.exp(-((s - 1) ** 2)) + 1.5 * math.exp(-((s - 6) ** 2)), 1.5),
    "for ever": (lambda s: s * s, 100.0),
    "nothing": (lambda s: 3.0, 3.0),
    "falling": (lambda s: 1.0 / (1.0 + s), 1.0),
    "early": (lambda s: 100 * s * s if s < 0.31 else 1.0, 9.61),
    "plateau after a peak": (lambda s: min(s * s, 2.0) if s > 1.7 or s < 1.2 else 2.3 * s * s / 2.89, 2.3),
    "not a number beyond": (lambda s: s * s if s < 3.3 else math.nan, 10.89),
}


@pytest.mark.parametrize("name", CURVES)
def test_search_on_curves_with_a_known_best(name):
    curve, best = CURVES[name]
    asked = []

    def damage(s):
        asked.append(s)
        return curve(s)

    strength = search(damage, (0.0, 10.0))
    assert curve(strength) >= 0.985 * best
    assert len(asked) <= module.EVALUATIONS
    assert len(set(asked)) == len(asked)
    assert all(0.0 <= s <= 10.0 for s in asked)


def test_search_looks_on_both_sides_of_zero():
    assert search(lambda s: s * s if s > 0 else 2 * s * s, (-4.0, 5.0)) == pytest.approx(-4.0)
    assert search(lambda s: -((s + 7.0) ** 2), (-9.0, -2.0)) == pytest.approx(-7.0, abs=0.3)
    assert search(lambda s: 1.0, (2.0, 2.0)) == 2.0
    assert search(lambda s: 3.0, (-4.0, 5.0), origin=-1.0) == -1.0
    near = search(lambda s: (s + 1) ** 2 if s < -0.97 else 0.0, (-1.1, 9.0), unit=0.05, origin=-1.0)
    assert near == pytest.approx(-1.1)
    with pytest.raises(BadInput, match="finite bounds"):
        search(lambda s: s, (0.0, math.inf))


def test_the_scale_of_rows_does_not_matter():
    honest, f = normal(9, 60), 2
    views = [heard_by(rows, None) for rows in (honest, 1e-4 * honest)]
    strengths = [
        strongest(named("dissensus"), attack_context(rows, f), nna(f=f), view, None).strength
        for rows, view in zip((honest, 1e-4 * honest), views, strict=True)
    ]
    assert strengths[0] == pytest.approx(strengths[1], rel=1e-6)


def test_models_far_from_the_origin_need_a_tiny_strength():
    # (1 - eps) mean leaves the group at eps of about spread / length, here 1e-4.
    honest, f = normal(9, 60) + 1e4, 2
    message = strongest(named("foe"), attack_context(honest, f), nna(f=f), heard_by(honest, None), None)
    assert 1e-6 < abs(message.strength) < 1e-3
    trial = try_out(named("foe"), attack_context(honest, f), nna(f=f), heard_by(honest, None), None)
    assert trial.damage(message.strength) >= 0.99 * max(trial.damage(1e-6 * k) for k in range(400))


@pytest.mark.parametrize("attack", ["alie", "foe", "dissensus"])
def test_the_search_sees_who_hears_whom(attack):
    gains = []
    for seed in range(3):
        honest, f = normal(9, 60, seed=seed) * torch.linspace(0.3, 2.0, 9, dtype=torch.float64)[:, None] + 0.5, 2
        some, everybody = heard_by(honest, random_ears(9, 5, seed)), heard_by(honest, None)
        damage = try_out(named(attack), attack_context(honest, f), nna(f=f), some, None).damage
        seeing, blind = (
            strongest(named(attack), attack_context(honest, f), nna(f=f), view, None).strength
            for view in (some, everybody)
        )
        gains.append(damage(seeing) / damage(blind))
    # A search over all n rows misses the cliff where peers that heard less stop believing.
    assert min(gains) >= 0.99
    assert sum(gains) / len(gains) > 1.15


def test_columns_are_a_fair_sample():
    honest, f = normal(9, 6000, seed=5), 2
    rule, views_of, context = trimmed_mean(f=f), heard_by(honest, None), attack_context(honest, f)
    whole = try_out(named("alie"), context, rule, views_of, None, columns=6000)
    part = try_out(named("alie"), context, rule, views_of, None, columns=1500)
    assert whole.sample.shape == (9 + 1 + 1, 6000)
    assert part.sample.shape == (9 + 1 + 1, 1500)
    for s in (0.5, 1.5, 3.0):
        assert part.damage(s) == pytest.approx(whole.damage(s), rel=0.15)
    sampled = strongest(named("alie"), context, rule, views_of, None, columns=1500)
    best = strongest(named("alie"), context, rule, views_of, None, columns=6000)
    assert whole.damage(sampled.strength) >= 0.98 * whole.damage(best.strength)
    assert sampled.gram is None
    mixing = strongest(named("alie"), context, compose(nnm(f=f), rule), views_of, None, columns=1500)
    assert mixing.gram is not None


def test_message_fits_what_the_simulation_needs():
    honest, f = normal(6, 30).float(), 2
    views_of = heard_by(honest, None)
    state = named("mimic").start()
    message = strongest(named("mimic"), attack_context(honest, f), nna(f=f), views_of, state)
    assert message.state.exchanges == 1
    assert message.gram is None
    assert message.coefficients.shape == (1, f, 6)
    message = strongest(named("equivocating-alie"), attack_context(honest, f), nna(f=f), views_of, None)
    assert message.coefficients.shape == (6, f, 7)
    assert message.extras.dtype == torch.float32
    assert message.gram.rows == 7
    again = strongest(named("equivocating-alie"), attack_context(honest, f), nna(f=f), views_of, None)
    assert again.strength == message.strength
    assert torch.equal(again.coefficients, message.coefficients)


def test_no_attackers_send_nothing():
    honest = normal(6, 30)
    message = strongest(named("label-flip"), attack_context(honest, 0), nna(f=0), heard_by(honest, None), None)
    assert message.coefficients.shape == (1, 0, 6)
    assert message.extras.shape == (0, 30)


def test_bounds_and_fixed_strengths_are_kept():
    honest, f = normal(9, 60), 2
    views_of = heard_by(honest, None)
    bounded = strongest(named("alie", bounds=(0.0, 0.5)), attack_context(honest, f), mean(), views_of, None)
    assert bounded.strength == 0.5
    fixed = strongest(named("alie", strength=0.25), attack_context(honest, f), mean(), views_of, None)
    assert fixed.strength == 0.25
    both = strongest(named("alie", bounds=(-3.0, 3.0)), attack_context(honest, f), nna(f=f), views_of, None)
    one = strongest(named("alie", bounds=(0.0, 3.0)), attack_context(honest, f), nna(f=f), views_of, None)
    damage = try_out(named("alie"), attack_context(honest, f), nna(f=f), views_of, None).damage
    assert damage(both.strength) >= 0.99 * damage(one.strength)


def test_peers_that_agree_leave_nothing_to_search():
    honest = normal(1, 30).expand(6, 30)
    message = strongest(named("alie"), attack_context(honest, 2), nna(f=2), heard_by(honest, None), None)
    assert message.strength == 0.0


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("rule", ["nna", "krum", "trimmed-mean", "nnm+trimmed-mean"])
@pytest.mark.parametrize("name", [*SEARCHED, "anticge", "mimic", "two-faced"])
def test_a_diverged_honest_peer_does_not_stop_the_attack(name, rule, lost):
    honest, f = normal(10, 30) + 0.3, 2
    honest[lost] = math.nan
    attack, rule, views_of = named(name), RULES[rule](f), heard_by(honest, None)
    message = strongest(attack, attack_context(honest, f), rule, views_of, attack.start())
    basis = torch.cat([honest, message.extras])
    used = (message.coefficients != 0).flatten(0, 1).any(0)
    assert bool(basis[used].isfinite().all())
    assert not used[lost]
    trial = try_out(attack, attack_context(honest, f), rule, views_of, attack.start())
    assert 0.0 < trial.damage(message.strength) < math.inf
    if attack.strength is None:
        least = trial.damage(0.0) if name not in ("ipm",) else 0.0
        assert message.strength != 0.0
        assert trial.damage(message.strength) > least


def test_a_lost_column_of_one_peer_is_seen_outside_the_sample():
    honest, f = normal(10, 4000), 2
    honest[4, 7] = math.nan
    message = strongest(
        named("alie"), attack_context(honest, f), trimmed_mean(f=f), heard_by(honest, None), None, columns=200
    )
    assert not (message.coefficients[..., 4] != 0).any()
    assert bool(message.extras.isfinite().all())


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("rule", "attack", "gain"),
    [("krum", "dissensus", 1.1), ("nnm+trimmed-mean", "dissensus", 1.02), ("caf", "alie", 1.05)],
)
def test_the_better_sign_is_found(rule, attack, gain):
    f, ratios, shares = 3, [], []
    for seed in range(4):
        honest = normal(10, 200, seed=seed) + 0.3
        make = caf(f=f) if rule == "caf" else RULES[rule](f)
        trial = try_out(named(attack), attack_context(honest, f), make, heard_by(honest, None), None)
        (low, high), unit = trial.range()
        assert low == -high
        steps = [unit * math.sinh(y / 40 * math.asinh(high / unit)) for y in range(41)]
        one, other = (max(trial.damage(sign * s) for s in steps) for sign in (1.0, -1.0))
        ratios.append(other / one)
        message = strongest(named(attack), attack_context(honest, f), make, heard_by(honest, None), None)
        shares.append(trial.damage(message.strength) / max(one, other))
    assert max(ratios) > gain  # the other sign is the better one somewhere
    assert sum(shares) / 4 > 0.95


def test_attackers_know_the_shuffle():
    honest, f = normal(9, 50, seed=3), 2
    rule, views_of, attack = compose(bucketing(size=2), krum(f=2)), heard_by(honest, None), named("alie")
    damages = []
    for key in (5, 6):
        trial = try_out(attack, attack_context(honest, f), rule, views_of, None, key=key)
        sent = attack.send(trial.context, 1.3, trial.state)
        basis = torch.cat([honest, trial.extras])
        output = rule(views_of(trial.extras, sent).views[0] @ basis, key=key)
        damages.append(trial.damage(1.3))
        assert damages[-1] == pytest.approx(float((output - honest.mean(0)).square().sum()), rel=1e-8)
    assert damages[0] != damages[1]
