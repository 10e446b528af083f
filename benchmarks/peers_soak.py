"""A group of processes that is killed, stopped and continued at random for as long as wanted.

    nice python benchmarks/peers_soak.py --folder /var/tmp/soak --out benchmarks/results/peers-soak-cpu.json

Four peers train a tiny model over mutual TLS on the loopback interface. Now and then one of them, or two at once so
that the group stands still, is killed (kill -9) and started again, or stopped (SIGSTOP) and continued. In the end all
weights must be equal, as must the hashes that the peers stated on the way, and nobody may be banned: all are honest.
A peer is slowed down to ``--pace`` seconds a step, so that the machine can do other things beside. Events go to
``events.jsonl`` in the folder as they happen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gradless.peers.demo import group_of as demo_group
from gradless.peers.loopback import LoopbackGroup
from gradless.peers.node_files import METRICS
from gradless.system.machine import processor
from gradless.system.side_files import read_jsonl

PEERS = 4


class Soak:
    """Faults of a group, by a seeded generator."""

    def __init__(self, group: LoopbackGroup, folder: Path, seed: int, pace: float) -> None:
        self.group, self.draw, self.pace = group, random.Random(seed), pace
        self.events = (folder / "events.jsonl").open("a")
        self.begun = time.monotonic()
        self.counts = Counter[str]()
        self.due: list[tuple[float, str, int]] = []  # what ends a fault: (when, "start" or "continue", peer)

    def note(self, event: str, peer: int | None = None, **more: Any) -> None:
        self.counts[event] += 1
        line = {"seconds": round(time.monotonic() - self.begun, 1), "event": event, "peer": peer, **more}
        self.events.write(json.dumps(line) + "\n")
        self.events.flush()

    def start(self, peer: int) -> None:
        self.group.start(peer, "--pace", str(self.pace))

    def fault(self) -> None:
        """Begin a fault of one peer, or of two."""
        down = {peer for _, _, peer in self.due}
        up = [peer for peer in range(PEERS) if peer not in down]
        many = 2 if self.draw.random() < 0.25 else 1
        for peer in self.draw.sample(up, min(many, len(up))):
            now, step = time.monotonic(), self.group.step(peer)
            if self.draw.random() < 0.5:
                self.group.kill(peer)
                self.note("kill", peer, step=step)
                self.due.append((now + self.draw.uniform(0.0, 15.0), "start", peer))
            else:
                self.group.signal(peer, signal.SIGSTOP)
                self.note("stop", peer, step=step)
                self.due.append((now + self.draw.uniform(0.5, 25.0), "continue", peer))

    def mend(self, everything: bool = False) -> None:
        """End the faults whose time is over."""
        for entry in list(self.due):
            when, how, peer = entry
            if everything or time.monotonic() >= when:
                self.due.remove(entry)
                if how == "start":
                    self.start(peer)
                else:
                    self.group.signal(peer, signal.SIGCONT)
                self.note(how, peer)


def agreed_hashes(group: LoopbackGroup) -> tuple[int, int]:
    """How many steps have hashes of two peers or more, and in how many of them these differ."""
    stated: dict[int, set[str]] = {}
    counted = Counter[int]()
    for peer in range(PEERS):
        for line in read_jsonl(group.run_folder(peer) / METRICS)[0]:
            if line.get("event") == "hash":
                stated.setdefault(line["step"], set()).add(line["weights_sha256"])
                counted[line["step"]] += 1
    compared = [step for step, count in counted.items() if count > 1]
    return len(compared), sum(len(stated[step]) > 1 for step in compared)


def soak(folder: Path, minutes: float, seed: int, pace: float, between: float) -> dict[str, Any]:
    """Run the group; return what came of it."""
    names = [f"peer-{peer}" for peer in range(PEERS)]
    steps = max(50, int(0.6 * 60 * minutes / pace))
    group = demo_group(folder / "group", names, 1, steps, "tiny-llama", seed)
    faults = Soak(group, folder, seed, pace)
    try:
        for peer in range(PEERS):
            faults.start(peer)
        group.wait(lambda: all(group.step(peer) > 2 for peer in range(PEERS)), 1800.0)
        end = time.monotonic() + 60 * minutes
        following = time.monotonic() + between
        while time.monotonic() < end and not all(group.result(peer) for peer in range(PEERS)):
            time.sleep(0.2)
            faults.mend()
            for peer, process in list(group.processes.items()):
                if process.poll() not in (None, 0):
                    faults.note("ended", peer, output=group.output(peer)[-500:])
                    del group.processes[peer]
                    faults.due.append((time.monotonic() + 5.0, "start", peer))
            if time.monotonic() >= following:
                following = time.monotonic() + faults.draw.expovariate(1 / between)
                faults.fault()
        faults.mend(everything=True)
        faults.note("no more faults", step=group.step(0))
        done = group.wait(lambda: all(group.result(peer) for peer in range(PEERS)), 60 * max(20.0, minutes / 2))
    finally:
        group.end()
    results = [group.result(peer) or {} for peer in range(PEERS)]
    compared, differing = agreed_hashes(group)
    return {
        "done": done,
        "minutes": round((time.monotonic() - faults.begun) / 60, 1),
        "steps": [result.get("steps") for result in results],
        "equal": len({result.get("weights_sha256") for result in results}) == 1,
        "weights_sha256": results[0].get("weights_sha256"),
        "events": dict(faults.counts),
        "steps_with_compared_hashes": compared,
        "of_them_different": differing,
        "banned": [result.get("banned") for result in results],
        "evidence_files": sum(len(list((group.run_folder(peer) / "evidence").glob("*"))) for peer in range(PEERS)),
    }


def main() -> None:
    """Soak a group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--pace", type=float, default=0.5, help="least seconds of a step")
    parser.add_argument("--between", type=float, default=30.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    result = soak(arguments.folder, arguments.minutes, arguments.seed, arguments.pace, arguments.between)
    facts = {"command": " ".join(["python", *sys.argv]), "processor": processor(), "cores": os.cpu_count(), **result}
    print(json.dumps(facts))
    (arguments.out or arguments.folder / "result.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
