"""Options packed into one tree of tokens per example score like one sequence per option."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradless.lm import batching, quiet_transformers, schemes, scoring, tiny, token_trees
from gradless.lm.batching import Batch, collate_gold, collate_options, groups
from gradless.lm.encode import Encoded, encode
from gradless.lm.objectives import OBJECTIVES, loss_of
from gradless.lm.scoring import scores
from gradless.lm.token_trees import (
    ARCHITECTURES,
    Extent,
    build_tree,
    extent,
    longest_path,
    num_tokens,
    prefers_trees,
    tree_attention,
)
from gradless.tasks.base import Example
from scoring_helpers import CAUSAL, SENTENCES, model, naive_log_probs, plain_logits, several, shared, single

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def row(prompt: int, *options: tuple[int, ...], first: int = 10) -> Encoded:
    """An example with a prompt of so many different tokens."""
    tokens = tuple(range(first, first + prompt))
    return Encoded(tokens, (tokens,), options, None, (0,))


# A prompt for two, shared first tokens, an option that is the beginning of another, one token beside many,
# the same option twice, and as many options as it likes.
RAGGED = [
    row(9, (50, 51, 52), (60, 61)),
    row(5, (50, 51, 52, 53), (50, 51, 54), (50, 55), (56,), (50, 51, 52, 53, 57, 58)),
    row(12, (50, 51, 52, 53, 54), (50, 51, 52), (50, 51, 52)),
    row(2, (50,), (60,), (70,), first=20),
    row(7, (40, 41, 42, 43, 44, 45, 46)),
]


def plainly(lm, encoded, monkeypatch) -> Batch:
    """The batch with one sequence per option, whatever pays."""
    with monkeypatch.context() as patch:
        patch.setattr(batching, "longest_path", lambda lm: 0)
        batch = collate_options(lm, encoded)
    assert batch.trees is None
    return batch


def check(lm, encoded, monkeypatch, **close) -> Batch:
    """Both ways give the same scores; returns the packed batch."""
    batch, plain = collate_options(lm, encoded), plainly(lm, encoded, monkeypatch)
    assert batch.trees is not None
    assert batch.input_ids.numel() < plain.input_ids.numel()
    with torch.no_grad():
        actual, expected = scores(lm, batch), scores(lm, plain)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **(close or CLOSE))
    assert actual.mean[actual.mean.isfinite()].std() > 0.1  # or the comparison shows nothing
    return batch


def paths(tree) -> list[list[int]]:
    """What each token of a tree sees, by its definition."""
    return [[k for k in range(q + 1) if q <= tree.ends[k]] for q in range(len(tree.tokens))]


def reads(encoded: Encoded) -> list[tuple[int, ...]]:
    return [encoded.context(i) + option[:-1] for i, option in enumerate(encoded.options)]


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6), st.booleans())
def test_a_tree_holds_each_option_as_a_way_and_each_beginning_once(pairs, one_context):
    contexts = (pairs[0][0],) if one_context else tuple(context for context, _ in pairs)
    example = Encoded(contexts[0], contexts, tuple(option for _, option in pairs), None, (0,))
    tree, sequences = build_tree(example), reads(example)
    seen = paths(tree)
    for i, sequence in enumerate(sequences):
        assert len(tree.positions[i]) == len(example.options[i])
        way = seen[tree.positions[i][-1]]
        assert tuple(tree.tokens[k] for k in way) == sequence
        assert tree.positions[i] == tuple(way[len(example.context(i)) - 1 :])
    assert len(tree.tokens) == len({sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_trees_score_like_sequences(architecture, tied, monkeypatch):
    lm = tiny(architecture, tied=tied)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    check(lm, RAGGED, monkeypatch)
    lm.model.set_attn_implementation("eager")
    check(lm, RAGGED, monkeypatch)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_trees_give_naive_log_probabilities(architecture):
    lm = shared(architecture)
    examples = [*several(lm, 4), *single(lm, 2)]
    batch = collate_options(lm, [encode(lm, example) for example in examples])
    assert batch.trees is not None
    with torch.no_grad():
        tree_scores = scores(lm, batch)
    for i, example in enumerate(examples):
        for j, option in enumerate(example.options):
            torch.testing.assert_close(
                tree_scores.total[i, j], naive_log_probs(lm, example.prompt, option).sum(), **CLOSE
            )
            assert batch.valid[i, j]
        assert (tree_scores.mean[i, len(example.options) :] == -torch.inf).all()


@pytest.mark.parametrize("attention_kind", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures_obey_masks_and_positions(kind, attention_kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    if kind == "gemma2" and attention_kind == "sdpa":
        pytest.skip("Gemma 2 caps its attention scores, which sdpa cannot")
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    elif kind != "gpt2":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    with quiet_transformers(), torch.random.fork_rng():
        config = AutoConfig.for_model(kind, **sizes)
        lm = shared("llama")
        network = AutoModelForCausalLM.from_config(config, attn_implementation=attention_kind).eval()
        lm = type(lm)(network, lm.tokenizer, False, kind, kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    assert longest_path(lm) > 0
    example = row(5, (50, 51, 52, 53), (50, 51, 54), (60, 61, 62))
    tree = build_tree(example)
    mask, positions = tree_attention(lm, torch.tensor([[*tree.ends, len(tree.ends)]]))
    with torch.no_grad():
        inputs = torch.tensor([[*tree.tokens, 0]])
        logits = network(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
    for sequence, spots in zip(reads(example), tree.positions, strict=True):
        expected = plain_logits(lm, sequence)
        torch.testing.assert_close(logits[list(spots)], expected[len(example.prompt) - 1 :], **CLOSE)
        assert expected.std() > 0.1


def test_padding_and_other_examples_change_nothing():
    lm = shared("llama")
    with torch.no_grad():
        together = scores(lm, collate_options(lm, RAGGED), normalised=True)
        for i, example in enumerate(RAGGED):
            alone = scores(lm, collate_options(lm, [example]), normalised=True).mean[0]
            torch.testing.assert_close(together.mean[i, : len(alone)], alone, **CLOSE)


def test_what_is_read_falls_as_expected(monkeypatch):
    lm = shared("llama")
    # COPA: two options of 9 after a premise of 12: 12 + 2 * 8 tokens instead of 2 * 20.
    copa = [row(12, tuple(range(50, 59)), tuple(range(60, 69))) for _ in range(4)]
    batch = check(lm, copa, monkeypatch)
    assert batch.input_ids.shape == (4, 28)
    assert plainly(lm, copa, monkeypatch).input_ids.shape == (8, 20)
    # ReCoRD: a query in which each of 12 entities (2 tokens) stands in turn after the same 4 tokens; 5 follow.
    query = [(40, 41, 42, 43, 50 + i, 70 + i, 44, 45, 46, 47, 48) for i in range(12)]
    record = [row(20, *query), row(18, *query[:9])]
    batch = check(lm, record, monkeypatch)
    assert batch.input_ids.shape == (2, 20 + 4 + 12 * 6)
    assert plainly(lm, record, monkeypatch).input_ids.shape == (21, 30)
    assert batch.scored.counts == (1 + 4 + 12 * 6, 1 + 4 + 9 * 6)  # and the vocabulary is computed for these only


def test_the_model_reads_one_tree_per_example():
    lm = shared("qwen")
    seen = []
    hook = lm.model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        scores(lm, collate_options(lm, RAGGED[:3]))
    hook.remove()
    assert [ids.shape for ids in seen] == [(3, max(len(build_tree(example).tokens) for example in RAGGED[:3]))]


def test_a_position_may_count_more_than_the_model_has_if_no_way_does(monkeypatch):
    lm = model("opt")  # with a table of positions
    limit = lm.model.config.max_position_embeddings
    first = tuple(10 + i % 80 for i in range(limit - 20))
    example = Encoded(first, (first,), tuple(tuple(range(100 + 20 * i, 120 + 20 * i)) for i in range(3)), None, (0,))
    assert check(lm, [example], monkeypatch).input_ids.shape[1] > limit


# ------------------------------------------------------------------------------------------------------------
# where sequences stay


def test_sequences_stay_where_trees_do_not_pay():
    lm = shared("llama")
    unlike = [row(2, tuple(range(50, 90)), tuple(range(100, 140)), tuple(range(150, 190)))]
    lengthy = [row(2, (50, 51), (60, 61)), row(3, *(tuple(range(i, i + 40)) for i in range(50, 130, 20)), first=40)]
    for encoded in (unlike, lengthy):
        assert collate_options(lm, encoded).trees is None
    assert collate_options(lm, RAGGED[-1:]).trees is None  # one option
    assert collate_gold(lm, RAGGED).trees is None
    assert collate_options(lm, [encode(lm, example) for example in single(lm)]).trees is None


def test_no_batch_pays_with_more_tokens():
    lm = shared("llama")
    for longest in (10, 100, 1000):
        assert not prefers_trees(lm, Extent(4, longest, 2, 2 * longest))
        assert prefers_trees(lm, Extent(4, longest, 2, longest))


@pytest.mark.parametrize("architecture", ["mistral", "gemma"])
def test_a_sliding_window_must_not_slide(architecture, monkeypatch):
    lm = shared(architecture)
    window = lm.model.config.sliding_window
    first = tuple(10 + i % 80 for i in range(window - 3))
    fits = Encoded(first, (first,), ((100, 101, 102, 103), (100, 101, 104, 105)), None, (0,))
    assert fits.longest == window
    check(lm, [fits], monkeypatch)
    longer = fits._replace(options=((100, 101, 102, 103, 104), (105, 106)))
    assert collate_options(lm, [longer, fits]).trees is None
    with torch.no_grad():
        table = plain_logits(lm, first + longer.options[0]).log_softmax(-1)
        expected = table[range(len(first) - 1, len(first) + 4), list(longer.options[0])].mean()
        torch.testing.assert_close(scores(lm, collate_options(lm, [longer])).mean[0, 0], expected, **CLOSE)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # between two libraries
@pytest.mark.parametrize(("scheme", "packed"), [("prompt", False), ("prefix", False), ("lora", True), ("full", True)])
def test_schemes(scheme, packed, monkeypatch):
    lm = schemes.apply(model("llama"), scheme)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=generator).mul_(0.3)
    assert bool(longest_path(lm)) == packed
    if packed:
        check(lm, RAGGED, monkeypatch)
    else:
        assert collate_options(lm, RAGGED).trees is None


def test_unknown_models_read_sequences(monkeypatch):
    lm = shared("opt")
    assert longest_path(lm) > 10**6
    assert longest_path(shared("roberta")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(token_trees, "ARCHITECTURES", ())
        assert collate_options(lm, RAGGED).trees is None
    with monkeypatch.context() as patch:
        patch.setattr(lm.model.config, "_attn_implementation_internal", "flash_attention_2")
        assert collate_options(lm, RAGGED).trees is None
    assert collate_options(lm, RAGGED).trees is not None


# ------------------------------------------------------------------------------------------------------------
# the rest of the machinery


@pytest.mark.parametrize("limit", [1, 3, 8, 20])
def test_large_logits_are_computed_in_parts(limit, monkeypatch):
    lm = shared("qwen")
    batch = collate_options(lm, RAGGED)
    sizes = []
    hook = lm.head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[0]))
    with torch.no_grad():
        whole = scores(lm, batch).mean
        monkeypatch.setattr(scoring, "LOGITS_BYTES", limit * 4 * lm.head.weight.shape[0])
        del sizes[:]
        parts = scores(lm, batch).mean
    hook.remove()
    assert max(sizes) <= limit
    assert len(sizes) > 1
    assert sum(sizes) == sum(batch.scored.counts)
    torch.testing.assert_close(parts, whole, **CLOSE)


def test_trees_are_cut_only_if_they_must():
    lm = shared("qwen")
    batch = collate_options(lm, RAGGED)._replace(trees=None)
    batch = batch._replace(scored=batch.scored._replace(counts=(3, 2, 7, 1, 1)))
    parts = [(start, len(part.scored.nodes)) for start, part in scoring._parts(batch, 5)]
    assert parts == [(0, 5), (5, 5), (10, 4)]


def test_sixteen_bit_weights(monkeypatch):
    for kind in ("sdpa", "eager"):
        lm = model("llama")
        lm.model.to(torch.bfloat16)
        lm.model.set_attn_implementation(kind)
        check(lm, RAGGED, monkeypatch, rtol=0.03, atol=0.1)


def test_gradients_are_those_of_sequences(monkeypatch):
    lm = model("gemma")
    gradients = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(batching, "longest_path", lambda lm: 0)
        lm.model.zero_grad()
        loss_of(lm, OBJECTIVES["option_ce"], RAGGED[:4]).backward()
        gradients.append([parameter.grad.clone() for parameter in lm.model.parameters()])
    assert max(float(grad.abs().max()) for grad in gradients[0]) > 0.01
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention has no batching rule
@pytest.mark.parametrize("architecture", CAUSAL)
def test_many_weights_at_once(architecture):
    lm = model(architecture)
    batch = collate_options(lm, RAGGED)
    assert batch.trees is not None

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lm.model

        def forward(self) -> torch.Tensor:
            return scores(lm, batch).mean

    scorer = Scorer()
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: p.detach() + 0.05 * torch.randn((3, *p.shape), generator=generator)
        for name, p in scorer.named_parameters()
    }
    with torch.no_grad():
        stacked = torch.func.vmap(lambda one: torch.func.functional_call(scorer, one, ()))(weights)
        for k in range(3):
            one = {name: stack[k] for name, stack in weights.items()}
            torch.testing.assert_close(stacked[k], torch.func.functional_call(scorer, one, ()), rtol=1e-3, atol=1e-4)


def test_groups_count_what_is_read(monkeypatch):
    lm = shared("llama")
    pool = (" the film was good", " the film was bad", " the film was okay")
    examples = [Example(SENTENCES[i % 4] + " so", pool[: 2 + i % 2], (0,)) for i in range(12)]
    encoded = [encode(lm, example) for example in examples] + RAGGED
    for budget in (60, 150, 400):
        index_groups = list(groups(lm, encoded, batch_tokens=budget))
        assert sorted(i for group in index_groups for i in group) == list(range(len(encoded)))
        for group in index_groups:
            batch = collate_options(lm, [encoded[i] for i in group])
            size = Extent(0, 0, 0, 0)
            for i in group:
                size = size.joined(extent(lm, encoded[i]))
            assert batch.input_ids.numel() == num_tokens(lm, size)
            assert len(group) == 1 or num_tokens(lm, size) <= budget
        with monkeypatch.context() as patch:
            patch.setattr(token_trees, "longest_path", lambda lm: 0)
            assert len(index_groups) <= len(list(groups(lm, encoded, batch_tokens=budget)))
    assert len(index_groups) < 6
