"""A GGUF file of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
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
