"""A GGUF file of a tiny model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradless.lm import LanguageModel


def write_gguf(
    lm: LanguageModel,
    path: Path,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    extra: Callable[[Any], None] = lambda writer: None,
    tokenizer: bool = True,
    form: str = "F32",
) -> None:
    """A tiny Llama as llama.cpp's converter writes it: its own names, rotary halves interleaved.

    Args:
        lm: the model.
        path: of the file.
        keep: which tensors are written, by llama.cpp's names.
        extra: adds fields and tensors to the writer.
        tokenizer: whether to write it.
        form: of matrices, by ggml's name: blocks of 32 that `gguf` can quantise to; other widths stay F32.
    """
    import gguf

    config, weights = lm.model.config, dict(lm.model.named_parameters())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    extra(writer)
    if tokenizer:
        _add_tokenizer(lm, writer)

    def add(theirs: str, ours: str, heads: int = 0) -> None:
        value = weights[ours].detach().numpy()
        if heads:
            rows, columns = value.shape
            value = value.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        if keep(theirs) and form != "F32" and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType[form]
            writer.add_tensor(theirs, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
        elif keep(theirs):
            writer.add_tensor(theirs, np.ascontiguousarray(value))

    add("token_embd.weight", "model.embed_tokens.weight")
    add("output_norm.weight", "model.norm.weight")
    add("output.weight", "lm_head.weight")
    for i in range(config.num_hidden_layers):
        here = f"model.layers.{i}."
        add(f"blk.{i}.attn_q.weight", here + "self_attn.q_proj.weight", config.num_attention_heads)
        add(f"blk.{i}.attn_k.weight", here + "self_attn.k_proj.weight", config.num_key_value_heads)
        add(f"blk.{i}.attn_v.weight", here + "self_attn.v_proj.weight")
        add(f"blk.{i}.attn_output.weight", here + "self_attn.o_proj.weight")
        add(f"blk.{i}.ffn_gate.weight", here + "mlp.gate_proj.weight")
        add(f"blk.{i}.ffn_up.weight", here + "mlp.up_proj.weight")
        add(f"blk.{i}.ffn_down.weight", here + "mlp.down_proj.weight")
        add(f"blk.{i}.attn_norm.weight", here + "input_layernorm.weight")
        add(f"blk.{i}.ffn_norm.weight", here + "post_attention_layernorm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(lm: LanguageModel, writer: Any) -> None:
    core = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(core["vocab"], key=core["vocab"].__getitem__))
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(core["vocab"]))])
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_bos_token_id(lm.tokenizer.bos_token_id)
    writer.add_eos_token_id(lm.tokenizer.eos_token_id)
    writer.add_add_bos_token(True)


def part(number: int, count: int, total: int = 21) -> Callable[[Any], None]:
    """Adds the fields of one part of a split file."""

    def add(writer: Any) -> None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", total)

    return add


IN_ORDER = (("token_embd.",), ("blk.0.", "output"), ("blk.1.",))
"""Names of tensors in three parts, by how they begin."""


def split(
    lm: LanguageModel, folder: Path, *, begin: Sequence[tuple[str, ...]] = IN_ORDER, form: str = "F32"
) -> list[Path]:
    """A tiny Llama in several files."""
    paths = [folder / f"m-{number:05d}-of-{len(begin):05d}.gguf" for number in range(1, len(begin) + 1)]
    for number, (path, names) in enumerate(zip(paths, begin, strict=True)):
        write_gguf(
            lm, path, keep=lambda name, own=names: name.startswith(own), extra=part(number, len(begin)), form=form
        )
    return paths


SIZES: dict[str, Any] = {
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 96, "rms_norm_eps": 1e-5},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"num_attention_heads": 2, "num_key_value_heads": 1},  # whose own reader knows heads of 128 alone
    "phi3": {},
    "gemma2": {"head_dim": 64, "sliding_window": 4},
    "gemma3": {"head_dim": 64, "sliding_window": 4},
}
"""Settings of a small model of each architecture, by the names of transformers."""


def write_random_gguf(
    path: Path, architecture: str, *, tied: bool, formats: Sequence[str], settings: dict[str, Any] | None = None
) -> None:
    """A GGUF of an architecture whose matrices are random blocks, of one format after the other.

    Metadata are those that transformers reads, by its own table; names of tensors those of `gguf`.
    """
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import GGUF_CONFIG_MAPPING

    kind = "gemma3_text" if architecture == "gemma3" else architecture
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = SIZES | ARCHITECTURES[architecture] | special | (settings or {})
    config = AutoConfig.for_model(kind, **sizes, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("random")
    for theirs, ours in GGUF_CONFIG_MAPPING[architecture].items():
        value = config.rope_parameters if ours == "rope_theta" else getattr(config, ours, None) if ours else None
        if ours == "rope_theta":
            value = float(value.get("rope_theta") or value["full_attention"]["rope_theta"])
        if isinstance(value, int):
            writer.add_uint32(f"{architecture}.{theirs}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{theirs}", value)
    if architecture == "qwen3":  # as llama.cpp's converter writes it, and transformers does not read it
        writer.add_key_length(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for name, number in zip(("pad", "bos", "eos"), special.values(), strict=True):
        getattr(writer, f"add_{name}_token_id")(number)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config.num_hidden_layers)
    rng, turn = np.random.default_rng(7), itertools.cycle(formats)
    for key, parameter in model.named_parameters():
        stem, _, suffix = key.rpartition(".")
        name, shape = f"{names.get_name(stem)}.{suffix}", tuple(parameter.shape)
        if parameter.ndim == 1:
            writer.add_tensor(name, rng.uniform(0.5, 1.5, shape).astype(np.float32))
        else:
            add_random_blocks(writer, name, shape, next(turn), rng)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_random_blocks(writer: Any, name: str, shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> None:
    """Add a matrix of random blocks whose factors are small, so that a model of it computes numbers."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.05).astype(np.float32 if kind == "F32" else np.float16))
        return
    weights, nbytes = gguf.GGML_QUANT_SIZES[number]
    if kind == "BF16":
        blocks = (rng.standard_normal(shape) * 0.05).astype(np.float32).view(np.uint32) >> 16
        blocks = blocks.astype(np.uint16).view(np.uint8)
    else:
        blocks = rng.integers(0, 256, (shape[0], shape[1] // weights, nbytes), np.uint8)
        halves = {"Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}.get(kind, (0, 2) if kind[3] in "1K" else (0,))
        for first, size in zip(halves, (0.01, -0.05), strict=False):
            factor = (rng.uniform(0.5, 1.0, blocks.shape[:2]) * size / (16 if "K" in kind else 1)).astype(np.float16)
            blocks[..., first : first + 2] = factor[..., None].view(np.uint8)
        blocks = blocks.reshape(shape[0], -1)
    writer.add_tensor(name, np.ascontiguousarray(blocks), raw_dtype=number)
