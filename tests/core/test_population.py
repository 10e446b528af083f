"""Evolution strategies: shaped losses of a population, a loss for each row of the batch."""

from __future__ import annotations

import itertools
import math
import statistics
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from gradless import es, lm, rng
from gradless.errors import BadInput
from gradless.estimators import Oracle, population, spsa
from gradless.estimators.shaping import SHAPINGS
from gradless.forward import populations
from gradless.forward.points import probe_point
from gradless.optimizer import Update, ZerothOrder
from gradless.ranks import Ranks
from gradless.rules import scale

KEYS = (1, 2, 3)


def losses_of(seed: int = 0, rows: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, (2 * len(KEYS), rows))


def oracle(losses: np.ndarray) -> Oracle:
    def never(*_: object) -> None:
        raise AssertionError

    return Oracle(never, never, never, lambda points: losses)


@pytest.mark.parametrize("seed", range(5))
def test_shapings_are_what_their_papers_define(seed):
    losses = losses_of(seed)
    means = [statistics.fmean(row) for row in losses]
    order = sorted(means)
    spread = statistics.pstdev(means)
    columns = losses.T
    expected = {
        "none": means,
        "centred_ranks": [order.index(mean) / (len(means) - 1) - 0.5 for mean in means],
        "z_score": [(mean - statistics.fmean(means)) / spread for mean in means],
        "prompt_baseline": [
            statistics.fmean((column[i] - statistics.fmean(column)) / statistics.pstdev(column) for column in columns)
            for i in range(len(means))
        ],
    }
    assert expected.keys() == SHAPINGS.keys()
    for name, shaping in SHAPINGS.items():
        np.testing.assert_allclose(shaping.shape(losses), expected[name], rtol=1e-12)


@pytest.mark.parametrize("shaping", sorted(SHAPINGS))
def test_a_population_of_one_value_moves_nothing(shaping):
    estimate = population(shaping=shaping).estimate(oracle(np.full((6, 3), 0.1)), KEYS)
    assert estimate.coeffs == (0.0, 0.0, 0.0)
    assert estimate.loss == pytest.approx(0.1)


@pytest.mark.parametrize("shaping", sorted(SHAPINGS))
def test_a_row_that_some_member_lacks_counts_for_none(shaping):
    losses = losses_of()
    holed = np.concatenate([losses, losses[:, :1]], axis=1)
    holed[2, -1] = math.nan
    estimator = population(shaping=shaping)
    assert estimator.estimate(oracle(holed), KEYS) == estimator.estimate(oracle(losses), KEYS)


def test_a_step_without_any_common_row_shows():
    estimate = population().estimate(oracle(np.full((6, 2), math.nan)), KEYS)
    assert math.isnan(estimate.loss)
    assert all(map(math.isnan, estimate.coeffs))


def test_without_shaping_it_is_spsa():
    def step(estimator):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        opt = ZerothOrder([("w", weight)], estimator=estimator, rule=scale(0.1), engine="stream")
        return opt.probe(lambda: (weight - 0.3).square().mean()).sketch

    mine, other = step(population(queries=3, shaping="none")), step(spsa(queries=3))
    assert mine.keys == other.keys
    assert mine.coeffs == pytest.approx(other.coeffs, rel=1e-6)


def vectors(weight: Tensor, data: Tensor):
    return lambda: (data @ weight.T - 1).square().mean(1)


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place"])
def test_it_trains_on_a_loss_for_each_row_and_replays(engine):
    data = torch.eye(4).repeat(2, 1)

    def fresh():
        weight = torch.nn.Parameter(torch.zeros(3, 4))
        return weight, es([("w", weight)], lr=0.2, eps=0.05, queries=4, engine=engine)

    weight, opt = fresh()
    first = float(vectors(weight, data)().mean().detach())
    updates: list[Update] = []
    for _ in range(60):
        opt.step_with(vectors(weight, data), updates.append)
    assert float(vectors(weight, data)().mean().detach()) < 0.2 * first
    again, twin = fresh()
    twin.replay(updates)
    assert torch.equal(again, weight)


def test_losses_of_another_shape_are_refused():
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(BadInput, match=r"a tensor of shape \[2, 3\]: return one real number for each row"):
        es([("w", weight)], engine="stream").step(lambda: weight.new_zeros(2, 3) + weight.sum())
    with pytest.raises(BadInput, match="a tensor of shape"):
        es([("w", weight)], engine="stream").step(lambda: weight[:, :2])
    with pytest.raises(BadInput, match="unknown shaping"):
        es([("w", weight)], shaping="ranks")


class ThreadRanks(Ranks):
    """A rank that is a thread; messages have the lengths that gloo asks for."""

    def __init__(self, rank: int, split: str, meeting: threading.Barrier, table: dict[int, Tensor]) -> None:
        super().__init__(rank=rank, size=meeting.parties, split=split)
        self.meeting, self.table = meeting, table

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        self.table[self.rank] = mine
        self.meeting.wait()
        told = [self.table[rank] for rank in range(self.size)]
        self.meeting.wait()
        assert {one.shape for one in told} == {mine.shape}
        return told


def together(size: int, split: str, function):
    """What a function of a rank returns, or raises, on each of them."""
    meeting, table = threading.Barrier(size, timeout=20), {}
    outcomes = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = function(ThreadRanks(rank, split, meeting, table))
        except BadInput as error:
            outcomes[rank] = str(error)
        except BaseException:
            meeting.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


POINTS = [probe_point(key, 1.0) for key in range(6)]


def evaluated(losses: np.ndarray):
    """Rows at some of the points, as an engine returns them."""
    return lambda own: [losses[int(point.mixture.keys[0])].tolist() for point in own]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("split", ["batch", "directions"])
def test_ranks_see_the_population_of_one_process(split, size):
    losses = losses_of(rows=5)  # which no number of ranks shares evenly
    if split == "batch":
        shards = [losses[:, rank::size] for rank in range(size)]
        expected = np.concatenate(shards, axis=1)
    else:
        shards, expected = [losses] * size, losses
    views = together(size, split, lambda rank: populations.over_ranks(rank, POINTS, evaluated(shards[rank.rank])))
    for view in views:
        np.testing.assert_array_equal(view, expected)


def test_one_number_for_each_shard_is_its_weighted_mean():
    shards = losses_of(rows=2)

    def view(rank):
        rank.weight = (3.0, 2.0, 0.0)[rank.rank]
        own = shards[:, rank.rank] if rank.weight else np.full((6,), math.nan)  # without a shard it is not looked at
        return populations.over_ranks(rank, POINTS, evaluated(own))

    for seen in together(3, "batch", view):
        np.testing.assert_allclose(seen[:, 0], shards @ [0.6, 0.4])


def test_a_rank_without_a_shard_has_no_rows():
    losses = losses_of(rows=3)

    def view(rank):
        rank.weight = (0.0, 3.0)[rank.rank]
        return populations.over_ranks(rank, POINTS, evaluated(losses if rank.weight else losses[:, :1]))

    for seen in together(2, "batch", view):
        np.testing.assert_array_equal(seen, losses)


@pytest.mark.parametrize("split", ["batch", "directions"])
def test_all_ranks_refuse_a_number_of_rows_that_changes(split):
    def changing(own):
        return [[1.0] * (2 if point.mixture.keys[0] == 5 else 3) for point in own]

    shares = together(2, split, lambda rank: populations.over_ranks(rank, POINTS, changing))
    assert all("another number of losses" in refusal for refusal in shares)


def noise_of(named: list[tuple[str, Tensor]], draw) -> dict[str, Tensor]:
    return {name: draw(name, parameter) for name, parameter in named}


def alike(noise: dict[str, Tensor]) -> int:
    """Pairs of parameters of one shape whose noise is correlated."""
    count = 0
    for one, other in itertools.combinations(noise.values(), 2):
        if one.shape == other.shape:
            a, b = one.flatten().double(), other.flatten().double()
            correlation = float((a @ b) / (a.norm() * b.norm()))
            count += abs(correlation) > 5 / math.sqrt(a.numel())
    return count


def test_layers_of_one_shape_get_noise_of_their_own():
    model = lm.load("tiny-llama").model
    named = [(name, p) for name, p in model.named_parameters() if p.ndim == 2 and "proj" in name]
    opt = es(named, rank=None)
    key = opt.key(0, 0)
    mine = noise_of([(leaf.name, leaf) for leaf in opt.leaves], lambda name, leaf: opt_noise(leaf, key))
    assert alike(mine) == 0

    def reseeded(name: str, parameter: Tensor) -> Tensor:
        """A generator that begins anew for every parameter, as published codes have it."""
        return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))

    assert alike(noise_of(named, reseeded)) > len(named) // 2


def opt_noise(leaf, key: int) -> Tensor:
    return rng.rademacher(key, leaf.id, 0, leaf.param.numel()).reshape(leaf.param.shape)
