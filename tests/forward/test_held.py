"""What a closure holds, and which closures differ in their data only."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from gradless.forward.held import PARTS, NotRecordable, held

MODEL = torch.nn.Linear(2, 1)
SHARED = torch.ones(2)


@dataclasses.dataclass
class Batch:
    rows: torch.Tensor
    weight: float = 1.0


class Task:
    def __init__(self, batch):
        self.model, self.batch = MODEL, batch

    def loss(self):
        return self.model(self.batch).sum()


def variable(batch):
    return lambda: MODEL(batch).sum()


def keywords(batch):
    inputs = {"input": batch}
    return lambda: MODEL(**inputs).sum()


def data_class(batch):
    own = Batch(batch)
    return lambda: MODEL(own.rows).sum()


def bound(batch):
    return functools.partial(torch.nn.functional.linear, batch, MODEL.weight)


def inner(batch):
    def loss():
        return MODEL(batch).sum()

    return lambda: loss() * 2


@pytest.mark.parametrize("make", [variable, keywords, data_class, bound, inner])
def test_closures_of_other_data_are_alike(make):
    one, other = torch.zeros(3, 2), torch.ones(3, 2)
    first, second = held(make(one), ()), held(make(other), ())
    assert first.key == second.key
    assert [id(tensor) for tensor in first.tensors] == [id(one)]
    assert [id(tensor) for tensor in second.tensors] == [id(other)]
    assert held(make(torch.zeros(4, 2)), ()).key != first.key


def test_attributes_of_a_method_s_object_and_globals_are_data():
    batch, task = torch.zeros(3, 2), Task(torch.zeros(3, 2))
    assert held(task.loss, ()).tensors[0] is task.batch
    tensors = held(lambda: MODEL(batch + SHARED).sum(), ()).tensors
    assert {id(tensor) for tensor in tensors} == {id(batch), id(SHARED)}


def test_other_code_numbers_and_models_are_told_apart():
    def scaled(factor, model=MODEL):
        batch = torch.zeros(3, 2)
        return lambda: model(batch).sum() * factor

    keys = [held(closure, ()).key for closure in (scaled(1), scaled(2), scaled(1, torch.nn.Linear(2, 1)))]
    assert len(set(keys)) == 3
    assert held(scaled(1), ()).key == keys[0] != held(variable(torch.zeros(3, 2)), ()).key


def test_a_closure_that_holds_a_data_set_is_refused():
    rows = [torch.zeros(1) for _ in range(PARTS)]
    with pytest.raises(NotRecordable, match="give it the tensors of its batch"):
        held(lambda: rows[0].sum(), ())
