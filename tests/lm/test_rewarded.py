"""Losses of generated texts: the same for members alone and in one batch, however the batch is split."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from gradless import lm, rewards
from gradless.directions import low_rank, rademacher
from gradless.estimators import population
from gradless.lm import objectives, rewarded, schemes
from gradless.lm.encode import encode_all
from gradless.optimizer import ZerothOrder
from gradless.tasks.own_prompts import prompt_task

TASK = prompt_task("{question} :")
TEXTS = ("how many", "a", "tell me a long story")


def letters(prompts, completions, letter, **_):
    return [
        None if one == "-" else text.count(one) + 0.01 * len(text)
        for one, text in zip(letter, completions, strict=True)
    ]


def closure(model, *, rows=True, parts=1, reward=letters, letter="e"):
    columns = [{"question": text, "letter": letter if i else "t"} for i, text in enumerate(TEXTS)]
    examples = [TASK.render({"columns": one}) for one in columns]
    encoded = rewarded.drawn(encode_all(model, TASK, examples), "step/0")
    chosen = objectives.choose(TASK, "reward", rewards=objectives.rewarded(rewards.load([reward]), 1.0))
    chosen = chosen._replace(prepare=lambda lm, some: objectives.collate_prompts(lm, some, (), 6))
    batches = [chosen.prepare(model, encoded[i : i + -(-3 // parts)]) for i in range(0, 3, -(-3 // parts))]
    return rewarded.RewardClosure(model, chosen, batches, rewarded.Sampling(1.0, 0), rows=rows)


def probed(model, engine, loss_closure, directions=None, **options):
    estimator = population(eps=0.05, queries=2, **options)
    opt = ZerothOrder(
        schemes.trainable(model), directions=directions or rademacher(), estimator=estimator, engine=engine
    )
    return opt.probe(loss_closure).sketch


@pytest.mark.parametrize(("scheme", "directions"), [("lora", rademacher()), ("full", low_rank(1))])
def test_members_alone_and_together_have_the_same_rewards(scheme, directions):
    model = schemes.apply(lm.load("tiny-llama"), scheme, seed=1)
    for name, parameter in schemes.trainable(model):
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0), std=0.2)
    closures = {engine: closure(model) for engine in ("stream", "dual")}
    sketches = [probed(model, engine, one, directions) for engine, one in closures.items()]
    assert sketches[0] == sketches[1]
    assert closures["stream"].members[:4] == closures["dual"].members
    assert len({one.reward for one in closures["dual"].members}) > 1


def jamba() -> lm.LanguageModel:
    """A model of one state-space layer and one of attention."""
    from transformers import JambaConfig, JambaForCausalLM

    base = lm.tiny("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "mamba_d_state": 4}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 1, "num_experts_per_tok": 1}
        layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 2}
        config = JambaConfig(vocab_size=base.num_embeddings, pad_token_id=0, **sizes, **heads, **layers)
        return dataclasses.replace(base, model=JambaForCausalLM(config).eval())


@pytest.mark.filterwarnings("ignore:the dual engine cannot be used here")
def test_members_of_a_model_with_recurrent_layers_write_one_after_the_other():
    """States of its layers are no keys and values, which members that write together carry along."""
    sketches = [probed(model, engine, closure(model)) for engine, model in (("stream", jamba()), ("dual", jamba()))]
    assert sketches[0] == sketches[1]
    assert any(sketches[0].coeffs)


def test_micro_batches_draw_and_earn_the_same():
    model = lm.load("tiny-llama")
    whole, parts = (closure(model, parts=count)() for count in (1, 3))
    assert torch.equal(whole, parts)
    assert whole.shape == (3,)


def test_the_mean_is_over_rows_that_have_a_reward():
    model = lm.load("tiny-llama")
    some = closure(model, letter="-")
    losses = some()
    assert losses.isnan().tolist() == [False, True, True]
    assert some.members[0].valid == pytest.approx(1 / 3)
    assert float(closure(model, letter="-", rows=False)()) == float(losses[0])


def test_weights_that_write_nothing_finite_have_no_losses():
    model = lm.load("tiny-llama")
    model.head.weight.data[:] = torch.nan
    assert closure(model)().isnan().all()
    assert math.isnan(closure(model, rows=False)())


def test_functions_are_told_prompts_texts_columns_and_answers():
    model = lm.load("tiny-llama")
    received = {}

    def watching(prompts, completions, **columns):
        received.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)

    closure(model, reward=watching)()
    assert received["prompts"] == [f"{text} :" for text in TEXTS]
    assert received["letter"] == ["t", "e", "e"]
    assert all(isinstance(text, str) for text in received["completions"])
    assert [model.tokenizer.decode(ids).strip() for ids in received["completion_ids"]] == received["completions"]
    assert "answers" not in received


def test_one_call_scores_all_members():
    model = schemes.apply(lm.load("tiny-llama"), "lora", seed=1)
    sizes = []

    def counting(prompts, completions, **_):
        sizes.append(len(completions))
        return np.arange(len(completions), dtype=float).tolist()

    probed(model, "dual", closure(model, reward=counting))
    assert sizes == [12]
