"""Adapters as users of PEFT make them, and as PEFT loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gradless import lm as models
from gradless import rng

QV = ["q_proj", "v_proj"]
IDS = torch.tensor([[5, 17, 30, 42, 7, 9], [6, 18, 31, 43, 8, 10]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
    return result


def save_adapter(
    folder: Path, kind: str = "Lora", base: str = "tiny-llama", dtype: str | None = None, **settings: Any
) -> Path:
    """Save an adapter as a user of PEFT does, with weights that change the logits of its base; return its folder."""
    import peft

    usual: dict[str, dict[str, Any]] = {
        "Lora": {"r": 4, "target_modules": QV},
        "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        "PrefixTuning": {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3},
        "PromptTuning": {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3},
        "PromptEncoder": {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "encoder_hidden_size": 8},
    }
    config = getattr(peft, f"{kind}Config")(**usual[kind] | settings)
    with models.quiet_transformers(), torch.random.fork_rng():
        model = peft.get_peft_model(models.load(base, dtype=dtype).model, config)  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.add_((rng.normal(3, name, parameter.shape) * 0.3).to(parameter.dtype))
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(folder)
    return folder


def by_peft(folder: Path, base: str = "tiny-llama", dtype: str | None = None) -> Any:
    """The adapter as PEFT loads it."""
    import peft

    with models.quiet_transformers():
        return peft.PeftModel.from_pretrained(models.load(base, dtype=dtype).model, folder).eval()  # type: ignore[arg-type]


def settings_of(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("Lora", {"task_type": "CAUSAL_LM"}),
    "dora": ("Lora", {"use_dora": True}),
    "rslora": ("Lora", {"use_rslora": True, "lora_alpha": 7}),
    "patterns": ("Lora", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}),
    "biases": ("Lora", {"bias": "all", "base": "tiny-opt"}),
    "own head": ("Lora", {"modules_to_save": ["lm_head"]}),
    "tied head": ("Lora", {"modules_to_save": ["lm_head"], "base": "tiny-gemma"}),
    "on the head": ("Lora", {"target_modules": ["lm_head", "q_proj"]}),
    "ia3": ("IA3", {}),
    "prefix": ("PrefixTuning", {}),
    "projected prefix": ("PrefixTuning", {"prefix_projection": True, "encoder_hidden_size": 8}),
    "prompt": ("PromptTuning", {}),
    "p-tuning": ("PromptEncoder", {}),
    "masked": ("Lora", {"base": "tiny-roberta", "target_modules": ["query", "value"]}),
}
