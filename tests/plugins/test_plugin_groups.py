"""Aggregators and attacks of one's own in simulations: in this process, in workers, in reports."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cli_helpers import call, refused
from gradless import plugins
from gradless.collab import recipes
from gradless.collab.config import from_json
from gradless.errors import BadInput
from gradless.plugins.loading import LOADED, _unload
from repository import ROOT

PARTS = ROOT / "examples" / "own_group_parts.py"


def simulate(out, *more: object):
    usual = ("--recipe", "monna-digits", "--steps", 2, "--peers", 8, "--byzantine", 1, "--batch-size", 2)
    return call("collab", "simulate", *usual, "--out", out, *more)


def forget() -> None:
    while LOADED:
        _unload(LOADED.popitem()[1])


OWN = ("--rule", "nnm+midrange", "--attack", "drag", "--set", "strength=1.5")


def test_a_rule_and_an_attack_of_a_plugin(tmp_path):
    out = tmp_path / "run"
    refused(simulate(out, *OWN), "unknown attack 'drag'")
    result = simulate(out, *OWN, "--plugin", PARTS)
    assert result.exit_code == 0, result.output
    config = json.loads((out / "config.json").read_text())
    assert list(plugins.named(config["plugins"])) == ["own_group_parts.py"]
    assert "plugin own_group_parts.py" in json.loads((out / "result.json").read_text())["versions"]
    assert "is finished" in simulate(out, *OWN, "--plugin", PARTS).output
    forget()
    refused(simulate(out, *OWN), "needs the plugin own_group_parts.py", "--plugin FILE")
    assert "note: the plugin own_group_parts.py is not loaded" in call("report", out).output
    assert "note:" not in call("report", out, "--plugin", PARTS).output
    assert "drag" in (out / "report.html").read_text()


@pytest.mark.sweep
def test_workers_of_a_simulation_load_the_plugin(tmp_path):
    result = simulate(tmp_path / "runs", *OWN[:4], "--seed", 1, "--seed", 2, "--workers", 2, "--plugin", PARTS)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "runs" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["rule"] for line in lines] == ["nnm+midrange"] * 2


def test_a_changed_plugin_is_another_run(tmp_path):
    path = tmp_path / PARTS.name
    path.write_bytes(PARTS.read_bytes())
    assert simulate(tmp_path / "run", *OWN, "--plugin", path).exit_code == 0
    path.write_text(path.read_text() + "# changed\n")
    refused(simulate(tmp_path / "run", *OWN, "--plugin", path), "with other settings (plugin own_group_parts.py")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    with pytest.raises(BadInput, match=r"own_group_parts\.py has changed"):
        from_json(config).resolved()


def test_an_id_does_not_depend_on_the_place_of_the_plugin(tmp_path):
    base = recipes.recipe("monna-digits").base
    plain = base.resolved().id()
    own = dataclasses.replace(base, attack="drag")
    plugins.load(PARTS)
    here = own.resolved().id()
    forget()
    (tmp_path / PARTS.name).write_bytes(PARTS.read_bytes())
    plugins.load(tmp_path / PARTS.name)
    assert own.resolved().id() == here
    assert base.resolved().id() == plain  # which names nothing of the plugin


def test_a_package_declares_an_attack(tmp_path, written, monkeypatch):
    points = (
        "[gradless.attacks]\ndrag = theirs_parts.methods\n[gradless.aggregators]\nmidrange = theirs_parts.methods\n"
    )
    monkeypatch.syspath_prepend(written.distribution(points, PARTS.read_text()))
    lines = call("list", "aggregators").output
    assert "midrange" in lines
    assert "[theirs==1.2, imported when it is named]" in lines
    result = simulate(tmp_path / "run", *OWN)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plugins"]["theirs_parts.methods"]
