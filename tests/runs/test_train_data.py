"""Which rows a run sees, what it says, and what it does beside other processes."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch

import run_helpers as h
from gradless import ledger, lm
from gradless.errors import BadInput
from gradless.lm import objectives, virtual_tokens
from gradless.runs import build, jobs, record, replay, train
from gradless.system import locks, machine
from gradless.system.progress import Reporter

# ---------------------------------------------------------------------------------------------------------------
# data


def test_splits_share_no_row(tmp_path):
    own = h.sentiment(tmp_path / "data", train_rows=48)
    _, splits = build.load_task(h.config(tmp_path, own=own, num_train=30, num_dev=18, num_test=0))
    train_rows, dev_rows = ({json.dumps(row) for row in rows} for rows in (splits.train, splits.dev))
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (30, 18, 24)
    assert not train_rows & dev_rows
    assert not (train_rows | dev_rows) & {json.dumps(row) for row in splits.test}


@pytest.mark.parametrize(("num", "batch"), [(12, 4), (10, 4), (3, 7), (5, 5), (1, 2)])
def test_batches_take_every_row_once_an_epoch(num, batch):
    steps = math.lcm(num, batch) // batch * 2
    indices = [i for step in range(steps) for i in build.batch_indices(num, batch, 5, step)]
    epochs = [indices[start : start + num] for start in range(0, len(indices), num)]
    assert len(epochs) >= 2
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    if num > 4:
        assert epochs[0] != epochs[1]
        assert indices != [i for step in range(steps) for i in build.batch_indices(num, batch, 6, step)]
    assert set(Counter(indices).values()) == {len(epochs)}


def test_training_shows_the_rows_that_batch_indices_names(tmp_path, monkeypatch):
    settings = h.config(tmp_path, steps=4, batch_size=5, num_train=16)
    task, splits = build.load_task(settings)
    shown, true = [], objectives.prepare

    def prepare(model, objective, encoded, micro=None):
        shown.append([row.prompt for row in encoded])
        return true(model, objective, encoded, micro)

    monkeypatch.setattr(objectives, "prepare", prepare)
    h.tune(settings, tmp_path / "run")
    rows = [row.prompt for row in build.encode_rows(lm.load("tiny-llama"), task, splits.train, None)]
    # Before: one row for its size, the first batch for the expected time, and for the choice of the engine.
    assert shown[3:] == [[rows[i] for i in build.batch_indices(16, 5, 0, step)] for step in range(4)]


# ---------------------------------------------------------------------------------------------------------------
# what it says


def test_plain_progress_is_at_most_ten_lines_a_job(capsys):
    for jumps in (range(1, 101), range(7, 101, 31), [100]):
        with Reporter().job("tune", 100) as show:
            for done in jumps:
                show(done, "loss 1")
        lines = capsys.readouterr().out.splitlines()
        assert 1 <= len(lines) <= 10
        assert lines[-1].startswith(f"tune {max(jumps)}/100  loss 1")


def test_a_live_bar_takes_lines_beside_it(capsys):
    reporter = Reporter()
    reporter.live = True
    with reporter.job("tune", 4, done=1) as show:
        show(2, "loss [1]")
        reporter.say("dev at 2: [bold]accuracy[/bold]")
        show(4, "loss 2")
    reporter.say("done")
    out = capsys.readouterr().out
    assert "dev at 2: [bold]accuracy[/bold]" in out  # no markup in what is said
    assert "4/4" in out
    assert out.endswith("done\n")


def test_nothing_touches_the_global_generator(tmp_path):
    state = torch.get_rng_state()
    h.tune(h.config(tmp_path, scheme="lora"), tmp_path / "run")
    assert torch.equal(state, torch.get_rng_state())


def test_versions_name_what_computed():
    versions = record.versions()
    assert {"gradless", "torch", "transformers", "python", "machine"} <= set(versions)
    assert versions["machine"].startswith(machine.processor_name())  # figures of two processors are told apart


# ---------------------------------------------------------------------------------------------------------------
# other places, other processes


def test_a_prefix_is_rebuilt_from_kept_values_and_not_from_a_new_forward(tmp_path, monkeypatch):
    """Its initial values come from a forward pass, whose last bits another processor may not reproduce."""
    settings = h.config(tmp_path, scheme="prefix", steps=3)
    result = h.tune(settings, tmp_path / "run")
    true = virtual_tokens.keys_and_values
    monkeypatch.setattr(
        virtual_tokens, "keys_and_values", lambda *args: [(key * 1.0001, value) for key, value in true(*args)]
    )
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=result["selected_step"])
    assert build.tuned_sha256(rebuilt) == result["weights_sha256"]
    (tmp_path / "run" / build.INITIAL).unlink()
    with pytest.raises(BadInput, match="initial adapter"):
        replay.rebuild(tmp_path / "run", until=result["selected_step"])


def test_a_run_is_replayed_where_its_model_has_moved(tmp_path):
    model = lm.load("tiny-llama")
    model.model.save_pretrained(tmp_path / "here")
    model.tokenizer.save_pretrained(tmp_path / "here")
    settings = h.config(tmp_path, model=str(tmp_path / "here"), steps=3)
    result = h.tune(settings, tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(BadInput):
        jobs.replay(tmp_path / "run", verify=True)
    assert jobs.replay(tmp_path / "run", verify=True, model=str(tmp_path / "there"), device="cpu").agrees
    assert result["status"] == "done"


def test_two_processes_cannot_work_on_one_run(tmp_path):
    settings = h.config(tmp_path, steps=3)
    h.tune(settings, tmp_path / "run")
    contents = ledger.read(tmp_path / "run" / "ledger")
    first = ledger.Ledger(tmp_path / "run" / "ledger", {}, contents=contents)
    with pytest.raises(BadInput, match="another process"):
        ledger.Ledger(tmp_path / "run" / "ledger", {}, contents=contents)
    first.close()
    ledger.Ledger(tmp_path / "run" / "ledger", {}, contents=contents).close()


def test_backpropagation_without_dev_rows_keeps_its_last_weights(tmp_path):
    result = h.tune(h.config(tmp_path, method="fo-adam", num_dev=0), tmp_path / "run")
    replayed = jobs.replay(tmp_path / "run", verify=True, reporter=Reporter(quiet=True))
    assert replayed.agrees
    assert replayed.step == result["steps"]
    with pytest.raises(BadInput, match="only step 3 is kept"):
        jobs.replay(tmp_path / "run", until=2, reporter=Reporter(quiet=True))


def test_a_finished_run_is_not_taken_for_one_on_other_data(tmp_path):
    sizes = {"num_train": 8, "num_dev": 2, "num_test": 2, "batch_size": 2, "task": "squad"}
    settings = h.config(tmp_path, data=str(h.squad(tmp_path / "one")), **sizes)
    result = h.tune(settings, tmp_path / "run")
    moved = h.config(tmp_path, data=str(h.squad(tmp_path / "two")), **sizes)
    assert h.tune(moved, tmp_path / "run", resume=True) == json.loads(json.dumps(result))
    other = h.config(tmp_path, data=str(h.squad(tmp_path / "three", rows=11)), **sizes)
    with pytest.raises(BadInput, match="holds a run on other data"):
        h.tune(other, tmp_path / "run", resume=True)


def test_blocks_that_generate_text_share_no_prefix(tmp_path):
    data = str(h.squad(tmp_path / "squad"))
    settings = h.config(
        tmp_path, task="squad", data=data, objective="f1", method="zo-blockwise", num_train=8, num_dev=2
    )
    model, _ = build.build_for(settings.resolved(), tmp_path, *_task_and_rows(settings))
    assert model.optimizer.evaluator.prefix is None
    model, _ = build.build_for(
        h.config(tmp_path, method="zo-blockwise").resolved(), tmp_path, *_task_and_rows(h.config(tmp_path))
    )
    assert model.optimizer.evaluator.prefix is not None


def _task_and_rows(settings):
    task, splits = build.load_task(settings)
    return task, splits.train


@pytest.mark.parametrize("begin", ["tune", "resume", "eval"])
def test_nothing_is_written_to_a_folder_that_another_process_holds(tmp_path, begin):
    out, settings = tmp_path / "run", h.config(tmp_path)

    def run() -> object:
        if begin == "eval":
            return jobs.evaluate(settings, mode="zero-shot", num_demonstrations=0, out=out)
        return h.tune(settings, out, resume=begin == "resume")

    with locks.claimed(out):
        held = sorted(out.iterdir())
        with pytest.raises(BadInput, match=r"another process .* is working on"):
            run()
        assert sorted(out.iterdir()) == held


def test_a_batch_beyond_the_rows_is_refused_before_anything_is_written(tmp_path):
    for size, rows in ((10**6, 16), (17, 16), (33, 32)):
        with pytest.raises(BadInput, match=f"batch_size is {size}, and there are {rows} training rows"):
            h.tune(h.config(tmp_path, batch_size=size, num_train=rows), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert h.tune(h.config(tmp_path, batch_size=16, num_train=8, steps=1), tmp_path / "run")["status"] == "done"


def test_cut_rows_are_counted_and_said(tmp_path, capsys):
    own = h.sentiment(tmp_path) | {"template": "Read the review, please: {text} so"}
    whole = train.tune(h.config(tmp_path, own=own), tmp_path / "whole")
    assert whole["truncated"] == {"train": 0, "dev": 0, "test": 0, "side": "beginning"}
    assert "longer than" not in capsys.readouterr().out
    longest = max(row.longest for row in _encoded(h.config(tmp_path, own=own)))
    cut = train.tune(h.config(tmp_path, own=own, max_length=longest - 2), tmp_path / "cut")
    printed = capsys.readouterr().out
    count = cut["truncated"]["train"]
    assert 0 < count <= 16
    assert f"{count} of 16 train rows and " in printed
    assert f"lose the beginning of their text: they are longer than {longest - 2} tokens (--max-length)" in printed
    assert f"longer than {longest - 2} tokens, without their beginning" in printed
    assert cut["truncated"]["test"] > 0


def _encoded(config):
    task, rows = build.load_task(config.resolved())
    return build.encode_rows(lm.load(config.model), task, rows.train, None)
