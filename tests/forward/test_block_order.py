"""What lies before, in and after the blocks of real architectures, and which of it a hybrid backpropagates through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import architectures
import gradless as gl
from gradless.errors import BadInput
from gradless.forward.block_order import BEFORE, last_units, places
from gradless.forward.model_blocks import blocks


def vit() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=3, num_labels=3)
    return transformers.ViTForImageClassification(config)


def classifier(kind: str, **options: Any) -> nn.Module:
    import transformers

    row = architectures.ROWS[kind]
    config = architectures.configuration(row._replace(options={**row.options, **options}))
    return transformers.AutoModelForSequenceClassification.from_config(config)


def language_model(kind: str) -> nn.Module:
    return architectures.build(architectures.ROWS[kind]).model


# The modules that are read after all blocks, and some that look like it and are not.
AFTER = {
    "vit": (vit, "vit.layernorm classifier", "vit.embeddings.patch_embeddings.projection"),
    "modernbert": ("model.final_norm head.dense head.norm decoder", "model.embeddings.norm"),
    "mpt": ("transformer.norm_f", "transformer.wte"),
    "mamba": ("backbone.norm_f", "backbone.embeddings"),
    "distilbert": ("vocab_transform vocab_layer_norm vocab_projector", "distilbert.embeddings.LayerNorm"),
    "distilbert classifier": (
        lambda: classifier("distilbert"),
        "pre_classifier classifier",
        "distilbert.embeddings.LayerNorm",
    ),
    "bert classifier": (lambda: classifier("bert"), "bert.pooler.dense classifier", "bert.embeddings.LayerNorm"),
    "opt": ("model.decoder.final_layer_norm", "model.decoder.embed_positions"),
    "opt-projected": ("model.decoder.project_out", "model.decoder.project_in"),
    "bloom": ("transformer.ln_f", "transformer.word_embeddings_layernorm"),
    "rwkv": ("rwkv.ln_out head", "rwkv.embeddings"),
    "mpnet": ("lm_head.dense lm_head.layer_norm lm_head", "mpnet.encoder.relative_attention_bias"),
    "xlm-roberta": ("lm_head.dense lm_head.layer_norm lm_head", "lm_head.decoder"),  # its tied table is named so
    "squeezebert": (
        "transformer.pooler.dense cls.predictions.transform.dense cls.predictions.transform.LayerNorm cls.predictions",
        "transformer.embeddings.LayerNorm",
    ),
    "lfm2": ("model.embedding_norm", "model.embed_tokens"),
    "recurrent_gemma": ("model.final_norm", "model.embed_tokens"),
}


def case(name: str) -> tuple[nn.Module, list[str], str]:
    *make, after, before = AFTER[name]
    with torch.random.fork_rng(devices=[]):
        return (make[0]() if make else language_model(name)), after.split(), before


@pytest.mark.few(5)
@pytest.mark.parametrize("name", AFTER)
def test_a_model_knows_what_it_reads_after_its_blocks(name):
    model, after, before = case(name)
    known, chain = places(model), blocks(model)
    assert sorted(known) == sorted(name for name, _ in model.named_parameters())
    behind = [name for name, index in known.items() if index == len(chain)]
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in behind)) == after
    assert {known[name] for name in known if name.rpartition(".")[0] == before} == {BEFORE}
    for index, (prefix, block) in enumerate(chain):
        assert {known[f"{prefix}.{name}"] for name, _ in block.named_parameters()} == {index}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", AFTER)
def test_a_hybrid_backpropagates_through_the_last_block_and_what_follows(name):
    model, after, before = case(name)
    chain = blocks(model)
    opt = gl.hybrid_zo_fo(model.named_parameters(), deep_units=2, model=model)
    deep = {leaf.name for leaf in opt.leaves if opt.estimator.deep(leaf.name)}
    last, first = chain[-1][0], chain[0][0]
    assert {name for name, _ in model.named_parameters() if name.startswith(f"{last}.")} <= deep
    assert {name.rpartition(".")[0] for name in deep if not name.startswith(f"{last}.")} == set(after)
    assert not any(name.startswith(f"{first}.") or name.rpartition(".")[0] == before for name in deep)


def test_a_hybrid_without_the_model_goes_by_the_order_of_its_parameters():
    for name in ("mpt", "mamba", "modernbert", "distilbert", "vit"):
        model, _, _ = case(name)
        names = [name for name, _ in model.named_parameters()]
        assert last_units(names, 2) == last_units(names, 2, model)


def test_a_hybrid_is_told_by_name_where_nothing_is_numbered():
    model = nn.Sequential()
    for name in ("stem", "body", "head"):
        model.add_module(name, nn.Linear(2, 2))
    with pytest.raises(BadInput, match=r"no parameter belongs to a numbered block: name .* deep="):
        gl.hybrid_zo_fo(model.named_parameters())
    opt = gl.hybrid_zo_fo(model.named_parameters(), deep="head")
    assert [leaf.name for leaf in opt.leaves if opt.estimator.deep(leaf.name)] == ["head.weight", "head.bias"]
    for wrong in ("tail", ".", "("):
        with pytest.raises(BadInput, match="deep is"):
            gl.hybrid_zo_fo(model.named_parameters(), deep=wrong)


def test_asking_leaves_a_model_as_it_was():
    model = vit()
    model.classifier.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    places(model)
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any("forward" in vars(block) for _, block in blocks(model))
