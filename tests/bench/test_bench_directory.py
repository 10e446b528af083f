"""What a directory holds decides what may be run in it; dry runs; a tiny grid for real."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

import run_helpers as h
from bench_helpers import GRID, RUNS, BenchDirectory, cost
from gradless.bench import directory as directory_module
from gradless.bench import grid
from gradless.bench.runner import Outcome, bench
from gradless.cli import commands
from gradless.errors import BadInput
from gradless.report.bench.selection import choose
from gradless.report.bench.study import load
from gradless.runs.config import TuneConfig
from gradless.runs.facts import duration
from gradless.system.progress import Reporter
from grid_helpers import search_runs

# ---------------------------------------------------------------------------------------------------------------
# bad input


def test_another_grid_is_refused_with_what_differs(directory):
    directory.bench()
    directory.grid.write_text("# a remark\n" + GRID)
    directory.bench()
    directory.grid.write_text(GRID.replace("evaluations = 2", "evaluations = 3"))
    with pytest.raises(
        BadInput,
        match=r"holds another grid .base.evaluations was 2 and is now 3., which can grow but not change: choose",
    ):
        directory.bench()


WIDER = GRID.replace("lr = [1e-4, 1e-3, 1e-2]", "lr = [1e-4, 1e-3, 1e-2, 1e-1]")


def test_a_grid_may_grow_in_place(directory):
    narrow = GRID.replace("1e-4, 1e-3, 1e-2", "1e-5, 1e-4")  # the best of it, 1e-4, is not the best of all
    directory.grid.write_text(narrow)
    directory.bench()
    earlier, kept = set(directory.started), (directory.out / "grid.toml").read_text()
    directory.grid.write_text(narrow.replace("1e-4]", "1e-4, 1e-3]").replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    directory.bench(dry_run=True)
    assert (directory.out / "grid.toml").read_text() == kept
    directory.bench()
    new = set(directory.started) - earlier
    assert len(directory.started) == len(earlier) + len(new)  # nothing was made twice
    assert len(new) == 1 + 2 + 2 * 3  # a zero-shot run of the third seed, a search run and three final ones a cell
    assert (directory.out / "grid.toml").read_text() == directory.grid.read_text()
    finals = [line for line in directory.lines if line["phase"] == "final"]
    assert {line["point"]["lr"] for line in finals} == {1e-3}  # those of 1e-4 are no longer asked for ...
    assert len(finals) == 2 * 3
    study = load(directory.out)
    assert study.missing() == 0
    assert {choose(study, cell).edges["lr"] for cell in study.cells} == {"highest tried"}
    assert all((directory.out / "runs" / run).is_dir() for run in earlier)  # ... and stay


def test_a_grid_does_not_shrink(directory):
    directory.grid.write_text(WIDER)
    directory.bench()
    directory.grid.write_text(GRID)
    with pytest.raises(BadInput, match=r"holds another grid .grid.lr was .* can grow but not change"):
        directory.bench()
    assert (directory.out / "grid.toml").read_text() == WIDER


def test_a_worker_ends_when_another_widens_the_grid(directory, monkeypatch):
    asked = directory_module.ask

    def widened(wanted, out):
        asked(wanted, out)
        (out / "grid.toml").write_text(WIDER)

    monkeypatch.setattr(directory_module, "ask", widened)
    with pytest.raises(BadInput, match="start this worker again"):
        directory.bench()
    assert (directory.out / "grid.toml").read_text() == WIDER


def test_runs_of_another_release_are_refused(directory, monkeypatch):
    directory.bench()
    monkeypatch.setattr(grid, "__version__", "99")
    with pytest.raises(BadInput, match="another release of gradless"):
        directory.bench()


def test_the_same_grid_with_data_elsewhere_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("gradless.runs.build.load_task", lambda config, say: (None, None))
    directory = BenchDirectory(tmp_path / "one", GRID.replace("[base]", '[base]\ndata = "rows"'))
    directory.bench()
    other = BenchDirectory(tmp_path / "other", directory.grid.read_text())
    other.out = directory.out
    other.bench()
    assert directory.started
    assert other.started == []  # all is done


def test_bad_numbers_and_places_are_refused(directory, tmp_path):
    for wrong in ({"workers": 0}, {"threads": 0}):
        with pytest.raises(BadInput, match="give a whole number of at least 1"):
            directory.bench(**wrong)
    directory.out.write_text("")
    with pytest.raises(BadInput, match="is a file"):
        directory.bench()
    directory.out.unlink()
    directory.out.mkdir()
    (directory.out / "config.json").touch()
    with pytest.raises(BadInput, match="single run"):
        directory.bench()
    assert directory.started == []


def test_missing_data_are_refused_before_anything_runs(tmp_path):
    directory = BenchDirectory(tmp_path, GRID.replace("[base]", '[base]\ndata = "nowhere"'))
    with pytest.raises(BadInput, match=r"cell mezo/full/sst2/tiny-llama: .*nowhere"):
        directory.bench()
    assert not directory.out.exists()


# ---------------------------------------------------------------------------------------------------------------
# dry runs


def own_grid(folder: Path, text: str = GRID) -> str:
    """The grid with small files of its own."""
    own = h.sentiment(folder)
    files = ", ".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    text = text.replace('task = ["sst2"]\n', "").replace("[base]\n", f"[base]\nown = {{ {files} }}\nbatch_size = 4\n")
    return text.replace("evaluations", "num_train = 16\nnum_dev = 8\nevaluations")


def test_a_dry_run_tells_and_writes_nothing(tmp_path, monkeypatch):
    directory = BenchDirectory(tmp_path, own_grid(tmp_path / "data"))
    monkeypatch.setattr("gradless.bench.estimate.matmul_speed", lambda *_: 1e9)
    outcome = directory.bench(dry_run=True)
    assert outcome.done == 0
    assert not directory.out.exists()
    start = directory.messages.index(f"2 cells, {RUNS} runs: 6 search, 4 final, 2 zero-shot")
    data = "\n".join(directory.messages[:start])
    assert "  data: 16 training, 8 dev, " in data  # once: both cells have the same rows
    assert data.count("always answering") == 1
    assert "\u27e6" in data
    assert "not known before a model is loaded" in directory.messages[start - 1]
    rows = {row.split("  ")[0]: row.split() for row in directory.messages[start + 2 : -1]}
    assert rows["mezo x full"][3:5] == ["5", "100"]
    assert rows["zero-shot"][1:3] == ["2", "0"]
    assert rows["all"][1:3] == [str(RUNS), "200"]
    assert directory.messages[-1].startswith("expected time: a guess")
    assert "without activations" in directory.messages[-1]


def test_a_dry_run_takes_seconds_and_memory_from_finished_runs(directory):
    directory.bench()
    times = sorted(path.stat().st_mtime_ns for path in directory.out.rglob("*"))
    wall = sum(line["wall_seconds"] for line in directory.lines)
    heard = len(directory.messages)
    assert directory.bench(dry_run=True).done == RUNS
    assert sorted(path.stat().st_mtime_ns for path in directory.out.rglob("*")) == times
    assert directory.messages[-1] == f"finished: {RUNS} of {RUNS} runs; 0 s of work left"
    assert "from finished runs" in directory.messages[-2]
    assert duration(wall) in next(row for row in directory.messages[heard:] if row.startswith("all "))


def test_costs_are_asked_for_once_for_each_kind_of_step(directory):
    asked: list[str] = []

    def counted(config: TuneConfig) -> int:
        asked.append(config.method)
        return 2

    directory.bench(cost=counted)
    assert sorted(asked) == ["lozo", "mezo"]


def test_more_tokens_are_expected_to_take_longer(tmp_path, monkeypatch):
    from gradless.bench import estimate as bench_estimate

    directory = BenchDirectory(tmp_path, own_grid(tmp_path / "data"))
    monkeypatch.setattr(bench_estimate, "matmul_speed", lambda *_: 1e9)
    one = search_runs(grid.read(directory.grid))[0]
    guess = bench_estimate.from_sizes(cost, lambda line: None)
    longer = one._replace(config=dataclasses.replace(one.config, steps=2 * one.config.steps))
    short, long = guess(one), guess(longer)
    assert bench_estimate.STARTING < short.seconds < long.seconds
    assert long.seconds - bench_estimate.STARTING < 2.5 * (short.seconds - bench_estimate.STARTING)
    assert short.memory == long.memory > 2**27, "libraries count, too"
    assert math.isfinite(long.seconds)


# ---------------------------------------------------------------------------------------------------------------
# the real thing

CONFIG_OPTION = any("--config" in option.opts for option in commands.main.commands["tune"].params)


@pytest.mark.skipif(not CONFIG_OPTION, reason="gradless tune has no --config yet")
def test_a_tiny_grid_from_end_to_end(tmp_path):
    text = GRID.replace("[1e-4, 1e-3, 1e-2]", "[1e-3, 1e-2]").replace("seeds = [1, 2]", "seeds = [1]")
    text = own_grid(tmp_path / "data", text.replace('["mezo", "lozo"]', '["mezo"]').replace("20 }", "8 }"))
    directory = BenchDirectory(tmp_path, text)
    reporter = Reporter(quiet=True)
    outcome = bench(directory.grid, directory.out, reporter=reporter, threads=1)
    reasons = [line["reason"] for line in directory.lines]
    assert outcome == Outcome(4, 4, 0, 0, ()), reasons
    final = next(line for line in directory.lines if line["phase"] == "final")
    assert set(final["test"]) >= {"accuracy"}
    assert final["forwards"] == 2 * final["steps"] == 8
    assert final["curve"][-1]["step"] == final["steps"]
    assert final["curve"][-1]["forwards"] == final["forwards"]
    assert final["overhead"] > 0
    assert all(not line["test"] for line in directory.lines if line["phase"] == "search")
    untouched = next(line for line in directory.lines if line["phase"] == "zero-shot")
    assert 0 <= untouched["test"]["accuracy"] <= 1
