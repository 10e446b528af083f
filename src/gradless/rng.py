"""Random streams from a counter, not from a generator.

Every random number in gradless is a pure function of *what it is for*: Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") keyed by run seed, purpose, step and query, with a counter built
from a hash of the parameter's name and the element's linear index. So a direction does not depend on parameter
order, sharding, dtype, device, library version or on which parameters are frozen, and no global generator is
ever touched. Seeded device generators do not have this property: CUDA normal draws with one seed differ between
GPU models (pytorch#196613), which is why seed logs of other zeroth-order systems do not travel.

Layout of a stream under one 64-bit key::

    counter (4 x 32 bits) = (block low, block high, leaf low, leaf high)
    Rademacher: 128 elements a block, bit ``i % 128``;   Gaussian: 8 elements a block, 16-bit table indices
    low rank: one 32-bit word for each row and, under a second key, for each column: their first r bits are signs
    ternary: 8 elements a block, 16 bits each: the last one is the sign, the others decide whether there is one

`STREAM_VERSION` names this layout; ledgers record it. This module holds the torch and pure-Python reference;
the kernels must give the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

STREAM_VERSION: Final = "philox4x32-10/1"

MASK32: Final = 0xFFFFFFFF
MASK64: Final = 0xFFFFFFFFFFFFFFFF
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
ROUNDS: Final = 10

# Purposes keep streams of one run seed apart.
DIRECTION, ROUNDING, INITIAL, ORDER, PROBE, BASIS, UNIFORM = range(7)


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """One Philox4x32-10 block on plain integers: four counter words and two key words to four words.

    Example:
        >>> [f"{w:08x}" for w in philox((0, 0, 0, 0), (0, 0))]  # Random123 known answer
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        a, b = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK32, (a >> 32) ^ c3 ^ k1, a & MASK32
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def philox_blocks(first: int, count: int, leaf: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """Words of ``count`` consecutive blocks: int64 ``[count, 4]`` holding unsigned 32-bit values.

    Args:
        first: index of the first block.
        count: number of blocks.
        leaf: 64-bit leaf id, the upper half of the counter (`leaf_id`).
        key: 64-bit stream key (`fold`).
        device: where to compute; the bits are the same everywhere.
    """
    block = torch.arange(first, first + count, dtype=torch.int64, device=device)
    c0, c1 = block & MASK32, (block >> 32) & MASK32
    c2, c3 = torch.full_like(block, leaf & MASK32), torch.full_like(block, leaf >> 32)
    k0, k1 = key & MASK32, key >> 32
    for _ in range(ROUNDS):
        # The product wraps as signed 64-bit; its upper word survives the arithmetic shift once it is masked.
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((b >> 32) & MASK32) ^ c1 ^ k0,
            b & MASK32,
            ((a >> 32) & MASK32) ^ c3 ^ k1,
            a & MASK32,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return torch.stack((c0, c1, c2, c3), dim=1)


def fold(key: int, *words: int) -> int:
    """Derive a 64-bit key from a 64-bit key and any number of 64-bit words (Philox as a hash).

    Example:
        >>> fold(0, DIRECTION, 7) != fold(0, DIRECTION, 8)
        True
    """
    for index, word in enumerate(words):
        low, high, *_ = philox((word & MASK32, (word >> 32) & MASK32, index, 0), (key & MASK32, key >> 32))
        key = low | high << 32
    return key


def direction_key(seed: int, step: int, query: int) -> int:
    """Key of the direction of one query of one step of the run ``seed``."""
    return fold(seed, DIRECTION, step, query)


def basis_key(seed: int, epoch: int) -> int:
    """Key of the factor V that the low-rank directions of one epoch share."""
    return fold(seed, BASIS, epoch)


def rounding_key(seed: int, step: int) -> int:
    """Key of the stochastic rounding of one step's update."""
    return fold(seed, ROUNDING, step)


def probe_rounding_key(direction: int) -> int:
    """Key of the stochastic rounding of a probe along a direction; +eps and -eps share it."""
    return fold(direction & MASK64, PROBE)


@functools.lru_cache(maxsize=1 << 14)  # a sampled run names the numbers of every row of every step
def leaf_id(name: str) -> int:
    """64-bit id of a parameter's name (BLAKE2b), the upper half of its counters."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


# ---------------------------------------------------------------------------------------------------------------
# elements of a stream


class Stream(NamedTuple):
    """How the bits under a key become the elements of z.

    A low-rank stream has two keys, packed into one integer: ``basis << 64 | key``. Its elements are sums of ``rank``
    signs; those of a ternary stream are -1, 0 or 1. ``unit`` brings both to unit variance; the other streams have it
    already. A factor stream is one of the two factors: the leaf is ``[n, rank]``, its signs those of row words.
    """

    kind: str  # a key of `KINDS`
    rank: int = 0  # of a low-rank stream; of a ternary one, how many elements of 2**15 are not zero

    @property
    def unit(self) -> float:
        """Factor that gives the drawn elements variance 1."""
        if self.kind == "ternary":
            return float((TERNARY / self.rank) ** 0.5)
        return self.rank**-0.5 if self.kind == "low_rank" else 1.0


KINDS: Final = {"rademacher": 0, "gaussian": 1, "low_rank": 2, "factor": 3, "ternary": 4}  # the kernels' numbers
TERNARY: Final = 1 << 15
RADEMACHER, GAUSSIAN = Stream("rademacher"), Stream("gaussian")
MAX_RANK: Final = 32  # signs in a word


def draw(
    stream: Stream, key: int, leaf: int, start: int, count: int, columns: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Elements ``start .. start + count`` of a stream, before `Stream.unit`: float32 ``[count]``.

    Args:
        stream: which.
        key: its key; two of them in a low-rank stream.
        leaf: 64-bit id of the leaf.
        start: first element, in row-major order.
        count: how many.
        columns: elements of a row of the leaf; only low-rank streams look at it.
        device: where to compute.
    """
    if stream.kind == "low_rank":
        return _low_rank(stream.rank, key, leaf, start, count, columns, device)
    if stream.kind == "factor":
        first, rows, offset = _window(start, count, stream.rank)
        return signs(stream.rank, key & MASK64, leaf, first, rows, device).view(-1)[offset : offset + count]
    if stream.kind == "ternary":
        return ternary(stream.rank, key & MASK64, leaf, start, count, device)
    return (gaussian if stream.kind == "gaussian" else rademacher)(key & MASK64, leaf, start, count, device)


def signs(rank: int, key: int, leaf: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows ``start .. start + count`` of a factor of +1/-1: float32 ``[count, rank]``. A set bit is -1."""
    first, blocks, offset = _window(start, count, 4)
    words = philox_blocks(first, blocks, leaf, key, device).reshape(-1)[offset : offset + count]
    return 1.0 - 2.0 * ((words.unsqueeze(-1) >> torch.arange(rank, device=device)) & 1).float()


def _low_rank(
    rank: int, key: int, leaf: int, start: int, count: int, columns: int, device: torch.device | str
) -> Tensor:
    """The elements of U V^T, whole numbers from -rank to rank."""
    first = start // columns
    rows = (start + count - 1) // columns - first + 1
    u = signs(rank, key & MASK64, leaf, first, rows, device)
    v = signs(rank, key >> 64, leaf, 0, columns, device)
    return (u @ v.T).reshape(-1)[start - first * columns :][:count]


def _window(start: int, count: int, per_block: int) -> tuple[int, int, int]:
    """First block, number of blocks and offset inside them that cover elements ``start .. start + count``."""
    first = start // per_block
    last = (start + count - 1) // per_block
    return first, last - first + 1, start - first * per_block


def rademacher(key: int, leaf: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements ``start .. start + count`` of a +1/-1 stream: float32 ``[count]``. A set bit is -1."""
    first, blocks, offset = _window(start, count, 128)
    words = philox_blocks(first, blocks, leaf, key, device)
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=device)) & 1
    return 1.0 - 2.0 * bits.reshape(-1)[offset : offset + count].float()


def halves(key: int, leaf: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements ``start .. start + count`` of a stream of uniform 16-bit integers: int64 ``[count]``."""
    first, blocks, offset = _window(start, count, 8)
    words = philox_blocks(first, blocks, leaf, key, device)
    pairs = torch.stack((words & 0xFFFF, words >> 16), dim=-1)
    return pairs.reshape(-1)[offset : offset + count]


def gaussian(key: int, leaf: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements ``start .. start + count`` of a standard normal stream: float32 ``[count]``, 16-bit resolution."""
    return normal_table().to(device)[halves(key, leaf, start, count, device)]


def ternary(density: int, key: int, leaf: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements ``start .. start + count``: ``density`` in 2**15 are +1 or -1, others 0, float32 ``[count]``."""
    bits = halves(key, leaf, start, count, device)
    return torch.where((bits >> 1) < density, 1.0 - 2.0 * (bits & 1).float(), 0.0)


@functools.cache
def normal_table() -> Tensor:
    """65,536 equally likely normal quantiles with mean 0 and variance 1: float32 ``[65536]``, ascending.

    Entry j is the quantile of ``(j + 1/2) / 65536``, scaled to unit variance and rounded to a multiple of 2**-16.
    The grid makes the table the same on every machine: a logarithm that differs in its last bit cannot move an
    entry (a test pins the hash). Largest value 4.33.
    """
    inverse = statistics.NormalDist().inv_cdf
    upper = np.array([inverse((j + 0.5) / 65536) for j in range(32768, 65536)])
    upper /= np.sqrt(np.mean(upper**2))
    upper = np.round(upper * 65536) / 65536
    return torch.from_numpy(np.concatenate((-upper[::-1], upper)).astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------
# the few other things a run draws


def normal(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """Initial values of a new parameter: float32 standard normal of ``shape``, a function of seed and name."""
    count = int(np.prod(shape)) if len(shape) else 1
    return gaussian(fold(seed, INITIAL), leaf_id(name), 0, count).reshape(tuple(shape))


def uniform(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1): float64 of ``shape`` with 53 random bits each, a function of seed and name."""
    count = int(np.prod(shape)) if len(shape) else 1
    words = philox_blocks(0, (count + 1) // 2, leaf_id(name), fold(seed, UNIFORM)).reshape(-1, 2)[:count]
    return (((words[:, 0] << 21) | (words[:, 1] >> 11)).double() * 2.0**-53).reshape(tuple(shape))


def permutation(n: int, seed: int, stream: str) -> np.ndarray:
    """A uniform permutation of ``range(n)``: int64 ``[n]``, a function of n, seed and the stream's name.

    Example:
        >>> sorted(permutation(5, seed=0, stream="train").tolist())
        [0, 1, 2, 3, 4]
    """
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    words = philox_blocks(0, n, leaf_id(stream), fold(seed, ORDER)).numpy()
    # 62 random bits a row: a tie, which the stable sort would break by index, is out of reach.
    return np.argsort(words[:, 0] << 30 | words[:, 1] >> 2, kind="stable")
