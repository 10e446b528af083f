"""A table in its forms (LaTeX, Markdown, CSV, HTML), best.toml and pictures."""

from __future__ import annotations

import csv
import io
import itertools
import re
import statistics
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradless.report import load, report, show_tables, tables
from gradless.report.bench.figures import pareto
from gradless.report.bench.selection import key, literal, names
from gradless.report.common.label_layout import Box, place, spread
from gradless.report.common.page import templates
from gradless.report.common.table import Column, Item, Table, escape_latex, latex, markdown, plain
from gradless.runs.config import TuneConfig
from report_bench_helpers import MODEL, Bench, cell

# --- forms of a table ---


def nasty() -> Table:
    rows = ((Item("a_b|c & <i>*50%*</i> $x$ {y}~^\\"), Item("0.5 ± 0.1", best=True)), (Item("z"), Item(best_zo=True)))
    columns = (Column("Method"), Column("x < y", "group #1"))
    return Table("n", "T & <t>", "c_1", 1, columns, rows, ({"a": 'x,"y"', "b": 0.1 + 0.2}, {"a": None, "c": 1}))


def test_latex_is_escaped():
    text = latex(nasty())
    assert r"a\_b\textbar{}c \& \textless{}i\textgreater{}" in text
    assert r"\$x\$ \{y\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"\textbf{0.5 $\pm$ 0.1}" in text
    assert r"\multicolumn{1}{c}{group \#1}" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){2-2}"))
    inside = text[text.index("\\toprule") : text.index("\\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in inside.splitlines() if line.endswith(r"\\")} == {1}


@given(st.text())
def test_latex_leaves_no_special_letter_bare(text):
    left = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", escape_latex(text)
    )
    left = re.sub(r"\$(\\pm|\\times|\\leq|\\uparrow|\^\\dagger|\\cdot)\$", "", left)
    left = re.sub(r"\\[&%$#_{}]", "", left)
    assert not set(left) & set("\\&%$#_{}~^<>|\n\r")


def test_markdown_keeps_its_columns():
    lines = [line for line in markdown(nasty()).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "**0.5 ± 0.1**" in markdown(nasty())
    assert "<i>" not in markdown(nasty())


def test_csv_holds_unrounded_numbers(small):
    report(small, say=lambda line: None)
    rows = list(csv.DictReader(io.StringIO((small / "tables/accuracy.csv").read_text())))
    (mezo,) = [r for r in rows if (r["method"], r["scheme"]) == ("mezo", "full")]
    assert float(mezo["mean"]) == statistics.fmean([0.79, 0.8, 0.81])
    assert float(mezo["std"]) == statistics.stdev([0.8 - 0.01, 0.8, 0.8 + 0.01])
    assert (mezo["seeds"], mezo["metric"], mezo["kind"]) == ("3", "accuracy", "zo")


def test_html_table_is_escaped():
    text = str(templates().get_template("common/parts.html.j2").module.table(nasty()))
    assert "<i>" not in text
    assert "&lt;i&gt;" in text


@pytest.mark.parametrize("live", [False, True])
def test_tables_are_printed(small, capsys, live):
    rendered = tables(small)
    show_tables(rendered, live=live)
    out = capsys.readouterr().out
    assert "Test results" in out
    assert "0.800 ± 0.010" in out
    assert "diverged" in out
    assert "0.880 ± 0.010*" in plain(rendered[0])
    assert "0.840 ± 0.010†" in plain(rendered[0])


# --- best.toml ---


def test_best_toml_is_read_back(tmp_path):
    own = {"train": 'C:\\data\\"x".csv', "template": "{text}\nIt\twas \x7f\x01 ü", "labels": "0=a,1=b"}
    bench = Bench(tmp_path / "b")
    for seed in (1, 2):
        config = {"own": own, "task": None, "targets": ["q.*", 'v"'], "eps": 1e-3, "num_train": 0, "weight_decay": 0.0}
        bench.run("final", cell(task="own"), {"lr": 3e-6}, seed, config=config, test={"accuracy": 0.5})
    report(bench.folder, say=lambda line: None)
    text = (bench.folder / "best.toml").read_text()
    best = tomllib.loads(text)["cell"][f"mezo/full/own/{MODEL}"]
    assert best == {
        "model": MODEL,
        "own": own,
        "targets": ["q.*", 'v"'],
        "eps": 1e-3,
        "num_train": 0,
        "lr": 3e-6,
        "seed": 1,
    }
    config = TuneConfig.from_json(best).resolved()
    assert (config.lr, config.targets, config.own["train"]) == (3e-6, ("q.*", 'v"'), own["train"])
    assert "test 0.500" in text


def test_best_toml_without_requests_tells_what_results_tell(small):
    for path in (small / "requests").iterdir():
        path.unlink()
    report(small, say=lambda line: None)
    cells = tomllib.loads((small / "best.toml").read_text())["cell"]
    assert cells[f"mezo/lora/sst2/{MODEL}"] == {"model": MODEL, "task": "sst2", "scheme": "lora", "lr": 3e-6}
    assert f"lozo/lora/sst2/{MODEL}" not in cells  # all diverged: there is no best


def test_names_of_cells_are_unique(tmp_path):
    bench = Bench(tmp_path / "b")
    for model in ("/a/m", "/b/m", "/c/n", "org/n"):
        for aligned in (True, False):
            for keep in (0.1, 0.5):
                bench.run("search", cell(aligned=aligned, **{"options.keep": keep}) | {"model": model}, {}, 0)
    cells = names(load(bench.folder))
    assert len(cells) == 16
    assert "mezo/full/sst2/n/keep=0.1" in cells
    assert "mezo/full/sst2//a/m/unaligned/keep=0.5" in cells


PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(blacklist_categories=("Cs",))), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.text(st.characters(blacklist_categories=("Cs",))), PLAIN)
def test_toml_round_trip(name, value):
    assert tomllib.loads(f"{key(name)} = {literal(value)}") == {name: value}


# --- pictures ---


def test_pareto_front():
    assert pareto([(2, 0.9), (1, 0.5), (1, 0.6), (3, 0.8), (1.5, 0.6)]) == [(1, 0.6), (2, 0.9)]


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=12))
def test_spread_keeps_order_gap_and_bounds(wanted):
    places = spread(wanted, 10.0, 0.0, 120.0)
    ordered = sorted(places)
    assert all(b - a >= 10 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert min(places) >= -1e-6
    assert max(places) <= 120 + 1e-6
    assert [places[i] for i in sorted(range(len(wanted)), key=lambda i: (wanted[i], i))] == ordered


def test_spread_leaves_free_places_alone():
    assert spread([30.0, 5.0, 90.0], 10.0, 0.0, 100.0) == [30.0, 5.0, 90.0]
    assert spread([1.0, 1.0, 1.0], 10.0, 0.0, 10.0) == [-5.0, 5.0, 15.0]  # no room: beyond both ends


def test_labels_do_not_overlap_in_a_crowd():
    anchors = [(40 + 3 * (i % 5), 150 + 6 * (i // 5)) for i in range(20)]
    area = Box(0, 0, 450, 300)
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    boxes = place(anchors, area, marks, sizes=[(70.0, 12.0)] * 20)
    assert all(box.inside(area) for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in [*boxes[:i], *marks])


def test_pictures_are_written_and_reproducible(small):
    first = report(small, say=lambda line: None)
    pictures = [path for path in first if path.parent.name == "figures"]
    assert {path.name for path in pictures if path.suffix == ".svg"} == {
        "front-sst2.svg",
        "curves-sst2-full-forwards.svg",
        "curves-sst2-full-seconds.svg",
        "curves-sst2-lora-forwards.svg",
        "curves-sst2-lora-seconds.svg",
    }
    originals = {path: path.read_bytes() for path in pictures}
    assert all(data.startswith(b"\x89PNG") for path, data in originals.items() if path.suffix == ".png")
    report(small, say=lambda line: None)
    assert {path: path.read_bytes() for path in pictures} == originals


def test_without_matplotlib_the_rest_is_written(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    messages = []
    written = report(small, say=messages.append)
    assert written[-1] == small / "report.html"
    assert any("pip install 'gradless[plots]'" in line for line in messages)
    assert not list((small / "figures").iterdir())
