"""The model card of a saved model: what it is, what was measured, the command that made it, how to load and rebuild it.

The text is a function of the run's record. The block at its top is the metadata that the Hugging Face hub reads
(base model, library, tags, data sets, results as a ``model-index``).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gradless import __version__, tasks
from gradless.lm import assets
from gradless.lm.metrics import SHARES
from gradless.methods import METHODS
from gradless.runs.config import TuneConfig
from gradless.runs.config_io import tune_command
from gradless.runs.record import DONE
from gradless.tasks.own import parse_labels

RECORD: Final = "gradless"  # the folder of the run's record inside a saved model
TASK_FILE: Final = "task.toml"
ADAPTERS: Final = ("lora", "prefix", "prompt")
ORIGINS: Final = {
    "gemma-3-270m": ("google/gemma-3-270m", "gemma"),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
}
"""Known models of which the hub has the original: its id there, and the hub's word for its licence."""
HUB_ID: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
HUB_TASKS: Final = {
    "classification": "text-classification",
    "choice": "multiple-choice",
    "generation": "question-answering",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a card is made from."""

    name: str
    place: str
    """Where the model will be loaded from: a path or a hub id."""
    config: TuneConfig
    step: int
    header: dict[str, Any]
    """Of the ledger."""
    result: dict[str, Any] | None
    """``result.json`` if it holds figures of exactly these weights."""
    ledger_bytes: int
    sha256: str
    """Of the tuned parameters."""
    masked: bool


def base_id(model: str) -> tuple[str, str | None] | None:
    """Hub id and revision of what ``--model`` names, or None for what did not come from the hub.

    Example:
        >>> base_id("facebook/opt-1.3b@main"), base_id("/models/mine"), base_id("tiny-llama")
        (('facebook/opt-1.3b', 'main'), None, None)
    """
    name, _, revision = model.partition("@")
    if Path(model).expanduser().exists() or not HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        return None
    return name, revision or None


def render(facts: Facts) -> str:
    """The card as Markdown, its metadata in front."""
    config, result = facts.config, facts.result
    what = "Adapter" if config.scheme in ADAPTERS else "Model"
    parts = [
        f"---\n{_metadata(facts)}---",
        f"# {facts.name}",
        f"{what} of gradless: `{config.model}` tuned on {_task_title(config)} "
        f"with `{config.method}` ({_about_method(config)}), scheme `{config.scheme}`.",
        "## Results",
        _results(facts),
        "## Use",
        _prompt(config, facts.masked),
        f"```python\n{loading(facts)}\n```",
        *([_about_head(facts)] if config.scheme == "head" else []),
        "## How it was made",
        f"```sh\n{command(config, (result or {}).get('ranks'))}\n```",
        _cost(config, result) if result else "",
        _record(facts),
        "## Rebuild it",
        _rebuild(facts),
        "## Intended use and limits",
        _limits(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def command(config: TuneConfig, ranks: dict[str, Any] | None = None) -> str:
    """The command of a run; a task that no options can say is named by the file that is saved beside the ledger.

    ``ranks`` is what ``result.json`` says of several processes, if there were any.
    """
    if task_file(config) is not None:
        config = dataclasses.replace(config, own={"task_file": f"{RECORD}/{TASK_FILE}"})
    text = tune_command(config, "runs/again")
    return f"torchrun --nproc-per-node {ranks['size']} -m {text}" if ranks else text


def task_file(config: TuneConfig) -> str | None:
    """Own files as TOML (see `gradless.tasks.read_task_file`), if options on a command line cannot say them.

    That is so for a name of their own and for a table of labels, which need not survive being written as one word.
    """
    own = config.own
    if "name" not in own and not isinstance(own.get("labels"), dict):
        return None
    labels = own["labels"] if isinstance(own["labels"], dict) else parse_labels(own["labels"])
    lines = [f"{key} = {_toml(value)}" for key, value in own.items() if key != "labels"]
    return "\n".join([*lines, "", "[labels]", *(f"{_toml(key)} = {_toml(word)}" for key, word in labels.items()), ""])


def loading(facts: Facts) -> str:
    """Python code that loads the model and its tokenizer, with the very weights that were measured."""
    config = facts.config
    auto = "AutoModelForMaskedLM" if facts.masked else "AutoModelForCausalLM"
    place, source = (json.dumps(text, ensure_ascii=False) for text in (facts.place, config.model))
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({place})"
    if config.scheme not in ADAPTERS:
        model = f'model = {auto}.from_pretrained({place}, dtype="auto")'
        return f"from transformers import {auto}, AutoTokenizer\n\n{model}\n{tokenizer}"
    # Without autocast_adapter_dtype=False, PEFT turns a 16-bit adapter into float32.
    adapter = f"model = PeftModel.from_pretrained(base, {place}, autocast_adapter_dtype=False)"
    dtype = facts.header["dtype"]
    found = base_id(config.model)
    if found is None and not Path(config.model).is_dir():
        base = f'base = lm.load({source}, dtype="{dtype}").model'
        head = "from gradless import lm\nfrom peft import PeftModel\nfrom transformers import AutoTokenizer"
    else:
        name, revision = (f'"{found[0]}"', found[1]) if found else (source, None)
        at = f', revision="{revision}"' if revision else ""
        base = f'base = {auto}.from_pretrained({name}{at}, dtype="{dtype}")'
        head = f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer"
    return f"{head}\n\n{base}\n{adapter}\n{tokenizer}"


# ------------------------------------------------------------------------------------------------------------
# the parts of the card


def _metadata(facts: Facts) -> str:
    """YAML as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    config, result = facts.config, facts.result
    origin, licence = ORIGINS.get(config.model, (None, None))
    found = base_id(config.model)
    adapter = config.scheme in ADAPTERS
    base = origin or (found[0] if found else None)
    scores = result["test"] if result else {}
    task = tasks.get(config.task) if config.task else None
    kind = HUB_TASKS[task.kind] if task else "text-classification"
    hub = task.hub if task else None
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=hub[0] if hub else "own-files",
            dataset_config=hub[1] if hub else None,
            dataset_name=_task_title(config),
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=f"test {name}{_interval_of(name, result)}",
        )
        for name, value in scores.items()
    ]
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        datasets=[hub[0]] if hub else None,
        library_name="peft" if adapter else "transformers",
        license=licence,
        metrics=[name for name in scores if name != "loss"] or None,
        model_name=facts.name,
        pipeline_tag="fill-mask" if facts.masked else "text-generation",
        tags=["gradless", METHODS[config.method].order + "-order", config.method, config.scheme],
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n") + "\n"


def _interval_of(name: str, result: dict[str, Any] | None) -> str:
    """A share of right answers has an interval."""
    if name not in SHARES or result is None or "test" not in result["interval"]:
        return ""
    low, high = result["interval"]["test"]
    return f" (95 % interval {low:.3f} to {high:.3f})"


def _task_title(config: TuneConfig) -> str:
    return tasks.get(config.task).title if config.task else str(config.own.get("name", "the user's own files"))


def _about_method(config: TuneConfig) -> str:
    method = METHODS[config.method]
    return f"{method.summary.partition(';')[0]}; {method.paper}"


def _results(facts: Facts) -> str:
    result = facts.result
    if result is None or not result["test"]:
        return f"These are the weights after step {facts.step}. No measurement of them is on record."
    before = result["zero_shot"]
    lines = ["| test | before | tuned |", "|---|---|---|"]
    for name, value in result["test"].items():
        lines.append(f"| {name} | {f'{before[name]:.4f}' if name in before else '-'} | {value:.4f} |")
    interval = result["interval"]
    shares = [
        f"{word} {interval[key][0]:{sign}.3f} to {interval[key][1]:{sign}.3f}"
        for key, word, sign in (
            ("zero_shot", "before", ""),
            ("test", "tuned", ""),
            ("difference", "their paired difference", "+"),
        )
        if key in interval
    ]
    rows = result.get("rows", {})
    tested = f" on {rows['test']} test rows" if "test" in rows else ""
    chosen = f"Step {facts.step} of {result['steps']} was chosen on dev data" if result["dev"] else f"Step {facts.step}"
    about = f"{chosen}. Share of right answers{tested}, 95 % intervals: {', '.join(shares)}."
    return "\n".join([*lines, "", about])


def _prompt(config: TuneConfig, masked: bool) -> str:
    """What the model expects to read."""
    if config.own:
        labels = config.own["labels"]
        words = (parse_labels(labels) if isinstance(labels, str) else labels).values()
        form = f"the form {_code(config.own['template'])}"
    else:
        assert config.task is not None
        task = tasks.get(config.task)
        words = [word.strip() for word in (task.masked_words if masked else task.label_words) or ()]
        form = f"gradless's prompt of the task `{task.name}`" + ("" if config.aligned else ", unaligned")
    answers = f", answered by one of: {', '.join(map(_code, words))}" if words else ""
    return f"It was tuned on text in {form}{answers}."


def _about_head(facts: Facts) -> str:
    ids = facts.header["label_token_ids"]
    return (
        f"Only the {len(ids)} output rows of the label words (tokens {', '.join(map(str, ids))}) were tuned. They "
        "stand in the output layer, which is no longer tied to the embeddings: the labels' scores are the logits of "
        "these tokens where the prompt ends (or at its mask)."
    )


def _cost(config: TuneConfig, result: dict[str, Any]) -> str:
    versions = result["versions"]
    memory = ""
    if result["inference_memory_bytes"]:
        peak, floor = result["peak_memory_bytes"] / 1e9, result["inference_memory_bytes"] / 1e9
        memory = f" Peak memory {peak:.2f} GB, of inference on such a batch {floor:.2f} GB."
    backward = ", a backward pass counted as two," if METHODS[config.method].differentiates else ""
    ended = "" if result["status"] == DONE else f"The run did not come to its end ({result['status']}). "
    return (
        f"{ended}"
        f"{result['forwards']:,} forward passes{backward} in {result['steps']:,} steps and "
        f"{result['train_seconds']:,.0f} s on "
        f"{versions.get('machine', 'an unnamed machine')}, engine `{result['engine']}`.{memory}"
    )


def _record(facts: Facts) -> str:
    versions = (facts.result or {}).get("versions") or {"gradless": facts.header["gradless"]}
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "machine")
    lines = [
        f"* Ledger: `{RECORD}/ledger`, {facts.ledger_bytes:,} bytes, "
        f"{facts.header['tuned_parameters']:,} tuned parameters",
        f"* SHA-256 of the tuned parameters: `{facts.sha256}`",
        f"* SHA-256 of the base model's weights: `{facts.header['base_sha256']}`",
        f"* SHA-256 of the rows: `{facts.header['data_sha256']}`",
        f"* Versions: {told}",
    ]
    return "\n".join(lines)


def _rebuild(facts: Facts) -> str:
    config = facts.config
    if not METHODS[config.method].replays:
        return f"The steps of `{config.method}` are in no ledger: these weights are the only copy."
    until = [] if facts.result else ["--until", str(facts.step)]
    line = shlex.join(["gradless", "replay", f"{RECORD}/ledger", "--model", config.model, *until, "--save", "rebuilt"])
    release = facts.header["gradless"] or __version__
    return (
        "The ledger and the base model give these weights again, bit for bit, without data or forward passes:\n\n"
        f'```sh\npip install "gradless[lm]=={release}"\n{line}\n```'
    )


def _limits(facts: Facts) -> str:
    asset = assets.ASSETS.get(facts.config.model)
    terms = f" {asset.licence}." if asset else " The licence of the base model applies."
    beyond = "Nothing else was measured" if facts.result and facts.result["test"] else "Nothing was measured"
    return (
        f"* For {_task_title(facts.config)} in the prompt format above; with other prompts or tasks it may be worse "
        f"than the base model.\n* {beyond}: errors and biases of the base model and of the data remain, and a "
        f"difference within the intervals is none.{terms}"
    )


def _code(text: str) -> str:
    """A span of code in Markdown, whatever is in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("\n", "\\n")


def _toml(text: str) -> str:
    """A basic string."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    plain = "".join(escapes.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return f'"{plain}"'
