"""What the forwards of a step share: the front of a model, where none of them perturbs it."""

from __future__ import annotations

from torch import nn

from gradless.errors import BadInput
from gradless.forward.block_order import first_block
from gradless.forward.engines import AUTO, MOST_COPIES, STREAM
from gradless.methods import METHODS
from gradless.optimizer import ZerothOrder
from gradless.runs.config import TuneConfig
from gradless.runs.fixed_engine import generates


def share_front(opt: ZerothOrder, config: TuneConfig, model: nn.Module) -> None:
    """Let the forwards of a step share the blocks that none of them perturbs, where that saves work.

    So it does where a query perturbs some blocks, and where the first blocks are frozen, as under the scheme head. Up
    to eight points share these in the engine ``dual``, too, which ``auto`` may choose. Losses stay the same.

    Args:
        opt: of a run, before its first step.
        config: the run's.
        model: whose parameters it tunes.
    """
    method = METHODS[config.method]
    if opt.engine not in (AUTO, STREAM) or method.differentiates or generates(config):
        return
    alone = opt.engine == STREAM or opt.estimator.forwards(opt.estimator.queries(0)) > MOST_COPIES
    if method.blocks or (alone and _front_is_frozen(opt, config, model)):
        opt.reuse_prefixes(model)


def _front_is_frozen(opt: ZerothOrder, config: TuneConfig, model: nn.Module) -> bool:
    """Whether a block or more lies before all that is tuned."""
    if config.scheme != "head" and not config.freeze:
        return False  # adapters and all weights begin with the first block
    try:
        return first_block(model, [leaf.name for leaf in opt.leaves]) > 0
    except BadInput:  # no list of blocks
        return False
