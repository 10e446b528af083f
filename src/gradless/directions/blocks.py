"""Directions that reach only some blocks of a model: a subset drawn for every query, or one block after the other.

Blocks are recognised by names alone, so no model is needed: parameters called ``layers.3.mlp.weight`` and
``layers.3.norm.weight`` belong to block 3 of ``layers``, the longest numbered list. What is in no block (embeddings,
the last norm) counts as a unit for each module.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch import Tensor

from gradless import rng
from gradless.directions.base import Directions, Frozen
from gradless.errors import BadInput

Active = Mapping[str, Callable[[int], bool]]
BEHIND: Final = frozenset(
    (
        *("norm", "final_norm", "final_layer_norm", "final_layernorm", "ln_f", "project_out"),
        *("lm_head", "embed_out", "label_head", "score", "classifier", "pooler", "cls", "qa_outputs"),
    )
)
"""Names of modules that read what the last block returns, if they stand beside the blocks or around them."""
NUMBERED = re.compile(r"^(?P<list>(?:[^.\d][^.]*\.)+)(?P<number>\d+)\.")


def blocks(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names in each block, first block first; empty if nothing is numbered.

    Example:
        >>> blocks(["wte", "h.layers.0.w", "h.layers.0.b", "h.layers.1.w", "norm.w"])
        [('h.layers.0.w', 'h.layers.0.b'), ('h.layers.1.w',)]
    """
    lists: dict[str, dict[int, list[str]]] = {}
    for name in names:
        match = NUMBERED.match(name)
        if match:
            lists.setdefault(match["list"], {}).setdefault(int(match["number"]), []).append(name)
    longest = max(lists.values(), key=len, default={})
    return [tuple(longest[number]) for number in sorted(longest)]


def units(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All names, each in one unit: what comes before the blocks, the blocks, and what comes after them, by module.

    What comes after is recognised by its name (`BEHIND`): the order of registration is not always that of a forward.

    Example:
        >>> units(["wte.w", "h.0.w", "h.1.w", "norm.w", "norm.b"])
        [('wte.w',), ('h.0.w',), ('h.1.w',), ('norm.w', 'norm.b')]
    """
    numbered = blocks(names)
    inside = {name for block in numbered for name in block}
    around: dict[str, list[str]] = {}
    for name in names:
        if name not in inside:
            around.setdefault(name.rpartition(".")[0], []).append(name)
    behind = [module for module in around if not BEHIND.isdisjoint(module.split("."))]
    ahead = [tuple(unit) for module, unit in around.items() if module not in behind]
    return [*ahead, *numbered, *(tuple(around[module]) for module in behind)]


def random_blocks(base: Directions, *, keep: float | int) -> Directions:
    """Reach only some of the blocks, drawn anew for every query; what is in no block is always reached.

    Args:
        base: the directions in what is reached.
        keep: share of the blocks (a float up to 1), or their number (an int).

    Raises:
        BadInput: ``keep`` out of range; later, parameters that belong to no numbered block.
    """
    if not (0 < keep <= 1 if isinstance(keep, float) else keep >= 1):
        raise BadInput(f"keep is {keep}: give a share of the blocks up to 1.0, or their number")

    def active(names: Sequence[str]) -> Active:
        numbered = blocks(names)
        if not numbered:
            raise BadInput("no parameter belongs to a numbered block: use a method that takes the model as a whole")
        count = keep if isinstance(keep, int) else max(1, round(keep * len(numbered)))

        @functools.lru_cache(maxsize=1 << 14)  # a replay asks for each of its keys once for each block
        def chosen(key: int) -> frozenset[int]:
            return frozenset(rng.permutation(len(numbered), key & rng.MASK64, "blocks")[:count].tolist())

        reached = [functools.partial(_among, chosen, index) for index in range(len(numbered))]
        return {name: reached[index] for index, block in enumerate(numbered) for name in block}

    return base._replace(name=f"{base.name}-blocks-{keep}", active=active)


def _among(chosen: Callable[[int], frozenset[int]], index: int, key: int) -> bool:
    return index in chosen(key)


def one_by_one(base: Directions, names: Sequence[str]) -> tuple[Directions, int]:
    """Each query reaches one unit alone, so that as many queries as there are units estimate the whole gradient.

    The last unit comes first: what its forward computes before it serves all others (`gradless.forward.prefix_cache`).

    The update amplitude is the number of units, which turns the mean over queries into the sum over units.

    Args:
        base: the directions in a unit; not low-rank ones.
        names: of all parameters.

    Returns:
        The directions, and the number of units.

    Raises:
        BadInput: low-rank directions; later, a parameter that is not among the names.
    """
    if base.stream.rank:
        raise BadInput("low-rank directions cannot go unit by unit: use full ones, such as rademacher()")
    all_units = units(names)
    unit_of = {name: index for index, unit in enumerate(all_units) for name in unit}

    def freeze(params: Mapping[str, Tensor]) -> Mapping[str, Frozen]:
        frozen = base.freeze(params)
        return {name: one._replace(update=one.update * len(all_units)) for name, one in frozen.items()}

    def key(seed: int, step: int, query: int) -> int:
        return (len(all_units) - 1 - query % len(all_units)) << 64 | base.key(seed, step, query)

    def active(names: Sequence[str]) -> Active:
        reached = [functools.partial(_is, index) for index in range(len(all_units))]
        if new := [name for name in names if name not in unit_of]:
            raise BadInput(
                f"'{new[0]}' is in none of the {len(all_units)} units that steps go through, since it was unfrozen or "
                "added later: make the optimizer anew, or freeze it"
            )
        return {name: reached[unit_of[name]] for name in names}

    return base._replace(name=f"{base.name}-one-by-one", freeze=freeze, key=key, active=active), len(all_units)


def _is(index: int, key: int) -> bool:
    return key >> 64 == index
