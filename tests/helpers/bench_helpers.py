"""A grid of runs that take no time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gradless.bench import grid, results
from gradless.bench.runner import Outcome, bench
from gradless.runs.config import TuneConfig
from gradless.system.progress import Reporter

GRID = """
search_seeds = [0]
seeds = [1, 2]
budget = { forwards = 20 }
select = "accuracy"
[base]
model = "tiny-llama"
evaluations = 2
[axes]
method = ["mezo", "lozo"]
task = ["sst2"]
[grid]
lr = [1e-4, 1e-3, 1e-2]
"""


RUNS = 2 + 2 * 3 + 2 * 2  # zero-shot, search, final


# Stands for `gradless tune` and `gradless eval`: what they write, without a model. The learning rate says how it ends.
FAKE = r"""
import json, math, os, sys, time
request, folder = json.load(open(sys.argv[1])), sys.argv[2]
open(sys.argv[3], "a").write(request["id"] + "\n")
config = request["config"]
def done(**more):
    with open(folder + "/result.json.new", "w") as file:
        json.dump({"status": "done", **more}, file)
    os.replace(folder + "/result.json.new", folder + "/result.json")
lr, pause = config["lr"], float(os.environ.get("FAKE_SECONDS", "0"))
if os.path.exists(sys.argv[3] + ".full"):
    sys.exit("gradless: cannot write at " + folder + " (No space left on device): free space")
time.sleep(pause)
if request["phase"] == "zero-shot":
    done(test={"accuracy": 0.5}, forwards=872, seconds=0.001)
    sys.exit(0)
if lr == 7.0:
    sys.stderr.write("something\ngradless: there is no model at nowhere: check the path\n")
    sys.exit(2)
if lr == 6.0:
    os.kill(os.getpid(), 9)
accuracy = round(1 - abs(math.log10(lr) + 3) / 10, 4)
with open(folder + "/metrics.jsonl", "w") as file:
    file.write(json.dumps({"event": "inference", "step": 0, "bytes": 1000, "seconds": 0.003}) + "\n")
    for step in range(10):
        file.write(json.dumps({"event": "step", "step": step, "forwards": 2, "seconds": 0.001}) + "\n")
        if step in (4, 9):
            file.write(json.dumps({"event": "eval", "split": "dev", "step": step + 1, "loss": 1.0,
                                   "accuracy": accuracy, "forwards": 9, "seconds": 0.002}) + "\n")
test = {"accuracy": accuracy - config["seed"] / 100} if config["num_test"] else {}
status = "diverged" if lr == 8.0 else "done"
done(status=status, dev={"loss": 1.0, "accuracy": accuracy}, test=test, zero_shot={}, steps=10, selected_step=10,
     forwards=20, train_seconds=0.01, seconds_per_step=0.001, peak_memory_bytes=2000, inference_memory_bytes=1000,
     tuned_parameters=7) if lr != 8.0 else done(status=status, dev={}, test={}, zero_shot={}, steps=3,
     selected_step=3, forwards=6, train_seconds=0.01, seconds_per_step=0.001)
sys.exit(0 if status == "done" else 1)
"""


def cost(config: TuneConfig) -> int:
    """Forwards of a step."""
    return 2


class BenchDirectory:
    """A grid, a bench directory, and a record of which runs were started."""

    def __init__(self, folder: Path, text: str = GRID) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.grid, self.out, self.log = folder / "grid.toml", folder / "out", folder / "log"
        self.fake = folder / "fake.py"
        self.grid.write_text(text)
        self.fake.write_text(FAKE.replace('done(status="done"', "done("))
        self.messages: list[str] = []

    def command(self, request: grid.Request, out: Path) -> list[str]:
        paths = (results.request_file(out, request.id), results.run_folder(out, request.id), self.log)
        return [sys.executable, "-S", str(self.fake), *map(str, paths)]

    def bench(self, **more: Any) -> Outcome:
        reporter = Reporter(quiet=True)
        reporter.say = self.messages.append  # type: ignore[method-assign]
        arguments = {"reporter": reporter, "cost": cost, "command": self.command, "poll": 0.02, **more}
        return bench(self.grid, self.out, **arguments)

    @property
    def started(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    @property
    def lines(self) -> list[dict[str, Any]]:
        return results.read(self.out)

    def table(self) -> list[dict[str, Any]]:
        """The lines of results.jsonl without times."""
        return [{k: v for k, v in line.items() if k not in ("wall_seconds", "overhead")} for line in self.lines]
