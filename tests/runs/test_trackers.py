"""Trackers get what metrics.jsonl says, once, however often a run or a tracker was stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import run_helpers as h
from gradless.cli import main
from gradless.errors import BadInput
from gradless.runs import jobs, trackers, train
from gradless.system.progress import Reporter

tracking = pytest.importorskip("accelerate.tracking")
QUIET = Reporter(quiet=True)


class Server:
    """What a tracker's server knows: by run, its settings and what was sent."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.settings: list[dict[str, Any]] = []
        self.down = False
        self.finished = 0
        self.refuses: str | None = None

    def steps(self, tag: str) -> list[int]:
        (lines,) = self.runs.values()
        return [step for step, values in lines if tag in values]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server behind the tracker ``fake``."""
    server = Server()

    class Fake(tracking.GeneralTracker):
        name = "fake"
        requires_logging_directory = False

        def __init__(self, project: str, **arguments: Any) -> None:
            super().__init__()
            assert project == "gradless"
            self.run = arguments["id"]

        @property
        def tracker(self) -> Any:
            return self

        def start(self) -> None:
            if server.refuses:
                raise ValueError(server.refuses)
            server.runs.setdefault(self.run, [])

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            server.settings.append(values)

        def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
            if server.down:
                raise ConnectionError("no route to host")
            assert step is not None
            server.runs[self.run].append((step, values))

        def finish(self) -> None:
            server.finished += 1

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    service = trackers.Service("turn it on", arguments=lambda run: {"id": run.id})
    monkeypatch.setitem(trackers.SERVICES, "fake", service)
    return server


def tune(folder: Path, *, reporter: Reporter = QUIET, **changes: Any) -> dict[str, Any]:
    return jobs.tune(h.config(folder, **changes), folder / "run", resume=True, report_to="fake", reporter=reporter)


def warnings(monkeypatch: pytest.MonkeyPatch) -> tuple[Reporter, list[str]]:
    lines: list[str] = []
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "warn", lines.append)
    return reporter, lines


def test_a_tracker_gets_settings_steps_evaluations_and_summary(tmp_path, server):
    result = tune(tmp_path)
    assert server.steps("train/loss") == [0, 1, 2]
    assert server.steps("dev/loss") == [0, 1, 2, 3]
    assert server.steps("test/loss") == [0, result["selected_step"]]
    (sent,) = server.runs.values()
    steps = h.notes(tmp_path / "run", "step")
    assert [values["train/loss"] for _, values in sent if "train/loss" in values] == [line["loss"] for line in steps]
    assert sent[-1][0] == 3
    assert sent[-1][1]["summary/test_accuracy"] == result["test"]["accuracy"]
    assert server.settings[0]["steps"] == 3
    assert server.finished == 1


def test_no_path_prompt_or_label_is_sent(tmp_path, server):
    tune(tmp_path, freeze=("embed", "norm"))
    text = json.dumps([server.settings, server.runs])
    for private in (str(tmp_path), "terrible", "{text}", "was", "label", "train.csv"):
        assert private not in text
    assert server.settings[0]["freeze"] == "embed norm"
    assert all(isinstance(value, str | int | float | None) for value in server.settings[0].values())
    local = trackers.settings(h.config(tmp_path, model=str(tmp_path / "mine"), options={"keep": 0.5}))
    assert (local["model"], local["options.keep"]) == ("./mine", 0.5)


def test_a_killed_run_continues_at_the_tracker_without_a_step_twice(tmp_path, server, monkeypatch):
    true_step, calls = train._step, [0]

    def step(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] in (3, 6):
            raise RuntimeError("killed")
        return true_step(*args)

    monkeypatch.setattr(train, "_step", step)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            tune(tmp_path, steps=6)
    tune(tmp_path, steps=6)
    tune(tmp_path, steps=6)
    assert server.steps("train/loss") == list(range(6))
    assert len(server.steps("dev/loss")) == len(set(server.steps("dev/loss")))
    assert len(server.steps("summary/steps")) == len(server.settings) == 1


def test_more_steps_of_a_finished_run_follow_at_the_tracker(tmp_path, server):
    tune(tmp_path, steps=2)
    tune(tmp_path, steps=4)
    assert server.steps("train/loss") == list(range(4))
    assert server.steps("summary/steps") == [2, 4]
    assert len(server.settings) == 1


def test_what_a_tracker_missed_follows_at_the_end_or_on_resume(tmp_path, server, monkeypatch):
    reporter, lines = warnings(monkeypatch)
    monkeypatch.setattr(trackers, "RETRY", 0.0)
    monkeypatch.setattr(trackers, "SHARE", 0)
    true_step = train._step

    def step(*args: Any) -> Any:
        server.down = args[0].model.optimizer.t in (1, 3)
        return true_step(*args)

    monkeypatch.setattr(train, "_step", step)
    result = tune(tmp_path, steps=5, reporter=reporter)
    assert result["status"] == "done"
    assert server.steps("train/loss") == list(range(5))
    assert [line.partition(":")[0] for line in lines] == [
        "fake takes no metrics (no route to host)",
        "fake has all metrics again",
    ] * 2


def test_a_tracker_that_stays_away_gets_everything_from_a_finished_run(tmp_path, server, monkeypatch):
    reporter, lines = warnings(monkeypatch)
    true = trackers._Follower.start

    def start(follower: Any) -> None:
        true(follower)
        server.down = True

    with monkeypatch.context() as patch:
        patch.setattr(trackers._Follower, "start", start)
        weights = tune(tmp_path, reporter=reporter)["weights_sha256"]
    assert server.steps("train/loss") == []
    assert [line.partition("(")[0] for line in lines] == [
        "fake takes no metrics ",
        "fake lacks 11 lines of metrics: the same command with --resume sends them",
    ]
    server.down, server.refuses = False, "no route to host"
    assert tune(tmp_path, reporter=reporter)["weights_sha256"] == weights  # finished is success
    assert lines[2].startswith("fake did not start (no route to host): turn it on; or delete ")
    server.refuses = None
    assert tune(tmp_path, reporter=reporter)["weights_sha256"] == weights
    assert server.steps("train/loss") == [0, 1, 2]
    assert len(server.steps("summary/steps")) == 1
    assert server.finished == 2


def test_a_tracker_that_does_not_start_stops_the_run_before_it_begins(tmp_path, server):
    server.refuses = "not logged in"
    with pytest.raises(BadInput, match=r"^fake did not start \(not logged in\): turn it on$"):
        tune(tmp_path)
    assert not (tmp_path / "run").exists()
    server.refuses = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tune(tmp_path)
    server.refuses = "no such run"
    with pytest.raises(BadInput, match=r"turn it on; or delete .*trackers.json to begin a new run there"):
        tune(tmp_path)


@pytest.mark.parametrize("book", ["", "[]", '{"fake": 3}', '{"fake": {"id": "x", "last": {"step": "many"}}}'])
def test_a_lost_side_file_begins_a_new_run_there(tmp_path, server, book):
    tune(tmp_path)
    (tmp_path / "run" / trackers.FILE).write_text(book)
    tune(tmp_path)
    assert len(server.runs) == 2
    assert [len(lines) for lines in server.runs.values()] == [11, 11]


def test_unknown_and_missing_trackers_are_named(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="unknown tracker 'wandbb': did you mean 'wandb'"):
        trackers.check("tensorboard,wandbb")
    monkeypatch.setitem(sys.modules, "swanlab", None)
    done = CliRunner().invoke(
        main,
        ["tune", "--model", "tiny-llama", "--task", "sst2", "--out", str(tmp_path / "run"), "--report-to", "swanlab"],
    )
    assert done.exit_code == 2
    assert "swanlab is not installed" in done.stderr
    assert done.stderr.endswith("pip install swanlab\n")
    assert not (tmp_path / "run").exists()


def test_tensorboard_by_its_name_is_the_writer_that_repeats_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    for _ in range(2):
        jobs.tune(h.config(tmp_path), tmp_path / "run", resume=True, report_to=["tensorboard"], reporter=QUIET)
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 1
    assert not (tmp_path / "run" / trackers.FILE).exists()


# ---------------------------------------------------------------------------------------------------------------
# the real ones, offline, where they are installed

STOPPED = """
import sys
from gradless.cli import main
from gradless.runs import train
true = train._step
def step(*arguments):
    assert arguments[0].model.optimizer.t < 3
    return true(*arguments)
train._step = step
main(sys.argv[1:])
"""
MLFLOW = """
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("gradless").experiment_id])
points = [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, "train/loss")]
show(points, str(run.to_dictionary()))
"""
TRACKIO = """
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("gradless")
lines = SQLiteStorage.get_logs("gradless", run)
config = SQLiteStorage.get_run_config("gradless", run)
show([[line["step"], line["train/loss"]] for line in lines if "train/loss" in line], str((config, lines)))
"""
WANDB = """
import os, pathlib, struct
from wandb.proto import wandb_internal_pb2 as pb
points, text = [], ""
for path in sorted(pathlib.Path(os.environ["WANDB_DIR"]).glob("wandb/offline-run-*/run-*.wandb")):
    data, at, body = path.read_bytes(), 7, b""
    text += data.decode("latin-1")
    while at + 7 <= len(data):  # the log format of LevelDB
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        body += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record, body = pb.Record.FromString(body), b""
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            if "train/loss" in row:
                points.append([row["train/global_step"], row["train/loss"]])
show(points, text)
"""
SHOW = """
import json
def show(points, text):
    print(json.dumps({"points": points, "text": text}))
"""


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "reader"), [("mlflow", MLFLOW), ("trackio", TRACKIO), ("wandb", WANDB)])
def test_a_real_tracker_offline_has_every_step_of_a_resumed_run_once(tmp_path, name, reader):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    kept = tmp_path / "kept"
    kept.mkdir()
    env = os.environ | {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(kept),
        "TRACKIO_DIR": str(kept),
        "MLFLOW_TRACKING_URI": f"file:{kept}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    files = h.sentiment(tmp_path / "data")
    tune = ["tune", "--model", "tiny-llama", "--steps", "6", "--batch-size", "4", "--num-dev", "8", "--out", "run"]
    tune += ["--train", files["train"], "--test", files["test"], "--template", files["template"], "--resume"]
    tune += ["--label-column", "label", "--labels", files["labels"], "--report-to", name]
    assert "AssertionError" in run("-c", STOPPED, *tune).stderr
    finished = run("-m", "gradless", *tune)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1])["status"] == "done"
    read = json.loads(run("-c", SHOW + reader).stdout.splitlines()[-1])
    losses = [[line["step"], pytest.approx(line["loss"])] for line in h.notes(tmp_path / "run", "step")]
    assert sorted(read["points"]) == losses
    for private in ("was", "terrible", "{text}", "train.csv", socket.gethostname() + ".", str(tmp_path / "data")):
        assert private not in read["text"]
