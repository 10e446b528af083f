"""Runs on data sets of the hub, without a network: the commit is recorded, and a run that goes on keeps it."""

from __future__ import annotations

import json

import pytest

import run_helpers as h
from gradless.errors import BadInput
from gradless.ledger import read
from gradless.runs import build, extend, train
from gradless.runs.card import _hub_data
from gradless.runs.config import TuneConfig, read_config
from gradless.runs.config_io import tune_command
from gradless.system.progress import Reporter
from gradless.tasks import hub, sources

OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def moving_hub(monkeypatch, tmp_path):
    """A hub whose data set `me/reviews` moves on; its rows are those of a file."""
    own = h.sentiment(tmp_path / "data")
    state = {"commit": OLD, "asked": []}

    def load(name, instead=""):
        state["asked"].append(str(name))
        if state["commit"] is None:
            raise BadInput(f"{name} is not in the cache and HF_HUB_OFFLINE is set")
        return name.revision if hub.COMMIT.fullmatch(name.revision or "") else state["commit"]

    def of_hub(text, option):
        load(hub.parse(text))
        return sources.resolve(own[option], option)

    monkeypatch.setattr(hub, "load", load)
    monkeypatch.setattr(hub, "commit", lambda loaded: loaded)
    monkeypatch.setattr(sources, "_of_hub", of_hub)
    return state


def config() -> TuneConfig:
    own = {"train": "hub:me/reviews", "test": "hub:me/reviews:test", "template": "{text} so", "label_column": "label"}
    labels = {"labels": "0=terrible,1=great"}
    return TuneConfig(
        model="tiny-llama", own=own | labels, steps=2, batch_size=4, lr=1e-3, num_train=0, num_dev=0, num_test=0
    )


@pytest.mark.sweep
def test_a_run_records_the_commit_and_keeps_it(moving_hub, tmp_path):
    quiet = Reporter(quiet=True)
    first = train.tune(config(), tmp_path / "run", reporter=quiet)
    pinned = {"train": f"hub:me/reviews@{OLD}", "test": f"hub:me/reviews@{OLD}:test"}
    recorded = read_config(tmp_path / "run")
    assert {name: recorded.own[name] for name in pinned} == pinned
    assert {name: read(tmp_path / "run" / "ledger").header["config"]["own"][name] for name in pinned} == pinned
    assert f"--train hub:me/reviews@{OLD} " in tune_command(recorded, "again")
    assert _hub_data(recorded) == ("me/reviews", None)
    moving_hub["commit"] = NEW
    assert extend.settled(config(), tmp_path / "run", True).own == recorded.own
    (tmp_path / "run" / "result.json").unlink()
    again = train.tune(config(), tmp_path / "run", resume=True, reporter=quiet)
    assert again["weights_sha256"] == first["weights_sha256"]
    assert build.pinned(config()).own["train"] == f"hub:me/reviews@{NEW}"
    moving_hub["commit"] = None
    assert train.tune(config(), tmp_path / "run", resume=True, reporter=quiet)["status"] == "done"
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE"):
        train.tune(config(), tmp_path / "other", reporter=quiet)
    assert not (tmp_path / "other" / "config.json").exists()


def test_objects_are_no_configuration():
    own = {**config().own, "train": [{"text": "a", "label": 0}]}
    with pytest.raises(BadInput, match="train is a list, and a configuration holds names of files: write it to a file"):
        TuneConfig(model="tiny-llama", own=own).resolved()
    assert json.loads(json.dumps(config().to_json()))["own"]["train"] == "hub:me/reviews"
