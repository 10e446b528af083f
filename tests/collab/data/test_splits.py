"""Who has which rows: partitions, statistics of the Dirichlet draws, batches by step."""

from __future__ import annotations

import pytest
import torch

from gradless.collab.data import picture
from gradless.collab.data.splits import (
    SPLITS,
    Batches,
    _dirichlet,
    batches,
    dirichlet_classes,
    dirichlet_workers,
    extreme,
    gamma_similarity,
    gather,
    histogram,
    iid,
    split,
)
from gradless.errors import BadInput

LABELS = torch.arange(3000) * 7 % 10
PARAMETERS = {"alpha": 0.7, "gamma": 0.4}


def options(name: str) -> dict[str, float]:
    parameter = SPLITS[name].parameter
    return {parameter: PARAMETERS[parameter]} if parameter else {}


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_is_seeded_sorted_and_leaves_nobody_out(name):
    parts = split(name, LABELS, 13, seed=4, **options(name))
    again = split(name, LABELS, 13, seed=4, **options(name))
    other = split(name, LABELS, 13, seed=5, **options(name))
    assert len(parts) == 13
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(parts, other, strict=True))
    for part in parts:
        assert part.dtype == torch.int64
        assert len(part) > 0
        assert (part.diff() > 0).all()  # sorted, no row twice at one peer
        assert part[0] >= 0
        assert part[-1] < len(LABELS)
    together = torch.cat(parts)
    if name != "dirichlet-classes-overlap":
        assert len(together.unique()) == len(together)
    if not name.startswith("dirichlet-classes"):
        assert len(together) == len(LABELS)


def test_the_splits_do_not_touch_the_global_generator():
    state = torch.get_rng_state()
    for name in SPLITS:
        split(name, LABELS, 5, **options(name))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("rows", "peers"), [(10, 10), (11, 10), (29, 10), (10, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_equal_splits_serve_everybody_even_when_rows_are_few(rows, peers, gamma):
    labels = torch.arange(rows) % 3
    for parts in (iid(labels, peers), extreme(labels, peers), gamma_similarity(labels, peers, gamma=gamma)):
        sizes = [len(part) for part in parts]
        assert sum(sizes) == rows
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 2


def test_extreme_is_sorted_by_label_and_iid_is_not():
    counts = histogram(LABELS, extreme(LABELS, 10), 10)
    assert torch.equal(counts, 300 * torch.eye(10, dtype=torch.int64))
    assert (histogram(LABELS, extreme(LABELS, 26), 10) > 0).sum(1).max() <= 2
    mixed = histogram(LABELS, iid(LABELS, 10), 10)
    # Hypergeometric: 30 expected, deviation 4.9.
    assert (mixed - 30).abs().max() < 25
    assert (mixed - 30).double().std() > 2


def test_gamma_is_the_share_of_iid_rows():
    counts = histogram(LABELS, gamma_similarity(LABELS, 10, gamma=0.4), 10).double()
    own = counts.diagonal().mean() / 300
    # A little less than 0.6 + 0.4 / 10: without the i.i.d. rows the classes are no longer equal, so the cuts drift.
    assert own == pytest.approx(0.6 + 0.4 / 10, abs=0.04)


def test_dirichlet_draws_have_the_right_moments():
    for alpha in (0.05, 0.5, 1.0, 5.0):
        draws = torch.tensor(_dirichlet(alpha, 800, 10, key=77), dtype=torch.float64)
        assert torch.allclose(draws.sum(1), torch.ones(800, dtype=torch.float64))
        variance = 0.1 * 0.9 / (10 * alpha + 1)
        assert draws.mean(0).sub(0.1).abs().max() < 4.5 * (variance / 800) ** 0.5
        # 8,000 strongly skewed numbers: the variance is known to a few percent.
        assert float(draws.var()) == pytest.approx(variance, rel=0.12)
        covariance = torch.cov(draws.T)
        off = covariance[~torch.eye(10, dtype=torch.bool)].mean()
        assert float(off) == pytest.approx(-variance / 9, rel=0.12)


def test_dirichlet_marginal_is_a_beta_distribution():
    stats = pytest.importorskip("scipy.stats")
    for alpha in (0.3, 2.0):
        first = [row[0] for row in _dirichlet(alpha, 1500, 5, key=5)]
        assert stats.kstest(first, stats.beta(alpha, 4 * alpha).cdf).pvalue > 1e-3


def test_tiny_and_huge_alpha():
    sharp = torch.tensor(_dirichlet(1e-4, 50, 10, key=1))
    assert torch.isfinite(sharp).all()
    assert (sharp.max(1).values > 0.99).double().mean() > 0.9
    flat = torch.tensor(_dirichlet(1e8, 5, 10, key=1))
    assert (flat - 0.1).abs().max() < 1e-3


def test_dirichlet_over_workers_is_a_partition_class_by_class():
    spread = []
    for seed in range(40):
        parts = dirichlet_workers(LABELS, 5, seed=seed, alpha=0.5)
        counts = histogram(LABELS, parts, 10)
        assert torch.equal(counts.sum(0), torch.full((10,), 300))
        spread.append(counts.double() / 300)
    shares = torch.stack(spread)  # [seeds, peers, classes]; over the peers of a class Dirichlet(0.5)
    assert shares.mean((0, 2)).sub(0.2).abs().max() < 0.06
    assert float(shares.var()) == pytest.approx(0.2 * 0.8 / (5 * 0.5 + 1), rel=0.12)


@pytest.mark.few(1)
@pytest.mark.parametrize("with_overlap", [False, True])
def test_dirichlet_over_classes_gives_everybody_equally_many(with_overlap):
    spread, used = [], []
    for seed in range(40):
        parts = dirichlet_classes(LABELS, 8, seed=seed, alpha=1.0, with_overlap=with_overlap)
        counts = histogram(LABELS, parts, 10)
        assert counts.sum(1).max() - counts.sum(1).min() <= 10
        spread.append(counts.double() / counts.sum(1, keepdim=True))
        used.append(float(counts.sum()) / len(LABELS))
    shares = torch.stack(spread)
    assert shares.mean((0, 1)).sub(0.1).abs().max() < 0.03
    if with_overlap:  # a class has 300 rows, a peer asks for up to 375 of it: that cap cuts the largest shares
        assert min(used) > 0.9
    else:
        assert float(shares.var()) == pytest.approx(0.1 * 0.9 / 11, rel=0.12)
        assert 0.45 < sum(used) / 40 < 0.9


def test_overlap_is_what_the_published_code_has():
    parts = dirichlet_classes(LABELS, 26, alpha=1.0, with_overlap=True)
    together = torch.cat(parts)
    assert {len(part) for part in parts} == {3000 // 26}
    assert len(together.unique()) < 0.8 * len(together)


def test_labels_need_not_be_consecutive():
    labels = LABELS[(LABELS == 3) | (LABELS == 8)]
    for name in SPLITS:
        assert sum(map(len, split(name, labels, 4, **options(name)))) > 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: split("iidd", LABELS, 2), "did you mean 'iid'"),
        (lambda: split("iid", LABELS, 2, alpha=1.0), "takes no parameter, not alpha"),
        (lambda: split("gamma-similarity", LABELS, 2), "takes gamma, its degree of similarity, not nothing"),
        (lambda: split("dirichlet-workers", LABELS, 2, gamma=1.0), "takes alpha"),
        (lambda: iid(LABELS[:3], 4), "3 rows cannot be dealt to 4 peers"),
        (lambda: iid(LABELS, 0), "cannot be dealt to 0 peers"),
        (lambda: iid(LABELS.view(2, -1), 4), "one label for each row"),
        (lambda: gamma_similarity(LABELS, 4, gamma=1.5), "from 0 to 1"),
        (lambda: dirichlet_workers(LABELS, 4, alpha=0.0), "positive number"),
        (lambda: dirichlet_classes(LABELS, 4, alpha=float("nan")), "positive number"),
        (lambda: dirichlet_workers(torch.zeros(30, dtype=torch.int64), 30, alpha=0.1), "take a larger alpha"),
        (lambda: dirichlet_classes(torch.arange(30) % 30, 29, alpha=0.01), "take a larger alpha"),
        (lambda: batches(torch.arange(0), 2, 0, 7), "peer 7 has no rows"),
        (lambda: batches(torch.arange(3), 0, 0, 0), "at least one row"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(BadInput, match=sentence):
        call()


# ---------------------------------------------------------------------------------------------------------------
# batches


def test_an_epoch_reads_every_row_once():
    rows = torch.tensor([5, 8, 13, 21, 34, 55, 89])
    stream = batches(rows, 3, seed=2, peer=1)
    read = torch.cat([stream.at(step) for step in range(7)])  # three epochs
    epochs = read.view(3, 7)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, rows)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_a_step_needs_no_history_and_peers_differ():
    rows = torch.arange(100)
    assert torch.equal(batches(rows, 10, 0, 3).at(57), batches(rows, 10, 0, 3).at(57))
    others = [batches(rows, 10, seed, peer).at(57) for seed, peer in ((0, 4), (1, 3))]
    assert not any(torch.equal(batches(rows, 10, 0, 3).at(57), other) for other in others)


def test_growing_batches_count_like_learn():
    stream = batches(torch.arange(50), 1, seed=0, peer=0, growth=1)
    sizes = [len(stream.at(step)) for step in range(20)]
    assert sizes == list(range(1, 21))
    assert stream.read(600) == 180_300  # as published for 600 steps
    assert batches(torch.arange(50), 25, 0, 0).read(600) == 15_000
    read = torch.cat([stream.at(step) for step in range(20)])  # 210 rows: four epochs and a piece
    assert torch.equal(read[:200].view(4, 50).sort().values, torch.arange(50).expand(4, 50))


def test_a_batch_larger_than_the_data_wraps_around():
    batch = batches(torch.arange(4), 10, 0, 0).at(0)
    assert sorted(batch[:8].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(batch) == 10


def test_gather_stacks_peers():
    streams = [batches(part, 5, 0, peer) for peer, part in enumerate(iid(LABELS, 4))]
    rows = gather(streams, 3)
    assert rows.shape == (4, 5)
    for peer, stream in enumerate(streams):
        assert torch.equal(rows[peer], stream.at(3))
        assert set(rows[peer].tolist()) <= set(stream.indices.tolist())
    assert isinstance(streams[0], Batches)


# ---------------------------------------------------------------------------------------------------------------
# the picture


@pytest.mark.few(2)
@pytest.mark.parametrize(("peers", "suffix"), [(1, ".png"), (8, ".svg"), (26, ".png"), (140, ".png")])
def test_the_picture_is_drawn(tmp_path, peers, suffix):
    pytest.importorskip("matplotlib")
    counts = histogram(LABELS, split("dirichlet-workers", LABELS, peers, alpha=1.0), 10)
    path = picture.split_picture(counts, list("abcdefghij"), tmp_path / f"who{suffix}", rows=4000)
    assert path.stat().st_size > 2000
    if suffix == ".svg":
        # matplotlib draws letters as outlines, and writes each text as a comment
        assert "<!-- Who has what -->" in path.read_text()


def test_the_key_of_few_classes_is_whole():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().add_axes((0.8, 0.2, 0.2, 0.3))
    picture._key(axes, 13, 1.15 / 0.3, 2)
    lowest = max(circle.center[1] for circle in axes.patches)
    assert len(axes.patches) == 3
    assert lowest <= 1  # the last row of bubbles
    assert not any(circle.get_clip_on() for circle in axes.patches)


def test_the_command_draws_a_data_set(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    assert picture.draw(tmp_path / "who.png", peers=4).is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "split_picture", lambda counts, classes, path, title, rows: (counts, title))
        counts, title = picture.draw(tmp_path / "who.png", peers=4, byzantine=1)
    assert len(counts) == 3
    assert title.endswith("3 honest of 4 peers")
    for arguments, sentence in (
        ({"split": "iid", "split_parameter": 1.0}, "takes no parameter"),
        ({"split": "gamma-similarity"}, "needs its gamma"),
        ({"split": "iid", "path": tmp_path / "who.txt"}, "not who.txt"),
    ):
        with pytest.raises(BadInput, match=sentence):
            picture.draw(**{"path": tmp_path / "x.png", "peers": 4, **arguments})
