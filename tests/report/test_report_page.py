"""The page of a benchmark, and results that are missing or broken."""

from __future__ import annotations

import json
import math
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradless.errors import BadInput
from gradless.report import report
from gradless.report.common.numbers import slug
from gradless.report.common.table import NOTHING
from html_helpers import parsed
from report_bench_helpers import MODEL, Bench, cell, costs, curve, named, row

# --- the page ---


def test_the_page_is_self_contained_and_escaped(small):
    lines = (small / "results.jsonl").read_text().splitlines()
    evil = json.loads(lines[-1]) | {"id": "evil", "status": "failed", "reason": "<script>alert(1)</script>"}
    evil["cell"] = cell("<img src=x onerror=alert(1)>", task='"><b>task')
    (small / "results.jsonl").write_text("\n".join([*lines, json.dumps(evil)]) + "\n")
    report(small, say=lambda line: None)
    text, tags = parsed(small / "report.html")
    assert tags.open == []
    assert not {"script", "img", "link", "b", "iframe", "object"} & set(tags.names)
    assert tags.loaded == []
    assert "http" not in text
    assert "@import" not in text
    assert all(link.startswith("#") for link in tags.links)
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert tags.names["svg"] == 5
    assert "&lt;script&gt;" in text
    assert "small &amp; &lt;b&gt;bold&lt;/b&gt;" in text
    assert "[axes]" in text  # the grid
    assert "counts as two" in text


def test_the_page_tells_versions(small):
    folder = small / "runs" / "r0005"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"versions": {"torch": "9.9.9", "machine": "a <b> machine"}}))
    report(small, say=lambda line: None)
    text = (small / "report.html").read_text()
    assert "9.9.9" in text
    assert "a &lt;b&gt; machine" in text


# --- what is missing or broken ---


def test_missing_runs_are_counted(small):
    bench_requests = small / "requests"
    request = json.loads((bench_requests / "r0003.json").read_text())
    for n in (1, 2):
        (bench_requests / f"more{n}.json").write_text(json.dumps(request | {"id": f"more{n}"}))
    records = [json.loads(line) for line in (small / "results.jsonl").read_text().splitlines()]
    last = records.pop()
    (bench_requests / f"{last['id']}.json").unlink()  # a final run that was never begun
    (small / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    messages = []
    report(small, say=messages.append)
    assert "not complete: 3 runs have no result yet" in messages
    assert "3 runs have no result yet" in (small / "report.html").read_text()


def test_a_cell_without_any_result_has_no_row_but_is_counted(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("search", cell(), {"lr": 1e-6}, 0, dev={"accuracy": 0.6}, test={"accuracy": 0.9}, **costs(2, 1, 1e9))
    bench.request("search", cell("lozo", task="rte"), {"lr": 1e-6}, 0)
    lines = []
    report(bench.folder, say=lines.append)
    # Its search, its three final runs, and those of the other cell.
    wanted = "not complete: 7 runs have no result yet; 1 cell has none at all and no row in the tables"
    assert wanted in lines
    for name in ("accuracy", "hyper-parameters"):
        text = (bench.folder / "tables" / f"{name}.md").read_text()
        assert "mezo" in text
        assert "lozo" not in text
        assert "rte" not in text


def test_a_complete_study_says_so(small):
    messages = []
    report(small, say=messages.append)
    assert messages == ["36 runs: 28 done, 8 diverged"]


def test_an_empty_directory_is_refused(tmp_path):
    for prepare in (lambda: None, lambda: (tmp_path / "results.jsonl").write_text("\n")):
        prepare()
        with pytest.raises(BadInput, match="gradless bench") as caught:
            report(tmp_path, say=lambda line: None)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "tables").exists()


def test_a_damaged_grid_is_refused(small):
    (small / "grid.toml").write_text("name = ")
    with pytest.raises(BadInput, match=r"grid\.toml cannot be read"):
        report(small, say=lambda line: None)


def test_a_damaged_line_is_left_out(small):
    with (small / "results.jsonl").open("a") as file:
        file.write('{"id": "torn", "pha\n[]\n{"id": 1, "phase": "final"}\n')
    messages = []
    report(small, say=messages.append)
    assert any("3 damaged lines" in line for line in messages)


@pytest.mark.few(2)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", [], {}])
def test_odd_values_do_not_crash(tmp_path, value):
    bench = Bench(tmp_path / "b")
    odd = {name: value for name in (*costs(1, 1, 1), "curve", "threads", "reason")}
    for phase in ("search", "final", "zero-shot"):
        for part in (
            {"test": {"accuracy": value}, "dev": {"accuracy": value, "loss": value}},
            {"test": value, "dev": value},
        ):
            bench.run(phase, cell(), {"lr": 1e-6, "eps": None}, 1, **odd, **part, zero_shot=value)
    bench.run("final", cell("lozo"), {"lr": math.nan}, None, curve=[value, {"step": 1, "accuracy": value}, *curve(0.5)])
    report(bench.folder, say=lambda line: None)
    assert row(named(bench.folder, "accuracy"), "mezo") == [NOTHING]
    tomllib.loads((bench.folder / "best.toml").read_text())


def test_a_search_alone_is_reported(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.run("search", cell(), {"lr": 1e-6}, 0, dev={"accuracy": 0.6}, test={"accuracy": 0.9}, **costs(2, 1, 1e9))
    messages = []
    report(bench.folder, say=messages.append)
    assert "not complete: 3 runs have no result yet" in messages
    assert row(named(bench.folder, "accuracy"), "mezo") == [NOTHING]
    # Its runs are shorter than those that follow, and another point may win.
    text = (bench.folder / "best.toml").read_text()
    assert tomllib.loads(text) == {}
    assert f"# mezo/full/sst2/{MODEL}: the search has not ended" in text
    assert "(so far)" in (bench.folder / "tables" / "hyper-parameters.md").read_text()


@given(st.text())
def test_slugs_are_safe_names(text):
    assert re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9._=-]*", slug(text))
