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
from hypothesis import given
from hypothesis import strategies as st

from gradless.errors import BadInput
from gradless.report import collab, collab_curves, report, tables
from gradless.report.collab_curves import log_ticks, looks
from gradless.report.collab_heatmaps import ink_on, matrices_of
from gradless.report.collab_names import attack_codes
from gradless.report.collab_page import settings, shortfall
from gradless.report.figures import Picture
from gradless.report.table import NOTHING, Table
from test_report import parsed

ALGORITHMS = ("monna", "nna", "mocwtm", "bridge", "mogm", "gm", "scc", "clipped-gossip", "learn", "d-sgd")
ATTACKS = ("sign-flip", "label-flip", "foe", "alie", "mimic")
STEPS = 60


class Folder:
    """Writes results as collaborative runs do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, algorithm: str, attack: str, seed: int = 1, *, n: int = 26, f: int = 5, **more) -> dict:
        record = {
            "id": f"r{len(self.records):04d}", "recipe": "monna-mnist", "algorithm": algorithm, "attack": attack,
            "split": "dirichlet-classes", "split_parameter": None, "alpha": 1, "n": n, "f": f, "seed": seed,
            "status": "done", "rule": None, "payload": "parameters",
            "worst_accuracy": 0.9, "mean_accuracy": 0.95, "consensus_distance": 0.1, "surprise": {"x": [1]},
            "alpha_mixing": {"median": 0.05, "max": 0.2}, "lambda_mixing": {"median": 0.01, "max": 0.1},
            "gradients_per_peer": 15000, "bytes_per_peer_step": 43.1e6, "train_seconds": 200.0, "curve": [],
        } | more  # fmt: skip
        self.records.append(record)
        (self.folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records))
        return record

    def facts(self, record: dict) -> None:
        folder = self.folder / "runs" / record["id"]
        folder.mkdir(parents=True)
        config = {"algorithm": record["algorithm"], "attack": record["attack"], "steps": STEPS, "lr": {"start": 0.75}}
        (folder / "config.json").write_text(json.dumps(config))
        result = {"status": "done", "versions": {"torch": "9.9.9", "machine": "a <b> machine"}, "config": config}
        (folder / "result.json").write_text(json.dumps(result))


def curve(generator: np.random.Generator, worst: float, *, spread: float = 0.02, consensus: float = 0.1) -> list[dict]:
    """A learning curve that ends near ``worst``."""
    lines = []
    for step in range(0, STEPS + 1, 5):
        level = 0.1 + (worst - 0.1) * (1 - math.exp(-step / 12)) + generator.normal() * 0.01
        gap = spread * generator.random()
        distance = consensus * math.exp(generator.normal() * 0.2) if step else 0.0
        lines.append({"step": step, "worst": level, "mean": min(level + gap, 1.0), "consensus": distance})
    return lines


def grid(
    folder: Path, *, algorithms=ALGORITHMS, attacks=ATTACKS, splits=((("alpha", 1.0)), ("alpha", 5.0)), fs=(5,),
    seeds=(1, 2, 3), reference: bool = True,
) -> Folder:  # fmt: skip
    """Every combination, of random but repeatable quality."""
    made, generator = Folder(folder), np.random.Generator(np.random.PCG64(7))

    def add(
        algorithm: str, attack: str, split: tuple[str, float], f: int, level: float, consensus: float, seed: int
    ) -> None:
        line = curve(generator, level, consensus=consensus)
        name, value = split
        kind = {"alpha": None, "gamma": None, name: value}
        kind["split"] = "dirichlet-classes" if name == "alpha" else "gamma-similarity"
        ends = {"worst_accuracy": line[-1]["worst"], "mean_accuracy": line[-1]["mean"], "curve": line}
        gradients = 180_300 if algorithm == "learn" else 15_000
        median = 10 ** generator.uniform(-3, 0.2)
        mixing = {"alpha_mixing": {"median": median, "max": 2 * median}}
        made.run(algorithm, attack, seed, f=f, **kind, **ends, **mixing, gradients_per_peer=gradients)

    for split in splits:
        for f in fs:
            for place, algorithm in enumerate(algorithms):
                for attack in attacks:
                    strength = 0.97 - 0.06 * place * generator.random() - 0.02 * f * generator.random()
                    weak = algorithm == "d-sgd" or (generator.random() < 0.2 and place)
                    level = 0.1 + 0.2 * generator.random() if weak else strength - 0.1 * (1 - min(split[1], 1.0))
                    far = 10 ** generator.uniform(-2, 1)
                    for seed in seeds:
                        add(algorithm, attack, split, f, level, far, seed)
        for seed in seeds if reference else ():
            add("d-sgd", "none", split, 0, 0.975, 0.05, seed)
    return made


def named(folder: Path, name: str) -> Table:
    return next(table for table in tables(folder) if table.name == name)


def row(table: Table, *labels: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if tuple(i.text for i in r[: len(labels)]) == labels]
    return {column.name: item.text for column, item in zip(table.columns, found, strict=True)}


def quiet(folder: Path) -> list[Path]:
    return report(folder, say=lambda line: None)


@pytest.fixture
def small(tmp_path: Path) -> Folder:
    """Two algorithms and D-SGD, two attacks, three seeds, whose numbers are easy to work out."""
    made = Folder(tmp_path / "runs of <b>mine</b>")
    levels = {"monna": {"alie": 0.9, "sign-flip": 0.94}, "d-sgd": {"alie": 0.2, "sign-flip": 0.1}}
    for name, attacks in levels.items():
        for attack, level in attacks.items():
            for seed in (1, 2, 3):
                ends = {"worst_accuracy": level + 0.01 * (seed - 2), "mean_accuracy": level + 0.02}
                made.run(name, attack, seed, **ends, curve=curve(np.random.Generator(np.random.PCG64(seed)), level))
    for seed in (1, 2, 3):
        made.run("dsgd", "none", seed, f=0, worst_accuracy=0.96, mean_accuracy=0.97)
    return made


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
    (found,) = [r for r in rows if (r["algorithm"], r["attack"]) == ("monna", "alie")]
    assert float(found["worst_accuracy"]) == statistics.fmean([0.89, 0.9, 0.91])
    assert (found["split"], found["alpha"], found["gamma"], found["seeds"]) == ("dirichlet-classes", "1.0", "", "3")


def test_without_d_sgd_there_is_no_gap(tmp_path):
    made = Folder(tmp_path)
    made.run("monna", "alie")
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == NOTHING
    quiet(tmp_path)
    assert "no run of D-SGD without attackers" in (tmp_path / "report.html").read_text()


def test_the_reference_is_of_the_same_data_and_nearest_in_peers(tmp_path):
    made = Folder(tmp_path)
    made.run("monna", "alie")
    made.run("d-sgd", "none", alpha=5, worst_accuracy=0.1)
    made.run("d-sgd", "none", n=8, f=1, worst_accuracy=0.2)
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "+70.0"
    made.run("d-sgd", "none", n=21, f=0, worst_accuracy=0.93)  # as many honest peers
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "\u22123.0"
    made.run("d-sgd", "none", n=26, f=0, worst_accuracy=0.94)
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "\u22124.0"
    made.run("d-sgd", "none", worst_accuracy=0.95)
    assert row(named(tmp_path, "accuracy"), "MoNNA")["gap"] == "\u22125.0"


def test_diverged_runs_count_with_their_accuracy_and_are_marked(tmp_path):
    made = Folder(tmp_path)
    for seed, level in ((1, 0.8), (2, 0.8), (3, 0.2)):
        made.run("monna", "alie", seed, worst_accuracy=level, status="diverged" if seed == 3 else "done")
    made.run("monna", "foe", worst_accuracy=math.nan, mean_accuracy=None, status="diverged")
    made.run("gm", "alie", status="failed", reason="<i>full</i>")
    made.run("gm", "foe")
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
    found = row(named(small.folder, "accuracy"), "NNA")
    assert (found["sign flip"], found["worst attack"], found["gap"]) == (NOTHING, "ALIE (so far)", "≤ \u22126.0")
    assert row(named(small.folder, "accuracy"), "NNA")["ALIE"] == "90.0 (n=1)"


def test_mixing_is_read_in_every_form(tmp_path):
    made = Folder(tmp_path)
    forms = (
        {"alpha_mixing": {"median": 0.1, "max": 0.5}},
        {"alpha_mixing": 0.3, "alpha_max": 0.9},
        {"alpha_mixing": 0.2, "alpha_max": 2.0},
    )
    for seed, form in enumerate(forms):
        made.run("monna", "alie", seed, **form)
    made.run("d-sgd", "alie", alpha_mixing=1.5)
    table = named(tmp_path, "alpha")
    assert row(table, "MoNNA")["ALIE"] == "0.20 (2.0)"
    assert [i.text for r in table.rows for i in r if i.warn] == ["1.5"]


def test_cost_is_compared_with_d_sgd(small):
    small.run("learn", "alie", gradients_per_peer=180_300, train_seconds=2400)
    found = row(named(small.folder, "cost"), "LEARN")
    assert (found["gradients / peer"], found["\u00d7 D-SGD"], found["MB / peer and step"]) == (
        "180,300",
        "12.02",
        "43.1",
    )
    assert (found["seconds"], found["runs"]) == ("2,400", "1")


def test_latex_knows_greek_letters(small):
    quiet(small.folder)
    text = (small.folder / "tables/accuracy.tex").read_text()
    assert r"$\alpha$ = 1" in text
    assert text.isascii()


# --- pictures ---


def test_curves_are_means_at_shared_steps(tmp_path):
    made = Folder(tmp_path)
    made.run("monna", "alie", 1, curve=[{"step": s, "worst": 0.1 * s, "consensus": 10.0**-s} for s in (0, 1, 2, 3)])
    lines = [{"step": 0, "worst": 0.2}, {"step": 1, "worst": math.nan}, {"step": 2, "worst": 0.4}, "torn", {"step": 9}]
    made.run("monna", "alie", 2, curve=lines)
    made.run("monna", "alie", 3, status="failed", curve=[{"step": 0, "worst": 0.9}])
    runs = collab.load(tmp_path).runs
    points = collab.curve(runs, "worst")
    assert [(p.step, p.score.n) for p in points] == [(0, 2), (2, 2)]
    assert [p.score.mean for p in points] == pytest.approx([0.1, 0.3])
    distances = collab.curve(runs, "consensus", lambda value: math.log10(value))
    assert [p.score.mean for p in distances] == pytest.approx([0, -1, -2, -3])


def test_a_seed_that_diverged_keeps_its_accuracy(tmp_path):
    made = Folder(tmp_path)
    whole = [{"step": s, "worst": 0.8, "consensus": 0.1} for s in (2, 4, 6)]
    made.run("monna", "alie", 1, curve=whole)
    made.run("monna", "alie", 2, status="diverged", curve=[*whole[:1], {"step": 3, "worst": 0.2, "consensus": None}])
    made.run("nna", "alie", 1, status="diverged", curve=[{"step": 3, "worst": 0.1}])
    made.run("nna", "alie", 2, status="diverged", curve=[{"step": 5, "worst": 0.3}])
    runs = collab.load(tmp_path).runs
    monna, nna = ([run for run in runs if run.algorithm == name] for name in ("monna", "nna"))
    found = [(point.step, point.score.mean) for point in collab.curve(monna, "worst")]
    assert found == [(2, pytest.approx(0.8)), (4, pytest.approx(0.5)), (6, pytest.approx(0.5))]
    assert [point.step for point in collab.curve(monna, "consensus")] == [2]
    assert [(point.step, point.score.mean) for point in collab.curve(nna, "worst")] == [(5, pytest.approx(0.2))]


def test_heat_maps_hold_the_worst_attack(tmp_path):
    made = Folder(tmp_path)
    for gamma in (1.0, 0.0):
        for f in (1, 2):
            for attack, level in (("foe", 0.9 - 0.1 * f), ("alie", 0.5 + 0.2 * gamma)):
                if (gamma, f, attack) != (1.0, 2, "alie"):
                    made.run("monna", attack, f=f, alpha=None, gamma=gamma, split="gamma", worst_accuracy=level)
    made.run("gm", "foe", f=1, alpha=None, gamma=0.0, split="gamma", worst_accuracy=math.nan, status="diverged")
    matrices, axes, tail = matrices_of(collab.load(tmp_path))
    assert [m.title for m in matrices] == ["MoNNA", "GM"]
    assert (matrices[0].rows, matrices[0].columns) == (("1", "2"), ("\u03b3 = 0", "\u03b3 = 1"))
    texts = [[cell and (cell.text, cell.code) for cell in line] for line in matrices[0].cells]
    assert texts == [[("50.0", "ALIE"), ("70.0", "ALIE")], [("50.0", "ALIE"), ("≤70.0", "FOE")]]
    assert matrices[1].cells[0][0].text == "≤div."
    assert matrices[1].cells[1] == (None, None)
    assert (axes.down, axes.across, tail) == ("declared attackers f", "data: \u03b3-similarity", ", n = 26")
    quiet(tmp_path)
    svg = (tmp_path / "figures/heatmap.svg").read_text()
    assert "<title>MoNNA, n = 26, f = 1, \u03b3-similarity, \u03b3 = 0: 50.0 (n=1) under ALIE</title>" in svg


@pytest.mark.parametrize(
    ("varied", "rows", "columns"),
    [
        ("f", ("MoNNA", "NNA"), ("1", "2")),
        ("alpha", ("MoNNA", "NNA"), ("\u03b1 = 1", "\u03b1 = 2")),
        ("", None, ("ALIE", "NaN")),
    ],
)
def test_heat_maps_of_one_row_are_one_picture(tmp_path, varied, rows, columns):
    made = Folder(tmp_path)
    for name in ("monna", "nna"):
        for value in (1, 2):
            made.run(name, "alie" if varied or value == 1 else "nan", **({varied: value} if varied else {}))
    ((matrix,), _, _) = matrices_of(collab.load(tmp_path))
    assert matrix.rows == (rows or ("MoNNA", "NNA"))
    assert matrix.columns == columns
    assert (tmp_path / "figures/heatmap.png") in quiet(tmp_path)


def test_numbers_in_cells_can_be_read():
    """Contrast of 4.5 and more (WCAG AA) on every colour of the scale."""

    def light(colour) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05

    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    for i in range(101):
        colour = colormaps["viridis"](i / 100)[:3]
        pair = sorted((light(colour), light(to_rgb(ink_on(colour)))))
        assert pair[1] / pair[0] >= 4.5


def test_pictures_of_a_large_grid(tmp_path):
    made = grid(tmp_path, seeds=(1,))
    written = quiet(made.folder)
    names = {path.name for path in written if path.suffix == ".svg"}
    assert names == {"curves-accuracy.svg", "curves-consensus.svg", "heatmap.svg"}
    svg = (made.folder / "figures/curves-accuracy.svg").read_text()
    assert all(
        text in svg for text in ("MoNNA", "ClippedGossip", "D-SGD, no attackers", "worst honest peer", "\u03b1 = 5")
    )
    assert svg.count(">ALIE<") == 2
    pictures = {path: path.read_bytes() for path in written if path.parent.name == "figures"}
    quiet(made.folder)
    assert {path: path.read_bytes() for path in pictures} == pictures
    assert len({(look.colour, look.marker) for look in looks(collab.load(made.folder)).values()}) == 10


@pytest.mark.parametrize(
    "algorithms", [ALGORITHMS[:1], ALGORITHMS[:4], ALGORITHMS, [f"own-rule-{i}" for i in range(13)]]
)
@pytest.mark.parametrize("attacks", [1, 3, 5])
def test_nothing_lies_outside_the_picture(tmp_path, monkeypatch, algorithms, attacks):
    drawn = []

    def keep(figure, stem, title):
        drawn.append(figure)
        return Picture(stem.name, title, stem, stem)

    monkeypatch.setattr(collab_curves, "save", keep)
    made = grid(tmp_path, algorithms=algorithms, attacks=ATTACKS[:attacks], splits=(("alpha", 1.0),), seeds=(1,))
    collab_curves.all_curves(collab.load(made.folder), tmp_path)
    for figure in drawn:
        figure.canvas.draw()
        for part in (*figure.legends, *figure.texts, *(axes.title for axes in figure.axes)):
            box = part.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
        for axes in figure.axes:
            above = axes.get_tightbbox().y1
            assert all(legend.get_window_extent().y0 >= above for legend in figure.legends)


@given(st.floats(-9, 5), st.floats(0.1, 9))
def test_there_are_a_few_round_ticks(low, size):
    ticks = log_ticks(low, low + size)
    assert len(ticks) <= 8
    assert size < 0.5 or ticks
    assert all(low <= tick <= low + size for tick in ticks)


@given(st.lists(st.text(), unique=True))
def test_codes_of_attacks_are_unique(attacks):
    codes = attack_codes(attacks)
    assert len(set(codes.values())) == len(attacks)


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
    assert all(word in text for word in ("9.9.9", "a &lt;b&gt; machine", "lr.start", "0.75", "monna-mnist"))


def test_settings_that_vary_are_told_apart():
    same, varied = settings([{"steps": "5", "lr": "0.1"}, {"steps": "5", "lr": "0.2"}, {"steps": "5"}])
    assert same == {"steps": "5"}
    assert varied == {"lr": "0.1, 0.2, not set"}


# --- what is missing or broken ---


def test_a_torn_end_is_ignored_and_a_damaged_line_counted(small):
    path, said = small.folder / "results.jsonl", []
    whole = path.read_text()
    path.write_text(whole + '{"id": "torn", "algo')
    report(small.folder, say=said.append)
    assert said == ["15 runs: 15 done"]
    path.write_text('{"id": \n[]\n' + whole + '{"algorithm": 1, "attack": "x"}\n')
    report(small.folder, say=said.append)
    assert said[2] == "not complete: 3 damaged lines of results.jsonl left out"


def test_the_later_of_two_runs_counts(small):
    small.run("monna", "alie", 1, worst_accuracy=0.93)
    small.run("monna", "alie", 2, worst_accuracy=0.93)
    small.run("monna", "alie", 3, worst_accuracy=0.93)
    assert row(named(small.folder, "accuracy"), "MoNNA")["ALIE"] == "93.0 ± 0.0"
    assert "3 runs replaced by later ones" in shortfall(collab.load(small.folder))


def test_begun_runs_are_counted_and_alone_refused(small, tmp_path):
    begun = small.folder / "runs" / "begun"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text(json.dumps({"algorithm": "monna", "attack": "alie"}))
    small.facts(small.records[0])
    said = []
    report(small.folder, say=said.append)
    assert "not complete: 1 run is begun and not finished" in said
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
    assert not collab.is_collab(tmp_path)


def test_without_matplotlib_the_rest_is_written(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = []
    assert report(small.folder, say=said.append)[-1] == small.folder / "report.html"
    assert any("pip install 'gradless[plots]'" in line for line in said)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", [], {}, -1])
def test_odd_values_do_not_crash(tmp_path, value):
    made = Folder(tmp_path)
    names = (
        "id", "recipe", "split", "alpha", "n", "f", "seed", "worst_accuracy", "mean_accuracy", "alpha_mixing",
        "lambda_mixing", "gradients_per_peer", "bytes_per_peer_step", "train_seconds", "status", "curve",
    )  # fmt: skip
    for name in names:
        made.run("monna", "alie", **({"id": name, "seed": 7} | {name: value}))
    made.run("gm", "alie", curve=[{"step": value, "worst": 0.5}, {"step": 1, "worst": value, "consensus": value}])
    made.run("d-sgd", "none", **dict.fromkeys(names, value))
    quiet(tmp_path)


# --- what simulations write ---


def test_lines_of_simulations_are_read(tmp_path):
    """Fields by the names of `gradless.collab.config.CollabConfig`."""
    made = Folder(tmp_path)
    asked = {"peers": 26, "byzantine": 5, "n": None, "f": None, "alpha": None, "split_parameter": 0.5}
    made.run("monna", "alie", **asked, attackers=5)
    made.run("monna", "alie", **asked, attackers=2)
    made.run("monna", "alie", **asked, attackers=5, rule="nnm+median")
    made.run("monna", "alie", **asked, attackers=5, payload="coefficients")
    made.run("d-sgd", "none", **asked, attackers=0)
    made.run("monna", "foe", **asked | {"split": "gamma-similarity"})
    study = collab.load(tmp_path)
    assert [place.split.label for place in study.places] == [
        "Dirichlet over classes, \u03b1 = 0.5", "\u03b3-similarity, \u03b3 = 0.5",
    ]  # fmt: skip
    assert {place.peers for place in study.places} == {"n = 26, f = 5"}
    names = [r[1].text for r in named(tmp_path, "accuracy").rows]
    assert names == ["MoNNA", "MoNNA (coefficients)", "MoNNA (nnm+median)", "D-SGD", "MoNNA"]
    assert "ALIE (2 attackers)" in [column.name for column in named(tmp_path, "accuracy").columns]


def test_a_simulation_is_reported(tmp_path):
    """Two short runs, from configuration to page."""
    pytest.importorskip("sklearn")
    config = pytest.importorskip("gradless.collab.config")
    study = pytest.importorskip("gradless.collab.study")
    base = {"dataset": "digits", "peers": 6, "byzantine": 1, "steps": 4, "eval_every": 2, "batch_size": 4}
    runs = [
        config.CollabConfig(**base, algorithm="monna", attack="alie"),
        config.CollabConfig(**base, algorithm="d-sgd", attack="none"),
    ]
    study.run_all(runs, tmp_path, recipe="short")
    quiet(tmp_path)
    found = row(named(tmp_path, "accuracy"), "MoNNA")
    assert found["worst attack"] == "ALIE"
    assert found["gap"] != NOTHING
    assert row(named(tmp_path, "alpha"), "MoNNA")["ALIE"] != NOTHING
    assert (tmp_path / "figures/curves-accuracy.svg").exists()
    page = (tmp_path / "report.html").read_text()
    assert all(words in page for words in ("eval_every", "<h1>short</h1>"))
