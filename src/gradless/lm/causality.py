"""Whether a model that is to be scored token by token keeps from looking at what follows.

Classes such as ``BertLMHeadModel`` without ``is_decoder``, or ``XLNetLMHeadModel``, count as causal in transformers and
read the whole text: an option that is in the input predicts itself, and padding changes every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PROBE = (3, 5, 4)  # tokens; the second row has another one behind them
LAST = (6, 7)


@torch.no_grad()
def looks_ahead(model: nn.Module) -> bool:
    """Return whether logits of a token depend on later tokens.

    Most architectures say that their attention is causal. Cost for the others: one forward of two short rows.
    """
    if any(getattr(module, "is_causal", False) is True for module in model.modules()):
        return False
    weight = next(model.parameters())
    if weight.is_meta:
        return False
    ids = torch.tensor([[*PROBE, last] for last in LAST], device=weight.device)
    causal: Any = model
    one, other = causal(input_ids=ids, use_cache=False).logits[:, : len(PROBE)].float()
    return not torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.abs().max()))
