"""Arguments, data and models that a trainer without gradients cannot use: one sentence that names them."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch.distributed as dist  # noqa: E402

import gradless as gl  # noqa: E402
from gradless.integrations import argument_checks  # noqa: E402
from gradless.integrations.transformers import ZOTrainer  # noqa: E402
from trainer_helpers import arguments, classifier, make_trainer, sentences  # noqa: E402


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fp16": True}, "fp16 does not go with ZOTrainer.*load the model with dtype"),
        ({"torch_compile": True}, "torch_compile does not go"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size .* per_device_train_batch_size"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(tmp_path, options, words):
    args = arguments(tmp_path)
    for name, value in options.items():
        setattr(args, name, value)  # some need hardware that is not here
    with pytest.raises(gl.BadInput, match=words):
        ZOTrainer(model=classifier(), args=args, train_dataset=sentences())


@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])
def test_sharding_is_refused_by_name(tmp_path, name):
    args = arguments(tmp_path)
    setattr(args, name, True)
    with pytest.raises(gl.BadInput, match=f"{name} does not go with ZOTrainer"):
        argument_checks.arguments(args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_grad_norm": 0.3}, "max_grad_norm=0.3 has no effect in ZOTrainer: there is no gradient to clip"),
        ({"optim": "adafactor"}, "optim=.*adafactor.* has no effect in ZOTrainer: .* zo="),
        ({"adam_beta1": 0.5}, "adam_beta1=0.5 has no effect"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 has no effect"),
    ],
)
def test_arguments_without_a_meaning_are_warned_about(tmp_path, options, words):
    with pytest.warns(UserWarning, match=words):
        make_trainer(tmp_path, options={"max_steps": 1, **options}).train()


def test_checkpointing_of_activations_is_warned_about_and_switched_off(tmp_path):
    with warned_about_its_name():
        args = arguments(tmp_path, max_steps=1, gradient_checkpointing=True)
    with pytest.warns(UserWarning, match="gradient_checkpointing .* has no effect in ZOTrainer: no activations"):
        trainer = ZOTrainer(model=classifier(), args=args, train_dataset=sentences())
    trainer.train()
    assert not trainer.args.gradient_checkpointing


def test_processes_that_trainer_does_not_see_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(gl.BadInput, match=r"2 processes were started, and Trainer takes each .* set use_cpu=True"):
        argument_checks.arguments(SimpleNamespace(world_size=1, n_gpu=0))


@contextlib.contextmanager
def warned_about_its_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def test_labels_are_missed_by_name(tmp_path):
    data = [{"input_ids": row["input_ids"]} for row in sentences()]
    with pytest.raises(gl.BadInput, match=r"no loss, since its batches have no 'labels' \(only input_ids\)"):
        make_trainer(tmp_path, data=data).train()


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    from gradless.lm.tiny_models import FAMILIES, make_tokenizer

    tokenizer = make_tokenizer(FAMILIES["llama"].specials)
    data = [{"input_ids": [1, 2, 3], "labels": 0}] * 8
    with pytest.raises(gl.BadInput, match=r"no pad token, and DataCollatorWithPadding pads: set tokenizer.pad_token"):
        make_trainer(tmp_path, data=data, processing_class=tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    make_trainer(tmp_path, data=data, processing_class=tokenizer, options={"max_steps": 1}).train()


def test_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(gl.BadInput, match="no parameter that requires grad"):
        make_trainer(tmp_path, classifier().requires_grad_(False))


def test_methods_and_options_are_checked(tmp_path):
    with pytest.raises(gl.BadInput, match="unknown method 'mezzo': did you mean 'mezo'"):
        make_trainer(tmp_path, zo="mezzo")
    with pytest.raises(gl.BadInput, match="uses backpropagation"):
        make_trainer(tmp_path, zo="fo-adam")
    with pytest.raises(gl.BadInput, match=r"unknown entry of zo_options 'epsilon'.*eps"):
        make_trainer(tmp_path, zo_options={"epsilon": 1e-3})
    with pytest.raises(gl.BadInput, match=r"'lr', which comes from TrainingArguments.learning_rate: leave it out"):
        make_trainer(tmp_path, zo_options={"lr": 1e-3})
    with pytest.raises(gl.BadInput, match="zo is 3: give the name of a method"):
        make_trainer(tmp_path, zo=3)
    with pytest.raises(gl.BadInput, match="load_best_model_at_end needs checkpoints with weights"):
        make_trainer(
            tmp_path,
            ledger_only=True,
            eval_dataset=sentences(4),
            options={"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4},
        )
