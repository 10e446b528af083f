"""Random directions: which weights of which leaves are perturbed, and by what."""

from gradless.directions.base import (
    Directions as Directions,
)
from gradless.directions.base import (
    Frozen as Frozen,
)
from gradless.directions.base import (
    gaussian,
    low_rank,
    rademacher,
    scaled,
)
from gradless.directions.base import (
    no_freeze as no_freeze,
)
from gradless.directions.base import (
    stream_for as stream_for,
)
from gradless.directions.blocks import one_by_one, random_blocks
from gradless.directions.masks import input_norms, masked, sparse

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
]
