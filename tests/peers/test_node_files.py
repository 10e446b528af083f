"""What is left of a folder in which a peer's first run ended with an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradless.peers.node_files import EVIDENCE, METRICS, STATUS, VOTES, Metrics, new_folder, write_evidence


def run_that_fails(folder: Path, work: Callable[[Path], None]) -> None:
    def run() -> None:
        with new_folder(folder):
            folder.mkdir(exist_ok=True)
            Metrics(folder / METRICS).close()
            (folder / STATUS).write_text("{}")
            work(folder)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run()


def step(folder: Path) -> None:
    metrics = Metrics(folder / METRICS)
    metrics.write(event="step", step=0)
    metrics.close()
    write_evidence(folder, "carl", 0, (b"one", b"two"))


def test_steps_of_peers_that_mix_models_are_kept(tmp_path):
    """They sign no votes, so that there is no ``votes.wal``."""
    run_that_fails(tmp_path / "run", step)
    assert (tmp_path / "run" / METRICS).read_bytes().count(b"\n") == 1
    assert (tmp_path / "run" / EVIDENCE / "carl-0.bin").exists()


def test_votes_are_kept(tmp_path):
    run_that_fails(tmp_path / "run", lambda folder: (folder / VOTES).touch())
    assert (tmp_path / "run" / VOTES).exists()


def test_a_run_that_did_nothing_leaves_nothing(tmp_path):
    run_that_fails(tmp_path / "run", lambda folder: None)
    assert not (tmp_path / "run").exists()


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "mine").touch()
    run_that_fails(tmp_path, lambda folder: None)
    assert (tmp_path / "mine").exists()
    assert (tmp_path / METRICS).exists()
