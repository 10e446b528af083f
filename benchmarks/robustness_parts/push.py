"""How far liars push a mixed coefficient towards signs that they choose, by rule, n, f and K: a search for the worst.

Rows of honest peers are drawn anew in every trial; the liars know all of them. What is maximised is

    push = 1/K sum_k s_k (rule(rows)_k - mean of the honest rows_k) / sigma,

with s the signs that they want and sigma the standard deviation of the honest rows about their mean. For every trial
the search starts from rows that lie together (at the mean and beyond it, along s and along single honest rows) and goes
on with random changes of all liars' rows that shrink while they do not help (an evolution strategy with one parent).
The figure is a lower bound of the worst push; more search moved it by less than 0.01 where that was tried.

Data: *like*, honest rows are independent and normal. *unlike*: two camps of peers, half of the spread between them,
because they see other labels: rows are plus or minus a common normal number, and noise of the same variance.
"""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradless.runs.record import versions
from gradless.system.atomic import write_text
from gradless.system.machine import processor
from robustness_parts.rules import RULES, Rule, compare

GROUPS: Final = ((4, 1), (7, 2), (10, 3), (16, 3))
WIDTHS: Final = (4, 1, 16)
TRIALS: Final = 240
ROUNDS: Final = 60  # of the evolution strategy
CHILDREN: Final = 8
STARTS: Final = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 30.0)
UNBOUNDED: Final = 5.0  # a push that follows the liars so far has no bound


def honest_rows(random: np.random.Generator, data: str, trials: int, peers: int, width: int) -> np.ndarray:
    """Rows [trials, peers, width] of honest peers."""
    noise = random.standard_normal((trials, peers, width))
    if data == "like":
        return noise
    camp = np.where(np.arange(peers) < (peers + 1) // 2, 1.0, -1.0)
    return noise + camp[None, :, None] * random.standard_normal((trials, 1, width))


def push_of(
    rule: Rule, f: int, honest: np.ndarray, liars: np.ndarray, wanted: np.ndarray, away: np.ndarray
) -> np.ndarray:
    """Push [B] of groups: wanted [B, K] = s / sigma, away [B, K] = what to compare with."""
    mixed = rule(np.concatenate([liars, honest], 1), f)  # of equal rows krum takes the first: a liar may be that
    return ((mixed - away) * wanted).mean(1)


def worst(
    rule: Rule,
    f: int,
    honest: np.ndarray,
    signs: np.ndarray,
    random: np.random.Generator,
    *,
    mean: np.ndarray | None = None,
    sigma: np.ndarray | None = None,
    rounds: int = ROUNDS,
) -> tuple[np.ndarray, np.ndarray]:
    """The largest push found in each trial, [trials], and the liars' rows, [trials, f, K].

    Args:
        rule: of `RULES`.
        f: liars.
        honest: [trials, n - f, K] rows that the rule gets.
        signs: [trials, K].
        random: of the search.
        mean: [trials, K] of all honest rows, if the rule does not get all of them.
        sigma: [trials] likewise.
        rounds: of the evolution strategy.
    """
    mean = honest.mean(1) if mean is None else mean
    sigma = spread(honest) if sigma is None else sigma
    wanted = signs / sigma[:, None]
    best, liars = np.full(len(honest), -math.inf), np.zeros((len(honest), f, honest.shape[2]))
    for centre in (mean, *(honest[:, i] for i in range(min(honest.shape[1], 4)))):
        for start in STARTS:
            trial = np.repeat((centre + start * signs * sigma[:, None])[:, None], f, 1)
            best, liars = _better(best, liars, push_of(rule, f, honest, trial, wanted, mean), trial)
    scale = np.full(len(honest), 0.5)
    for _ in range(rounds):
        step = random.standard_normal((CHILDREN, *liars.shape)) * (scale * sigma)[None, :, None, None]
        children = liars[None] + step
        gains = np.stack([push_of(rule, f, honest, child, wanted, mean) for child in children])
        chosen = gains.argmax(0)
        improved = gains.max(0) > best
        best, liars = _better(best, liars, gains.max(0), children[chosen, np.arange(len(liars))])
        scale = np.where(improved, scale * 1.3, scale * 0.85).clip(1e-3, 4.0)
    return best, liars


def spread(rows: np.ndarray) -> np.ndarray:
    """Standard deviation of rows about their mean, over all coefficients of a trial, [trials]."""
    return np.sqrt(rows.var(1, ddof=1).mean(1))


def _better(best: np.ndarray, liars: np.ndarray, gain: np.ndarray, trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    improved = gain > best
    return np.where(improved, gain, best), np.where(improved[:, None, None], trial, liars)


def cell(name: str, data: str, n: int, f: int, width: int) -> dict[str, Any]:
    """One entry of the table: mean push of the worst liars, and the rule's own noise without any."""
    random = np.random.default_rng([n, f, width, data == "like"])  # the same rows for every rule
    honest = honest_rows(random, data, TRIALS, n - f, width)
    signs = np.where(random.random((TRIALS, width)) < 0.5, -1.0, 1.0)
    rule = RULES[name]
    push, _ = worst(rule, f, honest, signs, random)
    alone = honest_rows(random, data, 4000, n, width)
    noise = rule(alone, f).std() / math.sqrt(float(np.square(spread(alone)).mean()))
    return {
        **{"rule": name, "data": data, "n": n, "f": f, "K": width},
        "push": None if push.mean() > UNBOUNDED else float(push.mean()),
        "standard_error": float(push.std() / math.sqrt(TRIALS)),
        "noise": float(noise),
    }


def omission(name: str, data: str, n: int, f: int, width: int) -> dict[str, Any]:
    """The same where a lying leader leaves out f honest rows, the worst choice of them: n - f rows, f of them lies."""
    random = np.random.default_rng([n, f, width, data == "like", 1])
    trials = TRIALS // 4
    honest = honest_rows(random, data, trials, n - f, width)
    signs = np.where(random.random((trials, width)) < 0.5, -1.0, 1.0)
    mean, sigma = honest.mean(1), spread(honest)
    pushes = [
        worst(RULES[name], f, honest[:, list(kept)], signs, random, mean=mean, sigma=sigma)[0]
        for kept in combinations(range(n - f), n - 2 * f)
    ]
    push = np.max(pushes, 0)
    return {
        **{"rule": name, "data": data, "n": n, "f": f, "K": width, "leader": "leaves out f honest rows"},
        "push": None if push.mean() > UNBOUNDED else float(push.mean()),
        "standard_error": float(push.std() / math.sqrt(trials)),
    }


def run(out: Path) -> None:
    """Compute what ``out`` lacks, line by line."""
    compare()
    held = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    if not held:
        held = [
            {
                "part": "push",
                "command": "python benchmarks/peers_robustness.py push",
                "trials": TRIALS,
                **processor(),
                **versions(),
            }
        ]
    keys = ("rule", "data", "n", "f", "K", "leader")
    done = {tuple(line.get(key) for key in keys) for line in held}
    leader = "leaves out f honest rows"
    both = [(data, name) for data in ("like", "unlike") for name in RULES]
    usual, *others = [[(name, data, n, f, width) for n, f in GROUPS for data, name in both] for width in WIDTHS]
    led = [(name, data, n, f, WIDTHS[0]) for n, f in GROUPS[:2] for data, name in both]
    for make, some, mark in ((cell, usual, None), (omission, led, leader), *((cell, one, None) for one in others)):
        for one in some:
            if (*one, mark) not in done:
                held.append(make(*one))
                write_text(out, "".join(json.dumps(line) + "\n" for line in held))
