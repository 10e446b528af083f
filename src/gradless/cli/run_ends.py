"""The last lines of a run of ``gradless tune``: finished, stopped or diverged."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gradless.cli.ends import End, command, same_command
from gradless.cli.ends import tell as tell_end
from gradless.errors import BadInput

if TYPE_CHECKING:
    from gradless.report.run.record import RunRecord


def _stamp(folder: Path) -> list[Any]:
    """Return what changes when a run writes to its folder."""
    stats = []
    for name in ("config.json", "ledger", "result.json", "metrics.jsonl"):
        try:
            written = (folder / name).stat()
            stats.append((name, written.st_mtime_ns, written.st_size))
        except OSError:
            stats.append((name, 0, 0))
    return stats


def stopped(folder: Path, again: Callable[[], str]) -> Callable[[BaseException], End | None]:
    """Return the end of a run that an error stops; None for input that was refused before anything was written.

    Args:
        folder: run directory.
        again: makes the command that goes on with it.
    """
    stamp = _stamp(folder)

    def end(error: BaseException) -> End | None:
        if _stamp(folder) == stamp and not isinstance(error, KeyboardInterrupt):
            return None
        if not (folder / "config.json").exists():
            return End(f"{folder}: nothing is written yet", "", [same_command()])
        return run(folder, again=again())

    return end


def run(folder: Path, *, again: str, saved: Path | None = None) -> End:
    """Return the end of a run, from what its folder holds.

    Args:
        folder: run directory, finished or not.
        again: the command that goes on with it.
        saved: where its model was saved, if it was.
    """
    from gradless.report.run.record import load
    from gradless.runs.record import DIVERGED, DONE

    record = load(folder)
    if record.status == DONE:
        model = f"; model in {saved}" if saved is not None and saved.exists() else ""
        return End(f"{folder}: {_extent(record)}{model}", reached(record), _after(record, saved))
    if record.status == DIVERGED:
        where = f"{folder}: diverged after {len(record.steps)} of {record.planned} steps"
        return End(where, reached(record), [_gentler(record), command_of(record, "report", folder)])
    kept = "nothing is lost" if record.preset is None or record.preset.replays else "such a method starts over"
    where = f"{folder}: stopped after {len(record.steps)} of {record.planned} steps; {kept}"
    return End(where, reached(record), [again, command_of(record, "report", folder)])


def command_of(record: RunRecord, *words: object) -> str:
    """Return a command with the plugins that the run needs."""
    from gradless import plugins

    return command(*words, *plugins.arguments(record.config.get("plugins") or ()))


def _extent(record: RunRecord) -> str:
    """Return steps, time and size of a finished run."""
    from gradless.bench.estimate import duration
    from gradless.report.common.numbers import counted
    from gradless.report.run.tables import size_text

    steps = len(record.steps) or int(record.number("steps") or 0)
    seconds = record.number("train_seconds")
    parts = [counted(steps, "step") + (f" in {duration(seconds)}" if seconds else "")]
    if record.ledger_bytes:
        parts.append(f"{size_text(record.ledger_bytes)} of ledger")
    chosen = f"; dev chose step {record.selected}" if record.selected not in (None, steps) else ""
    return ", ".join(parts) + chosen


def reached(record: RunRecord) -> str:
    """Return the main metric on test beside the untouched model and the most frequent answer; of dev without test."""
    from gradless.runs import facts

    name, tuned, untouched = record.metric, record.numbers("test"), record.numbers("zero_shot")
    known = next((one for one in (name, *tuned) if one in tuned), None)
    parts = []
    if known is not None:
        ends = record.interval_of(known, "test")
        parts.append(f"test {known} {tuned[known]:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""))
    elif (dev := _dev(record)) is not None:
        parts.append(dev)
    first = record.evaluation("test", 0)
    baseline = untouched or (first.metrics if first is not None else {})
    shown = known or next((one for one in (name, *baseline) if one in baseline), None)
    if shown in baseline:
        parts.append(f"untouched {baseline[shown]:.3f}" if known else f"untouched test {shown} {baseline[shown]:.3f}")
    described = facts.of_run(record.folder, record.result)
    if described is not None and shown == record.share:
        parts.append(majority(described.to_json()))
    return "; ".join(filter(None, parts))


def majority(data: Any) -> str:
    """Return what always giving the most frequent answer has right, from the facts about the data of a result."""
    from gradless.runs import facts

    described = facts.read(data)
    most = described.majority.get("test") if described is not None else None
    if described is None or most is None:
        return ""
    chance = described.chance or 0.0  # of tasks whose options differ from row to row
    return f'always "{most.answer}" {most.share:.3f}' if most.share >= chance else f"a random option {chance:.3f}"


def _dev(record: RunRecord) -> str | None:
    """Return how the loss on dev went."""
    if record.rewarded:
        return _dev_reward(record)
    points = [one for one in record.evaluations if one.split == "dev" and one.loss is not None]
    if not points:
        return None
    first, last = points[0], record.evaluation("dev", record.selected) or points[-1]
    start = f"{first.loss:.4f} -> " if first.step == 0 and last.step else ""
    return f"dev loss {start}{last.loss:.4f} at step {last.step}"


def _dev_reward(record: RunRecord) -> str | None:
    name = record.metric
    points = [(one.step, one.metrics[name]) for one in record.evaluations if one.split == "dev" and name in one.metrics]
    if not points:
        return None
    step, value = next((one for one in reversed(points) if one[0] == record.selected), points[-1])
    start = f"{points[0][1]:.4f} -> " if points[0][0] == 0 and step else ""
    return f"dev {name} {start}{value:.4f} at step {step}"


def _after(record: RunRecord, saved: Path | None) -> list[str]:
    """Return what to do with a finished run."""
    model = model_of(record.folder, saved)
    commands = [command_of(record, "report", record.folder)]
    if predicts(record.config):
        commands.append(f"{command_of(record, 'predict', model)} --input FILE")
    if saved is None or not saved.exists():
        commands.append(f"{command_of(record, 'replay', record.folder)} --save {form_of(record)}")
    return commands


def model_of(folder: Path, saved: Path | None) -> Path:
    """Return what `gradless predict` takes: a saved folder, or the run. A GGUF file knows no prompt and no labels."""
    return saved if saved is not None and saved.is_dir() else folder


def form_of(record: RunRecord) -> str:
    """Return what stands for the name of a saved model: a folder, or a file for schemes that end in one."""
    from gradless.runs.scheme_settings import STORED

    return "NAME.gguf" if record.config.get("scheme") in STORED else "DIR"


def predicts(config: Mapping[str, Any]) -> bool:
    """Return whether `gradless predict` serves a run with this configuration."""
    from gradless import tasks

    with contextlib.suppress(BadInput):
        return bool(config.get("own")) or tasks.get(str(config.get("task"))).kind == "classification"
    return False


def _gentler(record: RunRecord) -> str:
    """Return the command that makes a diverged run again with a tenth of its learning rate, in a folder beside it."""
    rate = record.config.get("lr")
    smaller = (
        ("--lr", f"{float(rate) / 10:g}")
        if isinstance(rate, float | int)
        else ("--eps", f"{record.config['eps'] / 10:g}")
    )
    folder = record.folder
    free = next(
        other for number in range(2, 1000) if not (other := folder.with_name(f"{folder.name}-{number}")).exists()
    )
    return command_of(record, "tune", "--config", folder / "config.json", *smaller, "--out", free)


def again(out: Path, kept: Sequence[Any] = (), settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the command that goes on with a run, whose settings its folder knows; others are named.

    Args:
        out: run directory.
        kept: options that no run directory knows, such as ``--save``, each with its value.
        settings: of the present command, by name.
    """
    from gradless import plugins
    from gradless.runs.config import read_config

    held = read_config(out).to_json()
    for name in ("steps", "device", "split", "data"):
        value = settings.get(name)
        value = str(value.resolve()) if isinstance(value, Path) else value
        if value is not None and value != held[name]:
            kept = [(f"--{name}", value), *kept]
    line = command("tune", "--resume", "--out", out, *kept, *plugins.arguments(held.get("plugins") or ()))
    local = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
    return line if local == "1" else f"torchrun --nproc-per-node {local} -m {line}"


def tell(result: dict[str, Any], end: Callable[[], End], as_json: bool) -> None:
    """Say how a run ended."""
    shown = ("status", "selected_step", "seconds_per_step", "ledger_bytes", "weights_sha256")
    values = {key: result[key] for key in shown}
    tell_end(end, plain=[*_summary(result), json.dumps(values)], values=values, as_json=as_json)


def _summary(result: dict[str, Any]) -> Iterator[str]:
    """Return what a run reached, as plain lines."""
    from gradless.runs.facts import difference_line

    for name, value in result["test"].items():
        if name == "loss" and "reward" in result["test"]:
            continue  # it is the reward, negative
        untuned = result["zero_shot"].get(name)
        yield f"test {name}: " + (f"{untuned:.4f} -> " if untuned is not None else "") + f"{value:.4f}"
    if line := difference_line(result):
        yield line
