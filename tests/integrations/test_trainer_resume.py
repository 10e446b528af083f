"""Runs of a trainer that are interrupted, killed, resumed and rebuilt end with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gradless as gl  # noqa: E402
from engine_helpers import race  # noqa: E402
from gradless.integrations.replay import rebuild  # noqa: E402
from gradless.system.hashing import weights_sha256  # noqa: E402
from repository import ROOT  # noqa: E402
from trainer_helpers import CutWindow, StopAt, classifier, digest, make_trainer, moves  # noqa: E402

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
    whole = make_trainer(tmp_path / "whole", **rest)
    whole.train()
    cut = make_trainer(tmp_path / "cut", callbacks=[StopAt(5, "after")], **rest)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert len(moves(tmp_path / "cut")) == 6  # the sixth step was logged, then applied
    again = make_trainer(tmp_path / "cut", **rest)
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    assert moves(tmp_path / "cut") == moves(tmp_path / "whole")
    assert again.window.inner.forwards == whole.window.inner.forwards
    model = classifier()
    rebuild(model, tmp_path / "cut")
    assert weights_sha256(model.named_parameters()) == digest(whole)


@pytest.mark.parametrize("step", [0, 1])
def test_a_window_that_was_cut_off_adds_nothing_to_the_next_run_of_the_same_trainer(tmp_path, step):
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", options=options)
    whole.train()
    cut = make_trainer(tmp_path / "cut", options=options, callbacks=[CutWindow(step)])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    cut.train(resume_from_checkpoint=step > 0)
    assert digest(cut) == digest(whole)
    assert moves(tmp_path / "cut") == moves(tmp_path / "whole")


def test_checkpoints_hold_no_state_of_an_optimizer_and_bare_ones_no_weights(tmp_path):
    make_trainer(tmp_path / "a").train()
    names = {path.name for path in (tmp_path / "a" / "checkpoint-8").iterdir()}
    assert {"model.safetensors", "ledger", "gradless.json"} <= names
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"}
    make_trainer(tmp_path / "b", ledger_only=True).train()
    bare = list((tmp_path / "b" / "checkpoint-8").iterdir())
    assert {path.name for path in bare} == {"ledger", "gradless.json", "trainer_state.json"}
    assert sum(path.stat().st_size for path in bare) < 5000


@pytest.mark.few(1)
@pytest.mark.parametrize("event", ["before", "after"])
def test_random_heads_do_not_matter_where_checkpoints_have_weights(tmp_path, event):
    """Scripts make their heads before any seed is set; the checkpoint's weights are the ones to go on from."""
    whole = make_trainer(tmp_path / "whole", classifier(1))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", classifier(1), callbacks=[StopAt(5, event)]).train()
    again = make_trainer(tmp_path / "cut", classifier(2))
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)


@pytest.mark.sweep
def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    whole = make_trainer(tmp_path)
    whole.train()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_st')
    again = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    for name in ("checkpoint-4", "checkpoint-8"):
        (tmp_path / name / "trainer_state.json").unlink()
    with pytest.raises(gl.BadInput, match="no complete checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_folder_serves_one_trainer_at_a_time(tmp_path):
    class Second(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            with pytest.raises(gl.BadInput, match=r"another process .* is working on .*choose another output_dir"):
                make_trainer(tmp_path).train()

    whole = make_trainer(tmp_path / "whole")
    trainer = make_trainer(tmp_path, callbacks=[Second()])
    whole.train()
    trainer.train()
    assert digest(trainer) == digest(whole)
    assert not (tmp_path / ".lock").exists()
    other = make_trainer(tmp_path, classifier(2))
    other.train()
    with pytest.raises(gl.BadInput, match=r"is of another run by now.*output_dir of its own"):
        trainer.save_model(str(tmp_path / "saved"))


def test_a_resumed_run_that_had_ended_takes_no_step(tmp_path):
    whole = make_trainer(tmp_path, options={"lr_scheduler_type": "constant", "max_steps": 6})
    whole.train()
    again = make_trainer(tmp_path, options={"lr_scheduler_type": "constant", "max_steps": 6})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert digest(again) == digest(whole)
    assert again.state.global_step == len(moves(tmp_path)) == 6


def test_what_a_kill_leaves_half_made_is_removed_and_nothing_else(tmp_path):
    options = {"max_steps": 6, "save_steps": 2}
    make_trainer(tmp_path, options=options).train()
    make_trainer(tmp_path / "whole", options=options).train()
    (tmp_path / ".saving").write_text(json.dumps({"checkpoints": ["checkpoint-2", "checkpoint-6", "../checkpoint-9"]}))
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global')  # was being written
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()  # was being deleted
    (tmp_path.parent / "checkpoint-9").mkdir(exist_ok=True)
    for name in ("ledger.new", ".resuming-0/trainer_state.json", "checkpoint-1/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    trainer = make_trainer(tmp_path, options={**options, "max_steps": 4})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ledger", "whole", "checkpoint-1", "checkpoint-4"}
    assert (tmp_path.parent / "checkpoint-9").exists()
    assert (tmp_path / "whole" / "checkpoint-6" / "trainer_state.json").exists()


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)

    def full(*args, **rest):
        (tmp_path / "checkpoint-4" / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert {path.name for path in tmp_path.iterdir()} == {"ledger"}


@pytest.mark.parametrize("ledger_only", [False, True])
def test_a_push_to_the_hub_has_the_weights_and_spares_checkpoints(tmp_path, monkeypatch, ledger_only):
    """Trainer saves to the output directory itself before it pushes, with the call that it has for checkpoints."""
    trainer = make_trainer(tmp_path, ledger_only=ledger_only, options={"max_steps": 4})
    trainer.train()
    kept = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(trainer.model, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.save_model(_internal_call=True)
    assert kept <= {path.name for path in tmp_path.iterdir()}
    pushed = []
    monkeypatch.setattr(
        transformers.trainer,
        "hf_api",
        lambda: SimpleNamespace(upload_folder=lambda folder_path, **rest: pushed.extend(os.listdir(folder_path))),
    )
    trainer.hub_model_id = "somebody/model"
    trainer.push_to_hub()
    assert {"model.safetensors", "config.json", "ledger", "README.md"} <= set(pushed)
    assert ".saving" not in pushed
    model = type(trainer.model).from_pretrained(tmp_path)
    assert weights_sha256(model.named_parameters()) == digest(trainer)
    again = make_trainer(tmp_path, ledger_only=ledger_only, options={"max_steps": 5})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5


def interrupted(*args, **rest):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["gradless.json", "gradless.safetensors", "random-0.json.gz"])
@pytest.mark.parametrize("content", [b"", b"\xff{", b'{"step": 4}', b"[1]"])
def test_damaged_files_of_a_checkpoint_are_named(tmp_path, name, content):
    make_trainer(tmp_path, zo="zo-adam", options={"max_steps": 4}).train()
    (tmp_path / "checkpoint-4" / name).write_bytes(content)
    with pytest.raises(gl.BadInput, match=f"{name}.* damaged.*from a copy"):
        make_trainer(tmp_path, zo="zo-adam").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_state_of_another_rule_in_a_checkpoint_is_refused(tmp_path):
    make_trainer(tmp_path, zo="zo-adam", options={"max_steps": 4}).train()
    path = tmp_path / "checkpoint-4" / "gradless.json"
    state = json.loads(path.read_text())
    state["method"]["rule"] = state["method"]["rule"][:1]
    path.write_text(json.dumps(state))
    with pytest.raises(gl.BadInput, match="not one of the rule 'stored_adam"):
        make_trainer(tmp_path, zo="zo-adam").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("bare", ["weights", "bare"])
@pytest.mark.parametrize(
    ("runs", "kills"), [pytest.param(1, 2, marks=pytest.mark.sweep), pytest.param(8, 4, marks=pytest.mark.long)]
)
def test_killed_at_random_instants_a_run_ends_the_same_and_leaves_nothing(tmp_path, bare, runs, kills):
    script = str(ROOT / "tests" / "helpers" / "trainer_kills.py")
    command = [sys.executable, script, str(tmp_path), bare, str(runs), str(kills), "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"] == [{"same": True, "extra": []}] * runs
    assert runs == 1 or result["killed"] >= 10


SCRIPT = """
import sys
sys.path.insert(0, {helpers!r})
from trainer_helpers import make_trainer
make_trainer({folder!r}, options={options}, ledger_only={bare}).train()
"""


@pytest.mark.parametrize(
    "bare",
    [
        pytest.param(False, marks=pytest.mark.sweep, id="weights"),
        pytest.param(True, marks=pytest.mark.long, id="ledger"),
    ],
)
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
    whole = make_trainer(tmp_path / "whole", options=options)
    again = make_trainer(cut, options=options, ledger_only=bare)
    whole.train()
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    assert moves(cut) == moves(tmp_path / "whole")


@pytest.mark.sweep
def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    make_trainer(tmp_path).train()
    resume = {"resume_from_checkpoint": str(tmp_path / "checkpoint-4")}
    with pytest.raises(gl.BadInput, match="belongs to a run with trainer"):
        make_trainer(tmp_path, zo="lozo").train(**resume)
    with pytest.raises(gl.BadInput, match="belongs to a run with seed 42, not 1"):
        make_trainer(tmp_path, options={"seed": 1}).train(**resume)
    with pytest.raises(gl.BadInput, match="belongs to a run with weight_decay"):
        make_trainer(tmp_path, options={"weight_decay": 0.1}).train(**resume)
    frozen = classifier()
    frozen.bert.requires_grad_(False)
    with pytest.raises(gl.BadInput, match="tuned_parameters"):
        make_trainer(tmp_path, frozen).train(**resume)
    with pytest.raises(gl.BadInput, match="is not a checkpoint of ZOTrainer"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    model = classifier(2)
    model.save_pretrained(tmp_path / "checkpoint-4")
    with pytest.raises(gl.BadInput, match="not those of step 4"):
        make_trainer(tmp_path).train(**resume)
    make_trainer(tmp_path / "bare", ledger_only=True).train()
    with pytest.raises(gl.BadInput, match=r"began with.*set_seed"):
        make_trainer(tmp_path / "bare", model, ledger_only=True).train(resume_from_checkpoint=True)


def test_another_learning_rate_than_that_of_the_checkpoint_is_warned_about(tmp_path):
    make_trainer(tmp_path, options={"max_steps": 5}).train()
    with pytest.warns(UserWarning, match="learning_rate is 0.001, and the run goes on with the 0.01 of its checkpoint"):
        make_trainer(tmp_path, options={"max_steps": 5, "learning_rate": 1e-3}).train(resume_from_checkpoint=True)


def test_rebuild_says_what_is_wrong(tmp_path):
    make_trainer(tmp_path).train()
    assert rebuild(classifier(), tmp_path, until=3).t == 3
    with pytest.raises(gl.BadInput, match="holds 8 steps: until=9"):
        rebuild(classifier(), tmp_path, until=9)
    with pytest.raises(gl.BadInput, match="began with"):
        rebuild(classifier(2), tmp_path)
    with pytest.raises(gl.BadInput, match="no ledger"):
        rebuild(classifier(), tmp_path / "nowhere")


def test_the_command_line_says_who_can_replay_it(tmp_path):
    from gradless.runs import replay

    make_trainer(tmp_path, options={"max_steps": 1}).train()
    with pytest.raises(gl.BadInput, match=r"written by ZOTrainer.*replay.rebuild"):
        replay.rebuild(tmp_path)


def test_the_engine_is_chosen_in_the_first_step_and_kept_by_checkpoints(tmp_path):
    def header(name):
        return gl.ledger.read(tmp_path / name / "ledger").header

    for bare in (False, True):
        name = f"cut-{bare}"
        with race(tmp_path / f"cache-{bare}") as trial:
            cut = make_trainer(tmp_path / name, callbacks=[StopAt(5, "after")], ledger_only=bare)
            with pytest.raises(KeyboardInterrupt):
                cut.train()
            assert trial.calls
            chosen = header(name)["engine"]
            assert (chosen["engine"], chosen["how"], chosen["step"]) == ("dual", "measured", 0)
            trial.costs["dual"] = 9.0
            (tmp_path / f"cache-{bare}").rename(tmp_path / f"gone-{bare}")
            trial.restart()
            again = make_trainer(tmp_path / name, ledger_only=bare)
            again.train(resume_from_checkpoint=True)
            assert not trial.calls
        assert again.window.inner.engine == "dual"
        assert header(name)["engine"] == chosen
        named = make_trainer(tmp_path / f"named-{bare}", zo_options={"engine": "dual"}, ledger_only=bare)
        named.train()
        assert digest(named) == digest(again)
        assert "engine" not in header(f"named-{bare}")
