"""Which weights are codes instead of values, told by their kind alone: no library is imported for it.

A step of floats cannot move a code of a few bits, so such weights are never tuned as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from gradless.errors import BadInput
from gradless.storage.codes import Codes, is_tuned
from gradless.storage.stored import StoredWeight

PACKED: Final = ("qweight", "weight_packed", "weight_q", "codes")
"""Names of the integer matrices that layers of GPTQ, AWQ, compressed-tensors and HQQ have in place of a weight."""
PARTS: Final = ("qdata", "tensor_impl", "int_data", "_data")
"""Inner tensors by which a wrapped weight of torchao or optimum-quanto is told from a distributed or padded one."""
INSTEAD: Final = "tune adapters above them (the scheme lora, prefix or prompt), or load the model in floats"


def kind(tensor: Tensor) -> str | None:
    """Return what a weight is stored as, such as ``bitsandbytes nf4``; None if it is a tensor of floats.

    Example:
        >>> kind(torch.zeros(2)), kind(torch.zeros(2, 2, dtype=torch.uint8))
        (None, 'uint8 codes')
    """
    if isinstance(tensor, Codes):  # which are tuned as they are
        return None
    if isinstance(tensor, StoredWeight):
        return getattr(tensor.store, "quantised", None)
    name, module = type(tensor).__name__, type(tensor).__module__.partition(".")[0]
    if name == "Params4bit":
        return f"bitsandbytes {getattr(tensor, 'quant_type', '4-bit')}"
    if name == "Int8Params":
        # Floats until the layer is moved to a device.
        return None if tensor.is_floating_point() else "bitsandbytes int8"
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is not None and any(hasattr(tensor, part) for part in PARTS):
        return f"{module} {name}"
    if tensor.dtype == torch.bool or tensor.dtype.is_complex or tensor.ndim < 2:
        return None
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        return f"{str(tensor.dtype).removeprefix('torch.')} codes"
    return None


def of_model(model: nn.Module) -> str | None:
    """Return what the first quantised weight of a model is stored as; None if all are floats."""
    for tensor in model.parameters():
        if (name := kind(tensor)) is not None:
            return name
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in PACKED and not buffer.is_floating_point():
                return f"codes of {type(module).__name__}"
    return None


def check_choice(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse all parameters of a quantised model, of which a step would reach only embeddings and norms.

    A model of floats that is tuned whole, and one whose user has chosen what to tune, pass: once some parameters of
    floats are frozen, as adapters do, it is plain that the quantised ones are meant to be.

    Args:
        named: what an optimizer is given, frozen parameters included.

    Raises:
        BadInput: some weights are codes, and all others require gradients.
    """
    named = list(named)
    kinds = {name: stored for name, tensor in named if (stored := kind(tensor)) is not None}
    floats = [(name, tensor) for name, tensor in named if name not in kinds]
    if any(isinstance(tensor, Codes) for _, tensor in floats):
        return
    if not kinds or not floats or not all(is_tuned(tensor) for _, tensor in floats):
        return
    first = next(iter(kinds))
    raise BadInput(
        f"{len(kinds)} of {len(named)} parameters are quantised (such as '{first}', {kinds[first]}) and cannot move, "
        f"so only the others, such as '{floats[0][0]}', would be tuned: {INSTEAD}; to tune just these, give them alone"
    )


def rounds_activations(model: nn.Module) -> str | None:
    """Return the kind of the first layer that would round its input to a few bits; None if there is none."""
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            return "LLM.int8 of bitsandbytes"
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and getattr(weight, "act_quant_kwargs", None) is not None:
            return f"dynamic activations of {kind(weight)}"
    return None


def check_model(model: nn.Module) -> None:
    """Refuse a quantised model of which nobody has chosen what to tune, and one that rounds activations.

    Raises:
        BadInput: with what to do instead.
    """
    if (kind_of_layer := rounds_activations(model)) is not None:
        raise BadInput(
            f"layers of the model round activations to a few bits ({kind_of_layer}), and the losses at +eps and -eps "
            "differ by less than that, so that a step would follow noise: load it with gradless.lm.load, which reads "
            "the same weights and leaves activations in floats, or in nf4 or int8 for weights alone"
        )
    check_choice(model.named_parameters())
    if (codes := of_model(model)) is None or any(not is_tuned(p) for p in model.parameters() if kind(p) is None):
        return
    raise BadInput(
        f"the model has {codes} and parameters of floats that are all to be tuned, none by choice: {INSTEAD}"
    )
