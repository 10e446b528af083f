"""Runs with plugins: recorded, replayed, resumed, reported and benchmarked; never imported by what lies in a folder."""

from __future__ import annotations

import json
import os
import sys

import pytest
from click.testing import CliRunner

import run_helpers as h
from cli_helpers import call, refused
from gradless import ledger, plugins
from gradless.bench import process, results
from gradless.bench.runner import bench
from gradless.cli import main
from gradless.methods import METHODS
from gradless.plugins.loading import LOADED, _unload
from gradless.system.progress import Reporter
from plugin_helpers import MARK, METHOD, TASK

POINTS = "[gradless.methods]\nhalf = theirs_parts.methods\n"
GRID = """
plugins = ["own.py"]
seeds = [1]
zero_shot = false
budget = { steps = 2 }
[base]
model = "tiny-llama"
batch_size = 4
evaluations = 1
num_train = 8
num_dev = 4
num_test = 4
[base.own]
train = "data/train.csv"
test = "data/test.csv"
template = "{text} so"
label_column = "label"
labels = "0=terrible,1=great"
[axes]
method = ["half"]
"""


def forget() -> None:
    """Unload everything, as in a new process."""
    while LOADED:
        key, plugin = LOADED.popitem()
        _unload(plugin)
        sys.modules.pop(key, None)
    assert "half" not in METHODS


@pytest.fixture
def run(written):
    """A finished run of a plugin's method, which nobody has loaded any more, and its plugin."""
    path = written.file(METHOD + MARK)
    plugins.load(path)
    settings = h.config(written.folder, method="half", options={"factor": 0.25}, num_dev=4, num_test=4)
    h.tune(settings, written.folder / "run")
    forget()
    path.with_suffix(".ran").unlink()
    return written.folder / "run", path


def tuned(folder, *more: object) -> list[object]:
    files = h.sentiment(folder / "data")
    own = ("--train", files["train"], "--template", files["template"], "--labels", files["labels"])
    sizes = ("--steps", 2, "--batch-size", 4, "--num-train", 8, "--num-dev", 4, "--no-zero-shot")
    return ["tune", "--model", "tiny-llama", *own, "--label-column", "label", *sizes, "--out", folder / "run", *more]


def test_a_run_records_the_plugin_and_a_ledger_only_its_name(run):
    folder, path = run
    config = json.loads((folder / "config.json").read_text())
    header = ledger.read(folder / "ledger").config
    ((key, sha256),) = config["plugins"].items()
    assert key == str(path)
    assert header["plugins"] == {"own.py": sha256}
    assert str(path.parent) not in json.dumps(header)
    result = json.loads((folder / "result.json").read_text())
    assert result["versions"]["plugin own.py"] == f"sha256 {sha256}"


def test_replay_takes_the_plugin_that_it_is_given_and_no_other(run, tmp_path):
    folder, path = run
    refused(call("replay", folder), "needs the plugin own.py (sha256 ", f"then at {path})", "--plugin FILE")
    alone = tmp_path / "a.ledger"
    alone.write_bytes((folder / "ledger").read_bytes())
    refused(call("replay", alone), "needs the plugin own.py (sha256 ", "--plugin FILE")
    assert not path.with_suffix(".ran").exists()  # the folder names it, and nobody asked for it
    assert call("replay", folder, "--verify", "--plugin", path).exit_code == 0
    forget()
    renamed = path.with_name("renamed.py")
    renamed.write_bytes(path.read_bytes())
    refused(call("replay", folder, "--plugin", renamed), "renamed.py is the plugin that this run knows as own.py")
    forget()
    path.write_text(METHOD + "# changed\n")
    refused(call("replay", folder, "--plugin", path), "the plugin own.py has changed: sha256 ")
    path.unlink()
    refused(call("replay", folder, "--plugin", path), "own.py cannot be read")


def test_a_saved_model_tells_the_name_of_the_plugin_and_no_folder(run, tmp_path):
    folder, path = run
    saved = tmp_path / "saved"
    assert call("replay", folder, "--plugin", path, "--save", saved).exit_code == 0
    for file in (saved / "gradless" / "config.json", saved / "gradless" / "result.json", saved / "README.md"):
        assert "own.py" in file.read_text(), file
        assert str(path.parent) not in file.read_text(), file
    forget()
    refused(call("replay", saved / "gradless", "--model", "tiny-llama"), "needs the plugin own.py")
    assert call("replay", saved / "gradless", "--model", "tiny-llama", "--plugin", path).exit_code == 0


def test_a_report_does_without_the_plugin_and_says_so(run):
    folder, path = run
    page = folder / "report.html"
    result = call("report", folder)
    assert result.exit_code == 0
    assert "note: This run needs the plugin own.py (sha256 " in result.output
    assert "This run needs the plugin own.py" in page.read_text()
    assert not path.with_suffix(".ran").exists()
    assert "note:" not in call("report", folder, "--plugin", path).output
    assert "--plugin" in page.read_text()
    assert "needs the plugin" not in page.read_text()
    forget()
    path.write_text(METHOD + "# changed\n")
    assert "The plugin own.py has changed" in call("report", folder, "--plugin", path).output


def test_resume_needs_the_same_plugin(tmp_path, written):
    path = written.file(METHOD + MARK)
    first = call(*tuned(tmp_path, "--method", "half", "--plugin", path))
    assert first.exit_code == 0, first.output
    forget()
    again = tuned(tmp_path, "--method", "half", "--resume")
    path.with_suffix(".ran").unlink()
    refused(call(*again), "needs the plugin own.py")
    config = tmp_path / "run" / "config.json"
    refused(call("tune", "--config", config, "--out", tmp_path / "new"), "needs the plugin own.py")
    assert not path.with_suffix(".ran").exists()
    assert call(*again, "--plugin", path).exit_code == 0
    forget()
    assert call("tune", "--config", config, "--plugin", path, "--out", tmp_path / "new").exit_code == 0
    forget()
    path.write_text(METHOD + "# changed\n")
    refused(call(*again, "--plugin", path), "holds a run with other settings (the plugin own.py has changed")
    refused(
        call("tune", "--config", config, "--plugin", path, "--out", tmp_path / "b"), "the plugin own.py has changed"
    )


def test_settings_files_ask_for_plugins_in_toml_alone(tmp_path, written):
    path = written.file(METHOD + MARK)
    settings = {"plugins": ["own.py"], "method": "half"}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    refused(call(*tuned(tmp_path, "--config", tmp_path / "run.json")), "a list of plugins is for TOML files")
    assert not path.with_suffix(".ran").exists()
    (tmp_path / "run.toml").write_text('plugins = ["own.py"]\nmethod = "half"\n')
    assert call(*tuned(tmp_path, "--config", tmp_path / "run.toml")).exit_code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plugins"].keys() == {str(path)}


def test_a_plugin_that_nothing_names_is_told(tmp_path, written):
    result = call(*tuned(tmp_path, "--plugin", written.file()))
    assert result.exit_code == 0
    assert "the plugin own.py is not used: it defines methods half" in result.stderr
    assert "plugins" not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_completion_and_help_run_no_plugin(written):
    path = written.file(METHOD + MARK)
    env = {"COMP_WORDS": f"gradless tune --plugin {path} --met", "COMP_CWORD": "4"}
    env["_GRADLESS_COMPLETE"] = "bash_complete"
    assert "--method" in CliRunner().invoke(main, [], env=env, prog_name="gradless").output
    assert call("tune", "--plugin", path, "--help").exit_code == 0
    assert not path.with_suffix(".ran").exists()


def test_a_task_of_a_plugin(tmp_path, written):
    path = written.file(TASK.replace("read=None", "read=read"), "spam.py")
    sizes = ("--num-test", 8, "--model", "tiny-llama", "--data", tmp_path, "--out", tmp_path / "eval")
    refused(call("eval", "--task", "spam", *sizes), "unknown task 'spam'")
    result = call("eval", "--task", "SPAM", "--plugin", path, *sizes)
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "eval" / "result.json").read_text())["config"]["plugins"]) == [str(path)]


# ---------------------------------------------------------------------------------------------------------------
# benchmarks


def benchmark(folder, **how):
    messages: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.say = messages.append
    outcome = bench(folder / "grid.toml", folder / "out", reporter=reporter, **how)
    return outcome, messages


def spawned(request, out):
    """The same command, which `bench` does not fork because it is not its own."""
    return process.command(request, out)


@pytest.mark.parametrize("command", [process.command, pytest.param(spawned, marks=pytest.mark.sweep)])
def test_workers_know_the_plugins_of_the_grid(tmp_path, written, command):
    path = written.file(METHOD + MARK)
    h.sentiment(tmp_path / "data")
    (tmp_path / "grid.toml").write_text(GRID)
    outcome, messages = benchmark(tmp_path, command=command)
    assert (outcome.done, outcome.failed) == (1, 0), messages
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads((folder / "config.json").read_text())["plugins"].keys() == {str(path)}
    forget()
    assert call("replay", folder, "--verify", "--plugin", path).exit_code == 0
    forget()
    path.with_suffix(".ran").unlink()
    assert "note: the plugin own.py is not loaded (give it with --plugin)" in call("report", tmp_path / "out").output
    assert not path.with_suffix(".ran").exists()  # out/grid.toml names it, and nobody asked for it
    best = tmp_path / "out" / "best.toml"
    refused(call("tune", "--config", best, "--out", tmp_path / "best"), "needs the plugin own.py")
    path.write_text(METHOD + "# changed\n")
    refused(call("bench", tmp_path / "grid.toml", "--out", tmp_path / "out"), "the plugin own.py has changed")


@pytest.mark.sweep
def test_workers_find_what_an_installed_package_declares(tmp_path, written, monkeypatch):
    site = written.distribution(POINTS)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    h.sentiment(tmp_path / "data")
    (tmp_path / "grid.toml").write_text(GRID.replace('plugins = ["own.py"]', ""))
    outcome, messages = benchmark(tmp_path)
    assert (outcome.done, outcome.failed) == (1, 0), messages
    (line,) = results.read(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "runs" / line["id"] / "config.json").read_text())
    assert config["plugins"]["theirs_parts.methods"].endswith(" theirs==1.2")
    forget()
    assert call("replay", tmp_path / "out" / "runs" / line["id"], "--verify").exit_code == 0


def test_a_grid_with_a_plugin_that_is_not_there(tmp_path):
    h.sentiment(tmp_path / "data")
    (tmp_path / "grid.toml").write_text(GRID)
    refused(call("bench", tmp_path / "grid.toml", "--out", tmp_path / "out"), "grid.toml: the plugin", "cannot be read")
    (tmp_path / "grid.toml").write_text(GRID.replace('["own.py"]', "3"))
    refused(call("bench", tmp_path / "grid.toml", "--out", tmp_path / "out"), "plugins is 3: give a list of texts")
    (tmp_path / "grid.toml").write_text(
        GRID.replace("[axes]", 'plugins = ["own.py"]\n[axes]', 1).replace("own.py", "a", 1)
    )
    refused(call("bench", tmp_path / "grid.toml", "--out", tmp_path / "out"), "grid.toml: ")
