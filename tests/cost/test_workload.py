"""What is timed: eager MeZO as the paper writes it, models of published shapes, and where the time goes."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gradless.cost import eager_mezo, time_shares
from gradless.lm import shapes
from profile_helpers import measured

# Published sizes: MeZO's and the model cards' round numbers, exactly as these architectures count them.
WEIGHTS = {
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-2.7b": 2_651_596_800,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen3-0.6b": 596_049_920,
    "roberta-large": 355_412_057,
}
UNTIED = ("llama-2-7b", "llama-2-13b", "llama-3.1-8b", "mistral-7b")  # whose output layer is no embedding


# ---------------------------------------------------------------------------------------------------------------
# eager MeZO


def test_eager_mezo_is_algorithm_1():
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    inputs = torch.linspace(-1, 1, 21).view(3, 7)
    params, lr, eps, seed = list(model.parameters()), 0.1, 1e-2, 11
    initial = [p.detach().clone() for p in params]

    def closure() -> torch.Tensor:
        return model(inputs).square().mean()

    loss = eager_mezo.step(params, closure, lr=lr, eps=eps, seed=seed)
    after = [p.detach().clone() for p in params]

    draw = torch.Generator().manual_seed(seed)
    zs = [torch.normal(0.0, 1.0, p.shape, generator=draw) for p in params]

    @torch.no_grad()
    def at(size: float) -> float:
        for p, old, z in zip(params, initial, zs, strict=True):
            p.copy_(old + size * z)
        return float(closure())

    plus, minus = at(eps), at(-eps)
    expected = [old - lr * (plus - minus) / (2 * eps) * z for old, z in zip(initial, zs, strict=True)]
    assert loss == pytest.approx((plus + minus) / 2)
    for one, other, old in zip(after, expected, initial, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
        assert not torch.allclose(one, old, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "drift"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_eager_mezo_returns_to_within_rounding(dtype, drift):
    """With a learning rate of zero nothing is left of a step but the rounding of three moves."""
    params = [torch.linspace(-1, 1, 60).to(dtype).view(6, 10), torch.ones(4).to(dtype), torch.ones(2)]
    initial = [p.clone() for p in params]
    seen = []

    def closure() -> float:
        seen.append([p.clone() for p in params])
        return float(len(seen))

    state = torch.random.get_rng_state()
    eager_mezo.step(params, closure, lr=0.0, eps=1e-1, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    for p, old, plus, minus in zip(params, initial, *seen, strict=True):
        torch.testing.assert_close(p, old, rtol=0, atol=drift)
        torch.testing.assert_close((plus + minus) / 2, old, rtol=0, atol=drift)
        assert (plus - minus).abs().max() > 0.05
    assert not torch.equal(seen[0][0].flatten()[:4], initial[0].flatten()[:4] + (seen[0][1] - initial[1]))


# ---------------------------------------------------------------------------------------------------------------
# shapes


@pytest.mark.parametrize("name", WEIGHTS)
def test_shapes_have_the_published_sizes(name):
    model = shapes.load(name, device="meta")
    assert model.num_parameters == WEIGHTS[name]
    assert model.dtype == torch.bfloat16
    assert (model.head.weight is model.model.get_input_embeddings().weight) == (name not in UNTIED)
    assert set(WEIGHTS) == set(shapes.SHAPES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shape_is_a_working_model(small, dtype):
    state = torch.random.get_rng_state()
    model = shapes.load(small, dtype=dtype)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.name == model.source == "shape:small"
    assert not model.model.training
    for name, p in model.model.named_parameters():
        assert p.dtype == getattr(torch, dtype)
        if p.ndim > 1:
            assert p.float().std().item() == pytest.approx(shapes.SCALE, rel=0.05), name
            assert p.unique(dim=0).shape == p.shape
        else:
            assert torch.equal(p, torch.ones_like(p))
    attention = model.model.model.layers[0].self_attn
    assert not torch.equal(attention.k_proj.weight, attention.v_proj.weight)
    with torch.no_grad():
        logits = model.model(torch.arange(20)[None]).logits
    assert logits.isfinite().all()
    assert logits.float().std() > 1e-3
    # Rotary frequencies are computed, not left to chance.
    assert model.model.model.rotary_emb.inv_freq[0] == 1.0
    again = shapes.load(small, dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(model.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.few(1)
@pytest.mark.parametrize("scheme", ["full", "lora", "prefix"])
def test_a_shape_can_be_profiled(small, scheme):
    result = measured(small, scheme=scheme, dtype="bfloat16", engines=("stream",), eager=False, repeats=1)
    assert result["model"] == "shape:small"
    assert result["dtype"] == "bfloat16"


def test_the_tile_covers_large_matrices_without_repeating_rows(monkeypatch):
    monkeypatch.setattr(shapes, "TILE", 101)
    flat, tile = torch.full((1000,), torch.nan), torch.arange(101.0)
    shapes._repeat(flat, tile)
    assert torch.equal(flat, torch.arange(1000.0) % 101)


# ---------------------------------------------------------------------------------------------------------------
# where the time goes


def event(name: str, seconds: float = 0.0, parent: Any = None, **more: Any) -> Any:
    return SimpleNamespace(name=name, self_cpu_time_total=seconds * 1e6, cpu_parent=parent, **more)


def test_operations_count_by_the_outermost_of_a_kind():
    sweep, linear = event("gradless.sweep", 1.0), event("aten::linear", 2.0)
    attention = event("aten::scaled_dot_product_attention", 4.0)
    watch = event("gradless.interception", 2048.0)
    events = [
        sweep,
        event("aten::normal_", 8.0, sweep),
        linear,
        event("aten::addmm", 16.0, linear),
        event("aten::copy_", 32.0, linear),
        attention,
        event("aten::bmm", 64.0, attention),
        event("aten::add", 128.0),
        watch,
        event("aten::layer_norm", 256.0, watch),
        event("gradless.sweep", 512.0, watch),
        event("gradless.interception", 1024.0, event("aten::linear")),
    ]
    assert time_shares.of_operations(events) == {
        time_shares.SWEEPS: 521.0,
        time_shares.PRODUCTS: 50.0 + 1024.0,
        time_shares.ATTENTION: 68.0,
        time_shares.INTERCEPTION: 2048.0,
    }


def test_kernels_count_by_range_and_by_name():
    def kernel(name: str, start: float, end: float, on: str = "CUDA", user: bool = False) -> Any:
        span = SimpleNamespace(start=start * 1e6, end=end * 1e6)
        return SimpleNamespace(
            name=name, time_range=span, device_type=SimpleNamespace(name=on), is_user_annotation=user
        )

    events = [
        kernel("gradless.sweep", 0, 2, user=True),
        kernel("distribution_elementwise", 0, 1),
        kernel("add", 1, 2),
        kernel("sm90_xmma_gemm_bf16", 2, 6),
        kernel("fmha_cutlassF_bf16", 6, 14),
        kernel("add", 14, 30),
        kernel("aten::mm", 0, 100, on="CPU"),
        kernel("gradless.sweep", 30, 40, user=True),
        kernel("fan", 30, 38),
        kernel("something else", 38, 39, user=True),
    ]
    assert time_shares.of_kernels(events) == {
        time_shares.SWEEPS: 10.0,
        time_shares.PRODUCTS: 4.0,
        time_shares.ATTENTION: 8.0,
        time_shares.INTERCEPTION: 0.0,
    }


def test_measured_shares_are_shares():
    matrix = torch.ones(300, 300)
    shares, seconds = time_shares.measure(lambda: matrix @ matrix, lambda: None)
    assert 0 < seconds < 10
    assert shares[time_shares.INTERCEPTION] == 0
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[time_shares.PRODUCTS] > 0
    assert shares[time_shares.SWEEPS] == shares[time_shares.ATTENTION] == 0
    assert "KINETO_LOG_LEVEL" not in os.environ


@pytest.mark.parametrize("suffix", [".svg", ".PDF"])
def test_pictures_by_suffix(profile, tmp_path, suffix):
    from gradless.cost.figures import profile_picture

    target = profile_picture(profile, tmp_path / f"share{suffix}")
    content = target.read_bytes()
    assert content.startswith(b"<?xml" if suffix == ".svg" else b"%PDF")
    assert len(content) > 5_000
