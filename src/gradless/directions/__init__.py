"""Random directions: which weights of which leaves are perturbed, and by what."""

from typing import Any, Final

from gradless.directions import base, blocks, masks
from gradless.directions.base import Directions as Directions
from gradless.directions.base import Frozen as Frozen
from gradless.directions.base import gaussian, low_rank, rademacher, scaled, ternary
from gradless.directions.base import no_freeze as no_freeze
from gradless.directions.base import stream_for as stream_for
from gradless.directions.blocks import one_by_one, random_blocks
from gradless.directions.masks import input_norms, masked, sparse
from gradless.gradients import Part

__all__ = [
    "gaussian",
    "input_norms",
    "low_rank",
    "masked",
    "one_by_one",
    "rademacher",
    "random_blocks",
    "scaled",
    "sparse",
    "ternary",
]

DIRECTIONS: Final[dict[str, Part[Any]]] = {
    "rademacher": Part(base.rademacher, "+1 or -1 for every element", "Spall 1992", "one random bit a weight"),
    "gaussian": Part(
        base.gaussian,
        "standard normal, by a table of quantiles",
        "Malladi et al. 2023, arXiv 2305.17333",
        "16 random bits a weight",
    ),
    "low_rank": Part(
        base.low_rank,
        "U V^T / sqrt(rank) for every matrix, V kept for some steps",
        "Chen et al. 2024, arXiv 2410.07698",
        "one random word a row and a column; thin products beside each product with weights",
    ),
    "ternary": Part(
        base.ternary,
        "+1, -1 or, for most elements, 0: for codes of quantised weights",
        "2026, arXiv 2602.03120",
        "16 random bits a weight",
    ),
    "scaled": Part(
        base.scaled,
        "another amplitude for every layer",
        "Malladi et al. 2023, arXiv 2305.17333",
        "that of the scaled directions",
        "one number a leaf",
    ),
    "masked": Part(
        masks.masked, "zero outside masks of one's own", "", "that of the masked directions", "one byte a weight"
    ),
    "sparse": Part(
        masks.sparse,
        "zero outside masks chosen from the weights",
        "Zhang et al. 2024, arXiv 2402.11592",
        "that of the masked directions, and three passes over the weights before the first step",
        "one byte a weight",
    ),
    "random_blocks": Part(
        blocks.random_blocks,
        "some blocks of the model, drawn anew for every query",
        "Park et al. 2025, arXiv 2501.19099",
        "that of the directions in a block",
    ),
    "one_by_one": Part(
        blocks.one_by_one,
        "every block in turn, one a query",
        "Zhang et al. 2024, arXiv 2402.11592",
        "as many queries as there are blocks",
    ),
}
"""Directions by the name of their function."""
