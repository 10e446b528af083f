"""Try every scheme on tiny models of the architectures of transformers, and write the table of the docs.

Usage: OMP_NUM_THREADS=1 python benchmarks/architectures.py [--only NAME ...] [--render]

Each cell is held to the promises of `run` in tests/helpers/architectures.py; what is wrong ends the script with
exit code 1. Results go to benchmarks/results/architectures.json, the table to docs/reference/architectures.md;
``--render`` makes the table from the results again. About 8 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "reference" / "architectures.md"
PLAN = "plan"
HEAD = """# Architectures and schemes

Which schemes tune which architectures of transformers {transformers} with PEFT {peft}, tried on random models of
some ten thousand weights by `python benchmarks/architectures.py`. *yes*: the loss is that of plain forwards, the
engines `stream`, `dual` and `in-place` agree to rounding and leave the weights bit for bit, the loss feels the
perturbation, only tuned weights move, and a fresh model with the logged updates has the same hash. *stream*: the
same, but `dual` falls back to `stream` with a warning. A number: refused with that sentence. The last column has
the layers that LoRA adapts by default.

| architecture | full | lora | prefix | prompt | head | plan | LoRA adapts |
|---|---|---|---|---|---|---|---|
"""


def measure(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the outcomes of all cells of each architecture."""
    import architectures

    for name in names:
        row, start = architectures.ROWS[name], time.monotonic()
        cells = {scheme: architectures.run(row, scheme) for scheme in architectures.SCHEMES}
        with tempfile.TemporaryDirectory() as folder:
            cells[PLAN] = architectures.planned(row, Path(folder) / name)
        yield name, {"masked": row.masked, "cells": {scheme: cell._asdict() for scheme, cell in cells.items()}}
        wrong = {scheme: cell.wrong for scheme, cell in cells.items() if cell.wrong}
        print(f"{name}: {time.monotonic() - start:.1f} s {wrong or ''}", flush=True)


def rendered(results: dict[str, Any]) -> str:
    """Return the page of the docs."""
    reasons: dict[str, int] = {}
    lines = []
    for name, row in results["rows"].items():
        shown = [_shown(cell, name, reasons) for cell in row["cells"].values()]
        adapts = " ".join(f"`{part}`" for part in row["cells"]["lora"]["adapts"])
        lines.append(f"| {name}{' (masked)' if row['masked'] else ''} | {' | '.join(shown)} | {adapts} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    head = HEAD.format(**results["versions"])
    return head + "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def _shown(cell: dict[str, Any], name: str, reasons: dict[str, int]) -> str:
    if cell["wrong"]:
        return "**wrong**"
    if cell["refused"]:
        reason = re.sub(r"\S*/" + re.escape(name) + r"\b|\b" + re.escape(name) + r"\b(?!\.)", "NAME", cell["refused"])
        reason = re.sub(r"\(\w+(?:ForCausalLM|ForMaskedLM|HeadModel|Decoder)\)", "(CLASS)", reason)
        return str(reasons.setdefault(reason, len(reasons) + 1))
    return "stream" if cell["engine"] == "stream" else "yes"


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--render", action="store_true")
    chosen = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not chosen.render:
        import peft
        import transformers

        import architectures

        results["versions"] = {"transformers": transformers.__version__, "peft": peft.__version__}
        rows = results["rows"]
        for name, row in measure(chosen.only or list(architectures.ROWS)):
            rows[name] = row
            results["rows"] = {name: rows[name] for name in architectures.ROWS if name in rows}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(rendered(results))
    return int(any(cell["wrong"] for row in results["rows"].values() for cell in row["cells"].values()))


if __name__ == "__main__":
    sys.exit(main())
