"""`ZOTrainer`: what Trainer does around a step works as before, and a step is gradless' own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gradless as gl  # noqa: E402
from gradless import ledger  # noqa: E402
from gradless.integrations import transformers as integration  # noqa: E402
from gradless.integrations.replay import rebuild  # noqa: E402
from gradless.integrations.transformers import ZOTrainer, ZOTrainerMixin  # noqa: E402
from gradless.system.hashing import weights_sha256  # noqa: E402
from trainer_helpers import (  # noqa: E402
    CONSTANT,
    SHORT,
    arguments,
    classifier,
    digest,
    language_model,
    make_trainer,
    moves,
    sentences,
    texts,
)


class Spy:
    """A collator that remembers its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        self.batches.append(transformers.default_data_collator(rows))
        return self.batches[-1]


# ---------------------------------------------------------------------------------------------------------------
# a step


@pytest.mark.parametrize("engine", ["stream", "in-place"])
def test_a_run_is_the_loop_that_one_would_write_by_hand(tmp_path, engine):
    spy = Spy()
    options = {"eps": 1e-2, "queries": 2, "engine": engine}
    trainer = make_trainer(tmp_path, options=CONSTANT, data_collator=spy, zo=gl.mezo, zo_options=options)
    trainer.train()
    model = classifier().eval()
    opt = gl.mezo(model.named_parameters(), lr=1e-2, seed=42, **options)
    for batch in spy.batches[:8]:
        opt.step(lambda batch=batch: model(**batch).loss)
    assert digest(trainer) == weights_sha256(model.named_parameters())
    assert digest(trainer) != weights_sha256(classifier().named_parameters())


def test_it_learns(tmp_path):
    options = {"max_steps": 60, "learning_rate": 2e-2, "logging_steps": 20, "save_strategy": "no", **CONSTANT}
    trainer = make_trainer(tmp_path, data=sentences(4), options=options, zo_options={"queries": 4, "eps": 1e-2})
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.02


def test_weight_decay_spares_norms_and_biases(tmp_path):
    trainer = make_trainer(tmp_path, options={"weight_decay": 0.5, "max_steps": 1, **CONSTANT})
    trainer.train()
    decayed, spared = trainer.window.inner.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert all("bias" in name or "LayerNorm" in name for name in spared["param_names"])
    assert not any("bias" in name or "LayerNorm" in name for name in decayed["param_names"])
    assert ledger.read(tmp_path / "ledger").header["weight_decay"] == [0.5, 0.0]


@pytest.mark.parametrize("make", [classifier, language_model])
def test_accumulated_micro_batches_are_one_batch(tmp_path, make):
    data = sentences() if make is classifier else texts(24)
    for name, options in (
        ("whole", {"per_device_train_batch_size": 8}),
        ("parts", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    ):
        # Three batches an epoch at most: the last window of an epoch is shorter.
        trainer = make_trainer(
            tmp_path / name, make(), data, options={**options, "max_steps": 6}, zo_options={"eps": 1e-1}
        )
        trainer.train()
        assert trainer.state.global_step == len(moves(tmp_path / name)) == 6
    whole, parts = ([move.coeffs[0] for move in moves(tmp_path / name)] for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, abs=2e-5)
    assert max(map(abs, whole)) > 1e-2


def own_loss(outputs, labels, num_items_in_batch=None):
    return (outputs.logits[:, 1] - labels).square().sum() / num_items_in_batch


@pytest.mark.few(2)
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    ("make", "rest"),
    [
        (classifier, {}),  # takes the number of labels and divides by its batch all the same
        (classifier, {"compute_loss_func": own_loss}),
        (language_model, {}),
    ],
    ids=["mean", "function", "share"],
)
def test_the_loss_that_is_logged_is_the_one_that_trainer_logs(tmp_path, make, rest, parts):
    """Also in windows that an epoch cuts short."""
    logged = {}
    for kind, zo in ((transformers.Trainer, {}), (ZOTrainer, {"zo_options": {"eps": 1e-4}})):
        data = sentences(10) if make is classifier else texts(10)
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": parts, "learning_rate": 1e-12}
        options |= {"logging_steps": 1, "max_steps": 4}
        model = make(attention_probs_dropout_prob=0, hidden_dropout_prob=0) if make is classifier else make()
        trainer = make_trainer(tmp_path / kind.__name__, model, data, options=options, kind=kind, **rest, **zo)
        trainer.train()
        logged[kind] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[ZOTrainer] == pytest.approx(logged[transformers.Trainer], rel=1e-3, abs=1e-6)


def test_the_closure_is_deterministic_though_the_model_has_dropout(tmp_path):
    model = classifier(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    dropped = make_trainer(tmp_path / "a", model, options=CONSTANT)
    plain = make_trainer(
        tmp_path / "b", classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), options=CONSTANT
    )
    dropped.train()
    plain.train()
    assert digest(dropped) == digest(plain)


@pytest.mark.sweep
def test_losses_that_are_not_finite_are_passed_over_until_there_are_too_many(tmp_path):
    class Broken(ZOTrainer):
        broken = frozenset({2, 3})

        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * (
                float("nan") if self.state.global_step in self.broken else 1
            )

    trainer = make_trainer(tmp_path / "few", kind=Broken)
    trainer.train()
    assert [move.skipped for move in moves(tmp_path / "few")] == [step in (2, 3) for step in range(8)]
    trainer = make_trainer(tmp_path / "many", kind=Broken, options={"max_steps": 20})
    trainer.broken = frozenset(range(2, 20))
    with pytest.raises(gl.Diverged, match="10 losses in a row"):
        trainer.train()
    assert len(moves(tmp_path / "many")) == 12


def test_workers_of_the_data_loader_change_nothing(tmp_path):
    """They are forked while the ledger is open, and the engine, which the first step chooses, is then written to it."""
    alone = make_trainer(tmp_path / "alone", options=SHORT)
    alone.train()
    trainer = make_trainer(tmp_path / "workers", options={**SHORT, "dataloader_num_workers": 1})
    trainer.train()
    assert digest(trainer) == digest(alone)


def test_label_smoothing(tmp_path):
    """It takes the labels out of a batch that both losses of a probe need."""
    trainer = make_trainer(tmp_path, options={"label_smoothing_factor": 0.1, "max_steps": 2})
    trainer.train()
    assert trainer.state.global_step == 2


# ---------------------------------------------------------------------------------------------------------------
# what is around a step


def test_a_linear_schedule_with_warmup(tmp_path):
    trainer = make_trainer(tmp_path, options={"warmup_steps": 2, "max_steps": 6})
    trainer.train()
    expected = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert [move.lrs[0] / 1e-2 for move in moves(tmp_path)] == pytest.approx(expected)


def test_logs_hold_slopes_and_forwards_but_no_norm_of_a_gradient(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    first = trainer.state.log_history[0]
    squares = [move.coeffs[0] ** 2 for move in moves(tmp_path)[:4]]
    assert first["projected_grad"] == pytest.approx((sum(squares) / 4) ** 0.5)
    assert first["forwards"] == 8
    assert "grad_norm" not in first


def test_evaluation_callbacks_and_early_stopping(tmp_path):
    seen = []

    class Seen(transformers.TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **rest):
            seen.append((state.global_step, metrics["eval_accuracy"]))

    options = {
        **{"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 40, "learning_rate": 1e-9},
        **{"load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
    }
    trainer = make_trainer(
        tmp_path,
        options=options,
        eval_dataset=sentences(8, seed=1),
        compute_metrics=lambda result: {"accuracy": float((result[0].argmax(-1) == result[1]).mean())},
        callbacks=[Seen(), transformers.EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    assert [step for step, _ in seen] == [2, 4, 6]  # nothing changes, so two evaluations later it ends
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("defer", [False, True])
def test_the_best_model_is_loaded_and_saved_with_its_own_ledger(tmp_path, defer):
    options = {
        **{"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True},
        **{"metric_for_best_model": "loss", "learning_rate": 0.5, **CONSTANT},
    }
    trainer = make_trainer(
        tmp_path, options=options, eval_dataset=sentences(8, seed=1), zo_options={"defer": defer, "eps": 1e-1}
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert min(evaluated, key=evaluated.get) == trainer.state.best_global_step != 8
    saved = json.loads((best / "gradless.json").read_text())
    assert saved["weights_sha256"] == digest(trainer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(evaluated.values()))
    trainer.save_model(str(tmp_path / "final"))
    assert len(moves(tmp_path / "final")) == trainer.state.best_global_step
    model = classifier()
    rebuild(model, tmp_path / "final")
    assert weights_sha256(model.named_parameters()) == digest(trainer)


def test_a_schedule_that_waits_for_the_metric(tmp_path):
    options = {
        **{"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2},
        **{"lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0}, "metric_for_best_model": "loss"},
    }
    hashes = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        trainer = make_trainer(tmp_path, options=options, eval_dataset=sentences(8, seed=1))
        trainer.train(resume_from_checkpoint=resume)
        hashes.append((digest(trainer), [move.lrs for move in moves(tmp_path)]))
    assert hashes[0] == hashes[1]
    assert hashes[0][1][-1] < hashes[0][1][0]


def test_a_model_from_a_function(tmp_path):
    def run(resume):
        trainer = ZOTrainer(
            model_init=lambda: classifier(), args=arguments(tmp_path), train_dataset=sentences(), ledger_only=True
        )
        trainer.train(resume_from_checkpoint=resume)
        return digest(trainer)

    assert run(None) == run(str(tmp_path / "checkpoint-4"))


def test_training_again_is_a_new_run_from_the_weights_there_are(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    middle = digest(trainer)
    trainer.train()
    assert len(moves(tmp_path)) == 8
    header = ledger.read(tmp_path / "ledger").header
    assert header["initial_sha256"] == middle != digest(trainer)


def test_a_ready_optimizer(tmp_path):
    model = classifier()
    opt = gl.lozo(model.named_parameters(), lr=1e-2, seed=3)
    trainer = make_trainer(tmp_path, model, optimizers=(opt, None))
    trainer.train()
    assert opt.t == 8
    with pytest.raises(gl.BadInput, match="has taken 8 steps already"):
        make_trainer(tmp_path, model, optimizers=(opt, None))
    with pytest.raises(gl.BadInput, match="learning-rate schedule"):
        make_trainer(tmp_path, model, optimizers=(gl.mezo(model.named_parameters(), lr=gl.constant(1.0)), None))
    with pytest.raises(gl.BadInput, match="the optimizer is SGD"):
        make_trainer(tmp_path, model, optimizers=(torch.optim.SGD(model.parameters()), None))


@pytest.mark.sweep
def test_16_bit_weights_and_autocast(tmp_path):
    trainer = make_trainer(tmp_path / "a", classifier().bfloat16(), options={"max_steps": 2})
    trainer.train()
    assert next(trainer.model.parameters()).dtype == torch.bfloat16
    trainer = make_trainer(tmp_path / "b", options={"max_steps": 2, "bf16": True}, zo_options={"eps": 1e-1})
    trainer.train()
    assert any(move.coeffs[0] for move in moves(tmp_path / "b"))


# ---------------------------------------------------------------------------------------------------------------
# the shape of the code


def test_only_public_hooks_are_overridden_in_under_150_lines():
    source = Path(integration.__file__).read_text()
    assert len(source.splitlines()) < 150
    own = {name for name in vars(ZOTrainerMixin) if callable(vars(ZOTrainerMixin)[name])} - {"__init__"}
    assert own <= set(dir(transformers.Trainer))
    assert not [name for name in own if name.startswith("_")]
    called = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not [name for name in called if name.startswith("_") and not name.startswith("__")]


def test_gradless_itself_does_not_import_transformers():
    code = "import gradless, gradless.integrations, sys; gradless.mezo; print('transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "False"
