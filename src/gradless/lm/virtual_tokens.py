"""Prefix and prompt tuning: virtual tokens that start as random real ones, where the architecture can have them.

A prefix (Li and Liang 2021, arXiv 2101.00190) is what a cache would hold of these tokens, a prompt (Lester et al. 2021,
arXiv 2104.08691) their embeddings. Whether the model's code reads them as it reads tokens is not taken on trust: a few
tokens are read behind the tokens themselves and behind their stand-ins, and what differs is refused.
"""

from __future__ import annotations

import inspect
from typing import Any, Final, NoReturn, cast

import torch
from torch import Tensor, nn

from gradless import rng
from gradless.errors import BadInput
from gradless.lm.checkpoint_files import first_line
from gradless.lm.loading import LanguageModel

READ: Final = 4  # tokens that are read behind virtual ones to compare
DIFFERENCE: Final = {torch.float32: 1e-3}  # largest relative difference of logits that is rounding
COARSE: Final = 0.2  # of 16-bit weights

KeysAndValues = list[tuple[Tensor, Tensor]]


def random_tokens(lm: LanguageModel, count: int, seed: int) -> Tensor:
    """Return different random tokens, none of them special: int64 ``[1, count]``."""
    return _drawn(lm, count, seed, "virtual tokens")


def _drawn(lm: LanguageModel, count: int, seed: int, purpose: str) -> Tensor:
    special = set(lm.tokenizer.all_special_ids)
    size = min(len(lm.tokenizer), cast(Any, lm.model).get_input_embeddings().weight.shape[0])
    order = rng.permutation(size, seed, purpose)
    chosen = [int(token) for token in order if int(token) not in special][:count]
    if len(chosen) < count:
        raise BadInput(f"{count} virtual tokens are more than the vocabulary has: use fewer")
    return torch.tensor([chosen], device=lm.device)


def refuse(lm: LanguageModel, scheme: str, reason: str, instead: str = "lora") -> NoReturn:
    """Raise the sentence that a scheme does not fit."""
    raise BadInput(f"{scheme} tuning does not fit {lm.name}: {reason}; use the scheme {instead}")


@torch.no_grad()
def keys_and_values(lm: LanguageModel, tokens: Tensor) -> KeysAndValues:
    """Return keys and values of the tokens in each layer's attention, each ``[heads, tokens, head size]``.

    Raises:
        BadInput: the architecture keeps no keys and values for each layer, or not in tensors of one shape.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    try:
        lm.model(input_ids=tokens, past_key_values=cache, use_cache=True)
    except Exception as error:  # every architecture raises its own
        refuse(lm, "prefix", _why_no_cache(lm) or f"its forward with a cache fails ({first_line(error)})")
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    if not pairs or any(key is None or value is None or key.ndim != 4 for key, value in pairs):
        refuse(lm, "prefix", _why_no_cache(lm) or "its layers keep no keys and values in the cache that they are given")
    layers = [(key[0], value[0]) for key, value in cast(list[tuple[Tensor, Tensor]], pairs)]
    shapes = {tuple(part.shape) for layer in layers for part in layer}
    if len(shapes) > 1:
        widths = ", ".join(f"{heads} x {size}" for heads, _, size in sorted(shapes))
        refuse(lm, "prefix", f"its keys and values have several shapes ({widths} numbers a token), PEFT's have one")
    return layers


def _why_no_cache(lm: LanguageModel) -> str:
    """Return that layers are recurrent, if the model's signature or its own cache says so, else nothing."""
    from transformers import DynamicCache

    if {"cache_params", "state"} & inspect.signature(lm.model.forward).parameters.keys():
        return "its layers keep a recurrent state, no keys and values"
    try:
        layers = DynamicCache(config=lm.config).layers
    except Exception:  # a configuration that the cache does not understand says nothing
        return ""
    recurrent = sum("Linear" in type(layer).__name__ for layer in layers)
    if not recurrent:
        return ""
    return f"a prefix of keys and values leaves out the recurrent state of {recurrent} of its {len(layers)} layers"


@torch.no_grad()
def behind_tokens(lm: LanguageModel, tokens: Tensor) -> Tensor | None:
    """Return the logits of a few tokens behind these ones; None on the meta device, or if they cannot be read so."""
    if lm.head.weight.is_meta:
        return None
    ids = torch.cat((tokens, _read(lm)), dim=1)
    return _logits(lm.model, ids, lm.masked)[:, -READ:]


@torch.no_grad()
def check(lm: LanguageModel, model: nn.Module, scheme: str, expected: Tensor | None) -> None:
    """Compare what a wrapped model makes of a few tokens with what it makes of them behind the real tokens.

    A masked model's real tokens would look at the text behind them, which keys and values of a prefix do not: there it
    only must matter.

    Cost: one forward of a few tokens.

    Raises:
        BadInput: the forward fails, or its logits are others.
    """
    if expected is None:
        return
    try:
        logits = _logits(model, _read(lm), lm.masked)[:, -READ:]
        alone = _logits(cast(Any, model).get_base_model(), _read(lm), lm.masked)[:, -READ:]
    except Exception as error:
        refuse(lm, scheme, f"its forward with virtual tokens fails ({first_line(error)})")
    if torch.equal(logits, alone):
        refuse(lm, scheme, "its forward does not read virtual tokens")
    difference = float((logits - expected).norm() / expected.norm())
    if not (lm.masked and scheme == "prefix") and not difference < DIFFERENCE.get(lm.dtype, COARSE):
        refuse(lm, scheme, "what it computes behind virtual tokens is not what it computes behind the real ones")


@torch.no_grad()
def read_logits(lm: LanguageModel) -> Tensor:
    """Return what a model says of a few tokens, float32 ``[1, L, V]``."""
    return _logits(lm.model, _read(lm), lm.masked)


def _read(lm: LanguageModel) -> Tensor:
    return _drawn(lm, READ, 0, "read behind virtual tokens")


def _logits(model: nn.Module, ids: Tensor, masked: bool) -> Tensor:
    """Return float32 logits ``[1, L, V]``, with the arguments that `gradless.lm.scoring` uses."""
    options = {"attention_mask": torch.ones_like(ids)} if masked else {"attention_mask": None, "use_cache": False}
    logits: Tensor = model(input_ids=ids, **options).logits
    return logits.float()


def prefix_rows(layers: KeysAndValues) -> Tensor:
    """Return keys and values as PEFT reads them: a row ``[layer, key or value, head, head size]`` for each token."""
    rows = [part.permute(1, 0, 2) for layer in layers for part in layer]  # each [P, heads, size]
    return torch.stack(rows, dim=1).reshape(len(rows[0]), -1)


def sizes(lm: LanguageModel, width: int) -> dict[str, Any]:
    """Return what PEFT looks for in a configuration and does not find under the names of some architectures."""
    config = lm.config
    known = {"num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads"}
    return {"token_dim": width, **{key: getattr(config, name, None) or 1 for key, name in known.items()}}
