"""Tuning from Python: one call that does what ``gradless tune`` does, and a run that shows itself in a notebook."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput, unknown
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.runs.facts import difference_line
from gradless.runs.own_files import check_size
from gradless.system.keywords import keywords, names_of, spoken
from gradless.system.progress import Reporter

__all__ = ["TunedRun", "tune"]

SIZES: Final = ("num_train", "num_dev", "num_test")
SPLITS: Final = ("train", "dev", "test")
HEIGHT: Final = 640  # pixels of a page in a cell


class Page:
    """A page of ``gradless report``, which a notebook shows in the cell.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r})"

    def _repr_html_(self) -> str:
        # The page itself and not its address: few notebooks serve files from where the run is.
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="{HEIGHT}" style="border: 1px solid #8884"></iframe>'


class TunedRun:
    """A run directory: its result, its page, and where other functions find it (it is a path to them).

    Args:
        folder: run directory.

    Example:
        >>> TunedRun("runs/none").status
        'interrupted'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from gradless.runs.record import read_result

        self.folder = Path(folder)
        self.result: dict[str, Any] = read_result(self.folder) or {}
        """Contents of ``result.json``; empty where a run stopped before its first step."""

    @property
    def status(self) -> str:
        """``done``, ``diverged`` or ``interrupted``."""
        return str(self.result.get("status", "interrupted"))

    @property
    def zero_shot(self) -> dict[str, float]:
        """Metrics of the untouched model on the test rows."""
        return dict(self.result.get("zero_shot", {}))

    @property
    def test(self) -> dict[str, float]:
        """Metrics of the tuned model on the test rows."""
        return dict(self.result.get("test", {}))

    def report(self) -> Page:
        """Write the page of the run and return it; a notebook shows it.

        Raises:
            BadInput: the folder holds no run.
        """
        from gradless import report

        return Page(report.report(self.folder, say=lambda line: None)[-1])

    @keywords(save="folder")
    def save(self, folder: str | os.PathLike[str], *, quiet: bool = False) -> Path:
        """Write the tuned model or adapter with its tokenizer and card to a folder, and return that.

        Raises:
            BadInput: the folder holds something, or there is no run to save.
        """
        from gradless.runs import jobs

        jobs.replay(self.folder, save=Path(folder), reporter=Reporter(quiet=quiet))
        return Path(folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def _rows(self) -> list[tuple[str, str, str]]:
        untouched = {name: f"{value:.4f}" for name, value in self.zero_shot.items()}
        return [(name, untouched.get(name, ""), f"{value:.4f}") for name, value in self.test.items()]

    def _lines(self) -> list[str]:
        """Return what a table of metrics does not say: the interval, where the run is, what to do next."""
        lines = list(filter(None, [difference_line(self.result)]))
        if self.status == "interrupted":
            return [*lines, "the same call with resume=True goes on"]
        return [*lines, "next: .report() for its page, .save(DIR) for the model"]

    def __repr__(self) -> str:
        rows = [f"{name:<12} {before:>8} {after:>8}".rstrip() for name, before, after in self._rows()]
        if rows:
            rows.insert(0, f"{'test':<12} {'before':>8} {'after':>8}")
        return "\n".join([f"{self.folder}: {self.status}", *rows, *self._lines()])

    def _repr_html_(self) -> str:
        def cells(kind: str, values: Sequence[str]) -> str:
            return f"<tr>{''.join(f'<{kind}>{html.escape(value)}</{kind}>' for value in values)}</tr>"

        rows = "".join(cells("td", row) for row in self._rows())
        table = f"<table>{cells('th', ('test', 'before', 'after'))}{rows}</table>" if rows else ""
        title = f"<b>{html.escape(str(self.folder))}</b>: {self.status}"
        return "<br>".join([title + table, *map(html.escape, self._lines())])


@keywords(TuneConfig, OwnFiles)
def tune(
    *,
    model: str,
    out: str | os.PathLike[str],
    train: Any = None,
    dev: Any = None,
    test: Any = None,
    template: str | None = None,
    label_column: str | None = None,
    labels: str | Mapping[Any, str] | None = None,
    resume: bool = False,
    save: str | os.PathLike[str] | None = None,
    report_to: str | Sequence[str] = (),
    force: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> TunedRun:
    """Fine-tune a model as ``gradless tune`` does, with the same names, and return the run.

    The run directory is that of the command line: ``gradless report``, ``predict`` and ``replay`` take it. An interrupt
    ends the run in good order, and ``resume=True`` goes on.

    Args:
        model: a known name (``gradless list models``), folder, GGUF file or hub id.
        out: run directory.
        train: own training rows: a file, folder or ``hub:owner/name`` as on the command line, or in memory a DataFrame,
            a `datasets.Dataset`, a table of pyarrow or polars, or a list of dictionaries, which ``out/data`` keeps.
        dev: rows for model selection; without them ``num_dev`` training rows are held out.
        test: test rows.
        template: prompt with column names, such as ``"{text} It was"``.
        label_column: column that holds the label; own rows of a run on a ``reward`` need none.
        labels: words for the labels, ``"0=terrible,1=great"`` or ``{0: "terrible", 1: "great"}``.
        resume: continue the run in ``out``, or begin it if there is none.
        save: folder for the tuned model or adapter.
        report_to: trackers that get the metrics (`gradless.runs.trackers`).
        force: go on where the memory here is too small for the model (`gradless.cost.memory_guard`).
        quiet: print warnings only.
        settings: any other field of `gradless.runs.config.TuneConfig` or `gradless.runs.config.OwnFiles`, such as
            ``task``, ``lr`` or ``steps``.

    Raises:
        BadInput: anything wrong with the settings, the data, the model or the directory.

    Example:
        >>> tune(model="tiny-llama", out="runs/mine", step=10)
        Traceback (most recent call last):
        ...
        gradless.errors.BadInput: unknown setting 'step': did you mean 'steps'? ...
    """
    from gradless.cost import memory_guard
    from gradless.runs import jobs

    folder = Path(out)
    rows = {name: value for name, value in (("train", train), ("dev", dev), ("test", test)) if value is not None}
    words = {"template": template, "label_column": label_column, "labels": _texts(labels)}
    own = {name: value for name, value in words.items() if value is not None}
    with _kept(rows, folder) as sources:
        config = _config(model, own | sources, settings)
        if not force:
            memory_guard.check(config)
        reporter = _InPython(quiet=quiet)
        try:
            jobs.tune(
                config,
                folder,
                resume=resume,
                save=None if save is None else Path(save),
                report_to=report_to,
                reporter=reporter,
            )
        except KeyboardInterrupt:  # before the first step, or while test rows are scored
            reporter.say("interrupted: the same call with resume=True goes on")
    return TunedRun(folder)


class _InPython(Reporter):
    """Says what the command line says, with the arguments of `tune` in place of options."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.names = names_of(tune, TuneConfig, OwnFiles)

    def say(self, line: str) -> None:
        super().say(spoken(line, self.names))

    def warn(self, line: str) -> None:
        super().warn(spoken(line, self.names))


def _texts(labels: str | Mapping[Any, str] | None) -> Any:
    return {str(value): word for value, word in labels.items()} if isinstance(labels, Mapping) else labels


def _config(model: str, own: dict[str, Any], settings: dict[str, Any]) -> TuneConfig:
    """Return a configuration with absolute paths, so that the run can be resumed and replayed from any folder."""
    files = [one.name for one in dataclasses.fields(OwnFiles)]
    fields = [one.name for one in dataclasses.fields(TuneConfig) if one.name != "own"]
    for name in settings:
        if name not in (*fields, *files):
            raise BadInput(unknown("setting", name, (*fields, *files)))
    own |= {name: settings.pop(name) for name in files if name in settings}
    labelled = {"label_column", "labels"} & own.keys() or not settings.get("reward")
    for name in ("template", *(("label_column", "labels") if labelled else ())) if own else ():
        if name not in own:
            also = ", or a reward" if name == "label_column" and "labels" not in own else ""
            raise BadInput(f"own rows need {name} as well{also}")
    if own:
        for name in SIZES:
            check_size(name, settings.get(name), own)
        settings = dict.fromkeys(SIZES, 0) | settings  # all rows
    if settings.get("data") is not None:
        settings["data"] = str(Path(settings["data"]).resolve())
    if os.path.exists(model):
        model = str(Path(model).resolve())
    return TuneConfig.from_json({"model": str(model), "own": own, **settings})


@contextlib.contextmanager
def _kept(rows: dict[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """Yield sources by split as a configuration names them; rows in memory are kept in files below ``folder``."""
    from gradless.tasks.sources import absolute

    written: dict[str, Path] = {}
    names: dict[str, str] = {}
    try:
        sources = {}
        for split, source in rows.items():
            if not isinstance(source, str | os.PathLike):
                names[split] = f"{split} (a {type(source).__name__})"
                source = written[split] = _write(source, folder / "data", split)
            sources[split] = absolute(os.fspath(source))
        yield sources
    except BadInput as error:
        sentence = str(error)
        for split, path in written.items():  # which the user has not written, and may be gone now
            sentence = sentence.replace(absolute(path), names[split])
        error.args = (sentence, *error.args[1:])
        if not (folder / "config.json").exists():  # nothing has begun
            for path in written.values():
                path.unlink(missing_ok=True)
            for empty in (folder / "data", folder):
                with contextlib.suppress(OSError):
                    empty.rmdir()
        raise


def _write(rows: Any, folder: Path, split: str) -> Path:
    """Write rows to a file that is named after its content, so that a run's data are never replaced; returns it."""
    if isinstance(rows, Mapping):  # the splits of a DatasetDict, or columns
        names = ", ".join(map(str, rows)) or "nothing"
        raise BadInput(f"{split} is a {type(rows).__name__} of {names}, and no rows: give one split, or a list of rows")
    if hasattr(rows, "to_dicts"):  # polars
        rows = rows.to_dicts()
    elif hasattr(rows, "to_pylist"):  # pyarrow
        rows = rows.to_pylist()
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".parquet" if hasattr(rows, "select_columns") else ".jsonl"
    path = folder / f"{split}{suffix}.new"
    try:
        if suffix == ".parquet":  # datasets, with the names of classes
            rows.to_parquet(str(path))
        elif hasattr(rows, "to_json"):  # pandas
            rows.to_json(path, orient="records", lines=True)
        else:
            path.write_text("".join(json.dumps(row, default=_plain) + "\n" for row in rows), encoding="utf-8")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        return path.rename(folder / f"{split}-{digest}{suffix}")
    except TypeError as error:
        raise BadInput(
            f"{split} is a {type(rows).__name__} that cannot be kept ({error}): write it to a file"
        ) from None
    finally:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Return the Python value of a scalar of NumPy or torch."""
    if hasattr(value, "item"):
        try:
            return value.item()
        except (ValueError, RuntimeError):  # NumPy's, and torch's
            raise TypeError(f"a {type(value).__name__} of several numbers in a column") from None
    raise TypeError(f"a {type(value).__name__} is no text and no number")
