"""Fingerprints of weights and files, so that two machines can tell whether they hold the same bytes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

CHUNK_BYTES: Final = 1 << 24


def weights_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    r"""SHA-256 of tensors, taken in the order of their names (code points).

    For each tensor the hash takes a header line ``name NUL dtype NUL shape LF``, for example
    ``b"head.weight\0bfloat16\0(2,64)\n"``, then its elements in row-major order as
    little-endian bytes. The result does not depend on the order given, the device, strides or gradients.

    Of a weight that is stored in another form than its values (`gradless.storage`, bitsandbytes, torchao) the hash
    takes what is stored: the name of the form in place of the dtype and the stored bytes, or a header line and the
    elements of every tensor that it consists of. Nothing is decoded.

    Cost: one pass over the weights; extra memory 16 MiB (and one tensor where it is not contiguous).

    Raises:
        ValueError: two tensors with one name, a name that holds NUL or a line feed, or a tensor without data
            (on the device ``meta``).

    Example:
        >>> weights_sha256([("b", torch.zeros(2)), ("a", torch.ones(1))])[:16]
        '01b679224e581bb0'
    """
    digest = hashlib.sha256()
    previous: str | None = None
    for name, tensor in sorted(named, key=lambda item: item[0]):
        if name == previous:
            raise ValueError(f"two tensors are named {name!r}")
        if "\0" in name or "\n" in name:
            raise ValueError(f"a tensor's name cannot hold NUL or a line feed: {name!r}")
        previous = name
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Feed a tensor's header line and its bytes, or those of the tensors that a quantised one consists of."""
    store: Any = getattr(tensor, "store", None)
    kind = str(tensor.dtype).removeprefix("torch.") if store is None else store.format
    parts = [] if store is not None else list(_parts(tensor))
    if parts:
        kind = type(tensor).__name__
    digest.update(f"{name}\0{kind}\0({','.join(map(str, tensor.shape))})\n".encode())
    if store is not None:
        for chunk in store.stored():
            digest.update(chunk)
    elif tensor.is_meta:
        raise ValueError(f"the tensor {name!r} has no data here (it is on the device meta): load it first")
    elif not parts:
        _update(digest, tensor)
    for part, inner in parts:
        _add(digest, f"{name}.{part}", inner)


def _parts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a quantised weight of torchao or bitsandbytes consists of; none of any other tensor."""
    if (flatten := getattr(tensor, "__tensor_flatten__", None)) is not None:
        for name in flatten()[0]:
            yield name, getattr(tensor, name)
    elif (state := getattr(tensor, "quant_state", None)) is not None:
        yield "data", tensor.data.as_subclass(Tensor)
        yield from sorted(state.as_dict(packed=True).items())


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Feed a tensor's elements, a chunk at a time: a GPU tensor never exists whole on the CPU."""
    flat = tensor.detach().contiguous().reshape(-1)
    step = max(1, CHUNK_BYTES // flat.element_size())
    for start in range(0, flat.numel(), step):
        # NumPy has no bfloat16: the bytes are viewed by torch first.
        raw = flat[start : start + step].cpu().view(torch.uint8).numpy()
        if sys.byteorder == "big":
            raw = raw.reshape(-1, flat.element_size())[:, ::-1].copy().reshape(-1)
        digest.update(raw.data)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
