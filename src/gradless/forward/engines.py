"""The engines by name, and the record of the one that ``auto`` became.

Three engines find the losses at perturbed weights (`gradless.forward.evaluator`); which is fastest depends on the
machine, the model and the batch. ``auto`` stands for the faster one of ``stream`` and ``dual``, as
`gradless.forward.engine_trial` measures it; ``in-place`` writes the weights twice and was never faster than both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

STREAM, DUAL, IN_PLACE = ENGINES = ("stream", "dual", "in-place")
AUTO: Final = "auto"
CHOICES: Final = (AUTO, *ENGINES)
"""What users may ask for."""
MOST_COPIES: Final = 8
"""Points of one batched forward: their activations are in memory together."""
VARIABLE: Final = "GRADLESS_ENGINE"
"""Environment variable that holds what ``auto`` stands for, in place of a measurement."""
TIE: Final = 1.02
"""``dual`` has to be so many times as fast as ``stream``, which needs less memory."""

MEASURED, REMEMBERED, ONLY = "measured", "remembered", "only"


class EngineChoice(NamedTuple):
    """The engine that ``auto`` became, and why."""

    engine: str
    how: str = ONLY
    """``measured`` now, ``remembered`` from an earlier measurement on this machine, or the ``only`` one to take."""
    ratio: float | None = None
    """Median time of a step's evaluations with ``stream`` over that with ``dual``; None: not measured."""
    reason: str = ""
    """Why it was the only one."""
    step: int = 0
    """The step for which it was made: its evaluations are the first ones with this engine."""

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.engine} ({self.reason})"
        when = " earlier" if self.how == REMEMBERED else ""
        if self.engine == STREAM and self.ratio * TIE >= 1:
            return f"{STREAM}, measured as fast as {DUAL} on this machine{when}, with less memory"
        other, ratio = (STREAM, self.ratio) if self.engine == DUAL else (DUAL, 1 / self.ratio)
        return f"{self.engine}, measured {ratio:.2f} x as fast as {other} on this machine{when}"

    def to_json(self) -> dict[str, Any]:
        """What ``config.json``, ``result.json`` and headers of ledgers hold."""
        return {"asked": AUTO, **self._asdict()}

    @staticmethod
    def from_json(values: Any) -> EngineChoice | None:
        """The choice that `to_json` wrote; None for anything else."""
        if not isinstance(values, Mapping) or values.get("engine") not in ENGINES:
            return None
        ratio, step = values.get("ratio"), values.get("step")
        known = isinstance(ratio, float) and math.isfinite(ratio) and ratio > 0
        return EngineChoice(
            values["engine"],
            str(values.get("how", ONLY)),
            ratio if known else None,
            str(values.get("reason", "")),
            step if isinstance(step, int) else 0,
        )


def faster(ratio: float) -> str:
    """The engine to take, by `EngineChoice.ratio`; a tie goes to the one with less memory."""
    return DUAL if ratio > TIE else STREAM
