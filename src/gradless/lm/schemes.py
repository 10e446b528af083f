"""Tuning schemes: which named parameters exist, and which of them are tuned.

A scheme changes nothing else about a run. Initial values of new parameters are a function of the seed and the
parameter's name (`gradless.rng`), never of a global generator, because a run is rebuilt from its seed and its
ledger. LoRA and head tuning start with exactly the base model's output.

* LoRA: Hu et al. 2021, arXiv 2106.09685.   * Prefix: Li and Liang 2021, arXiv 2101.00190.
* Prompt: Lester et al. 2021, arXiv 2104.08691.   Defaults are those of MeZO (arXiv 2305.17333).
* Scales: QZO 2025, arXiv 2505.13430.            * Codes: QES 2026, arXiv 2602.03120.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from gradless import rng
from gradless.errors import BadInput, pick
from gradless.lm import (
    adapter_schemes,
    adapters,
    gguf_schemes,
    lora_targets,
    output_layer,
    virtual_tokens,
    weight_storage,
)
from gradless.lm.checkpoint_files import first_line
from gradless.lm.loading import LanguageModel
from gradless.lm.quiet import quiet_transformers
from gradless.storage import upcast
from gradless.storage.codes import freeze as freeze_parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of the schemes (see `apply`); each scheme reads its own."""

    seed: int = 0
    rank: int = 8
    alpha: float = 16
    num_prefix: int = 5
    num_prompt: int = 10
    targets: tuple[str, ...] | None = None
    label_token_ids: tuple[int, ...] = ()


class Scheme(NamedTuple):
    """One row of `SCHEMES`: a line for listings, and the function that prepares a model."""

    about: str
    prepare: Callable[[LanguageModel, Options], nn.Module]


def apply(
    lm: LanguageModel,
    scheme: str,
    *,
    seed: int = 0,
    rank: int = 8,
    alpha: float = 16,
    num_prefix: int = 5,
    num_prompt: int = 10,
    targets: tuple[str, ...] | None = None,
    freeze: tuple[str, ...] = (),
    label_token_ids: Sequence[int] = (),
) -> LanguageModel:
    """Return a freshly loaded model prepared for tuning: exactly the tuned parameters require gradients.

    The model is changed, not copied, so a scheme is applied to it once. One that was loaded with an adapter has that
    adapter tuned, or merged (`gradless.lm.adapter_schemes`).

    Args:
        lm: the model.
        scheme: a key of `SCHEMES`.
        seed: of the initial values of new parameters.
        rank: LoRA's r.
        alpha: LoRA's alpha; the update is scaled by alpha / rank.
        num_prefix: virtual tokens of prefix tuning.
        num_prompt: virtual tokens of prompt tuning.
        targets: last parts of the names of what LoRA adapts; None: query and value, see `gradless.lm.lora_targets`.
        freeze: regular expressions (`re.search`); parameters whose name matches one are left alone. A tied
            parameter is matched by each of its names.
        label_token_ids: the label words' tokens, for the scheme head.

    Raises:
        BadInput: unknown scheme, nothing to tune, a pattern that matches nothing, LoRA targets that do not exist, an
            architecture that does not fit the scheme.
    """
    entry = pick("scheme", scheme, SCHEMES)
    for flag, number in (("rank", rank), ("num_prefix", num_prefix), ("num_prompt", num_prompt)):
        if number < 1:
            raise BadInput(f"{flag} must be at least 1, not {number}")
    continued = lm.origin is not None and bool(lm.adapters)
    if (lm.adapters and not continued) or getattr(lm.model, "label_head", None) is not None:
        raise BadInput("this model already has a tuning scheme: load it again before applying another")
    options = Options(
        seed=seed,
        rank=rank,
        alpha=alpha,
        num_prefix=num_prefix,
        num_prompt=num_prompt,
        targets=targets,
        label_token_ids=tuple(label_token_ids),
    )
    lm.model.eval()  # virtual tokens start from forwards, in which dropout has no place
    with quiet_transformers():
        if continued:
            lm = adapter_schemes.start(lm, scheme, _wanted(options), targets)
        model = lm.model if lm.adapters else entry.prepare(lm, options)
    model.eval()
    tuned = dataclasses.replace(lm, model=model)
    if tuned.upcast:
        upcast.prepare(tuned.model)  # with what the scheme has put around it and into it
    _freeze(tuned.model, freeze)
    return tuned


def _wanted(options: Options) -> list[adapter_schemes.Wanted]:
    return [
        adapter_schemes.Wanted(field.name, getattr(options, field.name), field.default)
        for field in dataclasses.fields(Options)
    ]


def trainable(lm: LanguageModel) -> list[tuple[str, nn.Parameter]]:
    """Return the tuned parameters with their names, each once."""
    return list(adapters.tuned(lm.model))


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            matcher = re.compile(pattern)
        except re.error as error:
            raise BadInput(f"'{pattern}' is not a regular expression ({error}): correct the pattern") from None
        # Duplicates kept: the weight of a tied output layer has two names.
        matching = [p for name, p in model.named_parameters(remove_duplicate=False) if matcher.search(name)]
        if not matching:
            some = ", ".join(name for name, p in adapters.tuned(model))[:300]
            raise BadInput(f"no parameter matches the pattern '{pattern}' to freeze: names are like {some}")
        for parameter in matching:
            freeze_parameter(parameter)
    if not any(True for _ in adapters.tuned(model)):
        raise BadInput("all parameters are frozen, so there is nothing to tune: freeze fewer")


# ------------------------------------------------------------------------------------------------------------
# the schemes


def _full(lm: LanguageModel, options: Options) -> nn.Module:
    if (reason := weight_storage.untunable(lm.model, lm.source)) is not None:
        raise BadInput(reason)
    return lm.model.requires_grad_(True)


def _lora(lm: LanguageModel, options: Options) -> nn.Module:
    from peft import LoraConfig

    targets = lora_targets.choose(lm, options.targets)
    _check_rank(lm.model, options.rank, targets.modules)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=cast(int, options.alpha),
        lora_dropout=0.0,
        target_modules=list(targets.modules),
        fan_in_fan_out=targets.transposed,
    )
    model = _wrap(lm, config, "LoRA", "full")
    for name, parameter in adapters.tuned(model):
        if ".lora_A." in name:
            # The variance of Kaiming's uniform with PEFT's gain: U(-b, b), b = fan_in ** -0.5.
            parameter.data.copy_(rng.normal(options.seed, name, parameter.shape) * (3 * parameter.shape[1]) ** -0.5)
        else:
            parameter.data.zero_()
    return model


def _check_rank(model: nn.Module, rank: int, targets: Sequence[str]) -> None:
    """Refuse a rank that no layer to adapt can have: it would cost more than tuning the layer, and reach no further."""
    adapted = (m for name, m in model.named_modules() if any(f".{name}".endswith(f".{target}") for target in targets))
    weights = (getattr(module, "weight", None) for module in adapted)
    widths = [min(weight.shape) for weight in weights if isinstance(weight, Tensor) and weight.ndim > 1]
    if widths and rank > max(widths):
        raise BadInput(f"rank is {rank}, and the layers that LoRA adapts have at most rank {max(widths)}: lower --rank")


def _prefix(lm: LanguageModel, options: Options) -> nn.Module:
    from peft import PrefixTuningConfig

    tokens = virtual_tokens.random_tokens(lm, options.num_prefix, options.seed)
    layers = virtual_tokens.keys_and_values(lm, tokens)
    heads, _, size = layers[0][0].shape
    config = PrefixTuningConfig(
        task_type=_task_type(lm),
        num_virtual_tokens=options.num_prefix,
        prefix_projection=False,
        num_layers=len(layers),
        num_attention_heads=heads,
        token_dim=heads * size,
    )
    return _with_virtual_tokens(lm, config, "prefix", tokens, virtual_tokens.prefix_rows(layers))


def _prompt(lm: LanguageModel, options: Options) -> nn.Module:
    from peft import PromptTuningConfig

    tokens = virtual_tokens.random_tokens(lm, options.num_prompt, options.seed)
    with torch.no_grad():  # through the module: Gemma scales what it reads from the table
        embedded = cast(Any, lm.model).get_input_embeddings()(tokens)
    if not isinstance(embedded, Tensor):
        virtual_tokens.refuse(lm, "prompt", "its embeddings are more than a tensor")
    values = embedded[0]
    sizes = virtual_tokens.sizes(lm, values.shape[1])
    config = PromptTuningConfig(task_type=_task_type(lm), num_virtual_tokens=options.num_prompt, **sizes)
    return _with_virtual_tokens(lm, config, "prompt", tokens, values)


def _with_virtual_tokens(lm: LanguageModel, config: Any, scheme: str, tokens: Tensor, values: Tensor) -> nn.Module:
    """Return PEFT's model whose virtual tokens start with these values, once it reads them as the real tokens."""
    expected = virtual_tokens.behind_tokens(lm, tokens)
    embeddings = cast(Any, lm.model).get_input_embeddings()
    model = _wrap(lm, config, f"{scheme} tuning", "lora")
    if cast(Any, model).word_embeddings is not embeddings:  # PEFT guesses by the size of the vocabulary
        model.word_embeddings = embeddings
    ((_, parameter),) = adapters.tuned(model)
    if values.shape != parameter.shape:
        reason = f"a virtual token has {values.shape[1]} numbers, and PEFT's have {parameter.shape[1]}"
        virtual_tokens.refuse(lm, scheme, reason)
    parameter.data.copy_(values)
    virtual_tokens.check(lm, model.eval(), scheme, expected)
    return model


def _head(lm: LanguageModel, options: Options) -> nn.Module:
    """Add ``model.label_head``: the output layer's rows of the label words, on a frozen body.

    A masked model's output bias is copied too and frozen, so that the logits do not change.
    """
    ids = list(options.label_token_ids)
    source = lm.head
    bias = output_layer.outer_bias(lm) if source.bias is None else source.bias
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise BadInput(
            "the scheme head needs a task with fixed label words, each another single token: use full or lora"
        )
    if not all(0 <= i < source.weight.shape[0] for i in ids):
        raise BadInput(f"label tokens must lie in the vocabulary of {source.weight.shape[0]}: got {ids}")
    if not lm.head.weight.is_meta and not output_layer.is_called(lm):
        raise BadInput(
            f"head tuning does not fit {lm.name}: its forward does not call its output layer; use the scheme lora"
        )
    lm.model.requires_grad_(False)
    head = cast(Any, nn.utils.skip_init)(
        nn.Linear,
        source.weight.shape[1],
        len(ids),
        bias=bias is not None,
        device=source.weight.device,
        dtype=source.weight.dtype,
    )
    head.weight.data.copy_(source.weight.data[ids])
    if bias is not None:
        head.bias.data.copy_(bias.data[ids])
        head.bias.requires_grad_(False)
    lm.model.label_head = head
    return lm.model


def _scales(lm: LanguageModel, options: Options) -> nn.Module:
    return gguf_schemes.prepare(lm, "scales")


def _codes(lm: LanguageModel, options: Options) -> nn.Module:
    return gguf_schemes.prepare(lm, "codes")


SCHEMES: Final[dict[str, Scheme]] = {
    "full": Scheme("all weights", _full),
    "lora": Scheme("low-rank adapters on the query and value projections", _lora),
    "prefix": Scheme("keys and values of a few virtual tokens in every layer", _prefix),
    "prompt": Scheme("embeddings of a few virtual tokens in front of the input", _prompt),
    "head": Scheme("one output row per label word on a frozen body (linear probing)", _head),
    "scales": Scheme("the factors of the blocks of a GGUF file; the result is such a file", _scales),
    "codes": Scheme("the 4- to 8-bit codes of a GGUF file, by whole codes; the result is such a file", _codes),
}


# ------------------------------------------------------------------------------------------------------------
# helpers


def _wrap(lm: LanguageModel, config: Any, what: str, instead: str) -> nn.Module:
    """Return PEFT's model around ours, every parameter but the new ones frozen."""
    from peft import get_peft_model

    devices = [lm.device] if lm.device.type == "cuda" else []
    # PEFT draws initial values from the global generator: its state is put back, the values are replaced.
    with torch.random.fork_rng(devices=devices):
        try:
            model: nn.Module = get_peft_model(cast(Any, lm.model), config, autocast_adapter_dtype=False)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:  # for each architecture its own
            reason = first_line(error)
            raise BadInput(f"{what} does not fit {lm.name} ({reason}): use the scheme {instead}") from None
    for _, parameter in adapters.tuned(model):
        # PEFT has put them beside the weights that they go with.
        parameter.data = parameter.data.to(parameter.device if lm.spread else lm.device, lm.dtype)
    if lm.upcast:
        upcast.prepare(model)
    return model


def _task_type(lm: LanguageModel) -> str:
    # PEFT has no task type for masked models; this one passes virtual tokens on and leaves the output alone.
    return "FEATURE_EXTRACTION" if lm.masked else "CAUSAL_LM"
