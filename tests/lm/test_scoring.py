"""Option scores and generated text against plain forwards of one sequence each, through adapters and heads."""

from __future__ import annotations

import copy

import pytest
import torch

import gradless.estimators
import gradless.optimizer
from gradless.errors import BadInput
from gradless.lm import scoring
from gradless.lm.batching import collate_ends, collate_gold, collate_options, collate_prompts, collate_text
from gradless.lm.encode import encode
from gradless.lm.generation import generate, stop_tokens
from gradless.lm.scoring import features, scores, token_log_probs
from gradless.tasks.base import MASK, Example
from scoring_helpers import (
    ARCHITECTURES,
    CAUSAL,
    SENTENCES,
    model,
    naive_log_probs,
    plain_logits,
    questions,
    several,
    shared,
    single,
    words,
)

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def label_logits(lm, row) -> torch.Tensor:
    """The options' logits of an encoded single-token example, from all logits of a plain forward."""
    table = plain_logits(lm, row.prompt)
    return table[-1 if row.mask is None else row.mask][[option[0] for option in row.options]]


def add_label_head(lm, labels: int) -> torch.nn.Linear:
    """Give the model a head of its own for labels, as the scheme ``head`` does."""
    head = torch.nn.Linear(lm.head.weight.shape[1], labels, bias=False)
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(3))
    lm.model.label_head = head
    return head


@pytest.fixture
def outputs():
    """Shapes of what a model's output layer gave, while the test runs."""
    shapes: list[tuple[int, ...]] = []
    hooks = []

    def watch(lm):
        hooks.append(lm.head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape))))
        return shapes

    yield watch
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_restricted_scores_are_the_plain_logits(architecture, outputs):
    lm = shared(architecture)
    encoded = [encode(lm, example) for example in single(lm, 5, options=3)]
    shapes = outputs(lm)
    with torch.no_grad():
        option_scores = scores(lm, collate_options(lm, encoded))
    assert shapes == [(5, 1, 3)]  # one position, three rows: nothing else was computed
    for i, row in enumerate(encoded):
        torch.testing.assert_close(option_scores.mean[i], label_logits(lm, row), **CLOSE)
    assert option_scores.mean.std() > 0.1  # or the comparison shows nothing


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_normalised_scores_are_log_probabilities(architecture):
    lm = shared(architecture)
    encoded = [encode(lm, example) for example in single(lm, 3)]
    with torch.no_grad():
        option_scores = scores(lm, collate_options(lm, encoded), normalised=True)
    for i, row in enumerate(encoded):
        table = plain_logits(lm, row.prompt).log_softmax(-1)[-1 if row.mask is None else row.mask]
        torch.testing.assert_close(option_scores.total[i], table[[option[0] for option in row.options]], **CLOSE)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_options_of_several_tokens(architecture, outputs):
    lm = shared(architecture)
    examples = several(lm, 4)
    encoded = [encode(lm, example) for example in examples]
    batch = collate_options(lm, encoded)
    shapes = outputs(lm)
    with torch.no_grad():
        option_scores = scores(lm, batch)
    # The vocabulary is computed once for each beginning that some option continues, and for no padding.
    beginnings = {
        (i, row.context(o) + option[:end])
        for i, row in enumerate(encoded)
        for o, option in enumerate(row.options)
        for end in range(len(option))
    }
    assert shapes == [(len(beginnings), 1, lm.head.weight.shape[0])]
    for i, example in enumerate(examples):
        for j, option in enumerate(example.options):
            naive = naive_log_probs(lm, example.prompt, option)
            torch.testing.assert_close(option_scores.mean[i, j], naive.mean(), **CLOSE)
            torch.testing.assert_close(option_scores.total[i, j], naive.sum(), **CLOSE)
            assert option_scores.lengths[i, j] == len(naive)
        assert (option_scores.mean[i, len(example.options) :] == -torch.inf).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_gives_what_its_examples_give_alone(architecture):
    lm = shared(architecture)
    encoded = [encode(lm, example) for example in single(lm, 4)]
    if not lm.masked:
        encoded += [encode(lm, example) for example in several(lm, 4)]
    with torch.no_grad():
        together = scores(lm, collate_options(lm, encoded), normalised=True).mean
        alone = [scores(lm, collate_options(lm, [row]), normalised=True).mean[0] for row in encoded]
    for i, one in enumerate(alone):
        torch.testing.assert_close(together[i, : len(one)], one, **CLOSE)


def test_each_example_may_have_candidates_of_its_own(outputs):
    lm = shared("llama")
    labels = words(lm, 4)
    examples = [
        Example(SENTENCES[0], labels[:2], (0,)),
        Example(SENTENCES[1], labels[1:], (0,)),
        Example(SENTENCES[2], labels[3:], (0,)),
    ]
    encoded = [encode(lm, example) for example in examples]
    shapes = outputs(lm)
    with torch.no_grad():
        means = scores(lm, collate_options(lm, encoded)).mean
    assert shapes == [(3, 1, 4)]
    for i, row in enumerate(encoded):
        torch.testing.assert_close(means[i, : len(row.options)], label_logits(lm, row), **CLOSE)
        assert (means[i, len(row.options) :] == -torch.inf).all()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # between two libraries
@pytest.mark.parametrize("tuner", ["lora", "lora on the head", "prompt", "prefix"])
def test_through_adapters(tuner, outputs):
    import peft

    lm = model("llama")
    configs = {
        "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False),
        "lora on the head": lambda: peft.LoraConfig(
            task_type="CAUSAL_LM", r=2, init_lora_weights=False, target_modules=["lm_head"]
        ),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    bare = copy.deepcopy(lm.model)
    lm.model = peft.get_peft_model(lm.model, configs[tuner]()).eval()
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    encoded = [encode(lm, example) for example in single(lm, 4)]
    long = [encode(lm, example) for example in several(lm, 3)]
    shapes = outputs(lm)
    with torch.no_grad():
        logits = scores(lm, collate_options(lm, encoded)).mean
        # An adapted layer has no rows to read, so it computes the vocabulary, but at one position only.
        assert shapes == [(4, 1, lm.head.weight.shape[0] if tuner == "lora on the head" else 2)]
        means = scores(lm, collate_options(lm, long)).mean
    del shapes[:]
    for i, row in enumerate(encoded):
        torch.testing.assert_close(logits[i], label_logits(lm, row), **CLOSE)
    without = bare(input_ids=torch.tensor([encoded[0].prompt])).logits[0, -1]
    assert (label_logits(lm, encoded[0]) - without[[o[0] for o in encoded[0].options]]).abs().max() > 1e-3
    context, option = long[0].context(1), long[0].options[1]
    table = plain_logits(lm, context + option).log_softmax(-1)[-len(option) - 1 : -1]
    expected = table.gather(1, torch.tensor(option).unsqueeze(1)).mean()
    torch.testing.assert_close(means[0, 1], expected, **CLOSE)


def test_an_exception_leaves_the_head_whole():
    lm = model("llama")
    weight, count = lm.head.weight, len(lm.head._forward_pre_hooks)
    batch = collate_options(lm, [encode(lm, example) for example in single(lm, 2)])

    def fail(module, args, output):
        assert module.weight is not weight  # the rows were in place
        raise RuntimeError("boom")

    hook = lm.head.register_forward_hook(fail, prepend=True)
    with pytest.raises(RuntimeError, match="boom"):
        scores(lm, batch)
    hook.remove()
    assert lm.head.weight is weight
    assert len(lm.head._forward_pre_hooks) == count
    assert not lm.head._forward_hooks


def test_sixteen_bit_label_logits_are_computed_in_float32():
    lm = model("llama")
    lm.model.to(torch.bfloat16)
    row = encode(lm, single(lm)[0])
    batch = collate_options(lm, [row])
    with torch.no_grad():
        hidden = features(lm, batch)[0]
        logits = scores(lm, batch).mean[0]
    rows = lm.head.weight[[option[0] for option in row.options]].float()
    torch.testing.assert_close(logits, rows @ hidden, rtol=1e-6, atol=1e-6)
    assert not torch.equal(logits, logits.bfloat16().float())
    head = add_label_head(lm, 2).to(torch.bfloat16)
    with torch.no_grad():
        logits = scores(lm, collate_options(lm, [row])).mean[0]
    torch.testing.assert_close(logits, head.weight.float() @ hidden, rtol=1e-6, atol=1e-6)


def test_large_logits_are_computed_in_parts(monkeypatch, outputs):
    lm = shared("qwen")
    batch = collate_text(lm, [encode(lm, example) for example in single(lm, 5)])
    with torch.no_grad():
        whole = token_log_probs(lm, batch)
        scored, vocabulary = batch.positions.shape[1], lm.head.weight.shape[0]
        monkeypatch.setattr(scoring, "LOGITS_BYTES", 2 * 4 * scored * vocabulary)
        shapes = outputs(lm)
        parts = token_log_probs(lm, batch)
    assert [shape[0] for shape in shapes][1:] == [2 * scored, sum(batch.scored.counts) - 2 * scored]
    torch.testing.assert_close(parts * batch.target_mask, whole * batch.target_mask, **CLOSE)


@pytest.mark.parametrize("architecture", ["opt", "gemma", "roberta"])
def test_features_are_what_the_head_sees(architecture, outputs):
    lm = shared(architecture)
    encoded = [encode(lm, example) for example in single(lm, 3)]
    shapes = outputs(lm)
    with torch.no_grad():
        actual = features(lm, collate_ends(lm, encoded))
    assert shapes == [(3, 0, 0)]
    inputs = []
    hook = lm.head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for i, row in enumerate(encoded):
        plain_logits(lm, row.prompt)
        expected = inputs[-1][0, -1 if row.mask is None else row.mask]
        torch.testing.assert_close(actual[i], expected, **CLOSE)
    hook.remove()


@pytest.mark.parametrize("architecture", ["llama", "roberta"])
def test_a_label_head_scores_labels(architecture):
    lm = model(architecture)
    head = add_label_head(lm, 3)
    encoded = [encode(lm, example) for example in single(lm, 4, options=3)]
    batch = collate_options(lm, encoded)
    with torch.no_grad():
        expected = features(lm, collate_ends(lm, encoded)) @ head.weight.T
        torch.testing.assert_close(scores(lm, batch).mean, expected, **CLOSE)
    with pytest.raises(BadInput, match="3 labels"):
        collate_options(lm, [encode(lm, example) for example in single(lm, 4, options=2)])
    with pytest.raises(BadInput, match="label head"):
        collate_gold(lm, encoded)


def test_gradients_flow_through_restricted_rows():
    lm = model("llama")
    encoded = [encode(lm, example) for example in single(lm, 3)]
    lm.model.zero_grad()
    scores(lm, collate_options(lm, encoded)).mean[:, 0].sum().backward()
    gradient = lm.head.weight.grad.clone()
    lm.model.zero_grad()
    logits = [lm.model(input_ids=torch.tensor([row.prompt])).logits[0, -1, row.options[0][0]] for row in encoded]
    torch.stack(logits).sum().backward()
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(gradient, lm.head.weight.grad, **CLOSE)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_generation_is_greedy_and_batching_changes_nothing(architecture):
    lm = shared(architecture)
    rows = [encode(lm, example) for example in questions(4)]
    texts = generate(lm, collate_prompts(lm, rows, new_tokens=6))
    stops = {*stop_tokens(lm.tokenizer, "\n"), lm.tokenizer.eos_token_id}
    for row, text in zip(rows, texts, strict=True):
        tokens = list(row.prompt)
        for _ in range(6):
            tokens.append(int(plain_logits(lm, tokens)[-1].argmax()))
            if tokens[-1] in stops:
                break
        expected = lm.tokenizer.decode(tokens[len(row.prompt) :], skip_special_tokens=True)
        assert text == expected.split("\n")[0].strip()


def test_generation_stops_at_any_token_with_a_newline():
    lm = model("llama")
    stops = stop_tokens(lm.tokenizer, "\n")
    assert stops
    assert all("\n" in lm.tokenizer.decode([token]) for token in stops)
    forced = words(lm, 1)[0]
    script = [lm.tokenizer(forced, add_special_tokens=False)["input_ids"][0], stops[-1]]
    forwards = []

    def dictate(module, args, output):
        token = torch.tensor(script[min(len(forwards), 1)])
        forwards.append(token)
        return torch.nn.functional.one_hot(token, output.shape[-1]).float().expand(output.shape)

    lm.head.register_forward_hook(dictate)
    texts = generate(lm, collate_prompts(lm, [encode(lm, example) for example in questions(2)]))
    assert texts == [forced.strip()] * 2
    assert len(forwards) == 2  # not 50


def test_generation_leaves_room_for_the_answer():
    lm = shared("opt")
    limit = lm.model.config.max_position_embeddings
    row = encode(lm, Example("good film " * limit, (), (), ()))
    prompts = collate_prompts(lm, [row], new_tokens=10)
    assert prompts.input_ids.shape[1] == limit - 10
    assert prompts.input_ids[0, 0] == row.prompt[0]
    with pytest.raises(BadInput, match="too few tokens"):
        collate_prompts(lm, [row], new_tokens=limit)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("what", ["single", "several", "normalised", "label head"])
def test_a_probe_sees_the_perturbed_model(architecture, what):
    """Served weights (also rows of the tied embedding) give what weights perturbed in place give."""
    lm = model(architecture)
    if what == "several" and lm.masked:
        pytest.skip("masked models take single-token words")
    if what == "label head":
        add_label_head(lm, 2)
    encoded = [encode(lm, example) for example in (several(lm, 3) if what == "several" else single(lm, 3))]
    batch = collate_options(lm, encoded)
    original = {name: p.detach().clone() for name, p in lm.model.named_parameters()}

    def restricted() -> torch.Tensor:
        return scores(lm, batch, normalised=what == "normalised").mean[:, 0].mean()

    def plain() -> torch.Tensor:
        if what == "label head":
            inputs = []
            hook = lm.head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
            for row in encoded:
                plain_logits(lm, row.prompt)
            hook.remove()
            positions = [-1 if row.mask is None else row.mask for row in encoded]
            ends = torch.stack([seen[0, position] for seen, position in zip(inputs, positions, strict=True)])
            return lm.model.label_head(ends)[:, 0].mean()
        if what == "several":
            means = []
            for row in encoded:
                table = plain_logits(lm, row.context(0) + row.options[0]).log_softmax(-1)
                at = range(len(row.context(0)) - 1, len(row.context(0)) + len(row.options[0]) - 1)
                means.append(table[list(at), list(row.options[0])].mean())
            return torch.stack(means).mean()
        if what == "normalised":
            positions = [-1 if row.mask is None else row.mask for row in encoded]
            tables = [plain_logits(lm, row.prompt).log_softmax(-1) for row in encoded]
            return torch.stack(
                [t[position, row.options[0][0]] for t, position, row in zip(tables, positions, encoded, strict=True)]
            ).mean()
        return torch.stack([label_logits(lm, row)[0] for row in encoded]).mean()

    head = {id(p) for p in lm.head.parameters()} if what == "label head" else set()  # which nothing reads then
    embedding = id(lm.model.get_input_embeddings().weight)
    parameters = [(n, p) for n, p in lm.model.named_parameters() if id(p) not in head or id(p) == embedding]
    probes = [
        gradless.optimizer.ZerothOrder(parameters, estimator=gradless.estimators.spsa(eps=1e-2), engine=engine)
        for engine in ("stream", "in-place")
    ]
    served, expected = probes[0].probe(restricted), probes[1].probe(plain)
    torch.testing.assert_close(served.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(served.sketch.coeffs[0], expected.sketch.coeffs[0], rtol=2e-3, atol=2e-2)
    assert abs(expected.sketch.coeffs[0]) > 0.1
    assert all(torch.equal(p, original[name]) for name, p in lm.model.named_parameters())


def test_masked_scores_ignore_padding():
    lm = shared("roberta")
    labels = words(lm, 2)
    short = encode(lm, Example(f"so{MASK}", labels, (0,)))
    long = encode(lm, Example(" ".join(SENTENCES) + f"{MASK}", labels, (0,)))
    with torch.no_grad():
        together = scores(lm, collate_options(lm, [short, long])).mean
    torch.testing.assert_close(together[0], label_logits(lm, short), **CLOSE)
    torch.testing.assert_close(together[1], label_logits(lm, long), **CLOSE)
