"""Rows with prompts, as TRL's data sets have them, and a model at hand with its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from gradless.errors import BadInput
from gradless.lm import chat, encode, loading
from gradless.lm.causality import looks_ahead
from gradless.lm.encoded import Encoded
from gradless.lm.loading import LanguageModel

PROMPT: Final = "prompt"
WRITTEN: Final = ("completion", "completion_ids")
"""Columns that TRL leaves out, since the completions are those of the model."""


def language_model(model: Any, tokenizer: Any, peft_config: Any) -> LanguageModel:
    """Return a model with its tokenizer; what is handed over stays as it is, but for the adapter around it.

    Args:
        model: causal, of transformers or PEFT; or what `gradless.lm.load` takes.
        tokenizer: None: that of the name, or of the folder or hub id that the model comes from.
        peft_config: of an adapter to make around the model.

    Raises:
        BadInput: no causal model with a linear output layer, no tokenizer, or an adapter around an adapter.
    """
    if isinstance(model, str):
        lm = loading.load(model)
        model, tokenizer = lm.model, tokenizer or lm.tokenizer
    elif not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: give a causal language model of transformers, or its name")
    tokenizer = tokenizer or _tokenizer_of(model)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if peft_config is not None:
        model = _with_adapter(model, peft_config)
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    lm = LanguageModel(model, tokenizer, False, source=name, name=name)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if getattr(model.config, "is_encoder_decoder", False) or not isinstance(
        getattr(head, "base_layer", head), nn.Linear
    ):
        raise BadInput(f"{type(model).__name__} is no causal language model with a linear output layer: choose one")
    if looks_ahead(model):
        raise BadInput(f"{type(model).__name__} reads what follows a token, so it writes no text: choose a causal one")
    return lm


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    source = str(getattr(model.config, "_name_or_path", ""))
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers, hub and tokenizers each raise their own
        where = f" in {source}" if source else ""
        raise BadInput(f"there is no tokenizer{where} for the model: hand it over as processing_class") from error


def _with_adapter(model: Any, config: Any) -> nn.Module:
    import peft

    if isinstance(model, peft.PeftModel):
        raise BadInput("the model has an adapter of PEFT already: leave peft_config out, or merge the adapter first")
    adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


def column_names(rows: Any, what: str) -> list[str] | None:
    """Return the columns of a data set; None where they are not known before rows are read.

    Raises:
        BadInput: they are known, and there is no prompt.
    """
    names = getattr(rows, "column_names", None)
    if names is None and isinstance(rows, Sequence) and len(rows) and isinstance(rows[0], Mapping):
        names = list(rows[0])
    if names is None:
        return None
    if PROMPT not in names:
        raise BadInput(
            f"{what} has no column 'prompt' (only {', '.join(map(str, names))}): rename the one with the prompts"
        )
    return [str(name) for name in names]


def set_chat(lm: LanguageModel) -> None:
    """Let the token that ends an answer in the tokenizer's chat template end completions, where it can be told.

    Raises:
        BadInput: there is no template.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        raise BadInput(
            "the prompts are conversations, and the tokenizer has no chat template: set its chat_template, choose a "
            "model that was tuned for chats (-it, -Instruct, -Chat), or give prompts as text"
        )
    with contextlib.suppress(BadInput):  # a template that `gradless tune --chat` cannot use
        lm.chat = chat.read(lm.tokenizer, lm.source)


def encoded(lm: LanguageModel, row: Mapping[str, Any], new_tokens: int, options: Mapping[str, Any]) -> Encoded:
    """Return a row with its prompt as tokens, as TRL makes them: text as it is, conversations by the chat template.

    Args:
        lm: the model.
        row: with a prompt, a text or a list of messages; the last one may be the beginning of an answer.
        new_tokens: of a completion at most.
        options: of the chat template.

    Raises:
        BadInput: no prompt, or one that leaves no room for a completion.
    """
    prompt: Any = row.get(PROMPT)
    if isinstance(prompt, str):
        tokens = lm.tokenizer(prompt)["input_ids"]
    elif _is_conversation(prompt):
        if lm.chat is None:
            set_chat(lm)
        begun = prompt[-1]["role"] == "assistant"
        text = lm.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun, **options
        )
        tokens = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        raise BadInput(f"a prompt is {prompt!r}: give a text, or a list of messages with 'role' and 'content'")
    if not tokens:
        raise BadInput("a prompt is empty, and a model must read something: give it some text")
    limit = positions(lm)
    if len(tokens) + new_tokens > limit:
        raise BadInput(
            f"a prompt of {len(tokens)} tokens leaves no room for {new_tokens} new ones in a model that takes {limit}: "
            "shorten it, or lower max_completion_length"
        )
    return Encoded(tuple(tokens), (), (), None, (), columns=row)


def positions(lm: LanguageModel) -> int:
    """Return the most tokens that a model takes."""
    return encode.length_limit(lm, getattr(lm.config, "max_position_embeddings", None))


def _is_conversation(prompt: Any) -> bool:
    messages = isinstance(prompt, list) and prompt
    return bool(messages) and all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in prompt)


def told(rows: Sequence[Encoded], texts: Sequence[str]) -> tuple[list[Any], list[Any], dict[str, list[Any]]]:
    """Return prompts, completions and columns as reward functions are told them."""
    prompts = [row.columns[PROMPT] for row in rows]
    completions: list[Any] = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    names = dict.fromkeys(name for row in rows for name in row.columns if name not in (PROMPT, *WRITTEN))
    return prompts, completions, {name: [row.columns.get(name) for row in rows] for name in names}
