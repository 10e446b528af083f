"""What the others lose when a peer is killed, and how soon it is back: kill -9 and restart, again and again.

    python benchmarks/peers_faults.py --out benchmarks/results/peers-faults-cpu.json

Four processes train a tiny model over mutual TLS on the loopback interface. A killed peer that led the step costs the
others a round's timer, any other one a ``grace``: the time that its step took beyond the median is reported for both.
In the end all weights must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gradless.peers.demo import group_of
from gradless.peers.loopback import LoopbackGroup
from gradless.peers.node_files import METRICS
from gradless.system.machine import processor
from gradless.system.side_files import read_jsonl

PEERS = 4
WATCHED = 6
"""Steps after a kill in which its costs are looked for."""
LIMIT = 120.0


def lines(group: LoopbackGroup, peer: int) -> dict[int, dict[str, Any]]:
    """The steps of a peer by number."""
    events = read_jsonl(group.run_folder(peer) / METRICS)[0]
    return {line["step"]: line for line in events if line["event"] == "step"}


def passed(group: LoopbackGroup, peer: int, step: int) -> bool:
    """Whether a peer comes to a step."""
    return group.wait(lambda: max(lines(group, peer), default=0) >= step, LIMIT)


def back(group: LoopbackGroup, peer: int) -> bool:
    """Whether a peer comes to where the first one is."""
    return group.wait(lambda: group.step(peer) >= group.step(0) - 1 > 0, LIMIT)


def kills(group: LoopbackGroup, count: int, pace: float) -> list[dict[str, Any]]:
    """Kill peers in turn; what each kill cost."""
    costs = []
    for number in range(count):
        victim = 1 + number % (PEERS - 1)
        assert group.wait(lambda: group.step(0) > 5, LIMIT)
        usual = statistics.median(line["seconds"] for line in list(lines(group, 0).values())[-20:])
        group.kill(victim)
        last = max(lines(group, 0), default=0)
        assert passed(group, 0, last + WATCHED), "the survivors stand still"
        after = [line for step, line in lines(group, 0).items() if last <= step <= last + WATCHED]
        worst = max(after, key=lambda line: line["seconds"])
        begun = time.monotonic()
        group.start(victim, "--pace", str(pace))
        assert back(group, victim), "the peer does not come back"
        costs.append(
            {
                "victim": victim,
                "led": any(line["round"] for line in after),
                "usual_seconds": round(usual, 3),
                "lost_seconds": round(worst["seconds"] - usual, 3),
                "back_after_seconds": round(time.monotonic() - begun, 1),
            }
        )
        print(json.dumps(costs[-1]), flush=True)
    return costs


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--pace", type=float, default=0.2, help="least seconds of a step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        steps = int(arguments.kills * 20 / arguments.pace)
        group = group_of(Path(name) / "group", [f"peer-{peer}" for peer in range(PEERS)], 1, steps, "tiny-llama", 0)
        try:
            for peer in range(PEERS):
                group.start(peer, "--pace", str(arguments.pace))
            costs = kills(group, arguments.kills, arguments.pace)
            for peer in range(PEERS):  # without --pace, to the end
                group.kill(peer)
                group.start(peer)
            assert group.wait(lambda: all(group.result(peer) for peer in range(PEERS)), 600.0)
            results = [group.result(peer) or {} for peer in range(PEERS)]
        finally:
            group.end()
        timing = group.manifest.contents.timing
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
        "cores": os.cpu_count(),
        "grace_seconds": timing.grace,
        "timer_seconds": timing.grace + timing.base,
        "equal": len({result["weights_sha256"] for result in results}) == 1,
        "banned": [result["banned"] for result in results],
        "most_lost": {
            role: max((kill["lost_seconds"] for kill in costs if kill["led"] is led), default=None)
            for role, led in (("by a follower", False), ("by a leader", True))
        },
        "kills": costs,
    }
    print(json.dumps({name: value for name, value in facts.items() if name != "kills"}))
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
