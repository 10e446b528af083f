"""Optimizers, schedules and training arguments that a subclass or a caller brings."""

from __future__ import annotations

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gradless as gl  # noqa: E402
from gradless.integrations.transformers import ZOTrainer  # noqa: E402
from trainer_helpers import (  # noqa: E402
    CONSTANT,
    SHORT,
    arguments,
    classifier,
    digest,
    moves,
    sentences,
    trainer,
)


def rates(model):
    head = [(name, p) for name, p in model.named_parameters() if name.startswith("classifier")]
    body = [(name, p) for name, p in model.named_parameters() if not name.startswith("classifier")]
    return [{"params": head, "lr": 1e-2}, {"params": body, "lr": 1e-4}]


class Makes(ZOTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = gl.mezo(rates(self.model), lr=1e-3, seed=0)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.5**step)
        return self.lr_scheduler


def test_an_optimizer_and_a_schedule_from_overrides(tmp_path):
    found = trainer(tmp_path, kind=Makes)
    found.train()
    assert [move.lrs for move in moves(tmp_path)[:2]] == [(1e-2, 1e-4), (5e-3, 5e-5)]
    again = trainer(tmp_path, classifier(2), kind=Makes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert digest(again) == digest(found)
    assert moves(tmp_path)[4].lrs == (1e-2 * 0.5**4, 1e-4 * 0.5**4)


def test_an_optimizer_with_gradients_is_refused_wherever_it_comes_from(tmp_path):
    class Makes(ZOTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
            return self.optimizer

    with pytest.raises(gl.BadInput, match=r"Makes.create_optimizer makes SGD, which needs gradients"):
        trainer(tmp_path, kind=Makes).train()
    found = trainer(tmp_path)
    found.optimizer = torch.optim.SGD(found.model.parameters(), lr=1e-3)
    with pytest.raises(gl.BadInput, match="the optimizer is SGD"):
        found.train()
    other = torch.optim.SGD(classifier().parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 1.0)
    with pytest.raises(gl.BadInput, match=r"LambdaLR is of another optimizer \(SGD\)"):
        trainer(tmp_path, optimizers=(None, schedule)).train()


def test_an_optimizer_that_was_made_beforehand_is_kept(tmp_path):
    found = trainer(tmp_path, options={**SHORT, **CONSTANT})
    found.create_optimizer()
    found.optimizer.param_groups[0]["lr"] = 0.25
    found.train()
    assert moves(tmp_path)[0].lrs == (0.25,)
    model = classifier()
    given = trainer(tmp_path, model, optimizers=(gl.mezo(model.named_parameters(), lr=1e-2), None), options=SHORT)
    given.train()
    with pytest.raises(gl.BadInput, match="has taken 2 steps already"):
        given.train()


def test_training_arguments_stay_as_they_were(tmp_path):
    class More(transformers.TrainingArguments):
        """Arguments of a script."""

    args = arguments(tmp_path, More, lr_scheduler_kwargs={}, activation_checkpointing=True, **SHORT)
    args.corpus = ["a", "b"]
    before = copy.deepcopy(args.to_dict())
    with pytest.warns(UserWarning, match="has no effect in ZOTrainer"):
        found = ZOTrainer(classifier(), args, train_dataset=sentences())
    found.train()
    assert args.to_dict() == before
    assert type(found.args) is More
    assert (found.args.corpus, found.args.save_only_model) == (["a", "b"], True)
    assert found.args.lr_scheduler_kwargs is not args.lr_scheduler_kwargs
