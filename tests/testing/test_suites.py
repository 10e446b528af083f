"""The suites themselves: every check catches a part that was broken for it, and sound parts pass."""

from __future__ import annotations

import math
import subprocess
import sys
import types

import pytest
import torch

import broken_collab_parts as broken_collab
import broken_parts as broken
import gradless as gl
from gradless import kernels, rng, testing
from gradless.collab.aggregation.gram import CentredGram
from gradless.collab.aggregators import Aggregator, PreAggregator, any_number, more_than
from gradless.collab.attacks import Attack, mean_of_honest, no_extras, to_all
from gradless.directions import Directions
from gradless.errors import BadInput
from gradless.estimators import Estimate, Estimator
from gradless.gradients import Lazy
from gradless.rules import Rule
from gradless.testing.checks import chance_bound

SUITES = {
    "direction": (testing.direction_checks, [(*row, {}) for row in broken.DIRECTIONS]),
    "estimator": (testing.estimator_checks, [(*row, {}) for row in broken.ESTIMATORS]),
    "rule": (testing.rule_checks, [(*row, {}) for row in broken.RULES]),
    "method": (testing.method_checks, [(*row, {}) for row in broken.METHODS]),
    "aggregator": (testing.aggregator_checks, broken_collab.AGGREGATORS),
    "mix": (testing.mix_checks, broken_collab.MIXES),
    "attack": (testing.attack_checks, broken_collab.ATTACKS),
    "task": (testing.task_checks, broken.TASKS),
}
CASES = [(kind, *row) for kind, (_, rows) in SUITES.items() for row in rows]
ELSEWHERE = {("direction", "same_bits_on_every_kernel")}  # a part cannot break it; a kernel can


def checks_of(kind, tmp_path=None, **claims):
    if kind == "task":
        claims = {"rows": broken.ROWS, **claims}
        if claims.get("data"):
            claims["data"] = tmp_path
    return SUITES[kind][0](**claims)


@pytest.mark.few(12)
@pytest.mark.parametrize(("kind", "name", "part", "claims"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_broken_promise_is_caught_by_its_check(kind, name, part, claims, tmp_path):
    (check,) = (check for check in checks_of(kind, tmp_path, **claims) if check.name == name)
    with pytest.raises(AssertionError) as caught:
        check(part)
    message = str(caught.value)
    assert f"breaks '{name}'" in message
    assert message.startswith(f"the {kind} ")
    assert "\n" not in message
    raising = ("no_columns", "state_round_trip", "rows_are_plain", "without_liars")
    assert "it raised" not in message or name in raising, message
    assert len(message) < 600


def test_every_check_has_a_part_that_it_must_catch():
    tried = {(kind, name) for kind, name, *_ in CASES} | ELSEWHERE
    assert tried == {(kind, check.name) for kind in SUITES for check in checks_of(kind)}


def test_a_kernel_with_a_stuck_sign_is_caught(monkeypatch):
    """Restores perfectly, learns nothing: what integer promotion in a compiled kernel once did."""
    (check,) = (c for c in testing.direction_checks() if c.name == "same_bits_on_every_kernel")
    check(gl.rademacher())

    def sweep(out, p, region, program, mask):
        out.copy_(p.float() * float(program.decays[0]) + float(program.coeffs[0]))

    monkeypatch.setattr(kernels, "backend", lambda device: types.SimpleNamespace(sweep=sweep))
    with pytest.raises(AssertionError, match="other bits"):
        check(gl.rademacher())


# ---------------------------------------------------------------------------------------------------------------
# parts of somebody else, which are sound


def three_valued() -> Directions:
    return Directions("three-valued", draw=broken.good_draw)


def central(eps: float) -> Estimator:
    """Four points a direction: the error falls with eps^4."""

    def estimate(oracle, keys):
        losses = oracle.values([(key, s * eps) for key in keys for s in (2, 1, -1, -2)])
        rows = [losses[i : i + 4] for i in range(0, len(losses), 4)]
        coeffs = tuple((8 * (b - c) - (a - d)) / (12 * eps) for a, b, c, d in rows)
        return Estimate(sum(sum(row[1:3]) / 2 for row in rows) / len(rows), coeffs)

    return Estimator("central", eps, lambda step: 2, estimate, lambda k: 4 * k)


def trust_ratio() -> Rule:
    """Every leaf's update has the length of the leaf."""

    def make(g):
        return lambda leaf: g.leaf(leaf) * (leaf.param.detach().float().norm() / (g.leaf(leaf).norm() + 1e-12))

    return Rule("trust_ratio", lambda: None, lambda g, state: (Lazy(make(g)), state), linear=False)


def midmean(f: int) -> Aggregator:
    """The middle of what is left without the f extremes."""
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise BadInput(f"f of midmean is {f!r}: give a whole number of at least 0")

    def column(x):
        kept = x.nan_to_num(nan=math.inf).sort(0).values[f : len(x) - f]
        return (kept[0] + kept[-1]) / 2

    return Aggregator("midmean", None, column, more_than("midmean", 2, f))


def pairs(f: int) -> PreAggregator:
    """Every row becomes the mean of itself and its nearest neighbour."""

    def weights(gram: CentredGram, key: int) -> torch.Tensor:
        squared = gram.squared().fill_diagonal_(math.inf)
        eye = torch.eye(gram.rows, dtype=torch.float64)
        mixed = (eye + eye[squared.argmin(1)]) / 2
        return torch.where(gram.finite[:, None], mixed, eye)

    return PreAggregator("pairs", weights, any_number)


def pull(strength: float | None = None) -> Attack:
    """Towards twice the honest mean."""
    return Attack("pull", no_extras, lambda scene, s, _: to_all(scene, (1 + s) * mean_of_honest(scene)), strength)


GOOD = [
    *((check, three_valued()) for check in testing.direction_checks()),
    *((check, central(1e-3)) for check in testing.estimator_checks()),
    *((check, trust_ratio()) for check in testing.rule_checks()),
    *(
        (check, lambda params: gl.ZerothOrder(params, rule=gl.scale(0.4), directions=three_valued()))
        for check in testing.method_checks()
    ),
    *((check, midmean) for check in testing.aggregator_checks(box=True)),
    *((check, pairs) for check in testing.mix_checks()),
    *((check, attack) for check in testing.attack_checks() for attack in (pull(), pull(2.0))),
    *((check, broken.SST2) for check in testing.task_checks(rows=broken.ROWS)),
]


@pytest.mark.few(12)
@pytest.mark.parametrize(("check", "part"), GOOD, ids=[f"{check.kind}-{check}" for check, _ in GOOD])
def test_sound_parts_of_others_pass(check, part):
    check(part)


@pytest.mark.sweep
def test_one_call_runs_all_checks_and_stops_at_the_first_broken_promise():
    testing.check_attack(pull())
    testing.check_aggregator(midmean, n=11, f=2, box=True)
    testing.check_mix(pairs)
    testing.check_rule(trust_ratio())
    testing.check_estimator(central(1e-3))
    testing.check_task(broken.SST2, rows=broken.ROWS)
    with pytest.raises(AssertionError, match="breaks 'translation_moves_along'"):
        testing.check_aggregator(lambda f: midmean(f)._replace(column=lambda x: x.median(0).values * 0.5))


def test_a_message_says_how_to_see_it():
    with pytest.raises(AssertionError) as caught:
        testing.check_aggregator(lambda f: midmean(f)._replace(column=lambda x: x[0]))
    assert str(caught.value).startswith(
        "the aggregator 'midmean' breaks 'permutation_moves_nothing' (The order of the rows does not matter, if the "
        "pivot moves along): another order gives another result (rows [11, 4] of seed 0, pivot 0, order ["
    )


def test_an_exception_is_a_broken_promise_and_keeps_its_cause():
    def fails(key, name, p):
        raise ValueError("no such leaf\nand more")

    check = testing.direction_checks()[0]
    with pytest.raises(AssertionError, match="it raised ValueError: no such leaf") as caught:
        check(Directions("failing", draw=fails))
    assert isinstance(caught.value.__cause__, ValueError)
    assert "\n" not in str(caught.value)


def test_checks_name_themselves():
    for kind in SUITES:
        checks = checks_of(kind)
        names = [check.name for check in checks]
        assert len(set(names)) == len(names)
        for check in checks:
            assert str(check) == check.__name__ == check.name
            assert check.kind == kind
            assert check.promise.endswith(".")
            assert len(check.promise) > 20


def test_too_few_rows_are_refused():
    with pytest.raises(BadInput, match="four different ones"):
        testing.task_checks(rows=broken.ROWS[:1] * 9)


def test_sound_sums_stay_within_their_bound_and_biased_ones_do_not():
    """Self-normalised sums of 256 symmetric variables, 2000 of them, with light and with heavy tails."""
    z = rng.normal(0, "z", (256, 2000)).double()
    for values in (z, z**5, z.sign()):
        far = values.sum(0).abs() / values.square().sum(0).sqrt()
        assert 2.5 < float(far.max()) < chance_bound(2000)
        biased = values + 0.5 * values.std()
        assert float((biased.sum(0) / biased.square().sum(0).sqrt()).max()) > chance_bound(2000)


@pytest.mark.sweep
def test_no_pytest_is_needed():
    code = (
        "import sys; sys.modules['pytest'] = None; import gradless.testing as t; "
        "from gradless.collab.adversary.identical import alie; t.check_attack(alie()); "
        "print(*[m for m in ('transformers', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""
