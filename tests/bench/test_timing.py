"""Steps of several methods, timed side by side."""

from __future__ import annotations

import json

import pytest

import run_helpers
from gradless.bench import timing
from gradless.bench.grid import cell_name
from gradless.errors import BadInput
from gradless.report import load
from gradless.runs.config import TuneConfig
from gradless.system.progress import Reporter


def finished(folder, methods):
    """A bench directory with one finished run of each method."""
    own = run_helpers.sentiment(folder / "data")
    lines = []
    (folder / "requests").mkdir()
    for name, (method, options) in enumerate(methods):
        cell = {"method": method, "scheme": "full", "task": "own", "model": "tiny-llama", **options}
        mine = {key.removeprefix("options."): value for key, value in options.items()}
        config = TuneConfig(
            model="tiny-llama",
            own=own,
            method=method,
            options=mine,
            lr=1e-3,
            batch_size=4,
            num_train=16,
            num_dev=4,
            num_test=4,
            steps=8,
        )
        asked = {"id": str(name), "phase": "final", "cell": cell, "point": {"lr": 1e-3}, "seed": 1}
        (folder / "requests" / f"{name}.json").write_text(json.dumps({**asked, "config": config.resolved().to_json()}))
        curve = [{"step": 4, "forwards": 8, "seconds": 99.0, "accuracy": 0.5, "loss": 0.7}]
        lines.append(
            {**asked, "status": "done", "steps": 8, "seconds_per_step": 50.0, "curve": curve, "dev": {}, "test": {}}
        )
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_all_methods_take_turns_and_the_report_uses_what_was_measured(tmp_path):
    methods = [("mezo", {}), ("lezo", {}), ("fo-adam-ckpt", {}), ("zo-sparse", {"options.mask": "wanda"})]
    lines = finished(tmp_path, methods)
    timings = timing.timings(tmp_path, repeats=2, threads=1, reporter=Reporter(quiet=True))
    assert timings["threads"] == 1
    assert timings["cells"].keys() == {cell_name(line["cell"]) for line in lines}
    for row in timings["cells"].values():
        assert len(row["samples"]) == 2
        assert row["step_seconds"] == pytest.approx(row["ratio"] * row["floor_seconds"])
        assert 0 < row["step_seconds"] < 30
    for run in load(tmp_path).runs:
        each = timings["cells"][cell_name(run.record["cell"])]["step_seconds"]
        assert run.number("seconds_per_step") == each
        assert run.record["curve"][0]["seconds"] == 4 * each
        assert run.record["threads"] == 1


def test_lines_without_a_measurement_stay_as_they_are(tmp_path):
    (line,) = finished(tmp_path, [("mezo", {})])
    file = tmp_path / timing.FILE
    assert timing.read(file) == timing.Timings({}, None)
    assert timing.side_by_side(line, timing.read(file)) == line
    file.write_text("{")
    with pytest.raises(BadInput, match="measure again with --timings"):
        timing.read(file)


def test_there_must_be_something_to_time(tmp_path):
    with pytest.raises(BadInput, match="no finished final run"):
        timing.timings(tmp_path)
