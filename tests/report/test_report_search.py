"""Reports of searches over several seeds and rungs: the point, its dev values, what was tried, cells without one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gradless.report.bench.selection import best_toml, choose
from gradless.report.bench.study import Study, load
from gradless.report.bench.tables import accuracy, chosen
from gradless.report.common.table import markdown
from report_bench_helpers import GRID, Bench, cell, curve


def searched(folder: Path, grid: str = GRID, **statuses: str) -> Bench:
    """Two seeds; four rates on the first rung, two on the second, where the order is the other way round."""
    bench = Bench(folder, grid=grid.replace("[0]", "[0, 100]"))
    values = {(1e-6, 0): 0.7, (3e-6, 0): 0.8, (1e-5, 0): 0.75, (3e-5, 0): 0.6, (3e-6, 1): 0.81, (1e-5, 1): 0.85}
    for (rate, rung), value in values.items():
        for seed, shift in ((0, 0.01), (100, -0.01)):
            status = statuses.get(f"rung{rung}_seed{seed}", "done")
            dev = {"accuracy": value + 0.1, "loss": 0.5}  # of the best evaluation, which does not judge
            points = curve(0.5, value + shift, value + shift)
            bench.run("search", cell(), {"lr": rate}, seed, rung=rung, status=status, dev=dev, curve=points)
    return bench


def the(study: Study) -> dict[str, object]:
    (record,) = chosen(study).records
    return record


def test_the_last_rung_chooses_before_there_is_a_final_run(tmp_path):
    searched(tmp_path)
    study = load(tmp_path)
    (one,) = study.cells
    choice = choose(study, one)
    assert choice is not None
    assert choice.point == {"lr": 1e-5}
    assert [(run.rung, run.seed) for run in choice.runs] == [(1, 0), (1, 100)]
    assert choice.dev("accuracy") == pytest.approx(0.95)
    assert choice.edges == {}
    assert not choice.final
    assert tomllib.loads(best_toml(study)) == {}


def test_a_point_that_lacks_a_seed_is_no_match_for_one_that_has_all(tmp_path):
    bench = Bench(tmp_path)
    for rate, seed, value in ((1e-6, 0, 0.8), (1e-6, 100, 0.8), (1e-5, 0, 0.9)):
        bench.run("search", cell(), {"lr": rate}, seed, dev={"accuracy": value}, curve=curve(value, value))
    bench.request("search", cell(), {"lr": 1e-5}, 100)
    study = load(tmp_path)
    choice = choose(study, next(iter(study.cells)))
    assert choice is not None
    assert choice.point == {"lr": 1e-6}


def test_the_settings_of_a_chosen_point_are_those_of_its_final_runs(tmp_path):
    bench = searched(tmp_path)
    bench.request("final", cell(), {"lr": 1e-5}, 1, steps=2000)
    bench.run("search", cell("lozo"), {"lr": 1e-6}, 0, dev={"accuracy": 0.7}, curve=curve(0.7, 0.7))
    cells = tomllib.loads(best_toml(load(tmp_path)))["cell"]
    assert list(cells) == ["mezo/full/sst2/gemma-3-270m"]
    assert (cells["mezo/full/sst2/gemma-3-270m"]["lr"], cells["mezo/full/sst2/gemma-3-270m"]["steps"]) == (1e-5, 2000)


def test_points_are_counted_and_not_their_runs(tmp_path):
    searched(tmp_path)
    record = the(load(tmp_path))
    assert (record["tried"], record["diverged"], record["failed"]) == (4, 0, 0)
    searched(tmp_path / "b", rung1_seed100="diverged", rung0_seed0="failed")
    record = the(load(tmp_path / "b"))
    assert (record["tried"], record["diverged"], record["failed"]) == (4, 2, 4)


def test_a_cell_of_which_every_point_has_a_bad_run_waits_for_nothing(tmp_path):
    searched(tmp_path, rung1_seed100="diverged")
    study = load(tmp_path)
    ((one, results),) = study.cells.items()
    assert results.hopeless
    assert choose(study, one) is None
    assert study.missing() == 0
    assert "diverged" in markdown(accuracy(study, study.sections[0]))
    searched(tmp_path / "b", rung0_seed100="diverged")  # those of the second rung are good
    assert not load(tmp_path / "b").cells[one].hopeless
