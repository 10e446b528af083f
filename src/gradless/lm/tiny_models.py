"""Random two-layer models of real architectures, for tests, examples and dry runs. Nothing is downloaded.

Each weight is drawn from the counter stream of its name. Tokenizers are byte-level BPE whose merges spell a few
dozen label words, so that `` great`` is one token as it is in a trained vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from gradless import rng
from gradless.errors import BadInput, pick

WORDS: Final = (
    *("terrible", "great", "bad", "okay", "good", "Yes", "No", "Maybe", "yes", "no", "maybe", "correct"),
    *("incorrect", "subjective", "objective", "Description", "Entity", "Expression", "Human", "Location"),
    *("Number", "World", "Sports", "Business", "Tech", "negative", "positive", "was", "It"),
)
"""Words that are one token with a space in front; a capitalised one also without."""

LENGTH: Final = 256  # positions


class Specials(NamedTuple):
    """Special tokens of an architecture, and the template around one sequence (``$A``)."""

    tokens: dict[str, str]
    template: str
    chat: str | None = None  # chat template


class Family(NamedTuple):
    """One architecture: the class of its configuration in transformers, its sizes and its tokenizer."""

    config: str
    options: dict[str, Any]
    specials: Specials
    tied: bool = True  # input and output embeddings


_GROUPED: Final[dict[str, Any]] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_LLAMA: Final = Specials({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, "<s> $A")
_CHAT: Final = (
    "{% for message in messages %}{{ message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)
_PADDED: Final = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

FAMILIES: Final[dict[str, Family]] = {
    "opt": Family(
        "OPTConfig",
        {"num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32},
        Specials({"bos_token": "</s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "</s>"}, "</s> $A"),
    ),
    # No padding token, as in Llama 2 and Mistral: loading has to choose one.
    "llama": Family("LlamaConfig", _GROUPED, _LLAMA, tied=False),
    "mistral": Family("MistralConfig", {**_GROUPED, "sliding_window": 64}, _LLAMA, tied=False),
    "qwen": Family(
        "Qwen3Config",
        {**_GROUPED, "head_dim": 16},
        Specials({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "$A", _CHAT),
    ),
    # Heads wider than hidden / heads, and sliding beside full attention, as in the real one.
    "gemma": Family(
        "Gemma3TextConfig",
        {
            **_GROUPED,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        Specials({"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}, "<bos> $A"),
    ),
    "roberta": Family(
        "RobertaConfig",
        {"num_attention_heads": 4, "intermediate_size": 48, "type_vocab_size": 1},
        Specials(_PADDED | {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}, "<s> $A </s>"),
    ),
}


def build(architecture: str, *, seed: int, tied: bool | None = None) -> tuple[nn.Module, Any, bool]:
    """Return a model, its tokenizer and whether it is a masked model.

    Raises:
        BadInput: unknown architecture.
    """
    import transformers

    family = pick("tiny architecture", architecture, FAMILIES)
    tokenizer = make_tokenizer(family.specials)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    masked = architecture == "roberta"
    config = getattr(transformers, family.config)(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=LENGTH + (2 if masked else 0),  # RoBERTa's start behind the padding index
        tie_word_embeddings=family.tied if tied is None else tied,
        **ids,
        **family.options,
    )
    head = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    # Constructors draw from the global generator; what they draw is thrown away and its state put back.
    with torch.random.fork_rng(devices=[]):
        model = head.from_config(config, dtype=torch.float32)
    _randomise(model, seed)
    config.architectures = [type(model).__name__]
    return model, tokenizer, masked


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    """Fill in weights of unit gain and small biases; norms keep their defaults."""
    norms = {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for leaf, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in sorted(model.named_parameters()):
        if name not in norms:
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.02
            parameter.copy_(rng.normal(seed, name, parameter.shape) * scale)  # the same on every CPU


def make_tokenizer(specials: Specials) -> Any:
    """Return a byte-level BPE tokenizer of a few hundred entries (`WORDS`), as a transformers fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(specials.tokens.values()))}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    # Words with their space first: a merge is applied before all later ones, and must not split " Yes".
    for text in [f"\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}{w}" for w in WORDS] + [w for w in WORDS if w.istitle()]:
        for end in range(2, len(text) + 1):
            if text[:end] not in vocabulary:
                vocabulary[text[:end]] = len(vocabulary)
                merges.append((text[: end - 1], text[end - 1]))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if specials.template != "$A":
        used = [(token, vocabulary[token]) for token in specials.template.split() if token != "$A"]
        core.post_processor = processors.TemplateProcessing(single=specials.template, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=specials.chat,
        **specials.tokens,
    )


def is_name(source: str) -> bool:
    """Return whether a source is the name of a tiny model, and no folder or hub id."""
    return source.startswith("tiny-") and "/" not in source and not Path(source).exists()


def parse(name: str) -> tuple[str, bool | None]:
    """Return architecture and tying of ``tiny-llama``, ``tiny-llama-tied`` or ``tiny-opt-untied``.

    Raises:
        BadInput: another form of name.

    Example:
        >>> parse("tiny-opt-untied")
        ('opt', False)
    """
    match name.removeprefix("tiny-").split("-"):
        case [architecture]:
            return architecture, None
        case [architecture, ("tied" | "untied") as tying]:
            return architecture, tying == "tied"
    raise BadInput(f"unknown model '{name}': write tiny-ARCHITECTURE, perhaps with -tied or -untied behind it")
