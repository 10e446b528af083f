"""What agreement costs a peer and step over Zenoh on the loopback interface: milliseconds, bytes, messages, CPU.

    python benchmarks/peers_network.py --out benchmarks/results/peers-network-cpu.json

Every peer is a process with mutual TLS, Ed25519 and logs on the disk, as in ``gradless peers run``, but without a
model: its rows are random numbers, so that all time is that of agreement. The processes share the cores of this
machine, so a step takes longer here than between machines with a core each; CPU seconds are those of each process by
itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from gradless.system.machine import processor

SECONDS = 300.0


def worker(folder: Path, peer: int, steps: int) -> None:
    """One peer: agree on rows of random numbers, and write what it cost."""
    import torch

    from gradless import rng
    from gradless.peers import keys, manifest
    from gradless.peers.agreed import Agreed
    from gradless.peers.agreement import Agreement, Timing
    from gradless.peers.history import Group
    from gradless.peers.log import DecidedLog
    from gradless.peers.part import ring_of
    from gradless.peers.votes import Votes
    from gradless.peers.zenoh_link import ZenohLink

    torch.set_num_threads(1)
    run = manifest.read(folder / "run")
    identity = keys.load(folder / run.names[peer] / "me")
    home = folder / run.names[peer]
    ring = ring_of(run, identity)
    group = Group(run.run, len(run.peers), run.f, run.config.queries)
    log, votes = DecidedLog(home / "peers.log", group), Votes(home / "votes.wal", run.run, complete=True)
    link = ZenohLink(run, identity)
    end = time.monotonic() + SECONDS
    while len(link.alive()) < len(run.peers) and time.monotonic() < end:
        time.sleep(0.05)
    messages = Counter[str]()
    send = link.send

    def counted(payload: bytes, to: int | None = None) -> None:
        messages["sent"] += len(run.peers) - 1 if to is None else 1
        send(payload, to)

    link.send = counted  # type: ignore[method-assign]
    timing = Timing(grace=run.contents.timing.grace, base=run.contents.timing.base)
    agreement = Agreement(peer, group, ring=ring, votes=votes, log=log, timing=timing, now=time.monotonic())
    agreed = Agreed(link, agreement, log)
    rows = rng.uniform(0, f"peer/{peer}", (steps, group.width)).float()
    agreed.exchange(0, "coefficients", rows[:1])  # all are there
    usage, sent, began = resource.getrusage(resource.RUSAGE_SELF), link.sent, time.monotonic()
    messages.clear()
    seconds = []
    for step in range(1, steps):
        begun = time.monotonic()
        agreed.exchange(step, "coefficients", rows[step : step + 1])
        seconds.append(time.monotonic() - begun)
    wall, spent = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = spent.ru_utime + spent.ru_stime - usage.ru_utime - usage.ru_stime
    rounds = Counter(facts.round for facts in agreed.facts.values())
    heard = statistics.fmean(len(facts.heard) for facts in agreed.facts.values())
    result = {
        "median_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * statistics.quantiles(seconds, n=100)[98],
        "mean_ms": 1000 * wall / len(seconds),
        "cpu_ms": 1000 * cpu / len(seconds),
        "bytes": (link.sent - sent) / len(seconds),
        "messages": messages["sent"] / len(seconds),
        "rows_of_a_value": heard,
        "later_rounds": sum(count for round, count in rounds.items() if round),
        "digest": log.history.digest.hex(),
    }
    (home / "cost.json").write_text(json.dumps(result))
    time.sleep(3.0)  # others may lack the last certificate
    agreed.close()
    link.close()
    os._exit(0)


def measured(peers: int, width: int, steps: int) -> dict[str, object]:
    """What a group costs."""
    from gradless.peers import keys, prepare
    from gradless.peers.loopback import free_ports
    from gradless.peers.manifest import Timing

    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        names = [f"peer-{peer}" for peer in range(peers)]
        ports = free_ports(peers)
        cards = [
            keys.make(one, f"tls/127.0.0.1:{port}", folder / one / "me") for one, port in zip(names, ports, strict=True)
        ]
        f = (peers - 1) // 3
        settings = {
            "model": "tiny-llama",
            "scheme": "full",
            "queries": width,
            "steps": steps,
            "template": "{text}",
            "label_column": "label",
            "labels": "0=a,1=b",
        }
        prepare.manifest(
            cards,
            settings,
            f=f,
            mode="coefficients",
            recipe=None,
            out=folder / "run",
            check_every=50,
            timing=Timing(),
            days=2,
            parent=None,
            say=lambda line: None,
        )
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker", name, "--steps", str(steps), "--peer"]
        processes = [subprocess.Popen([*command, str(peer)], env=env) for peer in range(peers)]
        try:
            for process in processes:
                process.wait(SECONDS)
            costs = [json.loads((folder / one / "cost.json").read_text()) for one in names]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
    assert len({cost.pop("digest") for cost in costs}) == 1, "the peers hold different values"
    return {"peers": peers, "f": f, "coefficients": width, "steps": steps} | {
        name: round(statistics.median(cost[name] for cost in costs), 2) for name in costs[0]
    }


def main() -> None:
    """Measure groups one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 7])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--peer", type=int)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.peer, arguments.steps)
        return
    groups = []
    for peers in arguments.peers:
        groups.append(measured(peers, arguments.width, arguments.steps))
        print(json.dumps(groups[-1]), flush=True)
    if arguments.out:
        facts = {
            "command": " ".join(["python", *sys.argv]),
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_before": os.getloadavg(),
            "python": platform.python_version(),
            "groups": groups,
        }
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
