"""Models whose launches are counted and timed: the layers of large ones, at tiny widths."""

from __future__ import annotations

import peft
import transformers


def model_of(kind: str, layers: int, scheme: str):
    """OPT or Llama with tiny widths and so many layers, frozen but for adapters with the scheme ``lora``."""
    wide = {"hidden_size": 32, "num_hidden_layers": layers, "vocab_size": 512, "max_position_embeddings": 64}
    if kind == "opt":
        config = transformers.OPTConfig(**wide, ffn_dim=128, num_attention_heads=2, word_embed_proj_dim=32, dropout=0.0)
    else:
        config = transformers.LlamaConfig(**wide, intermediate_size=112, num_attention_heads=4, num_key_value_heads=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.config.use_cache = False
    if scheme == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    return model
