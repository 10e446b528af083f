"""Nothing is scored by logits that are not finite, and no step is taken by them."""

from __future__ import annotations

import math

import pytest
import torch

import run_helpers as h
from gradless import tasks
from gradless.errors import BadInput, NotFinite
from gradless.lm import evaluate, objectives, tiny
from gradless.methods import METHODS
from gradless.runs import jobs
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
SST2 = [{"sentence": f"film {i} was fine", "label": i % 2} for i in range(6)]
SQUAD = [{"title": "a", "context": "b c", "question": "which?", "answers": {"text": ["b"]}} for _ in range(3)]


def spoiled(value: float, name: str = "llama"):
    """A model one of whose weights, which every row reads, is ``value``."""
    lm = tiny(name)
    with torch.no_grad():
        next(p for n, p in lm.model.named_parameters() if "norm" in n).fill_(value)
    return lm


@pytest.mark.parametrize("mode", evaluate.MODES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_mode_scores_such_logits(mode, value):
    with pytest.raises(NotFinite, match="logits are not finite for 6 of 6 rows"):
        evaluate.evaluate(spoiled(value), tasks.get("sst2"), SST2, mode=mode, demonstrations=SST2, num_demonstrations=2)


@pytest.mark.parametrize("objective", ["gold", "f1"])
def test_no_text_is_generated_from_them(objective):
    with pytest.raises(NotFinite, match="logits are not finite"):
        evaluate.evaluate(spoiled(math.nan), tasks.get("squad"), SQUAD, objective=objectives.OBJECTIVES[objective])


@pytest.mark.parametrize(("task", "rows", "name"), [("sst2", SST2, "accuracy"), ("squad", SQUAD, "f1")])
def test_objectives_without_a_gradient_are_not_finite_either(task, rows, name):
    lm, task = spoiled(math.nan), tasks.get(task)
    objective = objectives.choose(task, name)
    encoded = [
        evaluate.encode(lm, row, **evaluate.task_options(lm, task, None)) for row in evaluate.render(lm, task, rows)
    ]
    assert math.isnan(float(objectives.loss_of(lm, objective, encoded)))


@pytest.mark.parametrize("dev", [0, 8])
def test_a_rate_that_blows_the_weights_up_diverges_and_nothing_is_saved(tmp_path, dev):
    settings = h.config(tmp_path, steps=1, lr=1e300, num_dev=dev, num_test=8 - dev)
    result = jobs.tune(settings, tmp_path / "run", save=tmp_path / "saved", reporter=QUIET)
    assert (result["status"], result["test"]) == ("diverged", {})
    assert not (tmp_path / "saved").exists()
    with pytest.raises(BadInput, match="weights of step 1 are not finite, so they are not saved"):
        jobs.replay(tmp_path / "run", save=tmp_path / "saved", reporter=QUIET)
    assert not (tmp_path / "saved").exists()


def test_a_model_that_cannot_be_scored_begins_no_run(tmp_path):
    settings = h.config(tmp_path, scheme="lora", alpha=1e300)
    entries = sorted(tmp_path.iterdir())
    with pytest.raises(NotFinite):
        h.tune(settings, tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == entries


def test_a_run_that_skipped_all_its_steps_is_not_done(tmp_path, monkeypatch):
    h.patch_loss(monkeypatch, lambda step, call, loss: loss * math.nan)
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, line: lines.append(line))
    assert h.tune(h.config(tmp_path, steps=3), tmp_path / "run")["status"] == "diverged"
    assert any("the losses of all 3 steps were not finite: lower --lr" in line for line in lines)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if not (one.differentiates or one.blocks)])
@pytest.mark.parametrize("scale", [1e-42, 1e36])
def test_losses_at_the_ends_of_float32_leave_finite_weights(name, scale):
    model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)), torch.eye(8)
    opt = METHODS[name].make(list(model.named_parameters()), lr=1e-3, eps=1e-3, seed=0)
    for _ in range(3):
        opt.step(lambda: (model(x) - 1).square().mean() * scale)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
