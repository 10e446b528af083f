"""What a peer that starts again remembers of its reward functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradless.collab.learners.rewarded import Rewarded
from gradless.runs.replay import shared_reward
from gradless.system.side_files import read_jsonl

EVENT = "rewards"


def resumed(texts: Rewarded, metrics: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Take up what an earlier process of this peer has noted; return the line of this one.

    Args:
        texts: of this process; goes on counting the steps that could compare nothing.
        metrics: the peer's ``metrics.jsonl``.
        warn: told of functions whose files have changed since.
    """
    lines = read_jsonl(metrics)[0] if metrics.exists() else []
    texts.equal_steps += sum(1 for line in lines if line.get("event") == "step" and line.get("equal"))
    sources = {shared_reward(name): sha256 for name, sha256 in texts.sources.items()}
    earlier = next((line.get("sha256") for line in reversed(lines) if line.get("event") == EVENT), None)
    for name, sha256 in sources.items():
        if isinstance(earlier, dict) and earlier.get(name, sha256) != sha256:
            warn(f"{name} has changed since this peer began: the steps that follow are measured by what it is now")
    return {"event": EVENT, "sha256": sources}
