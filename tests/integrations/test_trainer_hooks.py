"""Everything around a step is Trainer's own: hooks, events, logs, files, and whatever a subclass overrides."""

from __future__ import annotations

import collections
import dataclasses
import random

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gradless as gl  # noqa: E402
from gradless.integrations.batches import fresh  # noqa: E402
from gradless.integrations.replay import rebuild  # noqa: E402
from gradless.integrations.transformers import ZOTrainer, ZOTrainerMixin  # noqa: E402
from repository import ROOT  # noqa: E402
from trainer_helpers import (  # noqa: E402
    CONSTANT,
    SHORT,
    classifier,
    digest,
    make_trainer,
    moves,
    sentences,
)
from trainer_trace import TABLE, differences  # noqa: E402


@pytest.mark.few(3)
@pytest.mark.parametrize("name", TABLE)
def test_trainer_and_this_one_do_the_same_around_a_step(tmp_path, name):
    assert not differences(tmp_path, TABLE[name])


def test_every_public_method_of_trainer_is_in_the_table_of_the_docs():
    page = (ROOT / "docs" / "reference" / "trainer-hooks.md").read_text()
    first = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name.strip(" `") for cell in first for name in cell.split(",")}
    methods = {name for name in vars(transformers.Trainer) if not name.startswith("_")}
    events = {name for name in vars(transformers.TrainerCallback) if name.startswith("on_")}
    assert not (methods | events) - listed, "decide what becomes of these, and say it in the table"


# ---------------------------------------------------------------------------------------------------------------
# overrides


def flipped(inputs):
    return {**inputs, "labels": 1 - inputs["labels"]}


class Prepares(ZOTrainer):
    def _prepare_inputs(self, inputs):
        self.calls = getattr(self, "calls", 0) + 1
        return flipped(super()._prepare_inputs(inputs))


class Steps(ZOTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().training_step(model, flipped(inputs), num_items_in_batch)


class Behind(transformers.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        self.calls = getattr(self, "calls", 0) + 1
        self.compute_loss(model, dict(inputs))  # a look at the loss, on other labels
        with torch.no_grad():
            return super().training_step(model, flipped(inputs), num_items_in_batch)


class StepsBehind(ZOTrainerMixin, Behind):
    pass


@pytest.mark.parametrize("kind", [Prepares, Steps, StepsBehind])
def test_what_a_subclass_does_to_a_batch_is_done_once(tmp_path, kind):
    rows = [{**row, "labels": 1 - row["labels"]} for row in sentences()]
    expected = make_trainer(tmp_path / "a", data=rows, options={**SHORT, **CONSTANT})
    trainer = make_trainer(tmp_path / "b", kind=kind, options={**SHORT, **CONSTANT})
    expected.train()
    trainer.train()
    assert trainer.calls == 2
    assert digest(trainer) == digest(expected)


def test_methods_of_one_trainer_are_called(tmp_path):
    rows = [{**row, "labels": 1 - row["labels"]} for row in sentences()]
    expected = make_trainer(tmp_path / "a", data=rows, options=SHORT)
    trainer = make_trainer(tmp_path / "b", options=SHORT)
    step, compute = trainer.training_step, trainer.compute_loss
    trainer.training_step = lambda model, inputs, items=None: step(model, flipped(inputs), items)
    trainer.compute_loss = lambda *args, **rest: compute(*args, **rest)
    own = dict(vars(trainer))
    expected.train()
    trainer.train()
    assert digest(trainer) == digest(expected)
    assert vars(trainer)["training_step"] is own["training_step"]
    assert vars(trainer)["compute_loss"] is own["compute_loss"]
    assert "create_optimizer" not in vars(trainer)


class NoStep(transformers.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        return torch.zeros(())


class Twice(transformers.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        super().training_step(model, dict(inputs), num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (NoStep, r"NoStep.training_step does not come to Trainer's own.*call super\(\).training_step"),
        (Twice, "Twice.training_step asks for a backward pass of its own"),
    ],
)
def test_a_step_that_cannot_be_taken_is_refused_by_name(tmp_path, behind, words):
    kind = type("ZO", (ZOTrainerMixin, behind), {})
    with pytest.raises(gl.BadInput, match=words):
        make_trainer(tmp_path, kind=kind, options=SHORT).train()


def test_classes_that_use_gradients_are_refused_when_they_are_made(tmp_path):
    class Penalised(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.add_(1e-3 * p)
            return loss

    class Own(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss

    class Optimized(transformers.Trainer):
        @staticmethod
        def get_optimizer_cls_and_kwargs(args, model=None):
            return torch.optim.SGD, {"lr": 1.0}

    for behind, words in (
        (Penalised, r"Penalised.training_step uses gradients \(grad\)"),
        (Own, r"Own.training_step uses gradients \(backward\)"),
        (Optimized, "Optimized.get_optimizer_cls_and_kwargs would have no effect.*zo="),
    ):
        with pytest.raises(gl.BadInput, match=words):
            make_trainer(tmp_path, kind=type("ZO", (ZOTrainerMixin, behind), {}))


# ---------------------------------------------------------------------------------------------------------------
# batches


class Custom(collections.abc.Mapping):
    def __init__(self, values):
        self.values_ = dict(values)

    def __getitem__(self, name):
        return self.values_[name]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)

    def pop(self, name):
        return self.values_.pop(name)


@dataclasses.dataclass
class Record:
    input_ids: torch.Tensor
    labels: torch.Tensor
    extra: dict

    def __len__(self):
        return 2

    def __contains__(self, name):
        return hasattr(self, name)

    def pop(self, name):
        self.extra.pop("once")
        return self.__dict__.pop(name)


Pair = collections.namedtuple("Pair", ("inputs", "labels"))
KINDS = {
    "BatchEncoding": transformers.BatchEncoding,
    "OrderedDict": collections.OrderedDict,
    "Mapping": Custom,
    "list": lambda batch: [batch["input_ids"], {"labels": batch["labels"]}],
    "tuple": lambda batch: (batch["input_ids"], {"labels": batch["labels"]}),
    "dataclass": lambda batch: Record(batch["input_ids"], batch["labels"], {"once": 1}),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", KINDS)
def test_a_batch_keeps_its_type_and_its_labels(tmp_path, name):
    types = set()

    class Own(ZOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            types.add(type(inputs))
            if isinstance(inputs, (list, tuple)):
                return model(input_ids=inputs[0], labels=inputs[1].pop("labels")).loss
            labels = inputs.pop("labels")
            ids = inputs.input_ids if isinstance(inputs, Record) else inputs["input_ids"]
            return model(input_ids=ids, labels=labels).loss

        def floating_point_ops(self, inputs):
            return 0

    make = KINDS[name]
    trainer = make_trainer(
        tmp_path / "a",
        kind=Own,
        options={**SHORT, "remove_unused_columns": False},
        data_collator=lambda rows: make(transformers.default_data_collator(rows)),
    )
    expected = make_trainer(tmp_path / "b", options=SHORT)
    trainer.train()
    expected.train()
    assert types == {type(make(transformers.default_data_collator(sentences(2))))}
    assert digest(trainer) == digest(expected)


def test_copies_of_batches_share_tensors_alone():
    batch = collections.defaultdict(list, a=[{"b": torch.ones(1)}], c=Pair((1, [2]), None))
    copied = fresh(batch)
    copied["a"][0].pop("b")
    copied["c"].inputs[1].append(3)
    assert (batch["a"][0]["b"], batch["c"].inputs) == (torch.ones(1), (1, [2]))
    assert (type(copied), type(copied["c"]), copied.default_factory) == (collections.defaultdict, Pair, list)
    value = torch.ones(1)
    assert fresh({"x": value})["x"] is value


# ---------------------------------------------------------------------------------------------------------------
# the loss is a function


class Noisy(ZOTrainer):
    """Draws from all global generators, and puts dropout on."""

    def compute_loss(self, model, inputs, **rest):
        model.train()
        self.drawn = [*getattr(self, "drawn", []), (random.random(), np.random.rand(), float(torch.rand(())))]  # noqa: NPY002
        return super().compute_loss(model, inputs, **rest) * (1 + self.drawn[-1][0])


def test_both_losses_of_a_step_see_the_same_noise_and_a_resumed_run_too(tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 2, **CONSTANT}
    rest = {"kind": Noisy, "options": options, "zo_options": {"eps": 1e-2}}
    trainer = make_trainer(tmp_path, classifier(hidden_dropout_prob=0.5), **rest)
    trainer.train()
    draws = collections.Counter(trainer.drawn)
    assert len(draws) == 8  # two micro-batches a step
    assert min(draws.values()) == 2
    again = make_trainer(tmp_path, classifier(2, hidden_dropout_prob=0.5), **rest)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert digest(again) == digest(trainer)


def test_a_loss_that_draws_its_own_batch_is_refused(tmp_path):
    class Draws(ZOTrainer):
        def compute_loss(self, model, inputs, **rest):
            self.batches = getattr(self, "batches", None) or iter(self.get_train_dataloader())
            return super().compute_loss(model, dict(next(self.batches)), **rest)

    with pytest.raises(gl.BadInput, match="another loss when it is called again"):
        make_trainer(tmp_path, kind=Draws, options=SHORT).train()


def test_autocast_around_a_step_is_that_of_the_loss_alone(tmp_path):
    class Casts(ZOTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().training_step(model, inputs, num_items_in_batch)

    for zo_options in ({"engine": "in-place"}, {"engine": "stream"}):
        trainer = make_trainer(tmp_path, kind=Casts, options={**SHORT, **CONSTANT}, zo="lozo", zo_options=zo_options)
        trainer.train()
        model = classifier()
        gl.lozo(model.named_parameters(), lr=1e-2, seed=42).replay(moves(tmp_path))
        assert all(map(torch.equal, model.parameters(), trainer.model.parameters()))
        assert any(move.coeffs[0] for move in moves(tmp_path))


# ---------------------------------------------------------------------------------------------------------------
# weights that are not yet written


class Reads(transformers.TrainerCallback):
    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **rest):
        self.weights[state.global_step] = {name: p.clone() for name, p in model.state_dict().items()}


def test_deferred_updates_are_written_before_anybody_looks(tmp_path):
    seen = []
    for defer in (False, True):
        callback = Reads()
        trainer = make_trainer(
            tmp_path / str(defer),
            options={"max_steps": 3, **CONSTANT},
            callbacks=[callback],
            zo_options={"defer": defer},
        )
        trainer.train()
        seen.append(callback.weights)
    for step, weights in seen[0].items():
        assert all(torch.equal(weights[name], seen[1][step][name]) for name in weights)


class Interrupts(transformers.TrainerCallback):
    def on_log(self, args, state, control, **rest):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_deferred_updates_are_written_when_a_run_ends_in_any_way(tmp_path):
    hashes = []
    for defer in (False, True):
        trainer = make_trainer(
            tmp_path / str(defer), options=CONSTANT, callbacks=[Interrupts()], zo_options={"defer": defer}
        )
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        hashes.append(digest(trainer))
        assert "RunEvents" not in trainer.callback_handler.callback_list
    assert hashes[0] == hashes[1]


class Freezes(transformers.TrainerCallback):
    weights = None

    def on_step_begin(self, args, state, control, model=None, **rest):
        if state.global_step >= 2 and self.weights is None:
            for name, p in model.named_parameters():
                p.requires_grad_(name.startswith("classifier"))
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}


def test_what_a_callback_freezes_stays(tmp_path):
    callback, options = Freezes(), {"max_steps": 6, "save_steps": 3, **CONSTANT}
    trainer = make_trainer(tmp_path, callbacks=[callback], options=options)
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, callback.weights[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    again = make_trainer(tmp_path, classifier(2), callbacks=[Freezes()], options=options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert digest(again) == digest(trainer)
    with pytest.raises(gl.BadInput, match=r"does not give the weights of its run.*load the saved ones"):
        rebuild(classifier(), tmp_path / "checkpoint-6")
    with pytest.raises(gl.BadInput, match=r"frozen or unfrozen after the run began.*leave ledger_only out"):
        make_trainer(tmp_path / "bare", callbacks=[Freezes()], options=options, ledger_only=True).train()


class AddsGroup(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, optimizer=None, **rest):
        more = torch.nn.Parameter(torch.zeros(2))
        optimizer.add_param_group({"params": [("more", more)], "lr": 1e-3})


@pytest.mark.filterwarnings("ignore:1 parameter")
def test_a_group_that_the_ledger_does_not_know_is_refused(tmp_path):
    with pytest.raises(gl.BadInput, match=r"group was added after the run began.*create_optimizer"):
        make_trainer(tmp_path, callbacks=[AddsGroup()], options=SHORT).train()
    assert len(moves(tmp_path)) == 1
