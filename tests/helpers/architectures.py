"""Tiny random models of the architectures of transformers, one row each, and what a cell of the sweep is held to.

A cell is an architecture under a scheme. It is right if everything in `Cell` holds, or refused in one sentence.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

import gradless as gl
from gradless.cost import plan
from gradless.errors import BadInput
from gradless.lm import LanguageModel, objectives, schemes, tiny, tiny_models
from gradless.lm.encode import encode
from gradless.lm.loading import _finish
from gradless.lm.quiet import quiet_transformers
from gradless.runs.scheme_settings import STORED
from gradless.system.hashing import weights_sha256
from gradless.tasks.base import MASK, Example

SIZES: Final[dict[str, Any]] = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 64},
}
"""Sizes of every row, where its configuration knows them by these names."""

_ROUTED: Final = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED: Final = {**_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 16}
_LATENT: Final = {
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6},
    **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "head_dim": 4},
    **{"first_k_dense_replace": 1, **_ROUTED},
}
_MAMBA: Final = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 2}
_MIXER: Final = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_expand": 2}

CAUSAL: Final[dict[str, dict[str, Any]]] = {
    **{
        name: {}
        for name in (
            *("apertus", "arcee", "bert-generation", "biogpt", "bitnet", "bloom", "cohere", "cohere2", "diffllama"),
            *("doge", "ernie4_5", "exaone4", "falcon_mamba", "gemma", "glm", "glm4", "gpt2", "gpt_bigcode"),
            *("gpt_neox", "gpt_neox_japanese", "granite", "granitemoe", "helium", "hunyuan_v1_moe", "jetmoe", "llama"),
            *("minimax", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo", "olmo2"),
            *("openai-gpt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen3", "rwkv", "seed_oss", "smollm3"),
            *("stablelm", "starcoder2", "xlm"),
        )
    },
    "bamba": {"attn_layer_indices": [1], **_MIXER},
    "codegen": {"rotary_dim": 4},
    "ctrl": {"dff": 48},
    "dbrx": {
        **{"d_model": 32, "n_heads": 4, "n_layers": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4},
    },
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "falcon": {"multi_query": True, "alibi": False},
    "falcon-alibi": {"multi_query": False, "alibi": True},
    "falcon_h1": {**_MIXER, "mamba_d_ssm": 32, "mamba_d_head": 8},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 4},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {
        **{**_MIXER, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
        **{"num_local_experts": 0, "num_experts_per_tok": 0},
    },
    "jamba": {
        **{"mamba_d_state": 4, "mamba_dt_rank": 2, "num_experts": 2, "num_experts_per_tok": 1},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48},
    "mamba": _MAMBA,
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt-projected": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "qwen2_moe": _SHARED,
    "qwen3_moe": {**_ROUTED, "num_experts": 4},
    "qwen3_next": {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
        **{**_SHARED, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 32},
    "xglm": {"ffn_dim": 48},
    "xlnet": {"n_layer": 2, "d_model": 32, "n_head": 4, "d_inner": 48, "d_head": 8},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
}
"""Causal models: ``model_type``, for variants with a hyphen behind it, and what they need besides `SIZES`."""

READ_AHEAD: Final = ("bert-generation", "xlm", "xlnet")
"""Those of `CAUSAL` that are refused under every scheme, since a token sees what follows it."""

MASKED: Final[dict[str, dict[str, Any]]] = {
    **{
        name: {}
        for name in (
            *("bert", "big_bird", "camembert", "data2vec-text", "deberta", "electra", "ernie", "esm", "eurobert"),
            *("flaubert", "fnet", "ibert", "megatron-bert", "modernbert", "mpnet", "nystromformer", "roberta"),
            *("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        )
    },
    "albert": {"embedding_size": 16},
    "convbert": {"embedding_size": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "distilbert": {"hidden_dim": 48},
    "longformer": {"attention_window": 32},
    "mobilebert": {"intra_bottleneck_size": 16, "embedding_size": 16, "true_hidden_size": 16},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 32},
    "squeezebert": {"embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1},
}
"""Masked models."""


class Row(NamedTuple):
    """One architecture."""

    name: str
    masked: bool
    options: dict[str, Any]


ROWS: Final = {
    **{name: Row(name, False, options) for name, options in CAUSAL.items()},
    **{name: Row(name, True, options) for name, options in MASKED.items()},
}


@functools.cache
def tokenizer(masked: bool) -> Any:
    return tiny("roberta" if masked else "llama").tokenizer


def configuration(row: Row) -> Any:
    """Its configuration in small."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[row.name if row.name in CONFIG_MAPPING else row.name.partition("-")[0]]
    known = {*inspect.signature(cls).parameters, *getattr(cls, "attribute_map", ())}
    words = tokenizer(row.masked)
    roles = {f"{role}_token_id": getattr(words, f"{role}_token_id") for role in ("bos", "eos", "pad", "cls", "sep")}
    own = {key: value for key, value in {**SIZES, **roles}.items() if key in known and value is not None}
    return cls(**{**own, "vocab_size": len(words), **row.options})


def transformers_class(row: Row) -> Any:
    """The class of transformers that finds the model's class."""
    import transformers

    return transformers.AutoModelForMaskedLM if row.masked else transformers.AutoModelForCausalLM


def build(row: Row) -> LanguageModel:
    """A tiny model of an architecture, the same on every call."""
    head = transformers_class(row)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model = head.from_config(configuration(row), dtype=torch.float32)
    tiny_models._randomise(model, 0)
    return _finish(LanguageModel(model, tokenizer(row.masked), row.masked, source=row.name, name=row.name))


# ------------------------------------------------------------------------------------------------------------
# cells

SCHEMES: Final = tuple(name for name in schemes.SCHEMES if name not in STORED)
ENGINES: Final = ("stream", "dual", "in-place")
EPS: Final = 1e-2
STEPS: Final = 2
VIRTUAL: Final = 3  # tokens of a prefix or prompt
TEXTS: Final = ("so the film was", "no")  # of different length, so that one is padded
LABELS: Final = (" great", " terrible")
ROUNDING: Final = 2e-5  # of losses, in units of a loss near one


class Cell(NamedTuple):
    """What became of an architecture under a scheme."""

    refused: str = ""  # the sentence
    wrong: tuple[str, ...] = ()  # promises that do not hold
    engine: str = ""  # what the engine dual became
    adapts: tuple[str, ...] = ()  # last parts of the names of what LoRA adapts


def run(row: Row, scheme: str) -> Cell:
    """Tune an architecture under a scheme for a few steps, with every engine and again from its updates."""
    return _outcome(lambda: _run(row, scheme))


def planned(row: Row, folder: Path) -> Cell:
    """Plan an architecture's memory from its configuration, written to a folder."""
    config = configuration(row)
    head = transformers_class(row)
    config.architectures = [head._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)

    def run() -> Cell:
        needs = plan.plan(plan.Settings(model=str(folder), batch_size=2, length=8)).needs
        return Cell(wrong=tuple(f"{need.name} is {need.total}" for need in needs if not 0 < need.total < 1e9))

    return _outcome(run)


def _outcome(make: Callable[[], Cell]) -> Cell:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make()
        except BadInput as error:
            return Cell(refused=str(error))
        except Exception as error:  # the kind of failure that the sweep looks for
            return Cell(wrong=(f"{type(error).__name__}: {error}".splitlines()[0][:300],))


def _run(row: Row, scheme: str) -> Cell:
    base = build(row)
    fresh = dataclasses.replace(base, model=copy.deepcopy(base.model))
    loss = float(loss_of(base)())
    lm = start(base, scheme)
    wrong = [*_starts(lm, scheme, loss, plain_loss(fresh))]
    again = start(fresh, scheme)
    for one in (lm, again):
        nudge(one)
    engine, differences = _engines(lm)
    wrong += [*differences, *_trains(lm, again)]
    adapted = [name.partition(".lora_")[0].rpartition(".")[2] for name, _ in schemes.trainable(lm) if ".lora_" in name]
    return Cell(wrong=tuple(wrong), engine=engine, adapts=tuple(dict.fromkeys(adapted)))


def _starts(lm: LanguageModel, scheme: str, loss: float, plain: float) -> Iterator[str]:
    """Yield what is wrong with the first loss."""
    first = float(loss_of(lm)())
    if not math.isclose(loss, plain, rel_tol=1e-5):
        yield f"the loss is {loss}, that of plain forwards {plain}"
    if scheme in ("prefix", "prompt") and first == loss:
        yield "virtual tokens do not matter"
    if scheme not in ("prefix", "prompt") and not math.isclose(first, loss, rel_tol=1e-5):
        yield f"the scheme starts at loss {first}, the model at {loss}"


def _engines(lm: LanguageModel) -> tuple[str, list[str]]:
    """Return what the engine dual became, and where engines differ or leave other weights behind."""
    wrong, probes, used = [], {}, {}
    weights = weights_sha256(lm.model.named_parameters())
    for name in ENGINES:
        opt = optimizer(lm, name)
        probe = opt.probe(loss_of(lm))
        probes[name], used[name] = (probe.loss, probe.sketch.coeffs[0] * 2 * EPS), opt.engine
        if weights_sha256(lm.model.named_parameters()) != weights:
            wrong.append(f"the engine {name} leaves other weights behind")
    stream = probes["stream"]
    for name, probe in probes.items():
        if max(abs(a - b) for a, b in zip(probe, stream, strict=True)) > ROUNDING * max(abs(stream[0]), 1):
            wrong.append(f"the engine {name} finds {probe}, stream {stream}")
    if not stream[1]:
        wrong.append("the loss does not feel the perturbation")
    return used["dual"], wrong


def _trains(lm: LanguageModel, again: LanguageModel) -> Iterator[str]:
    """Yield what is wrong after some steps of each engine, and after their updates on a fresh model."""
    frozen = [(name, p) for name, p in lm.model.named_parameters() if not p.requires_grad]
    kept, named = weights_sha256(frozen), schemes.trainable(lm)
    first, values = weights_sha256(named), [p.detach().clone() for _, p in named]
    for engine in ENGINES:
        for model in (lm, again):
            with torch.no_grad():
                for (_, p), value in zip(schemes.trainable(model), values, strict=True):
                    p.copy_(value)
        opt, updates = optimizer(lm, engine), []
        for _ in range(STEPS):
            opt.step_with(loss_of(lm), updates.append)
        if weights_sha256(named) == first:
            yield f"nothing moves in the engine {engine}"
        if weights_sha256(frozen) != kept:
            yield f"frozen weights move in the engine {engine}"
        optimizer(again, "stream").replay(updates)
        if weights_sha256(again.model.named_parameters()) != weights_sha256(lm.model.named_parameters()):
            yield f"a replay of the engine {engine} ends elsewhere"


def start(base: LanguageModel, scheme: str) -> LanguageModel:
    """Apply a scheme with few virtual tokens."""
    return schemes.apply(base, scheme, seed=1, num_prefix=VIRTUAL, num_prompt=VIRTUAL, label_token_ids=labels(base))


@torch.no_grad()
def nudge(lm: LanguageModel) -> None:
    """Move the tuned weights a little: a product of two matrices of which one is zero has no slope in the other."""
    for i, (_, p) in enumerate(schemes.trainable(lm)):
        p.add_(0.02 * torch.sin(torch.arange(p.numel()) + i).view(p.shape))


def optimizer(lm: LanguageModel, engine: str) -> gl.ZerothOrder:
    return gl.mezo(schemes.trainable(lm), lr=1e-3, eps=EPS, seed=3, engine=engine)


def labels(lm: LanguageModel) -> tuple[int, ...]:
    return tuple(
        lm.tokenizer.convert_tokens_to_ids(word.replace(" ", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"))
        for word in LABELS
    )


def prompts(lm: LanguageModel) -> list[Example]:
    """Two examples of different length with single-token options."""
    end = f" so{MASK}." if lm.masked else " so"
    return [Example(text + end, LABELS, (i,), content_free=end) for i, text in enumerate(TEXTS)]


@torch.no_grad()
def plain_loss(lm: LanguageModel) -> float:
    """The same loss from all logits of plain forwards: causal ones of each example alone, a masked one of the batch."""
    rows = [encode(lm, example) for example in prompts(lm)]
    texts = [list(row.context(0)) for row in rows]
    if lm.masked:  # MobileBERT's tokens see their neighbours, padding too
        batch = lm.tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        scored = [logits[i, row.mask] for i, row in enumerate(rows)]
    else:
        scored = [lm.model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in texts]
    losses = [-one[list(labels(lm))].log_softmax(0)[i] for i, one in enumerate(scored)]
    return float(sum(losses)) / len(losses)


def loss_of(lm: LanguageModel) -> Callable[[], torch.Tensor]:
    """The loss of two examples of different length, without a graph."""
    chosen = objectives.OBJECTIVES["option_ce"]
    batches = objectives.prepare(lm, chosen, [encode(lm, example) for example in prompts(lm)])
    return torch.no_grad()(lambda: objectives.loss_over(lm, chosen, batches))
