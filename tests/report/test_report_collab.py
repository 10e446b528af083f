"""The report of collaborative runs, on written results: numbers are checked against ones worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from gradless.errors import BadInput
from gradless.report import report, tables
from gradless.report.collab import study as collab_study
from gradless.report.collab.page import shared_and_varied, shortfall
from gradless.report.common.table import NOTHING, Table
from html_helpers import parsed
from report_collab_helpers import Folder, curve, quiet


def named(folder: Path, name: str) -> Table:
    return next(table for table in tables(folder) if table.name == name)


def row(table: Table, *labels: str) -> dict[str, str]:
    (cells,) = [r for r in table.rows if tuple(i.text for i in r[: len(labels)]) == labels]
    return {column.name: item.text for column, item in zip(table.columns, cells, strict=True)}


@pytest.fixture
def small(tmp_path: Path) -> Folder:
    """Two algorithms and D-SGD, two attacks, three seeds, whose numbers are easy to work out."""
    folder = Folder(tmp_path / "runs of <b>mine</b>")
    levels = {"monna": {"alie": 0.9, "sign-flip": 0.94}, "d-sgd": {"alie": 0.2, "sign-flip": 0.1}}
    for name, attacks in levels.items():
        for attack, level in attacks.items():
            for seed in (1, 2, 3):
                ends = {"worst_accuracy": level + 0.01 * (seed - 2), "mean_accuracy": level + 0.02}
                folder.run(name, attack, seed, **ends, curve=curve(np.random.Generator(np.random.PCG64(seed)), level))
    for seed in (1, 2, 3):
        folder.run("dsgd", "none", seed, f=0, worst_accuracy=0.96, mean_accuracy=0.97)
    return folder


# --- tables ---


def test_accuracy_worst_attack_and_gap(small):
    table = named(small.folder, "accuracy")
    assert table.title == "Accuracy of the worst honest peer, in %, Dirichlet over classes, \u03b1 = 1, n = 26, f = 5"
    monna = row(table, "MoNNA")
    assert (monna["ALIE"], monna["sign flip"]) == ("90.0 ± 1.0", "94.0 ± 1.0")
    assert (monna["worst attack"], monna["gap"], monna["no attack"]) == ("ALIE", "\u22126.0", NOTHING)
    dsgd = row(table, "D-SGD")
    assert (dsgd["no attack"], dsgd["worst attack"], dsgd["gap"]) == ("96.0 ± 0.0", "sign flip", "\u221286.0")
    assert "3 seeds" in table.caption
    assert row(named(small.folder, "mean-accuracy"), "MoNNA")["ALIE"] == "92.0 ± 0.0"
    best = {i.text for r in table.rows for i in r if i.best}
    assert best == {"96.0 ± 0.0", "90.0 ± 1.0", "94.0 ± 1.0"}


def test_csv_holds_unrounded_numbers(small):
    quiet(small.folder)
    rows = list(csv.DictReader(io.StringIO((small.folder / "tables/accuracy.csv").read_text())))
    (alie,) = [r for r in rows if (r["algorithm"], r["attack"]) == ("monna", "alie")]
    assert float(alie["worst_accuracy"]) == statistics.fmean([0.89, 0.9, 0.91])
    assert (alie["split"], alie["alpha"], alie["gamma"], alie["seeds"]) == ("dirichlet-classes", "1.0", "", "3")


def test_without_d_sgd_there_is_no_gap(tmp_path):
    folder = Folder(tmp_path)
    folder.run("monna", "alie")
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == NOTHING
    quiet(tmp_path)
    assert "no run of D-SGD without attackers" in (tmp_path / "report.html").read_text()


def test_the_reference_is_of_the_same_data_and_nearest_in_peers(tmp_path):
    folder = Folder(tmp_path)
    folder.run("monna", "alie")
    folder.run("d-sgd", "none", alpha=5, worst_accuracy=0.1)
    folder.run("d-sgd", "none", n=8, f=1, worst_accuracy=0.2)
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "+70.0"
    folder.run("d-sgd", "none", n=21, f=0, worst_accuracy=0.93)  # as many honest peers
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "\u22123.0"
    folder.run("d-sgd", "none", n=26, f=0, worst_accuracy=0.94)
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "\u22124.0"
    folder.run("d-sgd", "none", worst_accuracy=0.95)
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "\u22125.0"


def test_diverged_runs_count_with_their_accuracy_and_are_marked(tmp_path):
    folder = Folder(tmp_path)
    for seed, level in ((1, 0.8), (2, 0.8), (3, 0.2)):
        folder.run("monna", "alie", seed, worst_accuracy=level, status="diverged" if seed == 3 else "done")
    folder.run("monna", "foe", worst_accuracy=math.nan, mean_accuracy=None, status="diverged")
    folder.run("gm", "alie", status="failed", reason="<i>full</i>")
    folder.run("gm", "foe")
    table = named(tmp_path, "accuracy")
    assert row(table, "MoNNA")["ALIE"] == "60.0 ± 34.6 (1 diverged)"
    assert row(table, "MoNNA")["FOE"] == "diverged"
    assert row(table, "MoNNA")["worst attack"] == "FOE"  # no accuracy is worse than a low one
    assert row(table, "GM")["ALIE"] == "failed"
    assert [i.text for r in table.rows for i in r if i.warn] == ["diverged", "60.0 ± 34.6 (1 diverged)", "failed"]
    quiet(tmp_path)
    assert "&lt;i&gt;full&lt;/i&gt;" in (tmp_path / "report.html").read_text()


def test_a_missing_attack_makes_the_worst_one_a_bound(small):
    small.run("nna", "alie")
    nna = row(named(small.folder, "accuracy"), "NNA")
    assert (nna["sign flip"], nna["worst attack"], nna["gap"]) == (NOTHING, "ALIE (so far)", "≤ \u22126.0")
    assert row(named(small.folder, "accuracy"), "NNA")["ALIE"] == "90.0 (n=1)"


def test_mixing_is_read_in_every_form(tmp_path):
    folder = Folder(tmp_path)
    forms = (
        {"alpha_mixing": {"median": 0.1, "max": 0.5}},
        {"alpha_mixing": 0.3, "alpha_max": 0.9},
        {"alpha_mixing": 0.2, "alpha_max": 2.0},
    )
    for seed, form in enumerate(forms):
        folder.run("monna", "alie", seed, **form)
    folder.run("d-sgd", "alie", alpha_mixing=1.5)
    table = named(tmp_path, "alpha")
    assert row(table, "MoNNA")["ALIE"] == "0.20 (2.0)"
    assert [i.text for r in table.rows for i in r if i.warn] == ["1.5"]


def test_cost_is_compared_with_d_sgd(small):
    small.run("learn", "alie", gradients_per_peer=180_300, train_seconds=2400)
    learn = row(named(small.folder, "cost"), "LEARN")
    assert (learn["gradients / peer"], learn["\u00d7 D-SGD"], learn["MB / peer and step"]) == (
        "180,300",
        "12.02",
        "43.1",
    )
    assert (learn["seconds"], learn["runs"]) == ("2,400", "1")


def test_latex_knows_greek_letters(small):
    quiet(small.folder)
    text = (small.folder / "tables/accuracy.tex").read_text()
    assert r"$\alpha$ = 1" in text
    assert text.isascii()


# --- the page ---


def test_the_page_is_self_contained_and_escaped(small):
    quiet(small.folder)
    assert "At a glance" in (small.folder / "report.html").read_text()  # one setting only
    small.facts(small.records[0])
    small.run(
        "<img src=x>", "<script>alert(1)</script>", recipe='"><b>mine', split="<u>", curve=small.records[0]["curve"]
    )
    quiet(small.folder)
    text, tags = parsed(small.folder / "report.html")
    assert tags.open == []
    assert not {"script", "img", "link", "b", "u", "iframe", "object"} & set(tags.names)
    assert tags.loaded == []
    assert "http" not in text
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert tags.names["svg"] == 3
    assert "The worst attack" in text
    assert all(part in text for part in ("9.9.9", "a &lt;b&gt; machine", "lr.start", "0.75", "monna-mnist"))


def test_settings_that_vary_are_told_apart():
    same, varied = shared_and_varied([{"steps": "5", "lr": "0.1"}, {"steps": "5", "lr": "0.2"}, {"steps": "5"}])
    assert same == {"steps": "5"}
    assert varied == {"lr": "0.1, 0.2, not set"}


# --- what is missing or broken ---


def test_a_torn_end_is_ignored_and_a_damaged_line_counted(small):
    path, messages = small.folder / "results.jsonl", []
    whole = path.read_text()
    path.write_text(whole + '{"id": "torn", "algo')
    report(small.folder, say=messages.append)
    assert messages == ["15 runs: 15 done"]
    path.write_text('{"id": \n[]\n' + whole + '{"algorithm": 1, "attack": "x"}\n')
    report(small.folder, say=messages.append)
    assert messages[2] == "not complete: 3 damaged lines of results.jsonl left out"


def test_the_later_of_two_runs_counts(small):
    small.run("monna", "alie", 1, worst_accuracy=0.93)
    small.run("monna", "alie", 2, worst_accuracy=0.93)
    small.run("monna", "alie", 3, worst_accuracy=0.93)
    assert row(named(small.folder, "accuracy"), "MoNNA")["ALIE"] == "93.0 ± 0.0"
    assert "3 runs replaced by later ones" in shortfall(collab_study.load(small.folder))


def test_runs_with_other_options_of_an_attack_or_a_rule_are_no_seeds_of_one(small):
    small.run("monna", "alie", 1, worst_accuracy=0.5, attack_options={"strength": 1.5})
    small.run("monna", "alie", 1, worst_accuracy=0.4, rule="krum+median", rule_options={"radius": 2.0})
    table = named(small.folder, "accuracy")
    assert row(table, "MoNNA")["ALIE"] == "90.0 ± 1.0"
    assert row(table, "MoNNA")["ALIE (strength 1.5)"] == "50.0 (n=1)"
    assert row(table, "MoNNA (krum+median) (radius 2.0)")["ALIE"] == "40.0 (n=1)"
    assert "replaced" not in shortfall(collab_study.load(small.folder))


def test_begun_runs_are_counted_and_alone_refused(small, tmp_path):
    begun = small.folder / "runs" / "begun"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text(json.dumps({"algorithm": "monna", "attack": "alie"}))
    small.facts(small.records[0])
    messages = []
    report(small.folder, say=messages.append)
    assert "not complete: 1 run is begun and not finished" in messages
    (small.folder / "results.jsonl").unlink()
    with pytest.raises(BadInput, match="no finished collaborative run"):
        quiet(small.folder)


def test_an_empty_folder_is_refused(tmp_path):
    for prepare in (lambda: None, lambda: (tmp_path / "results.jsonl").write_text("\n")):
        prepare()
        with pytest.raises(BadInput):
            quiet(tmp_path)
        assert not (tmp_path / "tables").exists()


def test_a_benchmark_is_no_collaborative_study(tmp_path):
    record = {"id": "a", "phase": "final", "cell": {"method": "mezo", "task": "sst2"}, "status": "done"}
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    assert not collab_study.is_collab(tmp_path)


def test_without_matplotlib_the_rest_is_written(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    messages = []
    assert report(small.folder, say=messages.append)[-1] == small.folder / "report.html"
    assert any("pip install 'gradless[plots]'" in line for line in messages)


@pytest.mark.few(2)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", [], {}, -1])
def test_odd_values_do_not_crash(tmp_path, value):
    folder = Folder(tmp_path)
    names = (
        "id",
        "recipe",
        "split",
        "alpha",
        "n",
        "f",
        "seed",
        "worst_accuracy",
        "mean_accuracy",
        "alpha_mixing",
        "lambda_mixing",
        "gradients_per_peer",
        "bytes_per_peer_step",
        "train_seconds",
        "status",
        "curve",
    )
    for name in names:
        folder.run("monna", "alie", **({"id": name, "seed": 7} | {name: value}))
    folder.run("gm", "alie", curve=[{"step": value, "worst": 0.5}, {"step": 1, "worst": value, "consensus": value}])
    folder.run("d-sgd", "none", **dict.fromkeys(names, value))
    quiet(tmp_path)


# --- what simulations write ---


def test_lines_of_simulations_are_read(tmp_path):
    """Fields by the names of `gradless.collab.config.CollabConfig`."""
    folder = Folder(tmp_path)
    asked = {"peers": 26, "byzantine": 5, "n": None, "f": None, "alpha": None, "split_parameter": 0.5}
    folder.run("monna", "alie", **asked, attackers=5)
    folder.run("monna", "alie", **asked, attackers=2)
    folder.run("monna", "alie", **asked, attackers=5, rule="nnm+median")
    folder.run("monna", "alie", **asked, attackers=5, payload="coefficients")
    folder.run("d-sgd", "none", **asked, attackers=0)
    folder.run("monna", "foe", **asked | {"split": "gamma-similarity"})
    study = collab_study.load(tmp_path)
    assert [setting.split.label for setting in study.settings] == [
        "Dirichlet over classes, \u03b1 = 0.5",
        "\u03b3-similarity, \u03b3 = 0.5",
    ]
    assert {setting.peers for setting in study.settings} == {"n = 26, f = 5"}
    names = [r[1].text for r in named(tmp_path, "accuracy").rows]
    assert names == ["MoNNA", "MoNNA (coefficients)", "MoNNA (nnm+median)", "D-SGD", "MoNNA"]
    assert "ALIE (2 attackers)" in [column.name for column in named(tmp_path, "accuracy").columns]


def test_a_simulation_is_reported(tmp_path):
    """Two short runs, from configuration to page."""
    pytest.importorskip("sklearn")
    config = pytest.importorskip("gradless.collab.config")
    study = pytest.importorskip("gradless.collab.simulation.study")
    base = {"dataset": "digits", "peers": 6, "byzantine": 1, "steps": 4, "eval_every": 2, "batch_size": 4}
    runs = [
        config.CollabConfig(**base, algorithm="monna", attack="alie"),
        config.CollabConfig(**base, algorithm="d-sgd", attack="none"),
    ]
    study.run_all(runs, tmp_path, recipe="short")
    quiet(tmp_path)
    monna = row(named(tmp_path, "accuracy"), "MoNNA")
    assert monna["worst attack"] == "ALIE"
    assert monna["gap"] != NOTHING
    assert row(named(tmp_path, "alpha"), "MoNNA")["ALIE"] != NOTHING
    assert (tmp_path / "figures/curves-accuracy.svg").exists()
    page = (tmp_path / "report.html").read_text()
    assert all(words in page for words in ("eval_every", "<h1>short</h1>"))
