"""Weights that bitsandbytes or torchao quantised, as frozen weights of plain layers: bytes of theirs, their decoder.

The layers of these libraries compute in a type of their own, round activations (LLM.int8, dynamic quantisation), repack
codes while they run, and have operators that know nothing of batched forwards. So a model that was loaded with them
gets plain linear layers over the same codes: every product is one of floats in the type of the activations, and the
values are those that its quantiser stored.

LLM.int8: Dettmers et al. 2022, arXiv 2208.07339; nf4 and double quantisation: Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradless.storage.quantised import kind
from gradless.storage.stored import StoredWeight


class LibraryStore:
    """What the stores of libraries share. Values are decoded by ``values``, of all rows or of some consecutive ones.

    Args:
        weight: the library's parameter.
        shape: of the weight, ``[out, in]``.
        dtype: of the values that layers get.
    """

    def __init__(self, weight: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = weight.device
        self.quantised = self.format = str(kind(weight))
        self.nbytes = sum(tensor.nbytes for _, tensor in self.tensors())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all that is stored, by name, in a fixed order."""
        raise NotImplementedError

    def values(self, start: int, end: int) -> Tensor:
        """Return the values of consecutive rows, in the library's type."""
        raise NotImplementedError

    def decode(self, out: Tensor, start: int = 0) -> None:
        """Write rows from ``start`` on into ``out``."""
        out.copy_(self.values(start, start + len(out)))

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write some rows into ``out``. Cost: all of them are decoded."""
        out.copy_(self.values(0, self.shape[0])[rows])

    def stored(self) -> Iterator[memoryview]:
        """Yield name, type and shape of each stored tensor, and its bytes."""
        for name, tensor in self.tensors():
            header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\n"
            yield memoryview(header.encode())
            flat = tensor.detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data


class FourBit(LibraryStore):
    """A weight in nf4 or fp4 of bitsandbytes: two codes a byte, and the largest size of each block of 64, say.

    Args:
        weight: ``Params4bit``, quantised.
        dtype: of the values.
    """

    def __init__(self, weight: Any, dtype: torch.dtype) -> None:
        self._codes, self._state = weight.data, weight.quant_state
        super().__init__(weight, torch.Size(self._state.shape), dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the codes, and what their blocks are multiplied by."""
        state = self._state
        yield f"codes {state.quant_type} {state.blocksize} {state.dtype}", self._codes
        yield "absmax", state.absmax
        yield "code", state.code
        if state.nested:
            yield f"nested {state.state2.blocksize}", state.state2.absmax
            yield "nested code", state.state2.code
            yield "offset", state.offset.reshape(1)

    def values(self, start: int, end: int) -> Tensor:
        """Return rows, decoded with all of the blocks that they lie in."""
        from bitsandbytes import functional

        state, width = self._state, self.shape[1:].numel()
        first = start * width // state.blocksize
        last = -(-end * width // state.blocksize)
        scales = state.absmax
        if state.nested:
            scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
        begin = first * state.blocksize
        count = min(last * state.blocksize, self.shape.numel()) - begin
        part = functional.QuantState(
            absmax=scales[first:last].float(),
            # One row: release 0.50 on a CPU takes the wrong scales where blocks go over the ends of rows.
            shape=torch.Size((1, count)),
            **{name: getattr(state, name) for name in ("code", "blocksize", "quant_type", "dtype")},
        )
        codes = self._codes.view(torch.uint8).view(-1, 1)[begin // 2 : (begin + count + 1) // 2]
        values: Tensor = functional.dequantize_4bit(codes, part).view(-1)
        return values[start * width - begin : end * width - begin].view(end - start, *self.shape[1:])


class EightBit(LibraryStore):
    """A weight of LLM.int8: codes from -127 to 127, and the largest size of each row. Activations stay floats here.

    Args:
        weight: ``Int8Params``, quantised.
        dtype: of the values.
    """

    def __init__(self, weight: Any, dtype: torch.dtype) -> None:
        self._codes, self._largest = weight.data, weight.SCB
        super().__init__(weight, self._codes.shape, dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield codes and sizes."""
        yield "codes", self._codes
        yield "largest", self._largest

    def values(self, start: int, end: int) -> Tensor:
        """Return rows, ``code * largest / 127`` in float32, as bitsandbytes does."""
        values: Tensor = self._codes[start:end] * (self._largest[start:end].float() / 127).view(-1, 1)
        return values


class Wrapped(LibraryStore):
    """A weight of torchao, or of another library whose tensors know how to decode themselves.

    Args:
        weight: a wrapper subclass with ``dequantize``.
        dtype: of the values.
    """

    def __init__(self, weight: Any, dtype: torch.dtype) -> None:
        self._weight = weight.detach()
        super().__init__(weight, weight.shape, dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors inside, those inside of them, and what else decides the values."""
        yield from _inside("", self._weight)

    def values(self, start: int, end: int) -> Tensor:
        """Return rows; all of them are decoded where the library cannot take a part."""
        if (start, end) != (0, self.shape[0]):
            try:
                part: Tensor = self._weight[start:end].dequantize()
            except (NotImplementedError, RuntimeError, AssertionError):  # what torchao raises where it has no slices
                pass
            else:
                return part
        values: Tensor = self._weight.dequantize()[start:end]
        return values


def _inside(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a wrapper holds, by their path."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    names = tensor.__tensor_flatten__()[0]
    for part in names:
        if (inner := getattr(tensor, part)) is not None:
            yield from _inside(f"{name}.{part}".lstrip("."), inner)


def store(weight: Tensor, dtype: torch.dtype) -> LibraryStore | None:
    """Return the store of a library's parameter; None for a plain one, or of a kind that is not known here.

    Args:
        weight: a parameter.
        dtype: of the values that layers get.
    """
    name = type(weight).__name__
    if name == "Params4bit":
        return FourBit(weight, dtype) if getattr(weight, "quant_state", None) is not None else None
    if name == "Int8Params":
        return EightBit(weight, dtype) if getattr(weight, "SCB", None) is not None else None
    if kind(weight) is not None and type(weight).dequantize is not Tensor.dequantize and hasattr(weight, "dequantize"):
        return Wrapped(weight, dtype)
    return None


def replace(model: nn.Module, dtype: torch.dtype) -> int:
    """Put plain layers in place of a library's, over the same codes; return how many weights are codes now.

    Args:
        model: loaded by transformers with a quantiser of bitsandbytes or torchao; it is changed.
        dtype: of the values that layers get.
    """
    stores: dict[int, nn.Parameter] = {}
    for path, module in list(model.named_modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in stores:
                if (decoder := store(weight, dtype)) is None:
                    continue
                stores[id(weight)] = nn.Parameter(StoredWeight(decoder), requires_grad=False)
            target = module
            if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
                target = _plain(module)
                model.set_submodule(path, target)
            setattr(target, name, stores[id(weight)])
    return len(stores)


def _plain(layer: nn.Linear) -> nn.Linear:
    """Return a linear layer without a weight of its own, with the bias of another."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.bias = layer.bias
    return plain.train(layer.training)


def quantise(values: Tensor, codes: str) -> LibraryStore:
    """Return a matrix in few bits: ``nf4`` or ``fp4`` in blocks of 64 (bitsandbytes), ``int8`` by rows (torchao).

    Args:
        values: ``[out, in]``, in the type that layers get.
        codes: the name of the code.
    """
    if codes == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        layer = nn.Linear(values.shape[1], values.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(values, requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())
        return Wrapped(layer.weight, values.dtype)
    from bitsandbytes.nn import Params4bit

    weight: Any = Params4bit(values, requires_grad=False, compress_statistics=False, quant_type=codes)
    return FourBit(weight.to(values.device), values.dtype)
