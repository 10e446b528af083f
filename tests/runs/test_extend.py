"""More steps for a run that has begun: it ends as if it had had them from the start, or one sentence says why not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import run_helpers as h
from gradless import ledger
from gradless.errors import BadInput
from gradless.report.run import figures, record
from gradless.runs import extend, jobs
from gradless.runs.config import read_config
from save_helpers import QUIET

COSTS = ("expected_time", "peak_memory_bytes", "inference_memory_bytes", "train_seconds", "seconds_per_step")
TIMES = ("seconds", "peak_memory_bytes")


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    """Lines of a run but for what a machine decides; test rows may have been scored at an earlier end as well."""
    noted = [line for line in h.notes(out, event) if line.get("split") != "test"]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in noted]


def assert_same_end(whole: Path, extended: Path) -> None:
    for name in ("ledger", "config.json", "predictions.jsonl"):
        assert (whole / name).read_bytes() == (extended / name).read_bytes(), name
    a, b = (json.loads((run / "result.json").read_text()) for run in (whole, extended))
    assert {name for name in a if a[name] != b[name]} <= set(COSTS)
    for event in ("step", "eval"):
        assert lines(whole, event) == lines(extended, event)


SWEEP = [
    ({"method": "zo-momentum"}, 4),
    ({"method": "mezo-momentum"}, 4),
    ({"method": "zo-adam", "scheme": "lora"}, 2),
    ({"method": "mezo-adam", "scheme": "prompt"}, 4),
    ({"method": "zo-sparse", "options": {"mask": "wanda"}}, 4),
    ({"scheme": "prefix", "select": "metric"}, 4),
    ({"scheme": "head"}, 4),
    ({"weight_decay": 0.1, "layer_scale": "variance", "queries": 2}, 4),
    ({"num_dev": 0}, 4),
    ({"method": "lozo", "schedule": "constant", "warmup": 9}, 1),
]


@pytest.mark.parametrize(
    ("changes", "first"),
    [pytest.param({}, 3, id="off the grid of evaluations"), pytest.param({"lr": "auto"}, 4, id="auto")]
    + [pytest.param(*case, id=f"{case[0]}", marks=pytest.mark.sweep) for case in SWEEP],
)
def test_an_extended_run_ends_as_one_that_had_these_steps_from_the_start(tmp_path, changes, first):
    changes = {"lr": 1e-3, **changes}
    h.tune(h.config(tmp_path, steps=6, eval_every=2, **changes), tmp_path / "whole")
    short = h.tune(h.config(tmp_path, steps=first, eval_every=2, **changes), tmp_path / "run")
    longer = h.config(tmp_path, steps=6, **changes)  # eval_every is that of the run
    h.tune(longer, tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    kept = json.loads((tmp_path / "run" / f"result-{first}.json").read_text())
    assert kept == json.loads(json.dumps(short))
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    h.tune(longer, tmp_path / "run", resume=True)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with the data and the finished run of four steps."""
    root = tmp_path_factory.mktemp("finished")
    h.tune(h.config(root, steps=4, eval_every=2, warmup=1), root / "run")
    return root


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 3}, r"has taken 4 steps, more than --steps 3: .* 'gradless replay .*run --until 3 --save DIR'"),
        ({"steps": 6, "lr": 0.5}, r"other settings \(lr was 1e-06 and is now 0.5\)"),
        ({"steps": 6, "eval_every": 3}, r"other settings \(eval_every was 2 and is now 3\)"),
    ],
)
def test_what_a_run_cannot_become_is_one_sentence(finished, changes, sentence):
    files = {path.name: path.read_bytes() for path in (finished / "run").iterdir()}
    with pytest.raises(BadInput, match=sentence) as error:
        h.tune(h.config(finished, **{"warmup": 1, **changes}), finished / "run", resume=True)
    assert "\n" not in str(error.value)
    assert files == {path.name: path.read_bytes() for path in (finished / "run").iterdir()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"schedule": "linear"},
            r"has a linear learning rate, which depends on the number of steps \(4\): start a new",
        ),
        ({"schedule": "cosine"}, "has a cosine learning rate"),
        ({"query_schedule": "linear", "queries": 3}, "has a linear query schedule"),
        (
            {"method": "fo-adam", "lr": 1e-6},
            "holds 4 steps of fo-adam, which no ledger can continue: start a new run with",
        ),
        ({"method": "hybrid", "lr": 1e-6}, "of hybrid, which no ledger can continue"),
    ],
)
def test_the_schedule_that_forbids_it_is_named(finished, tmp_path, changes, sentence):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    values = {**json.loads((run / "config.json").read_text()), **changes}
    (run / "config.json").write_text(json.dumps(values))
    contents = ledger.read(run / "ledger")
    config = {**contents.header["config"], **changes}
    ledger.relabel(run / "ledger", contents, {**contents.header, "config": config})
    with pytest.raises(BadInput, match=sentence):
        h.tune(h.config(finished, steps=6, warmup=1, **changes), run, resume=True)
    values["steps"] = 6  # by hand
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match="belongs to another run than config"):
        jobs.replay(run, reporter=QUIET)


def test_rates_that_do_not_depend_on_the_number_of_steps_may_go_on(finished):
    short, whole = (h.config(finished, steps=steps, schedule="linear", warmup=1) for steps in (4, 9))
    assert not extend.dependence(short, whole, 2)
    assert extend.dependence(short, whole, 4) == "a linear learning rate"
    few, more, many = (h.config(finished, steps=steps, lr="auto", walk=9.0).resolved() for steps in (4, 400, 401))
    assert not extend.dependence(few, more, 4)
    assert not extend.dependence(few, many, 0)
    assert extend.dependence(few, many, 1) == "--lr auto"


def test_a_rate_from_the_coefficients_is_in_the_ledger_and_replays(tmp_path):
    run = tmp_path / "run"
    h.tune(h.config(tmp_path, steps=4, lr="auto", walk=9.0), run)
    assert {move.lrs for move in ledger.read(run / "ledger").moves} == {(0.45 * 1e-3,)}
    assert jobs.replay(run, verify=True, reporter=QUIET).agrees
    with pytest.raises(BadInput, match=r"has --lr auto, which depends on the number of steps \(4\)"):
        h.tune(h.config(tmp_path, steps=401, lr="auto"), run, resume=True)


def test_auto_that_stood_for_another_rate_is_not_continued(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as earlier:
        earlier.setattr("gradless.methods.Method.auto_step", lambda *_: 0.225)  # the law of another release
        h.tune(h.config(tmp_path, steps=4, lr="auto"), run)
    (run / "result.json").unlink()  # as after an interruption
    kept = (run / "ledger").read_bytes()
    with pytest.raises(BadInput, match=r"--lr auto stood for a rate of 0\.000225 when this run began, and stands for"):
        h.tune(h.config(tmp_path, steps=4, lr="auto"), run, resume=True)
    assert (run / "ledger").read_bytes() == kept


def test_a_diverged_run_is_not_extended(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "status": "diverged"}))
    with pytest.raises(BadInput, match="diverged after 4 steps: start a new run with a lower --lr and another --out"):
        h.tune(h.config(finished, steps=6, warmup=1), run, resume=True)


def test_a_stopped_run_may_have_fewer_steps_than_planned(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "result.json").unlink()
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**values, "steps": 50}))
    result = h.tune(h.config(finished, steps=4, warmup=1), run, resume=True)
    assert (result["status"], result["steps"], read_config(run).steps) == ("done", 4, 4)
    assert result["weights_sha256"] == json.loads((finished / "run" / "result.json").read_text())["weights_sha256"]


@pytest.mark.sweep
def test_killed_between_any_two_changes_of_its_files_it_goes_on(finished, tmp_path):
    """In a fork, so that a kill is one: nothing is tidied up."""
    longer = h.config(finished, steps=6, warmup=1)
    h.tune(h.config(finished, steps=6, eval_every=2, warmup=1), tmp_path / "whole")
    kills = 0
    while True:
        run = tmp_path / f"killed-{kills}"
        shutil.copytree(finished / "run", run)
        child = os.fork()
        if not child:
            _die_at(kills)
            h.tune(longer, run, resume=True)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        seen = record.load(run)
        assert seen.status != "done" or seen.number("steps") == seen.planned  # nobody takes one end for another
        assert jobs.replay(run, until=4, reporter=QUIET).step == 4
        h.tune(longer, run, resume=True)
        assert_same_end(tmp_path / "whole", run)
        kills += 1
    assert kills > 8


def _die_at(change: int) -> None:
    """End this process at one of the changes that its files go through."""
    count = 0

    def dying(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == change:
                os._exit(9)
            count += 1
            return function(*args, **kwargs)

        return wrapped

    for name in ("replace", "rename", "unlink", "truncate", "ftruncate", "fsync"):
        setattr(os, name, dying(getattr(os, name)))


def test_the_report_says_that_steps_were_added_after_a_look_at_test(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    assert not record.load(folder).earlier_ends
    h.tune(h.config(finished, steps=6, warmup=1), folder, resume=True)
    loaded = record.load(folder)
    assert [one.taken for one in loaded.earlier_ends] == [4]
    assert "Steps were added after test had been scored at 4 steps" in loaded.remarks[-1]
    metric = next(one for one in figures.drawings(loaded) if one.name == "training-metric")
    assert "Hollow: test at the end that the run had at step 4" in metric.caption
    assert "not looked at" not in metric.caption
