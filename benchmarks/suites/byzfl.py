"""ByzFL's aggregators, pre-aggregators and attacks against those here, on seeded random cases, with counts and reasons.

    pip install --no-deps byzfl==0.0.11
    python benchmarks/suites/byzfl.py --out benchmarks/results/byzfl-differences.json

Neither the source distribution nor the wheel of ByzFL 0.0.11 holds tests, so this compares results instead: its NumPy
float64 path with ours, to a relative 1e-9 of the largest entry. Where a class cannot be compared entry by entry, the
case says what is: the objective that both minimise, the mean that buckets keep, the damage that a search finds. A case
that differs is counted with its reason. ByzFL draws from NumPy's global generator, which is seeded for each case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradless.collab import attacks
from gradless.collab.adversary.base import AttackContext
from gradless.collab.adversary.line_search import strongest
from gradless.collab.aggregation.receivers import Received
from gradless.collab.aggregators import PRE_AGGREGATORS, Remembering, bucketing, centred_clipping, named

Answer = tuple[bool, str]  # whether both agree, and otherwise why not


def rows_of(n: int, width: int, seed: int) -> np.ndarray:
    """Rows of different lengths around a common point, of which one or two stand out."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, width)) * draw.uniform(0.5, 2, size=(n, 1)) + 3 * draw.normal(size=width)
    x[draw.integers(n)] *= draw.choice([-4.0, 0.1, 6.0])
    x[draw.integers(n)] += draw.normal(size=width) * 5
    return x


def equal(ours: np.ndarray, theirs: np.ndarray) -> Answer:
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return False, "one of them is not finite"
    some = np.isfinite(theirs)
    apart, size = np.abs(ours[some] - theirs[some]).max(initial=0.0), np.abs(theirs[some]).max(initial=1.0)
    return bool(apart <= 1e-9 * size), "" if apart <= 1e-9 * size else "other numbers"


def top_eigenvalue(x: np.ndarray, point: np.ndarray, f: int) -> float:
    """The least top eigenvalue of the covariance of n - f rows whose mean is the point; infinite if there are none."""
    subsets = [list(s) for s in itertools.combinations(range(len(x)), len(x) - f)]
    own = [s for s in subsets if np.abs(x[s].mean(0) - point).max() <= 1e-9 * np.abs(point).max()]
    return min((np.linalg.svd(x[s] - x[s].mean(0))[1][0] for s in own), default=np.inf)


def smea(b: Any, x: np.ndarray, f: int) -> Answer:
    ours, theirs = named("smea", f=f)(x), b.SMEA(f=f)(x.copy())
    same, reason = equal(ours, theirs)
    if same:
        return True, ""
    better = top_eigenvalue(x, ours, f) < top_eigenvalue(x, theirs, f)
    return (
        False,
        "theirs takes one power iteration from a random vector; ours has the smaller eigenvalue" if better else reason,
    )


def exact_caf(x: np.ndarray, f: int) -> np.ndarray:
    """The filter with exact principal directions, on the rows themselves."""
    weights, least, best = np.ones(len(x)), np.inf, x[0]
    while True:
        share = weights / weights.sum()
        away = x - share @ x
        _, values, directions = np.linalg.svd(np.sqrt(share)[:, None] * away, full_matrices=False)
        if values[0] < least:
            least, best = values[0], share @ x
        outward = np.square(away @ directions[0])
        weights = weights * np.maximum(0.0, 1 - outward / outward[weights > 0].max())
        if weights.sum() <= len(x) - 2 * f:
            return best


def caf(b: Any, x: np.ndarray, f: int) -> Answer:
    ours, theirs = named("caf", f=f)(x), b.CAF(f=f)(x.copy())
    if theirs is None:
        return False, "theirs returns None"
    same, reason = equal(ours, theirs)
    if not same and equal(ours, exact_caf(x, f))[0]:
        reason = "theirs takes one power iteration from a random vector; ours is what NumPy's SVD gives"
    return same, reason


def buckets(b: Any, x: np.ndarray, f: int) -> Answer:
    """Shuffles differ; buckets of one are the rows, and full buckets keep the mean."""
    ours, theirs = np.sort(bucketing(size=1)(x), 0), np.sort(b.Bucketing(s=1)(x.copy()), 0)
    if not np.array_equal(ours, theirs):
        return False, "buckets of one are not the rows"
    size = next(s for s in (2, 3, 5, len(x)) if len(x) % s == 0)
    return equal(bucketing(size=size)(x).mean(0), b.Bucketing(s=size)(x.copy()).mean(0))


def remembering(b: Any, x: np.ndarray, f: int) -> Answer:
    """Three rounds from the last aggregate on."""
    ours, theirs = Remembering(centred_clipping(radius=2.5, iterations=2)), b.CenteredClipping(L=2, tau=2.5)
    answers = [equal(ours(x + shift), theirs(x + shift)) for shift in (0.0, 0.5, -1.0)]
    return all(same for same, _ in answers), next((reason for same, reason in answers if not same), "")


def arc(b: Any, x: np.ndarray, f: int) -> Answer:
    same, reason = equal(named_pre("arc", f=f)(x), b.ARC(f=f)(x.copy()))
    n, exact = len(x), 2 * f * (len(x) - f) // len(x)
    if not same and int(np.floor(2 * (f / n) * (n - f))) != exact:
        return False, "theirs rounds k = 2 f (n - f) / n down from a float that is below it"
    return same, reason


def named_pre(name: str, **options: Any) -> Any:
    return PRE_AGGREGATORS[name].make(**options)


def plain(ours: Callable[[int], Any], theirs: Callable[[Any, int], Any]) -> Callable[[Any, np.ndarray, int], Answer]:
    return lambda b, x, f: equal(ours(f)(x), theirs(b, f)(x.copy()))


def sent(name: str, **options: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Our attack as a function of the honest rows, like theirs."""

    def row(x: np.ndarray) -> np.ndarray:
        attack, honest = attacks.named(name, **options), torch.from_numpy(x)
        context = AttackContext(honest, None, attackers=1, declared=1, step=0, seed=0)
        extras, state = attack.extras(context, attack.start())
        strength = 0.0 if attack.strength is None else attack.strength
        coefficients = attack.send(context, strength(context) if callable(strength) else strength, state)
        basis = torch.cat((honest, extras))
        used = coefficients[0, 0] != 0
        return (coefficients[0, 0][used] @ basis[used]).numpy()

    return row


def optimal(name: str, theirs: str) -> Callable[[Any, np.ndarray, int], Answer]:
    """The damage to NNM and a trimmed mean that both searches reach; ours may try negative strengths too."""

    def case(b: Any, x: np.ndarray, f: int) -> Answer:
        f = max(f, 1)
        honest, rule = torch.from_numpy(x), named("nnm+trimmed-mean", f=f)
        if len(x) <= f:
            return True, ""

        def damage(row: np.ndarray) -> float:
            return float(np.linalg.norm(rule(np.concatenate((x, np.repeat(row[None], f, 0)))) - x.mean(0)))

        def views(extras: torch.Tensor, coefficients: torch.Tensor) -> Received:
            eye = torch.eye(len(x), len(x) + len(extras), dtype=torch.float64)
            basis = (honest, extras) if len(extras) else (honest,)
            return Received(basis, (torch.cat((eye, coefficients[0])),), tuple(range(len(x))))

        attack = attacks.named(name)
        context = AttackContext(honest, None, attackers=f, declared=f, step=0, seed=0)
        message = strongest(attack, context, rule, views, attack.start())
        ours = damage((message.coefficients[0, 0] @ torch.cat((honest, message.extras))).numpy())
        other = damage(getattr(b, theirs)(agg=b.TrMean(f=f), pre_agg_list=[b.NNM(f=f)], f=f)(x.copy()))
        if ours < other * 0.999:
            return False, "theirs does more harm"
        return ours <= other * 1.001, "" if ours <= other * 1.001 else "ours does more harm"

    return case


def noise(b: Any, x: np.ndarray, f: int) -> Answer:
    """Mean and deviation of 100,000 numbers."""
    wide = np.zeros((3, 100_000))
    ours, theirs = sent("gaussian")(wide), b.Gaussian()(wide)
    near = max(abs(ours.mean() - theirs.mean()), abs(ours.std() - theirs.std())) < 0.02
    return near, "" if near else "other moments"


CASES: dict[str, Callable[[Any, np.ndarray, int], Answer]] = {
    "Average": plain(lambda f: named("mean"), lambda b, f: b.Average()),
    "Median": plain(lambda f: named("median"), lambda b, f: b.Median()),
    "TrMean": plain(lambda f: named("trimmed-mean", f=f), lambda b, f: b.TrMean(f=f)),
    "GeometricMedian": plain(
        lambda f: named("geometric-median", nu=0.1, iterations=3, tolerance=0.0, start="origin"),
        lambda b, f: b.GeometricMedian(nu=0.1, T=3),
    ),
    "Krum": plain(lambda f: named("krum", f=f), lambda b, f: b.Krum(f=f)),
    "MultiKrum": plain(lambda f: named("multi-krum", f=f), lambda b, f: b.MultiKrum(f=f)),
    "CenteredClipping": remembering,
    "MDA": plain(lambda f: named("mda", f=f), lambda b, f: b.MDA(f=f)),
    "MoNNA": lambda b, x, f: equal(named("nna", f=f)(x, pivot=1), b.MoNNA(f=f, idx=1)(x.copy())),
    "Meamed": plain(lambda f: named("meamed", f=f), lambda b, f: b.Meamed(f=f)),
    "CAF": caf,
    "SMEA": smea,
    "NNM": plain(lambda f: named_pre("nnm", f=f), lambda b, f: b.NNM(f=f)),
    "Bucketing": buckets,
    "Clipping": plain(lambda f: named_pre("clipping", norm=4.0), lambda b, f: b.Clipping(c=4.0)),
    "ARC": arc,
    "SignFlipping": plain(lambda f: sent("sign-flip"), lambda b, f: b.SignFlipping()),
    "InnerProductManipulation": plain(
        lambda f: sent("ipm", strength=2.0), lambda b, f: b.InnerProductManipulation(tau=2.0)
    ),
    "ALittleIsEnough": plain(lambda f: sent("alie", strength=-1.5), lambda b, f: b.ALittleIsEnough(tau=1.5)),
    "Inf": plain(lambda f: sent("inf"), lambda b, f: b.Inf()),
    "Gaussian": noise,
    "Optimal_InnerProductManipulation": optimal("ipm", "Optimal_InnerProductManipulation"),
    "Optimal_ALittleIsEnough": optimal("alie", "Optimal_ALittleIsEnough"),
}
NOT_COMPARED = {
    "Mimic": "theirs copies a row that the user names; ours learns which one to copy",
    "LabelFlipping": "theirs is the mean of gradients of poisoned clients; ours is a peer with poisoned data",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--cases", type=int, default=40, help="random cases of each class")
    arguments = parser.parse_args()
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this file's own folder would hide the package of its name
    from aggregators import byzfl_or_none

    byzfl = byzfl_or_none()
    if byzfl is None:
        sys.exit("byzfl is not installed: pip install --no-deps byzfl==0.0.11")
    torch.set_num_threads(1)
    table: dict[str, Any] = {}
    for name, case in CASES.items():
        agree, reasons = 0, Counter()
        for seed in range(arguments.cases):
            draw = np.random.default_rng(seed)
            n = int(draw.integers(5, 11))
            f, width = int(draw.integers(0, (n + 1) // 2)), int(draw.integers(2, 60))
            np.random.seed(seed)  # noqa: NPY002
            try:
                same, reason = case(byzfl, rows_of(n, width, seed), f)
            except Exception as error:  # theirs: ours raises BadInput only, which is a difference too
                same, reason = False, f"{type(error).__name__}: {error}"[:120]
            agree += bool(same)
            if not same:
                reasons[reason] += 1
        table[name] = {"cases": arguments.cases, "agree": agree, **({"differ": dict(reasons)} if reasons else {})}
        print(name, json.dumps(table[name]), flush=True)
    total = {"byzfl": "0.0.11", "torch": torch.__version__, "numpy": np.__version__, "not_compared": NOT_COMPARED}
    if arguments.out:
        arguments.out.write_text(json.dumps({**total, "classes": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
