"""How far weights may walk at random: measured once, before the first step of a run with ``--lr auto``."""

from __future__ import annotations

import json
import math

import pytest
import torch

import run_helpers as h
from gradless import ledger
from gradless.errors import BadInput
from gradless.runs import extend, jobs, walks
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)


@pytest.mark.parametrize("radius", [0.5, 0.7, 1.0, 2.9, 4.0, 8.5, 15.0, 32.0])
def test_the_distance_of_a_loss_that_rises_with_its_square_is_told(radius):
    assert walks.longest(lambda m: walks.RISE * (m / radius) ** 2) == pytest.approx(radius)


def test_near_the_bounds_it_ends_there():
    assert walks.longest(lambda m: 1e9) == walks.LEAST
    assert walks.longest(lambda m: 0.0) == walks.longest(lambda m: -0.1) == walks.MOST


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_losses_that_are_no_numbers_are_too_far(beyond):
    assert walks.longest(lambda m: beyond if m > 1.5 else 0.1 * m**2) == pytest.approx(1.0)
    assert walks.longest(lambda m: beyond) == walks.LEAST


def test_codes_are_moved_by_whole_numbers():
    asked = []

    def rise(distance):
        asked.append(distance)
        return 0.1 * (distance / 1.3) ** 2

    assert walks.longest(rise, whole=True) == pytest.approx(1.3)
    assert asked == [4.0, 1.0]


def test_no_more_than_three_distances_are_asked():
    asked = []
    walks.longest(lambda m: asked.append(m) or (1e9 if len(asked) % 2 else 1e-9))
    assert len(asked) == walks.ROUNDS


def test_a_run_measures_it_once_and_keeps_it(tmp_path):
    run, lines = tmp_path / "run", []
    reporter = Reporter(quiet=True)
    reporter.say = lines.append
    config = h.config(tmp_path, steps=4, lr="auto", num_dev=0)
    jobs.tune(config, run, reporter=reporter)
    walk = json.loads((run / "config.json").read_text())["walk"]
    assert walks.LEAST <= walk <= walks.MOST
    assert sum(f"after a random walk of {walk:g} eps" in line for line in lines) == 1
    contents = ledger.read(run / "ledger")
    assert contents.header["config"]["walk"] == walk
    ((rate,),) = {move.lrs for move in contents.moves}
    assert rate == pytest.approx(1e-3 * min(0.45, walk / 2))
    assert json.loads((run / "result.json").read_text())["forwards"] == 2 * 4  # what was measured is not among them
    assert jobs.replay(run, verify=True, reporter=QUIET).agrees
    (run / "result.json").unlink()
    kept = (run / "ledger").read_bytes()
    jobs.tune(config, run, resume=True, reporter=reporter)  # on with the walk that it has
    assert (run / "ledger").read_bytes() == kept
    assert sum("a random walk of" in line for line in lines) == 1


def test_a_walk_that_is_given_is_taken_and_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(walks, "longest", None)
    jobs.tune(h.config(tmp_path, steps=100, lr="auto", walk=1.5, num_dev=0), tmp_path / "run", reporter=QUIET)
    ((rate,),) = {move.lrs for move in ledger.read(tmp_path / "run" / "ledger").moves}
    assert rate == pytest.approx(0.15 * 1e-3)


def test_a_walk_goes_with_auto_alone(tmp_path):
    with pytest.raises(BadInput, match="--walk goes with --lr auto: leave it out, or give --lr auto"):
        h.config(tmp_path, lr=1e-3, walk=9.0).resolved()


def test_a_share_is_of_the_size_of_the_loss():
    assert walks.share([0.5, 1.5], [1.0, 1.2]) == pytest.approx(0.1)
    assert walks.share([-0.5], [-0.45]) == pytest.approx(0.1)  # a loss that is minus a score
    assert walks.share([0.0], [0.01]) == pytest.approx(0.1)


def test_nothing_is_kept_for_a_backward_pass(tmp_path, monkeypatch):
    recorded = []

    def watched(run, step, closure_of=walks.closure_of):
        closure = closure_of(run, step)
        return lambda: (recorded.append(torch.is_grad_enabled()), closure())[1]

    monkeypatch.setattr(walks, "closure_of", watched)
    jobs.tune(h.config(tmp_path, steps=1, lr="auto", num_dev=0), tmp_path / "run", reporter=QUIET)
    assert len(recorded) >= 3 * walks.BATCHES
    assert not any(recorded)


def test_texts_are_not_written_for_it(tmp_path):
    config = h.config(tmp_path, steps=1, lr="auto", num_dev=0, objective="f1", task="arithmetic", own={})
    with pytest.raises(BadInput, match="would write 56 batches of texts before the first step: give --walk"):
        jobs.tune(config, tmp_path / "run", reporter=QUIET)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_of_a_release_that_measured_no_walk_keeps_its_number_of_steps(tmp_path):
    few, many = (h.config(tmp_path, steps=steps, lr="auto").resolved() for steps in (4, 8))
    assert extend.dependence(few, many, 2) == "--lr auto"
    assert not extend.dependence(few, many, 0)


def test_a_ledger_without_steps_of_such_a_release_begins_anew(tmp_path):
    run, config = tmp_path / "run", h.config(tmp_path, steps=2, lr="auto", num_dev=0)
    jobs.tune(config, run, reporter=QUIET)
    contents, settings = ledger.read(run / "ledger"), json.loads((run / "config.json").read_text())
    header = {**contents.header, "config": {k: v for k, v in contents.header["config"].items() if k != "walk"}}
    for name in ("ledger", "result.json"):
        (run / name).unlink()
    ledger.Ledger(run / "ledger", header).close()
    (run / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "walk"}))
    jobs.tune(config, run, resume=True, reporter=QUIET)
    assert json.loads((run / "config.json").read_text())["walk"] == settings["walk"]


def test_another_rate_is_refused_as_such(tmp_path):
    jobs.tune(h.config(tmp_path, steps=2, lr="auto", num_dev=0), tmp_path / "run", reporter=QUIET)
    with pytest.raises(BadInput, match=r"holds a run with other settings \(lr was 'auto'"):
        jobs.tune(h.config(tmp_path, steps=2, lr=1e-3, num_dev=0), tmp_path / "run", resume=True, reporter=QUIET)


def test_equal_runs_measure_equal_walks(tmp_path):
    for name in ("one", "two"):
        jobs.tune(h.config(tmp_path, steps=2, lr="auto", num_dev=0), tmp_path / name, reporter=QUIET)
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()
