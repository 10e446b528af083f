"""``--example``: what it prints is whole, parses, and runs as it is from an empty folder."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradless.bench import grid
from gradless.cli import examples, main
from gradless.lm.metrics import METRICS
from gradless.runs import config_io
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system import typed
from repository import ROOT


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(*words: str) -> str:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == 0, result.output
    assert not list(Path().iterdir()), "an example writes nothing"
    return result.stdout


@pytest.mark.parametrize("name", ["", *examples.grids()])
def test_every_grid_is_one(name):
    text = printed("bench", "--example", *([name] if name else []))
    Path("grid.toml").write_text(text)
    assert grid.cells(grid.read(Path("grid.toml")))
    assert f"gradless bench {name or examples.FIRST}.toml" in text, "its head says how it is run"


def test_the_names_of_grids_are_in_the_help():
    text = " ".join(CliRunner().invoke(main, ["bench", "--help"]).output.split())
    assert all(name in text for name in examples.grids())
    assert set(examples.grids()) == {path.stem for path in (ROOT / "benchmarks" / "grids").iterdir()} | {"reviews"}
    wrong = CliRunner().invoke(main, ["bench", "--example", "fronteer"])
    assert wrong.exit_code == 2
    assert "did you mean 'frontier'" in wrong.stderr


def test_the_first_grid_runs_as_it_is():
    Path("grid.toml").write_text(printed("bench", "--example"))
    dry = CliRunner().invoke(main, ["bench", "grid.toml", "--out", "runs/bench", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "14 runs: 8 search, 4 final, 2 zero-shot" in dry.output


def test_the_run_has_every_setting_and_runs_as_it_is():
    text = printed("tune", "--example")
    names = [name for name in typed.settings(TuneConfig) if name not in ("own", "options")]
    for name in [*names, *typed.settings(OwnFiles)]:
        assert sum(line.removeprefix("# ").startswith(f"{name} =") for line in text.splitlines()) == (name != "labels")
    assert set(tomllib.loads(text)) == {*examples.SETTINGS, "own", "options"}
    Path("run.toml").write_text(text)
    run = CliRunner().invoke(main, ["tune", "--config", "run.toml", "--steps", "2", "--out", "runs/mine"])
    assert run.exit_code == 0, run.output
    assert json.loads(Path("runs/mine/config.json").read_text())["lr"] == examples.SETTINGS["lr"]
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    results, lines = page.split("## result.json")[1].split("## metrics.jsonl")
    assert not {name for name in json.loads(Path("runs/mine/result.json").read_text()) if f"`{name}`" not in results}
    for line in map(json.loads, Path("runs/mine/metrics.jsonl").read_text().splitlines()):
        assert not {name for name in line if f"`{name}`" not in lines and f'"{name}"' not in lines} - {*METRICS}, line


def test_a_setting_that_is_switched_on_has_its_default():
    lines = printed("tune", "--example").splitlines()
    off = [line.removeprefix("# ").split(" # ")[0] for line in lines if re.match(r"# \w+ = ", line)]
    text = "\n".join(line for line in off if not line.rstrip().endswith("..."))
    settings = tomllib.loads(text)
    assert len(settings) > 15
    assert TuneConfig(model="m", **typed.table(settings, TuneConfig)) == TuneConfig(model="m")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_windows_writes_is_read(encoding):
    """Redirections of PowerShell write UTF-16 with a mark, editors UTF-8 with one."""
    Path("run.toml").write_text(printed("tune", "--example"), encoding=encoding)
    assert config_io.read(Path("run.toml"))["model"] == "tiny-llama"
    Path("run.toml").write_bytes(b"\xff\xfe\x00")
    result = CliRunner().invoke(main, ["tune", "--config", "run.toml", "--out", "x"])
    assert result.exit_code == 2
    assert "is not TOML" in result.stderr
