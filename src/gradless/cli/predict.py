"""The command ``gradless predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradless.cli.completion import Named
from gradless.cli.fields import of_fields, of_hint
from gradless.cli.options import FILE, plugin_option
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system.typed import Few

HELPS = {
    "output": "File for the rows with their predictions, CSV, JSONL or Parquet by its name (standard output).",
    "form": "What standard input holds; by default recognised.",
    "calibrated": "Subtract what labels score after a prompt without content; by default as the model was evaluated.",
    "chat": "Prompts as messages, by the model's own chat template; by default as the model was tuned.",
    "batch_size": "Most rows of a batch; by default as many as fit 1,024 tokens on a CPU, 16,384 elsewhere.",
    "model": "Where the base model of a run or adapter is now, if not where it was.",
}


@click.command("predict")
@click.argument("source", metavar="RUN|FOLDER|FILE|MODEL")
@click.option("--input", required=True, metavar="FILE|-", help="CSV, TSV, JSONL or Parquet file; - is standard input.")
@click.option("--output", type=FILE, help=HELPS["output"])
@click.option("--format", "form", type=click.Choice(["csv", "tsv", "jsonl"]), help=HELPS["form"])
@of_fields(
    OwnFiles,
    "template labels label_column delimiter encoding",
    defaults=False,
    template="Prompt with column names, for a model without its own.",
    label_column="Column that holds the right label, to measure against; not needed.",
)
@of_fields(TuneConfig, "task", task="A built-in task instead of --template and --labels.")
@click.option("--calibrated/--no-calibrated", default=None, help=HELPS["calibrated"])
@click.option("--chat/--no-chat", default=None, help=HELPS["chat"])
@of_fields(TuneConfig, "max_length")
@of_hint("batch_size", Few | None, HELPS["batch_size"])
@click.option("--id-column", "keep", multiple=True, help="Write this column of the input, not all; may be repeated.")
@click.option("--prefix", default="", help="In front of the names of the new columns.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be predicted, instead of refusing the file.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@plugin_option
@click.option("--model", type=Named("model"), help=HELPS["model"])
@click.option("--device", type=Named("device"), help="cpu, cuda, ...; by default where the run was.")
@click.option("--dtype", type=Named("dtype"), help="float32, bfloat16 or float16; by default as the run was.")
def predict(source: str, input: str, output: Path | None, batch_size: int | None, **settings: Any) -> None:
    """Label the rows of a file with a tuned model: all their columns, the label, and a probability for each label.

    The model is a run directory, a folder of --save, or any model together with --template and --labels. Rows are
    read, predicted and written a few at a time, so files may be larger than memory.

    \b
    gradless predict runs/mine --input new.csv --output labelled.csv
    gradless predict models/mine --input new.parquet --output labelled.parquet --device cuda
    cat new.jsonl | gradless predict models/mine --input - > labelled.jsonl
    gradless predict model.gguf --input new.csv --template "{text} It was" --labels "0=terrible,1=great"
    """
    from gradless.runs import load_classifier
    from gradless.runs import predict as job
    from gradless.system.progress import Reporter

    reporter = Reporter(err=True)
    names = ("input", "output", "form", "delimiter", "encoding", "keep", "prefix", "skip_bad", "force")
    values = {"input": input, "output": None if output == Path("-") else output, **settings}
    files = job.Files(**{name: values[name] for name in names})
    how = {name: value for name, value in settings.items() if name not in names}
    job.check(files)
    unloaded = load_classifier.find(source, say=reporter.say, **how)
    job.predict(unloaded, files, batch_size=batch_size, reporter=reporter)
