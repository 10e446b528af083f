"""GGUF weights some of whose numbers are parameters: their codes, or the float16 factors of their blocks.

What is tuned lies in ordinary parameters, with the rows of the weight. Whoever reads the weight reads these through a
torch function, so that a perturbed forward gives what they are at its points; the blocks of the file with these numbers
in them are then decoded as the file is. So a tuned weight is by construction what its GGUF file will say.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradless.storage import gguf_codes
from gradless.storage.codes import Codes
from gradless.storage.gguf_blocks import BlockFormat
from gradless.storage.mapped import CHUNK_BYTES, GgufStore
from gradless.storage.stored import ChangingStore

CODES: Final = "codes"
SCALES: Final = ("scales", "offsets")
"""Names of the float16 factors of a block, in the order of `BlockFormat.halves`: of its codes, and of what is added."""


def tunable(store: object) -> bool:
    """Return whether the numbers of a stored weight can be parameters."""
    return isinstance(store, GgufStore) and store.form.name in gguf_codes.JOINS


class TunedStore(ChangingStore):
    """The store of a weight with parameters in its blocks.

    Args:
        base: the weight as it lies in its file.
        names: what becomes a parameter: ``("codes",)``, or some of `SCALES` that the format has.

    Attributes:
        fields: the parameters by name. Codes are `Codes`, uint8 ``[rows, columns]``, 0 for the smallest. Factors are
            float16 ``[rows, blocks]``.

    Memory: a byte a weight for codes; 2 bytes a block for each factor.
    """

    def __init__(self, base: GgufStore, names: tuple[str, ...]) -> None:
        self.base, self.names = base, names
        self.shape, self.dtype, self.device, self.nbytes = base.shape, base.dtype, base.device, base.nbytes
        self.format, self.quantised = base.form.name, base.quantised
        self.fields = {name: _read(base, name) for name in names}

    def __deepcopy__(self, memo: dict[int, Any]) -> TunedStore:
        """Return a store over copies of the parameters, with the same bytes."""
        if id(self) not in memo:
            other = object.__new__(TunedStore)
            other.__dict__.update(self.__dict__, fields=copy.deepcopy(self.fields, memo))
            memo[id(self)] = other
        copied: TunedStore = memo[id(self)]
        return copied

    def now(self, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the parameters, or some rows of them, as functions see them: perturbed inside a perturbed forward."""
        return tuple(p.contiguous() if rows is None else p[rows] for p in self.fields.values())

    def at(self, fields: tuple[Tensor, ...], rows: Tensor | None = None) -> FilledStore:
        """Return the weight (or some rows of it) with these numbers in its blocks."""
        return FilledStore(self.base, dict(zip(self.names, fields, strict=True)), rows)

    def decode(self, out: Tensor, start: int = 0) -> None:
        """Write rows as they are now; see `Store.decode`."""
        self.at(self.now()).decode(out, start)

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write some rows as they are now; see `Store.decode_rows`."""
        self.at(self.now(rows), rows).decode(out)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the bytes of the weight as its file will hold them, uint8 ``[rows, bytes]``, and their first row."""
        step, order = max(1, CHUNK_BYTES // max(1, self.base.raw.shape[1])), self.base.order
        inverse = None if order is None else torch.argsort(order)
        for start in range(0, self.shape[0], step):
            rows = torch.arange(start, min(start + step, self.shape[0]), device=self.device)
            rows = rows if inverse is None else inverse[rows]
            fields = tuple(p.detach()[rows] for p in self.fields.values())
            yield start, self.at(fields, rows).filled(0, len(rows))

    def stored(self) -> Iterator[memoryview]:
        """Yield the bytes in the file's order."""
        for _, rows in self.blocks():
            yield rows.cpu().contiguous().numpy().data.cast("B")


class FilledStore:
    """A weight, or some rows of it, with given numbers in its blocks; decoded as it is read."""

    def __init__(self, base: GgufStore, fields: dict[str, Tensor], rows: Tensor | None) -> None:
        self.base, self.fields, self.rows = base, fields, rows
        self.shape = base.shape if rows is None else torch.Size((len(rows), *base.shape[1:]))
        self.dtype, self.device, self.nbytes, self.format = base.dtype, base.device, base.nbytes, base.format

    def decode(self, out: Tensor, start: int = 0) -> None:
        """Write rows; see `Store.decode`."""
        step = max(1, CHUNK_BYTES // max(1, self.base.raw.shape[1]))  # so that blocks stay in a cache
        for begin in range(0, len(out), step):
            part = out[begin : begin + step]
            GgufStore(self.filled(start + begin, len(part)), self.base.form).decode(part)

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write some rows; see `Store.decode_rows`."""
        fields = {name: values[rows] for name, values in self.fields.items()}
        FilledStore(self.base, fields, rows if self.rows is None else self.rows[rows]).decode(out)

    def stored(self) -> Iterator[memoryview]:
        """Yield the bytes, in the order of the rows here."""
        yield self.filled(0, self.shape[0]).cpu().numpy().data.cast("B")

    def filled(self, start: int, count: int) -> Tensor:
        """Return the bytes of consecutive rows, uint8 ``[count, bytes]``."""
        base, form = self.base, self.base.form
        chosen = slice(start, start + count)
        if self.rows is not None or base.order is not None:
            rows = torch.arange(start, start + count, device=self.device) if self.rows is None else self.rows[chosen]
            raw = base.raw[rows if base.order is None else base.order[rows]]
        else:
            raw = base.raw[chosen].clone()
        blocks = raw.view(-1, form.nbytes)
        for name, values in self.fields.items():
            _write(form, blocks, name, values[chosen])
        return raw


def _write(form: BlockFormat, blocks: Tensor, name: str, values: Tensor) -> None:
    """Put the numbers of some rows into their blocks, uint8 ``[n, nbytes]``."""
    if name == CODES:
        gguf_codes.put(form, blocks, values.reshape(len(blocks), form.weights))
    else:
        first = form.halves[SCALES.index(name)]
        blocks[:, first : first + 2] = values.reshape(len(blocks), 1).view(torch.uint8)


def _read(base: GgufStore, name: str) -> nn.Parameter:
    """Return the parameter that a field begins as."""
    form, rows = base.form, base.shape[0]
    raw = base.raw if base.order is None else base.raw[base.order]
    if name == CODES:
        step, codes = max(1, CHUNK_BYTES // max(1, raw.shape[1])), []
        for start in range(0, rows, step):
            part = raw[start : start + step]
            codes.append(gguf_codes.unsigned(form, part.reshape(-1, form.nbytes)).view(len(part), -1))
        return Codes(torch.cat(codes), highest=form.codes[1] - form.codes[0])
    first = form.halves[SCALES.index(name)]
    half = raw.view(rows, -1, form.nbytes)[..., first : first + 2].contiguous().view(torch.float16)
    return nn.Parameter(half.view(rows, -1).clone())
