"""Peak memory of a step: of the allocator on CUDA, elsewhere of a process for each candidate."""

from __future__ import annotations

import gc
import json as json_format
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from gradless.cost import workload
from gradless.cost.settings import EAGER, FLOOR
from gradless.cost.settings import ProfileSettings as Settings
from gradless.cost.workload import Subject
from gradless.errors import BadInput, unknown
from gradless.optimizer import ENGINES
from gradless.system.atomic import write_json
from gradless.system.children import PYTHON, environment
from gradless.system.peak_memory import PeakMeter
from gradless.system.progress import Reporter

STEPS = 3
PEAKS = ("peak_memory_bytes", "inference_memory_bytes", "kernels_memory_bytes")


def memory_of(name: str, *, json: Path, **choices: Any) -> None:
    """Write the peak memory of inference and of a few steps of one candidate, as measured in this process."""
    settings = Settings(**choices)
    settings.check()
    if name not in (FLOOR, EAGER, *ENGINES):
        raise BadInput(unknown("candidate", name, (FLOOR, EAGER, *ENGINES)))
    with workload.threads(settings.threads):
        write_json(json, _peaks(workload.subject(settings, Reporter(quiet=True).say), name))


def in_this_process(subject: Subject) -> dict[str, dict[str, int]]:
    """Return peaks of the device's allocator; each candidate is gone before the next one comes."""
    peaks = {}
    for name in subject.settings.candidates():
        peaks[name] = _peaks(subject, name)
        gc.collect()
    return peaks


def in_processes(settings: Settings, reporter: Reporter) -> dict[str, dict[str, int]]:
    """Return peaks of the resident set, each candidate's in a process of its own, one after the other."""
    names, peaks = settings.candidates(), {}
    with reporter.job("memory", len(names)) as show, tempfile.TemporaryDirectory() as folder:
        for done, name in enumerate(names, 1):
            target = Path(folder) / "peaks.json"
            command = [*PYTHON, "-m", "gradless", "profile", *settings.arguments(), "--only", name]
            command += ["--json", str(target)]
            run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
            if run.returncode == 0:
                peaks[name] = json_format.loads(target.read_text(encoding="utf-8"))
            else:
                why = (run.stderr.strip().splitlines() or ["killed, out of memory?"])[-1]
                reporter.say(f"the memory of {name} could not be measured: {why}")
            show(done, name)
    return peaks


def enter(result: dict[str, Any], peaks: dict[str, dict[str, int]]) -> None:
    """Write peaks into the rows of a result; None where they were not measured."""
    result["inference_memory_bytes"] = peaks.get(FLOOR, {}).get("inference_memory_bytes")
    rows = {FLOOR: result["floor"], EAGER: result["eager_mezo"], **result["engines"]}
    for name, row in rows.items():
        if row is not None:
            row |= {**dict.fromkeys(PEAKS), **peaks.get(name, {})}


@torch.no_grad()
def _peaks(subject: Subject, name: str) -> dict[str, int]:
    """Return peak bytes of inference, of what the kernels' code takes, and of the first steps of one candidate.

    Later steps do the same again. On a CPU, a just-in-time compiler and its code count as resident memory of the
    process; that they do not grow with the model can be seen only if they are told apart.
    """
    device = subject.lm.device
    inference, training = PeakMeter(device), PeakMeter(device)
    subject.closure()  # allocator and caches warm up outside
    with inference.measured():
        subject.closure()
    held = _now(device)
    if name in ENGINES:
        workload.toy_steps(subject, name)
    code = max(0, _now(device) - held)
    candidate = workload.candidate(subject, name)
    with training.measured(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when time is measured
        for _ in range(STEPS):
            candidate.step()
    return {
        "inference_memory_bytes": inference.peak,
        "kernels_memory_bytes": code,
        "peak_memory_bytes": training.peak,
    }


def _now(device: torch.device) -> int:
    """Return the bytes held at this moment."""
    meter = PeakMeter(device)
    with meter.measured():
        pass
    return meter.peak
