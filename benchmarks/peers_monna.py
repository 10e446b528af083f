"""Whether peers on a network end where the simulation of the same recipe ends: ``monna-digits``, several seeds.

    python benchmarks/peers_monna.py [--json benchmarks/results/peers-monna.json] [--seeds 1 2 3 4 5] [--steps 300]
        [--links local zenoh] [--liars 0 3]

Sixteen peers with MoNNA's rule, up to three of them liars. On the network each is a learner of its own in a thread of
its own; models travel over an in-process link with seeded delays, or over Zenoh with mutual TLS on the loopback
interface, signed with Ed25519, and count after a quorum's echoes. A peer goes on with the first n - f. The simulation
delivers by ``first``. Without liars, and with three: in the simulation they send minus the honest mean; on the network
minus their own honest model, since there nobody knows all honest rows. The replay feeds the network's recorded arrivals
to the simulated transport: equal bits or not. Runs that the file holds already are not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from gradless.collab.config import CollabConfig
from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.loop import take_steps
from gradless.collab.learners.side_by_side import SideBySide
from gradless.collab.network.delivery import Delivery
from gradless.collab.network.exchange import Recorded, settle_alone
from gradless.collab.network.simulated import ReplayedNetwork
from gradless.collab.recipes import RECIPES
from gradless.collab.simulation.build import mixing_rule
from gradless.collab.simulation.simulate import simulate
from gradless.peers import keys
from gradless.peers.latest import Latest, settle_with
from gradless.peers.link import LocalGroup
from gradless.peers.loopback import LoopbackGroup
from gradless.peers.mixed_part import MixedPart
from gradless.peers.part import ring_of
from gradless.peers.signing import Ed25519Ring
from gradless.peers.zenoh_link import ZenohLink
from gradless.system.atomic import write_json
from gradless.system.progress import Reporter

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from conftest import processor  # noqa: E402

DELAY = 0.002  # mean seconds of a message on the in-process link
CONNECTED = 120.0  # seconds that connections may take
Connections = tuple[list[Any], list[Ed25519Ring], bytes]
"""Links and keys of all peers, and the name of the run."""


class Mirror:
    """A liar: computes what an honest peer does and sends the negative of it."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer

    def exchanges(self, step: int) -> tuple[str, ...]:
        """See `gradless.collab.learners.parameters.Peer`."""
        tags: tuple[str, ...] = self.peer.exchanges(step)
        return tags

    def propose(self, step: int, tag: str) -> Tensor:
        """See `gradless.collab.learners.parameters.Peer`."""
        row: Tensor = -self.peer.propose(step, tag)
        return row

    def accept(self, step: int, tag: str, mixed: Tensor) -> None:
        """See `gradless.collab.learners.parameters.Peer`. Its own mirrored model was the pivot, so it takes nothing."""


def configured(seed: int, liars: int, steps: int) -> CollabConfig:
    """Return the recipe with the network's delivery."""
    base = RECIPES["monna-digits"].base
    attack = "sign-flip" if liars else "none"
    return dataclasses.replace(
        base, seed=seed, steps=steps, attack=attack, attackers=liars, delivery=Delivery(mode="first"), eval_rows=None
    )


def simulated(config: CollabConfig) -> dict[str, Any]:
    """Run the simulation."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, Path(folder) / "run", reporter=Reporter(quiet=True))
    return {"accuracy": result["accuracy"], "seconds": time.perf_counter() - begun}


@contextlib.contextmanager
def local(config: CollabConfig) -> Iterator[Connections]:
    """Connect all peers in this process."""
    signing = [Ed25519PrivateKey.generate() for _ in range(config.peers)]
    publics = [key.public_key() for key in signing]
    rings = [Ed25519Ring(me, key, publics) for me, key in enumerate(signing)]
    yield LocalGroup(config.peers, seed=config.seed, delay=DELAY).links(), rings, bytes(16)


@contextlib.contextmanager
def zenoh(config: CollabConfig) -> Iterator[Connections]:
    """Connect all peers over mutual TLS on the loopback interface."""
    names = [f"peer-{peer}" for peer in range(config.peers)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"seed": config.seed, "steps": config.steps}
        group = LoopbackGroup(
            folder, names, f=config.byzantine, settings=settings, mode="parameters", recipe="monna-digits"
        )
        identities = [keys.load(folder / name / "me") for name in names]
        limit = MixedPart.message_limit(group.manifest)
        links = []
        for identity in identities:
            links.append(ZenohLink(group.manifest, identity, limit=limit))
            stack.callback(links[-1].close)
        end = time.monotonic() + CONNECTED
        while any(len(link.alive()) < len(names) for link in links):
            assert time.monotonic() < end, "the peers do not find each other"
            time.sleep(0.1)
        yield links, [ring_of(group.manifest, identity) for identity in identities], group.manifest.run


LINKS: dict[str, Callable[[CollabConfig], contextlib.AbstractContextManager[Connections]]] = {
    "local": local,
    "zenoh": zenoh,
}


def networked(config: CollabConfig, link: str) -> dict[str, Any]:
    """Run the peers over a link; the attackers mirror their models. Data are dealt as in the simulation."""
    with LINKS[link](config) as connections:
        return _networked(config, *connections)


def _networked(config: CollabConfig, links: list[Any], rings: list[Ed25519Ring], run: bytes) -> dict[str, Any]:
    count, liars, rule = config.peers, config.attackers or 0, mixing_rule(config)
    # A simulation deals the rows to its honest peers; on the network liars have rows like anybody, of their own deal.
    honest = [
        one_peer(dataclasses.replace(config, peers=count - liars, byzantine=0), me) for me in range(count - liars)
    ]
    false = [one_peer(config, me) for me in range(count - liars, count)]
    learners = [*(peer.learner for peer in honest), *(Mirror(peer.learner) for peer in false)]
    width = next(iter(honest[0].learner.weights()))[1].numel()
    transports = [Latest(links[me], rings[me], run=run, width=width, byzantine=config.byzantine) for me in range(count)]
    recorded = [Recorded(transport) for transport in transports]
    settle = settle_with(rule, config.seed)
    begun = time.perf_counter()
    work = [lambda me=me: take_steps(learners[me], recorded[me], settle, config.steps) for me in range(count)]
    in_threads(work)
    seconds = time.perf_counter() - begun
    for transport in transports:
        transport.close()
    accuracy = [peer.learner.accuracy()[0] for peer in honest]
    result = {
        "accuracy": accuracy,
        "seconds": seconds,
        "bytes_per_peer_step": statistics.fmean(link.sent for link in links) / config.steps,
        "overtaken": sum(transport.counts["overtaken"] for transport in transports),
    }
    return result if liars else result | {"replay_has_equal_bits": replayed(config, recorded, learners)}


def replayed(config: CollabConfig, recorded: Sequence[Recorded], learners: Sequence[Any]) -> bool | None:
    """Return whether the recorded arrivals give the simulated transport the same models; None if some were lost."""
    if any(one.heard.keys() != recorded[0].heard.keys() for one in recorded):
        return None
    ears = {key: [one.heard[key] for one in recorded] for key in recorded[0].heard}
    again = SideBySide([one_peer(dataclasses.replace(config, byzantine=0), me).learner for me in range(config.peers)])
    rule = mixing_rule(config)
    take_steps(again, ReplayedNetwork(ears), lambda got, rows, step: settle_alone(rule, got, rows), config.steps)
    pairs = zip(again.peers, learners, strict=True)
    return all(torch.equal(left.theta, right.theta) for left, right in pairs)  # type: ignore[attr-defined]


def in_threads(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all at once."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(one) for one in work]]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation over seeds of the mean and the worst honest accuracy."""
    means, worst = [statistics.fmean(run["accuracy"]) for run in runs], [min(run["accuracy"]) for run in runs]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (means, worst)]
    return {
        **{"mean": statistics.fmean(means), "mean_std": spread[0]},
        **{"worst": statistics.fmean(worst), "worst_std": spread[1]},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/peers-monna.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--liars", type=int, nargs="+", default=[0, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, Any]]] = json.loads(args.json.read_text())["runs"] if args.json.exists() else {}
    ways: dict[str, Callable[[CollabConfig], dict[str, Any]]] = {"simulation": simulated}
    ways |= {f"network ({link})": functools.partial(networked, link=link) for link in args.links}
    for seed, liars, (way, run) in itertools.product(args.seeds, args.liars, ways.items()):
        name = f"{way}, {liars} liars, {args.steps} steps"
        if any(result["seed"] == seed for result in runs.get(name, ())):
            continue
        result = run(configured(seed, liars, args.steps))
        runs.setdefault(name, []).append({"seed": seed, **result})
        print(f"{name}, seed {seed}: {statistics.fmean(result['accuracy']):.4f}", flush=True)
        page = {
            "recipe": "monna-digits",
            "delay": DELAY,
            "machine": {"processor": processor(), "torch": torch.__version__},
            "summary": {name: summary(results) for name, results in sorted(runs.items())},
            "runs": dict(sorted(runs.items())),
        }
        write_json(args.json, page)


if __name__ == "__main__":
    main()
