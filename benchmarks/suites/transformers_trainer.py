"""Trainer and ZOTrainer side by side: events, hooks, logs, saved files and the final state of 63 configurations.

The source distribution of transformers holds no tests of its Trainer (``pip download --no-binary :all: --no-deps
transformers==5.23.0``: 22 files below ``tests``, all of them mixins), so the comparison is one of our own:
``tests/helpers/trainer_trace.py`` has the table. Both trainers run at a learning rate of 1e-12.

    python benchmarks/suites/transformers_trainer.py benchmarks/results/trainer-configurations.json
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import transformers  # noqa: E402

from trainer_trace import TABLE, differences  # noqa: E402


def main(out: str) -> None:
    transformers.logging.set_verbosity_error()
    results = {}
    for name, config in TABLE.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            results[name] = sorted(differences(folder, config))
        print(name, results[name] or "same", flush=True)
    same = sum(not differing for differing in results.values())
    counts = {"transformers": transformers.__version__, "configurations": len(results), "same": same}
    Path(out).write_text(json.dumps({**counts, "differences": results}, indent=2) + "\n")
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1])
