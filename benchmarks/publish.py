"""Copy what a finished benchmark or comparison says into the repository: its lines, tables, choices and pictures.

    python benchmarks/publish.py runs/study study sst2-full-forwards=study-sst2

writes ``benchmarks/results/NAME.jsonl``, each line of a benchmark with the releases that made its run, ``NAME.md``, for
a benchmark ``NAME-best.toml``, ``NAME-grid.toml`` unless ``benchmarks/grids`` has the grid of that name, and, where
``--timings`` was measured, ``NAME-timings.json``, and copies ``figures/FIGURE.png`` to ``docs/figures/PICTURE.png``.
What is missing of an unfinished benchmark stands above its tables. Paths of the machine that made the runs are left
out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from gradless.bench.grid_file import difference
from gradless.report import load, report
from gradless.report.bench.page import shortfall

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def with_versions(folder: Path) -> str:
    """Return the lines of a folder, each with the releases and the machine that its run wrote down."""
    lines = []
    for text in (folder / "results.jsonl").read_text().splitlines():
        line = json.loads(text)
        path = folder / "runs" / str(line.get("id")) / "result.json"
        versions = json.loads(path.read_text()).get("versions") if path.exists() else None
        lines.append(compact({**line, "versions": versions} if versions else line))
    return "".join(f"{line}\n" for line in lines)


def compact(line: dict[str, Any]) -> str:
    """Return a line as short JSON, with times in seven digits: thousands of lines are committed.

    Metrics keep all of theirs: a search that goes on from these lines must choose as the one that made them.
    """
    return json.dumps(_short_times(line), separators=(",", ":"))


def _short_times(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _short_times(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_short_times(one, name) for one in value]
    is_time = isinstance(value, float) and ("seconds" in name or name == "overhead")
    return float(f"{value:.7g}") if is_time else value


def publish(folder: Path, name: str, pictures: dict[str, str]) -> list[Path]:
    """Write a report and copy its parts; returns what was written.

    Raises:
        SystemExit: ``benchmarks/grids`` has another grid of that name, by which the lines would be read.
    """
    grid = ROOT / "benchmarks" / "grids" / f"{name}.toml"
    own = folder / "grid.toml"
    if grid.exists() and own.exists():
        changed = difference(*(tomllib.loads(path.read_text()) for path in (own, grid)))
        if changed:
            raise SystemExit(f"{own} is not {grid.relative_to(ROOT)}: {changed}; publish under another name")
    reported = report(folder)
    tables = [path.read_text().rstrip("\n") for path in reported if path.suffix == ".md"]
    if own.exists():
        lacks = shortfall(load(folder))
        tables = [f"Not complete: {lacks}.", *tables] if lacks else tables
    parts = {".jsonl": with_versions(folder), ".md": "\n\n".join(tables) + "\n"}
    copied = [("best.toml", "-best.toml"), ("timings.json", "-timings.json")]
    if not grid.exists():
        copied.append(("grid.toml", "-grid.toml"))
    for file, ending in copied:
        if (folder / file).exists():
            parts[ending] = (folder / file).read_text()
    written = []
    for ending, text in parts.items():
        text = re.sub(r'(?<=")/[^"\n]*/benchmarks/grids/', "", text)  # of any checkout
        text = text.replace(f"{folder.resolve().parent}/", "")
        written.append(RESULTS / (name + ending))
        written[-1].write_text(text)
    for figure, picture in pictures.items():
        written.append(ROOT / "docs" / "figures" / f"{picture}.png")
        shutil.copyfile(folder / "figures" / f"{figure}.png", written[-1])
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the directory of the benchmark or comparison")
    parser.add_argument("name", help="of its files in benchmarks/results")
    parser.add_argument("pictures", nargs="*", metavar="FIGURE=PICTURE")
    options = parser.parse_args()
    for path in publish(options.folder, options.name, dict(pair.split("=") for pair in options.pictures)):
        print(path.relative_to(ROOT))
