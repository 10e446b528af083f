"""Small models, many seeds: attacks on groups that agree on coefficients, with and without the rule *memory*.

Logistic regression on scikit-learn's digits (1,438 training images of 8 x 8; 650 weights, from 0), two-sided
differences along K = 4 Gaussian directions, batches of 8, eps 1e-3, plain steps at one rate for all. Peers own equal
parts: *like*, shuffled; *unlike*, sorted by label, so that a peer of seven knows one or two digits of ten. All seeds
of a cell are computed at once. What is told: test accuracy after the last step, and in how many steps *memory* left
out an honest peer (share of honest rows) or a liar.

Liars know all honest rows of the step. ``flip`` sends -3 times their mean; ``alie`` the mean minus 1.5 standard
deviations times its sign, which stays inside the honest spread; ``worst`` searches in every step what pushes the mixed
coefficients farthest against the signs of the mean (`robustness_parts.push`), and does not know of *memory*;
``patient`` knows it: it sends what ``alie`` does while its own score of the steps before is above -2, and the honest
mean, which earns a good score, while it is not; ``framer`` pushes like ``alie``, along the row of one honest peer, so
that this peer's products turn negative.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from gradless.collab.aggregation.pair_scores import FEWEST, THRESHOLD, WINDOW
from gradless.collab.data import datasets
from gradless.collab.data.splits import split
from gradless.runs.record import versions
from gradless.system.atomic import write_text
from gradless.system.machine import processor
from robustness_parts import push
from robustness_parts.rules import RULES, compare

SEEDS, STEPS, WIDTH, BATCH = 20, 600, 4, 8
EPS, RATE = 1e-3, 0.02
PATIENCE: Final = -2.0
GROUPS: Final = ((4, 1), (7, 2))
SPLITS: Final = {"like": "iid", "unlike": "extreme"}
ATTACKS: Final = ("flip", "alie", "worst", "patient", "framer")
SEARCH: Final = 12
"""Rounds of the search of ``worst``, in every step."""
CHOSEN: Final = ("mean", "trimmed-mean", "nnm+trimmed-mean")
MEMORY: Final = ("", "lower f", "keep f")
"""None; rows below the threshold left out and f lowered by as many; the same with f kept where rows suffice."""


class Data(NamedTuple):
    """Digits, as features with a constant 1."""

    x: np.ndarray  # [N, 65]
    labels: np.ndarray
    test_x: np.ndarray
    test_labels: np.ndarray


def load() -> Data:
    """The data set ``digits`` of gradless, pixels from 0 to 1."""
    images = datasets.load("digits")
    flat = [part.float().flatten(1).numpy() for part in (images.train_images, images.test_images)]
    scale = flat[0].max()
    x, test = (np.concatenate([part / scale, np.ones((len(part), 1), np.float32)], 1) for part in flat)
    return Data(x.astype(np.float64), images.train_labels.numpy(), test.astype(np.float64), images.test_labels.numpy())


def losses(weights: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean cross-entropy [S, W, P] of W weights [S, W, 65, 10] on the batches [S, P, B, 65] of P peers."""
    seeds, peers, batch, features = x.shape
    points = weights.transpose(0, 2, 1, 3).reshape(seeds, features, -1)
    logits = (x.reshape(seeds, -1, features) @ points).reshape(seeds, peers, batch, weights.shape[1], -1)
    logits = logits.transpose(0, 3, 1, 2, 4)
    top = logits.max(-1, keepdims=True)
    normal = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    right = np.take_along_axis(logits, labels[:, None, :, :, None], -1)[..., 0]
    return (normal - right).mean(-1)


class Log:
    """The rows of the last `WINDOW` steps of all seeds, and the scores of `gradless.collab.aggregation.pair_scores`."""

    def __init__(self, peers: int) -> None:
        self.rows = np.zeros((WINDOW, SEEDS, peers, WIDTH), np.float32)
        self.count = 0

    def append(self, rows: np.ndarray) -> None:
        self.rows[self.count % WINDOW] = rows
        self.count += 1

    def scores(self) -> np.ndarray | None:
        """[S, n], or None for too few steps."""
        if self.count < FEWEST:
            return None
        rows = self.rows[: min(self.count, WINDOW)].astype(np.float64)
        products = rows[:, :, :, None] * rows[:, :, None]  # [T, S, n, n, K]
        products = products.transpose(1, 2, 3, 0, 4).reshape(*products.shape[1:4], -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = products.mean(-1) / products.std(-1, ddof=1) * math.sqrt(products.shape[-1])
        peers = t.shape[1]
        others = t[:, ~np.eye(peers, dtype=bool)].reshape(SEEDS, peers, peers - 1)
        return np.sort(others, -1)[..., (peers - 1) // 2]


def lies(attack: str, rule: str, honest: np.ndarray, liars: int, scores: np.ndarray | None) -> np.ndarray:
    """Rows [S, f, K] of the liars. ``scores`` [S, n] are of the steps before; liars are the last peers."""
    mean, sigma = honest.mean(1), honest.std(1, ddof=1)
    if attack == "worst":
        return push.worst(RULES[rule], liars, honest, -np.sign(mean), np.random.default_rng(0), rounds=SEARCH)[1]
    row = mean - 1.5 * np.sign(mean) * sigma
    if attack == "flip":
        row = -3 * mean
    elif attack == "framer":
        row = mean - 1.5 * np.sign(honest[:, 0]) * sigma
    rows = np.repeat(row[:, None], liars, 1)
    if attack == "patient":
        quiet = np.ones((SEEDS, liars), bool) if scores is None else scores[:, -liars:] < PATIENCE
        quiet = np.zeros_like(quiet) if scores is None else quiet
        rows = np.where(quiet[..., None], mean[:, None], rows)
    return rows


def mixed(rule: str, rows: np.ndarray, f: int, memory: str, scores: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The mixed coefficients [S, K], and who was left out, bool [S, n]."""
    out = np.zeros(rows.shape[:2], bool)
    if memory and scores is not None and f:
        lowest = np.argsort(scores, 1, kind="stable")[:, :f]
        np.put_along_axis(out, lowest, True, 1)
        out &= scores < THRESHOLD
    result = np.empty((len(rows), rows.shape[2]))
    for gone in np.unique(out.sum(1)):
        seeds = out.sum(1) == gone
        kept = rows[seeds][~out[seeds]].reshape(int(seeds.sum()), rows.shape[1] - gone, -1)
        least = f - gone if memory == "lower f" else min(f, (kept.shape[1] - 1) // 2)
        result[seeds] = RULES[rule](kept, int(least))
    return result, out


def cell(data: Data, kind: str, n: int, f: int, liars: int, attack: str, rule: str, memory: str) -> dict[str, Any]:
    """One entry: all seeds of a group."""
    honest = n if attack == "honest" else n - f
    random = np.random.default_rng(7)  # directions and batches are the same in all cells of a group
    parts = [split(SPLITS[kind], torch.from_numpy(data.labels), honest, seed=seed) for seed in range(SEEDS)]
    weights, log = np.zeros((SEEDS, 65, 10)), Log(honest + liars)
    dropped = np.zeros(honest + liars)
    for _ in range(STEPS):
        z = random.standard_normal((SEEDS, WIDTH, 65, 10))
        picked = np.stack([[part.numpy()[random.integers(0, len(part), BATCH)] for part in own] for own in parts])
        points = np.concatenate([weights[:, None] + EPS * z, weights[:, None] - EPS * z], 1)
        both = losses(points, data.x[picked], data.labels[picked])
        rows = ((both[:, :WIDTH] - both[:, WIDTH:]) / (2 * EPS)).transpose(0, 2, 1)  # [S, P, K]
        scores = log.scores() if memory or attack == "patient" else None
        if liars:
            rows = np.concatenate([rows, lies(attack, rule, rows, liars, scores)], 1)
        coefficients, out = mixed(rule, rows, f if attack != "none" else 0, memory, scores)
        dropped += out.sum(0)
        log.append(rows)
        weights -= RATE * np.einsum("sk,skdc->sdc", coefficients, z) / WIDTH
    accuracy = (np.einsum("nd,sdc->snc", data.test_x, weights).argmax(-1) == data.test_labels).mean(1)
    share = dropped / (SEEDS * STEPS)
    return {
        **{"data": kind, "n": n, "f": f, "attack": attack, "rule": rule, "memory": memory},
        "accuracy": float(accuracy.mean()),
        "sd": float(accuracy.std(ddof=1)),
        "worst": float(accuracy.min()),
        "honest_left_out": float(share[:honest].mean()),
        "liars_left_out": float(share[honest:].mean()) if liars else None,
        "scores": None if (scores := log.scores()) is None else scores.mean(0).round(2).tolist(),
    }


def run(out: Path) -> None:
    """Compute what ``out`` lacks, line by line."""
    compare()
    data = load()
    settings = {"seeds": SEEDS, "steps": STEPS, "K": WIDTH, "batch": BATCH, "eps": EPS, "lr": RATE}
    head = {
        "part": "toy",
        "command": "python benchmarks/peers_robustness.py toy",
        **settings,
        **processor(),
        **versions(),
    }
    held = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else [head]
    keys = ("data", "n", "f", "attack", "rule", "memory")
    done = {tuple(line.get(key) for key in keys) for line in held}
    for n, f in GROUPS:
        for kind in SPLITS:
            cells = [("none", "mean", "", 0)]  # the peers that are honest in all cells, alone
            cells += [("honest", rule, memory, 0) for rule in CHOSEN[1:] for memory in MEMORY[:2]]
            kept = MEMORY if n == GROUPS[0][0] else MEMORY[:2]  # which of the two is better, the first group tells
            cells += [(attack, rule, memory, f) for attack in ATTACKS for rule in CHOSEN for memory in kept]
            for attack, rule, memory, liars in cells:
                if (kind, n, f, attack, rule, memory) in done:
                    continue
                held.append(cell(data, kind, n, f, liars, attack, rule, memory))
                write_text(out, "".join(json.dumps(line) + "\n" for line in held))
