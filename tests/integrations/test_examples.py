"""The scripts in ``examples/`` run, on a tiny random model; that of the Trainer is Trainer's own but for two lines."""

from __future__ import annotations

import re
import runpy
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from gradless import ledger
from repository import ROOT

EXAMPLES = ROOT / "examples"
SCRIPT = EXAMPLES / "trainer_text_classification.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a tiny model and data."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    run(monkeypatch, EXAMPLES / "tiny_reviews.py", "tiny")
    return tmp_path


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    return runpy.run_path(str(script))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_two_lines_of_the_trainer_example_differ(folder, monkeypatch):
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 25
    original, count = re.subn(r".*  # was: (.*)", r"\1", source)
    assert count == 2
    assert "gradless" not in original.split('"""')[2]
    (folder / "original.py").write_text(original)
    ours = run(monkeypatch, SCRIPT, "tiny/model", "tiny/reviews.csv")["trainer"]
    steps = ours.state.global_step
    assert len(ledger.read(folder / "out" / "ledger").moves) == steps == 9
    theirs = run(monkeypatch, folder / "original.py", "tiny/model", "tiny/reviews.csv")["trainer"]
    assert theirs.state.global_step == steps
