"""The blocks of a transformer, found without knowing the architecture, and what can be done with a list of blocks.

`blocks` says which parameters belong together; `Reuse` lets a forward start at a block, with what earlier
blocks returned before; `checkpointing` trades the activations of blocks for a second forward in the backward pass.

Blocks are changed for the time of a ``with`` by an instance attribute ``forward``, so hooks, names and state dicts stay
what they are.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from gradless.errors import BadInput
from gradless.storage import upcast

__all__ = ["blocks", "checkpointing"]

_transformed: Any = None  # whether a tensor belongs to a torch.func transform
with contextlib.suppress(ImportError):
    from torch._C._functorch import is_functorch_wrapped_tensor as _transformed


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The transformer blocks of a model in order: the longest `torch.nn.ModuleList` of modules that own parameters.

    Lists inside the members of another such list (the experts of a block) do not count. Of several lists of one length,
    as in models with an encoder and a decoder, it is the first.

    Args:
        model: any model, also inside an adapter.

    Returns:
        Name and module; a parameter is the block's if its name starts with the block's and a dot.

    Raises:
        BadInput: there is no such list.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
        >>> [name for name, _ in blocks(model)]
        ['1.0', '1.1']
    """
    longest = max(_lists(model), key=lambda entry: len(entry[1]), default=None)
    if longest is None:
        raise BadInput(f"{type(model).__name__} has no list of blocks: use a method that does not need them")
    name, entries = longest
    return [(_join(name, key), block) for key, block in entries.named_children()]


def _lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The outermost lists whose members own parameters."""
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and not inside and any(True for _ in module.parameters()):
            lists.append((name, module))
    return lists


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class Recorded(NamedTuple):
    """What one call of one block was given and returned."""

    shape: torch.Size | None  # of the first input
    output: Any  # None where it was not to be kept


class Reuse:
    """Forwards that start at a block, with what earlier blocks returned while a recording was made.

    Valid as long as nothing before that block has changed: neither weights nor inputs. A method that perturbs one
    block at a time records once and then pays only for the blocks from the perturbed one on; if it also updates them
    one at a time, from the last to the first, the recording stays valid throughout.

    The blocks must be chained: each takes what the one before it returned. What models do with the results of earlier
    blocks besides (skip connections over several blocks) is right only for blocks that are kept.

    Args:
        block_modules: all blocks in order, as from `blocks`.
        keep: blocks whose results to keep; to start at block k, block k - 1 is needed. By default all.

    Memory: one hidden state for each kept block and call.

    Attributes:
        computed: calls of blocks that were computed since the beginning.
        reused: calls that were answered from the recording.

    Example:
        >>> chain = [nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)]
        >>> run = lambda: nn.Sequential(*chain)(torch.ones(1, 2))
        >>> with Reuse(chain) as reuse:
        ...     with reuse.recording():
        ...         first = run()
        ...     with reuse.from_block(2):
        ...         again = run()
        >>> torch.equal(first, again), reuse.computed, reuse.reused
        (True, 4, 2)
    """

    def __init__(self, block_modules: Sequence[nn.Module], *, keep: Iterable[int] | None = None) -> None:
        self.modules = list(block_modules)
        self.keep = frozenset(range(len(self.modules)) if keep is None else keep)
        if not self.keep <= set(range(len(self.modules))):
            raise BadInput(f"keep names blocks that do not exist: they are 0 to {len(self.modules) - 1}")
        self.computed = self.reused = 0
        self._state: Literal["off", "record", "reuse"] = "off"
        self._start = 0
        self._recorded: dict[int, list[Recorded]] = {}
        self._calls: Counter[int] = Counter()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Reuse:
        self._patches.enter_context(_replaced(self.modules, self._forward))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.close()
        self._recorded.clear()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, blocks compute, and what they return is kept; replaces an earlier recording.

        Raises:
            BadInput: a block runs under a transform of torch.func, whose values do not outlive it.
        """
        self._recorded.clear()
        with self._in_state("record"):
            try:
                yield
            except BaseException:
                self._recorded.clear()
                raise

    @contextlib.contextmanager
    def from_block(self, k: int) -> Iterator[None]:
        """Inside, blocks before ``k`` return what they returned when recorded, cut off from gradients.

        The model may be called as often as when recorded, or several times as often (two losses of one closure).
        Under `torch.func.vmap` (the dual engine) the results are shared by all copies.

        Args:
            k: 0 computes every block; the number of blocks, none.

        Raises:
            BadInput: block ``k - 1`` was not recorded, blocks are called another number of times or with another
                shape than when recorded, or what reaches the first block differs between the copies of a vmap.
        """
        if not 0 <= k <= len(self.modules):
            raise BadInput(f"from_block({k}): the model has {len(self.modules)} blocks")
        if k and not any(call.output is not None for call in self._recorded.get(k - 1, ())):
            why = "keep it" if k - 1 not in self.keep else "run the model under recording() first"
            raise BadInput(f"nothing is known of block {k - 1}, on which block {k} builds: {why}")
        with self._in_state("reuse"):
            self._start = k
            yield
            for index in range(k):
                expected = len(self._recorded.get(index, ()))
                if expected != len(self._recorded[k - 1]) or self._calls[index] % expected:
                    raise BadInput(
                        f"block {index} was called {self._calls[index]} times, but {expected} times when it was "
                        "recorded: record a run of the same closure"
                    )

    @contextlib.contextmanager
    def _in_state(self, state: Literal["record", "reuse"]) -> Iterator[None]:
        if self._state != "off":
            raise BadInput("recording() and from_block() cannot be nested: leave one before the other")
        self._state = state
        self._calls.clear()
        try:
            yield
        finally:
            self._state = "off"

    def _forward(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward of block ``index``."""
        call = self._calls[index]
        self._calls[index] += 1
        if self._state == "reuse" and index < self._start:
            self.reused += 1
            return self._again(index, call, args, kwargs)
        output = original(*args, **kwargs)
        self.computed += 1
        if self._state == "record":
            if any(map(_is_transformed, tree_leaves((args, kwargs, output)))):
                raise BadInput(
                    "Reuse cannot record under torch.func (vmap in the dual engine): record outside of it, or use the "
                    "engine 'stream'"
                )
            kept = _copied(output) if index in self.keep else None
            self._recorded.setdefault(index, []).append(Recorded(_shape(args, kwargs), kept))
        return output

    def _again(self, index: int, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block returned in that call; of a block that was not kept, what the last one skipped returned."""
        calls = self._recorded.get(index, [])
        if not calls:
            raise BadInput(f"block {index} was not called when it was recorded: record a run of the same closure")
        recorded = calls[call % len(calls)]
        if index == 0 and any(map(_is_transformed, tree_leaves((args, kwargs)))):
            raise BadInput("what reaches the first block differs between copies of the model: it cannot be reused")
        if _shape(args, kwargs) != recorded.shape:
            raise BadInput(
                f"block {index} is given {_shape(args, kwargs)} and was given {recorded.shape} when it was recorded: "
                "record a run of the same closure on the same batch"
            )
        if recorded.output is None:  # nobody computes with it, but it must look right
            last = self._recorded[self._start - 1]
            recorded = last[call % len(last)]
        return _copied(recorded.output)


def _copied(output: Any) -> Any:
    """A copy without history: models may change what blocks return in place."""
    return tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, output)


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Size | None:
    """The shape of the first tensor that a block is given."""
    return next((value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _is_transformed(value: Any) -> bool:
    return _transformed is not None and isinstance(value, Tensor) and _transformed(value)


@contextlib.contextmanager
def checkpointing(block_modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, blocks keep only their inputs for the backward pass and compute the rest again in it.

    Chen et al. 2016, arXiv 1604.06174. The same results and gradients bit for bit, in evaluation mode too, where the
    switch of Hugging Face models does nothing. Without gradients blocks run as usual. The backward pass may lie behind
    the ``with``.

    A cache of keys and values (prefix tuning gives one) is read but not extended, since the second run of a block would
    meet what the first one added.

    Args:
        block_modules: the blocks, say those of `blocks`.

    Cost: a second forward of each block. Memory: one hidden state for each block, and the activations of one block.

    Example:
        >>> layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
        >>> with checkpointing([layer]):
        ...     layer(x).sum().backward()
        >>> torch.equal(x.grad, layer.weight.sum(0, keepdim=True))
        True
    """
    modules = list(block_modules)

    def forward(index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        # Taken before the first run: what other blocks or callers do to the cache later must not reach the second.
        snapshot = {key: _forked(value) for key, value in kwargs.items()}

        # The second run, in the backward pass, is outside of the model's forward.
        wide = upcast.reading if upcast.is_reading() else contextlib.nullcontext

        def run(*args: Any) -> Any:
            with wide():
                return original(*args, **{key: _forked(value) for key, value in snapshot.items()})

        # Without dropout there are no random numbers to be drawn again.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=modules[index].training)

    with _replaced(modules, forward):
        yield


def _forked(value: Any) -> Any:
    """A cache of Hugging Face's kind, a list of layers that each replace their tensors, that can go its own way."""
    if isinstance(value, Tensor | nn.Module) or not isinstance(getattr(value, "layers", None), list):
        return value
    fork = copy.copy(value)
    fork.layers = [copy.copy(layer) for layer in value.layers]
    return fork


@contextlib.contextmanager
def _replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, ``forward(index, original, ...)`` runs in place of the forward of each module."""
    with contextlib.ExitStack() as stack:
        for index, module in enumerate(modules):
            own = module.__dict__.get("forward")  # others may have replaced it before
            stack.callback(_put_back, module, own)
            module.__dict__["forward"] = functools.partial(forward, index, module.forward)
        yield


def _put_back(module: nn.Module, own: Any) -> None:
    if own is None:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = own
