"""Checkpoints of bitsandbytes and torchao, and float ones quantised as they are loaded: tuned as a model of floats is.

A twin has the decoded weights in plain parameters. Coefficients of both agree to the last bits of float32: the products
are the same functions of the same values, in buffers that may be aligned otherwise.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import run_helpers as h
from gradless import lm
from gradless.errors import BadInput
from gradless.lm import quantisation, schemes
from gradless.methods import METHODS
from gradless.runs import replay
from gradless.storage import libraries, quantised
from gradless.storage.stored import StoredWeight, decoded

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Coefficients are differences of losses over 2 eps, here 1e-2: float32 leaves about 1e-5 of them."""


def needs(codes: str) -> None:
    """Skip where the library of a code is not installed."""
    if importlib.util.find_spec(quantisation.LIBRARY[codes]) is None:
        pytest.skip(f"{quantisation.LIBRARY[codes]} is not installed")


@pytest.fixture(scope="module", params=quantisation.LIBRARY)
def codes(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return str(request.param)


def floats(folder: Path) -> Path:
    """Save a tiny model in floats."""
    tiny = lm.load("tiny-llama")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, codes: str) -> Path:
    """A checkpoint that transformers itself quantised and saved."""
    import transformers as hf

    source, folder = floats(tmp_path_factory.mktemp("floats")), tmp_path_factory.mktemp(codes)
    if codes == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        config: Any = hf.TorchAoConfig(Int8WeightOnlyConfig())
    else:
        config = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=codes)
    model = hf.AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def twin(model: lm.LanguageModel) -> lm.LanguageModel:
    """The same model with its decoded weights in parameters."""
    for module in model.model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, StoredWeight):
                setattr(module, name, nn.Parameter(decoded(weight), requires_grad=False))
    return model


def coefficients(model: lm.LanguageModel, scheme: str, engine: str) -> list[float]:
    """Those of three steps of MeZO on a batch of tokens."""
    tuned = schemes.apply(model, scheme, seed=3)
    make: Any = METHODS["mezo"].make
    opt = make(schemes.trainable(tuned), lr=1e-2, eps=1e-2, seed=5, engine=engine)
    ids = torch.arange(24).view(4, 6) + 7
    net: Any = tuned.model

    def closure() -> torch.Tensor:
        return net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss

    got: list[float] = []
    for _ in range(3):
        opt.step_with(closure, lambda move: got.extend(move.coeffs))
    return got


@pytest.mark.parametrize("engine", ["stream", "dual"])
def test_coefficients_are_those_of_the_decoded_weights(codes: str, engine: str) -> None:
    got = coefficients(lm.load("tiny-llama", quantise=codes), "lora", engine)
    expected = coefficients(twin(lm.load("tiny-llama", quantise=codes)), "lora", engine)
    assert len(got) == 3
    assert all(got)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), **CLOSE)


@pytest.mark.sweep
@pytest.mark.parametrize("scheme", ["prefix", "prompt"])
def test_other_schemes_are_tuned_over_codes(codes: str, scheme: str) -> None:
    got = coefficients(lm.load("tiny-llama", quantise=codes), scheme, "dual")
    expected = coefficients(twin(lm.load("tiny-llama", quantise=codes)), scheme, "dual")
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), **CLOSE)


def test_a_saved_checkpoint_loads_as_it_was_quantised(saved: Path, codes: str) -> None:
    loaded, fresh = lm.load(str(saved)), lm.load("tiny-llama", quantise=codes)
    assert quantised.of_model(loaded.model) == quantised.of_model(fresh.model)
    assert not any(type(m).__module__.startswith(("bitsandbytes", "torchao")) for m in loaded.model.modules())
    weights = dict(loaded.model.named_parameters())
    for name, weight in fresh.model.named_parameters():
        assert torch.equal(decoded(weight), decoded(weights[name])), name
    stored = loaded.model.model.layers[0].self_attn.q_proj.weight.store
    assert stored.nbytes < 4 * stored.shape.numel()
    parts = torch.empty(stored.shape)
    for start in range(0, 32, 8):
        stored.decode(parts[start : start + 8], start)
    assert torch.equal(parts, decoded(StoredWeight(stored)))
    rows = torch.tensor([5, 0, 31])
    out = torch.empty(3, 32)
    stored.decode_rows(out, rows)
    assert torch.equal(out, parts[rows])
    assert b"".join(map(bytes, stored.stored()))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(8, 64), (32, 32), (10, 96), (3, 22)])
@pytest.mark.parametrize("nested", [False, True])
def test_blocks_may_go_over_the_ends_of_rows(kind: str, shape: tuple[int, int], nested: bool) -> None:
    needs("nf4")
    from bitsandbytes.nn import Params4bit

    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight: Any = Params4bit(values, quant_type=kind, compress_statistics=nested).to("cpu")
    store, state = libraries.FourBit(weight, torch.float32), weight.quant_state
    codes = torch.stack((weight.data.view(-1) >> 4, weight.data.view(-1) & 15), 1).view(-1)[: values.numel()].long()
    scales = state.absmax
    if nested:
        from bitsandbytes.functional import dequantize_blockwise

        scales = dequantize_blockwise(scales, state.state2) + state.offset
    expected = (state.code[codes] * scales.repeat_interleave(64)[: values.numel()]).view(shape)
    for rows in (shape[0], 1, 3):
        out = torch.empty(shape)
        for start in range(0, shape[0], rows):
            store.decode(out[start : start + rows], start)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)


def test_a_run_over_codes_resumes_and_replays(saved: Path, codes: str, tmp_path: Path) -> None:
    settings = h.config(tmp_path, model=str(saved), scheme="lora", steps=4, lr=1e-2, zero_shot=False)
    whole = h.tune(settings, tmp_path / "whole")
    named = h.config(tmp_path, model="tiny-llama", quantise=codes, scheme="lora", steps=4, lr=1e-2, zero_shot=False)
    again = h.tune(named, tmp_path / "named")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert json.loads((tmp_path / "named/config.json").read_text())["quantise"] == codes
    part = tmp_path / "part"
    h.tune(h.config(tmp_path, model=str(saved), scheme="lora", steps=2, lr=1e-2, zero_shot=False), part)
    assert h.tune(settings, part, resume=True)["weights_sha256"] == whole["weights_sha256"]
    built, _ = replay.rebuild(tmp_path / "named", say=lambda line: None)
    assert replay.build.tuned_sha256(built) == whole["weights_sha256"]
    with pytest.raises(BadInput, match="another base model"):
        replay.rebuild(tmp_path / "named", model="tiny-llama-tied", say=lambda line: None)


def test_full_tuning_of_codes_is_refused(codes: str) -> None:
    with pytest.raises(BadInput, match=r"cannot move a code of a few bits.*--scheme lora, or a checkpoint in floats"):
        schemes.apply(lm.load("tiny-llama", quantise=codes), "full")


def test_quantising_twice_is_refused(saved: Path, codes: str) -> None:
    with pytest.raises(BadInput, match=f"quantised already .*leave out --quantise {codes}"):
        lm.load(str(saved), quantise=codes)


@pytest.mark.parametrize("name", ["llm.int8", "dynamic int8"])
def test_codes_of_formats_that_round_activations_are_read_without_that(name: str, tmp_path: Path) -> None:
    import transformers as hf

    needs("int8" if name == "dynamic int8" else "nf4")
    if name == "dynamic int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        config: Any = hf.TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    else:
        config = hf.BitsAndBytesConfig(load_in_8bit=True)
    source = floats(tmp_path / "floats")
    how: dict[str, Any] = {"dtype": torch.float32, "device_map": {"": "cpu"}}
    model = hf.AutoModelForCausalLM.from_pretrained(source, quantization_config=config, **how)
    assert quantised.rounds_activations(model) is not None
    model.save_pretrained(tmp_path / "codes")
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "codes")
    lines: list[str] = []
    loaded = lm.load(str(tmp_path / "codes"), say=lines.append)
    assert "activations are not rounded" in lines[0]
    assert quantised.rounds_activations(loaded.model) is None
    ids, close = torch.tensor([[3, 4, 5, 6]]), lm.load(str(source)).model
    with torch.no_grad():
        difference = (loaded.model(ids).logits - close(ids).logits).abs().max()
    assert 0 < difference < 0.2


REFUSED = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "pip install gptqmodel optimum"),
    "awq": ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
    "fp8": ({"quant_method": "fp8"}, "round activations to a few bits"),
    "compressed": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"input_activations": {"num_bits": 8}}}},
        "round activations to a few bits",
    ),
    "unknown": ({"quant_method": "magic"}, r"not read here \(magic\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_formats_are_refused_with_the_true_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, reason = REFUSED[name]
    monkeypatch.setattr(quantisation, "_installed", lambda module: False)
    with pytest.raises(BadInput, match=reason):
        quantisation.check(copy.deepcopy(settings))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "_installed", lambda module: False)
    with pytest.raises(BadInput, match=r"--quantise nf4 needs bitsandbytes.*pip install 'gradless\[quantised\]'"):
        lm.load("tiny-llama", quantise="nf4")
    with pytest.raises(BadInput, match="needs torchao, which is not installed"):
        quantisation.check({"quant_method": "torchao"})


@pytest.mark.parametrize("changes", [{"quantise": "nf5"}, {"quantise": "nf4", "offload": "disk"}, {"offload": "tape"}])
def test_unknown_and_contradicting_choices_are_refused(changes: dict[str, str], monkeypatch: Any) -> None:
    monkeypatch.setattr(quantisation, "_installed", lambda module: True)
    with pytest.raises(BadInput):
        lm.load("tiny-llama", **changes)
