"""What determines a run: one frozen record, saved as ``config.json`` and in the ledger's header.

The fields are the settings of TOML and JSON files, and the options of the command line with their help, types and
defaults (`gradless.system.typed`). Nothing here imports torch before a configuration is resolved.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from gradless.errors import BadInput
from gradless.forward.engines import AUTO
from gradless.runs import reward_settings, scheme_settings
from gradless.runs.own_files import OwnFiles as OwnFiles
from gradless.runs.own_files import check_own as check_own
from gradless.runs.reward_settings import RewardSettings
from gradless.runs.scheme_settings import DEFAULTS as DEFAULTS
from gradless.system import typed
from gradless.system.typed import Amount, Count, Few, Flag, Names, NotNegative, Positive, Seed

RECORDED: Final = "engine_choice"
"""Key of ``config.json`` that is no setting: how the engine was chosen where ``auto`` was asked for."""
RECORDS: Final = (RECORDED, reward_settings.SOURCES)
"""All keys of ``config.json`` that are no settings."""
ADDED: Final = ("plugins", "compute_dtype", "quantise", "offload", "walk")
"""Settings that ``config.json`` holds only where they say something."""

Model = Annotated[str, Names("model", closed=False)]
Task = Annotated[str, Names("task", closed=False)]
MethodName = Annotated[str, Names("method", "methods:METHODS")]
Scheme = Annotated[str, Names("scheme", "runs.scheme_settings:DEFAULTS")]
Objective = Annotated[str, Names("objective", closed=False)]
Engine = Annotated[str, Names("engine", "forward.engines:CHOICES")]
DType = Annotated[str, Names("dtype", closed=False)]
ComputeDType = Annotated[str, Names("compute_dtype", closed=False)]
Device = Annotated[str, Names("device", closed=False)]
Quantise = Literal["nf4", "fp4", "int8"] | None
Offload = Literal["cpu", "disk"] | None
Folder = Annotated[str, Flag(path="folder")]


OPTIONS: Final[dict[type, Any]] = {bool: bool, int: Few, float: float, str: str}
"""What an option may hold, by the type of its default."""
TABLES: Final = {"method": "methods", "task": "tasks", "objective": "objectives", "schedule": "schedules"}
"""Settings that name a row of a table to which a plugin may add, see `gradless.plugins.TABLES`."""


def check_options(method: str, options: dict[str, Any]) -> None:
    """Check a method's own hyper-parameters by name and type; the method itself knows their ranges.

    Raises:
        BadInput: an option that the method does not have, or a value of another type.
    """
    from gradless.methods import METHODS, no_option

    defaults = METHODS[method].options()
    for option, default in defaults.items():
        if default is inspect.Parameter.empty and option not in options:
            raise BadInput(f"the method {method} needs the option {option}: write --set {option}=...")
    for option, raw in options.items():
        if option not in defaults:
            raise BadInput(no_option(method, option))
        if option == "queries":
            raise BadInput("queries is an option of all methods: write --queries, or queries = ... in a file")
        hint = OPTIONS.get(type(defaults[option]), bool | int | float | str | None)
        typed.value(f"option {option} of the method {method}", raw, hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig(RewardSettings):
    """One fine-tuning run. Two runs with equal configurations give equal weights on one machine."""

    model: Model
    """Known name (gradless list models), folder, adapter, GGUF file or hub id."""
    task: Task | None = None
    """A known task (gradless list tasks).

    None: own files."""
    data: Folder | None = None
    """Folder with the task's files; without it they come from the hub."""
    own: dict[str, Any] = field(default_factory=dict)
    """Own files: fields of `OwnFiles`, and the name of a task file."""
    method: MethodName = "mezo"
    """gradless list methods"""
    options: Annotated[dict[str, Any], Flag("--set")] = field(default_factory=dict)
    """Option of the method, e.g. --set keep=0.25.

    Only this method has them."""
    scheme: Scheme = "full"
    """full, lora, prefix, prompt or head; of a GGUF file also scales or codes."""
    objective: Objective | None = None
    """option_ce, gold, lm, accuracy, f1 or reward; by default what the task needs.

    That is cross-entropy over options for classification, teacher forcing elsewhere, and the reward where there is
    one."""
    steps: Count = 1000
    """Updates of the weights."""
    batch_size: Few = 16
    """Examples a step."""
    micro_batch_size: Count | None = None
    """Examples a forward; losses are averaged over a step.

    The micro-batches of a step are sorted by length."""
    lr: Positive | Literal["auto"] | None = None
    """Learning rate, or auto; by default a first guess for the scheme.

    "auto": from eps, the size of the coefficients, and how far the weights may walk."""
    walk: Positive | None = None
    """With --lr auto, a length in eps: how far weights may walk at random; by default measured before the first step.

    That is the distance at which the mean loss over a few batches is 10 % higher than at the untouched weights."""
    eps: Positive | None = None
    """Perturbation scale; by default a first guess for the scheme."""
    engine: Engine | None = "auto"
    """auto, stream, dual or in-place.

    It finds the losses at perturbed weights. auto: the faster one of the first two, measured once on this machine."""
    split: Annotated[str, Names("split", "ranks:SPLITS")] = "batch"
    """Under torchrun: batch or directions.

    Processes split the batch, or the directions (then their number does not change a bit)."""
    queries: Annotated[int, Meta(ge=1, le=65535)] | None = None  # a record of the ledger counts them in 16 bits
    """Directions a step; by default what the method has."""
    query_schedule: Literal["constant", "linear"] = "constant"
    """constant, or linear from 1."""
    schedule: Annotated[str, Names("schedule", "rules.schedules:SCHEDULES")] = "constant"
    """Learning rate: constant, linear, cosine."""
    warmup: Amount = 0
    """Steps of rising learning rate."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    layer_scale: Literal["none", "variance", "expectation"] = "none"
    """none, variance or expectation (MeZO B.3, B.4).

    Scales the perturbation of each layer by a norm of its parameters."""
    dtype: DType | None = None
    """float32, bfloat16 or float16; by default float32 on a CPU, else the checkpoint's; of a GGUF its own blocks.

    Naming a type decodes a GGUF file, which --scheme full needs."""
    compute_dtype: ComputeDType | None = None
    """auto, float32 or the type of 16-bit weights: of products. auto on CPUs: float32 to tune, else the faster."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1, mps; auto: all GPUs."""
    quantise: Quantise = None
    """nf4, fp4 (bitsandbytes) or int8 (torchao): quantise frozen weights as they are loaded."""
    offload: Offload = None
    """disk or cpu: where frozen weights stay until their layer runs.

    disk: in their files, mapped. cpu: in the host's memory, while a graphics card computes. Results have the same
    bits."""
    seed: Seed = 0
    """Of the data split and every random number."""
    num_train: Amount = 1000
    """Training rows (1000; own files: all)."""
    num_dev: Amount = 500
    """Dev rows (500; own files: all of --dev, else none).

    They choose the best step. Of own files without --dev so many training rows are held out; with 0 none are, and the
    last step is kept."""
    num_test: Amount = 1000
    """Test rows (1000; own files: all)."""
    samples: Annotated[int, Meta(ge=0, le=4096)] = 0
    """Sampled texts a test row, before and after, for pass@k."""
    k_shot: Count | None = None
    """So many training and dev rows of each label instead."""
    max_length: Count | None = None
    """Most tokens of a sequence."""
    eval_every: Count | None = None
    """Steps between dev evaluations; by default a fifth of the run."""
    select: Literal["loss", "metric"] = "loss"
    """What chooses on dev: loss or metric."""
    zero_shot: Annotated[bool, Flag("--zero-shot/--no-zero-shot")] = True
    """Evaluate the untouched model first."""
    aligned: Annotated[bool, Flag("--aligned/--unaligned")] = True
    """Prompt with or without the sentence that aligns a task.

    That sentence makes a task look like text (ZO-Bench's task alignment)."""
    chat: Annotated[bool, Flag("--chat/--no-chat")] = False
    """Prompts as messages, by the model's own chat template.

    The prompt is what the user says, the answer is what the assistant says."""
    rank: Few = 8
    """LoRA rank."""
    alpha: Positive = 16.0
    """LoRA alpha."""
    num_prefix: Few = 5
    """Virtual tokens of prefix tuning."""
    num_prompt: Few = 10
    """Virtual tokens of prompt tuning."""
    density: Annotated[float, Meta(gt=0, le=1)] = 0.02
    """Share of the codes that a direction moves, with --scheme codes."""
    targets: Annotated[tuple[str, ...], Flag("--target")] = ()
    """Module that LoRA adapts."""
    freeze: tuple[str, ...] = ()
    """Pattern of parameter names to leave alone.

    Patterns are regular expressions."""
    plugins: Annotated[dict[str, str], Flag("--plugin")] = field(default_factory=dict)
    """In a TOML file a list of plugins to load; in a run's config.json the plugins that define what it names.

    There each stands with its SHA-256, and is loaded with --plugin alone."""

    def resolved(self) -> TuneConfig:
        """Check every field and fill in what follows from others.

        Raises:
            BadInput: an unknown name, an impossible number, or fields that contradict each other.
        """
        from gradless import plugins
        from gradless.methods import METHODS

        require_plugins(self._fields())
        typed.check(self)
        check_own(self.own)
        used = plugins.used_again(self.parts(), self.plugins)
        method = METHODS[self.method]
        self._check_data()
        scheme_settings.check(self, method)
        rewards = reward_settings.resolved(self, method)
        if self.lr == "auto" and method.auto is None:
            suited = ", ".join(name for name, one in METHODS.items() if one.auto)
            raise BadInput(f"--lr auto is not known to suit {self.method}: give a number, or use one of {suited}")
        if self.walk is not None and self.lr != "auto":
            raise BadInput("--walk goes with --lr auto: leave it out, or give --lr auto")
        check_options(self.method, self.options)
        if self.queries is not None and "queries" not in method.options():
            raise BadInput(
                f"--queries is {self.queries}, but the method {self.method} has no choice there: leave it out"
            )
        if self.query_schedule != "constant" and self.queries is None:
            raise BadInput(f"a {self.query_schedule} query schedule needs the number that it rises to: give --queries")
        lr, eps = DEFAULTS[self.scheme]
        eps = self.eps if self.eps is not None else eps
        guess = lr * method.lr_factor if method.lr_in_eps is None else eps * method.lr_in_eps
        return dataclasses.replace(
            self,
            lr=self.lr if self.lr is not None else guess,
            eps=eps,
            compute_dtype=None if self.compute_dtype == "auto" else self.compute_dtype,
            engine=self.engine or AUTO,
            eval_every=self.eval_every or self.usual_eval_every,
            plugins=used,
            **rewards,
        )

    @property
    def usual_eval_every(self) -> int:
        """Steps between dev evaluations of a run that says nothing about them."""
        return max(1, -(-self.steps // 5))

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def parts(self) -> dict[str, list[str]]:
        """Return the parts that the run names, by table (`gradless.plugins.TABLES`)."""
        return named_parts(self._fields())

    def _check_data(self) -> None:
        if (self.task is None) == (not self.own):
            raise BadInput("name a --task or give your own files with --train, --test and --template, not both")
        if self.own and not self.aligned:
            raise BadInput("--unaligned goes with a --task: write your own template without that sentence instead")
        if self.own and self.data:
            raise BadInput("--data goes with a --task: give your own files with --train, --dev and --test")

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary that `from_json` reads back."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        unused = {"density": self.scheme != "codes", **{name: not getattr(self, name) for name in ADDED}}
        unused["samples"] = not (self.samples or self.reward)
        for name in (*(name for name, left_out in unused.items() if left_out), *reward_settings.unset(self)):
            del values[name]  # as before there was such a setting
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> TuneConfig:
        """Return the configuration that `to_json` wrote; what a run recorded beside it (`RECORDED`) is passed over.

        Raises:
            BadInput: a field that this release does not know, one that holds what it may not, or a plugin that the run
                needs and that is not loaded.
        """
        if "model" not in values:
            raise BadInput("the settings name no model: give one")
        require_plugins(values)
        return TuneConfig(**typed.table(without_records(values), TuneConfig))


def without_records(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a ``config.json``, without what a run recorded beside them."""
    return {name: value for name, value in values.items() if name not in RECORDS}


def named_parts(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the parts that settings name, by table."""
    parts = {table: [values[name]] for name, table in TABLES.items() if isinstance(values.get(name), str)}
    rewards = values.get("reward")
    if isinstance(rewards, list | tuple) and rewards:
        parts["rewards"] = [str(one).partition(":")[0] for one in rewards]
    return parts


def require_plugins(values: Mapping[str, Any]) -> None:
    """Refuse recorded settings whose plugins are not loaded.

    Raises:
        BadInput: naming the plugin.
    """
    from gradless import plugins

    plugins.require(named_parts(values), typed.value("plugins", values.get("plugins", {}), dict[str, str]))


def read_config(folder: Path) -> TuneConfig:
    """Return the configuration of a run directory.

    Raises:
        BadInput: there is no run, or its file cannot be read.
    """
    values = read_values(folder)
    with typed.within(folder / "config.json"):
        return TuneConfig.from_json(values)


def read_values(folder: Path) -> dict[str, Any]:
    """Return the contents of ``config.json``: the settings, and what the run recorded beside them.

    Raises:
        BadInput: there is no run, or its file cannot be read.
    """
    path = folder / "config.json"
    try:
        values = typed.parse_json(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{folder} holds no run (no config.json): give the --out directory of a run") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{path} cannot be read ({reason}): restore it from a copy") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds no settings: restore it from a copy")
    return values


def as_recorded(config: TuneConfig) -> TuneConfig:
    """Return a run's configuration with its compute type; before it was recorded, it was that of 16-bit weights."""
    narrow = config.dtype if config.dtype in ("bfloat16", "float16") else None
    return dataclasses.replace(config, compute_dtype=config.compute_dtype or narrow)


def difference(old: TuneConfig, new: TuneConfig) -> str | None:
    """Return the first field in which two configurations differ, as a sentence, or None.

    Device, offload, folder of the data and what processes split may differ: a run may continue elsewhere.
    """
    from gradless import plugins

    old, new = as_recorded(old), as_recorded(new)
    for f in dataclasses.fields(TuneConfig):
        if f.name in ("device", "offload", "data", "split"):
            continue
        a, b = getattr(old, f.name), getattr(new, f.name)
        if f.name == "plugins":
            if changed := plugins.difference(a, b):
                return changed
        elif isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                if a.get(key) != b.get(key):
                    return f"{key} was {a.get(key)!r} and is now {b.get(key)!r}"
        elif a != b:
            return f"{f.name} was {a!r} and is now {b!r}"
    return None
