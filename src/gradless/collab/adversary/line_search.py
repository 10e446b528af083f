"""How strongly to attack: a line search that evaluates the defence on the rows that peers really receive.

Attacks are affine in their strength, and messages are combinations of few rows. So one Gram matrix of the honest rows
and the extra directions, measured once in an exchange, gives the damage at any strength: for rules in the span of
their rows without touching D numbers again, for all others on a sample of columns.

Published searches probe forward from the best point with a fixed first step, and stop early; and they attack n rows
where peers aggregate the n - f that arrived. This one takes the transport's word for who hears whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import (
    SHIFT,
    Attack,
    AttackContext,
    State,
    mean_of_honest,
    products,
    rows_of_honest,
    sound,
)
from gradless.collab.aggregation.base import Aggregator, behind, weights_of
from gradless.collab.aggregation.gram import CentredGram, measure
from gradless.collab.aggregation.receivers import Received
from gradless.errors import BadInput

EVALUATIONS: Final = 40
COLUMNS: Final = 1024
GAIN: Final = 0.003  # a bracket that promises less than this share above the best is not opened
NEAR: Final = 2.0  # strengths up to so many units are searched densely
FAR: Final = 2  # points beyond
GRID: Final = (0.45, 0.5)  # share of the evaluations up to there at first, if one sign is searched or both

ViewsOf = Callable[[Tensor, Tensor], Received]  # (extras [E, D], coefficients [R, b, H + E]) -> who holds what


class Message(NamedTuple):
    """What attackers send in an exchange, and what the search came to know on the way."""

    strength: float
    extras: Tensor
    """[E, D] directions beside the honest rows."""
    coefficients: Tensor
    """float64 [R, b, H + E], R = 1 or H."""
    state: State
    """For the next exchange."""
    gram: CentredGram | None
    """Where honest rows and extras lie, in this order, if it had to be measured: mixing needs the same."""


class Trial(NamedTuple):
    """An exchange of which everything is known but the strength of the attack."""

    attack: Attack
    context: AttackContext
    rule: Aggregator
    views_of: ViewsOf
    extras: Tensor
    state: State
    sample: Tensor | None
    """[H + E + 1, d] some columns of the basis and of the origin, all minus the first finite row, which keeps the
    digits of differences; for rules without weights. None: the rule has weights."""
    scale: float
    """D / d, by which a sum over the sample stands for the sum over all columns."""
    key: int

    def damage(self, strength: float) -> float:
        """Return what the attack's goal comes to at this strength, in squared length.

        shift: |mean over receivers of outputs - mean of honest rows|^2; spread: the mean over receivers of
        |output - mean of honest rows|^2. Receivers are the peers that mix in this exchange and whose output is finite
        (that of others no message can mend or spoil); the mean is that of the honest rows that are finite.

        Cost: the rule's weights for every receiver. With a sample, the rule on its columns as well; the relative
        standard error is then about sqrt(2 / d) if columns are alike (4 % with 1024), more if few columns carry the
        damage. It is the same sample at all strengths, so their order suffers much less.
        """
        sent = self.attack.send(self.context, strength, self.state)
        received = self.views_of(self.extras, sent)
        if self.sample is None:
            mean = mean_of_honest(self.context, sent.shape[-1] - len(self.context.honest))
            return _in_span(self.rule, self._gram(), received, mean, self.attack.goal, self.key)
        outputs = _on_sample(self.rule, self._gram(), received, self.sample, self.scale, self.key)
        finite = sound(self.context).to(self.sample.device)
        away = (outputs - self.sample[: len(finite)][finite].mean(0)).double()
        away = away[away.isfinite().all(1)]
        if not len(away):
            return 0.0
        away = away.mean(0, keepdim=True) if self.attack.goal == SHIFT else away
        return self.scale * float(away.square().sum(1).mean())

    def range(self) -> tuple[tuple[float, float], float]:
        """Bounds of the search and the way to where attackers are as far out as the farthest honest row."""
        gram, origin = self._gram(), self.attack.harmless
        count = len(self.context.honest)
        start = self.attack.bounds[0] if self.attack.bounds else 0.0
        step = self.attack.send(self.context, start + 1.0, self.state) - self.attack.send(
            self.context, start, self.state
        )
        speed = _lengths(gram, step.flatten(0, 1)).max().item()
        own = torch.cat([rows_of_honest(self.context), step.new_zeros(count, step.shape[-1] - count)], 1)
        radius = _lengths(gram, own - mean_of_honest(self.context, step.shape[-1] - count)).max().item()
        longest = _lengths(gram, own).max().item()
        reach = max(4.0 * radius, 2.0 * longest)
        if not (math.isfinite(speed) and math.isfinite(reach) and speed > 0.0 and reach > 0.0):
            return self.attack.bounds or (origin, origin), 0.0
        way = reach / speed
        bounds = self.attack.bounds or (origin - way if self.attack.signed else origin, origin + way)
        return bounds, (radius or reach / 4.0) / speed

    def _gram(self) -> CentredGram:
        assert self.context.gram is not None, "a trial is made by try_out"
        return self.context.gram


def try_out(
    attack: Attack,
    context: AttackContext,
    rule: Aggregator,
    views_of: ViewsOf,
    state: State,
    *,
    key: int = 0,
    columns: int = COLUMNS,
) -> Trial:
    """Set up an exchange for the search: extra directions, gram, sample. See `strongest` for the arguments.

    Cost: one Gram matrix of [H + E, D]; for rules without weights and without pre-aggregators, only that of the sample.
    """
    extras, state = attack.extras(context, state)
    blocks = [context.honest, extras] if len(extras) else [context.honest]
    sample, scale = None, 1.0
    if rule.weights is None:
        size = context.honest.shape[1]
        if columns < size:
            chosen = (rng.uniform(context.seed, f"columns/{context.step}", (columns,)) * size).long()
            scale = size / columns
            parts = [block[:, chosen.to(block.device)] for block in blocks]
        else:
            parts = blocks
        rows = torch.cat([*parts, torch.zeros_like(parts[0][:1])])
        sample = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    whole = sample is None or bool(rule.stages) or attack.looks
    gram = measure(blocks if whole or sample is None else [sample[:-1]])
    finite = gram.finite[: len(context.honest)]
    if sample is not None:
        finite = finite & sound(context)  # of all columns
        sample = sample - sample[int(finite.double().argmax())]
    return Trial(attack, context._replace(gram=gram, finite=finite), rule, views_of, extras, state, sample, scale, key)


def strongest(
    attack: Attack,
    context: AttackContext,
    rule: Aggregator,
    views_of: ViewsOf,
    state: State,
    *,
    key: int = 0,
    evaluations: int = EVALUATIONS,
    columns: int = COLUMNS,
) -> Message:
    """Return what attackers send in this exchange, with the strength that does most harm if the attack leaves it open.

    Args:
        attack: what they do; ``attack.start()`` is its state before the first exchange.
        context: what they know. Rows are not changed.
        rule: what honest peers do with what they get.
        views_of: (extras, coefficients) -> `Received` of [honest, extras]: who hears whom in this exchange. It must
            answer alike whenever it is asked.
        state: what the attack remembers.
        key: of the randomness in the rule, as peers will use it: attackers know a shuffle beforehand.
        evaluations: of the damage, at most.
        columns: sampled for rules that work coordinate by coordinate.

    Cost: a fixed strength costs nothing, a search `try_out` and ``evaluations`` times `Trial.damage`.

    Raises:
        BadInput: an attack that needs flipped labels without them, or cannot work in such a group (`Attack.check`).
    """
    if context.attackers == 0:
        empty = torch.zeros(1, 0, len(context.honest), dtype=torch.float64)
        return Message(0.0, context.honest[:0], empty, state, None)
    attack.check(len(context.honest), context.attackers)
    context = context._replace(finite=sound(context))
    if attack.strength is not None:
        extras, state = attack.extras(context, state)
        gram = measure([context.honest, extras] if len(extras) else [context.honest]) if attack.looks else None
        seen = context._replace(gram=gram or context.gram)
        strength = attack.strength(seen) if callable(attack.strength) else attack.strength
        return Message(strength, extras, attack.send(seen, strength, state), state, gram)
    trial = try_out(attack, context, rule, views_of, state, key=key, columns=columns)
    bounds, unit = trial.range()
    origin = attack.harmless
    strength = search(trial.damage, bounds, unit=unit, origin=origin, evaluations=evaluations) if unit else bounds[0]
    whole = trial.sample is None or bool(rule.stages) or attack.looks
    sent = attack.send(trial.context, strength, trial.state)
    return Message(strength, trial.extras, sent, trial.state, trial.context.gram if whole else None)


def search(
    damage: Callable[[float], float],
    bounds: tuple[float, float],
    *,
    unit: float | None = None,
    origin: float = 0.0,
    evaluations: int = EVALUATIONS,
) -> float:
    """Return the strength in ``bounds`` with the greatest damage.

    Damage rises with the square of the strength until a rule stops believing some attacker in some peer, and falls
    there like a cliff; there are as many cliffs as peers, plateaus where nobody believes any more, and smooth hills.
    So: a grid, dense up to twice ``unit`` and thin beyond; then always halve the bracket that promises most, where a
    bracket (a, b) promises the damage of a, grown like the square of the strength until b. A bracket with the same
    damage at both ends promises nothing. If none promises more than the best, the widest is halved.

    On 300 random curves of ten rules and four attacks and one sign, 32 evaluations came within 1 % of a grid of 400 on
    289 and within 4.5 % on all, 24 evaluations on 283 and within 6 %. With both signs, of 80 curves of four rules and
    four attacks 32 evaluations in all came within 1 % of a grid of 102 on 72, 40 on 78; the worst, Krum's narrow peaks,
    lost 29 % and 7 %. Golden section from the same kind of grid settles on one
    hill and missed up to 36 %; probing forward from a first step of 10 missed more than 1 % on 69.

    Args:
        damage: of a strength; NaN counts as none.
        bounds: least and greatest strength. If ``origin`` lies between them, both sides of it are searched and share
            ``evaluations``.
        unit: how far from the origin most happens; None: anywhere.
        origin: the strength that does no harm.
        evaluations: at most.

    Example:
        >>> round(search(lambda s: s * s if s < 2.79 else 0.0, (0.0, 10.0)), 2)
        2.79
    """
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low <= high) or evaluations < 4:
        raise BadInput(f"a search from {low} to {high} in {evaluations}: give finite bounds in order, and at least 4")
    if low == high:
        return low
    rays = _rays(low, high, unit, origin)
    known: dict[float, float] = {}

    def look(ray: _Ray, x: float) -> None:
        s = ray.start + math.copysign(x, ray.way)
        if s not in known:  # both rays begin at the origin
            value = damage(s)
            known[s] = -math.inf if math.isnan(value) else value
        ray.known[x] = known[s]

    share = GRID[len(rays) - 1] * evaluations / len(rays)
    for ray in rays:
        for x in _grid(abs(ray.way), ray.near, max(3, round(share))):
            look(ray, x)
    while len(known) < evaluations:
        best = max(known.values())
        brackets = [(*ends, ray) for ray in rays if (ends := _most_promising(ray.known, abs(ray.way), best))]
        brackets = brackets or [(*ends, ray) for ray in rays if (ends := _widest(ray.known, ray.near))]
        if not brackets:
            break
        _, a, b, ray = max(brackets, key=lambda bracket: bracket[:3])
        look(ray, math.sqrt(a * b) if 0.0 < 4.0 * a < b else 0.5 * (a + b))
    return max(known, key=lambda s: (known[s], -abs(s - origin), s))


def _rays(low: float, high: float, unit: float | None, origin: float) -> list[_Ray]:
    """Return one direction of the search, or two from the origin if it lies between the bounds."""
    if low < origin < high:
        return [_Ray(origin, high - origin, unit), _Ray(origin, low - origin, unit)]
    start, end = (low, high) if abs(low - origin) <= abs(high - origin) else (high, low)
    return [_Ray(start, end - start, unit)]


class _Ray:
    """One direction of a search: from a strength at which the attack does little."""

    def __init__(self, start: float, way: float, unit: float | None) -> None:
        self.start, self.way = start, way
        # Backwards, dissensus first pulls its receiver to the mean, which takes one unit more.
        self.near = abs(way) if unit is None else min(abs(way), (NEAR + (way < 0.0)) * unit)
        self.known: dict[float, float] = {}  # damage by distance from the start


def _grid(length: float, near: float, count: int) -> list[float]:
    """Return the first points, from 0 to ``length``: ``count`` evenly spaced up to ``near``, a few beyond."""
    far = 0 if near == length else max(1, min(FAR, round(math.log2(length / near))))
    points = [near * i / (count - 1) for i in range(count)]
    return points + [near * (length / near) ** (i / far) for i in range(1, far + 1)]


def _most_promising(known: dict[float, float], length: float, best: float) -> tuple[float, float, float] | None:
    """The bracket in which the damage may rise most above the best, if any may: what it promises, and its ends."""
    xs = sorted(known)
    base = max(known[xs[0]], 0.0)
    rise = {x: math.sqrt(max(0.0, known[x] - base)) for x in xs}
    steepest = max(rise[x] / x for x in xs[1:])
    promises = []
    for a, b in pairwise(xs):
        if _settled(known, a, b) or b - a <= 1e-9 * length:
            continue
        grown = rise[a] * b / a if a > 0.0 else steepest * b
        promises.append((min(grown, rise[a] + steepest * (b - a)), a, b))
    if not promises:
        return None
    promise, a, b = max(promises)
    return (promise, a, b) if base + promise * promise > best * (1.0 + GAIN) else None


def _widest(known: dict[float, float], near: float) -> tuple[float, float, float] | None:
    """The widest bracket up to ``near``: promises are guesses, and evaluations that are left may prove them wrong."""
    open_ones = [(b - a, a, b) for a, b in pairwise(sorted(known)) if b <= near and not _settled(known, a, b)]
    return max(open_ones) if open_ones else None


def _settled(known: dict[float, float], a: float, b: float) -> bool:
    """Whether the damage is the same at both ends: nobody believes the attackers there any more, most likely."""
    return known[a] == known[b] or abs(known[a] - known[b]) <= 1e-6 * abs(known[a])


def _in_span(rule: Aggregator, gram: CentredGram, received: Received, mean: Tensor, goal: str, key: int) -> float:
    """Damage to a rule whose outputs are combinations of the basis."""
    if len(received.views) == 1 and not rule.uses_pivot:
        received = received._replace(pivots=received.pivots[:1])  # all have the same result
    weights = weights_of(rule, gram, received, key)
    weights = weights[~(weights[:, ~gram.finite] != 0).any(1)] - mean
    if not len(weights):
        return 0.0
    weights = weights.mean(0, keepdim=True) if goal == SHIFT else weights
    return _lengths(gram, weights).square().mean().item()


def _lengths(gram: CentredGram, rows: Tensor) -> Tensor:
    """Lengths of combinations of the basis, [m, M] -> float64 [m]; infinite if a row that is not finite takes part."""
    broken = (rows[:, ~gram.finite] != 0).any(1)
    return products(gram, rows).diagonal().clamp_min(0.0).sqrt().masked_fill(broken, math.inf)


def _on_sample(
    rule: Aggregator, gram: CentredGram, received: Received, sample: Tensor, scale: float, key: int
) -> Tensor:
    """Outputs [P or 1, d] of a rule without weights on the sample, relative to the sample's first row.

    Coordinate rules move along with their rows; views of the same size lie side by side and go through in one piece. A
    dense rule gets the rows themselves, times the root of ``scale``: their lengths are then about those of whole rows.
    """
    views = [behind(rule, gram, view, key) for view in received.views]
    # The origin takes what is missing from a sum of 1.
    views = [torch.cat([view, 1.0 - view.sum(1, keepdim=True)], 1).to(sample) for view in views]
    if rule.function is not None:
        origin, root = sample[-1], math.sqrt(scale)
        rows = [root * (_combined(view, sample) - origin) for view in views]
        pivots = received.pivots if rule.uses_pivot or len(rows) > 1 else received.pivots[:1]
        outputs = [rule.function(rows[p if len(rows) > 1 else 0], pivot) for p, pivot in enumerate(pivots)]
        return torch.stack(outputs) / root + origin
    assert rule.column is not None, "a rule with weights needs no sample"
    if len({len(view) for view in views}) > 1:
        return torch.stack([rule.column(_combined(view, sample)) for view in views])
    side_by_side = torch.stack(views, 1)  # [N, P, M + 1]
    rows_of_all = _combined(side_by_side.flatten(0, 1), sample)
    return rule.column(rows_of_all.view(len(side_by_side), -1)).view(len(views), -1)


def _combined(coefficients: Tensor, sample: Tensor) -> Tensor:
    """Their product; what is not finite in the sample is met only by rows that it is part of."""
    broken = ~sample.isfinite().all(1)
    if not bool(broken.any()):
        return coefficients @ sample
    rows = coefficients @ sample.masked_fill(broken[:, None], 0.0)
    for row in (coefficients[:, broken] != 0).any(1).nonzero().flatten().tolist():
        used = coefficients[row] != 0
        rows[row] = coefficients[row, used] @ sample[used]
    return rows
