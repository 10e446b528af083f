"""Folders and hub ids that are no model, or not a whole one: each has its true reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import checkpoint_config, checkpoint_files, devices
from gradless.lm.encode import encode
from gradless.system import hub_requests
from gradless.tasks.base import Example


def saved(folder: Path, source: str = "tiny-llama-untied") -> Path:
    lm = models.load(source)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _fewer_layers(folder: Path) -> None:
    settings(saved(folder), num_hidden_layers=1)


def _other_width(folder: Path) -> None:
    settings(saved(folder), intermediate_size=64)


def _negative_heads(folder: Path) -> None:
    settings(saved(folder, "tiny-roberta"), num_attention_heads=-1)


def _no_norm(folder: Path) -> None:
    weights(saved(folder), lambda tensors: tensors.pop("model.norm.weight"))


def _extra(folder: Path) -> None:
    weights(saved(folder), lambda tensors: tensors.update(extra=torch.ones(2)))


def _sentence_transformers(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")


def _run(folder: Path) -> None:
    (folder / "ledger").write_bytes(b"")


def _missing_shard(folder: Path) -> None:
    saved(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _empty_index(folder: Path) -> None:
    saved(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def _listed_config(folder: Path) -> None:
    saved(folder)
    (folder / "config.json").write_text("[1]")


def _deep_config(folder: Path) -> None:
    saved(folder)
    (folder / "config.json").write_text("[" * 100_000)


def _no_tokenizer(folder: Path) -> None:
    for path in saved(folder).glob("tokenizer*"):
        path.unlink()


def _unknown_architecture(folder: Path) -> None:
    settings(saved(folder), model_type="llama99", architectures=["Llama99ForCausalLM"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            _fewer_layers,
            r"has 9 weights that LlamaForCausalLM with this config.json does not use \(such as model.layers.1",
        ),
        (
            _other_width,
            r"weights of other shapes than its config.json says .*\[(32, 48|48, 32)\] and \[(32, 64|64, 32)\]",
        ),
        (_negative_heads, "num_attention_heads is -1 in its config.json"),
        (_no_norm, r"lacks 1 weights of LlamaForCausalLM \(such as model.norm.weight"),
        (_extra, r"does not use \(such as extra\)"),
        (_sentence_transformers, "it is a model of sentence-transformers"),
        (_run, "is a run, not a model: write its model with 'gradless replay"),
        (_missing_shard, r"lacks model-00002-of-00002.safetensors of 2 files"),
        (_empty_index, "names no files"),
        (_listed_config, "holds no settings"),
        (_deep_config, "is not JSON"),
        (_no_tokenizer, "has no tokenizer that can be read"),
        (_unknown_architecture, "does not know"),
        (lambda folder: None, "has no config.json, it is empty"),
    ],
)
def test_folders(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path)
    with pytest.raises(BadInput, match=words) as caught:
        models.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_of_other_heads_and_old_constants_do_no_harm(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "score.weight": torch.ones(2, 32)}
    extra |= {"model.pooler.dense.weight": torch.ones(2, 2)}
    weights(saved(tmp_path), lambda tensors: tensors.update(extra))
    assert models.load(str(tmp_path)).num_parameters == models.load("tiny-llama-untied").num_parameters


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("T5Config", "T5ForConditionalGeneration is an encoder and a decoder"),
        ("BartConfig", "BartForConditionalGeneration is an encoder and a decoder"),
        ("WhisperConfig", "WhisperForConditionalGeneration is an encoder and a decoder"),
        ("LlavaConfig", "may read images or sound"),
        ("ViTMAEConfig", "may read images or sound"),
        ("ViTConfig", "has no language-model head"),
        ("GPT2Config", None),
        ("BertConfig", None),
    ],
)
def test_kinds_of_models(tmp_path: Path, name: str, words: str | None) -> None:
    import transformers

    kinds = {"ViTMAEConfig": "ForPreTraining", "ViTConfig": "ForImageClassification", "GPT2Config": "LMHeadModel"}
    kinds |= {"BertConfig": "ForMaskedLM"}
    architecture = name.removesuffix("Config") + kinds.get(name, "ForConditionalGeneration")
    config = getattr(transformers, name)(architectures=[architecture])
    if words is None:
        assert checkpoint_config.check_class(config, name == "BertConfig") is None
        return
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BadInput, match=words):
        models.load(str(tmp_path))


def test_tokens_without_an_embedding(tmp_path: Path) -> None:
    lm = models.tiny("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.pad_token = None
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    lm.tokenizer.save_pretrained(tmp_path)
    lm = models.load(str(tmp_path))
    assert lm.tokenizer.pad_token_id < lm.num_embeddings == len(lm.tokenizer) - 1
    encode(lm, Example("the film was", (" good", " bad"), (0,)))
    with pytest.raises(BadInput, match=r"holds the token '\[PAD\]', and .* has no embedding of it"):
        encode(lm, Example("the film [PAD] was", (" good", " bad"), (0,)))


@pytest.mark.parametrize(
    "name", ["cuda:7", "mps", "xpu", "xpu:3", "cpu:3", "meta", "hpu", "npu:0", "cuda:-1", "gpu", ""]
)
def test_devices_that_are_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"is not there \(|not supported|unknown device") as caught:
        models.device_of(name)
    assert f"'{name}'" in str(caught.value)


def test_a_graphics_card_that_a_run_leaves_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.backends.mps, torch.cuda, torch.xpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    assert devices.idle("cpu") == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.idle("cpu") == "this runs on the CPU, and a graphics card is here: --device cuda uses it"
    assert devices.idle("cuda") == devices.idle("auto") == ""


def _hub_error(name: str) -> Exception:
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, name)
    return kind.__new__(kind)  # without the response that some of them need


@pytest.mark.parametrize(
    ("cause", "text", "words"),
    [
        (
            "GatedRepoError",
            "You are trying to access a gated repo.",
            "is gated: accept its terms on .*me/model, and log in",
        ),
        ("RepositoryNotFoundError", "not valid", "no public model of the hub: .* if it is private, log in"),
        ("RevisionNotFoundError", "v9 is not", "me/model has no revision 'v9'"),
        ("LocalEntryNotFoundError", "We couldn't connect", "is not in the hub's cache here"),
        ("OfflineModeIsEnabled", "offline", "unset HF_HUB_OFFLINE"),
        (None, "403 Client Error: Forbidden", "does not let you read me/model@v9 .*: log in"),
        (None, "does not appear to have a file named config.json", "has no config.json, so it is an adapter"),
        (None, "no file named model.safetensors", "has no safetensors weights"),
        (None, "weird", r"did not give it \(weird\)"),
    ],
)
def test_what_the_hub_says(cause: str | None, text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PretrainedConfig

    def fail(*_: object, **__: object) -> None:
        raise OSError(text) from (_hub_error(cause) if cause else None)

    monkeypatch.setattr(hub_requests, "has_file", lambda *_, **__: False)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", fail)
    with pytest.raises(BadInput, match=words) as caught:
        models.load("me/model@v9")
    assert "\n" not in str(caught.value)


def test_a_chain_of_errors_may_be_a_circle() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert "check the name" in checkpoint_files.load_failure("me/model", False, first, ["tiny"])
