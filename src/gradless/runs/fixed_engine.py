"""The engine of a run where nothing may be measured: in plans, benchmarks and groups of peers."""

from __future__ import annotations

from gradless.forward.engines import AUTO, DUAL, MOST_COPIES, STREAM
from gradless.runs.config import TuneConfig
from gradless.runs.reward_settings import GENERATED, named


def generates(config: TuneConfig) -> bool:
    """Return whether the loss is of text that the model writes."""
    return config.objective in GENERATED or (config.objective is None and bool(named(config)))


def fixed_engine(config: TuneConfig) -> str:
    """Return the engine of a run that asks for none, where nothing may be measured: benchmarks and groups of peers.

    Their results must not depend on the machine's load, since the last bits of a loss depend on the engine.
    """
    from gradless.methods import METHODS
    from gradless.ranks import DIRECTIONS

    if config.engine not in (None, AUTO):
        return str(config.engine)
    method = METHODS[config.method]
    generated = generates(config)
    if generated and method.rows and config.split != DIRECTIONS:
        return AUTO  # which measures nothing there: it follows from the sizes of the weights
    # Text is generated token by token, with decisions that several copies cannot take at once.
    # Several copies cannot share what lies before the first block that one of them perturbs; all points of a step can.
    queries = config.queries or method.options().get("queries", 1)
    behind_all = config.scheme == "head" and 2 * queries > MOST_COPIES
    # The last bits of a loss may depend on how many points are evaluated at once.
    one_by_one = generated or method.blocks or behind_all or config.split == DIRECTIONS
    return STREAM if one_by_one or not config.device.startswith("cpu") else DUAL
