"""In which type a model computes: what is chosen, what is refused, and that every scheme has float32's losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import gradless as gl
from gradless import lm
from gradless.cost import workload
from gradless.cost.settings import ProfileSettings
from gradless.errors import BadInput
from gradless.lm import compute_types, schemes
from gradless.runs import build
from gradless.runs.config import TuneConfig, as_recorded, difference
from gradless.storage import UpcastParameter

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALF, SHORT, WHOLE = torch.bfloat16, torch.float16, torch.float32


def fast(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(compute_types, "is_fast", lambda dtype: answer)


@pytest.mark.parametrize(
    ("asked", "dtype", "device", "quick", "chosen"),
    [
        (None, HALF, CPU, False, WHOLE),
        ("auto", SHORT, CPU, False, WHOLE),
        ("auto", HALF, CPU, True, HALF),
        (None, HALF, GPU, False, HALF),
        (None, WHOLE, CPU, False, WHOLE),
        ("bfloat16", HALF, CPU, False, HALF),
        ("float32", HALF, CPU, True, WHOLE),
        ("float32", HALF, GPU, True, WHOLE),
        ("float32", WHOLE, CPU, True, WHOLE),
    ],
)
def test_choice(
    asked: str | None,
    dtype: torch.dtype,
    device: torch.device,
    quick: bool,
    chosen: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast(monkeypatch, quick)
    assert compute_types.choose(asked, dtype, device) == chosen


@pytest.mark.parametrize(
    ("asked", "dtype", "message"),
    [
        (
            "bfloat16",
            "float32",
            "--compute-dtype bfloat16 does not go with float32 weights: use float32, or --dtype bf",
        ),
        ("float16", "bfloat16", "--compute-dtype float16 does not go with bfloat16 weights"),
        ("float64", "bfloat16", "unknown compute type 'float64'"),
    ],
)
def test_refusals(asked: str, dtype: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lm.load("tiny-llama", dtype=dtype, compute_dtype=asked)


def test_a_processor_is_timed_and_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose 16-bit products take longer, by whatever clock, has none worth using."""
    seconds = {HALF: 3.0, WHOLE: 1.0}
    now = [0.0]

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        now[0] += seconds[x.dtype]
        return x

    monkeypatch.setattr(compute_types.functional, "linear", product)
    monkeypatch.setattr(compute_types.products.time, "perf_counter", lambda: now[0])
    assert not compute_types.is_fast.__wrapped__(HALF)
    seconds[HALF] = 0.3
    assert compute_types.is_fast.__wrapped__(HALF)


def test_a_run_records_what_was_chosen_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**more: Any) -> TuneConfig:
        return TuneConfig(model="tiny-llama", task="sst2", **more).resolved()

    fast(monkeypatch, False)
    slow = build.pinned(config(dtype="bfloat16"))
    assert slow.compute_dtype == slow.to_json()["compute_dtype"] == "float32"
    fast(monkeypatch, True)
    assert build.pinned(config(dtype="bfloat16"), slow).compute_dtype == "float32"  # resumed on another machine
    for none in (config(), config(dtype="float32"), config(dtype="bfloat16", device="cuda")):
        assert build.pinned(none).compute_dtype is None
        assert "compute_dtype" not in none.to_json()
    older = config(dtype="bfloat16")  # as a run recorded it when there was no such setting
    assert as_recorded(older).compute_dtype == "bfloat16"
    assert build.pinned(config(dtype="bfloat16"), older).compute_dtype == "bfloat16"
    assert difference(older, build.pinned(config(dtype="bfloat16", compute_dtype="bfloat16"))) is None
    assert difference(older, slow) == "compute_dtype was 'bfloat16' and is now 'float32'"


@pytest.mark.parametrize(("method", "chosen"), [("mezo", WHOLE), ("hybrid", WHOLE), ("fo-adam", HALF)])
def test_differences_of_losses_are_never_left_to_fast_16_bit_products(
    monkeypatch: pytest.MonkeyPatch, method: str, chosen: torch.dtype
) -> None:
    """Their error does not become smaller with eps; a gradient, or an evaluation, has no such difference."""
    fast(monkeypatch, True)
    config = TuneConfig(model="tiny-llama", task="sst2", dtype="bfloat16", method=method).resolved()
    name = str(chosen).removeprefix("torch.")
    assert build.pinned(config).compute_dtype == name
    assert build.base_model(config).compute_dtype == chosen
    profiled = ProfileSettings(model="tiny-llama", dtype="bfloat16", method=method, batch_size=1, length=4)
    assert workload.subject(profiled, print).lm.compute_dtype == chosen
    evaluated = build.pinned(config, tunes=False)
    assert evaluated.compute_dtype == "bfloat16"
    assert build.base_model(evaluated).compute_dtype == HALF
    asked = dataclasses.replace(config, compute_dtype="bfloat16")
    assert build.pinned(asked).compute_dtype == "bfloat16"


CASES = [
    (family, scheme)
    for family in ("llama", "opt", "gemma", "roberta")
    for scheme in ("full", "lora", "prefix", "prompt", "head")
]


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_every_scheme_has_the_losses_of_the_float32_model(family: str, scheme: str) -> None:
    ids = torch.arange(3, 23).view(2, 10)
    tokens = (5, 6) if scheme == "head" else ()
    half = schemes.apply(
        lm.load(f"tiny-{family}", dtype="bfloat16", compute_dtype="float32"), scheme, label_token_ids=tokens
    )
    whole = lm.load(f"tiny-{family}")
    plain = lm.load(f"tiny-{family}", dtype="bfloat16", compute_dtype="bfloat16").model
    with torch.no_grad():
        for own, other in zip(
            (*whole.model.parameters(), *whole.model.buffers()), (*plain.parameters(), *plain.buffers()), strict=True
        ):
            own.copy_(other)
        whole = schemes.apply(whole, scheme, label_token_ids=tokens)
        for (_, own), (_, other) in zip(schemes.trainable(whole), schemes.trainable(half), strict=True):
            assert isinstance(other, UpcastParameter)
            own.copy_(other)

    def probe(tuned: lm.LanguageModel, engine: str) -> tuple[float, float]:
        model: Any = tuned.model

        def closure() -> torch.Tensor:
            states: list[torch.Tensor] = []
            hook = tuned.head.register_forward_pre_hook(lambda _, args: states.append(args[0]))
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids) if tuned.masked else None).logits
            hook.remove()
            if scheme == "head":
                logits = torch.nn.functional.linear(states[0].float(), model.label_head.weight.float())
            return logits.float().square().mean()

        result = gl.mezo(schemes.trainable(tuned), lr=1e-3, eps=1e-2, engine=engine).probe(closure)
        return result.loss, result.sketch.coeffs[0]

    for engine in ("stream", "dual"):
        assert probe(half, engine) == pytest.approx(probe(whole, engine), rel=1e-4, abs=1e-5)
