"""`torch.optim.Optimizer`, method by method: each does what torch documents, or refuses in one sentence."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import gradless as gl
from gradless import ledger
from gradless.forward.engines import ENGINES
from gradless.integrations.window import Window
from torch_contract_helpers import Net, X, equal, loss_of, named, refused, weights

# ---------------------------------------------------------------------------------------------------------------
# parameters and groups


def shared() -> torch.Tensor:
    return torch.ones(1).expand(4).requires_grad_()


NO_PARAMETERS = {
    "a module": lambda: Net(),
    "a dict": lambda: dict(named(Net())),
    "a tensor": lambda: torch.ones(3),
    "nothing": lambda: None,
    "names that are no text": lambda: [(1, p) for p in Net().parameters()],
    "no tensors": lambda: [("a", 3)],
    "no names": lambda: Net().parameters(),
    "mixed": lambda: [{"params": named(Net())}, ("a", nn.Parameter(torch.ones(1)))],
    "a group of nothing": lambda: [{"lr": 0.1}],
    "a bare tensor in a group": lambda: [{"params": nn.Parameter(torch.ones(1))}],
    "an empty group": lambda: [{"params": []}],
    "two models": lambda: [*named(Net()), *named(Net())],
    "two models in groups": lambda: [{"params": named(Net())}, {"params": Net().named_parameters()}],
    "expanded": lambda: [("e", shared())],
    "overlapping": lambda: [("e", torch.ones(5).as_strided((3, 2), (1, 1)).requires_grad_())],
    "complex": lambda: [("e", nn.Parameter(torch.ones(2, dtype=torch.complex64)))],
    "float64": lambda: [("e", nn.Parameter(torch.ones(2, dtype=torch.float64)))],
    "sparse": lambda: [("e", nn.Parameter(torch.eye(2).to_sparse()))],
    "computed": lambda: [("e", nn.Parameter(torch.eye(2)) * 2)],
    **{
        f"a group with {key} = {value}": lambda key=key, value=value: [{"params": named(Net()), key: value}]
        for key, value in (
            *(("weight_decy", 0.1), ("eps", 1e-3), ("betas", (0.9, 0.9)), ("lr", -1.0), ("lr", math.nan)),
            *(("lr", "fast"), ("lr", None), ("weight_decay", -1), ("weight_decay", math.inf), ("lr_scale", -2)),
        )
    },
}


@pytest.mark.parametrize("case", NO_PARAMETERS)
def test_parameters_that_cannot_be_tuned_are_refused(case):
    refused(lambda: gl.mezo(NO_PARAMETERS[case]()))


def test_the_sentences_name_the_fix():
    refused(lambda: gl.mezo(NO_PARAMETERS["two models"]()), r"'layers.0.weight'.*prefix")
    refused(lambda: gl.mezo(NO_PARAMETERS["a group with weight_decy = 0.1"]()), "did you mean 'weight_decay'")


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_from_generators_empty_groups_and_parameters_of_size_zero(engine):
    model, empty = Net(), nn.Parameter(torch.ones(0, 4))
    groups = [{"params": []}, {"params": model.named_parameters(), "lr": 0}, {"params": ("empty", empty), "name": "x"}]
    opt = gl.lozo(groups, lr=0.1, rank=2, engine=engine, defer=True)
    initial = weights(model)
    for _ in range(2):
        opt.step(lambda: torch.cat([model(X), model.head(empty)]).square().mean())
    opt.flush()
    assert equal(weights(model), initial)
    assert opt.learning_rates() == (0.1, 0.0, 0.1)
    assert gl.mezo(copy.deepcopy(opt).param_groups).tuned == opt.tuned


def test_two_models_with_prefixes_both_move():
    one, two = Net(), Net()
    both = [(f"{prefix}.{name}", p) for prefix, m in (("one", one), ("two", two)) for name, p in m.named_parameters()]
    opt = gl.mezo(both, lr=0.1)
    initial = weights(one) + weights(two)
    opt.step(lambda: loss_of(one)() + loss_of(two)())
    assert not any(map(torch.equal, weights(one) + weights(two), initial))


def test_a_parameter_that_is_not_contiguous_moves_like_one_that_is():
    ends = []
    for contiguous in (True, False):
        weight = torch.arange(12.0).view(3, 4).T / 10
        weight = (weight.contiguous() if contiguous else weight).requires_grad_()
        opt = gl.mezo([("w", weight)], lr=0.1)
        for _ in range(3):
            opt.step(lambda weight=weight: (weight @ X[:, :3].T).square().mean())
        ends.append(weight.detach())
    assert torch.equal(*ends)


# ---------------------------------------------------------------------------------------------------------------
# what changes after construction


MAKERS = {
    "mezo": gl.mezo,
    "deferred": functools.partial(gl.mezo, defer=True),
    "adam": gl.zo_adam,
    "masks": functools.partial(gl.zo_sparse, group="global"),
    "backprop": gl.fo_sgd,
}


@pytest.mark.few(5)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_freezing_and_adding_before_the_first_step_equal_construction_with_it(make, engine):
    ends = []
    for late in (False, True):
        model = Net()
        model.head.bias.requires_grad_(late)
        groups = [{"params": named(model, slice(3)), "lr": 0.05}, {"params": named(model, slice(3, None))}]
        opt = make(groups[: 2 - late], lr=0.1, engine=engine)
        if late:
            opt.add_param_group({"params": iter(groups[1]["params"])})
            model.head.bias.requires_grad_(False)
        for _ in range(3):
            opt.step(loss_of(model))
        opt.flush()
        assert "head.bias" not in opt.tuned
        ends.append(weights(model))
    assert equal(*ends)


@pytest.mark.parametrize("defer", [False, True])
def test_freezing_unfreezing_and_adding_between_steps_are_followed(defer):
    model = Net()
    model.head.bias.requires_grad_(False)
    opt = gl.mezo(named(model, slice(2, None)), lr=0.1, defer=defer)
    states = [dict(zip(dict(named(model)), weights(model), strict=True))]

    def step() -> set[str]:
        opt.step(loss_of(model))
        opt.flush()
        states.append(dict(zip(dict(named(model)), weights(model), strict=True)))
        return {name for name, p in states[-1].items() if not torch.equal(p, states[-2][name])}

    second = {"layers.1.weight", "layers.1.bias"}
    assert step() == {*second, "head.weight"}
    model.head.weight.requires_grad_(False)
    model.head.bias.requires_grad_(True)
    assert step() == {*second, "head.bias"}
    opt.add_param_group({"params": named(model, slice(2))})
    assert step() == {*second, "head.bias", "layers.0.weight", "layers.0.bias"}
    model.requires_grad_(False)
    refused(step, "nothing to tune")


def test_groups_that_cannot_be_added_leave_the_optimizer_as_it_was():
    model = Net()
    opt = gl.mezo(named(model), lr=0.1)
    for group in (
        {"params": Net().named_parameters()},
        {"params": [("x", nn.Parameter(torch.ones(2, dtype=torch.float64)))]},
        {"params": [("x", nn.Parameter(torch.ones(2)))], "lr": -1},
        [1],
    ):
        refused(lambda group=group: opt.add_param_group(group))
    assert len(opt.param_groups) == 1
    opt.step(loss_of(model))


def test_a_group_that_is_added_within_a_ledger_is_refused(tmp_path):
    model = Net()
    opt = gl.mezo(named(model, slice(2)), lr=0.1)
    book = ledger.Ledger(tmp_path / "ledger", {"groups": 1})
    opt.step_with(loss_of(model), book.append)
    opt.add_param_group({"params": named(model, slice(2, None))})
    initial = weights(model)
    refused(lambda: opt.step_with(loss_of(model), book.append), "before the run begins")
    assert equal(weights(model), initial)
    book.close()
    replayed = gl.mezo([{"params": named(Net())}, {"params": [("x", nn.Parameter(torch.ones(1)))]}])
    refused(lambda: replayed.replay(ledger.read(tmp_path / "ledger").moves), "groups of the run")


def test_converted_and_replaced_parameters():
    model = Net()
    opt = gl.mezo(named(model), lr=0.01)
    opt.step(loss_of(model))
    model.head.weight.data = model.head.weight.data + 1
    opt.step(loss_of(model))
    model.to(torch.bfloat16)
    opt.step(loss_of(model))
    assert all(leaf.param.dtype == torch.bfloat16 for leaf in opt.leaves)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with pytest.warns(UserWarning, match=r"head.weight.*not read by the closure any more"):
        opt.step(loss_of(model))
    for module in (*model.layers, model.head):
        for name in ("weight", "bias"):
            setattr(module, name, nn.Parameter(getattr(module, name).detach().clone()))
    model.to(torch.float64)
    other = Net()
    opt = gl.mezo(named(other), lr=0.01)
    opt.step(loss_of(other))
    refused(lambda: opt.step(loss_of(model)), "reads none")
    other.to(torch.float64)
    refused(lambda: opt.step(loss_of(other)), "float64")
    refused(lambda: gl.fo_sgd(named(Net())).step(loss_of(Net())), "does not depend")


def test_a_branch_that_is_taken_later_is_found_below_python_too():
    a, b = nn.Linear(4, 2), nn.Linear(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(b, torch.zeros(1, 4), check_trace=False)
    both = [*((f"a.{n}", p) for n, p in a.named_parameters()), *((f"b.{n}", p) for n, p in b.named_parameters())]
    later = [False]

    def closure():
        return (a(X) + scripted(X) if later[0] else a(X)).square().mean()

    opt = gl.mezo(both, lr=0.0, eps=1e-2)
    with pytest.warns(UserWarning, match="not read by the closure"):
        opt.step(closure)
    opt.step(closure)
    later[0] = True
    with pytest.warns(UserWarning, match="perturbed in place"):
        probe = opt.probe(closure)
    exact = gl.mezo(both, eps=1e-2, engine="in-place")
    exact.t = opt.t
    assert probe.sketch.coeffs == pytest.approx(exact.probe(closure).sketch.coeffs, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------
# copies, states and hooks


@pytest.mark.few(6)
@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [*MAKERS.values(), gl.mezo_momentum], ids=[*MAKERS, "momentum"])
def test_a_deep_copy_steps_to_the_same_bits_and_alone(make, engine, with_model):
    model = Net()
    opt = make(named(model), lr=0.1, engine=engine)
    opt.register_step_pre_hook(lambda *_: pytest.fail("hooks stay behind"))
    opt._optimizer_step_pre_hooks.clear()
    lr_scheduler.ExponentialLR(opt, 1.0)  # wraps step
    for _ in range(2):
        opt.step(loss_of(model))
    if with_model:
        other, twin = copy.deepcopy((model, opt))
    else:
        twin, other = copy.deepcopy(opt), Net()
        for name, p in zip(
            dict(named(model)), (p for group in twin.param_groups for p in group["params"]), strict=True
        ):
            setattr(other.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], p)
    unmoved = weights(model)
    for _ in range(3):
        twin.step(loss_of(other))
    twin.flush()
    assert equal(weights(model), unmoved)
    for _ in range(3):
        opt.step(loss_of(model))
    opt.flush()
    assert equal(weights(model), weights(other))
    assert (twin.t, twin.forwards, twin.seed) == (opt.t, opt.forwards, opt.seed)


def test_what_cannot_be_pickled_says_what_to_save():
    opt = gl.mezo(named(Net()))
    window = Window(opt, lambda update: None)
    step = Window.step
    for call in (lambda: pickle.dumps(opt), lambda: copy.copy(opt), lambda: torch.save(opt, io.BytesIO())):
        refused(call, "state_dict")
    refused(lambda: copy.deepcopy(window), "inner")
    assert Window.step is step


def test_step_hooks_fire_around_every_kind_of_step():
    model, seen = Net(), []
    opt = gl.mezo(named(model), lr=0.1)
    window = Window(opt, lambda update: None)
    note = lambda what: lambda *_: seen.append(what)  # noqa: E731
    for one in (opt, window):
        one.register_step_pre_hook(note("before"))
        one.register_step_post_hook(note("after"))
    handles = [register_optimizer_step_pre_hook(note("all")), register_optimizer_step_post_hook(note("end"))]
    try:
        opt.step(loss_of(model))
        opt.step_with(loss_of(model))
        window.gather(loss_of(model))
        window.probe()
        window.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["all", "before", "after", "end"] * 3
    opt.register_step_pre_hook(lambda one, args, kwargs: ((one, loss_of(model)), {}))
    opt.step()


def test_hooks_of_states_see_the_whole_state():
    model, seen = Net(), []
    opt = gl.mezo(named(model), lr=0.1, seed=2)
    opt.step(loss_of(model))
    for one in (opt, Window(opt, lambda update: None)):
        one.register_state_dict_pre_hook(lambda one: seen.append("before"))
        one.register_state_dict_post_hook(lambda one, state: {**state, "more": state["gradless"]["t"]}, prepend=True)
        state = one.state_dict()
        assert state["more"] == 1
        assert state.keys() == {"state", "param_groups", "gradless", "more"}
    assert seen == ["before", "before", "before"]  # the window's, and the optimizer's in both
    other = gl.mezo(named(Net()), lr=0.1, seed=2)
    other.register_load_state_dict_pre_hook(lambda one, state: {**state, "gradless": {**state["gradless"], "t": 7}})
    other.register_load_state_dict_post_hook(lambda one: seen.append(one.t))
    window = Window(other, lambda update: None)
    window.load_state_dict(state)
    assert seen[-1] == other.t == 7
    assert state["gradless"]["t"] == 1
    assert window.param_groups is other.param_groups
    window.add_param_group({"params": [("x", nn.Parameter(torch.ones(1)))]})
    assert len(other.param_groups) == 2


def test_states_of_others_are_refused():
    state = gl.mezo(named(Net())).state_dict()
    refused(
        lambda: gl.mezo(named(Net())).load_state_dict(torch.optim.SGD(Net().parameters()).state_dict()), "written by"
    )
    refused(lambda: gl.mezo(named(Net())).load_state_dict({**state, "gradless": {"seed": 0}}), "written by")
    refused(lambda: gl.mezo(named(Net())[::-1]).load_state_dict(state), "another order")
    refused(lambda: gl.mezo([("x", nn.Parameter(torch.ones(1)))]).load_state_dict(state), "'layers.0.weight'")


def test_gradients_of_others_are_cleared():
    model = Net()
    opt = gl.mezo(named(model))
    loss_of(model)().backward()
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert "lr: 1e-06" in repr(opt)
