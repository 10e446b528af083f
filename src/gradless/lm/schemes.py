"""Tuning schemes: which named parameters exist, and which of them are tuned.

A scheme changes nothing else about a run. Initial values of new parameters are a function of the seed and the
parameter's name (`gradless.rng`), never of a global generator, because a run is rebuilt from its seed and its
ledger. LoRA and head tuning start with exactly the base model's output.

* LoRA: Hu et al. 2021, arXiv 2106.09685.   * Prefix: Li and Liang 2021, arXiv 2101.00190.
* Prompt: Lester et al. 2021, arXiv 2104.08691.   Defaults are those of MeZO (arXiv 2305.17333).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from gradless import rng
from gradless.errors import BadInput, pick
from gradless.lm.loading import LanguageModel, quiet_transformers

LORA_TARGETS: Final = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"))
"""Query and value projections by the names that architectures give them; the first pair that exists is used."""

PROBE_GRID: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Inverse regularisation strengths that the linear probe chooses from."""


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

    The model is changed, not copied, so a scheme is applied to it once.

    Args:
        lm: the model.
        scheme: a key of `SCHEMES`.
        seed: of the initial values of new parameters.
        rank: LoRA's r.
        alpha: LoRA's alpha; the update is scaled by alpha / rank.
        num_prefix: virtual tokens of prefix tuning.
        num_prompt: virtual tokens of prompt tuning.
        targets: last parts of the names of the modules that LoRA adapts; None for query and value.
        freeze: regular expressions (`re.search`); parameters whose name matches one are left alone. A tied
            parameter is matched by each of its names.
        label_token_ids: the label words' tokens, for the scheme head.

    Raises:
        BadInput: unknown scheme, nothing to tune, a pattern that matches nothing, LoRA targets that do not exist.
    """
    entry = pick("scheme", scheme, SCHEMES)
    for flag, number in (("rank", rank), ("num_prefix", num_prefix), ("num_prompt", num_prompt)):
        if number < 1:
            raise BadInput(f"{flag} must be at least 1, not {number}")
    if lm.adapters or getattr(lm.model, "label_head", None) is not None:
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
    with quiet_transformers():
        model = entry.prepare(lm, options)
    model.eval()
    tuned = LanguageModel(model, lm.tokenizer, lm.masked, source=lm.source, name=lm.name)
    _freeze(tuned.model, freeze)
    return tuned


def trainable(lm: LanguageModel) -> list[tuple[str, nn.Parameter]]:
    """Return the tuned parameters with their names, each once."""
    return [(name, p) for name, p in lm.model.named_parameters() if p.requires_grad]


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            matcher = re.compile(pattern)
        except re.error as error:
            raise BadInput(f"'{pattern}' is not a regular expression ({error}): correct the pattern") from None
        # Duplicates kept: the weight of a tied output layer has two names.
        matching = [p for name, p in model.named_parameters(remove_duplicate=False) if matcher.search(name)]
        if not matching:
            some = ", ".join(name for name, p in model.named_parameters() if p.requires_grad)[:300]
            raise BadInput(f"no parameter matches the pattern '{pattern}' to freeze: names are like {some}")
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise BadInput("all parameters are frozen, so there is nothing to tune: freeze fewer")


# ------------------------------------------------------------------------------------------------------------
# the schemes


def _full(lm: LanguageModel, options: Options) -> nn.Module:
    return lm.model.requires_grad_(True)


def _lora(lm: LanguageModel, options: Options) -> nn.Module:
    from peft import LoraConfig

    targets = list(_targets(lm.model, options.targets))
    _check_rank(lm.model, options.rank, targets)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=cast(int, options.alpha),
        lora_dropout=0.0,
        target_modules=targets,
    )
    model = _wrap(lm, config)
    for name, parameter in _new(model):
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

    tokens = _random_tokens(lm, options.num_prefix, options.seed)
    layers = _keys_and_values(lm, tokens)
    heads, size = layers[0][0].shape[0], layers[0][0].shape[2]
    config = PrefixTuningConfig(
        task_type=_task_type(lm),
        num_virtual_tokens=options.num_prefix,
        prefix_projection=False,
        num_layers=len(layers),
    )
    model = _wrap(lm, config)
    ((_, parameter),) = _new(model)
    # PEFT reads a row as [layer, key or value, head, head size].
    rows = [part.permute(1, 0, 2) for layer in layers for part in layer]  # each [P, heads, size]
    values = torch.stack(rows, dim=1).reshape(options.num_prefix, -1)
    if values.shape != parameter.shape:
        raise BadInput(
            f"prefix tuning does not fit {lm.name}: its layers keep {heads} heads of {size} values, which "
            "differ between layers or from its configuration; use the scheme lora"
        )
    parameter.data.copy_(values)
    return model


def _prompt(lm: LanguageModel, options: Options) -> nn.Module:
    from peft import PromptTuningConfig

    tokens = _random_tokens(lm, options.num_prompt, options.seed)
    with torch.no_grad():  # through the module: Gemma scales what it reads from the table
        values = cast(Any, lm.model).get_input_embeddings()(tokens)[0]
    config = PromptTuningConfig(task_type=_task_type(lm), num_virtual_tokens=options.num_prompt)
    model = _wrap(lm, config)
    ((_, parameter),) = _new(model)
    parameter.data.copy_(values)
    return model


def _head(lm: LanguageModel, options: Options) -> nn.Module:
    """Add ``model.label_head``: the output layer's rows of the label words, on a frozen body.

    A masked model's output bias is copied too and frozen, so that the logits do not change.
    """
    ids = list(options.label_token_ids)
    source = lm.head
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise BadInput(
            "the scheme head needs a task with fixed label words, each another single token: use full or lora"
        )
    if not all(0 <= i < source.weight.shape[0] for i in ids):
        raise BadInput(f"label tokens must lie in the vocabulary of {source.weight.shape[0]}: got {ids}")
    lm.model.requires_grad_(False)
    head = cast(Any, nn.utils.skip_init)(
        nn.Linear,
        source.weight.shape[1],
        len(ids),
        bias=source.bias is not None,
        device=source.weight.device,
        dtype=source.weight.dtype,
    )
    head.weight.data.copy_(source.weight.data[ids])
    if source.bias is not None:
        head.bias.data.copy_(source.bias.data[ids])
        head.bias.requires_grad_(False)
    lm.model.label_head = head
    return lm.model


SCHEMES: Final[dict[str, Scheme]] = {
    "full": Scheme("all weights", _full),
    "lora": Scheme("low-rank adapters on the query and value projections", _lora),
    "prefix": Scheme("keys and values of a few virtual tokens in every layer", _prefix),
    "prompt": Scheme("embeddings of a few virtual tokens in front of the input", _prompt),
    "head": Scheme("one output row per label word on a frozen body (linear probing)", _head),
}


def logistic_regression_baseline(
    train_X: Any, train_y: Any, dev_X: Any, dev_y: Any, test_X: Any, test_y: Any
) -> dict[str, float]:
    """Return the accuracy of linear probing as a convex problem, the value of a frozen body without any ZO step.

    Features are standardised by the training set; C has the best dev accuracy, the smallest of equals.

    Args:
        train_X: features ``[N, H]``, a float tensor or array.
        train_y: labels ``[N]``.
        dev_X: features to choose C on.
        dev_y: their labels.
        test_X: features to report on.
        test_y: their labels.

    Returns:
        ``accuracy`` on test, ``dev_accuracy`` and ``C``.

    Raises:
        BadInput: scikit-learn cannot fit it, for instance because there is only one label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pairs = (train_X, train_y), (dev_X, dev_y), (test_X, test_y)
    train, dev, test = ((np.asarray(X), np.asarray(y)) for X, y in pairs)
    best: tuple[float, float, Any] | None = None
    for strength in PROBE_GRID:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # not yet converged after 1000 iterations: dev decides
                probe.fit(*train)
        except ValueError as error:
            raise BadInput(f"the linear probe cannot be fitted ({error}): check the training examples") from error
        accuracy = float(probe.score(*dev))
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, probe)
    assert best is not None
    return {"accuracy": float(best[2].score(*test)), "dev_accuracy": best[0], "C": best[1]}


# ------------------------------------------------------------------------------------------------------------
# helpers


def _wrap(lm: LanguageModel, config: Any) -> nn.Module:
    """Return PEFT's model around ours, every parameter but the new ones frozen."""
    from peft import get_peft_model

    devices = [lm.device] if lm.device.type == "cuda" else []
    # PEFT draws initial values from the global generator: its state is put back, the values are replaced.
    with torch.random.fork_rng(devices=devices):
        model: nn.Module = get_peft_model(cast(Any, lm.model), config, autocast_adapter_dtype=False)
    for _, parameter in _new(model):
        # PEFT has put them beside the weights that they go with.
        parameter.data = parameter.data.to(parameter.device if lm.spread else lm.device, lm.dtype)
    return model


def _new(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _task_type(lm: LanguageModel) -> str:
    # PEFT has no task type for masked models; this one passes virtual tokens on and leaves the output alone.
    return "FEATURE_EXTRACTION" if lm.masked else "CAUSAL_LM"


def _targets(model: nn.Module, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names of the modules to adapt, all of which exist."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    present = {name.rpartition(".")[2] for name in linear}
    if wanted is None:
        wanted = next((pair for pair in LORA_TARGETS if present.issuperset(pair)), LORA_TARGETS[0])
    missing = [name for name in wanted if name.rpartition(".")[2] not in present]
    if missing or not wanted:
        raise BadInput(
            f"no linear module named {', '.join(missing) or '(none given)'} to put LoRA on: "
            f"choose targets from {', '.join(sorted(present))}"
        )
    return wanted


def _random_tokens(lm: LanguageModel, count: int, seed: int) -> Tensor:
    """Return different random tokens, none of them special: int64 ``[1, count]``."""
    special = set(lm.tokenizer.all_special_ids)
    size = min(len(lm.tokenizer), cast(Any, lm.model).get_input_embeddings().weight.shape[0])
    order = rng.permutation(size, seed, "virtual tokens")
    chosen = [int(token) for token in order if int(token) not in special][:count]
    if len(chosen) < count:
        raise BadInput(f"{count} virtual tokens are more than the vocabulary has: use fewer")
    return torch.tensor([chosen], device=lm.device)


@torch.no_grad()
def _keys_and_values(lm: LanguageModel, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of the tokens in each layer's attention, each ``[heads, tokens, head size]``."""
    from transformers import DynamicCache

    cache = DynamicCache()
    lm.model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]
