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
    make_trainer,
    moves,
    sentences,
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
    trainer = make_trainer(tmp_path, kind=Makes)
    trainer.train()
    assert [move.lrs for move in moves(tmp_path)[:2]] == [(1e-2, 1e-4), (5e-3, 5e-5)]
    again = make_trainer(tmp_path, classifier(2), kind=Makes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert digest(again) == digest(trainer)
    assert moves(tmp_path)[4].lrs == (1e-2 * 0.5**4, 1e-4 * 0.5**4)


def test_an_optimizer_with_gradients_is_refused_wherever_it_comes_from(tmp_path):
    class Makes(ZOTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
            return self.optimizer

    with pytest.raises(gl.BadInput, match=r"Makes.create_optimizer makes SGD, which needs gradients"):
        make_trainer(tmp_path, kind=Makes).train()
    trainer = make_trainer(tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)
    with pytest.raises(gl.BadInput, match="the optimizer is SGD"):
        trainer.train()
    other = torch.optim.SGD(classifier().parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 1.0)
    with pytest.raises(gl.BadInput, match=r"LambdaLR is of another optimizer \(SGD\)"):
        make_trainer(tmp_path, optimizers=(None, schedule)).train()


def test_an_optimizer_that_was_made_beforehand_is_kept(tmp_path):
    trainer = make_trainer(tmp_path, options={**SHORT, **CONSTANT})
    trainer.create_optimizer()
    trainer.optimizer.param_groups[0]["lr"] = 0.25
    trainer.train()
    assert moves(tmp_path)[0].lrs == (0.25,)
    model = classifier()
    second = make_trainer(tmp_path, model, optimizers=(gl.mezo(model.named_parameters(), lr=1e-2), None), options=SHORT)
    second.train()
    with pytest.raises(gl.BadInput, match="has taken 2 steps already"):
        second.train()


def test_training_arguments_stay_as_they_were(tmp_path):
    class More(transformers.TrainingArguments):
        """Arguments of a script."""

    args = arguments(tmp_path, More, lr_scheduler_kwargs={}, activation_checkpointing=True, **SHORT)
    args.corpus = ["a", "b"]
    original = copy.deepcopy(args.to_dict())
    with pytest.warns(UserWarning, match="has no effect in ZOTrainer"):
        trainer = ZOTrainer(classifier(), args, train_dataset=sentences())
    trainer.train()
    assert args.to_dict() == original
    assert type(trainer.args) is More
    assert (trainer.args.corpus, trainer.args.save_only_model) == (["a", "b"], True)
    assert trainer.args.lr_scheduler_kwargs is not args.lr_scheduler_kwargs
