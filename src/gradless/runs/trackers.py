"""Experiment trackers that follow a run: Weights & Biases, MLflow, Trackio and whatever else accelerate knows.

They are sent the settings (no path, no prompt, no label), the numbers of each line of ``metrics.jsonl`` under the names
that `gradless.runs.tensorboard` gives them, and the numbers of ``result.json``; no row of the data and no text of it.

``trackers.json`` in the run directory holds, for each tracker, the id of its run and the last step of each kind of
line. A step is noted before it is sent, so none is sent twice: what a process that is killed had not sent, or what
the tracker's client still had in memory, is left out there. Without the file a resumed run begins a new run there.
"""

from __future__ import annotations

import contextlib
import importlib
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from gradless.errors import BadInput, pick
from gradless.runs import tensorboard
from gradless.runs.config import TuneConfig, read_config
from gradless.runs.record import INTERRUPTED, RunLog, read_lines
from gradless.runs.replay import shared_model
from gradless.runs.tracker_services import AXIS, SERVICES, Identity, Service, started
from gradless.system import terminal
from gradless.system.atomic import write_json
from gradless.system.side_files import read_json

Say = Callable[[str], None]
Line = dict[str, Any]  # of metrics.jsonl
FILE: Final = "trackers.json"
TENSORBOARD: Final = "tensorboard"  # written by `gradless.runs.tensorboard`
RETRY: Final = 60.0  # seconds until a tracker that failed is tried again
SHARE: Final = 10  # it is left alone for so many times the seconds that the failure took, if that is longer
LEFT_OUT: Final = ("own", "data", "device")  # settings that hold paths, prompts, labels or say where a run was


class Sent(msgspec.Struct):
    """What a tracker has of a run."""

    id: str
    last: dict[str, int]
    """Last step by kind of line: ``step``, ``inference``, ``summary``, or the split of an evaluation."""


def check(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of trackers, each once, that are known to accelerate and installed; a name may hold commas.

    Raises:
        BadInput: another name, or the package of a tracker is missing.

    Example:
        >>> check("tensorboard, tensorboard")
        ('tensorboard',)
    """
    texts = (names,) if isinstance(names, str) else names
    wanted = dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip())
    if not wanted:
        return ()
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    for name in wanted:
        pick("tracker", name, LOGGER_TYPE_TO_CLASS)
        if name != TENSORBOARD and name in LoggerType.list():  # of the others the class is here already
            try:
                importlib.import_module(name)
            except ImportError as error:
                reason = "" if isinstance(error, ModuleNotFoundError) and error.name == name else f" ({error})"
                raise BadInput(f"{name} is not installed{reason}: pip install {name}") from None
    return tuple(wanted)


class Trackers:
    """The trackers that follow one run, beside TensorBoard.

    Args:
        names: as `check` returns them.
        folder: run directory.
        say: receives a line if a tracker fails, which does not end the run.
    """

    def __init__(self, names: Sequence[str], folder: Path, say: Say) -> None:
        self._names = [name for name in names if name != TENSORBOARD]
        self._folder, self._say = folder, say
        self._followers: list[_Follower] = []

    def watch(self, log: RunLog) -> None:
        """Start all trackers, send what they lack, and follow a run's log.

        Raises:
            BadInput: one of them does not start.
        """
        self._follow(log.lines)
        log.observers.extend(follower.observe for follower in self._followers)

    def _follow(self, lines: list[Line]) -> None:
        book = _read_book(self._folder)
        for name in self._names:
            follower = _Follower(name, self._folder, book, lines, self._say)
            follower.start()
            self._followers.append(follower)

    def summarise(self, result: dict[str, Any]) -> None:
        """Send the numbers of ``result.json``, and of a run that was finished already whatever is missing."""
        if result["status"] == INTERRUPTED or not (self._names or self._followers):
            return
        summary = {"event": "summary", "step": result["steps"], **_numbers(result)}
        lines = read_lines(self._folder / "metrics.jsonl") if not self._followers else []
        book = _read_book(self._folder) if lines else {}
        if not self._followers and any(_due(book.get(name), one) for name in self._names for one in (*lines, summary)):
            try:
                self._follow(lines)
            except BadInput as error:  # the run is finished, and that is what was asked for
                self._say(str(error))
        for follower in self._followers:
            follower.observe(summary)

    def close(self) -> None:
        """Try once more to send what is missing, and end the tracker's part of the run."""
        for follower in self._followers:
            follower.close()


@contextlib.contextmanager
def following(names: Sequence[str], folder: Path, say: Say) -> Iterator[Trackers]:
    """Yield `Trackers`, and close them."""
    trackers = Trackers(names, folder, say)
    try:
        yield trackers
    finally:
        trackers.close()


class _Follower:
    """Sends a tracker the lines that it lacks, in their order."""

    def __init__(self, name: str, folder: Path, book: dict[str, Sent], lines: Sequence[Line], say: Say) -> None:
        self.name, self._folder, self._book, self._say = name, folder, book, say
        self._service = SERVICES.get(name, Service("see its message"))
        self._waiting = list(lines)
        self._tracker: Any = None
        self._failed = False
        self._pause_until = 0.0

    def start(self) -> None:
        """Start the tracker, or continue its run; a new one gets the settings.

        Raises:
            BadInput: it does not start.
        """
        config, sent = read_config(self._folder), self._book.get(self.name)
        run = Identity(self._folder.resolve().name, sent.id if sent else uuid.uuid4().hex, sent is None)
        try:
            tracker = started(self.name, self._service, run, self._folder)
            if run.new:
                tracker.store_init_configuration(settings(config))
            self._book[self.name] = sent or Sent(self._service.id(tracker.tracker) if self._service.id else run.id, {})
            self._write_book()
        except Exception as error:
            again = "" if run.new else f"; or delete {self._folder / FILE} to begin a new run there"
            raise BadInput(f"{self.name} did not start ({_reason(error)}): {self._service.fix}{again}") from error
        self._tracker = tracker
        self._send_waiting()

    def observe(self, line: Line) -> None:
        """Send one more line."""
        self._waiting.append(line)
        if time.monotonic() >= self._pause_until:
            self._send_waiting()

    def _send_waiting(self) -> None:
        began = time.monotonic()
        try:
            while self._waiting:
                self._send(self._waiting[0])
                del self._waiting[0]
        except Exception as error:  # of any kind: a tracker must not stop a run
            self._pause_until = time.monotonic() + max(RETRY, SHARE * (time.monotonic() - began))
            if not self._failed:
                self._say(f"{self.name} takes no metrics ({_reason(error)}): the run goes on, and they are sent later")
            self._failed = True
            return
        if self._failed:
            self._say(f"{self.name} has all metrics again")
        self._failed = False

    def _send(self, line: Line) -> None:
        sent = self._book[self.name]
        if not _due(sent, line):
            return
        last, kind = dict(sent.last), _kind(line)
        sent.last[kind] = line["step"]
        try:
            self._write_book()
            if values := _values(line):
                if self._service.own_axis:
                    self._tracker.log(values | {AXIS: line["step"]})
                else:
                    self._tracker.log(values, step=line["step"])
        except Exception:
            sent.last = last
            with contextlib.suppress(OSError):
                self._write_book()
            raise

    def close(self) -> None:
        """Send what is missing, and end the tracker's part of the run."""
        if self._tracker is None:
            return
        self._send_waiting()
        if self._waiting:
            self._say(
                f"{self.name} lacks {len(self._waiting)} lines of metrics: the same command with --resume sends them"
            )
        try:
            self._service.end(self._tracker)
        except Exception as error:
            self._say(f"{self.name} did not end well ({_reason(error)}): the run itself is complete")

    def _write_book(self) -> None:
        write_json(self._folder / FILE, {name: msgspec.to_builtins(sent) for name, sent in self._book.items()})


def settings(config: TuneConfig) -> dict[str, Any]:
    """Return the settings that trackers get: plain values, without paths, prompts and labels.

    Example:
        >>> settings(TuneConfig(model="/home/me/models/mine", task="sst2", options={"keep": 0.5}))["options.keep"]
        0.5
    """
    values: dict[str, Any] = {}
    for name, value in config.to_json().items():
        if name in LEFT_OUT:
            continue
        if isinstance(value, dict):
            values |= {f"{name}.{Path(key).name}": one for key, one in value.items()}
        else:
            values[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return values | {"model": shared_model(config.model)}


def _reason(error: Exception) -> str:
    return textwrap.shorten(terminal.sentence(error), 200, placeholder=" ...") or type(error).__name__


def _read_book(folder: Path) -> dict[str, Sent]:
    try:
        return msgspec.convert(read_json(folder / FILE), dict[str, Sent])
    except msgspec.ValidationError:
        return {}


def _due(sent: Sent | None, line: Line) -> bool:
    return sent is None or bool(line["step"] > sent.last.get(_kind(line), -1))


def _kind(line: Line) -> str:
    """Return what steps rise within: a split, or the event."""
    return str(line.get("split", line["event"]))


def _values(line: Line) -> dict[str, float]:
    if line["event"] == "summary":
        return {f"summary/{name}": value for name, value in line.items() if name not in ("event", "step")}
    scalars = (event for event in tensorboard.events([line], every=1) if not isinstance(event.value, tuple))
    return {event.tag: event.value for event in scalars}  # type: ignore[misc]


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a result and of its evaluations."""
    splits = {
        f"{split}_{name}": value for split in ("zero_shot", "dev", "test") for name, value in result[split].items()
    }
    plain = {name: value for name, value in result.items() if isinstance(value, int | float)}
    return plain | splits
