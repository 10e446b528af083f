"""What is there already of a run: whether it is finished, and the ledger that it goes on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gradless import ledger
from gradless.errors import BadInput
from gradless.methods import METHODS
from gradless.runs import build, extend, replay, trackers
from gradless.runs.build import BEST
from gradless.runs.config import TuneConfig, difference, read_config
from gradless.runs.context import RunContext
from gradless.runs.facts import FILE as FACTS
from gradless.runs.record import DONE, INTERRUPTED, read_result
from gradless.system import side_files
from gradless.system.progress import Reporter


def finished(config: TuneConfig, folder: Path, resume: bool, reporter: Reporter) -> dict[str, Any] | None:
    """Return the result of the run in ``folder`` if it has come to its end, else None."""
    _check_folder(config, folder, resume)
    path, result = folder / "result.json", read_result(folder)
    if result is None and path.exists():
        side_files.put_aside(path, reporter.say)
    if result is None or result["status"] == INTERRUPTED:
        return None
    if result["status"] == DONE and result["steps"] < config.steps:  # more are asked for now
        return None
    if (folder / "ledger").exists() and len(ledger.read(folder / "ledger").moves) < result["steps"]:
        reporter.say(f"the ledger holds fewer than the {result['steps']} steps of {path}: the run goes on")
        return None
    moved = read_config(folder).data != config.data
    if moved and build.load_task(config)[1].fingerprint != result["data_sha256"]:
        raise BadInput(f"{folder} holds a run on other data: restore them, or choose another --out")
    return result


def _check_folder(config: TuneConfig, folder: Path, resume: bool) -> None:
    """Refuse a folder that is not free and holds another run."""
    if (folder / "config.json").exists():
        if not resume:
            raise BadInput(f"{folder} already holds a run: add --resume to continue it, or choose another --out")
        held = read_config(folder)
        changed = difference(dataclasses.replace(held, steps=config.steps), config)
        if changed:
            raise BadInput(f"{folder} holds a run with other settings ({changed}): choose another --out")
        if held.steps != config.steps:
            extend.check(held, config, folder)
    elif (folder / "ledger").exists():
        raise BadInput(f"{folder} holds a ledger without its config.json: restore that file, or choose another --out")


def continued(run: RunContext, header: dict[str, Any]) -> ledger.Contents | None:
    """Return the ledger to go on from, if there is one; it must be that of this very run."""
    config, folder = run.config, run.folder
    if not (folder / "ledger").exists():
        return None
    contents = ledger.read(folder / "ledger")
    if contents.torn_bytes:
        run.reporter.say(
            f"the ledger ends in {contents.torn_bytes} bytes that are no record of a step: they are cut, and a copy of "
            f"the file is kept beside it; {len(contents.moves)} steps are intact"
        )
    replay.check_header(contents.header, run.model)
    replay.check_config(contents.header, config, len(contents.moves))
    extend.check_auto_rate(config, contents.moves)
    if contents.header["data_sha256"] != header["data_sha256"]:
        raise BadInput("the data differ from those that this run began with: restore them, or start a new run")
    unmeasured = config.lr == "auto" and config.walk is None  # of a release that measured no walk
    replays = METHODS[config.method].replays
    if (replays or not contents.moves) and (contents.moves or not unmeasured):
        return contents
    if not replays:
        run.reporter.say(f"a run of {config.method} cannot be continued: its steps are in no ledger, so it starts over")
    for name in ("ledger", "metrics.jsonl", BEST):
        (folder / name).unlink(missing_ok=True)
    return None


def forget(folder: Path) -> None:
    """Remove what a run writes before its first step."""
    for name in ("config.json", "ledger", "metrics.jsonl", FACTS, trackers.FILE, build.INITIAL, build.NORMS):
        (folder / name).unlink(missing_ok=True)
