import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gguf_helpers import write_gguf
from gradless import lm as models
from gradless.cost import meta_models
from gradless.errors import BadInput
from gradless.lm import LanguageModel, checkpoint_config, tiny_models
from gradless.system import hub_requests
from gradless.system.hashing import file_sha256, weights_sha256

ARCHITECTURES = sorted(tiny_models.FAMILIES)


def logits(lm: LanguageModel, ids: tuple[int, ...] = (1, 60, 7, 300, 44)) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits


def saved(lm: LanguageModel, folder: Path) -> Path:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------------------------------
# tiny models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny(architecture: str) -> None:
    state = torch.get_rng_state()
    lm = models.tiny(architecture)
    assert torch.equal(torch.get_rng_state(), state)
    weights = weights_sha256(lm.model.named_parameters())
    torch.rand(3)
    assert weights_sha256(models.tiny(architecture).model.named_parameters()) == weights
    assert weights_sha256(models.tiny(architecture, seed=1).model.named_parameters()) != weights
    assert lm.masked == (architecture == "roberta")
    assert not lm.model.training
    assert lm.model.config.use_cache is False
    assert lm.dtype == torch.float32
    assert lm.device.type == "cpu"
    assert lm.num_parameters < 60_000
    out = logits(lm)
    assert out.shape[2] == len(lm.tokenizer) < 600
    assert 0.3 < out.std() < 3, "outputs of a random model should neither vanish nor explode"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_tying(architecture: str, tied: bool) -> None:
    lm = models.load(f"tiny-{architecture}-{'tied' if tied else 'untied'}")
    assert (lm.head.weight is lm.model.get_input_embeddings().weight) == tied
    assert lm.name == f"tiny-{architecture}-{'tied' if tied else 'untied'}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_tokenizers(architecture: str) -> None:
    tokenizer = models.tiny(architecture).tokenizer
    for word in tiny_models.WORDS:
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1
        if word.istitle():
            assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
    text = "Süße Größe, great!\n 1 + 1\tNow"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert set(tokenizer(text)) == {"input_ids", "attention_mask"}
    starts = {"roberta": "<s>", "llama": "<s>", "mistral": "<s>", "opt": "</s>", "gemma": "<bos>"}
    assert tokenizer.convert_ids_to_tokens(ids[0]) == starts.get(architecture, "S")
    assert (tokenizer.convert_ids_to_tokens(ids[-1]) == "</s>") == (architecture == "roberta")
    assert (tokenizer.mask_token is not None) == (architecture == "roberta")
    assert tokenizer.pad_token is not None
    assert tokenizer.padding_side == "right"


def test_tiny_norms_keep_their_defaults() -> None:
    model = models.tiny("llama").model
    assert torch.equal(model.model.norm.weight, torch.ones(32))
    assert torch.equal(models.tiny("gemma").model.model.norm.weight, torch.zeros(32))  # Gemma adds one


# ------------------------------------------------------------------------------------------------------------
# folders


@pytest.mark.parametrize("source", ["tiny-gemma-tied", "tiny-llama-untied", "tiny-roberta-tied", "tiny-opt"])
def test_folder_round_trip(source: str, tmp_path: Path) -> None:
    lm = models.load(source)
    again = models.load(str(saved(lm, tmp_path / "my-model")))
    assert weights_sha256(again.model.named_parameters()) == weights_sha256(lm.model.named_parameters())
    assert torch.equal(logits(again), logits(lm))
    assert again.masked == lm.masked
    assert again.name == "my-model"
    tied = lm.head.weight is lm.model.get_input_embeddings().weight
    assert (again.head.weight is again.model.get_input_embeddings().weight) == tied
    assert again.model.config.use_cache is False
    assert not again.model.training


def test_tuning_in_place_never_reaches_the_file(tmp_path: Path) -> None:
    folder = saved(models.tiny("llama"), tmp_path)
    digest = file_sha256(folder / "model.safetensors")
    lm = models.load(str(folder))  # weights may be views of the mapped file
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(1.0)
    del lm, parameter
    assert file_sha256(folder / "model.safetensors") == digest


def test_dtype(tmp_path: Path) -> None:
    lm = models.tiny("llama")
    lm.model.to(torch.bfloat16)
    folder = str(saved(lm, tmp_path))
    assert models.load(folder).dtype == torch.float32  # the default on the CPU
    for name, dtype in models.DTYPES.items():
        loaded = models.load(folder, dtype=name)
        assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert models.load("tiny-opt", dtype="bfloat16").dtype == torch.bfloat16


def test_masked_or_causal_is_read_from_the_architectures() -> None:
    from transformers import BertConfig, GPT2Config, RobertaConfig

    assert checkpoint_config.is_masked(BertConfig(architectures=["BertForMaskedLM"]))
    assert checkpoint_config.is_masked(RobertaConfig(architectures=None))
    assert not checkpoint_config.is_masked(GPT2Config(architectures=["GPT2LMHeadModel"]))
    assert not checkpoint_config.is_masked(GPT2Config(architectures=None))
    with pytest.raises(BadInput, match="BertModel has no language-model head"):
        checkpoint_config.is_masked(BertConfig(architectures=["BertModel"]))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}, "brings its own code, which is not run"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised in a way that is not read here"),
    ],
)
def test_models_that_cannot_be_tuned_are_refused_by_their_configuration(tmp_path: Path, config, words) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    for load in (models.load, meta_models.load):
        with pytest.raises(BadInput, match=words) as caught:
            load(str(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path}: ")


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(models.tiny("llama", tied=False), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks 1 weights .*lm_head.weight"):
        models.load(str(folder))


def test_settings_of_transformers_are_put_back(tmp_path: Path) -> None:
    from transformers.utils import logging as hf

    folder = saved(models.tiny("opt"), tmp_path)
    original = hf.get_verbosity(), hf.is_progress_bar_enabled(), logging.getLogger("huggingface_hub").level
    models.load(str(folder))
    with pytest.raises(BadInput):
        models.load(str(tmp_path / "config.json"))
    assert original == (
        hf.get_verbosity(),
        hf.is_progress_bar_enabled(),
        logging.getLogger("huggingface_hub").level,
    )


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved(models.tiny("gemma"), tmp_path)
    capfd.readouterr()
    models.load(str(folder))
    assert capfd.readouterr() == ("", "")


def _no_config(folder: Path) -> str:
    (folder / "model.gguf").write_bytes(b"")
    return str(folder)


def _pickled(folder: Path) -> str:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return str(folder)


def _torn(folder: Path) -> str:
    saved(models.tiny("opt"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(folder)


def _torn_config(folder: Path) -> str:
    saved(models.tiny("opt"), folder)
    (folder / "config.json").write_text('{"model_type": "opt"')
    return str(folder)


def _other_file(folder: Path) -> str:
    (folder / "model.bin").write_bytes(b"x")
    return str(folder / "model.bin")


def _not_gguf(folder: Path) -> str:
    (folder / "m.gguf").write_bytes(b"GGML" + bytes(40))
    return str(folder / "m.gguf")


def _short_gguf(folder: Path) -> str:
    (folder / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    return str(folder / "m.gguf")


def _old_gguf(folder: Path) -> str:
    (folder / "m.gguf").write_bytes(b"GGUF\1\0\0\0" + bytes(40))
    return str(folder / "m.gguf")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_no_config, ["has no config.json", "did you mean", "model.gguf"]),
        (_pickled, ["pickled", "safetensors"]),
        (_torn, ["cannot be loaded", "incomplete"]),
        (_torn_config, ["config.json is not JSON"]),
        (_other_file, ["neither a folder nor a .gguf file"]),
        (_not_gguf, ["is not a GGUF file"]),
        (_short_gguf, ["is truncated"]),
        (_old_gguf, ["GGUF version 1"]),
        (lambda folder: str(folder / "nowhere"), ["there is no model at"]),
        (lambda folder: "gemma-3-270", ["unknown model", "did you mean 'gemma-3-270m'"]),
        (lambda folder: "tiny-lama", ["did you mean 'llama'"]),
        (lambda folder: "tiny-llama-knotted", ["tiny-llama-knotted", "-tied"]),
    ],
)
def test_bad_sources(make: Callable[[Path], str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        models.load(make(tmp_path), cache=tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    for part in words:
        assert part in message


def test_bad_dtype_and_device() -> None:
    with pytest.raises(BadInput, match="did you mean 'bfloat16'"):
        models.load("tiny-opt", dtype="bf16")
    with pytest.raises(BadInput, match="unknown device 'gpu'"):
        models.load("tiny-opt", device="gpu")
    with pytest.raises(BadInput, match="is not there"):
        models.load("tiny-opt", device="cuda:99")


def test_a_hub_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PretrainedConfig

    asked = []

    def fail(name: str, **where: object) -> None:
        asked.append((name, where["revision"]))
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(hub_requests, "has_file", lambda *_, **__: False)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", fail)
    with pytest.raises(BadInput, match="check the name and the network") as caught:
        models.load("someone/some-model@v2")
    assert "\n" not in str(caught.value)
    assert asked == [("someone/some-model", "v2")]


# ------------------------------------------------------------------------------------------------------------
# GGUF


def test_gguf_is_used_in_place_and_exactly(tmp_path: Path) -> None:
    lm = models.tiny("llama")
    path, cache, messages = tmp_path / "tiny.gguf", tmp_path / "cache", []
    write_gguf(lm, path)
    first = models.load(str(path), cache=cache, say=messages.append)
    assert messages == []
    assert first.files == (path,)
    assert torch.equal(logits(first), logits(lm))
    assert first.name == "tiny"
    assert first.tokenizer(" great", add_special_tokens=False).input_ids == [
        lm.tokenizer.convert_tokens_to_ids("Ġgreat")
    ]
    assert [entry.name for entry in cache.iterdir()] == ["gguf-tokenizers"]
    (entry,) = (cache / "gguf-tokenizers").iterdir()
    assert not [*entry.glob("*.safetensors")]
    stamp = (entry / "tokenizer.json").stat().st_mtime_ns
    moved = path.rename(tmp_path / "another-name.gguf")  # the content is the key
    second = models.load(str(moved), dtype="float32", cache=cache, say=messages.append)
    assert messages == ["decoding the weights of another-name.gguf into float32"]
    assert second.files == ()
    assert (entry / "tokenizer.json").stat().st_mtime_ns == stamp
    assert weights_sha256(second.model.named_parameters()) == weights_sha256(lm.model.named_parameters())
    assert torch.equal(logits(second), logits(lm))


def test_a_gguf_of_another_architecture_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradless.lm import gguf_model

    lm = models.tiny("llama")
    path, cache, messages = tmp_path / "tiny.gguf", tmp_path / "cache", []
    write_gguf(lm, path)
    monkeypatch.setattr(gguf_model, "ARCHITECTURES", {})
    for _ in range(2):
        loaded = models.load(str(path), cache=cache, say=messages.append)
        assert weights_sha256(loaded.model.named_parameters()) == weights_sha256(lm.model.named_parameters())
        assert len(messages) == 1
    assert "converting tiny.gguf once" in messages[0]
    (entry,) = (cache / "gguf").iterdir()
    assert entry.name == file_sha256(path)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_truncated_gguf_leaves_nothing_behind(tmp_path: Path, dtype: str | None) -> None:
    whole, path, cache = tmp_path / "whole.gguf", tmp_path / "cut.gguf", tmp_path / "cache"
    write_gguf(models.tiny("llama"), whole)
    path.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(BadInput, match="broken or truncated") as caught:
        models.load(str(path), dtype=dtype, cache=cache)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_disk_full_during_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    from gradless.lm import gguf as gguf_convert
    from gradless.lm import gguf_model

    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(40))
    monkeypatch.setattr(gguf_model, "open_file", lambda path: None)

    def full(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (Path(command[-1]) / "model.safetensors").write_bytes(b"half")
        return subprocess.CompletedProcess(command, gguf_convert.NO_SPACE, "", "")

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(BadInput, match="disk is full"):
        models.load(str(path), cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_sources_name_everything_known() -> None:
    known = models.sources()
    assert {"gemma-3-270m", "smollm2-135m", "splade-tiny", "tiny-llama"} <= set(known)
    assert "movie-sentences" not in known
