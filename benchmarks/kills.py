"""Count what ``kill -9`` at random moments does: python benchmarks/kills.py [--kills N] [JOB ...].

Each job (``tune``, ``save``, ``collab``) is killed N times in all, at moments drawn over its time and its files, and
continued each time. The counts go to benchmarks/results/kills.json: kills, runs that were killed, and of these the runs
that ended with the hashes and the files of the run that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent / "tests" / "helpers"))

from kill_helpers import jobs, killed  # noqa: E402


def main() -> None:
    """Kill, count, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "kills.json")
    asked = parser.parse_args()
    counts = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, job in jobs(Path(scratch) / "data"):
            if not asked.names or name in asked.names:
                counts[name] = asdict(killed(job, Path(scratch) / name, asked.kills, asked.seed))
                print(name, counts[name], flush=True)
                asked.out.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
