"""What `gradless peers init` puts into a manifest: settings of the command line, of a recipe or of an earlier run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

from gradless import rewards
from gradless.collab.algorithms import COEFFICIENTS
from gradless.collab.config import CollabConfig
from gradless.errors import BadInput
from gradless.peers import log_checks, settings
from gradless.peers import manifest as manifests
from gradless.peers.keys import Card
from gradless.peers.manifest import Manifest, Parent, Timing
from gradless.peers.node_files import BASE, LOG, RESULT, Result
from gradless.peers.node_files import located as located
from gradless.peers.run_folder import RunFolder
from gradless.system.side_files import read_table

EXCISED: Final = "excised.json"
"""What `gradless.peers.excise` writes beside the ledger without some peers."""
OWN: Final = ("template", "label_column", "labels", "delimiter", "encoding")


class Ending(TypedDict):
    """What is read of an excision."""

    steps: int
    digest: str
    weights_sha256: str


def manifest(
    cards: Sequence[Card],
    values: Mapping[str, Any],
    *,
    f: int,
    mode: str,
    recipe: str | None,
    out: Path,
    check_every: int,
    timing: Timing,
    days: int,
    parent: Path | None,
    say: Callable[[str], None],
) -> Manifest:
    """Make and write a manifest; return it.

    Args:
        cards: of the peers.
        values: settings that were given, fields of `CollabConfig` and of own files.
        f: peers that may lie.
        mode: a key of `gradless.peers.settings.MODES`.
        recipe: whose settings to start from.
        out: folder of the manifest.
        check_every: steps between statements of the weights' hash.
        timing: of the agreement.
        days: that certificates are valid.
        parent: folder of the run that this one continues.
        say: receives lines of progress.

    Raises:
        BadInput: cards or settings that cannot be used, or another manifest in ``out``.
    """
    start, ancestry = _start(mode, recipe, parent, values, out, say)
    config = settings.shared(_merged(start, values, mode), peers=len(cards), f=f)
    if config.reward:
        rewards.load(config.reward, config.reward_weight).close()  # refuses what they cannot be given
    data = manifests.make(
        cards,
        config,
        f=f,
        base_sha256=_base_sha256(config, out, say) if config.model else "",
        check_every=check_every,
        timing=timing,
        days=days,
        parent=ancestry,
    )
    parsed = manifests.parse(data)
    manifests.write(out / manifests.FILE, data)
    return parsed


def _start(
    mode: str, recipe: str | None, parent: Path | None, values: Mapping[str, Any], out: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], Parent | None]:
    """Return the settings to start from, and what is said of an earlier run."""
    if parent is not None:
        if recipe or mode != COEFFICIENTS:
            raise BadInput("--continue takes the settings of the run: leave out --recipe and --mode")
        return _continued(parent, values.get("model"), out, say)
    if recipe is not None:
        from gradless.collab import recipes

        return settings.table(recipes.recipe(recipe).base), None
    defaults = CollabConfig(dataset=None if mode == COEFFICIENTS or "model" in values else "digits", payload=mode)  # type: ignore[arg-type]
    usual = settings.table(defaults)
    for name in ("num_train", "num_test"):  # own files are used whole
        if "task" not in values and "dataset" not in usual:
            usual.pop(name)
    return usual, None


def _continued(folder: Path, model: str | None, out: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], Parent]:
    """Return the settings of a finished run, or of an excision; its weights are saved beside the manifest.

    Raises:
        BadInput: no such folder, one whose log or ledger does not hold, or one that states other weights than its
            ledger gives or another end than that of its log.

    Cost: `gradless.peers.log_checks.require`, and a replay.
    """
    from gradless.runs import jobs

    earlier = manifests.read(folder)
    ends = [read_table(folder / RESULT, Result), read_table(folder / EXCISED, Ending)]
    end = next((one for one in ends if one is not None and one.get("status", "done") == "done"), None)
    if not earlier.agreed or end is None:
        raise BadInput(
            f"{folder} holds no finished run of agreed peers: continue one that is done, or what 'excise' wrote"
        )
    run = RunFolder(folder)
    if (folder / LOG).exists():
        log_checks.require(run, say)
    else:
        log_checks.require_settings(run)
    base = out / BASE
    kept = base.exists()  # `replay` refuses other weights than these
    replayed = jobs.replay(folder, until=end["steps"], save=base, model=model)
    if (replayed.sha256, _digest(run, end)) != (end["weights_sha256"], end["digest"]):
        if not kept:
            shutil.rmtree(base)
        raise BadInput(
            f"{folder} says that it ends with the weights {end['weights_sha256'][:12]} and the value "
            f"{end['digest'][:12]}, and its ledger and log end otherwise: continue the folder of another peer"
        )
    say(f"{out / BASE}: weights {end['weights_sha256'][:12]} after {end['steps']} steps of {folder}")
    parent = Parent(run=earlier.sha256, digest=end["digest"], weights_sha256=end["weights_sha256"], steps=end["steps"])
    return settings.table(dataclasses.replace(earlier.config, model=BASE)), parent


def _digest(run: RunFolder, end: Mapping[str, Any]) -> str:
    """Return the digest of the last value of a run; of an excision, which has no log, what it says."""
    return run.log.history.digest.hex() if (run.folder / LOG).exists() else str(end["digest"])


def _merged(start: Mapping[str, Any], values: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """Return settings of a manifest: those that were given over those to start from."""
    from gradless.runs.config_io import parse_options

    chosen = {name: value for name, value in values.items() if not (name == "model" and start.get("model") == BASE)}
    own = {**start.get("own", {}), **{name: chosen.pop(name) for name in OWN if name in chosen}}
    for name in {"rule_options", "method_options"} & chosen.keys():
        chosen[name] = parse_options(chosen[name])
    merged: dict[str, Any] = {**start, **chosen, "payload": mode}
    if own:
        merged["own"] = own
        merged.pop("task", None)
    if isinstance(merged.get("model"), str) and (path := Path(merged["model"])).exists():
        merged["model"] = str(path.resolve())
    return {name: list(value) if isinstance(value, tuple) else value for name, value in merged.items()}


def _base_sha256(config: CollabConfig, out: Path, say: Callable[[str], None]) -> str:
    """Return the hash of the base model's weights. Cost: the model is loaded."""
    from gradless import lm
    from gradless.collab.learners.language import weights_dtype
    from gradless.lm import base_hash

    model = located(str(config.model), out)
    say(f"hashing the weights of {model}")
    dtype = weights_dtype(config) if lm.is_gguf(model) else "float32"
    return base_hash.base_sha256(lm.load(model, dtype=dtype, device="cpu", say=say))
