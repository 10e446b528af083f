"""The scripts in ``examples/`` run offline; that of the Trainer is Trainer's own but for two lines."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from gradless import ledger
from plugin_helpers import tables_as_before
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
    return runpy.run_path(str(script), run_name="__main__")


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


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("own_csv", r"accuracy [01]\.\d{3} untouched, [01]\.\d{3} tuned\n20 forward passes, [\d]+ bytes of ledger"),
        ("non_differentiable", r"accuracy 0\.\d{3} at the start, (1\.000|0\.9\d\d) after 200 steps"),
        ("robust_group", r"nearest neighbours 0\.0\d\d, plain mean \d\.\d+e\+"),
        ("own_group_parts", r"all checks hold; largest value \d\.\d with two liars of 1e6"),
        (
            "two_offices",
            r"(\d bridges: connectivity \d\.\d\d, worst accuracy 0\.[89]\d\d, distance .*\n){3}",
        ),
        ("reward", r"letters of a greedy completion: \d\.\d -> [12]\d\.\d"),
        ("own_method", r"all checks hold; loss \d\.\d{3} at the start, 0\.0\d\d after 200 steps"),
    ],
)
def test_an_example_runs_offline(name, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with tables_as_before():
        run(monkeypatch, EXAMPLES / f"{name}.py")
    assert re.search(printed, capsys.readouterr().out)


def test_every_example_is_short_and_named_in_the_readme_or_tested_here():
    scripts = sorted(EXAMPLES.glob("*.py"))
    here = Path(__file__).read_text()
    assert len(scripts) > 3
    for script in scripts:
        assert script.stem in here, f"no test runs {script.name}"
        assert len(script.read_text().splitlines()) <= 60
