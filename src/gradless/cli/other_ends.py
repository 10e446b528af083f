"""The last lines of commands beside ``gradless tune``: evaluations, replays, reports, benchmarks and simulations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradless.cli import run_ends
from gradless.cli.ends import End, command, same_command
from gradless.errors import BadInput

if TYPE_CHECKING:
    from gradless.bench.runner import Outcome
    from gradless.runs.jobs import Replayed


def evaluation(result: Mapping[str, Any], out: Path | None) -> End:
    """Return the end of `gradless eval`."""
    from gradless.lm.metrics import share_name

    config = result["config"]
    name = str(config["model"]).rstrip("/").rpartition("/")[2]
    where = f"{out}: {result['mode']} evaluation of {name}" if out else f"{name}, {result['mode']}: kept in no folder"
    low, high = result["interval"]["test"]
    scores = ", ".join(f"{metric} {value:.3f}" for metric, value in result["test"].items())
    parts = [
        f"test {scores} ({share_name(result['test'])} {low:.3f} to {high:.3f})",
        run_ends.majority(result.get("data")),
    ]
    commands = [] if out else [f"{same_command()} --out DIR"]
    if out and (config["task"] or config["own"].get("train")):
        rows = [] if config["own"] else ["--num-train", 1000, "--num-dev", 500]  # which an evaluation has none of
        commands.append(command("tune", "--config", out / "result.json", *rows, "--out") + " DIR")
    return End(where, "; ".join(filter(None, parts)), commands)


def replayed(run: Path, rebuilt: Replayed, save: Path | None) -> End:
    """Return the end of `gradless replay`."""
    from gradless.report.run.record import is_run, load

    agrees = {True: "; the same as in result.json", False: "; NOT the weights in result.json", None: ""}
    model = f"; model in {save}" if save else ""
    where = f"{run}: weights of step {rebuilt.step} ({rebuilt.sha256[:12]}){agrees[rebuilt.agrees]}{model}"
    record = load(run) if is_run(run) else None
    measured = record is not None and record.selected == rebuilt.step
    if record is None:  # a ledger alone
        return End(where, "", [] if save else [f"{same_command()} --save DIR"])
    commands, until = [], () if measured else ("--until", rebuilt.step)
    if not save:
        replay = run_ends.command_of(record, "replay", run, *until)
        commands.append(f"{replay} --save {run_ends.form_of(record)}")
    elif run_ends.predicts(record.config):
        commands.append(f"{run_ends.command_of(record, 'predict', run_ends.model_of(run, save))} --input FILE")
    commands.append(run_ends.command_of(record, "report", run))
    return End(where, run_ends.reached(record) if measured else "", commands)


def reported(folder: Path, page: Path) -> End:
    """Return the end of `gradless report`, whose tables say what was reached."""
    from gradless.report.peers.record import is_peers
    from gradless.report.run.record import is_run

    commands = []
    if is_peers(folder):
        commands = [command("peers", "audit", folder)]
    elif is_run(folder):
        following = run_ends.run(folder, again=run_ends.again(folder)).commands
        commands = [line for line in following if not line.startswith("gradless report ")]
    elif (folder / "best.toml").exists() and "cell" in (folder / "best.toml").read_text(encoding="utf-8"):
        commands = [command("tune", "--config", folder / "best.toml", "--cell") + " NAME --out DIR"]
    return End(f"{page}: open it in a browser", "", commands)


def benchmark(outcome: Outcome, out: Path) -> End:
    """Return the end of `gradless bench`."""
    counts = f"{outcome.done} done, {outcome.diverged} diverged, {outcome.failed} failed"
    ended = outcome.done + outcome.diverged + outcome.failed
    where = f"{out}: {ended} of {outcome.total} runs have ended ({counts})"
    commands = [command("report", out)]
    if outcome.stopped or ended < outcome.total:
        commands.insert(0, same_command())
    return End(where, _best(out), commands)


def stopped_benchmark(out: Path, error: BaseException) -> End | None:
    """Return the end of a benchmark that an error stops; None for input that is refused, and if nothing is there."""
    from gradless.bench import results

    if isinstance(error, BadInput) or not (out / "grid.toml").exists():
        return None
    asked, ended = len(list((out / "requests").glob("*.json"))), len(results.read(out))
    return End(f"{out}: {ended} of {asked} runs have ended", _best(out), [same_command(), command("report", out)])


def _best(out: Path) -> str:
    """Return for each model and task the method with the best mean on test, beside the untouched model."""
    from gradless.report.bench import study as studies
    from gradless.report.common.numbers import metric_of

    try:
        study = studies.load(out)
    except BadInput:
        return ""
    scores = [
        (cell, mean)
        for cell, runs in study.cells.items()
        if study.complete(runs) and (mean := studies.tested(cell, runs)) is not None
    ]
    texts = []
    for key in dict.fromkeys((cell.model, cell.aligned, cell.task) for cell, _ in scores):
        section, task = studies.Section(*key[:2]), key[2]
        own = [one for one in scores if (one[0].model, one[0].aligned, one[0].task) == key]
        cell, best = max(own, key=lambda one: one[1].mean)
        baseline = study.untouched(section, task)
        untouched = f"; untouched {baseline.mean:.3f}" if baseline is not None else ""
        where = f"{task}{study.title(section)}"
        texts.append(f"{where}: test {metric_of(task)} {best.mean:.3f} by {cell.label}, {cell.scheme}{untouched}")
    more = f"; and {len(texts) - 3} more tasks" if len(texts) > 3 else ""
    return "best of " + "; of ".join(texts[:3]) + more if texts else ""


def simulation(results: Sequence[Mapping[str, Any]], asked: int, out: Path) -> End:
    """Return the end of `gradless collab simulate`."""
    from gradless.runs.record import DONE

    done = [result for result in results if result["status"] == DONE]
    commands = [command("report", out)]
    if asked == 1 and results:
        (result,) = results
        steps = f" after {result['steps']} steps" if "steps" in result else ""
        where = f"{out}: {result['status']}{steps}"
    else:
        where = f"{out}: {len(done)} of {asked} runs done"
    if len(results) < asked or any(result["status"] == "interrupted" for result in results):
        commands.insert(0, same_command())
    finished = [result for result in done if result.get("worst_accuracy") is not None]
    reached = ""
    if finished:
        worst = min(finished, key=lambda one: one["worst_accuracy"])
        of = "" if asked == 1 else " of all runs"
        reached = f"worst honest accuracy{of} {worst['worst_accuracy']:.4f}, mean {worst['mean_accuracy']:.4f}"
        if worst.get("mean_reward") is not None:
            reached += f", mean reward {worst['mean_reward']:.4f}"
    return End(where, reached, commands)


def simulation_values(results: Sequence[Mapping[str, Any]], asked: int) -> dict[str, Any]:
    """Return the JSON line of `gradless collab simulate`: the result of one run, else counts of ends."""
    names = ("status", "steps", "worst_accuracy", "mean_accuracy", "weights_sha256", "train_seconds")
    if asked == 1 and results:
        rewards = {name: value for name in ("mean_reward",) if (value := results[0].get(name)) is not None}
        return {**{name: results[0].get(name) for name in names}, **rewards}
    statuses = [result["status"] for result in results]
    return {"runs": asked, **{status: statuses.count(status) for status in ("done", "diverged", "interrupted")}}


def stopped_simulation(out: Path, error: BaseException) -> End | None:
    """Return the end of a simulation that an error stops; None for input that is refused, and if nothing is there."""
    from gradless.bench import results

    if isinstance(error, BadInput) or not ((out / "config.json").exists() or (out / "runs").exists()):
        return None
    ended = len(results.read(out)) if (out / "results.jsonl").exists() else 0
    return End(f"{out}: {ended} runs are finished", "", [same_command(), command("report", out)])
