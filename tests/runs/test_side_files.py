"""Files of a run that may be lost may also hold anything: a resumed run passes over them with a word."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import run_helpers as h
from gradless.errors import BadInput
from gradless.runs import train

JUNK = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"3",
    b'"x"',
    b'{"test": 3}',
    b"\xff\xfe\n3\n",
    b"[" * 10**5,
    b'{"status": "done", "steps": 1e999}',
]
STEP = {"event": "step", "step": 0, "loss": 0.5, "coeffs": [1.0], "lr": 1e-3, "forwards": 2, "seconds": 1.0}
EVALUATION = {"event": "eval", "step": 0, "split": "test", "loss": 1.0, "forwards": 1, "seconds": 1.0}
STRANGE = [
    *({**STEP, "peak_memory_bytes": value} for value in (None, "x", -1, 10**30, [1])),
    *({**STEP, "peak_memory_bytes": 1, "seconds": value} for value in (-1.0, {}, 1e400)),
    *({**EVALUATION, "predictions": [0], "correct": value} for value in ([1], [[]], "1", None)),
    {**EVALUATION, "predictions": [99] * 8, "correct": [1] * 8, "accuracy": "high"},
    {"event": ["eval"], "step": 0},
    {"event": "step", "step": "0"},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    result = h.tune(h.config(folder, num_test=8), folder / "run")
    return folder, result


@pytest.mark.few(3)
@pytest.mark.parametrize("junk", JUNK)
def test_a_resumed_run_passes_over_side_files_of_any_bytes(tmp_path, finished, junk):
    folder, result = finished
    for name in ("result.json", "metrics.jsonl", "predictions.jsonl"):
        out = tmp_path / name
        shutil.copytree(folder / "run", out)
        (out / "result.json").unlink()
        (out / name).write_bytes(junk)
        assert h.tune(h.config(folder), out, resume=True)["weights_sha256"] == result["weights_sha256"]
        assert json.loads((out / "result.json").read_text())["status"] == "done"


def test_lines_that_no_run_wrote_are_left_out_with_a_word(tmp_path, finished, capsys):
    folder, result = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in STRANGE)
    resumed = train.tune(h.config(folder), tmp_path / "run", resume=True)
    assert resumed["weights_sha256"] == result["weights_sha256"]
    assert resumed["test"] == result["test"]
    assert f"has {len(STRANGE)} lines that cannot be read: they are left out" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "unreadable"])
def test_what_is_no_file_is_put_aside(tmp_path, finished, kind, capsys):
    folder, result = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    for name in ("result.json", "metrics.jsonl", "predictions.jsonl", "result.json.new"):
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        if kind == "folder":
            (path / "below").mkdir(parents=True)
        elif kind == "link":
            path.symlink_to(path)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(b"\xff")
    resumed = train.tune(h.config(folder), tmp_path / "run", resume=True)
    assert resumed["weights_sha256"] == result["weights_sha256"]
    assert (kind == "unreadable") or "is now result.json.unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("junk", JUNK)
def test_a_damaged_configuration_is_refused_with_its_name(tmp_path, finished, junk):
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(junk)
    with pytest.raises(BadInput, match=r"config\.json"):
        h.tune(h.config(folder), tmp_path / "run", resume=True)


def test_a_finished_run_whose_ledger_lost_steps_goes_on(tmp_path, finished):
    folder, result = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    data = (tmp_path / "run" / "ledger").read_bytes()
    (tmp_path / "run" / "ledger").write_bytes(data[:-20])
    assert h.tune(h.config(folder), tmp_path / "run", resume=True)["weights_sha256"] == result["weights_sha256"]
    assert (tmp_path / "run" / "ledger").read_bytes() == data
