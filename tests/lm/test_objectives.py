"""Objectives against one plain forward per option, in micro-batches and with gradients, and which fit a task."""

from __future__ import annotations

import pytest
import torch

from gradless.errors import BadInput
from gradless.lm.encode import encode, encode_all
from gradless.lm.generation import generate
from gradless.lm.metrics import token_f1
from gradless.lm.objectives import OBJECTIVES, choose, default_for, loss_of, loss_over, prepare
from scoring_helpers import (
    ARCHITECTURES,
    CAUSAL,
    model,
    naive_log_probs,
    plain_logits,
    questions,
    several,
    shared,
    single,
    task,
)

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


# Greedy generation is one forward per token: a few show what fifty would.
SHORT = {**OBJECTIVES, "f1": choose(task("generation", max_new_tokens=4), "f1")}


def value(lm, name, encoded, micro=None) -> torch.Tensor:
    with torch.no_grad():
        return loss_of(lm, SHORT[name], encoded, micro)


def naive_means(lm, example) -> torch.Tensor:
    """Mean token log-probability of each option, by one plain forward each."""
    return torch.stack([naive_log_probs(lm, example.prompt, option).mean() for option in example.options])


def test_the_table_is_complete():
    assert list(OBJECTIVES) == ["option_ce", "gold", "lm", "accuracy", "f1", "reward"]
    assert all(objective.doc for objective in OBJECTIVES.values())
    assert [name for name, o in OBJECTIVES.items() if o.differentiable] == ["option_ce", "gold", "lm"]


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("make", [single, several])
def test_option_cross_entropy(architecture, make):
    lm = shared(architecture)
    examples = make(lm, 4)
    naive = [-naive_means(lm, e).log_softmax(0)[e.correct[0]] for e in examples]
    loss = value(lm, "option_ce", [encode(lm, e) for e in examples])
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(loss, torch.stack(naive).mean(), **CLOSE)


def test_option_cross_entropy_of_a_masked_model():
    lm = shared("roberta")
    encoded = [encode(lm, e) for e in single(lm, 4, options=3)]
    naive = []
    for row in encoded:
        logits = plain_logits(lm, row.prompt)[row.mask][[option[0] for option in row.options]]
        naive.append(-logits.log_softmax(0)[row.gold])
    torch.testing.assert_close(value(lm, "option_ce", encoded), torch.stack(naive).mean(), **CLOSE)


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("make", [single, several, lambda lm, n: questions(n)])
def test_gold_is_the_mean_over_tokens(architecture, make):
    lm = shared(architecture)
    examples = make(lm, 4)
    texts = [(e.prompt, e.options[e.correct[0]] if e.options else " the film\n") for e in examples]
    naive = torch.cat([-naive_log_probs(lm, *text) for text in texts])
    loss = value(lm, "gold", [encode(lm, e) for e in examples])
    torch.testing.assert_close(loss, naive.mean(), **CLOSE)


def test_lm_is_the_mean_over_all_tokens():
    lm = shared("llama")
    examples = several(lm, 3)
    naive = []
    for example in examples:
        tokens = lm.tokenizer(example.prompt + example.options[example.correct[0]])["input_ids"]
        table = plain_logits(lm, tokens).log_softmax(-1)
        naive += [-table[i, tokens[i + 1]] for i in range(len(tokens) - 1)]
    loss = value(lm, "lm", [encode(lm, e) for e in examples])
    torch.testing.assert_close(loss, torch.stack(naive).mean(), **CLOSE)


@pytest.mark.parametrize("make", [single, several])
def test_negative_accuracy(make):
    lm = shared("mistral")
    examples = [e._replace(correct=(1, 0) if i == 2 else e.correct) for i, e in enumerate(make(lm, 6))]
    hits = [int(naive_means(lm, e).argmax()) in e.correct for e in examples]
    loss = value(lm, "accuracy", [encode(lm, e) for e in examples])
    assert float(loss) == pytest.approx(-sum(hits) / 6)
    wrong = [e._replace(correct=(1 - int(naive_means(lm, e)[:2].argmax()),)) for e in single(lm, 3)]
    assert float(value(lm, "accuracy", [encode(lm, e) for e in wrong])) == 0.0


def test_negative_f1_of_generated_text():
    lm = shared("opt")
    rows = [encode(lm, e) for e in questions(3)]
    batch = SHORT["f1"].prepare(lm, rows)
    assert batch.new_tokens == 4
    texts = generate(lm, batch)
    target = [row._replace(answers=("nonsense", text or "the")) for row, text in zip(rows, texts, strict=True)]
    target[0] = target[0]._replace(answers=("zzz",))
    loss = value(lm, "f1", target)
    assert float(loss) == pytest.approx(-token_f1(texts, [row.answers for row in target]))
    assert -1 <= float(loss) < 0


@pytest.mark.parametrize("architecture", ["opt", "roberta"])
@pytest.mark.parametrize("name", ["option_ce", "gold", "lm", "accuracy", "f1"])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_give_the_same_value(architecture, name, micro):
    lm = shared(architecture)
    if lm.masked and name in ("lm", "f1"):
        pytest.skip("needs a causal model")
    examples = questions(5) if name == "f1" else single(lm, 5) if lm.masked else [*single(lm, 2), *several(lm, 3)]
    encoded = [encode(lm, e) for e in examples]
    torch.testing.assert_close(value(lm, name, encoded, micro), value(lm, name, encoded), **CLOSE)


@pytest.mark.parametrize("name", ["option_ce", "gold", "lm"])
def test_micro_batches_give_the_same_gradient(name):
    lm = model("llama")
    encoded = [encode(lm, e) for e in several(lm, 5)]
    objective = OBJECTIVES[name]
    gradients = []
    for size in (None, 2):
        lm.model.zero_grad()
        batches = prepare(lm, objective, encoded, size)
        total = sum(batch.weight for batch in batches)
        for batch in batches:  # one graph at a time: the memory of one micro-batch
            (objective.loss(lm, batch) * (batch.weight / total)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in lm.model.parameters()]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_preparing_once_serves_many_queries(architecture):
    lm = model(architecture)
    batches = prepare(lm, OBJECTIVES["option_ce"], [encode(lm, e) for e in single(lm, 4)], 3)
    assert [batch.weight for batch in batches] == [3.0, 1.0]
    with torch.no_grad():
        first = loss_over(lm, OBJECTIVES["option_ce"], batches)
        assert torch.equal(loss_over(lm, OBJECTIVES["option_ce"], batches), first)
        lm.head.weight.add_(0.1 * torch.sign(lm.head.weight))
        assert loss_over(lm, OBJECTIVES["option_ce"], batches) != first


def test_defaults_are_those_of_mezo():
    kinds = ("classification", "choice", "generation")
    assert [default_for(task(kind)).name for kind in kinds] == ["option_ce", "gold", "gold"]
    assert [choose(task(kind)).name for kind in kinds] == ["option_ce", "gold", "gold"]


def test_impossible_pairs_are_refused():
    lm, masked = shared("opt"), shared("roberta")
    with pytest.raises(BadInput, match="did you mean 'accuracy'"):
        choose(task("choice"), "acuracy")
    for kind, name in (("generation", "option_ce"), ("generation", "accuracy"), ("classification", "f1")):
        with pytest.raises(BadInput, match=f"'{name}' does not fit the {kind} task 'toy': use one of"):
            choose(task(kind), name)
    with pytest.raises(BadInput, match="no gradient"):
        choose(task("choice"), "accuracy", backprop=True)
    with pytest.raises(BadInput, match="causal"):
        loss_of(masked, OBJECTIVES["lm"], [encode(masked, e) for e in single(masked, 1)])
    with pytest.raises(BadInput, match="nothing to choose from"):
        loss_of(lm, OBJECTIVES["option_ce"], [encode(lm, e) for e in questions(1)])
    unlabelled = [encode(lm, e._replace(correct=())) for e in single(lm, 1)]
    for name in ("option_ce", "gold"):
        with pytest.raises(BadInput, match="every example a label"):
            loss_of(lm, OBJECTIVES[name], unlabelled)
    with pytest.raises(BadInput, match="at least one example"):
        loss_of(lm, OBJECTIVES["gold"], [])


def test_task_stop_ends_the_taught_answer():
    lm = shared("opt")
    row = encode_all(lm, task("generation", stop=";"), questions(1))[0]
    assert lm.tokenizer.decode(row.options[0]) == " the film;"
