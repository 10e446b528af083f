"""Notebooks: bars are updated in place, lines come in order, and an interrupt ends a run in good order."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradless.system import notebook
from gradless.system.progress import Reporter

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_hour.ipynb"


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What a cell's one display was, each time it was drawn."""
    drawn: list[dict[str, str]] = []
    handle = SimpleNamespace(update=lambda data, raw: drawn.append(data))

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert (raw, display_id, drawn) == (True, True, [])
        drawn.append(data)
        return handle

    shell = SimpleNamespace(kernel=object())
    module = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", module)
    return drawn


def test_a_bar_is_one_output_that_is_updated_a_few_times_a_second(cell, capsys):
    with Reporter().job("tune", 1000) as show:
        for step in range(1, 1001):
            show(step, f"loss <{step}>")
    assert len(cell) < 10
    assert cell[0]["text/plain"].startswith("tune  0/1000")
    assert cell[-1]["text/plain"].startswith("tune  1000/1000  loss <1000>")
    assert 'value="1000" max="1000"' in cell[-1]["text/html"]
    assert "loss &lt;1000&gt;" in cell[-1]["text/html"]
    assert capsys.readouterr().out == ""


def test_an_interrupted_bar_shows_where_the_work_stopped(cell):
    with contextlib.suppress(KeyboardInterrupt), Reporter().job("tune", 10, done=4) as show:
        show(5, "")
        raise KeyboardInterrupt
    assert cell[-1]["text/plain"].startswith("tune  5/10")


def test_quiet_work_draws_nothing_and_no_other_shell_is_a_notebook(cell, monkeypatch):
    with Reporter(quiet=True).job("tune", 10) as show:
        show(10, "")
    assert cell == []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    assert not notebook.active()  # IPython in a terminal
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not notebook.active()


TUNE = """
import gradless as gl
from gradless.runs import train
def once(*arguments, step=train._step):
    if arguments[0].model.optimizer.t == 2 and STOP:
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
    return step(*arguments)
train._step = once
STOP = True
rows = [{"text": f"{i} was {('bad', 'good')[i % 2]}", "label": i % 2} for i in range(24)]
how = dict(model="tiny-llama", train=rows, test=rows[:8], template="{text} so", label_column="label",
           labels={0: "bad", 1: "good"}, steps=4, batch_size=4, out="run")
run = gl.tune(**how)
run
"""
RESUMED = """
STOP = False
gl.tune(**how, resume=True)
"""


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_cells_show_bars_results_and_interrupts(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(source) for source in (TUNE, RESUMED, "run.report()")]
    book = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    stopped, resumed, page = ([output for output in cell.outputs] for cell in cells)
    assert not [output for output in (*stopped, *resumed) if output.get("name") == "stderr"]
    for outputs, status, at in ((stopped, "interrupted", "2/4"), (resumed, "done", "4/4")):
        (bar,) = (output.data for output in outputs if output.output_type == "display_data")
        assert bar["text/plain"].startswith(f"tune  {at}")
        shown = outputs[-1].data
        assert shown["text/plain"].startswith(f"run: {status}")
        assert shown["text/html"].startswith(f"<b>run</b>: {status}")
    assert page[0].data["text/html"].startswith("<iframe srcdoc=")


def test_the_example_is_committed_without_what_a_machine_made_of_it():
    cells = json.loads(EXAMPLE.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
def test_the_example_goes_from_a_csv_to_predictions_and_runs_again(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for path in EXAMPLE.parent.glob("reviews*.csv"):
        shutil.copy(path, tmp_path)
    for sentence in ("baseline: always answering", "is finished; nothing to do"):
        book = nbformat.read(EXAMPLE, 4)
        resources = {"metadata": {"path": str(tmp_path)}}
        client.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
        outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
        assert not [output for output in outputs if output.get("name") == "stderr"]
        text = "".join(output.get("text", "") for output in outputs)
        assert sentence in text
        assert len([line for line in text.splitlines() if line.startswith(("0  0.", "1  0."))]) == 8
