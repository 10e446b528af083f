"""Chunks of logits give what all of them give, in one forward of the body, whatever the model and the engine."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import architectures
import gradless as gl
from gradless import kernels
from gradless.lm import objectives, schemes, scoring, tiny
from gradless.lm.encode import encode
from scoring_helpers import model, several

CHUNK = 7  # states
ENGINES = ("stream", "dual", "in-place")


def closure_of(lm: Any, objective: str = "lm", repeat: int = 1) -> Any:
    chosen = objectives.OBJECTIVES[objective]
    rows = [encode(lm, example) for example in architectures.prompts(lm)] * repeat
    batches = objectives.prepare(lm, chosen, rows)
    return torch.no_grad()(lambda: objectives.loss_over(lm, chosen, batches))


def limit_logits(patch: pytest.MonkeyPatch, lm: Any, states: int = CHUNK) -> None:
    patch.setattr(scoring, "LOGITS_BYTES", 4 * states * lm.head.weight.shape[0])


def probes(lm: Any, closure: Any) -> dict[str, tuple[float, float]]:
    """Loss and difference of losses of a probe by every engine."""
    values = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # engines that give way
        for engine in ENGINES:
            probe = architectures.optimizer(lm, engine).probe(closure)
            values[engine] = (probe.loss, probe.sketch.coeffs[0] * 2 * architectures.EPS)
    return values


def check(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked and whole, plain and by every engine; the chunked body runs once."""
    closure, shapes, bodies = closure_of(lm), [], []
    whole, expected = float(closure()), probes(lm, closure)
    limit_logits(monkeypatch, lm)
    closure()  # the body is looked for
    hooks = [lm.head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[0]))]
    embeddings = lm.model.get_input_embeddings()
    hooks.append(embeddings.register_forward_hook(lambda *_: bodies.append(1)))
    assert float(closure()) == pytest.approx(whole, rel=1e-5)
    for hook in hooks:
        hook.remove()
    assert max(shapes) == CHUNK
    assert len(shapes) > 2
    assert len(bodies) == 1
    for engine, values in probes(lm, closure).items():
        assert values == pytest.approx(expected[engine], rel=1e-5, abs=architectures.ROUNDING * max(1, whole))
        assert values[1]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [name for name in architectures.CAUSAL if name not in architectures.READ_AHEAD])
def test_chunks_give_what_all_logits_give(name, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm = architectures.build(architectures.ROWS[name])
        schemes.apply(lm, "full", seed=0)
    check(lm, monkeypatch)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # between two libraries
@pytest.mark.parametrize("tuner", ["lora", "lora on the head", "a head of its own", "prompt", "prefix"])
def test_chunks_through_adapters(tuner, monkeypatch):
    import peft

    kind: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    lora = {**kind, "r": 2, "init_lora_weights": False}
    config = {
        "lora": lambda: peft.LoraConfig(**lora),
        "lora on the head": lambda: peft.LoraConfig(**lora, target_modules=["lm_head", "q_proj"]),
        "a head of its own": lambda: peft.LoraConfig(**lora, modules_to_save=["lm_head"]),
        "prompt": lambda: peft.PromptTuningConfig(**kind, num_virtual_tokens=3),
        "prefix": lambda: peft.PrefixTuningConfig(**kind, num_virtual_tokens=3),
    }[tuner]()
    lm = model("llama")
    lm.model = peft.get_peft_model(lm.model, config).eval()
    architectures.nudge(lm)
    check(lm, monkeypatch)


@pytest.mark.parametrize("objective", ["gold", "option_ce"])
def test_options_of_several_tokens_in_chunks(objective, monkeypatch):
    lm = model("llama")
    chosen = objectives.OBJECTIVES[objective]
    batches = objectives.prepare(lm, chosen, [encode(lm, example) for example in several(lm, 4)])
    with torch.no_grad():
        whole = objectives.loss_over(lm, chosen, batches)
        limit_logits(monkeypatch, lm)
        torch.testing.assert_close(objectives.loss_over(lm, chosen, batches), whole, rtol=1e-5, atol=0)


def test_gradients_flow_through_chunks(monkeypatch):
    lm = model("llama")
    closure = closure_of(lm)
    closure = closure.__wrapped__  # with a graph
    gradients = []
    for states in (10**6, CHUNK):
        limit_logits(monkeypatch, lm, states)
        lm.model.zero_grad()
        closure().backward()
        gradients.append([p.grad.clone() for p in lm.model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_padding_costs_no_logits(monkeypatch):
    lm = model("llama")
    limit_logits(monkeypatch, lm)
    closure, states = closure_of(lm), []
    closure()
    hook = lm.head.register_forward_hook(lambda module, args, output: states.append(output.shape[0]))
    closure()
    hook.remove()
    rows = [encode(lm, example) for example in architectures.prompts(lm)]
    assert sum(states) == sum(len(row.context(row.gold)) + len(row.options[row.gold]) - 1 for row in rows)


# ---------------------------------------------------------------------------------------------------------------
# cost


@pytest.fixture
def visited(monkeypatch):
    """Elements that the kernels visit, since the list was cleared."""
    visits: list[int] = []
    sweep, fan, fan_many = kernels.sweep, kernels.fan, kernels.fan_many

    def count(p: Any, rows: Any) -> int:
        return p.numel() if rows is None else rows.numel() * (p.numel() // p.shape[0])

    def counting_sweep(out, p, *args, rows=None, **rest):
        visits.append(count(p, rows))
        return sweep(out, p, *args, rows=rows, **rest)

    def counting_fan(outs, p, *args, rows=None, **rest):
        visits.append(count(p, rows))
        return fan(outs, p, *args, rows=rows, **rest)

    def counting_fan_many(fans, **rest):
        fans = list(fans)
        visits.extend(one.p.numel() for one in fans)
        return fan_many(fans, **rest)

    monkeypatch.setattr(kernels, "fan_many", counting_fan_many)
    monkeypatch.setattr(kernels, "sweep", counting_sweep)
    monkeypatch.setattr(kernels, "fan", counting_fan)
    return visits


@pytest.mark.parametrize("method", ["mezo", "lozo"])
@pytest.mark.parametrize("engine", ["stream", "dual"])
def test_a_step_visits_the_weights_as_often_as_with_small_logits(engine, method, visited, monkeypatch):
    """The head's copy is made once for all chunks; with deferred updates, as in ``tune``, no weight is met thrice."""
    seen = {}
    for states in (10**6, CHUNK):
        lm = tiny("llama")
        closure = closure_of(lm, repeat=4)
        weights = lm.model.named_parameters()
        opt = getattr(gl, method)(weights, lr=1e-4, eps=1e-3, seed=1, engine=engine, defer=True)
        limit_logits(monkeypatch, lm, states)
        for _ in range(3):
            del visited[:]
            opt.step(closure)
        seen[states] = sum(visited)
    assert seen[CHUNK] == seen[10**6] <= 2.8 * lm.num_parameters
    assert method == "lozo" or seen[CHUNK] >= (2 if engine == "stream" else 1) * lm.num_parameters


# ---------------------------------------------------------------------------------------------------------------
# models without such a layer


def test_a_model_without_a_body_runs_in_parts_and_says_so_once(monkeypatch):
    row = architectures.ROWS["mobilebert"]
    lm = architectures.build(row)
    closure = closure_of(lm, "gold", repeat=4)
    whole = float(closure())
    limit_logits(monkeypatch, lm, 3)
    with pytest.warns(UserWarning, match=r"mobilebert .*: lower the batch size"):
        parts = float(closure())
    assert float(closure()) == parts  # without a word
    assert parts == pytest.approx(whole, rel=1e-5)


def test_an_exception_leaves_the_model_whole(monkeypatch):
    lm = model("llama")
    closure = closure_of(lm)
    limit_logits(monkeypatch, lm)
    expected, calls = float(closure()), []

    def fail(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("boom")

    hook = lm.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="boom"):
        closure()
    hook.remove()
    assert not lm.head._forward_pre_hooks
    assert "forward" not in vars(lm.model.model)
    assert float(closure()) == expected


def test_a_forward_of_the_bodys_own_is_there_again(monkeypatch):
    """As accelerate puts one on the modules of a model that is spread over devices."""
    lm = model("llama")
    body, closure = lm.model.model, closure_of(lm)
    plain, expected = body.forward, float(closure())
    own = lambda *args, **kwargs: plain(*args, **kwargs)  # noqa: E731
    body.forward = own
    limit_logits(monkeypatch, lm)
    assert float(closure()) == pytest.approx(expected, rel=1e-6)
    assert body.forward is own
