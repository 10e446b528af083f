"""Runs of several ranks: killed, stopped, refused, and under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ranks_helpers as r
import run_helpers
from gradless import ledger
from gradless.cli import main
from ranks_run_helpers import result

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"), reason="needs gloo, and processes that fork"
)


def moves(out: Path) -> list[Any]:
    return ledger.read(out / "ledger").moves


def test_a_killed_rank_ends_the_run_and_any_number_goes_on(own, whole, tmp_path):
    out = tmp_path / "run"
    line = r.tune_line(own, out, "--split", "directions", "--timeout", 30)
    survivor, dead = r.together(2, tmp_path, r.command, line, at=5, what="SIGKILL")
    assert (survivor.code, dead.code) == (1, -9)
    assert survivor.seconds < 20
    assert survivor.err.count("\n") == 1, survivor.err
    assert "gradless: rank 0 of 2 lost another one" in survivor.err
    assert "continue with --resume" in survivor.err
    assert not (out / "result.json").exists()
    assert moves(out) == moves(whole)[:5]
    # Four ranks go on, and lose one of them; one process finishes.
    *alive, _ = ended = r.together(4, tmp_path, r.command, [*line, "--resume"], at=7, who=3, what="SIGKILL")
    assert [end.code for end in ended] == [1, 1, 1, -9]
    assert all(f"rank {rank} of 4 lost" in end.err for rank, end in enumerate(alive))
    assert "replaying 5 steps" in ended[0].out
    assert [end.out for end in ended[1:]] == ["", "", ""]
    assert moves(out) == moves(whole)[:7]
    (end,) = r.together(1, tmp_path, r.command, [*r.tune_line(own, out), "--resume"])  # it keeps the engine
    assert end.code == 0, end.err
    assert moves(out) == moves(whole)
    for key in ("weights_sha256", "selected_step", "forwards", "zero_shot", "dev", "test", "engine"):
        assert result(out)[key] == result(whole)[key], key


def test_a_rank_that_hangs_is_given_up_and_the_batch_can_be_split_by_fewer(own, tmp_path):
    out = tmp_path / "run"
    line = r.tune_line(own, out, "--timeout", 3)
    begun = r.start(2, tmp_path, r.command, line, at=6, what="SIGSTOP")
    (survivor,) = r.wait(begun, but=(1,))
    assert survivor.code == 1
    assert "did not answer in time" in survivor.err
    assert survivor.err.count("\n") == 1
    assert len(moves(out)) == 6
    ended = r.together(2, tmp_path, r.command, [*line, "--resume"])
    assert [end.code for end in ended] == [0, 0], ended
    final = result(out)
    assert final["ranks"] == {"size": 2, "split": "batch", "bytes_per_step": 7 * 8}
    assert final["status"] == "done"
    (end,) = r.together(1, tmp_path, r.command, ["replay", str(out), "--verify"])
    assert end.code == 0, end.err


def test_a_termination_is_noted_and_resumed(own, whole, tmp_path):
    out = tmp_path / "run"
    line = r.tune_line(own, out, "--split", "directions")
    ended = r.together(2, tmp_path, r.command, line, at=3, who=0, what="SIGTERM")
    assert [end.code for end in ended] == [1, 1]
    assert result(out)["status"] == "interrupted"
    assert "lost another one" in ended[1].err
    assert "interrupted: continue with --resume" in ended[0].out
    (end,) = r.together(1, tmp_path, r.command, [*line, "--resume"])
    assert end.code == 0, end.err
    assert moves(out) == moves(whole)


@pytest.mark.parametrize("way", [["--scheme", "prefix"], ["--method", "zo-sparse", "--set", "mask=wanda"]])
def test_initial_values_that_machines_compute_differently_are_those_of_rank_0(own, tmp_path, way):
    line = without("--queries", r.tune_line(own, tmp_path / "run", "--split", "directions", "--eval-every", 8, *way))
    ended = r.together(2, tmp_path, r.command, line, at=0, what="other values")
    assert [end.code for end in ended] == [0, 0], ended
    line[line.index("--out") + 1] = str(tmp_path / "alone")
    (end,) = r.together(1, tmp_path, r.command, line)
    assert end.code == 0, end.err
    assert result(tmp_path / "run")["weights_sha256"] == result(tmp_path / "alone")["weights_sha256"]


def test_ranks_without_points_are_told(own, tmp_path):
    line = without("--queries", r.tune_line(own, tmp_path / "run", "--split", "directions", "--no-zero-shot"))
    ended = r.together(4, tmp_path, r.command, [*line, "--steps", "1"])
    assert [end.code for end in ended] == [0] * 4, ended
    assert "a step evaluates 2 points, so 2 of 4 ranks have nothing to do: raise --queries" in ended[0].out


def test_other_weights_on_a_rank_are_noticed(own, tmp_path):
    out = tmp_path / "run"
    ended = r.together(2, tmp_path, r.command, r.tune_line(own, out), at=2, what="flip")
    assert [end.code for end in ended] == [1, 1]
    for end in ended:
        assert "the weights at step 4 of rank 1 differ from those of rank 0" in end.err
        assert end.err.count("\n") == 1
    assert len(moves(out)) == 4
    assert not (out / "result.json").exists()


def without(option: str, line: list[str]) -> list[str]:
    return [*line[: line.index(option)], *line[line.index(option) + 2 :]]


def test_bad_input_is_said_once(own, tmp_path):
    other = dict(own, test=str(tmp_path / "other.csv"))
    run_helpers.write_csv(Path(other["test"]), 24, 9)
    out = tmp_path / "run"
    for size, line, text in (
        (4, r.tune_line(own, out, "--batch-size", 3), "a batch of 3 cannot be split over 4 ranks: raise --batch-size"),
        (2, without("--queries", r.tune_line(own, out, "--method", "fo-sgd")), "fo-sgd stores gradients"),
        (2, r.tune_line(own, out, "--split", "steps"), "unknown split 'steps'"),
        (2, r.tune_line(own, out, "--timeout", 0), "timeout is 0.0: give a finite number above 0"),
        (2, r.tune_line(own, out, "--steps", "many"), "steps is 'many': give a whole number of at least 1"),
        (2, [r.tune_line(own, out), r.tune_line(other, out)], "rank 1 has other settings than rank 0 (test was"),
        (2, [r.tune_line(own, out), r.tune_line(dict(own, train="nothing.csv"), out)], "nothing.csv"),
    ):
        ended = r.together(size, tmp_path, r.command, line)
        assert [end.code for end in ended] == [2] * size, ended
        assert text in ended[0].err
        assert ended[0].err.count("\n") == 1
        assert "".join(end.err for end in ended[1:]) == ""
        assert not out.exists()


def test_other_commands_are_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    refused = CliRunner().invoke(main, ["list", "tasks"])
    assert refused.exit_code == 2
    assert "call 'gradless list' without torchrun" in refused.stderr
