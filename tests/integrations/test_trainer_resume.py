"""Runs of a trainer that are interrupted, killed, resumed and rebuilt end with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gradless as gl  # noqa: E402
from gradless.integrations.replay import rebuild  # noqa: E402
from gradless.system.hashing import weights_sha256  # noqa: E402
from repository import ROOT  # noqa: E402
from trainer_helpers import StopAt, classifier, digest, moves, trainer  # noqa: E402

METHODS = {
    "mezo-momentum": {},
    "mezo-adam": {"queries": 2},
    "lozo": {"refresh": 3},
    "zo-adam": {},  # stores moments
    "sparse-mezo": {},  # has masks, made from the base weights
    "zo-cons": {},
    "forward-grad": {},
}
BARE = ("lozo", "zo-adam", "sparse-mezo")
CASES = [(method, False) for method in METHODS] + [(method, True) for method in BARE]


@pytest.mark.few(2)
@pytest.mark.parametrize(("method", "ledger_only"), CASES)
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(tmp_path, method, ledger_only):
    rest = {"zo": method, "zo_options": METHODS[method], "ledger_only": ledger_only}
    rest["options"] = {"max_steps": 6}
    whole = trainer(tmp_path / "whole", **rest)
    whole.train()
    cut = trainer(tmp_path / "cut", callbacks=[StopAt(5, "after")], **rest)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert len(moves(tmp_path / "cut")) == 6  # the sixth step was logged, then applied
    again = trainer(tmp_path / "cut", **rest)
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    assert moves(tmp_path / "cut") == moves(tmp_path / "whole")
    assert again.window.inner.forwards == whole.window.inner.forwards
    model = classifier()
    rebuild(model, tmp_path / "cut")
    assert weights_sha256(model.named_parameters()) == digest(whole)


def test_checkpoints_hold_no_state_of_an_optimizer_and_bare_ones_no_weights(tmp_path):
    trainer(tmp_path / "a").train()
    names = {path.name for path in (tmp_path / "a" / "checkpoint-8").iterdir()}
    assert {"model.safetensors", "ledger", "gradless.json"} <= names
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"}
    trainer(tmp_path / "b", ledger_only=True).train()
    bare = list((tmp_path / "b" / "checkpoint-8").iterdir())
    assert {path.name for path in bare} == {"ledger", "gradless.json", "trainer_state.json"}
    assert sum(path.stat().st_size for path in bare) < 5000


@pytest.mark.few(1)
@pytest.mark.parametrize("event", ["before", "after"])
def test_random_heads_do_not_matter_where_checkpoints_have_weights(tmp_path, event):
    """Scripts make their heads before any seed is set; the checkpoint's weights are the ones to go on from."""
    whole = trainer(tmp_path / "whole", classifier(1))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", classifier(1), callbacks=[StopAt(5, event)]).train()
    again = trainer(tmp_path / "cut", classifier(2))
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)


@pytest.mark.sweep
def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    whole = trainer(tmp_path)
    whole.train()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_st')
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    for name in ("checkpoint-4", "checkpoint-8"):
        (tmp_path / name / "trainer_state.json").unlink()
    with pytest.raises(gl.BadInput, match="no complete checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


SCRIPT = """
import sys
sys.path.insert(0, {helpers!r})
from trainer_helpers import trainer
trainer({folder!r}, options={options}, ledger_only={bare}).train()
"""


@pytest.mark.sweep
@pytest.mark.few(1)
@pytest.mark.parametrize("bare", [False, True], ids=["weights", "ledger"])
def test_a_killed_process_resumes_to_the_same_weights(tmp_path, bare):
    cut, options = tmp_path / "cut", {"max_steps": 24, "save_steps": 4}
    code = SCRIPT.format(helpers=str(ROOT / "tests" / "helpers"), folder=str(cut), options=options, bare=bare)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], **quiet) as process:
        begun = time.monotonic()
        while not (cut / "checkpoint-8").exists():
            assert process.poll() is None
            assert time.monotonic() - begun < 300
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert 8 <= len(moves(cut)) < 24
    whole = trainer(tmp_path / "whole", options=options)
    again = trainer(cut, options=options, ledger_only=bare)
    whole.train()
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    assert moves(cut) == moves(tmp_path / "whole")


@pytest.mark.sweep
def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trainer(tmp_path).train()
    resume = {"resume_from_checkpoint": str(tmp_path / "checkpoint-4")}
    with pytest.raises(gl.BadInput, match="belongs to a run with trainer"):
        trainer(tmp_path, zo="lozo").train(**resume)
    with pytest.raises(gl.BadInput, match="belongs to a run with seed 42, not 1"):
        trainer(tmp_path, options={"seed": 1}).train(**resume)
    with pytest.raises(gl.BadInput, match="belongs to a run with weight_decay"):
        trainer(tmp_path, options={"weight_decay": 0.1}).train(**resume)
    frozen = classifier()
    frozen.bert.requires_grad_(False)
    with pytest.raises(gl.BadInput, match="tuned_parameters"):
        trainer(tmp_path, frozen).train(**resume)
    with pytest.raises(gl.BadInput, match="is not a checkpoint of ZOTrainer"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    model = classifier(2)
    model.save_pretrained(tmp_path / "checkpoint-4")
    with pytest.raises(gl.BadInput, match="not those of step 4"):
        trainer(tmp_path).train(**resume)
    trainer(tmp_path / "bare", ledger_only=True).train()
    with pytest.raises(gl.BadInput, match=r"began with.*set_seed"):
        trainer(tmp_path / "bare", model, ledger_only=True).train(resume_from_checkpoint=True)


def test_rebuild_says_what_is_wrong(tmp_path):
    trainer(tmp_path).train()
    assert rebuild(classifier(), tmp_path, until=3).t == 3
    with pytest.raises(gl.BadInput, match="holds 8 steps: until=9"):
        rebuild(classifier(), tmp_path, until=9)
    with pytest.raises(gl.BadInput, match="began with"):
        rebuild(classifier(2), tmp_path)
    with pytest.raises(gl.BadInput, match="no ledger"):
        rebuild(classifier(), tmp_path / "nowhere")


def test_the_command_line_says_who_can_replay_it(tmp_path):
    from gradless.runs import replay

    trainer(tmp_path, options={"max_steps": 1}).train()
    with pytest.raises(gl.BadInput, match=r"written by ZOTrainer.*replay.rebuild"):
        replay.rebuild(tmp_path)
