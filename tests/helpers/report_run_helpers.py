"""A finished run and its page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from gradless.report import report
from gradless.report.run.record import Evaluated, RunRecord, Step

SECTIONS = ["result", "data", "training", "cost", "gradients", "examples", "provenance"]


NASTY = "<script>alert(\"1\")</script> & 'quoted' </td></table> ± 5"


ARABIC = "\u0641\u064a\u0644\u0645 \u0631\u0627\u0626\u0639 (2002)"


class Page(HTMLParser):
    """Text of the cells of every table, and what a page must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._table, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name.endswith(("href", "src", "srcset", "action"))]
        if tag == "figure":
            self._table = attributes.get("id", "")
        elif tag == "tr":
            self.tables.setdefault(self._table, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.tables[self._table][-1][-1] += data


def report_page(folder: Path) -> tuple[str, Page]:
    """The page of a run."""
    (path,) = report(folder, say=lambda line: None)
    assert path == folder / "report.html"
    text = path.read_text()
    return text, Page(text)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def record(**changes: Any) -> RunRecord:
    """A finished run, 40 -> 60 of 100 right, by hand."""
    before, after = [i < 40 for i in range(100)], [i >= 30 and i < 90 for i in range(100)]
    result = {
        "status": "done",
        "selected_step": 8,
        "zero_shot": {"accuracy": 0.4},
        "test": {"accuracy": 0.6},
        "interval": {"zero_shot": [0.3, 0.5], "test": [0.5, 0.7], "difference": [0.05, 0.33]},
    }
    fields: dict[str, Any] = {
        "folder": Path("runs/x"),
        "config": {"model": "m", "task": "sst2", "method": "mezo", "steps": 10},
        "result": result | changes.pop("result", {}),
        "header": {},
        "ledger_bytes": 0,
        "steps": tuple(Step(i, (1.0,), 1e-6, False) for i in range(10)),
        "evaluations": (Evaluated("test", 0, 1.0, {}, tuple(before)), Evaluated("test", 8, 1.0, {}, tuple(after))),
        "inference_bytes": None,
        "predictions": (),
        "remarks": (),
    }
    return RunRecord(**(fields | changes))
