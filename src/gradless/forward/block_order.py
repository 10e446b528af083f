"""Which parameters a forward reads before the blocks of a model, in each of them, and after them.

Names and the order of registration do not tell: OPT registers its last norm in front of the blocks, DeBERTa a table
that all blocks read behind them. So the model is asked: it reads a few tokens (or a picture), and the first read of
every parameter is noted. Where nobody knows what to feed it, only the parameters inside the blocks have a place.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradless.directions.blocks import blocks as numbered_blocks
from gradless.errors import BadInput
from gradless.forward.autodiff import METADATA
from gradless.forward.model_blocks import _replaced, blocks

BEFORE = -1
LABEL_HEAD = "label_head."  # of the scheme head: it reads what the model has made, and is not called by it
TOKENS = ((1, 2, 0),)


def places(model: nn.Module) -> dict[str, int]:
    """Return the place of every parameter in a forward: `BEFORE`, the index of a block, or the number of blocks.

    Between two blocks is the place of the second; a parameter that is read in several places has the first. What is not
    read, or not known to be, counts as before the blocks unless it belongs to one. In the order of first reads.

    Args:
        model: any model with a list of blocks, also inside an adapter.

    Raises:
        BadInput: there is no such list.

    Cost: one forward of three tokens, or of one picture.
    """
    chain = blocks(model)
    owners = _owners(model)
    observed = _observed(model, [block for _, block in chain], owners)
    placed = dict.fromkeys(owners.values(), BEFORE)
    for index, (prefix, _) in enumerate(chain):
        placed |= {name: index for name in placed if name.startswith(f"{prefix}.")}
    placed |= {name: len(chain) for name in placed if name.startswith(LABEL_HEAD)}
    placed |= dict.fromkeys(_shared(model), BEFORE)
    unread = {name: number for name, number in placed.items() if name not in observed}
    return unread | observed


def first_block(model: nn.Module, names: Iterable[str], known: dict[str, int] | None = None) -> int:
    """Return the first block whose result may depend on some parameters: `Reuse.from_block` may start there.

    That is the number of blocks for what comes after all of them, such as the final norm, and 0 for embeddings and
    everything of which it is not certain.

    Args:
        model: the model.
        names: of parameters, as in ``model.named_parameters()``.
        known: the model's `places`, if they have been asked for before.

    Raises:
        BadInput: the model has no list of blocks, or no such parameter.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
        >>> first_block(model, ["1.1.bias"]), first_block(model, ["0.weight", "1.1.bias"])
        (1, 0)
    """
    known = places(model) if known is None else known
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise BadInput(f"the model has no parameter '{name}': take names from model.named_parameters()")
    return min((max(known[name], 0) for name in wanted), default=len(blocks(model)))


def units(names: Sequence[str], model: nn.Module | None = None) -> list[tuple[str, ...]]:
    """Return all names in units from the input to the output: each block is one, and each module around the blocks.

    Args:
        names: of parameters.
        model: whose parameters they are, to ask for their `places`; without it the blocks are the longest numbered
            list, and what is named behind it comes after it.

    Raises:
        BadInput: no parameter belongs to a numbered block, the model has no list of blocks, or no such parameter.

    Example:
        >>> units(["wte.w", "h.0.w", "h.1.w", "ln.w", "ln.b"])
        [('wte.w',), ('h.0.w',), ('h.1.w',), ('ln.w', 'ln.b')]
    """
    return [unit for _, unit in _placed_units(names, model)]


def last_units(names: Sequence[str], count: int, model: nn.Module | None = None) -> frozenset[str]:
    """Return the names in the last ``count`` units; of two and more units one is a block, however many modules follow.

    Args:
        names: of parameters.
        count: of units; 1 is the output layer alone, if it has parameters of its own.
        model: as for `units`.

    Raises:
        BadInput: as `units`, or too few units to cut between.

    Example:
        >>> names = ["wte.w", "h.0.w", "h.1.w", "dense.w", "norm.w", "head.w"]
        >>> sorted(last_units(names, 1)), sorted(last_units(names, 2))
        (['head.w'], ['dense.w', 'h.1.w', 'head.w', 'norm.w'])
    """
    placed = _placed_units(names, model)
    if len(placed) < 2:
        raise BadInput("a hybrid needs tuned parameters in several layers to cut between: use the scheme full or lora")
    if not 1 <= count < len(placed):
        raise BadInput(f"deep_units is {count}: the tuned parameters make {len(placed)} units, so cut below that")
    behind = 0 if count == 1 else sum(is_behind for is_behind, _ in placed)
    return frozenset(name for _, unit in placed[-min(max(count, behind + 1), len(placed) - 1) :] for name in unit)


def _placed_units(names: Sequence[str], model: nn.Module | None) -> list[tuple[bool, tuple[str, ...]]]:
    """Return the units in order, each with whether it comes after the blocks."""
    known = _registered(names) if model is None else places(model)
    count = len(numbered_blocks(names)) if model is None else len(blocks(model))
    missing = [name for name in names if name not in known]
    if missing:
        raise BadInput(f"the model has no parameter '{missing[0]}': take names from model.named_parameters()")
    order = {name: (block, index) for index, (name, block) in enumerate(known.items())}
    grouped: dict[tuple[int, str], list[str]] = {}
    for name in sorted(names, key=order.__getitem__):
        block = known[name]
        grouped.setdefault((block, "" if 0 <= block < count else name.rpartition(".")[0]), []).append(name)
    return [(block == count, tuple(unit)) for (block, _), unit in grouped.items()]


def _registered(names: Sequence[str]) -> dict[str, int]:
    """Return places by names alone."""
    chain = numbered_blocks(names)
    if not chain:
        raise BadInput(
            "no parameter belongs to a numbered block: name those of the last layers, e.g. deep='layer4|head'"
        )
    inside = {name: index for index, block in enumerate(chain) for name in block}
    first = min(index for index, name in enumerate(names) if name in inside)
    return {name: inside.get(name, BEFORE if index < first else len(chain)) for index, name in enumerate(names)}


def _owners(model: nn.Module) -> dict[int, str]:
    """Return names by the identity of parameters; of several, that of ``model.named_parameters()``."""
    return {id(p): name for name, p in model.named_parameters()}


def _shared(model: nn.Module) -> set[str]:
    """Return the names of parameters that the model has under several: they may be read in several places."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return {several[0] for several in names.values() if len(several) > 1}


def _observed(model: nn.Module, chain: Sequence[nn.Module], owners: dict[int, str]) -> dict[str, int]:
    """Return the places of what a forward reads, in the order of first reads; empty if it cannot be run."""
    inputs = _inputs(model)
    if inputs is None:
        return {}
    reads = _Reads(owners)
    with _evaluating(model), _replaced(chain, reads.inside_block), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), reads:
                model(**inputs)
        except Exception:  # what the model says about three tokens is no concern of the caller
            return {}
    return reads.places(len(chain))


def _inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Return a small input by the name that Hugging Face models give theirs; None for others."""
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    device = next(model.parameters()).device
    if name == "input_ids":
        return {name: torch.tensor(TOKENS, device=device)}
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if name == "pixel_values" and isinstance(size, int) and isinstance(channels, int):
        return {name: torch.zeros(1, channels, size, size, device=device, dtype=next(model.parameters()).dtype)}
    return None


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout is drawn and no running mean moves."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Reads(TorchFunctionMode):
    """Notes the first read of every parameter among the calls of the blocks."""

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.owners = owners
        self.running: list[int] = []  # blocks
        self.entered: list[int] = []  # blocks in the order of their calls
        self.first: dict[str, tuple[int | None, int]] = {}  # the block that runs, and calls of blocks so far

    def inside_block(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for the forward of a block."""
        self.running.append(index)
        self.entered.append(index)
        try:
            return original(*args, **kwargs)
        finally:
            self.running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the parameters that are read, and call."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        attribute = func.__name__ == "__get__" and not isinstance(result, Tensor)  # a shape, say; .T is a read
        if func.__name__ not in METADATA and not attribute:
            for value in (*args, *kwargs.values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if id(item) in self.owners:
                        now = (self.running[-1] if self.running else None, len(self.entered))
                        self.first.setdefault(self.owners[id(item)], now)
        return result

    def places(self, count: int) -> dict[str, int]:
        """Return what was noted; reads between two calls belong to the second."""
        following = [*self.entered, count]
        return {
            name: inside if inside is not None else BEFORE if not calls else following[calls]
            for name, (inside, calls) in self.first.items()
        }
