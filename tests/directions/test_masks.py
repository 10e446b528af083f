"""Masks: exact counts against naive choices, and what an optimizer makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.directions import gaussian, low_rank, masks, rademacher, selection
from gradless.errors import BadInput
from gradless.system.hashing import weights_sha256

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def leaf(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return rng.normal(3, name, shape).to(dtype)


def naive(scores: list[float], count: int) -> list[bool]:
    """The ``count`` largest; of equal ones the first."""
    kept = set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])
    return [i in kept for i in range(len(scores))]


def model_params(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        "a": leaf("a", 7, 9, dtype=dtype),
        "bias": leaf("bias", 5, dtype=dtype),
        "c": leaf("c", 3, 4, 2, dtype=dtype),
    }


@pytest.mark.parametrize("keep", [1e-6, 0.1, 0.333, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("rule", ["random", "magnitude", "smallest"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_are_exact_and_vectors_are_kept(rule, keep, dtype):
    params = model_params(dtype)
    chosen = masks.MASKS[rule].make(params, keep)
    assert list(chosen) == list(params)
    for name, p in params.items():
        assert (chosen[name].dtype, chosen[name].shape) == (torch.bool, p.shape)
        assert int(chosen[name].sum()) == (p.numel() if p.ndim == 1 else round(keep * p.numel()))


@pytest.mark.parametrize("group", ["layer", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [1e-6, 0.05, 0.5, 0.8])
def test_magnitudes_are_chosen_as_a_sort_would(dtype, keep, group):
    params = {
        "z": leaf("z", 40, 11, dtype=dtype),
        "v": leaf("v", 6, dtype=dtype),
        "b": leaf("b", 5, 30, dtype=dtype) * 3,
    }
    params["b"][0] = 0.5  # equal ones, in both
    params["z"][3:9] = -0.5
    for rule, sign in (("magnitude", 1.0), ("smallest", -1.0)):
        chosen = masks.MASKS[rule].make(params, keep, group=group)
        rows = {name: [sign * abs(float(w)) for w in p.flatten()] for name, p in params.items()}
        if group == "layer":
            for name in ("z", "b"):
                assert chosen[name].flatten().tolist() == naive(rows[name], round(keep * len(rows[name])))
        else:
            both = rows["b"] + rows["z"]  # by name
            assert [*chosen["b"].flatten().tolist(), *chosen["z"].flatten().tolist()] == naive(
                both, round(keep * len(both))
            )
        assert chosen["v"].all()


def test_a_global_choice_does_not_depend_on_the_order_of_the_parameters():
    params = {"z": torch.ones(4, 4), "b": torch.ones(4, 4)}
    one = masks.magnitude(params, 0.25, group="global")
    other = masks.magnitude(dict(reversed(params.items())), 0.25, group="global")
    assert all(torch.equal(one[name], other[name]) for name in params)
    assert [int(one[name].sum()) for name in ("b", "z")] == [8, 0]


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, float("inf"), float("nan")])
@pytest.mark.parametrize("rule", ["magnitude", "smallest"])
def test_equal_weights_are_taken_by_index(rule, value, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 7)  # ties over several chunks
    chosen = masks.MASKS[rule].make({"w": torch.full((5, 6), value)}, 0.4)["w"].flatten()
    assert chosen.tolist() == [True] * 12 + [False] * 18


def test_zeros_of_both_signs_are_equal_and_smaller_than_anything():
    w = torch.tensor([[0.0, 1e-45, -0.0, -1e-45]])
    assert masks.magnitude({"w": w}, 0.5)["w"].tolist() == [[False, True, False, True]]
    assert masks.smallest({"w": w}, 0.25)["w"].tolist() == [[True, False, False, False]]


def test_what_is_not_finite_has_a_place():
    w = torch.tensor([[1.0, float("nan"), float("-inf"), 2.0]])
    assert masks.magnitude({"w": w}, 0.25)["w"].tolist() == [[False, True, False, False]]
    assert masks.magnitude({"w": w}, 0.5)["w"].tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("chunk", [5, 64, 1 << 20])
@pytest.mark.parametrize("rule", ["random", "magnitude", "smallest", "wanda"])
def test_neither_chunks_nor_strides_matter(rule, chunk, monkeypatch):
    w = leaf("w", 12, 10)
    options = {"norms": {"w": torch.arange(10.0)}} if rule == "wanda" else {}
    expected = masks.MASKS[rule].make({"w": w}, 0.3, **options)["w"]
    monkeypatch.setattr(selection, "CHUNK", chunk)
    strided = w.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(masks.MASKS[rule].make({"w": strided}, 0.3, **options)["w"], expected)
    wide = torch.zeros(12, 20)
    wide[:, ::2] = w
    assert torch.equal(masks.MASKS[rule].make({"w": wide[:, ::2]}, 0.3, **options)["w"], expected)


def test_random_choices_depend_on_seed_and_name_alone(monkeypatch):
    w = leaf("w", 30, 40)
    one = masks.random({"w": w, "v": w}, 0.5, seed=1)
    assert torch.equal(one["w"], masks.random({"w": w.bfloat16() * 0}, 0.5, seed=1)["w"])
    assert not torch.equal(one["w"], one["v"])
    assert not torch.equal(one["w"], masks.random({"w": w}, 0.5, seed=2)["w"])
    monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    assert torch.equal(one["w"], masks.random({"w": w}, 0.5, seed=1)["w"])
    # A smaller fraction is a part of a larger one: the counter stream ranks the elements.
    assert not (masks.random({"w": w}, 0.1, seed=1)["w"] & ~one["w"]).any()


def test_random_choices_are_uniform():
    shape, seeds, keep = (20, 25), 400, 0.2
    total = sum(masks.random({"w": torch.zeros(shape)}, keep, seed=seed)["w"].double() for seed in range(seeds))
    deviation = (total - seeds * keep) / (seeds * keep * (1 - keep)) ** 0.5
    assert deviation.abs().max() < 4.5
    assert 0.8 < deviation.square().mean() < 1.2
    neighbours = deviation.flatten()[1:] * deviation.flatten()[:-1]
    assert abs(neighbours.mean()) < 0.2


def test_few_random_elements_are_not_the_first_of_their_kind():
    """With so little kept, all of it has the highest of 65,536 numbers."""
    count = 1 << 21
    (places,) = masks.random({"w": torch.zeros(1, count)}, 8 / count)["w"][0].nonzero(as_tuple=True)
    assert len(places) == 8
    assert 0.2 < float(places.double().mean()) / count < 0.8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.9])
def test_wanda_against_its_definition(dtype, keep):
    w, norm = leaf("w", 9, 14, dtype=dtype), leaf("x", 14).abs()
    w[2] = 1.0
    w[3], norm[5:9] = 0.0, 0.25
    params = {"w": w, "e": leaf("e", 6, 6, dtype=dtype), "bias": leaf("bias", 9)}
    chosen = masks.wanda(params, keep, norms={"w": norm})
    for row, kept in zip(w.tolist(), chosen["w"].tolist(), strict=True):
        scores = [float(torch.tensor(abs(a)) * b) for a, b in zip(row, norm, strict=True)]
        assert kept == naive(scores, round(keep * 14))
    assert torch.equal(chosen["e"], masks.magnitude(params, keep)["e"])
    assert chosen["bias"].all()
    turned = masks.wanda({"w": w.T.contiguous()}, keep, norms={"w": norm.unsqueeze(1)})["w"]
    assert torch.equal(turned, chosen["w"].T)


def test_wanda_with_unit_norms_is_magnitude_by_row_and_survives_infinities():
    w = leaf("w", 4, 10)
    chosen = masks.wanda({"w": w}, 0.5, norms={"w": torch.ones(10)})["w"]
    for row, kept in zip(w, chosen, strict=True):
        assert torch.equal(kept, masks.magnitude({"w": row.unsqueeze(0)}, 0.5)["w"][0])
    w[:, 0] = 0.0
    norm = torch.ones(10)
    norm[0] = float("inf")  # 0 * inf
    assert masks.wanda({"w": w}, 0.5, norms={"w": norm})["w"].sum(1).tolist() == [5] * 4


@pytest.mark.parametrize("norm", [torch.ones(9), torch.ones(14, 1), torch.ones(1, 14), torch.ones(())])
def test_norms_must_fit(norm):
    with pytest.raises(BadInput, match="do not fit the weight 'w'"):
        masks.wanda({"w": torch.ones(9, 14)}, 0.5, norms={"w": norm})


class Conv1D(nn.Module):
    """The layer of GPT-2, by name and layout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.up, self.down, self.unused = nn.Linear(4, 3), Conv1D(3, 2), nn.Linear(2, 2)
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(leaf(name, *p.shape))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(input=self.table(ids)))


def test_input_norms_are_those_of_all_tokens():
    body = Body()
    batches = [torch.tensor([[0, 1, 2], [3, 4, 4]]), torch.tensor([[1, 1]])]
    norms = masks.input_norms(body.named_modules(), lambda: [body(ids) for ids in batches])
    tokens = torch.cat([batch.flatten() for batch in batches])
    x = body.table.weight.detach()[tokens].double()
    h = body.up(body.table(tokens)).detach().double()
    assert set(norms) == {"up.weight", "down.weight"}
    torch.testing.assert_close(norms["up.weight"], x.norm(dim=0).float())
    torch.testing.assert_close(norms["down.weight"], h.norm(dim=0).float().unsqueeze(1))
    by_name = masks.input_norms({"one": body.up, "act": nn.ReLU()}, lambda: body(batches[0]))
    assert list(by_name) == ["one.weight"]
    params = dict(body.named_parameters())
    chosen = masks.wanda(params, 0.5, norms=norms)
    assert chosen["up.weight"].sum(1).tolist() == [2, 2, 2]
    assert chosen["down.weight"].sum(0).tolist() == [2, 2]  # round(1.5)


def test_input_norms_do_not_overflow_and_leave_no_hooks():
    layer = nn.Linear(2, 2).half()
    norms = masks.input_norms({"": layer}, lambda: layer(torch.full((8, 2), 6e4, dtype=torch.float16)))
    torch.testing.assert_close(norms["weight"], torch.full((2,), 60000.0 * 8**0.5))
    with pytest.raises(ZeroDivisionError):
        masks.input_norms({"": layer}, lambda: 1 / 0)
    assert not layer._forward_pre_hooks


# ------------------------------------------------------------------------------------------------------------
# directions and optimizers


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table, self.norm, self.hidden, self.out = (
            nn.Embedding(11, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 5),
        )
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(leaf(name, *p.shape) * 0.4)
        self.to(dtype)

    def loss(self) -> torch.Tensor:
        ids = torch.arange(11).view(1, 11)
        x = torch.tanh(self.hidden(self.norm(self.table(ids))))
        return nn.functional.cross_entropy(self.out(x)[0].float(), torch.arange(11) % 5)


def transforms(net: Net) -> dict[str, gl.directions.Directions]:
    norms = masks.input_norms(net.named_modules(), net.loss)
    half = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in net.named_parameters()}
    return {
        "random": masks.sparse(rademacher(), "random", 0.3, seed=4),
        "magnitude": masks.sparse(gaussian(), "magnitude", 0.3),
        "global": masks.sparse(rademacher(), "magnitude", 0.1, group="global"),
        "smallest": masks.sparse(rademacher(), "smallest", 0.7),
        "wanda": masks.sparse(rademacher(), "wanda", 0.5, norms=norms),
        "low-rank": masks.sparse(low_rank(2, refresh=3), "random", 0.5),
        "both": masks.sparse(masks.masked(rademacher(), half), "magnitude", 0.5),
        "custom": masks.masked(
            rademacher()._replace(draw=lambda key, name, p: rng.rademacher(key, 1, 0, p.numel()).view(p.shape)), half
        ),
    }


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", sorted(transforms(Net())))
def test_elements_outside_keep_their_bits_and_runs_replay(which, dtype, engine):
    net = Net(dtype)
    directions = transforms(net)[which]
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    expected = directions.freeze(dict(net.named_parameters()))
    options = {"seed": 2, "directions": directions, "rule": gl.scale(0.05), "weight_decay": 0.1}
    opt = gl.ZerothOrder(
        net.named_parameters(), estimator=gl.spsa(eps=1e-2), engine=engine, defer=engine == "dual", **options
    )
    moves = [opt.step_with(net.loss)[1] for _ in range(8)]
    opt.flush()
    lived = weights_sha256(net.named_parameters())
    for name, p in net.named_parameters():
        changed = (p.view(torch.uint8) != start[name].view(torch.uint8)).view(*p.shape, -1).any(-1)
        frozen = expected.get(name)
        if frozen is None:
            assert not changed.any()
        elif frozen.mask is not None:
            assert not (changed & ~frozen.mask).any()
            assert (changed & frozen.mask).sum() > 0.5 * frozen.mask.sum()
        else:
            assert changed.sum() > 0.5 * p.numel()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(start[name])
    again = gl.ZerothOrder(net.named_parameters(), **options)
    again.replay(moves)
    assert weights_sha256(net.named_parameters()) == lived


def test_masked_directions_learn():
    net = Net()
    first = net.loss().item()
    opt = gl.ZerothOrder(
        net.named_parameters(), directions=masks.sparse(rademacher(), "random", 0.5), rule=gl.scale(0.02), seed=1
    )
    for _ in range(150):
        opt.step(net.loss)
    assert net.loss().item() < first - 0.2


def test_the_mask_is_that_of_the_weights_at_the_start():
    net = Net()
    directions = masks.sparse(rademacher(), "magnitude", 0.3)
    opt = gl.ZerothOrder(net.named_parameters(), directions=directions, rule=gl.scale(0.5))
    frozen = {one.name: one.mask for one in opt.leaves}
    for _ in range(5):
        opt.step(net.loss)
    assert all(one.mask is frozen[one.name] for one in opt.leaves)
    now = directions.freeze(dict(net.named_parameters()))
    assert not torch.equal(now["table.weight"].mask, frozen["table.weight"])


def test_masks_meet_and_trivial_masks_cost_nothing():
    params = {"w": torch.ones(4, 4), "v": torch.ones(4, 4), "bias": torch.ones(3)}
    left, right = torch.arange(4) < 3, torch.arange(4) > 0
    first = {"w": left.expand(4, 4), "v": torch.ones(4, 4, dtype=torch.bool), "bias": torch.ones(3, dtype=torch.bool)}
    second = {**first, "w": right.expand(4, 4), "v": torch.zeros(4, 4, dtype=torch.bool)}
    directions = masks.masked(masks.masked(rademacher(), first), second)
    frozen = directions.freeze(params)
    assert directions.name == "rademacher-masked-masked"
    assert set(frozen) == {"w", "bias"}  # nothing is left of v
    assert torch.equal(frozen["w"].mask, (left & right).expand(4, 4))
    assert frozen["bias"].mask is None
    scaled = gl.directions.scaled(directions, {"w": 2.0, "v": 1.0, "bias": 1.0}).freeze(params)
    assert scaled["w"].probe == 0.5
    assert torch.equal(scaled["w"].mask, frozen["w"].mask)


@pytest.mark.parametrize(
    ("masks_given", "reason"),
    [
        ({}, "no mask for parameter 'w'"),
        ({"w": torch.ones(2, 3)}, "must be torch.bool"),
        ({"w": torch.ones(3, 2, dtype=torch.bool)}, r"must be torch.bool \[2, 3\]"),
        ({"w": torch.zeros(2, 3, dtype=torch.bool)}, "keep no element"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks_given, reason):
    with pytest.raises(BadInput, match=reason):
        gl.ZerothOrder([("w", nn.Parameter(torch.ones(2, 3)))], directions=masks.masked(rademacher(), masks_given))


@pytest.mark.parametrize(
    ("rule", "keep", "options", "reason"),
    [
        ("magnitud", 0.5, {}, "did you mean 'magnitude'"),
        ("random", 0.0, {}, "keep is 0.0"),
        ("random", 1.5, {}, "keep is 1.5"),
        ("random", float("nan"), {}, "keep is nan"),
        ("wanda", 0.5, {}, "needs the norms"),
        ("random", 0.5, {"norms": {}}, "does not look at norms"),
        ("random", 0.5, {"group": "global"}, "layer by layer"),
        ("magnitude", 0.5, {"group": "globl"}, "did you mean 'global'"),
    ],
)
def test_impossible_choices_are_refused_at_once(rule, keep, options, reason):
    with pytest.raises(BadInput, match=reason):
        masks.sparse(rademacher(), rule, keep, **options)
