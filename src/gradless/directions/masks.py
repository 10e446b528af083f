"""Sparse directions: which elements of each leaf a method perturbs and updates.

A mask is chosen from the weights as they are when the directions are frozen, that is from the base weights, and stays:
a replay that starts from the base weights makes it again. `MASKS` has the rules; `masked` and `sparse` apply them.

Exact counts: a rule keeps ``round(keep * elements)`` elements of a leaf, not about as many; of equal elements those of
lower row-major index (`gradless.directions.selection`). Leaves of one dimension (norms, biases) are always kept whole:
they are few, and a threshold that suits a matrix means nothing for them.

Cost: three passes over each leaf. Memory: one byte an element for the masks; `random` needs four bytes an element for
one leaf at a time, the others chunks (and a copy of a leaf that is not contiguous).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from gradless import kernels, rng
from gradless.directions.base import Directions, Frozen
from gradless.directions.selection import (
    RANK,
    Ranking,
    above,
    chunks,
    highest,
    highest_of_each_output,
    magnitude_rank,
    positions,
    table_rank,
    threshold_of,
)
from gradless.errors import BadInput, pick
from gradless.gradients import wide

Params = Mapping[str, Tensor]


def random(params: Params, keep: float, *, seed: int = 0) -> dict[str, Tensor]:
    """A uniform choice of elements in every leaf: the random sparsity of ZO-Bench (arXiv 2402.11592), with exact count.

    The choice is a function of the seed, the leaf's name and its number of elements: those with the largest numbers of
    a counter stream.

    Args:
        params: leaves by name.
        keep: fraction of the elements to keep, above 0, at most 1.
        seed: of the choice.

    Returns:
        Masks, bool, of the parameters' shapes.

    Example:
        >>> int(random({"w": torch.zeros(10, 10)}, 0.2)["w"].sum())
        20
    """
    key = rng.fold(seed, rng.ORDER, rng.leaf_id("mask"))
    draw = kernels.program([(1.0, [key], [1.0])])

    def choose(name: str, p: Tensor, count: int) -> Tensor:
        z = torch.zeros(p.numel(), dtype=torch.float32, device=p.device)
        # The kernels' fastest uniform numbers: the table's entries ascend with the 16 bits that choose them.
        kernels.sweep(z, z, draw, leaf=rng.leaf_id(name), stream=rng.GAUSSIAN)
        threshold, ties = threshold_of([z], table_rank, count)
        mask, _ = above(z, table_rank, threshold, 0)
        # One element in 65,536 draws the threshold itself. Taken by index, those kept would all lie in front, and where
        # little is kept they are the most of it.
        tied = torch.cat([start + positions(table_rank(part), threshold) for start, part in chunks(z)])
        chosen = torch.from_numpy(rng.permutation(len(tied), seed, f"mask/{name}")[:ties])
        mask[tied[chosen.to(tied.device)]] = True
        return mask.view(p.shape)

    return _each(params, keep, choose)


def magnitude(params: Params, keep: float, *, group: str = "layer") -> dict[str, Tensor]:
    """The elements of largest magnitude: the magnitude sparsity of ZO-Bench (arXiv 2402.11592).

    A leaf whose elements are all equal (LoRA's B before the first step) tells nothing, and its first elements are
    kept; `random` serves such leaves better.

    Args:
        params: as in `random`.
        keep: as in `random`.
        group: "layer", a threshold for each leaf; or "global", one for all leaves of two or more dimensions together,
            of whose elements ``round(keep * elements)`` are kept in all.

    Example:
        >>> magnitude({"w": torch.tensor([[1.0, -3.0], [2.0, 0.0]])}, 0.5)["w"].tolist()
        [[False, True], [True, False]]
    """
    return _by_magnitude(params, keep, group, magnitude_rank)


def smallest(params: Params, keep: float, *, group: str = "layer") -> dict[str, Tensor]:
    """The elements of smallest magnitude, which Sparse-MeZO perturbs (Liu et al. 2024, arXiv 2402.15751).

    The published method holds thresholds fixed and compares the weights with them anew in every step; here the elements
    are fixed as well, so that a run can be replayed from its coefficients. Arguments and result as in `magnitude`.

    Example:
        >>> smallest({"w": torch.tensor([[1.0, -3.0], [2.0, 0.0]])}, 0.5)["w"].tolist()
        [[True, False], [False, True]]
    """
    return _by_magnitude(params, keep, group, lambda values: RANK - magnitude_rank(values))


def wanda(params: Params, keep: float, *, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The largest ``|w_ij| * ||x_j||`` of every output of a linear layer: Wanda (Sun et al. 2023, arXiv 2306.11695).

    ``round(keep * inputs)`` weights of each output are kept. Leaves without norms (embeddings) are chosen by
    `magnitude`. Norms come from forward passes and so differ in their last bits between machines: a replay elsewhere
    needs the norms themselves.

    Args:
        params: as in `random`.
        keep: as in `random`.
        norms: of the inputs, from `input_norms`: ``[in]`` for a weight ``[out, in]``, ``[in, 1]`` for ``[in, out]``.

    Raises:
        BadInput: norms that do not fit their weight.

    Example:
        >>> w = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> wanda({"w": w}, 0.5, norms={"w": torch.tensor([3.0, 1.0])})["w"].tolist()
        [[True, False], [True, False]]
    """

    def choose(name: str, p: Tensor, count: int) -> Tensor:
        if name in norms:
            return highest_of_each_output(name, p, norms[name].to(p.device), keep)
        return highest({name: p}, count, magnitude_rank)[name]

    return _each(params, keep, choose)


class MaskRule(NamedTuple):
    """One way to choose elements."""

    make: Callable[..., dict[str, Tensor]]  # (params, keep, **options) -> masks
    options: tuple[str, ...]  # those it takes, of seed, norms and group
    about: str


MASKS: Final[dict[str, MaskRule]] = {
    "random": MaskRule(random, ("seed",), "a uniform choice (ZO-Bench, arXiv 2402.11592)"),
    "magnitude": MaskRule(magnitude, ("group",), "the largest weights (ZO-Bench, arXiv 2402.11592)"),
    "smallest": MaskRule(smallest, ("group",), "the smallest weights (Sparse-MeZO, arXiv 2402.15751)"),
    "wanda": MaskRule(wanda, ("norms",), "the largest weights times input norms (Wanda, arXiv 2306.11695)"),
}


def masked(base: Directions, masks: Mapping[str, Tensor]) -> Directions:
    """Directions that are zero outside masks: elements there are neither perturbed, updated nor decayed.

    A mask that keeps everything costs nothing, and a leaf of which nothing is kept is not tuned at all.

    Args:
        base: directions to thin out; where it has masks, both must keep an element.
        masks: bool, of the parameter's shape, for every tuned parameter; others are not looked at.

    Raises:
        BadInput: when the directions are frozen: a mask is missing or does not fit, or nothing is kept at all.

    Example:
        >>> from gradless.directions import rademacher
        >>> half = masked(rademacher(), {"w": torch.tensor([True, False])})
        >>> half.freeze({"w": torch.zeros(2)})["w"].mask
        tensor([ True, False])
    """
    return _thinned(base, lambda params: masks, f"{base.name}-masked")


def sparse(
    base: Directions,
    rule: str,
    keep: float,
    *,
    seed: int = 0,
    norms: Mapping[str, Tensor] | None = None,
    group: str = "layer",
) -> Directions:
    """Directions with masks that a rule chooses from the weights when the directions are frozen.

    Args:
        base: directions to thin out.
        rule: a key of `MASKS`.
        keep: fraction of the elements to keep, above 0, at most 1.
        seed: of the rule ``random``.
        norms: of the rule ``wanda``, from `input_norms`.
        group: of the rules ``magnitude`` and ``smallest``: "layer" or "global".

    Raises:
        BadInput: unknown rule or group, a fraction that is none, an option that the rule lacks or does not know.

    Example:
        >>> from gradless.directions import rademacher
        >>> frozen = sparse(rademacher(), "magnitude", 0.5).freeze({"w": torch.arange(6.0).view(2, 3)})
        >>> frozen["w"].mask.tolist()
        [[False, False, False], [True, True, True]]
    """
    entry = pick("mask", rule, MASKS)
    _check(keep, group)
    if "norms" in entry.options and norms is None:
        raise BadInput(
            f"the mask '{rule}' needs the norms of inputs: measure them with gradless.directions.masks.input_norms"
        )
    if "norms" not in entry.options and norms is not None:
        raise BadInput(f"the mask '{rule}' does not look at norms: leave them out, or use 'wanda'")
    if "group" not in entry.options and group != "layer":
        raise BadInput(f"the mask '{rule}' is chosen layer by layer: leave out the group")
    every: dict[str, Any] = {"seed": seed, "norms": norms, "group": group}
    options = {name: every[name] for name in entry.options}
    return _thinned(base, lambda params: entry.make(params, keep, **options), f"{base.name}-{rule}-{keep:g}")


def _thinned(base: Directions, make: Callable[[Params], Mapping[str, Tensor]], name: str) -> Directions:
    """``base`` with masks that are made when it is frozen."""

    def freeze(params: Params) -> Mapping[str, Frozen]:
        whole = base.freeze(params)
        masks = make({leaf: params[leaf] for leaf in whole})
        frozen = {}
        for leaf, unmasked in whole.items():
            mask = _fitting(leaf, params[leaf], masks)
            mask = mask if unmasked.mask is None else mask & unmasked.mask
            if mask.any():
                frozen[leaf] = unmasked._replace(mask=None if mask.all() else mask)
        if whole and not frozen:
            raise BadInput("the masks keep no element of any parameter: keep more")
        return frozen

    return base._replace(name=name, freeze=freeze)


def _fitting(name: str, p: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """The mask of a parameter, on its device."""
    mask = masks.get(name)
    if mask is None:
        raise BadInput(f"no mask for parameter '{name}': give one for every tuned parameter")
    if mask.dtype != torch.bool or mask.shape != p.shape:
        raise BadInput(f"the mask of '{name}' is {mask.dtype} {[*mask.shape]}: it must be torch.bool {[*p.shape]}")
    return mask.to(p.device, copy=True)


def input_norms(
    modules: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]], run: Callable[[], Any]
) -> dict[str, Tensor]:
    """L2 norm of every input feature of linear layers, over all tokens that reach them while ``run`` is called.

    Padding is counted, since a layer does not know of it. A tied output layer is found under its own name, which is
    not that of the shared parameter.

    Args:
        modules: candidates by name, such as ``model.named_modules()``; those that are no linear layers are passed over.
        run: calls the model, on a few batches say. No gradients are recorded.

    Returns:
        By the name of the weight, float32 on its device (of Apple GPUs: on the CPU): ``[in]`` for `torch.nn.Linear`,
        ``[in, 1]`` for layers of a class named Conv1D, whose weight is ``[in, out]``. Layers that were not called are
        missing.

    Cost: what ``run`` costs. Memory: the largest input of a layer in float64.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> input_norms({"a": layer}, lambda: layer(torch.tensor([[3.0, 1.0], [4.0, 0.0]])))
        {'a.weight': tensor([5., 1.])}
    """
    sums: dict[str, Tensor] = {}
    handles = []

    def watch(name: str, module: nn.Module, transposed: bool) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            squares = wide(x.detach().reshape(-1, x.shape[-1])).square().sum(0)
            squares = squares.unsqueeze(1) if transposed else squares
            sums[name] = sums[name] + squares if name in sums else squares

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    try:
        for name, module in modules.items() if isinstance(modules, Mapping) else modules:
            transposed = type(module).__name__ == "Conv1D"
            if transposed or isinstance(module, nn.Linear):
                watch(f"{name}.weight" if name else "weight", module, transposed)
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt().float() for name, total in sums.items()}


def _check(keep: float, group: str = "layer") -> None:
    if not 0 < keep <= 1:
        raise BadInput(f"keep is {keep}: the fraction of elements to keep is above 0 and at most 1")
    pick("group", group, {"layer": 0, "global": 0})


def _each(params: Params, keep: float, choose: Callable[[str, Tensor, int], Tensor]) -> dict[str, Tensor]:
    """Masks leaf by leaf: ``choose(name, p, count)`` where there is a choice."""
    _check(keep)
    masks = {}
    for name, p in params.items():
        count = round(keep * p.numel()) if p.ndim > 1 else p.numel()
        trivial = count in (0, p.numel())
        masks[name] = torch.full_like(p, count > 0, dtype=torch.bool) if trivial else choose(name, p, count)
    return masks


def _by_magnitude(params: Params, keep: float, group: str, rank: Ranking) -> dict[str, Tensor]:
    """Masks of the elements of highest rank, of every leaf or of all together."""
    _check(keep, group)
    if group == "layer":
        return _each(params, keep, lambda name, p, count: highest({name: p}, count, rank)[name])
    vectors = {name: p for name, p in params.items() if p.ndim < 2}
    # By name, so that equal elements are taken in an order that does not depend on that of the parameters.
    matrices = {name: params[name] for name in sorted(params.keys() - vectors.keys())}
    count = round(keep * sum(p.numel() for p in matrices.values()))
    masks = _each(vectors, 1.0, lambda name, p, count: p) | highest(matrices, count, rank)
    return {name: masks[name] for name in params}
