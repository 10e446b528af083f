"""A tuned model with what it needs to predict: prompt, labels and limits, read from a run or from a saved model.

A saved model keeps them in ``gradless/classifier.json``; a run has them in its configuration. Here they are turned back
into a task, and rows of any kind into predictions with a probability for each label.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gradless import tasks
from gradless.errors import BadInput
from gradless.lm import evaluate, objectives
from gradless.lm import predict as predicting
from gradless.lm.loading import LanguageModel, set_chat
from gradless.lm.predict import Answer
from gradless.runs import reward_settings
from gradless.runs.config import TuneConfig
from gradless.system import typed
from gradless.system.atomic import write_json
from gradless.system.typed import Count
from gradless.tasks import Row, Task
from gradless.tasks.files import Unusable, listed
from gradless.tasks.own import checked_labels, own_task, parse_template
from gradless.tasks.own_prompts import prompt_task
from gradless.tasks.unlabelled import Reader, Unlabelled, own_reader, task_reader

__all__ = ["Classifier", "Prediction"]

FILE: Final = "classifier.json"
FORMAT: Final = 1
"""Raised when the meaning of a field changes; files of a later one are refused."""
CHUNK: Final = 2048
"""Rows that are in memory at a time, and sorted by length for their batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What a model needs beside its weights to predict, as ``gradless/classifier.json`` holds it."""

    format: int = FORMAT
    task: str | None = None
    """A built-in task; None: the template and the labels below."""
    aligned: bool = True
    """Whether a built-in task's prompt has its aligning words."""
    chat: bool = False
    """Whether prompts are messages of a chat, by the tokenizer's own template (`gradless.lm.chat`)."""
    template: str | None = None
    label_column: str | None = None
    """Where rows may have their right label; it is compared with, and not needed."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label -> word, as `gradless.tasks.custom` takes them."""
    columns: tuple[str, ...] = ()
    """That the template shows; for readers of the file, derived from the template."""
    words: tuple[str, ...] = ()
    """The texts that are scored, their leading spaces included (a chat has none); for readers of the file."""
    masked: bool = False
    max_length: Count | None = None
    """Most tokens of a sequence; None: what the model takes, 2,048 at most (masked models: the task's own)."""
    cut_side: str = "beginning"
    """Which end of a text that is too long is left out; for readers of the file."""
    calibrated: bool = False
    encoding: str | None = None
    """Of the files of the tuning: new ones that are no UTF-8 are read with it."""
    delimiter: str | None = None
    """Of the files of the tuning, where it had to be given."""
    objective: str | None = None
    """The loss of training, if not the task's own: whether it normalises decides on the last bit of probabilities."""
    max_new_tokens: Count | None = None
    """Of a generated text, if not the task's."""
    stop: tuple[str, ...] = ()
    """Texts that end a generated one, if not the task's."""

    def make_task(self) -> Task:
        """Return the task.

        Raises:
            BadInput: no such task, or a template or labels that cannot be used.
        """
        if self.task is not None:
            task = tasks.get(self.task)
            return reward_settings.for_run(task if self.aligned else tasks.unaligned(task), self)
        assert self.template is not None
        if not self.labels:
            return reward_settings.for_run(prompt_task(self.template), self)
        return own_task(self.template, self.labels)

    @property
    def columns_shown(self) -> tuple[str, ...]:
        """Columns that the template shows; none of a built-in task, whose fields have several names."""
        return parse_template(self.template).columns if self.template is not None else ()

    def reader(self, *, masked: bool = False, from_one: bool = False) -> Reader:
        """Return what reads a record as a row of the task; it needs no model. Raises: as `make_task`.

        Args:
            masked: whether the model is known to be a masked one; the spec may not say it.
            from_one: built-in tasks: whether labels that are numbers count from 1.
        """
        task = self.make_task()
        if self.template is None:
            return task_reader(task, masked=masked or self.masked, from_one=from_one)
        return own_reader(self.columns_shown, self.label_column, tuple(self.labels))


def spec_of(config: TuneConfig, *, masked: bool | None = None, calibrated: bool = False) -> Spec:
    """Return what the model of a run needs to predict; ``masked`` where the model is not at hand: by its template."""
    own = config.own
    masked = bool(own) and parse_template(own["template"]).masked if masked is None else masked
    spec = Spec(
        task=config.task,
        aligned=config.aligned,
        chat=config.chat,
        template=own.get("template"),
        label_column=own.get("label_column"),
        labels=checked_labels(own["labels"]) if own.get("labels") is not None else {},
        masked=masked,
        max_length=config.max_length,
        cut_side="end" if masked else "beginning",
        calibrated=calibrated,
        encoding=own.get("encoding"),
        delimiter=own.get("delimiter"),
        objective=config.objective,
        max_new_tokens=config.max_new_tokens,
        stop=config.stop,
    )
    task = spec.make_task()
    words = (task.masked_words if masked else task.label_words) or ()
    words = tuple(word.lstrip(" ") for word in words) if config.chat else words
    return dataclasses.replace(spec, columns=spec.columns_shown, words=words)


def write_spec(folder: Path, spec: Spec) -> None:
    """Write ``classifier.json`` into a folder."""
    values = dataclasses.asdict(spec)
    for name in ("max_new_tokens", "stop"):
        if not values[name]:
            del values[name]  # as before there was such a field
    write_json(folder / FILE, values)


def read_spec(path: Path) -> Spec:
    """Return what ``classifier.json`` holds.

    Raises:
        BadInput: it cannot be read, or was written by a later release.
    """
    values = typed.load(path)
    fix = "restore it from a copy, or give --template and --labels"
    if isinstance(values.get("format"), int) and values["format"] > FORMAT:
        raise BadInput(f"{path} was written by a later release of gradless: install that one")
    try:
        spec = Spec(**typed.table(values, Spec))
    except BadInput as error:
        raise BadInput(f"{path}: {error}; {fix}") from None
    if spec.task is None and spec.template is None:
        raise BadInput(f"{path} names neither a task nor a template: {fix}")
    return spec


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model predicts for one row."""

    label: str
    """The label's value; of a row with options of its own the text of the best one; or a generated text."""
    probabilities: dict[str, float]
    """Of each label (or option), adding up to 1; empty for a generated text."""
    index: int | None = None
    """Of the label or option in their order; None for a generated text."""


class Classifier:
    """A language model that labels rows by its prompt; `gradless.load_classifier` makes it.

    Attributes:
        lm: the model and its tokenizer.
        spec: prompt, labels and limits.
        task: what the spec describes, as a task.
    """

    def __init__(self, lm: LanguageModel, spec: Spec) -> None:
        self.lm, self.spec = lm, spec
        set_chat(lm, spec.chat)
        self.task = spec.make_task()
        if (self.task.render_masked if lm.masked else self.task.render) is None:
            evaluate.render(lm, self.task, [{}])  # whose sentence says what does not fit
        self.columns = spec.columns_shown
        self._read = spec.reader(masked=lm.masked)
        if spec.calibrated and self.task.kind == "generation":
            raise BadInput("calibration compares options, and this task's answers are free text: leave it out")

    @property
    def labels(self) -> tuple[str, ...]:
        """Values of the labels in their order; none if each row has options of its own, or answers are free text."""
        return self.task.labels or () if self.task.kind == "classification" else ()

    def predict(self, rows: Iterable[Any], *, batch_size: int | None = None) -> list[Prediction]:
        """Return the predictions for rows, in their order.

        Args:
            rows: dictionaries with the columns of the template (others are ignored), a list of texts if the template
                shows one column, a `pandas.DataFrame`, or a `datasets.Dataset`.
            batch_size: most rows of a batch; by default as many as fit 1,024 tokens on a CPU and 16,384 elsewhere.

        Raises:
            BadInput: rows that cannot be predicted, all of them named; or as `predict_iter`.
            NotFinite: the model's logits are NaN or infinite.

        Cost: one forward a batch; of several rows of a similar length each.

        Example:
            >>> import gradless as gl
            >>> review = gl.load_classifier("tiny-llama", template="{text} It was", labels="0=bad,1=good")
            >>> [prediction] = review.predict(["a joy"])
            >>> prediction.label in ("0", "1"), round(sum(prediction.probabilities.values()), 3)
            (True, 1.0)
        """
        records = list(self._records(rows))
        readings, problems = [], dict[tuple[str, str], list[int]]()
        for number, record in enumerate(records, start=1):
            try:
                readings.append(self.read(record).row)
            except Unusable as error:
                problems.setdefault(("row", str(error)), []).append(number)
        if problems:
            raise BadInput(listed(problems, len(records)))
        return [
            self.prediction(answer)
            for start in range(0, len(readings), CHUNK)
            for answer in self.answers(readings[start : start + CHUNK], batch_size=batch_size)
        ]

    def predict_iter(self, rows: Iterable[Any], *, batch_size: int | None = None) -> Iterator[Prediction]:
        """Yield the predictions for rows as they come, 2,048 in memory at a time; see `predict`.

        Raises:
            BadInput: a row cannot be predicted; what came before it has been yielded.
        """
        numbered = enumerate(self._records(rows), start=1)
        while chunk := list(itertools.islice(numbered, CHUNK)):
            readings = []
            for number, record in chunk:
                try:
                    readings.append(self.read(record).row)
                except Unusable as error:
                    raise BadInput(f"row {number}: {error}") from None
            yield from map(self.prediction, self.answers(readings, batch_size=batch_size))

    def read(self, record: Mapping[str, Any]) -> Unlabelled:
        """Return a record as the row that the prompt takes, and whether its label was known.

        Raises:
            Unusable: the record cannot be predicted.
        """
        return self._read(record)

    def answers(
        self, rows: Sequence[Row], *, batch_size: int | None = None, progress: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Return the model's answers to rows from `read`, batched by length. Cost: as `predict`."""
        objective = objectives.choose(self.task, self.spec.objective)
        return predicting.predict(
            self.lm,
            self.task,
            evaluate.render(self.lm, self.task, rows),
            calibrated=self.spec.calibrated,
            normalised=objective.normalised,
            max_length=self.spec.max_length,
            batch_size=batch_size,
            progress=progress,
        )

    def prediction(self, answer: Answer) -> Prediction:
        """Return an answer with the names of labels."""
        if answer.best < 0:
            return Prediction(answer.text, {})
        names = self.labels or answer.options
        return Prediction(names[answer.best], dict(zip(names, answer.probabilities, strict=True)), answer.best)

    def _records(self, rows: Any) -> Iterator[Mapping[str, Any]]:
        """Yield rows as dictionaries.

        Raises:
            BadInput: they are something else.
        """
        if isinstance(rows, (str, bytes, Mapping)):
            raise BadInput("predict takes several rows: put this one into a list")
        if hasattr(rows, "itertuples") and hasattr(rows, "iloc"):  # a DataFrame, which iterates over names of columns
            for start in range(0, len(rows), CHUNK):
                yield from rows.iloc[start : start + CHUNK].to_dict("records")
            return
        for row in rows:
            if isinstance(row, Mapping):
                yield row
            elif isinstance(row, str) and len(self.columns) == 1:
                yield {self.columns[0]: row}
            else:
                shown = ", ".join(map(repr, self.columns)) or "the task's fields"
                raise BadInput(f"a row is {type(row).__name__}: give dictionaries with {shown}")
