"""The demonstration: a group of processes on this machine, one of which lies, ends with equal weights."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gradless import rng
from gradless.collab.learners.alone import one_peer
from gradless.errors import BadInput
from gradless.peers import excise, own_data
from gradless.peers.loopback import LoopbackGroup
from gradless.peers.manifest import Timing
from gradless.peers.node_files import EVIDENCE, METRICS, new_folder
from gradless.system.side_files import read_jsonl

WORDS: Final = {
    "0": ("dull", "boring", "awful", "clumsy", "tedious", "bland"),
    "1": ("lovely", "great", "moving", "clever", "funny", "bright"),
}
SENTENCES: Final = ("a {} film", "what a {} story", "the plot is {}", "{} from start to end", "I found it {}", "so {}")
ROWS: Final = 48
"""Training rows of a peer."""
TEST_ROWS: Final = 48
SECONDS: Final = 600.0
"""That the group may take; a tiny model needs one minute."""
LIES: Final = {
    "equivocate": "signed two rows",
    "propose": "signed two proposals",
}
"""What a liar is convicted of."""


def demo(
    out: Path, *, peers: int, liar: str, steps: int, model: str, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run a group of processes with a liar, compare their weights, and leave its rows out of the log.

    Args:
        out: new folder for all of it.
        peers: n, at least 4.
        liar: a key of `gradless.peers.liars.LIARS`, or ``none``.
        steps: of the run.
        model: that is tuned.
        seed: of rows and directions.
        say: receives a line for each thing that happened.

    Returns:
        Whether all honest weights are equal, their hash, who was banned from which step on, and the bytes of a step.

    Raises:
        BadInput: too few peers, or a group that could not be started.
    """
    if peers < 4:
        raise BadInput(f"{peers} peers cannot stand a liar: give at least 4")
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty: choose another --out, or delete it")
    f, names = (peers - 1) // 3, [f"peer-{peer}" for peer in range(peers)]
    begun = time.monotonic()
    with new_folder(out):
        group = group_of(out, names, f, steps, model, seed)
    lies = f"{names[-1]} lies ({liar})" if liar != "none" else "nobody lies"
    say(f"{peers} peers on 127.0.0.1, f = {f}, {lies}; fingerprint {group.manifest.fingerprint}")
    honest = list(range(peers if liar == "none" else peers - 1))
    try:
        for peer in range(peers):
            group.start(peer, *(() if peer in honest else ("--liar", liar)))
        told = _Bans(group, say)
        if not group.wait(lambda: told.look() and all(group.result(peer) for peer in honest), SECONDS, running=honest):
            raise BadInput(f"the group stands still at step {group.step(0)}: see {out / names[0] / 'log'}")
        group.wait(lambda: group.result(peers - 1) is not None, 5.0)
    finally:
        group.end()
    result = _compared(group, honest, steps, say)
    if liar != "none":
        result["excised"] = _excised(group, names[-1], say)
    result["seconds"] = round(time.monotonic() - begun, 1)
    say(f"{result['seconds']:.0f} s; the runs are in {out}")
    return result


def group_of(out: Path, names: list[str], f: int, steps: int, model: str, seed: int, **others: Any) -> LoopbackGroup:
    """Return a group whose peers have rows of their own, keys and a manifest; nothing is started.

    ``others`` are more settings of the run.
    """
    test = out / "test.csv"
    out.mkdir(parents=True, exist_ok=True)
    _write_rows(test, TEST_ROWS, seed, len(names))
    own = []
    for peer, name in enumerate(names):
        _write_rows(out / f"{name}.csv", ROWS, seed, peer)
        own.append(["--train", str(out / f"{name}.csv"), "--test", str(test)])
    settings: dict[str, Any] = {
        "model": model,
        "scheme": "full" if model.startswith("tiny") else "lora",
        "queries": 4,
        "steps": steps,
        "batch_size": 8,
        "lr": 1e-3,
        "seed": seed,
        "template": "{text} It was",
        "label_column": "label",
        "labels": "0=bad,1=good",
        **others,
    }
    timing = Timing(grace=1.0, base=4.0)  # several models share each core of this machine
    return LoopbackGroup(out, names, f=f, settings=settings, own=own, timing=timing, check_every=max(1, steps // 4))


def _write_rows(path: Path, count: int, seed: int, peer: int) -> None:
    """Write sentences with a good or a bad word; each peer has other ones."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for row in range(count):
            label = str(row % 2)
            word = rng.fold(seed, peer, row)
            adjective, sentence = WORDS[label][word % len(WORDS[label])], SENTENCES[word // 64 % len(SENTENCES)]
            writer.writerow((sentence.format(adjective), label))


class _Bans:
    """Says who is banned, as peer 0 notes it."""

    def __init__(self, group: LoopbackGroup, say: Callable[[str], None]) -> None:
        self.group, self.say, self.known = group, say, set[str]()

    def look(self) -> bool:
        """Say what is new; always true."""
        folder = self.group.run_folder(0)
        for line in read_jsonl(folder / METRICS)[0]:
            if line.get("event") == "banned" and line["peer"] not in self.known:
                self.known.add(line["peer"])
                name, step = self.group.names[line["peer"]], line["step"]
                what = line.get("what", "signed two messages")
                self.say(
                    f"step {step - 1:3}  {name} {what}: {EVIDENCE}/{line['evidence']}, banned by all from step {step}"
                )
        return True


def _compared(group: LoopbackGroup, honest: list[int], steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Compare the weights of all peers."""
    results = [group.result(peer) for peer in range(len(group.names))]
    hashes = [result["weights_sha256"] if result else None for result in results]
    mine = hashes[0]
    first = results[0]
    assert first is not None
    sent = statistics.fmean(result["bytes_per_step"] for peer in honest if (result := results[peer]) is not None)
    say(
        f"step {steps:3}  weights {str(mine)[:12]} at {hashes.count(mine)} of {len(hashes)} peers; "
        f"{sent / 1000:.1f} kB a peer and step, agreement {1000 * (first['agree_seconds'] or 0):.0f} ms a step"
    )
    return {
        "equal": all(hashes[peer] == mine for peer in honest),
        "weights_sha256": mine,
        "peers_with_it": hashes.count(mine),
        "steps": first["steps"],
        "banned": first["banned"],
        "bytes_per_step": round(sent),
        "agree_seconds": first["agree_seconds"],
        "accuracy": first["accuracy"],
    }


def _excised(group: LoopbackGroup, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Leave a peer's rows out of the log, and say which weights that gives."""
    out, config = group.folder / f"without-{name}", group.manifest.config
    excised = excise.excise(group.run_folder(0), [name], out, say=lambda line: None)
    own = own_data.merged(config.own, {"train": group.own[0][1], "test": group.own[0][3]})
    one = one_peer(config, 0, own=own, folder=out)
    after = float(one.learner.accuracy(None)[0])
    one.close()
    before = float((group.result(0) or {})["accuracy"])
    say(
        f"without {name} (excised): weights {excised.weights_sha256[:12]}, {excised.changed} of {excised.steps} steps "
        f"changed; accuracy {before:.3f} -> {after:.3f}"
    )
    return {
        "weights_sha256": excised.weights_sha256,
        "changed_steps": excised.changed,
        "accuracy": after,
        "folder": str(out),
    }
