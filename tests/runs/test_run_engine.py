"""The engine of a run: chosen before its first step, written down, and kept; the same in all front ends."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

import run_helpers as h
from engine_helpers import race
from gradless import ledger
from gradless.bench import grid
from gradless.bench.search import Search
from gradless.errors import BadInput
from gradless.methods import METHODS
from gradless.runs.config import TuneConfig, read_config
from gradless.runs.config_io import read
from gradless.runs.fixed_engine import fixed_engine


def test_a_run_records_its_choice_and_keeps_it(tmp_path):
    settings = h.config(tmp_path, steps=2)
    with race(tmp_path / "cache") as trial:
        first = h.tune(settings, tmp_path / "a")
        assert trial.calls
        trial.restart()
        second = h.tune(settings, tmp_path / "b")
        assert not trial.calls  # remembered
        trial.costs["dual"] = 9.0
        (tmp_path / "cache").rename(tmp_path / "gone")
        trial.restart()
        longer = h.tune(h.config(tmp_path, steps=4), tmp_path / "a", resume=True)
        assert not trial.calls  # kept
    named = h.tune(h.config(tmp_path, steps=4, engine="dual"), tmp_path / "c")
    assert first["engine"] == second["engine"] == longer["engine"] == "dual"
    assert first["weights_sha256"] == second["weights_sha256"]
    assert longer["weights_sha256"] == named["weights_sha256"]
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    choice = {"asked": "auto", "engine": "dual", "how": "measured", "ratio": 2.0, "reason": "", "step": 0}
    assert (written["engine"], written["engine_choice"], written["steps"]) == ("dual", choice, 4)
    assert first["engine_choice"] == longer["engine_choice"] == choice
    header = ledger.read(tmp_path / "a" / "ledger").header
    assert (header["engine"], header["config"]["engine"], header["config"]["steps"]) == (choice, "dual", 4)
    assert second["engine_choice"]["how"] == "remembered"
    assert "engine_choice" not in named
    assert "engine" not in ledger.read(tmp_path / "c" / "ledger").header
    assert read_config(tmp_path / "a").engine == read(tmp_path / "a" / "config.json")["engine"] == "dual"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "lezo"}, "before the first perturbed block"),
        ({"scheme": "head", "queries": 5}, "before the first perturbed block"),
        ({"split": "directions"}, "how many points a process evaluates"),
        ({"method": "fo-sgd"}, "no points to evaluate together"),
    ],
)
def test_where_points_are_evaluated_one_by_one_nothing_is_measured(tmp_path, changes, reason):
    with race(tmp_path / "cache") as trial:
        result = h.tune(h.config(tmp_path, steps=1, num_dev=0, num_test=0, **changes), tmp_path / "run")
        assert not trial.calls
    assert result["engine"] == "stream"
    assert reason in result["engine_choice"]["reason"]


def test_benchmarks_and_groups_name_their_engine():
    def fixed(**changes):
        return fixed_engine(TuneConfig(model="tiny-llama", **changes))

    assert (fixed(), fixed(device="cpu"), fixed(device="cuda:1"), fixed(device="auto")) == (
        *("dual", "dual", "stream", "stream"),
    )
    assert (fixed(method="lezo"), fixed(objective="f1"), fixed(split="directions")) == ("stream",) * 3
    assert (fixed(engine="in-place"), fixed(engine=None)) == ("in-place", "dual")
    assert [fixed(scheme="head", queries=queries) for queries in (None, 4, 5)] == ["dual", "dual", "stream"]
    assert fixed(scheme="head", method="fzoo") == "stream"  # which has eight queries of itself
    # Members of a population write together where their weights fit, which follows from sizes and is not measured.
    texts = [{"task": "arithmetic"}, {"objective": "f1"}, {"reward": ("exact_match",)}]
    assert {fixed(method="es", **one) for one in texts} == {"auto"}
    assert {fixed(**one) for one in texts} == {fixed(method="es", split="directions", **texts[0])} == {"stream"}
    assert fixed(method="es") == fixed(method="es", task="arithmetic", objective="gold") == "dual"


def test_methods_that_compare_rows_say_so():
    for name, method in METHODS.items():
        options = {key: 0.5 for key, default in method.options().items() if default is inspect.Parameter.empty}
        weights = [(f"layers.{layer}.weight", torch.nn.Parameter(torch.zeros(4, 4))) for layer in range(6)]
        assert method.make(weights, lr=1e-3, **options).estimator.rows == method.rows, name


def test_a_grid_resolves_to_an_engine_by_name(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        'budget = { steps = 2 }\n[base]\nmodel = "tiny-llama"\ntask = "sst2"\n[axes]\nmethod = ["mezo", "lezo"]'
    )
    runs = Search(grid.read(path), lambda config: 2).possible
    assert {run.config.method: run.config.engine for run in runs if run.phase != grid.ZERO_SHOT} == {
        "mezo": "dual",
        "lezo": "stream",
    }


def test_an_unknown_engine_is_refused(tmp_path):
    with pytest.raises(BadInput, match="unknown engine 'duel': did you mean 'dual'"):
        h.config(tmp_path, engine="duel").resolved()
    assert h.config(tmp_path, engine=None).resolved().engine == "auto"
