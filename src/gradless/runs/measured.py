"""What a run measures before its first step, and keeps: how far its weights may walk, and which engine is faster."""

from __future__ import annotations

from typing import Any

from gradless.runs import engine, walks
from gradless.runs.config import RECORDED
from gradless.runs.context import RunContext


def settled(
    run: RunContext, header: dict[str, Any], *, fresh: bool
) -> tuple[RunContext, dict[str, Any], dict[str, Any]]:
    """Return the run with nothing left to measure.

    Collective; `gradless.runs.walks.settled` and `gradless.runs.engine.settled` tell the cost.

    Args:
        run: with its rows encoded.
        header: of its ledger.
        fresh: whether no step is taken: a run that goes on keeps its walk, or the lack of one.

    Returns:
        The run, the header with its settings, and what ``config.json`` records beside them.
    """
    if fresh:
        run = walks.settled(run)
    run, chosen = engine.settled(run)
    records = {RECORDED: chosen.to_json()} if chosen else {}
    return run, engine.in_header(header, run.config, chosen), records
