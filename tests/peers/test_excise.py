"""Excision: an ordinary ledger that is the log without some rows, and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography")

from gradless import ledger
from gradless.errors import BadInput
from gradless.peers import keys, prepare
from gradless.peers import manifest as manifests
from gradless.peers.excise import excise
from gradless.peers.mixing import AgreedRule
from gradless.peers.run_folder import RunFolder
from gradless.runs import jobs
from gradless.system.progress import Reporter
from peers_audit_helpers import WrittenRun, copied, moves, random_rows, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    return write_run(tmp_path_factory.mktemp("run"), random_rows(flips=(3,)), steps=30, evidence=(20, 2))


def test_every_step_is_mixed_anew_for_one_liar_less(run: WrittenRun, tmp_path: Path) -> None:
    out = tmp_path / "without"
    done = excise(run.folder, ["dora"], out)
    assert (done.steps, done.skipped) == (30, 0)
    old, new = moves(run.folder), moves(out)
    assert done.changed == sum(a != b for a, b in zip(old, new, strict=True)) > 0
    records = RunFolder(run.folder).records
    rule = AgreedRule(str(run.manifest.config.rule), peers=4, byzantine=1)
    for move in new:
        kept = records.rows[move.step, :3]
        kept = kept[np.isfinite(kept).all(1)]
        assert move.coeffs == tuple(rule.mix(torch.from_numpy(kept), 1).tolist())
        assert move.coeffs == pytest.approx(kept.mean(0), rel=1e-5)  # f = 0: the mean
    header = ledger.read(out / "ledger").header
    assert header["parent_sha256"] == records.digests[-1].hex() == done.parent
    assert header["without"] == "dora"
    assert done.weights_before != done.weights_sha256


def test_replay_rebuilds_the_excised_weights(run: WrittenRun, tmp_path: Path) -> None:
    out = tmp_path / "without"
    done = excise(run.folder, ["dora"], out)
    replayed = jobs.replay(out, reporter=Reporter(quiet=True))
    assert replayed.sha256 == done.weights_sha256
    record = json.loads((out / "excised.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] == done.weights_sha256
    assert "not those of a training without it" in record["what"]


def test_a_peer_that_never_mattered_leaves_the_coefficients_of_its_ban_alone(run: WrittenRun, tmp_path: Path) -> None:
    done = excise(run.folder, ["carl"], tmp_path / "without")
    old, new = moves(run.folder), moves(tmp_path / "without")
    assert old[21:] == new[21:]  # banned there: nothing of it is left to take out
    assert done.changed <= 21


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["emil"], "the run has no peer emil: it has anna, bert, carl, dora"),
        (["anna", "bert", "carl", "dora"], "all peers would be left out"),
    ],
)
def test_names_that_cannot_be_left_out_are_refused_and_nothing_is_written(
    run: WrittenRun, tmp_path: Path, names: list[str], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        excise(run.folder, names, tmp_path / "without")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone_and_a_failure_leaves_none(
    run: WrittenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        excise(run.folder, ["dora"], tmp_path / "taken")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("gradless.peers.excise._weights", full)
    with pytest.raises(OSError, match="no space"):
        excise(run.folder, ["dora"], tmp_path / "without")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_nothing_is_made_of_a_ledger_that_is_not_the_runs(run: WrittenRun, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    contents = ledger.read(run.folder / "ledger")
    written = ledger.Ledger(tmp_path / "copy" / "ledger", contents.header)
    for move in contents.moves:
        written.append(move._replace(lrs=(0.1,)))
    written.close()
    with pytest.raises(BadInput, match=r"the learning rate 0\.1 instead of 0\.001"):
        excise(tmp_path / "copy", ["dora"], tmp_path / "without")
    assert not (tmp_path / "without").exists()


def test_with_too_few_rows_left_a_step_is_passed_over(run: WrittenRun, tmp_path: Path) -> None:
    done = excise(run.folder, ["anna", "bert", "dora"], tmp_path / "without")
    left = moves(tmp_path / "without")
    assert [move.skipped for move in left] == [False] * 21 + [True] * 9  # carl alone, until it is banned
    assert done.skipped == 9


def continued(run: WrittenRun, folder: Path, out: Path) -> manifests.Manifest:
    return prepare.manifest(
        [keys.load(identity).card for identity in run.identities],
        {},
        f=1,
        mode="coefficients",
        recipe=None,
        out=out,
        check_every=5,
        timing=manifests.USUAL,
        days=1,
        parent=folder,
        say=lambda line: None,
    )


def test_a_run_continues_from_weights_that_the_ledger_gives_and_from_no_others(run: WrittenRun, tmp_path: Path) -> None:
    done = excise(run.folder, ["dora"], tmp_path / "without", say=lambda line: None)
    parent = continued(run, tmp_path / "without", tmp_path / "next").contents.parent
    assert parent is not None
    assert (parent.weights_sha256, parent.digest) == (done.weights_sha256, done.parent)
    path = tmp_path / "without" / "excised.json"
    path.write_text(path.read_text(encoding="utf-8").replace(done.weights_sha256, "ab" * 32), encoding="utf-8")
    for out in ("next", "other"):
        with pytest.raises(BadInput, match="says that it ends with the weights abababababab"):
            continued(run, tmp_path / "without", tmp_path / out)
    assert (tmp_path / "next" / "base").exists()  # of the manifest that is there
    assert not (tmp_path / "other" / "base").exists()


def test_a_run_continues_from_the_end_of_its_own_log(run: WrittenRun, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    done = excise(run.folder, ["dora"], tmp_path / "without", say=lambda line: None)
    end = {"steps": 30, "digest": done.parent, "weights_sha256": done.weights_before}
    (folder / "excised.json").write_text(json.dumps(end), encoding="utf-8")  # what a result.json says as well
    assert continued(run, folder, tmp_path / "next").contents.parent is not None
    (folder / "excised.json").write_text(json.dumps({**end, "digest": "ab" * 32}), encoding="utf-8")
    with pytest.raises(BadInput, match="and the value abababababab, and its ledger and log end otherwise"):
        continued(run, folder, tmp_path / "other")
