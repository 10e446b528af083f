"""``gradless predict``: rows in, the same rows with predictions out, a chunk at a time.

A file is read twice: first it is checked, and all rows that cannot be predicted are told before the model is loaded;
then it is predicted. Standard input is read once. The output appears under its name when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput, unknown
from gradless.lm import encode
from gradless.lm.predict import Answer, reading_limit
from gradless.runs.classifier import CHUNK, Classifier, Spec
from gradless.runs.load_classifier import Unloaded
from gradless.runs.row_files import PARQUET, STDIN, WRITES, Chunk, Column, Source, opened, writer
from gradless.system.atomic import replacing
from gradless.system.progress import Reporter
from gradless.system.signals import ENDING, interrupting
from gradless.tasks import column_names
from gradless.tasks.files import Unusable, listed
from gradless.tasks.text_rows import Wanted, kind_of
from gradless.tasks.unlabelled import LABEL, Numbering, Reader, Unlabelled
from gradless.tasks.written_before import as_before

DIGITS: Final = 9
"""Significant digits of a probability, which tell every float32 from all others."""
FROM_ONE: Final = "the labels, numbers from {0.least} to {0.most},"
"""How the sentence begins about labels that count from 1, of their `Numbering`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """What is read and written, and how."""

    input: str
    """A file, or ``-`` for standard input."""
    output: Path | None = None
    """None: standard output."""
    form: str | None = None
    """What standard input holds: csv, tsv or jsonl; None recognises it."""
    delimiter: str | None = None
    encoding: str | None = None
    keep: tuple[str, ...] = ()
    """Columns of the input to write; none given: all."""
    prefix: str = ""
    """In front of the names of new columns."""
    skip_bad: bool = False
    """Leave out rows that cannot be predicted instead of refusing all."""
    force: bool = False
    """Replace an output file that exists."""


@dataclass(slots=True)
class Counts:
    """What came of a file."""

    rows: int = 0
    blank: int = 0
    bad: int = 0
    cut: int = 0
    labelled: int = 0
    """Rows whose own label is one of the labels."""
    right: int = 0
    numbering: Numbering = field(default_factory=Numbering)
    """What the field of built-in tasks that holds the label counts from."""
    problems: dict[tuple[str, str], list[int | str]] = field(default_factory=dict)
    """What is counted and what is wrong with rows -> their numbers."""

    def refuse(self, unit: str, number: int | str, what: str) -> None:
        """Note a row that cannot be predicted."""
        self.bad += 1
        self.problems.setdefault((unit, what), []).append(number)

    def sentence(self) -> str:
        """Return what is wrong with rows."""
        return listed(self.problems, self.rows + self.blank + self.bad)


def predict(unloaded: Unloaded, files: Files, *, batch_size: int | None, reporter: Reporter) -> Counts:
    """Predict the rows of a file and write them with their predictions; returns what was counted.

    Args:
        unloaded: the model, whose weights are read once the file is known to be usable.
        files: what to read and write.
        batch_size: most rows of a batch; by default only their tokens count.
        reporter: where progress goes; not to standard output if the rows go there.

    Raises:
        BadInput: the file, some of its rows, the output or the model cannot be used. Nothing is written then, but for
            what standard output has received of standard input.
        KeyboardInterrupt: with what was done.

    Memory: the weights and 2,048 rows. Cost: one forward a batch, sorted by length among these rows.
    """
    suffix = check(files)
    spec = unloaded.spec
    wanted = Wanted(spec.columns_shown, spec.label_column or "", (), files.delimiter, files.encoding)
    if files.input != STDIN:
        wanted = as_before(Path(files.input), wanted, spec.encoding, spec.delimiter, reporter.say)
    new = new_columns(spec, files.prefix)
    checked = None if files.input == STDIN else _checked(files, wanted, spec, new, reporter)
    from_one = checked is not None and _from_one(spec, checked)
    counts = Counts()
    begun = 0.0
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(interrupting(*ENDING))
            path = None
            if files.output is not None:
                files.output.parent.mkdir(parents=True, exist_ok=True)
                path = stack.enter_context(replacing(files.output))
                path.touch()
            classifier = unloaded.load()
            reader = spec.reader(masked=classifier.lm.masked, from_one=from_one)
            begun = time.perf_counter()
            source = stack.enter_context(opened(files.input, files.form, wanted, CHUNK))
            if checked is None:
                _check_columns(source.name, source.columns, files, wanted, new)
                known = _say_notes(source, reporter)
            write = stack.enter_context(writer(path, suffix, source, files.keep or None, new))
            show = stack.enter_context(reporter.job("predict", checked.rows if checked else None))
            for chunk, rows in _readings(source, reader, counts, files, wanted, new):
                answers = classifier.answers(
                    [one.row for one in rows],
                    batch_size=batch_size,
                    progress=lambda done: show(counts.rows + done, ""),
                )
                write(chunk, [values(classifier, answer) for answer in answers])
                _count(counts, rows, answers, classifier)
            if checked is None:
                _say_notes(source, reporter, known)
    except BrokenPipeError:  # whoever read the rows has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        left = f"; {files.output} is not written" if files.output else ""
        raise KeyboardInterrupt(f"{counts.rows:,} rows were predicted{left}") from None
    _say_counts(counts, files, classifier, time.perf_counter() - begun, reporter)
    return counts


def new_columns(spec: Spec, prefix: str = "") -> list[Column]:
    """Return the columns that predictions have: of a classification ``predicted_label`` and ``p_LABEL`` for each label.

    Rows with options of their own get ``predicted_index``, ``predicted_text`` and the list ``probabilities``, and
    generated answers are ``predicted_text`` alone.
    """
    task = spec.make_task()
    if task.kind == "classification":
        names = [f"p_{label}" for label in task.labels or ()]
        columns = [Column("predicted_label", str), *(Column(name, float) for name in names)]
    elif task.kind == "choice":
        columns = [Column("predicted_index", int), Column("predicted_text", str), Column("probabilities", list)]
    else:
        columns = [Column("predicted_text", str)]
    return [column._replace(name=prefix + column.name) for column in columns]


def values(classifier: Classifier, answer: Answer) -> list[Any]:
    """Return what `new_columns` hold of an answer."""
    shares = [float(f"{share:.{DIGITS}g}") for share in answer.probabilities]
    if classifier.labels:
        return [classifier.labels[answer.best], *shares]
    return [answer.best, answer.text, shares] if answer.options else [answer.text]


# ------------------------------------------------------------------------------------------------------------
# before anything is computed


def check(files: Files) -> str:
    """Return the suffix of the output's format, "" for that of the input.

    Raises:
        BadInput: the output exists, or cannot be one.
    """
    output = files.output
    if output is None:
        return ".jsonl" if Path(files.input).suffix.lower() in (*PARQUET, ".arrow", ".feather", ".ipc") else ""
    kind = kind_of(output)
    if kind not in WRITES:
        raise BadInput(f"{output} is of no known type: let it end in .csv, .tsv, .jsonl or .parquet")
    if output.is_dir():
        raise BadInput(f"{output} is a folder: name a file in it")
    if files.input != STDIN and output.exists() and Path(files.input).exists() and output.samefile(files.input):
        raise BadInput(f"{output} is the input itself: choose another --output")
    if output.exists() and not files.force:
        raise BadInput(f"{output} exists already: choose another --output, or give --force to replace it")
    return kind + (".gz" if output.suffix == ".gz" and kind not in PARQUET else "")


def _checked(files: Files, wanted: Wanted, spec: Spec, new: Sequence[Column], reporter: Reporter) -> Counts:
    """Read a file once and count its rows.

    Raises:
        BadInput: it cannot be read, a column is missing or taken, or rows cannot be predicted, all of which are told.
    """
    counts, reader = Counts(), spec.reader()
    with opened(files.input, files.form, wanted, CHUNK, needed_only=True) as source:
        _check_columns(source.name, source.columns, files, wanted, new)
        known = _say_notes(source, reporter)
        for chunk in source.chunks:
            counts.rows += len(_usable(source, chunk, reader, counts, files, wanted, new))
        _say_notes(source, reporter, known)
    if counts.bad and not files.skip_bad:
        raise BadInput(
            f"{files.input}, {counts.sentence()} (--skip-bad leaves out "
            f"{'this row' if counts.bad == 1 else f'these {counts.bad:,} rows'})"
        )
    if not counts.rows and counts.bad:
        raise BadInput(f"{files.input}, {counts.sentence()}: no row is left")
    if _from_one(spec, counts):
        reporter.say(f"{files.input}: {FROM_ONE.format(counts.numbering)} are read as counting from 1")
    return counts


def _from_one(spec: Spec, counts: Counts) -> bool:
    """Return whether the labels of rows of a built-in task are numbers that count from 1."""
    return spec.template is None and counts.numbering.from_one(spec.make_task())


def _check_columns(
    name: str, columns: Sequence[str] | None, files: Files, wanted: Wanted, new: Sequence[Column]
) -> None:
    """Refuse a table without a column of the template or of ``keep``, or with one that predictions would replace."""
    if columns is None:
        return
    spaced = column_names.spaced(columns, wanted.columns).values()
    for column in (*wanted.columns, *files.keep):
        if column not in columns and (column not in spaced or column in files.keep):
            raise BadInput(f"{name}: {unknown('column', column, columns)}")
    _check_taken(name, [one for one in columns if not files.keep or one in files.keep], new)


def _check_taken(name: str, columns: Sequence[str], new: Sequence[Column]) -> None:
    for column in new:
        if column.name in columns:
            raise BadInput(f"{name} has a column {column.name!r} already: rename it, or give --prefix for the new ones")


def _say_notes(source: Source, reporter: Reporter, after: int = 0) -> int:
    """Say the notes after so many, and return how many there are; rows that are read may add some."""
    for note in source.notes[after:]:
        reporter.say(f"{source.name}: {note}")
    return len(source.notes)


# ------------------------------------------------------------------------------------------------------------
# rows


def _usable(
    source: Source,
    chunk: Chunk,
    reader: Reader,
    counts: Counts,
    files: Files,
    wanted: Wanted,
    new: Sequence[Column],
) -> list[tuple[int, Unlabelled]]:
    """Return the rows of a chunk that can be predicted, with their place in it; the others are counted."""
    rows = []
    for i, record in enumerate(chunk.records):
        if not record.problem and all(value is None or not str(value).strip() for value in record.cells.values()):
            counts.blank += bool(record.cells)
            continue
        if source.columns is None and not record.problem:
            _check_taken(f"{source.name}, {source.unit} {record.number}", [*record.cells], new)
        try:
            if record.problem:
                raise Unusable(record.problem)
            rows.append((i, reader(record.cells)))
            counts.numbering.note(record.cells.get(LABEL))
        except Unusable as error:
            counts.refuse(source.unit, record.number, str(error))
    return rows


def _readings(
    source: Source, reader: Reader, counts: Counts, files: Files, wanted: Wanted, new: Sequence[Column]
) -> Iterator[tuple[Chunk, list[Unlabelled]]]:
    """Yield chunks of usable rows, as they are written and as they are predicted.

    Raises:
        BadInput: a row cannot be predicted, and bad rows are not left out.
    """
    for chunk in source.chunks:
        rows = _usable(source, chunk, reader, counts, files, wanted, new)
        if counts.bad and not files.skip_bad:
            finished = f" ({counts.rows:,} rows before them are done)" if counts.rows and files.output is None else ""
            raise BadInput(f"{source.name}, {counts.sentence()}{finished}")
        if rows:
            yield chunk.kept([i for i, _ in rows]), [row for _, row in rows]


def _count(counts: Counts, rows: Sequence[Unlabelled], answers: Sequence[Answer], classifier: Classifier) -> None:
    counts.rows += len(rows)
    counts.cut += sum(answer.cut for answer in answers)
    if classifier.task.kind == "classification":
        counts.labelled += sum(row.labelled for row in rows)
        pairs = zip(rows, answers, strict=True)
        counts.right += sum(row.labelled and row.row["label"] == answer.best for row, answer in pairs)


def _say_counts(counts: Counts, files: Files, classifier: Classifier, seconds: float, reporter: Reporter) -> None:
    """Say what came of the file."""
    if counts.blank:
        reporter.say(f"{counts.blank:,} blank {'row is' if counts.blank == 1 else 'rows are'} left out")
    if counts.bad:
        reporter.say(f"{counts.bad:,} bad rows are left out: {counts.sentence()}")
    if counts.cut:
        limit = reading_limit(classifier.lm, classifier.task, classifier.spec.max_length)
        reporter.say(encode.cut_sentence(classifier.lm, "input", counts.cut, counts.rows, limit))
    where = f" -> {files.output}" if files.output else ""
    reporter.say(f"{counts.rows:,} rows in {seconds:.1f} s ({counts.rows / max(seconds, 1e-9):,.0f} a second){where}")
    if files.input == STDIN and _from_one(classifier.spec, counts):  # they were read from 0
        reporter.say(f"{FROM_ONE.format(counts.numbering)} seem to count from 1: give a file instead of - for accuracy")
    elif counts.labelled:
        share = counts.right / counts.labelled
        some = "" if counts.labelled == counts.rows else f" of the {counts.labelled:,} rows whose label is known"
        reporter.say(f"accuracy {share:.4f}{some} (column {classifier.spec.label_column or 'label'!r} of the input)")
