"""Evaluation modes against one plain forward per option: predictions, losses, metrics and refusals."""

from __future__ import annotations

import pytest
import torch

from gradless import tasks
from gradless.errors import BadInput
from gradless.lm.encode import completed, encode
from gradless.lm.evaluate import evaluate, render
from gradless.lm.metrics import exact_match, token_f1
from gradless.lm.objectives import OBJECTIVES, choose, loss_of
from gradless.rng import permutation
from gradless.tasks.base import MASK, Example
from scoring_helpers import (
    CAUSAL,
    SENTENCES,
    model,
    naive_log_probs,
    plain_logits,
    questions,
    several,
    shared,
    single,
    task,
    words,
)

CLASSIFICATION = task("classification")
CHOICE = task("choice")
GENERATION = task("generation", ("token_f1", "exact_match"), max_new_tokens=5)


def naive_means(lm, example: Example) -> list[float]:
    return [float(naive_log_probs(lm, example.prompt, option).mean()) for option in example.options]


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("make", [single, several])
def test_zero_shot_is_the_best_mean_log_probability(architecture, make):
    lm = shared(architecture)
    examples = make(lm, 9)
    result = evaluate(lm, CLASSIFICATION, examples, batch_size=4)
    expected = [best(naive_means(lm, e)) for e in examples]
    assert result.predictions == expected
    assert result.correct == [p in e.correct for p, e in zip(expected, examples, strict=True)]
    assert result.metrics == {"accuracy": pytest.approx(sum(result.correct) / 9)}
    naive = [-torch.tensor(naive_means(lm, e)).log_softmax(0)[e.correct[0]] for e in examples]
    assert result.loss == pytest.approx(float(torch.stack(naive).mean()), rel=1e-4)
    assert result.forwards == 3
    assert result.seconds > 0


def test_buckets_do_not_change_order_or_values():
    lm = shared("opt")
    examples = [*single(lm, 5), *several(lm, 6), *single(lm, 4, options=3)]
    whole = evaluate(lm, CLASSIFICATION, examples)
    for settings in ({"batch_size": 1}, {"batch_size": 4}, {"batch_tokens": 50}):
        parts = evaluate(lm, CLASSIFICATION, examples, **settings)
        assert parts.predictions == whole.predictions
        assert parts.loss == pytest.approx(whole.loss, rel=1e-4)
        assert parts.forwards > whole.forwards == 2
    assert whole.predictions == [best(naive_means(lm, e)) for e in examples]
    assert len(set(whole.predictions)) > 1


@pytest.mark.parametrize("make", [single, several])
def test_choice_gives_the_teacher_forcing_loss_of_the_same_forward(make):
    lm = shared("llama")
    examples = make(lm, 5)
    result = evaluate(lm, CHOICE, examples)
    naive = torch.cat([-naive_log_probs(lm, e.prompt, e.options[e.correct[0]]) for e in examples])
    assert result.loss == pytest.approx(float(naive.mean()), rel=1e-4)
    assert result.forwards == 1
    assert result.predictions == [best(naive_means(lm, e)) for e in examples]


@pytest.mark.parametrize("name", ["option_ce", "gold", "lm", "accuracy"])
def test_the_loss_is_that_of_the_objective(name):
    lm = shared("qwen")
    examples = several(lm, 5)
    result = evaluate(lm, CHOICE, examples, objective=OBJECTIVES[name], batch_size=2)
    with torch.no_grad():
        expected = loss_of(lm, OBJECTIVES[name], [encode(lm, e) for e in examples])
    assert result.loss == pytest.approx(float(expected), rel=1e-4)


def test_a_prediction_is_right_if_it_is_any_of_the_correct():
    lm = shared("opt")
    example = several(lm, 4)[3]
    first = best(naive_means(lm, example))
    other = (first + 1) % len(example.options)
    assert evaluate(lm, CHOICE, [example._replace(correct=(other, first))]).correct == [True]
    assert evaluate(lm, CHOICE, [example._replace(correct=(other,))]).correct == [False]


@pytest.mark.parametrize("architecture", ["opt", "gemma", "qwen"])
@pytest.mark.parametrize("make", [single, several])
def test_calibration_subtracts_the_score_without_content(architecture, make):
    lm = shared(architecture)
    examples = make(lm, 8)
    result = evaluate(lm, CLASSIFICATION, examples, mode="calibrated")
    expected = []
    for e in examples:
        gains = [
            float(naive_log_probs(lm, e.prompt, option).sum() - naive_log_probs(lm, e.content_free, option).sum())
            for option in e.options
        ]
        expected.append(best(gains))
    assert result.predictions == expected
    if make is single:
        assert result.forwards == 2  # one prompt without content serves all


def test_calibration_of_a_masked_model():
    lm = shared("roberta")
    examples = single(lm, 6)
    result = evaluate(lm, CLASSIFICATION, examples, mode="calibrated")

    def log_probs(prompt: str, options: tuple[str, ...]) -> torch.Tensor:
        row = encode(lm, Example(prompt, options, (0,)))
        table = plain_logits(lm, row.prompt)[row.mask].log_softmax(-1)
        return table[[option[0] for option in row.options]]

    expected = [int((log_probs(e.prompt, e.options) - log_probs(e.content_free, e.options)).argmax()) for e in examples]
    assert result.predictions == expected


@pytest.mark.parametrize("fixed", [False, True])
def test_in_context_demonstrations(fixed):
    lm = shared("llama")
    pool, examples = single(lm, 7), single(lm, 4, options=3)
    result = evaluate(
        lm,
        CLASSIFICATION,
        examples,
        mode="icl",
        demonstrations=pool,
        num_demonstrations=3,
        seed=5,
        fixed=fixed,
    )
    expected, losses = [], []
    for i, example in enumerate(examples):
        drawn = permutation(7, 5, "demonstrations" if fixed else f"demonstrations/{i}")[:3]
        text = "\n\n".join(completed(pool[j]) for j in drawn) + "\n\n" + example.prompt
        means = naive_means(lm, example._replace(prompt=text))
        expected.append(best(means))
        losses.append(-torch.tensor(means).log_softmax(0)[example.correct[0]])
    assert result.predictions == expected
    assert result.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    without = evaluate(lm, CLASSIFICATION, examples)
    assert abs(result.loss - without.loss) > 1e-4


def test_in_context_prompts_are_cut_on_the_left():
    lm = shared("opt")
    pool, examples = single(lm, 8), single(lm, 2)
    result = evaluate(
        lm, CLASSIFICATION, examples, mode="icl", demonstrations=pool, num_demonstrations=8, max_length=40
    )
    for i, example in enumerate(examples):
        drawn = permutation(8, 0, f"demonstrations/{i}")
        text = "\n\n".join(completed(pool[j]) for j in drawn) + "\n\n" + example.prompt
        means = []
        for option in example.options:
            tokens = lm.tokenizer(text + option)["input_ids"]
            assert len(tokens) > 40
            tokens = tokens[:1] + tokens[-39:]
            means.append(float(plain_logits(lm, tokens).log_softmax(-1)[-2, tokens[-1]]))
        assert result.predictions[i] == best(means)


@pytest.mark.parametrize("architecture", ["opt", "gemma"])
def test_generation(architecture):
    lm = shared(architecture)
    examples = questions(5)
    result = evaluate(lm, GENERATION, examples, batch_size=2)
    texts = []
    for example in examples:
        tokens = lm.tokenizer(example.prompt)["input_ids"]
        new: list[int] = []
        for _ in range(5):
            new.append(int(plain_logits(lm, tokens + new)[-1].argmax()))
            if new[-1] == lm.tokenizer.eos_token_id or "\n" in lm.tokenizer.decode(new):
                break
        texts.append(lm.tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip())
    assert result.predictions == texts
    golds = [e.answers for e in examples]
    assert result.metrics == {
        "token_f1": pytest.approx(token_f1(texts, golds)),
        "exact_match": pytest.approx(exact_match(texts, golds)),
    }
    naive = torch.cat([-naive_log_probs(lm, e.prompt, " the film\n") for e in examples])
    assert result.loss == pytest.approx(float(naive.mean()), rel=1e-4)
    right = [e._replace(answers=(text or "-",)) for e, text in zip(examples, texts, strict=True)]
    assert evaluate(lm, GENERATION, right).correct == [True] * len(texts)
    wrong = [e._replace(answers=("elsewhere",)) for e in examples]
    assert evaluate(lm, GENERATION, wrong).correct == [False] * len(texts)
    assert result.forwards > 6
    only = evaluate(lm, GENERATION, examples, batch_size=2, predict=False)
    assert (only.metrics, only.predictions, only.correct, only.forwards) == ({}, [], [], 3)
    assert only.loss == pytest.approx(result.loss, rel=1e-4)


def test_generation_with_the_f1_objective_generates_once():
    lm = shared("opt")
    examples = questions(3)
    result = evaluate(lm, GENERATION, examples, objective=choose(GENERATION, "f1"))
    assert result.loss == pytest.approx(-result.metrics["token_f1"])
    assert result.forwards <= GENERATION.max_new_tokens


@pytest.mark.parametrize("architecture", ["opt", "roberta"])
def test_rows_are_rendered_for_the_kind_of_model(architecture):
    lm = shared(architecture)
    labels = words(lm, 2)
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(SENTENCES)]
    toy_task = task(
        "classification",
        render=lambda row: Example(row["text"] + " so", labels, (row["label"],)),
        render_masked=lambda row: Example(f"{row['text']} so{MASK}.", labels, (row["label"],)),
    )
    function = toy_task.render_masked if lm.masked else toy_task.render
    assert (
        evaluate(lm, toy_task, rows).predictions == evaluate(lm, toy_task, [function(row) for row in rows]).predictions
    )
    if lm.masked:
        with pytest.raises(BadInput, match="no prompt for masked models"):
            evaluate(lm, CLASSIFICATION, rows)


def test_progress_and_modes_of_the_model():
    lm = model("opt")
    lm.model.train()
    seen: list[tuple[int, int]] = []
    modes: list[bool] = []
    hook = lm.head.register_forward_pre_hook(
        lambda module, args: modes.append(lm.model.training or args[0].requires_grad)
    )
    evaluate(
        lm,
        CLASSIFICATION,
        single(lm, 5),
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    hook.remove()
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert modes == [False] * 3
    assert lm.model.training
    assert not lm.head._forward_pre_hooks


def test_refusals():
    lm, masked = shared("opt"), shared("roberta")
    examples = single(lm, 2)
    with pytest.raises(BadInput, match="did you mean 'zero-shot'"):
        evaluate(lm, CLASSIFICATION, examples, mode="zeroshot")
    with pytest.raises(BadInput, match="nothing to evaluate"):
        evaluate(lm, CLASSIFICATION, [])
    with pytest.raises(BadInput, match="32 demonstrations but 2"):
        evaluate(lm, CLASSIFICATION, examples, mode="icl", demonstrations=examples)
    with pytest.raises(BadInput, match="calibration needs options"):
        evaluate(lm, GENERATION, questions(1), mode="calibrated")
    rows = single(masked, 2)
    with pytest.raises(BadInput, match="causal"):
        evaluate(masked, CLASSIFICATION, rows, mode="icl", demonstrations=rows, num_demonstrations=1)
    with pytest.raises(BadInput, match="do not generate"):
        evaluate(masked, GENERATION, [Example(f"so{MASK}", (), (), ("x",))])


def test_rows_that_hold_a_mask_are_named_with_their_file_and_lines(tmp_path):
    """Two masks in a prompt: nobody could say which of them is the answer's. Causal models read it as text."""
    lines = ["a joy", f"so {MASK} .", "a bore", f"{MASK} it"]
    (tmp_path / "train.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"{line}\t{i % 2}\n" for i, line in enumerate(lines))
    )
    sst2 = tasks.get("sst2")
    rows = tasks.load(sst2, data=tmp_path, num_train=4, num_dev=0, num_test=0, seed=1).train
    said = f"the text holds '{MASK}', which marks the word that a masked model fills in: take it out"
    with pytest.raises(BadInput) as refusal:
        render(shared("roberta"), sst2, rows)
    assert str(refusal.value) == f"{tmp_path / 'train.tsv'}, lines 3, 5: {said}"
    assert len(render(shared("llama"), sst2, rows)) == 4
    with pytest.raises(BadInput, match=f"1 of 2 rows, such as 'so {MASK} . It was{MASK}.': the text holds"):
        render(shared("roberta"), sst2, [{"sentence": line, "label": 0} for line in lines[:2]])
