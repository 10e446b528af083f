"""Adapter folders are models: what PEFT wrote gives PEFT's bits, can be tuned or merged, and bad ones have a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_helpers import KINDS, QV, by_peft, logits, save_adapter, settings_of
from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import adapters, schemes
from gradless.lm.batching import collate_prompts
from gradless.lm.encode import encode
from gradless.lm.generation import generate
from gradless.system import hub_requests
from gradless.system.hashing import weights_sha256
from gradless.tasks.base import Example


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_the_bits_that_peft_gives_and_trains_what_peft_trains(kind: str, tmp_path: Path) -> None:
    name, settings = KINDS[kind]
    base = settings.get("base", "tiny-llama")
    folder = save_adapter(tmp_path / "adapter", name, **settings)
    lm = models.load(str(folder))
    expected = logits(by_peft(folder, base))
    assert torch.equal(logits(lm.model), expected)
    assert not torch.equal(expected, logits(models.load(base).model))
    assert (lm.source, lm.name, lm.masked) == (str(folder), "adapter", base == "tiny-roberta")
    assert lm.origin is not None
    assert lm.origin.base == base
    scheme = {"Lora": "lora", "PrefixTuning": "prefix", "PromptTuning": "prompt"}.get(name)
    if scheme is None:
        with pytest.raises(BadInput, match=r"a new adapter of the scheme lora would be of no use without it"):
            schemes.apply(lm, "lora")
        return
    tuned = dict(schemes.trainable(schemes.apply(lm, scheme)))
    in_file = load_file(folder / adapters.WEIGHTS)
    base_layers = [tensor.numel() for key, tensor in in_file.items() if key.endswith("base_layer.weight")]
    assert sum(p.numel() for p in tuned.values()) == sum(map(torch.numel, in_file.values())) - sum(base_layers)


@pytest.mark.parametrize("kind", ["lora", "dora", "own head", "tied head", "on the head", "ia3", "masked"])
def test_the_scheme_full_merges_what_can_be_merged(kind: str, tmp_path: Path) -> None:
    name, settings = KINDS[kind]
    folder = save_adapter(tmp_path / "adapter", name, **settings)
    lm = schemes.apply(models.load(str(folder)), "full")
    assert not lm.adapters
    assert torch.allclose(logits(lm.model), logits(by_peft(folder, settings.get("base", "tiny-llama"))), atol=1e-4)
    assert all(p.requires_grad for p in lm.model.parameters())
    lm.model.save_pretrained(tmp_path / "merged")
    lm.tokenizer.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(models.load(str(tmp_path / "merged")).model), logits(lm.model))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_weights_keep_the_type_that_they_were_stored_in(stored: str, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter")
    tensors = load_file(folder / adapters.WEIGHTS)
    save_file({name: one.to(models.DTYPES[stored]) for name, one in tensors.items()}, folder / adapters.WEIGHTS)
    lm = models.load(str(folder), dtype="bfloat16")
    assert {p.dtype for _, p in adapters.tuned(lm.model)} == {models.DTYPES[stored]}
    assert lm.dtype == torch.bfloat16
    if stored == "float32":
        assert torch.equal(logits(lm.model), logits(by_peft(folder, dtype="bfloat16")))


def test_the_factor_of_an_adapter_counts_in_the_hash_of_a_run(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter")

    def digest() -> str:
        lm = models.load(str(folder))
        return weights_sha256([*lm.model.named_parameters(), *adapters.scalings(lm.model)])

    one = digest()
    settings_of(folder, lora_alpha=9)
    assert digest() != one
    assert not list(adapters.scalings(models.load("tiny-llama").model))


def test_embeddings_that_were_added_come_with_the_adapter(tmp_path: Path) -> None:
    import peft

    base = models.tiny("llama")
    base.tokenizer.add_tokens(["<new>", "<newer>"])
    base.model.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)  # type: ignore[operator]
    with models.quiet_transformers():
        model = peft.get_peft_model(base.model, peft.LoraConfig(r=2, target_modules=QV))  # type: ignore[arg-type]
    model.peft_config["default"].base_model_name_or_path = "tiny-llama"
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    base.tokenizer.save_pretrained(tmp_path)
    lm = models.load(str(tmp_path))
    assert torch.equal(logits(lm.model), logits(model.eval()))
    assert lm.num_embeddings == len(lm.tokenizer) == len(base.tokenizer)
    assert lm.origin is not None
    assert lm.origin.has_embeddings
    encode(lm, Example("the <new> film was", (" good", " bad"), (0,)))


@pytest.mark.parametrize("kind", ["PromptTuning", "PromptEncoder", "PrefixTuning"])
def test_generated_text_does_not_depend_on_the_batch(kind: str, tmp_path: Path) -> None:
    lm = models.load(str(save_adapter(tmp_path / "adapter", kind)))
    rows = [
        encode(lm, Example(prompt, (), (), answers=("x",)))
        for prompt in ("It was", "It was a very good film, so it is")
    ]
    together = generate(lm, collate_prompts(lm, rows, new_tokens=5))
    assert together == [generate(lm, collate_prompts(lm, [row], new_tokens=5))[0] for row in rows]


# ------------------------------------------------------------------------------------------------------------
# where the base is


def test_a_base_that_moved_is_found_beside_the_adapter(tmp_path: Path) -> None:
    base = models.tiny("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    folder = save_adapter(tmp_path / "adapter", base=str(tmp_path / "base"))
    expected = logits(models.load(str(folder)).model)
    messages: list[str] = []
    settings_of(folder, base_model_name_or_path="/home/somebody/base")
    assert torch.equal(logits(models.load(str(folder), say=messages.append).model), expected)
    assert messages == [f"the base model of {folder} is taken from {tmp_path / 'base'}"]
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=r"which is neither there nor at .*/base: move or link it to there, or write"):
        models.load(str(folder))


def _no_base(folder: Path) -> None:
    settings_of(folder, base_model_name_or_path=None)


def _other_base(folder: Path) -> None:
    settings_of(folder, base_model_name_or_path="tiny-gemma")


def _other_modules(folder: Path) -> None:
    settings_of(folder, base_model_name_or_path="tiny-roberta")


def _unknown_base(folder: Path) -> None:
    settings_of(folder, base_model_name_or_path="tiny-lama")


def _itself(folder: Path) -> None:
    settings_of(folder, base_model_name_or_path=str(folder))


def _no_kind(folder: Path) -> None:
    settings_of(folder, peft_type=None)


def _unknown_kind(folder: Path) -> None:
    settings_of(folder, peft_type="LORRA")


def _unusable_kind(folder: Path) -> None:
    settings_of(folder, peft_type="XLORA")


def _classifier(folder: Path) -> None:
    settings_of(folder, task_type="SEQ_CLS")


def _huge(folder: Path) -> None:
    settings_of(folder, r=10**9)


def _other_rank(folder: Path) -> None:
    settings_of(folder, r=2)


def _fewer_targets(folder: Path) -> None:
    settings_of(folder, target_modules=["q_proj"])


def _more_targets(folder: Path) -> None:
    settings_of(folder, target_modules=["q_proj", "v_proj", "k_proj"])


def _no_target(folder: Path) -> None:
    settings_of(folder, target_modules=["Wqkv"])


def _missing_module(folder: Path) -> None:
    settings_of(folder, modules_to_save=["lm_head"])


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[")


def _listed(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[1]")


def _pickled(folder: Path) -> None:
    (folder / adapters.WEIGHTS).rename(folder / adapters.PICKLED)


def _no_weights(folder: Path) -> None:
    (folder / adapters.WEIGHTS).unlink()


def _torn(folder: Path) -> None:
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def _subfolders(folder: Path) -> None:
    (folder / "english").mkdir()
    for name in ("adapter_config.json", adapters.WEIGHTS):
        (folder / name).rename(folder / "english" / name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_base, "does not name its base model: write the model that it was tuned on into"),
        (_other_base, r"does not fit its base model tiny-gemma \(its .*lora_.* is \[.*\], and would be \[.*\]\)"),
        (_other_modules, r"does not fit its base model tiny-roberta \(Target modules .* not found"),
        (_unknown_base, "is an adapter of tiny-lama: .*did you mean 'llama'"),
        (_itself, "is an adapter of .*: .* holds an adapter of PEFT for .*, not a model"),
        (_no_kind, "does not say what kind of adapter it is"),
        (_unknown_kind, "does not fit its base model"),
        (_unusable_kind, "of the kind XLORA, which is not read"),
        (_classifier, "an adapter for SEQ_CLS, which has no language-model head"),
        (_huge, "asks for r beyond 1000000"),
        (_other_rank, r"\(its .*q_proj.lora_A.default.weight is \[4, 32\], and would be \[2, 32\]\)"),
        (
            _fewer_targets,
            r"has 4 weights that its adapter_config.json and tiny-llama have no place for",
        ),
        (_more_targets, r"lacks 4 weights that its adapter_config.json and tiny-llama ask for \(such as .*k_proj"),
        (_no_target, r"Target modules .*Wqkv.* not found"),
        (_missing_module, "its file lacks .*lm_head"),
        (_no_json, "adapter_config.json is not JSON"),
        (_listed, "does not say what kind of adapter it is"),
        (_pickled, "has only pickled weights, which are not read for safety"),
        (_no_weights, "has no adapter_model.safetensors"),
        (_torn, "adapter_model.safetensors is broken or truncated"),
        (_broken_tokenizer, "the tokenizer beside the adapter .* cannot be read"),
        (_subfolders, "has no config.json; did you mean .*english"),
    ],
)
def test_bad_adapters(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter")
    spoil(folder)
    with pytest.raises(BadInput, match=words) as caught:
        models.load(str(folder))
    assert "\n" not in str(caught.value)


def test_a_prefix_of_another_base(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", "PrefixTuning")
    settings_of(folder, base_model_name_or_path="tiny-gemma")
    with pytest.raises(BadInput, match="does not fit its base model tiny-gemma"):
        models.load(str(folder))
    settings_of(folder, base_model_name_or_path="tiny-llama", num_layers=1)
    values = load_file(folder / adapters.WEIGHTS)["prompt_embeddings"]
    save_file({"prompt_embeddings": values[:, :32].contiguous()}, folder / adapters.WEIGHTS)
    with pytest.raises(BadInput, match=r"does not fit its base model tiny-llama .*it is for 1 layers of 2"):
        models.load(str(folder))


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("lora", {"rank": 16}, "has rank 4, and --rank is 16: leave it out"),
        ("lora", {"alpha": 3.0}, "has alpha 8, and --alpha is 3.0: leave it out"),
        ("lora", {"targets": ("k_proj",)}, "is on q_proj, v_proj: leave out --target"),
        ("prefix", {}, "a new adapter of the scheme prefix would be of no use without it: use the scheme lora"),
    ],
)
def test_what_contradicts_an_adapter(scheme: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    lm = models.load(str(save_adapter(tmp_path / "adapter")))
    with pytest.raises(BadInput, match=words):
        schemes.apply(lm, scheme, **options)


def test_virtual_tokens_cannot_be_merged(tmp_path: Path) -> None:
    lm = models.load(str(save_adapter(tmp_path / "adapter", "PromptTuning")))
    with pytest.raises(BadInput, match="has virtual tokens, which the scheme full has no place for: use the"):
        schemes.apply(lm, "full")


def test_an_adapter_on_one_of_two_tied_layers_is_not_merged(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", base="tiny-llama-tied", target_modules=["embed_tokens"])
    assert torch.equal(logits(models.load(str(folder)).model), logits(by_peft(folder, "tiny-llama-tied")))
    with pytest.raises(BadInput, match="cannot be merged into weights: the model then says something else"):
        schemes.apply(models.load(str(folder)), "full")


# ------------------------------------------------------------------------------------------------------------
# the hub


def test_a_hub_id_of_an_adapter_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from transformers import PretrainedConfig

    folder, asked = save_adapter(tmp_path / "adapter"), []

    def no_config(name: str, **_: object) -> None:
        raise OSError(f"{name} does not appear to have a file named config.json")

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(folder)

    monkeypatch.setattr(hub_requests, "has_file", lambda *_, **__: False)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", no_config)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    lm = models.load("me/adapter@v2")
    assert asked == [("me/adapter", "v2")]
    assert (lm.source, lm.name) == ("me/adapter@v2", "adapter")
    assert torch.equal(logits(lm.model), logits(models.load(str(folder)).model))
