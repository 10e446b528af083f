"""The pictures of collaborative runs, on written results."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradless.report.collab import curves, study
from gradless.report.collab.curves import log_ticks, looks
from gradless.report.collab.heatmaps import ink_on, matrices_of
from gradless.report.collab.names import attack_codes
from gradless.report.common.pictures import Picture
from report_collab_helpers import ALGORITHMS, ATTACKS, Folder, grid, quiet


def test_curves_are_means_at_shared_steps(tmp_path):
    folder = Folder(tmp_path)
    folder.run("monna", "alie", 1, curve=[{"step": s, "worst": 0.1 * s, "consensus": 10.0**-s} for s in (0, 1, 2, 3)])
    lines = [{"step": 0, "worst": 0.2}, {"step": 1, "worst": math.nan}, {"step": 2, "worst": 0.4}, "torn", {"step": 9}]
    folder.run("monna", "alie", 2, curve=lines)
    folder.run("monna", "alie", 3, status="failed", curve=[{"step": 0, "worst": 0.9}])
    runs = study.load(tmp_path).runs
    points = study.curve(runs, "worst")
    assert [(p.step, p.score.n) for p in points] == [(0, 2), (2, 2)]
    assert [p.score.mean for p in points] == pytest.approx([0.1, 0.3])
    distances = study.curve(runs, "consensus", lambda value: math.log10(value))
    assert [p.score.mean for p in distances] == pytest.approx([0, -1, -2, -3])


def test_a_seed_that_diverged_keeps_its_accuracy(tmp_path):
    folder = Folder(tmp_path)
    whole = [{"step": s, "worst": 0.8, "consensus": 0.1} for s in (2, 4, 6)]
    folder.run("monna", "alie", 1, curve=whole)
    folder.run("monna", "alie", 2, status="diverged", curve=[*whole[:1], {"step": 3, "worst": 0.2, "consensus": None}])
    folder.run("nna", "alie", 1, status="diverged", curve=[{"step": 3, "worst": 0.1}])
    folder.run("nna", "alie", 2, status="diverged", curve=[{"step": 5, "worst": 0.3}])
    runs = study.load(tmp_path).runs
    monna, nna = ([run for run in runs if run.algorithm == name] for name in ("monna", "nna"))
    means = [(point.step, point.score.mean) for point in study.curve(monna, "worst")]
    assert means == [(2, pytest.approx(0.8)), (4, pytest.approx(0.5)), (6, pytest.approx(0.5))]
    assert [point.step for point in study.curve(monna, "consensus")] == [2]
    assert [(point.step, point.score.mean) for point in study.curve(nna, "worst")] == [(5, pytest.approx(0.2))]


def test_heat_maps_hold_the_worst_attack(tmp_path):
    folder = Folder(tmp_path)
    for gamma in (1.0, 0.0):
        for f in (1, 2):
            for attack, level in (("foe", 0.9 - 0.1 * f), ("alie", 0.5 + 0.2 * gamma)):
                if (gamma, f, attack) != (1.0, 2, "alie"):
                    folder.run("monna", attack, f=f, alpha=None, gamma=gamma, split="gamma", worst_accuracy=level)
    folder.run("gm", "foe", f=1, alpha=None, gamma=0.0, split="gamma", worst_accuracy=math.nan, status="diverged")
    matrices, axes, tail = matrices_of(study.load(tmp_path))
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
    folder = Folder(tmp_path)
    for name in ("monna", "nna"):
        for value in (1, 2):
            folder.run(name, "alie" if varied or value == 1 else "nan", **({varied: value} if varied else {}))
    ((matrix,), _, _) = matrices_of(study.load(tmp_path))
    assert matrix.rows == (rows or ("MoNNA", "NNA"))
    assert matrix.columns == columns
    assert (tmp_path / "figures/heatmap.png") in quiet(tmp_path)


@pytest.mark.parametrize(("worst", "high"), [(1.0, 100.0), (0.97, 100.0), (0.5, 50.5)])
def test_the_axis_of_accuracies_ends_at_100(tmp_path, worst, high):
    Folder(tmp_path).run("monna", "alie", 1, curve=[{"step": s, "worst": worst, "mean": worst} for s in (1, 2)])
    loaded = study.load(tmp_path)
    rows = curves._rows(loaded, curves.KINDS[0], loaded.settings)
    limits = curves._limits(rows, curves.KINDS[0])
    assert limits.high == pytest.approx(high)
    assert limits.low == pytest.approx(100 * worst - 0.5)


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


@pytest.mark.sweep
def test_pictures_of_a_large_grid(tmp_path):
    runs = grid(tmp_path, seeds=(1,))
    written = quiet(runs.folder)
    names = {path.name for path in written if path.suffix == ".svg"}
    assert names == {"curves-accuracy.svg", "curves-consensus.svg", "heatmap.svg"}
    svg = (runs.folder / "figures/curves-accuracy.svg").read_text()
    assert all(
        text in svg for text in ("MoNNA", "ClippedGossip", "D-SGD, no attackers", "worst honest peer", "\u03b1 = 5")
    )
    assert svg.count(">ALIE<") == 2
    pictures = {path: path.read_bytes() for path in written if path.parent.name == "figures"}
    quiet(runs.folder)
    assert {path: path.read_bytes() for path in pictures} == pictures
    assert len({(look.colour, look.marker) for look in looks(study.load(runs.folder)).values()}) == 10


@pytest.mark.parametrize(
    "algorithms", [ALGORITHMS[:1], ALGORITHMS[:4], ALGORITHMS, [f"own-rule-{i}" for i in range(13)]]
)
@pytest.mark.parametrize("attacks", [1, 3, 5])
def test_nothing_lies_outside_the_picture(tmp_path, monkeypatch, algorithms, attacks):
    drawn = []

    def keep(figure, stem, title):
        drawn.append(figure)
        return Picture(stem.name, title, stem, stem)

    monkeypatch.setattr(curves, "save", keep)
    runs = grid(tmp_path, algorithms=algorithms, attacks=ATTACKS[:attacks], splits=(("alpha", 1.0),), seeds=(1,))
    curves.all_curves(study.load(runs.folder), tmp_path)
    assert drawn
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
