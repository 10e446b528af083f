"""What determines a run: one frozen record, saved as ``config.json`` and in the ledger's header."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradless.errors import BadInput, unknown
from gradless.forward.evaluator import ENGINES, STREAM
from gradless.methods import METHODS
from gradless.ranks import DIRECTIONS, SPLITS
from gradless.rules import SCHEDULES

# First guesses by scheme, from the MeZO authors (princeton-nlp/MeZO#7) where they give one: (lr, eps).
DEFAULTS = {
    "full": (1e-6, 1e-3),
    "lora": (1e-4, 1e-2),
    "prefix": (1e-2, 1e-1),
    "prompt": (1e-3, 1e-2),
    "head": (1e-3, 1e-2),
}
# What a rule makes of a learning rate: momentum sums about ten gradients, Adam and signs normalise them.
LR_FACTORS = {
    "mezo-momentum": 0.1, "zo-momentum": 0.1, "mezo-adam": 10.0, "zo-adam": 10.0, "zo-sign": 10.0,
    "zo-scalar-sign": 10.0, "mezo-rms": 10.0, "fzoo": 10.0, "zo-muon": 100.0, "fo-sgd": 1000.0, "fo-sgd-ckpt": 1000.0,
    "fo-adam": 10.0, "fo-adam-ckpt": 10.0,
}  # fmt: skip
LAYER_SCALES = ("none", "variance", "expectation")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """One fine-tuning run. Two runs with equal configurations give equal weights on one machine."""

    model: str
    """Known name, local folder, GGUF file or hub id."""
    task: str | None = None
    """Name of a task (`gradless list tasks`); None: own files."""
    data: str | None = None
    """Folder with the task's files; None reads from the hub."""
    own: dict[str, Any] = field(default_factory=dict)
    """Own files: train, dev, test, template, label_column, labels."""
    method: str = "mezo"
    options: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters that only this method has, by name (`gradless list methods`)."""
    scheme: str = "full"
    objective: str | None = None
    """None: cross-entropy over options for classification, teacher forcing elsewhere."""
    steps: int = 1000
    batch_size: int = 16
    micro_batch_size: int | None = None
    """Examples in one forward; the losses of a step's micro-batches, which are sorted by length, are averaged."""
    lr: float | str | None = None
    """None: the scheme's first guess; "auto": from eps and the size of the coefficients."""
    eps: float | None = None
    engine: str | None = None
    """How losses at perturbed weights are found: stream, dual or in-place; None: what measured fastest."""
    split: str = "batch"
    """What several processes split: the batch, or the directions (then their number does not change a bit)."""
    queries: int | None = None
    """Directions a step; None: what the method has by default."""
    query_schedule: str = "constant"
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    layer_scale: str = "none"
    """Per-layer perturbation scale from parameter norms: none, variance or expectation."""
    dtype: str | None = None
    device: str = "cpu"
    seed: int = 0
    num_train: int = 1000
    num_dev: int = 500
    num_test: int = 1000
    k_shot: int | None = None
    max_length: int | None = None
    eval_every: int | None = None
    """Steps between dev evaluations; None: a fifth of the run."""
    select: str = "loss"
    """What chooses among evaluated steps on dev data: loss, or metric."""
    zero_shot: bool = True
    """Whether the untouched model is evaluated first."""
    aligned: bool = True
    """Whether the prompt has the sentence that makes a task look like text (ZO-Bench's task alignment)."""
    rank: int = 8
    """Of LoRA."""
    alpha: float = 16.0
    num_prefix: int = 5
    num_prompt: int = 10
    targets: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    """Regular expressions of parameter names that stay as they are."""

    def resolved(self) -> TuneConfig:
        """Check every field and fill in what follows from others.

        Raises:
            BadInput: an unknown name or an impossible number.
        """
        check_types({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        if (self.task is None) == (not self.own):
            raise BadInput("name a --task or give your own files with --train, --test and --template, not both")
        for kind, name, known in (
            ("method", self.method, METHODS),
            ("scheme", self.scheme, DEFAULTS),
            ("schedule", self.schedule, SCHEDULES),
            ("query schedule", self.query_schedule, ("constant", "linear")),
            ("layer scale", self.layer_scale, LAYER_SCALES),
            ("selection", self.select, ("loss", "metric")),
            ("engine", self.engine, (None, *ENGINES)),
            ("split", self.split, SPLITS),
        ):
            if name not in known:
                raise BadInput(unknown(kind, str(name), [str(entry) for entry in known if entry]))
        for flag in (
            "steps",
            "batch_size",
            "queries",
            "micro_batch_size",
            "k_shot",
            "eval_every",
            "max_length",
        ):
            number = getattr(self, flag)
            if number is not None and number < 1:
                raise BadInput(f"--{flag.replace('_', '-')} is {number}: it must be at least 1")
        if self.lr == "auto" and METHODS[self.method].auto is None:
            suited = ", ".join(name for name, method in METHODS.items() if method.auto)
            raise BadInput(f"--lr auto is not known to suit {self.method}: give a number, or use one of {suited}")
        if isinstance(self.lr, str) and self.lr != "auto":
            raise BadInput(f"--lr is '{self.lr}': give a number or auto")
        for flag, value in (("lr", self.lr), ("eps", self.eps)):
            if value is not None and not isinstance(value, str) and not 0 < value < float("inf"):
                raise BadInput(f"--{flag} is {value}: it must be positive and finite")
        for flag in ("weight_decay", "warmup", "num_train", "num_dev", "num_test"):
            value = getattr(self, flag)
            if not 0 <= value < float("inf"):
                raise BadInput(f"--{flag.replace('_', '-')} is {value}: it must not be negative")
        METHODS[self.method].check(self.method, self.options)
        if self.queries is not None and "queries" not in METHODS[self.method].options():
            raise BadInput(
                f"--queries is {self.queries}, but the method {self.method} has no choice there: leave it out"
            )
        if self.query_schedule != "constant" and self.queries is None:
            raise BadInput(f"a {self.query_schedule} query schedule needs the number that it rises to: give --queries")
        if self.own and not self.aligned:
            raise BadInput("--unaligned goes with a --task: write your own template without that sentence instead")
        if self.own and self.data:
            raise BadInput("--data goes with a --task: give your own files with --train, --dev and --test")
        lr, eps = DEFAULTS[self.scheme]
        return dataclasses.replace(
            self,
            lr=self.lr if self.lr is not None else lr * LR_FACTORS.get(self.method, 1.0),
            eps=self.eps if self.eps is not None else eps,
            # Text is generated token by token, with decisions that several copies cannot take at once.
            # Several copies cannot share what lies before the first block that one of them perturbs.
            # The last bits of a loss may depend on how many points are walked at once.
            engine=self.engine
            or (
                STREAM
                if self.objective == "f1" or METHODS[self.method].blocks or self.split == DIRECTIONS
                else fastest_engine(self.device, self.scheme)
            ),
            eval_every=self.eval_every or max(1, -(-self.steps // 5)),
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_json(values: dict[str, Any]) -> TuneConfig:
        """Read `to_json`'s result.

        Raises:
            BadInput: a field that this release does not know.
        """
        known = {f.name for f in dataclasses.fields(TuneConfig)}
        for name in values:
            if name not in known:
                raise BadInput(unknown("setting", name, known))
        fixed: dict[str, Any] = {k: tuple(v) if k in ("targets", "freeze") else v for k, v in values.items()}
        return TuneConfig(**fixed)


KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a word"),
    "bool": ((bool,), "true or false"),
    "dict[str, Any]": ((dict,), "a table"),
    "tuple[str, ...]": ((list, tuple), "a list of words"),
    "None": ((type(None),), "nothing"),
}


def check_types(values: Mapping[str, Any]) -> None:
    """Refuse settings of the wrong kind.

    Raises:
        BadInput: with the setting, and what it should be; or a setting that does not exist.
    """
    kinds = {f.name: str(f.type).split(" | ") for f in dataclasses.fields(TuneConfig)}
    for name, value in values.items():
        if name not in kinds:
            raise BadInput(unknown("setting", name, kinds))
        allowed = {one for kind in kinds[name] for one in KINDS[kind][0]}
        fits = type(value) in allowed if isinstance(value, bool) else isinstance(value, tuple(allowed))
        if fits and isinstance(value, (list, tuple)):
            fits = all(isinstance(item, str) for item in value)
        if not fits:
            wanted = " or ".join(KINDS[kind][1] for kind in kinds[name] if kind != "None")
            raise BadInput(f"{name} is {value!r}: give {wanted}")


def fastest_engine(device: str, scheme: str) -> str:
    """The engine that was fastest where `gradless profile` measured this kind of device and scheme.

    ``engines.json`` is made from the committed measurements (benchmarks/choose_engine.py), so that the same command
    picks the same engine everywhere: the last bits of a loss depend on it. What was never measured gets the plainest.
    """
    measured = json.loads((Path(__file__).parent / "engines.json").read_text())
    engine: str = measured.get(device.split(":")[0], {}).get(scheme, STREAM)
    return engine


def read_config(folder: Path) -> TuneConfig:
    """The configuration of a run directory.

    Raises:
        BadInput: there is no run, or its file cannot be read.
    """
    path = folder / "config.json"
    try:
        return TuneConfig.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise BadInput(f"{folder} holds no run (no config.json): give the --out directory of a run") from None
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read ({error}): restore it from a copy") from None


def difference(old: TuneConfig, new: TuneConfig) -> str | None:
    """The first field in which two configurations differ, as a sentence, or None.

    The device, the place of the data and what processes split are left out: a run may continue elsewhere, and the
    ledger knows its data.
    """
    for f in dataclasses.fields(TuneConfig):
        if f.name in ("device", "data", "split"):
            continue
        a, b = getattr(old, f.name), getattr(new, f.name)
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                if a.get(key) != b.get(key):
                    return f"{key} was {a.get(key)!r} and is now {b.get(key)!r}"
        elif a != b:
            return f"{f.name} was {a!r} and is now {b!r}"
    return None
