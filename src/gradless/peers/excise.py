"""Excision: the weights that a log of decided rows gives without those of some peers.

Every value is mixed anew without the rows of the excised peers, f lower by as many, and the coefficients become an
ordinary ledger whose header names the log that it was made from. `gradless replay` rebuilds its weights.

It is *not* unlearning in the sense of a training that the peers never took part in: they moved the weights at which the
others measured, and the others' rows stay as they were. On a toy with two of seven peers who flipped their signs the
accuracy was 0.351 with them, 0.548 after excision, and 0.649 where they had never been.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gradless import ledger
from gradless.errors import BadInput
from gradless.gradients import Update
from gradless.peers import log_checks
from gradless.peers import manifest as manifests
from gradless.peers.run_folder import RunFolder
from gradless.runs import build, replay
from gradless.system.atomic import NEW, write_json

FILE: Final = "excised.json"
LIMITS: Final = (
    "these are the weights of this log without the rows of {names}, not those of a training without {them}: {they} "
    "moved the weights at which the others measured; train on from here with 'gradless peers init --continue {out}'"
)


class Excised(NamedTuple):
    """What an excision wrote."""

    names: tuple[str, ...]
    steps: int
    changed: int
    """Steps whose coefficients differ from those of the run."""
    skipped: int
    """Steps in which too few rows are left for the rule, which move no weight."""
    parent: str
    """Digest of the run's last value: SHA-256, hexadecimal."""
    weights_before: str
    weights_sha256: str

    def to_json(self, out: Path) -> dict[str, Any]:
        """Return what the file of an excision in ``out`` says of it."""
        return {
            "digest": self.parent,
            "steps": self.steps,
            "without": list(self.names),
            "changed_steps": self.changed,
            "weights_sha256": self.weights_sha256,
            "weights_sha256_before": self.weights_before,
            "what": self.limits(out),
        }

    def limits(self, out: Path) -> str:
        """Return what these weights are, and what they are not, in one sentence."""
        several = len(self.names) > 1
        they, them = ("they", "them") if several else ("it", "it")
        return LIMITS.format(names=" and ".join(self.names), they=they, them=them, out=out)


def excise(
    run: Path,
    names: Sequence[str],
    out: Path,
    *,
    model: str | None = None,
    device: str | None = None,
    say: Callable[[str], object] = print,
) -> Excised:
    """Write the ledger of a run without some peers to a new folder.

    Args:
        run: folder of a peer.
        names: of the peers whose rows are left out.
        out: new folder; it appears whole or not at all.
        model: where the base model is now, if not where the run found it.
        device: where to compute the weights; the bits are the same.
        say: takes a line at a time.

    Raises:
        BadInput: no run of agreed peers, a log or ledger that does not hold, an unknown peer, or ``out`` exists.

    Cost: that of `gradless.peers.log_checks.require`, n^2 K for every step, and two replays.
    """
    if out.exists():
        raise BadInput(f"{out} exists already: choose another --out")
    peers = RunFolder(run)
    chosen = frozenset(peers.number(name) for name in names)
    if len(chosen) == len(peers.names):
        raise BadInput("all peers would be left out: name fewer of them")
    log_checks.require(peers, say)
    contents = ledger.read(run / "ledger")
    log = peers.records
    steps = min(log.steps, len(contents.moves))
    if steps < log.steps:
        say(f"the ledger ends at step {steps} of {log.steps} in the log: the steps after it are left out")
    mixed = peers.mixed(steps, without=chosen)
    updates = [_update(contents.moves[step], mixed[step]) for step in range(steps)]
    changed = sum(new != old for new, old in zip(updates, contents.moves, strict=False))
    parent = log.digests[steps - 1].hex() if steps else ""
    with _whole(out) as folder:
        _write(folder, contents, updates, parent, sorted(names))
        for name in (manifests.FILE, build.INITIAL, build.NORMS):
            if (run / name).exists():
                shutil.copyfile(run / name, folder / name)
        before = _weights(run, steps, peers.base_model(model), device)
        after = _weights(folder, steps, peers.base_model(model), device)
        result = Excised(tuple(names), steps, changed, sum(one.skipped for one in updates), parent, before, after)
        write_json(folder / FILE, {"run": peers.manifest.sha256, **result.to_json(out)})
    return result


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes ``out`` at the end, or is gone if anything goes wrong."""
    folder = out.with_name(out.name + NEW)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _update(old: Update, mixed: np.ndarray) -> Update:
    """The update of a step with other coefficients; the learning rates are those of the run."""
    if not np.isfinite(mixed).all():
        return Update(old.step, (), old.lrs, True)
    return Update(old.step, tuple(map(float, mixed)), old.lrs, False)


def _write(
    folder: Path, contents: ledger.Contents, updates: Sequence[Update], parent: str, without: Sequence[str]
) -> None:
    header = {**contents.header, "parent_sha256": parent, "without": ", ".join(without)}
    written = ledger.Ledger(folder / "ledger", header)
    try:
        for update in updates:
            written.append(update)
    finally:
        written.close()


def _weights(folder: Path, steps: int, model: str, device: str | None) -> str:
    built, _ = replay.rebuild(folder, until=steps, model=model, device=device, say=lambda line: None)
    return build.tuned_sha256(built)
