"""The engine ``auto``: measured once on the closure of a step, remembered, and no other numbers than by name."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import gradless as gl
from engine_helpers import race
from gradless.errors import BadInput
from gradless.forward import engine_memory, engine_trial
from gradless.forward.engines import ENGINES, MEASURED, REMEMBERED, EngineChoice


def model(width=8):
    net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel()) + i).view(p.shape))
    return net


def closure_of(net):
    return lambda: net(torch.eye(net[0].in_features)).square().mean()


def stepped(width=8, make=gl.mezo, **options):
    net = model(width)
    opt = make(net.named_parameters(), lr=1e-2, eps=1e-2, **options)
    opt.step(closure_of(net))
    return opt


def bits(opt):
    return [leaf.param.tolist() for leaf in opt.leaves]


@pytest.mark.parametrize(
    ("stream", "dual", "engine", "words"),
    [
        (1.31, 1.0, "dual", "dual, measured 1.31 x as fast as stream on this machine"),
        (1.0, 1.2, "stream", "stream, measured 1.20 x as fast as dual on this machine"),
        (1.01, 1.0, "stream", "stream, measured as fast as dual on this machine, with less memory"),
        (1.0, 1.01, "stream", "stream, measured as fast as dual on this machine, with less memory"),
    ],
)
def test_the_faster_engine_is_taken_and_a_tie_goes_to_the_smaller_one(tmp_path, stream, dual, engine, words):
    with race(tmp_path, stream=stream, dual=dual) as trial:
        opt = stepped()
    assert (opt.engine, str(opt.evaluator.choice)) == (engine, words)
    assert opt.evaluator.choice.how == MEASURED
    assert trial.calls.count("stream") == trial.calls.count("dual") <= 1 + engine_trial.ROUNDS


def test_a_clear_difference_takes_few_rounds_and_slow_steps_take_one(tmp_path):
    with race(tmp_path / "a", stream=3.0, dual=1.0) as trial:
        stepped()
        assert trial.calls == ["stream", "dual", "stream", "dual", "dual", "stream"]
    with race(tmp_path / "b", stream=50.0, dual=49.0) as trial:
        stepped()
        assert trial.calls == ["stream", "dual", "stream", "dual"]


@pytest.mark.parametrize("make", [gl.mezo, gl.lozo, gl.mezo_one_sided])
@pytest.mark.parametrize("winner", ["stream", "dual"])
def test_a_run_is_bit_for_bit_the_one_that_names_its_engine(tmp_path, make, winner):
    costs = {"stream": 1.0, "dual": 1.0} | {winner: 0.5}
    with race(tmp_path, **costs):
        chosen = stepped(make=make, queries=2, defer=True)
    named = stepped(make=make, queries=2, defer=True, engine=winner)
    for opt in (chosen, named):
        opt.flush()
    assert chosen.engine == winner
    assert bits(chosen) == bits(named)
    assert (chosen.forwards, chosen.check_forwards) == (named.forwards, named.check_forwards)
    assert chosen.evaluator.trial_forwards > 0 == named.evaluator.trial_forwards


def test_a_choice_is_made_once_a_machine_and_shape(tmp_path):
    with race(tmp_path) as trial:
        assert stepped().engine == "dual"
        trial.calls.clear()
        assert stepped().evaluator.choice.how == REMEMBERED  # in this process
        trial.restart()
        again = stepped()
        assert (again.engine, again.evaluator.choice.how) == ("dual", REMEMBERED)
        assert not trial.calls
        assert str(again.evaluator.choice).endswith("on this machine earlier")
        assert len(list((tmp_path / "engines").iterdir())) == 1
        stepped(width=40)
        stepped(make=gl.mezo_gaussian)
        stepped(queries=3)
        assert len(list((tmp_path / "engines").iterdir())) == 4
        (stored, *_) = (tmp_path / "engines").glob("*.json")
        assert set(json.loads(stored.read_text())["key"]) >= {"device", "threads", "torch", "gradless", "leaves"}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"ratio": "nan", "key": {}}', '{"ratio": -1}', "\0\0", "[" * 9999])
def test_a_damaged_file_is_measured_anew(tmp_path, damage):
    with race(tmp_path) as trial:
        stepped()
        (path,) = (tmp_path / "engines").iterdir()
        path.write_text(damage)
        trial.restart()
        assert stepped().evaluator.choice.how == MEASURED
        assert json.loads(path.read_text())["ratio"] == 2.0


def test_without_a_cache_folder_a_process_remembers_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with race(tmp_path / "file") as trial:
        stepped()
        trial.calls.clear()
        assert stepped().evaluator.choice.how == REMEMBERED
        assert not trial.calls
        with monkeypatch.context() as homeless:  # undone before what `race` has set, so that none of it stays
            homeless.delenv("GRADLESS_CACHE")
            homeless.delenv("XDG_CACHE_HOME", raising=False)
            homeless.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
            assert stepped(width=9).evaluator.choice.how == MEASURED


def test_old_files_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_memory, "MOST", 3)
    with race(tmp_path):
        for threads in range(5):
            engine_memory.remember({"threads": threads}, 1.5, 2)
        assert len(list((tmp_path / "engines").iterdir())) == 3
        engine_memory.forget()
        assert engine_memory.recall({"threads": 4}) == 1.5


def test_where_dual_has_no_room_it_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_trial, "free_memory", lambda device: 1000)
    with race(tmp_path) as trial:
        opt = stepped()
    assert opt.engine == "stream"
    assert not trial.calls
    assert "dual would take about 0.0 GB, and 0.0 GB are free" in str(opt.evaluator.choice)


@pytest.mark.parametrize("cause", ["memory", "item"])
def test_what_dual_cannot_do_is_no_error(tmp_path, recwarn, cause):
    net = model()

    def loss():
        value = closure_of(net)()
        if cause == "item":
            return value.item()
        if torch._C._functorch.is_batchedtensor(value):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return value

    with race(tmp_path):
        opt = gl.mezo(net.named_parameters(), lr=1e-2, eps=1e-2)
        opt.step(loss)
        assert not (tmp_path / "engines").exists()  # another closure of this shape may be served
    assert opt.engine == "stream"
    assert {"memory": "CUDA out of memory", "item": "item()"}[cause] in opt.evaluator.choice.reason
    assert not recwarn.list


def test_memory_that_runs_out_later_makes_it_stream(tmp_path):
    net, full = model(), False

    def loss():
        value = closure_of(net)()
        if full and torch._C._functorch.is_batchedtensor(value):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return value

    with race(tmp_path):
        opt = gl.mezo(net.named_parameters(), lr=1e-2, eps=1e-2)
        opt.step(loss)
    assert opt.engine == "dual"
    full = True
    with pytest.warns(UserWarning, match="CUDA out of memory"):
        opt.step(loss)
    assert (opt.engine, opt.forwards) == ("stream", 4 + 2)
    named = gl.mezo(net.named_parameters(), lr=1e-2, eps=1e-2, engine="dual")
    full = False
    named.step(loss)
    full = True
    with pytest.raises(torch.OutOfMemoryError):  # which was asked for
        named.step(loss)


@pytest.mark.parametrize("make", [gl.forward_gradient, gl.fo_sgd])
def test_where_no_points_are_evaluated_nothing_is_measured(tmp_path, make):
    with race(tmp_path) as trial:
        net = model()
        opt = make(net.named_parameters(), lr=1e-2)
        opt.step(closure_of(net))
    assert opt.engine == "stream"
    assert not trial.calls


def test_a_closure_that_may_not_be_a_function_is_called_no_more_than_needed(tmp_path):
    net, calls = model(), []

    def loss():
        calls.append(1)
        return closure_of(net)()

    with race(tmp_path):
        opt = gl.mezo(net.named_parameters(), lr=1e-2, check=False)
        opt.step(loss)
    assert (len(calls), opt.engine) == (2, "stream")
    assert "check=False" in str(opt.evaluator.choice)


def test_the_generators_are_left_where_one_evaluation_leaves_them(tmp_path):
    def draws(**options):
        torch.manual_seed(5)
        net = nn.Sequential(model(), nn.Dropout(0.5))
        opt = gl.mezo(net.named_parameters(), lr=1e-2, eps=1e-2, **options)
        opt.step(lambda: net(torch.eye(8)).square().mean())
        return torch.rand(2).tolist(), bits(opt)

    with race(tmp_path, stream=1.0, dual=2.0):
        assert draws() == draws(engine="stream")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_variable_fixes_the_engine(tmp_path, engine):
    with race(tmp_path) as trial, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADLESS_ENGINE", engine)
        opt = stepped()
    assert opt.engine == engine
    assert not trial.calls
    assert bits(opt) == bits(stepped(engine=engine))


def test_an_unknown_engine_in_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv("GRADLESS_ENGINE", "duel")
    with pytest.raises(BadInput, match="unknown engine in GRADLESS_ENGINE 'duel': did you mean 'dual'"):
        stepped()


def test_states_and_copies_keep_the_choice(tmp_path):
    with race(tmp_path) as trial:
        opt = stepped()
        trial.costs["dual"] = 9.0  # another measurement would end otherwise
        engine_memory.forget()
        for path in (tmp_path / "engines").iterdir():
            path.unlink()
        net = model()
        again = gl.mezo(net.named_parameters(), lr=1e-2, eps=1e-2)
        again.load_state_dict(opt.state_dict())
        assert again.engine == copy.deepcopy(opt).engine == "dual"
        state = opt.state_dict()
        del state["gradless"]["engine"]  # as of older releases
        older = gl.mezo(model().named_parameters(), lr=1e-2, eps=1e-2)
        older.load_state_dict(state)
        assert older.engine == "auto"


@pytest.mark.parametrize("values", [None, [], {}, {"engine": "fast"}, {"engine": "auto"}])
def test_what_is_no_choice_is_none(values):
    assert EngineChoice.from_json(values) is None


def test_a_choice_survives_json():
    for choice in (EngineChoice("dual", MEASURED, 1.5, "", 3), EngineChoice("stream", reason="so")):
        assert EngineChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    assert EngineChoice.from_json({"engine": "dual", "ratio": "x", "step": "y"}) == EngineChoice("dual")
