"""The honest gradients of many peers, computed together in one process.

The parameters of P peers are one tensor ``[P, D]``; a peer's parameters are views of its row. What the peers do not
send, the running statistics of batch normalisation, is kept for each of them and never pooled. Dropout masks are drawn
from counter streams keyed by seed, step, peer and layer, so a gradient depends on nothing but its arguments.

Shapes: P peers, D parameters, B rows of a batch, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from gradless import rng
from gradless.collab.learners.nets import Dropout, Net, blank, initial, slots
from gradless.errors import BadInput

WAYS: Final = ("loop", "vmap")
EVALUATE_ROWS: Final = 250  # images of one forward in `Stack.evaluate`


class Stack:
    """P copies of a network with their own parameters, statistics and dropout masks.

    On a CPU the peers are shared out among threads, each of which runs PyTorch on one core: small networks gain little
    from PyTorch's own threads, and on a busy machine lose up to ten times (benchmarks/collab_gradients.py). So the
    loop's numbers do not depend on how many threads there are.

    Args:
        net: row of `gradless.collab.learners.nets.NETS`.
        peers: how many, or their numbers (these seed the masks, so a peer alone computes what it computes in a stack).
        seed: of the run: initial parameters, dropout, the rows of an evaluation.
        way: ``"loop"`` (one peer after another) or ``"vmap"`` (`torch.func`, all of a thread's peers in one call): the
            same numbers to float tolerance. None: what the net's row says on a CPU, ``"vmap"`` elsewhere.
        device: where the statistics live; images and parameters must be there.
        threads: that share the peers. None: as many as PyTorch would use. 0: none, PyTorch uses its own for every
            peer, which pays for one peer with a large network. Only 0 makes sense away from the CPU, and is what None
            means there.

    Raises:
        BadInput: unknown way, no peers, or no threads.
    """

    def __init__(
        self,
        net: Net,
        peers: int | Sequence[int],
        *,
        seed: int = 0,
        way: str | None = None,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.net, self.seed, self.device = net, seed, torch.device(device)
        self.peers = tuple(range(peers)) if isinstance(peers, int) else tuple(peers)
        on_cpu = self.device.type == "cpu"
        self.way = way or (net.way if on_cpu else "vmap")
        threads = (torch.get_num_threads() if on_cpu else 0) if threads is None else threads
        if self.way not in WAYS or not self.peers or threads < 0:
            raise BadInput(f"gradients come by way of {' or '.join(WAYS)}, of at least one peer in 0 or more threads")
        self._alone = threads == 0
        chunks = torch.tensor_split(torch.arange(len(self.peers)), min(max(1, threads), len(self.peers)))
        self._chunks = [slice(int(chunk[0]), int(chunk[-1]) + 1) for chunk in chunks]
        # A functional call swaps a module's tensors for its time: each thread needs its own.
        self._modules = [blank(net) for _ in self._chunks]
        self.slots = slots(self._modules[0])
        self.size = self.slots[-1].stop
        self._drops = {name: drop for name, drop in self._modules[0].named_modules() if isinstance(drop, Dropout)}
        self.statistics = self._fresh()

    def _fresh(self) -> dict[str, Tensor]:
        """Batch normalisation's buffers at the start: ``[P, ...]`` by name."""
        statistics = {}
        for name, buffer in self._modules[0].named_buffers():
            if name.rpartition(".")[2] != "mask":
                value = 1 if name.endswith("running_var") else 0
                shape = (len(self.peers), *buffer.shape)
                statistics[name] = torch.full(shape, value, dtype=buffer.dtype, device=self.device)
        return statistics

    def initial(self) -> Tensor:
        """Return the same initial parameters for every peer, each in its own memory: float32 ``[P, D]``."""
        return initial(self.net, self.seed).to(self.device).expand(len(self.peers), -1).clone()

    def _share_out(self, work: Callable[[nn.Module, slice], None]) -> None:
        """Run ``work(module, rows)`` for all chunks of peers, each in its own thread and on one core."""
        if self._alone:
            work(self._modules[0], self._chunks[0])
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads that start now take this number
        try:
            if len(self._chunks) == 1:
                work(self._modules[0], self._chunks[0])
                return
            with ThreadPoolExecutor(len(self._chunks)) as pool:
                for done in [pool.submit(work, *pair) for pair in zip(self._modules, self._chunks, strict=True)]:
                    done.result()
        finally:
            torch.set_num_threads(threads)

    # -----------------------------------------------------------------------------------------------------------
    # gradients

    def gradients(
        self, theta: Tensor, images: Tensor, labels: Tensor, *, step: int, out: Tensor | None = None, track: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Gradient and value of each peer's mean cross-entropy on its batch.

        Args:
            theta: float32 ``[P, D]``; not changed.
            images: float32 ``[P, B, C, H, W]``.
            labels: int64 ``[P, B]``.
            step: which dropout masks to use.
            out: ``[P, D]`` for the gradients; None: a new one.
            track: let the batch enter the running statistics. False for a second look at the same batch (flipped
                labels), which an honest peer would not make.

        Returns:
            Gradients ``[P, D]`` and losses ``[P]``.

        Cost: P forwards and backwards. Memory beside ``out``: the activations and gradients of one peer for each
        thread (loop) or of all peers (vmap).

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(theta, images)
        grads = torch.empty_like(theta) if out is None else out
        losses = theta.new_empty(len(self.peers))
        buffers = self.statistics if track else {name: tensor.clone() for name, tensor in self.statistics.items()}

        def work(module: nn.Module, rows: slice) -> None:
            own = {name: tensor[rows] for name, tensor in buffers.items()}
            fill = self._together if self.way == "vmap" else self._one_by_one
            numbers = self.peers[rows]
            fill(module.train(), numbers, step, theta[rows], own, images[rows], labels[rows], grads[rows], losses[rows])

        self._share_out(work)
        return grads, losses

    def _one_by_one(
        self,
        module: nn.Module,
        numbers: Sequence[int],
        step: int,
        theta: Tensor,
        buffers: dict[str, Tensor],
        images: Tensor,
        labels: Tensor,
        grads: Tensor,
        losses: Tensor,
    ) -> None:
        for row, number in enumerate(numbers):
            with torch.enable_grad():
                views = {name: view.detach().requires_grad_() for name, view in self._views(theta[row]).items()}
                own = {name: tensor[row] for name, tensor in buffers.items()}
                masks = self._masks(number, step, images.shape[1])
                logits = functional_call(module, {**views, **own, **masks}, (self._lay_out(images[row]),))
                loss = F.cross_entropy(logits, labels[row])
                own_grads = torch.autograd.grad(loss, list(views.values()))
            torch._foreach_copy_(list(self._views(grads[row]).values()), list(own_grads))
            losses[row] = loss.detach()

    def _together(
        self,
        module: nn.Module,
        numbers: Sequence[int],
        step: int,
        theta: Tensor,
        buffers: dict[str, Tensor],
        images: Tensor,
        labels: Tensor,
        grads: Tensor,
        losses: Tensor,
    ) -> None:
        """All rows in one batched call; the sum of the losses has every peer's gradient in its own row."""
        drawn = [self._masks(number, step, images.shape[1]) for number in numbers]
        masks = {name: torch.stack([mask[name] for mask in drawn]) for name in drawn[0]}

        def loss_of(own: dict[str, Tensor], inputs: Tensor, gold: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(module, own, (inputs,)), gold)

        with torch.enable_grad():
            views = {name: view.detach().requires_grad_() for name, view in self._views(theta).items()}
            loss = vmap(loss_of)({**views, **buffers, **masks}, images, labels)
            own_grads = torch.autograd.grad(loss.sum(), list(views.values()))
        torch._foreach_copy_(list(self._views(grads).values()), list(own_grads))
        losses.copy_(loss.detach())

    def _views(self, theta: Tensor) -> dict[str, Tensor]:
        """Each parameter as a view of ``[D]`` or ``[P, D]``."""
        lead = theta.shape[:-1]
        return {slot.name: theta[..., slot.start : slot.stop].view(*lead, *slot.shape) for slot in self.slots}

    def _lay_out(self, images: Tensor) -> Tensor:
        """Images in the memory layout that the network is fastest in; the copy's strides tell the convolutions."""
        if not self.net.channels_last:
            return images
        return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)

    def _masks(self, peer: int, step: int, rows: int) -> dict[str, Tensor]:
        """Dropout masks of one peer's batch, by buffer name: 0 or 1 / (1 - rate)."""
        key = rng.fold(self.seed, rng.leaf_id("collab/dropout"), step, peer)
        return {
            f"{name}.mask": _mask(key, name, layer.rate, (rows, *layer.shape), self.device)
            for name, layer in self._drops.items()
        }

    def _check(self, theta: Tensor, images: Tensor) -> None:
        wanted = (len(self.peers), self.size)
        if tuple(theta.shape) != wanted or images.shape[0] != len(self.peers) or images.shape[2:] != self.net.shape:
            raise ValueError(
                f"{self.net.name} of {wanted[0]} peers takes parameters {list(wanted)} and images [{wanted[0]}, B, "
                f"{', '.join(map(str, self.net.shape))}], not {list(theta.shape)} and {list(images.shape)}"
            )

    # -----------------------------------------------------------------------------------------------------------
    # evaluation

    def evaluate(
        self,
        theta: Tensor,
        images: Tensor,
        labels: Tensor,
        rows: int | Tensor | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Share of images that each peer's model gets right, with the peer's own running statistics.

        Args:
            theta: float32 ``[P, D]``.
            images: float32 ``[N, C, H, W]``, the same for all peers.
            labels: int64 ``[N]``.
            rows: which images: indices, or how many (a fixed draw of the seed, since test sets may be sorted by
                class); None: all.
            prepare: makes float32 of the images, a few hundred at a time; None: they are.

        Returns:
            Accuracy float64 ``[P]``. A model whose logits are not finite gets none right.
        """
        if isinstance(rows, int):
            rows = evaluation_rows(len(labels), rows, self.seed).to(labels.device)
        if rows is not None:
            images, labels = images[rows], labels[rows]
        right = torch.zeros(len(self.peers), dtype=torch.int64, device=theta.device)

        def work(module: nn.Module, chunk: slice) -> None:
            own = {name: tensor[chunk] for name, tensor in self.statistics.items()}
            with torch.no_grad():  # a thread starts with gradients enabled
                for inputs, gold in zip(images.split(EVALUATE_ROWS), labels.split(EVALUATE_ROWS), strict=True):
                    pixels = inputs if prepare is None else prepare(inputs)
                    logits = self._logits(module.eval(), theta[chunk], own, pixels)  # [P, rows, classes]
                    right[chunk] += ((logits.argmax(-1) == gold) & logits.isfinite().all(-1)).sum(1)

        self._share_out(work)
        return right.double() / len(labels)

    def _logits(self, module: nn.Module, theta: Tensor, buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
        masks = {f"{name}.mask": torch.ones((), device=self.device) for name in self._drops}
        if self.way == "vmap":
            forward = vmap(lambda own: functional_call(module, {**own, **masks}, (inputs,)))
            outputs: Tensor = forward({**self._views(theta), **buffers})
            return outputs
        inputs, logits = self._lay_out(inputs), []
        for row, alone in enumerate(theta):
            own = {name: tensor[row] for name, tensor in buffers.items()}
            logits.append(functional_call(module, {**self._views(alone), **own, **masks}, (inputs,)))
        return torch.stack(logits)


def evaluation_rows(count: int, rows: int, seed: int) -> Tensor:
    """Return a fixed draw of ``rows`` of ``count`` images without replacement, sorted: int64 ``[min(rows, count)]``."""
    return torch.from_numpy(rng.permutation(count, seed, "collab/evaluation"))[:rows].sort().values


def _mask(key: int, name: str, rate: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a dropout mask: 8 random bits an element decide, so rates are multiples of 1/256."""
    count = torch.Size(shape).numel()
    words = rng.philox_blocks(0, -(-count // 16), rng.leaf_id(name), key, device)
    drawn = words.to(torch.int32).view(torch.uint8).view(-1)[:count]
    return (drawn >= round(256 * rate)).to(torch.float32).mul_(1 / (1 - rate)).view(shape)
