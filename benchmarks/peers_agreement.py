"""What agreement costs: python benchmarks/peers_agreement.py [--out FILE].

Groups of n = 4, 7, 10 and 100 peers decide steps of K = 4 coefficients in one process: a simulated network (delays of 1
to 10 ms one way, nothing lost; probes of 50 ms in the mean) and simulated time, real Ed25519 signatures. Counted a peer
and step: messages, bytes of payload, signature checks, milliseconds of this processor. Then a late join of 20,000 steps
of seven peers: fetching the log, and mixing its rows by two rules, one step after the other as they are trained, and
many at once as they are joined (equal bits; medians of three). Then an audit, which checks every signature of a log of
seven peers. ``--only join`` and ``--only audit`` measure these alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent / "tests" / "helpers"))
sys.path.insert(0, str(ROOT.parent))

from conftest import processor  # noqa: E402

from agreement_helpers import RUN, long_chain  # noqa: E402
from agreement_world import World  # noqa: E402
from gradless.peers.agreed import arrivals_of, mixed_steps  # noqa: E402
from gradless.peers.agreement import Timing  # noqa: E402
from gradless.peers.history import Group  # noqa: E402
from gradless.peers.log import DecidedLog  # noqa: E402
from gradless.peers.log_checks import check_log  # noqa: E402
from gradless.peers.mixing import AgreedRule  # noqa: E402
from gradless.peers.signing import Ed25519Ring  # noqa: E402

WIDTH = 4
GROUPS = ((4, 1, 50), (7, 2, 30), (10, 3, 20), (100, 33, 2))
JOINED = 20_000
AUDITED = 300
RULES = ("trimmed-mean", "nnm+trimmed-mean")


def rings(peers: int) -> list[Ed25519Ring]:
    """Keys of a group."""
    keys = [Ed25519PrivateKey.generate() for _ in range(peers)]
    publics = [key.public_key() for key in keys]
    return [Ed25519Ring(peer, key, publics) for peer, key in enumerate(keys)]


def cost(peers: int, byzantine: int, steps: int) -> dict[str, float]:
    """A peer and step of a group whose network is well."""
    settings = {"steps": steps, "width": WIDTH, "liars": 0, "well_from": 0.0, "rings": rings(peers), "timing": Timing()}
    world = World(1, peers, byzantine, **settings)
    world.probe = [0.05] * peers  # seconds in the mean
    begun = time.process_time()
    simulated = world.run()
    spent = time.process_time() - begun
    shared = peers * steps
    checks = sum(core.counts["checks"] for core in world.cores)
    return {
        "peers": peers,
        "byzantine": byzantine,
        "steps": steps,
        "messages": round(world.messages / shared, 1),
        "bytes": round(world.bytes / shared),
        "signature_checks": round(checks / shared, 1),
        "cpu_ms": round(1000 * spent / shared, 2),
        "simulated_ms_a_step": round(1000 * simulated / steps, 1),
    }


def join() -> dict[str, Any]:
    """Late join of a group of seven; certificates of all steps but the last are not made, since nobody checks them."""
    group, keys = Group(RUN, 7, 2, WIDTH), rings(7)
    decisions = long_chain(group, JOINED, keys, draw=np.random.default_rng(1))
    with tempfile.TemporaryDirectory() as folder:
        log = DecidedLog(Path(folder) / "peers.log", group)
        begun, wall = time.process_time(), time.perf_counter()
        assert log.join(decisions, keys[0]) == JOINED
        joined = {"cpu_seconds": time.process_time() - begun, "seconds": time.perf_counter() - wall}
        mixing = {name: mix(log, AgreedRule(name, peers=7, byzantine=2)) for name in RULES}
        log.close()
        begun = time.process_time()
        DecidedLog(Path(folder) / "peers.log", group).close()
        reread = time.process_time() - begun
    numbers = {name: round(number, 2) for name, number in {**joined, "reread_cpu_seconds": reread}.items()}
    size = sum(len(value) for value, _ in decisions)
    return {"peers": 7, "steps": JOINED, "bytes": size, **numbers, "mixing_cpu_seconds": mixing}


def audit() -> dict[str, Any]:
    """Every certificate and every signed row of the log of a group of seven, as `gradless peers audit` checks them."""
    keys = rings(7)
    settings = {"steps": AUDITED, "width": WIDTH, "liars": 0, "well_from": 0.0, "rings": keys, "timing": Timing()}
    world = World(1, 7, 2, **settings)
    world.probe = [0.05] * 7
    world.run()
    log = world.cores[0].log
    run = SimpleNamespace(log=log, ring=keys[0], group=log.history.group)
    begun = time.process_time()
    finding = check_log(run, lambda line: None)
    spent = time.process_time() - begun
    assert finding.holds
    return {"peers": 7, "steps": AUDITED, "cpu_ms_a_step": round(1000 * spent / AUDITED, 2), "processor": processor()}


def mix(log: DecidedLog, rule: AgreedRule) -> dict[str, float]:
    """Processor seconds of mixing all steps of a log, in two ways that must give the same bits."""

    def one_by_one() -> list[Any]:
        return [rule(arrivals_of(log, step), None, step)[0].tolist() for step in range(len(log))]

    def at_once() -> list[Any]:
        return list(mixed_steps(log, rule, 0, len(log)))

    assert one_by_one() == at_once()
    spent: dict[str, list[float]] = {}
    for _ in range(3):
        for way in (one_by_one, at_once):
            begun = time.process_time()
            way()
            spent.setdefault(way.__name__, []).append(time.process_time() - begun)
    return {name: round(statistics.median(seconds), 3) for name, seconds in spent.items()}


PARTS = {"join": join, "audit": audit}


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "peers-agreement.json")
    parser.add_argument(
        "--only", choices=["join", "audit"], help="measure this alone; the other figures of the file stay"
    )
    asked = parser.parse_args()
    held = json.loads(asked.out.read_text()) if asked.only else {}
    groups = held.get("groups", [])
    for peers, byzantine, steps in () if asked.only else GROUPS:
        groups.append(cost(peers, byzantine, steps))
        print(groups[-1], flush=True)
    parts = {name: measure() for name, measure in PARTS.items() if asked.only in (None, name)}
    print(parts, flush=True)
    facts = {"command": "python benchmarks/peers_agreement.py", "processor": processor(), "width": WIDTH}
    facts = {name: held.get(name, value) for name, value in facts.items()}
    asked.out.write_text(json.dumps({**held, **facts, "groups": groups, **parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
