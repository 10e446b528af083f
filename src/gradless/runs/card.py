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
from typing import TYPE_CHECKING, Any, Final

from gradless import __version__, plugins, tasks
from gradless.lm import assets
from gradless.lm.metrics import REWARDS, share_name
from gradless.methods import METHODS
from gradless.runs.config import TuneConfig
from gradless.runs.config_io import tune_command
from gradless.runs.facts import ENDS, RANDOM, Baseline, baseline, reward_gain, share_gain
from gradless.runs.usage import Base, Usage
from gradless.tasks import Task, hub
from gradless.tasks.own import parse_labels

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

RECORD: Final = "gradless"  # the folder of the run's record inside a saved model
TASK_FILE: Final = "task.toml"
TEMPLATE: Final = Path(__file__).with_name("card.md.j2")
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
    location: str
    """Where the model will be loaded from: ``./NAME`` or a hub id."""
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
    use: Usage
    """Code that predicts with the model."""
    base: str | None = None
    """The base model of the adapter that the run began from, if it began from one."""

    @property
    def base_model(self) -> str:
        """The base model as a whole: that of the run, or of the adapter that it began from."""
        return self.base or self.config.model

    @property
    def adapter(self) -> bool:
        """What was tuned lies beside the base model's weights."""
        return self.config.scheme in ADAPTERS

    @property
    def task_title(self) -> str:
        """The task in words."""
        config = self.config
        if config.task:
            return tasks.get(config.task).title
        repo = (_hub_data(config) or ("the user's own files",))[0]
        return str(config.own.get("name", repo))


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
    """The card as Markdown, its metadata in front; ``card.md.j2`` says it."""
    from huggingface_hub import ModelCard

    config, result = facts.config, facts.result
    asset = assets.ASSETS.get(facts.base_model)
    compared = baseline(result) if result else None
    card = ModelCard.from_template(
        _metadata(facts),
        template_path=str(TEMPLATE),
        facts=facts,
        config=config,
        method=METHODS[config.method],
        header=facts.header,
        result=result,
        measured=bool(result and result["test"]),
        rows=(result or {}).get("rows", {}),
        share=share_name((result or {}).get("test", {})),
        compared=compared,
        majority=_majority(compared),
        intervals=_intervals(result),
        scores=_scores(result),
        rewards=_rewards(config),
        passes=_passes(result),
        prompt=_prompt(facts),
        answers=_answers(facts),
        original=ORIGINS.get(facts.base_model, (None,))[0],
        use=facts.use,
        command=command(config, (result or {}).get("ranks")),
        record=RECORD,
        versions=_versions(facts),
        release=__version__,
        replay=_replay(facts),
        licence=f"{asset.licence}." if asset else "The licence of the base model applies.",
    )
    return f"{card}\n"


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
    labels = _labels(own)
    lines = [f"{key} = {_toml(value)}" for key, value in own.items() if key != "labels"]
    words = [f"{_toml(key)} = {_toml(text)}" for key, text in labels.items()]
    return "\n".join([*lines, *(["", "[labels]", *words] if words else []), ""])


def _labels(own: dict[str, Any]) -> dict[str, str]:
    """Return the words of the labels of own files; none of those whose texts a reward scores."""
    labels = own.get("labels") or {}
    return labels if isinstance(labels, dict) else parse_labels(labels)


def loaded_from(model: str) -> Base:
    """Return how code loads a base model, the one that was measured.

    Example:
        >>> loaded_from("facebook/opt-1.3b@main")
        Base(name='facebook/opt-1.3b', revision='main', by_name=True)
        >>> loaded_from("./mine").by_name, loaded_from("./mine.gguf").by_name, loaded_from("tiny-llama").by_name
        (True, False, False)
    """
    origin = base_id(model)
    if origin is not None:
        return Base(*origin, by_name=True)
    return Base(model, None, by_name=model.startswith("./") and not model.endswith(".gguf"))


def _metadata(facts: Facts) -> ModelCardData:
    """What the hub reads: base model, library, tags, data sets, and the results as a ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    config, result = facts.config, facts.result
    origin, licence = ORIGINS.get(facts.base_model, (None, None))
    base = origin or (base_id(facts.base_model) or (None,))[0]
    scores = _scores(result)
    task = tasks.get(config.task) if config.task else None
    dataset, dataset_config = (task.hub if task else _hub_data(config)) or (None, None)
    results = [
        EvalResult(
            task_type=_hub_task(task, config),
            dataset_type=dataset or "own-files",
            dataset_config=dataset_config,
            dataset_name=facts.task_title,
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=f"test {name}{_interval_of(name, result)}",
        )
        for name, value in scores.items()
    ]
    return ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if facts.adapter else "finetune") if base else None,
        datasets=[dataset] if dataset else None,
        library_name="peft" if facts.adapter else "transformers",
        license=licence,
        metrics=[name for name in scores if name not in ("loss", *REWARDS)] or None,
        model_name=facts.name,
        pipeline_tag="fill-mask" if facts.masked else "text-generation",
        tags=["gradless", METHODS[config.method].family + "-order", config.method, config.scheme],
        eval_results=results or None,
    )


def _hub_task(task: Task | None, config: TuneConfig) -> str:
    if config.reward:
        return "text-generation"
    return HUB_TASKS[task.kind] if task else "text-classification"


def _scores(result: dict[str, Any] | None) -> dict[str, float]:
    """Return the figures on test; of a run on a reward without the loss, which is the reward, negative."""
    scores = result["test"] if result else {}
    return {name: value for name, value in scores.items() if name != "loss" or "reward" not in scores}


def _rewards(config: TuneConfig) -> list[str]:
    """Return the reward functions as code, with their weights."""
    names = [_code(name) for name in config.reward]
    weights = config.reward_weight
    return [f"{weight:g} x {name}" for weight, name in zip(weights, names, strict=True)] if weights else names


def _passes(result: dict[str, Any] | None) -> str:
    """Say pass@k at the largest k, before and tuned."""
    parts = (result or {}).get("pass_at", {})
    k = max((int(k) for shares in parts.values() for k in shares if k.isdecimal()), default=0)
    shares = {name: parts[part][str(k)] for part, name in (("zero_shot", "before"), ("test", "tuned")) if part in parts}
    texts = [f"{name} {share:.3f} ({low:.3f} to {high:.3f})" for name, (share, low, high) in shares.items()]
    return f"pass@{k} of sampled texts, 95 % intervals: {', '.join(texts)}." if texts else ""


def _hub_data(config: TuneConfig) -> tuple[str, str | None] | None:
    """Return the data set of the hub, and its configuration, that a run of own rows was measured or trained on."""
    sources = [str(config.own[name]) for name in ("test", "train") if config.own.get(name)]
    name = hub.parse(sources[0]) if sources and hub.is_name(sources[0]) else None
    return (name.repo, name.config) if name else None


def _interval_of(name: str, result: dict[str, Any] | None) -> str:
    """A share of right answers has an interval, and a mean reward."""
    intervals = result["interval"] if result else {}
    part = "reward_test" if name == "reward" else "test"
    if part not in intervals or (part == "test" and name != share_name(result["test"] if result else ())):
        return ""
    low, high = intervals[part]
    return f" (95 % interval {low:.3f} to {high:.3f})"


def _intervals(result: dict[str, Any] | None) -> dict[str, list[str]]:
    """The 95 % intervals of the mean reward and of the share of right answers: before, tuned, and of the difference."""
    if result is None:
        return {}
    intervals = result["interval"]
    groups = {"mean reward": ("reward_", reward_gain(result)), share_name(result["test"]): ("", share_gain(result))}
    shown = {}
    for title, (prefix, gain) in groups.items():
        names = {
            "zero_shot": ("before", ".3f"),
            "test": ("tuned", ".3f"),
            "difference": ("their paired difference" + ("" if gain is None else f" ({gain:+.3f})"), "+.3f"),
        }
        known = [
            (name, form, intervals[prefix + part]) for part, (name, form) in names.items() if prefix + part in intervals
        ]
        shown[title] = [f"{name} {low:{form}} to {high:{form}}" for name, form, (low, high) in known]
    return {title: texts for title, texts in shown.items() if texts}


def _majority(compared: Baseline | None) -> str:
    """Say what always giving the most frequent answer has right, beside the tuned model; rows' text is left out."""
    if compared is None:
        return ""
    always = "A random option" if compared.answer == RANDOM else "Always giving the most frequent answer"
    return (
        f"{always} has {compared.share:.1%} of the test rows right; the tuned model has {compared.right:.1%}, "
        f"{ENDS[compared.beaten]}."
    )


def _prompt(facts: Facts) -> str:
    """The form of the text that the model expects to read."""
    config = facts.config
    if config.own:
        return f"the form {_code(config.own['template'])}"
    return f"gradless's prompt of the task `{config.task}`" + ("" if config.aligned else ", unaligned")


def _answers(facts: Facts) -> list[str]:
    """The label words, as code; none of a task whose answers are free."""
    config = facts.config
    if config.own:
        return [_code(text) for text in _labels(config.own).values()]
    task = tasks.get(str(config.task))
    return [_code(text.strip()) for text in (task.masked_words if facts.masked else task.label_words) or ()]


def _versions(facts: Facts) -> str:
    versions = (facts.result or {}).get("versions") or {"gradless": facts.header["gradless"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "machine")


def _replay(facts: Facts) -> str:
    """The command that rebuilds the weights; empty for a method whose steps are in no ledger."""
    if not METHODS[facts.config.method].replays:
        return ""
    until = [] if facts.result else ["--until", str(facts.step)]
    more = ["--model", facts.config.model, *plugins.arguments(facts.config.plugins), *until]
    return shlex.join(["gradless", "replay", f"{RECORD}/ledger", *more, "--save", "rebuilt"])


def _code(text: str) -> str:
    """A span of code in Markdown, whatever is in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("\n", "\\n")


def _toml(text: str) -> str:
    """A basic string: the same as in JSON, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
