"""`benchmarks/gpu_check.py`: what it says without a GPU, its results, and a rehearsal of all parts at toy size."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from repository import ROOT

pytest.importorskip("triton", reason="the check is of Triton's kernels")
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture
def check(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    return importlib.import_module("gpu_check")


def call(check, monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, words)])
    return check.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(check, monkeypatch, capsys):
    assert call(check, monkeypatch) == 2
    assert capsys.readouterr().err == (
        "gpu_check: no CUDA GPU can be used here: run this on a machine with one and a CUDA build of torch, or "
        "--dry-run\n"
    )
    with pytest.raises(SystemExit):
        call(check, monkeypatch, "bit")
    assert "unknown part bit: choose from machine-code, bits" in capsys.readouterr().err


def test_all_parts_fit_into_eight_minutes(check):
    assert sum(part.seconds for part in check.PARTS.values()) <= check.TOTAL == 480


def test_results_stay_and_runs_resume(check, monkeypatch, tmp_path, capsys):
    outcomes = {"bits": {"passed": True, "figures": {"wrong": 0}}, "replay": {"passed": False, "error": "boom"}}
    ran = []

    def run(name, dry):
        ran.append(name)
        return {**outcomes[name], "seconds": 1.0}

    monkeypatch.setattr(check, "_run_part", run)
    words = ("bits", "replay", "--dry-run", "--out", tmp_path)
    assert call(check, monkeypatch, *words) == 1
    output = capsys.readouterr().out
    assert f"  {'wrong':<44}{0:>12}   forecast 0" in output
    assert "  FAILED boom (one hash for each run)" in output
    assert output.splitlines()[-1] == "FAILED: replay"
    outcomes["replay"] = {"passed": True, "figures": {}}
    assert call(check, monkeypatch, *words, "--resume") == 0
    assert ran == ["bits", "replay", "replay"]
    result = json.loads((tmp_path / "gpu-cpu-rehearsal.json").read_text())
    assert result["bits"]["passed"]
    assert result["replay"]["passed"]
    lines = (tmp_path / "gpu-cpu-rehearsal.jsonl").read_text().splitlines()
    assert [json.loads(line)["passed"] for line in lines] == [True, False, True]


def test_no_part_begins_when_the_time_is_over(check, monkeypatch, tmp_path, capsys):
    arguments = SimpleNamespace(parts=["bits"], resume=False, total=-1.0, dry_run=False)
    assert check._all(arguments, torch.device("cpu"), tmp_path / "gpu.json") == 1
    assert "bits: left out, -1 s are over: run again with --resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("process", "error"),
    [
        (lambda *_, **more: SimpleNamespace(stdout=""), "the process has failed; its message stands above"),
        (
            lambda *_, timeout, **more: (_ for _ in ()).throw(subprocess.TimeoutExpired("", timeout)),
            "not finished after",
        ),
    ],
)
def test_a_part_that_fails_or_hangs_is_a_result(check, monkeypatch, process, error):
    monkeypatch.setattr(subprocess, "run", process)
    result = check._run_part("bits", dry=False)
    assert not result["passed"]
    assert result["error"].startswith(error)


def test_a_wrong_bit_is_told(check, monkeypatch):
    from gpu_parts import bits
    from gpu_parts.frame import Context

    context = Context(torch.device("cpu"), True, SCRIPT.parent, 0.0)
    monkeypatch.setattr(bits, "on_device", lambda context, out, call: (call(), out.flatten()[:1].mul_(1.5)))
    row = bits.shard(context, 0, 3)
    assert len(row["wrong"]) == row["cases"] > 0


@pytest.mark.sweep
def test_every_part_runs_at_toy_size(tmp_path):
    """From a bare checkout: PYTHONPATH is all it needs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "gpu-cpu-rehearsal.json").read_text())
    figures = {name for part in result.values() if isinstance(part, dict) for name in part.get("figures", {})}
    assert {"wrong", "mezo lora: one hash", "float32 fan, of copy_", "nf4"} & figures
    assert len(figures) > 25
