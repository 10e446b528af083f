"""What a run directory of `gradless tune` holds, as one plain record: finished, unfinished, torn or from long ago."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gradless import ledger, plugins
from gradless.errors import BadInput
from gradless.lm import metrics
from gradless.methods import METHODS, Method
from gradless.report.common.numbers import counted, finite, metric_of, number
from gradless.report.common.read import mapping, parse_json, read_json
from gradless.runs import facts, predictions
from gradless.runs.config import TuneConfig, named_parts
from gradless.runs.facts import DataFacts
from gradless.runs.predictions import Prediction
from gradless.runs.record import DIVERGED, DONE, INTERRUPTED
from gradless.system import typed

UNFINISHED = "unfinished"
"""Of a run without ``result.json``: it was killed, or is still at work."""


class Step(NamedTuple):
    """One training step: what the ledger says, and what ``metrics.jsonl`` noted beside it."""

    step: int
    coeffs: tuple[float, ...]
    lr: float | None
    skipped: bool
    loss: float | None = None
    forwards: float | None = None
    seconds: float | None = None
    peak: float | None = None
    """Bytes; the highest so far."""
    reward: float | None = None
    """Mean over the members and the rows of the batch, in a run on a reward."""
    members: tuple[float, ...] = ()
    """Mean reward of each member that has one."""
    valid: float | None = None
    """Share of the texts that have a reward."""
    tokens: float | None = None
    """New tokens of a text, on the mean."""

    @property
    def speed(self) -> float | None:
        """Forward passes a second."""
        return self.forwards / self.seconds if self.forwards and self.seconds else None


class Evaluated(NamedTuple):
    """One evaluation of a split during the run."""

    split: str
    step: int
    loss: float | None
    metrics: dict[str, float]
    right: tuple[bool, ...]
    taken: int = 0
    """Steps that the run had taken by then; more than ``step`` where dev chose earlier weights."""
    tokens: float | None = None
    """New tokens of a generated text, on the mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run directory, read."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    """``result.json``; empty while there is none."""
    header: dict[str, Any]
    """Of the ledger; empty if there is none that can be read."""
    ledger_bytes: int
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluated, ...]
    inference_bytes: float | None
    predictions: tuple[Prediction, ...]
    data: DataFacts | None = None
    """What it was trained on; None for a run of an earlier release."""
    remarks: tuple[str, ...]
    """What is missing or damaged, a sentence each."""

    @property
    def status(self) -> str:
        """``done``, ``diverged``, ``interrupted``, or `UNFINISHED`."""
        status = self.result.get("status")
        return status if status in (DONE, DIVERGED, INTERRUPTED) else UNFINISHED

    @property
    def planned(self) -> int:
        """Steps that were asked for."""
        return int(number(self.config.get("steps")) or 0)

    @property
    def selected(self) -> int | None:
        """The step whose weights the result describes; None without one."""
        step = self.number("selected_step")
        return None if step is None else int(step)

    @property
    def model(self) -> str:
        """The model's name; of a path the last part."""
        return short_name(str(self.config.get("model", "unknown model")))

    @property
    def task(self) -> str:
        """The task's name, or that of the user's own files."""
        own = mapping(self.config.get("own"))
        named = self.config.get("task") or own.get("name")
        return str(named or (short_name(str(own["train"])) if "train" in own else "unknown task"))

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.config.get("method", "mezo"))

    @property
    def preset(self) -> Method | None:
        """What is known of the method; None for one that this release does not have."""
        return METHODS.get(self.method)

    @property
    def rewarded(self) -> bool:
        """Whether it was trained on a reward."""
        return bool(self.config.get("reward")) or any(step.reward is not None for step in self.steps)

    @property
    def metric(self) -> str:
        """The main metric: of a run on a reward its mean, else the task's."""
        if self.rewarded:
            return metrics.REWARDS[0]
        if self.config.get("task"):
            return metric_of(str(self.config["task"]))
        seen = (name for evaluation in self.evaluations for name in evaluation.metrics)
        return next(seen, next((name for name in self.numbers("test") if name != "loss"), "accuracy"))

    def numbers(self, part: str) -> dict[str, float]:
        """The metrics in ``zero_shot``, ``dev`` or ``test`` of the result."""
        return finite(mapping(self.result.get(part)))

    def number(self, name: str) -> float | None:
        """A field of the result."""
        return number(self.result.get(name))

    def interval(self, part: str) -> tuple[float, float] | None:
        """A 95 % interval of the result: of ``zero_shot``, ``test`` or ``difference``.

        It is of the share of right answers; with ``reward_`` in front of the part, of the mean reward.
        """
        interval = mapping(self.result.get("interval")).get(part)
        low, high = map(number, interval) if isinstance(interval, list) and len(interval) == 2 else (None, None)
        return None if low is None or high is None else (low, high)

    def interval_of(self, metric: str, part: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric, if it is one that has an interval; see `interval`."""
        if metric == metrics.REWARDS[0]:
            return self.interval(f"{metric}_{part}")
        return self.interval(part) if metric == self.share else None

    @property
    def share(self) -> str:
        """The name of the share of right answers: of a run on a reward, of texts whose reward passes."""
        return metrics.share_name([self.metric, *self.numbers("test"), *self.numbers("zero_shot")])

    def evaluation(self, split: str, step: int | None) -> Evaluated | None:
        """The last evaluation of a split at a step."""
        matches = [one for one in self.evaluations if (one.split, one.step) == (split, step)]
        return matches[-1] if matches else None

    @property
    def earlier_ends(self) -> list[Evaluated]:
        """Evaluations on test at ends that the run had before it was given more steps."""
        return [one for one in self.evaluations if one.split == "test" and 0 < one.taken < len(self.steps)]

    @property
    def settings(self) -> TuneConfig | None:
        """The configuration; None if another release wrote it and this one cannot read it."""
        try:
            return TuneConfig.from_json(self.config)
        except (BadInput, TypeError):
            return None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory of `gradless tune`, be it only a begun one."""
    if (folder / "results.jsonl").exists():
        return False  # of a benchmark
    config = read_json(folder / "config.json")
    return {"model", "method"} <= set(config) or (not config and (folder / "ledger").is_file())


def load(folder: Path) -> RunRecord:
    """Read a run directory; nothing in it is changed.

    What is damaged or missing is left out and told in `RunRecord.remarks`.

    Raises:
        BadInput: there is no run in the folder.
    """
    remarks: list[str] = []
    header, recorded, ledger_bytes = _ledger(folder / "ledger", remarks)
    config = read_json(folder / "config.json") or mapping(header.get("config"))
    if not config:
        raise BadInput(f"{folder} holds no run that can be read: give the --out directory of gradless tune")
    result = read_json(folder / "result.json")
    if not result and (folder / "result.json").exists():
        remarks.append("result.json cannot be read: restore it from a copy, or delete it and continue with --resume.")
    lines = _lines(folder / "metrics.jsonl", remarks)
    steps = _steps(recorded, lines)
    if result.get("status") == INTERRUPTED and recorded and number(result.get("steps")) != len(recorded):
        result = {}  # of the interrupt before: the run went on since then, and has not ended
    unnoted = sum(step.seconds is None for step in steps)
    if unnoted and lines:
        remarks.append(
            f"{counted(unnoted, 'step')} of the ledger {'has' if unnoted == 1 else 'have'} no line in metrics.jsonl: "
            "the weights have them, the curves do not."
        )
    remarks += _plugin_remarks(config)
    evaluations = _evaluations(lines)
    inference = (number(line.get("bytes")) for line in lines if line["event"] == "inference")
    record = RunRecord(
        folder=folder,
        config=config,
        result=result,
        header=header,
        ledger_bytes=ledger_bytes,
        steps=tuple(steps),
        evaluations=evaluations,
        inference_bytes=max(filter(None, inference), default=None),
        predictions=tuple(predictions.read(folder / predictions.FILE)),
        data=facts.of_run(folder, result),
        remarks=tuple(remarks),
    )
    return replace(record, remarks=(*remarks, *_earlier_looks(record)))


def _earlier_looks(record: RunRecord) -> list[str]:
    """Say that test was scored before the last steps were taken, if it was."""
    looks = [counted(one.taken, "step") for one in record.earlier_ends]
    if not looks:
        return []
    return [
        f"Steps were added after test had been scored at {' and at '.join(looks)}: whoever added them could know these "
        "figures, so the last ones may be a little too good."
    ]


def _plugin_remarks(config: dict[str, Any]) -> list[str]:
    """What is wrong with the plugins of the run, and what the page lacks for it."""
    try:
        recorded = typed.value("plugins", config.get("plugins", {}), dict[str, str])
        plugins.check(named_parts(config), recorded)
    except BadInput as error:
        sentence = str(error)
        return [f"{sentence[:1].upper()}{sentence[1:]}. The page lacks what the plugin knows of its parts."]
    return []


def _ledger(path: Path, remarks: list[str]) -> tuple[dict[str, Any], dict[int, Step], int]:
    """Header, steps by number, and size; nothing of a ledger that cannot be trusted."""
    if not path.is_file():
        remarks.append("There is no ledger: the run took no step, or the file was lost.")
        return {}, {}, 0
    size = path.stat().st_size
    try:
        contents = ledger.read(path)
    except BadInput as error:
        remarks.append(f"The ledger is left out: {error}.")
        return {}, {}, size
    if contents.torn_bytes:
        remarks.append(f"The ledger ends in {contents.torn_bytes} bytes of an unfinished step, which are left out.")
    steps = {
        update.step: Step(update.step, update.coeffs, update.lrs[0] if update.lrs else None, update.skipped)
        for update in contents.moves
    }
    return contents.header, steps, size


def _lines(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``."""
    if not path.is_file():
        remarks.append("There is no metrics.jsonl, so there are no curves.")
        return []
    lines, torn = [], 0
    for text in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            line = parse_json(text)
            whole = isinstance(line["event"], str) and number(line["step"]) is not None
        except (ValueError, KeyError, TypeError):
            whole = False
        lines += [line] if whole else []
        torn += not whole
    if torn:
        remarks.append(f"{counted(torn, 'damaged line')} of metrics.jsonl left out; a crash tears the last one.")
    return lines


def _steps(recorded: dict[int, Step], lines: list[dict[str, Any]]) -> list[Step]:
    """The ledger's steps with what metrics.jsonl notes of them; without a ledger what the notes alone tell."""
    noted = {int(line["step"]): line for line in lines if line["event"] == "step"}
    return [_step(recorded.get(step), noted.get(step, {}), step) for step in sorted(recorded or noted)]


def _step(recorded: Step | None, line: dict[str, Any], index: int) -> Step:
    if recorded is None:
        coeffs = line.get("coeffs")
        finite_coeffs = tuple(float(c) for c in coeffs if number(c) is not None) if isinstance(coeffs, list) else ()
        recorded = Step(index, finite_coeffs, number(line.get("lr")), bool(line.get("skipped")))
    names = ("loss", "forwards", "seconds", "peak_memory_bytes")
    loss, forwards, seconds, peak = (number(line.get(name)) for name in names)
    members = line.get("reward_members")
    return recorded._replace(
        loss=loss,
        forwards=forwards,
        seconds=seconds,
        peak=peak,
        reward=number(line.get("reward")),
        members=_numbers(members) if isinstance(members, list) else (),
        valid=number(line.get("valid")),
        tokens=number(line.get("completion_tokens")),
    )


def _numbers(values: list[Any]) -> tuple[float, ...]:
    return tuple(value for one in values if (value := number(one)) is not None)


def _evaluations(lines: list[dict[str, Any]]) -> tuple[Evaluated, ...]:
    """The evaluations, each with the steps that stand before it."""
    steps, evaluations = 0, []
    for line in lines:
        if line["event"] == "step":
            steps = int(line["step"]) + 1
        elif line["event"] == "eval":
            evaluations.append(_evaluated(line)._replace(taken=steps if line["step"] else 0))
    return tuple(evaluations)


def _evaluated(line: dict[str, Any]) -> Evaluated:
    right = line.get("correct")
    return Evaluated(
        split=str(line.get("split")),
        step=int(line["step"]),
        loss=number(line.get("loss")),
        metrics=finite({name: line.get(name) for name in (*metrics.REWARDS, *metrics.METRICS)}),
        right=tuple(map(bool, right)) if isinstance(right, list) else (),
        tokens=number(line.get("completion_tokens")),
    )


def short_name(text: str) -> str:
    """The last part of a path; anything else as it is."""
    return Path(text).name if text.startswith(("/", ".", "~")) else text
