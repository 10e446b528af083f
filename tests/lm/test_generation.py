"""Sampling from a counter, and populations that decode in one batch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_map

from gradless import lm
from gradless.directions import low_rank, rademacher
from gradless.errors import NotFinite
from gradless.estimators import population
from gradless.forward.perturbed import copies_kept
from gradless.lm import generation, schemes
from gradless.lm.batching import Prompts
from gradless.lm.encode import Encoded
from gradless.optimizer import ZerothOrder

NEW = 8


def prompts_of(*rows: list[int], stops: tuple[str, ...] = ()) -> Prompts:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    encoded = tuple(Encoded(tuple(row), (), (), None, (), draw=f"step/0/{i}") for i, row in enumerate(rows))
    return Prompts(ids, mask, encoded, stops, NEW)


def draws(count: int, name: str = "many") -> list[str]:
    return [f"{name}/{i}" for i in range(count)]


PROMPTS = prompts_of([5, 6, 7, 8], [9, 10], [11, 12, 13])


class Writes:
    """A closure whose losses are of the texts that the model writes."""

    def __init__(self, model, temperature: float) -> None:
        self.model, self.texts = model, []
        self.choose = generation.sampler(temperature, 0, [row.draw for row in PROMPTS.rows], NEW)

    def losses(self, texts):
        self.texts.append(texts)
        return -torch.tensor([len(text) + 0.1 * text.count("e") for text in texts], dtype=torch.float64)

    def __call__(self):
        with copies_kept():
            return self.losses(generation.generate(self.model, PROMPTS, self.choose))

    def side_by_side(self, call):
        return torch.stack(
            [
                self.losses([one.text for one in member])
                for member in generation.write_members(self.model, PROMPTS, self.choose, call)
            ]
        )


def probed(name: str, scheme: str, directions, engine: str, temperature: float):
    model = schemes.apply(lm.load(name), scheme, seed=1)
    for key, parameter in schemes.trainable(model):
        if "lora_B" in key:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0), std=0.2)
    closure = Writes(model, temperature)
    opt = ZerothOrder(
        schemes.trainable(model), directions=directions, estimator=population(eps=0.02, queries=3), engine=engine
    )
    probe = opt.probe(closure)
    assert opt.engine == engine
    return closure.texts[:6], probe


CELLS = [
    ("tiny-llama", "lora", rademacher(), 1.0),
    ("tiny-llama", "full", low_rank(1), 0.0),
    ("tiny-llama", "full", low_rank(1), 1.0),
    *[
        pytest.param(name, *rest, marks=pytest.mark.sweep)
        for name in ("tiny-gemma", "tiny-opt", "tiny-qwen", "tiny-mistral")
        for rest in (("lora", rademacher(), 1.0), ("full", low_rank(1), 1.0), ("full", rademacher(), 0.0))
    ],
]


@pytest.mark.parametrize(("name", "scheme", "directions", "temperature"), CELLS)
def test_members_in_one_batch_write_what_each_writes_alone(name, scheme, directions, temperature):
    alone, one = probed(name, scheme, directions, "stream", temperature)
    together, other = probed(name, scheme, directions, "dual", temperature)
    assert together == alone
    assert other.sketch == one.sketch
    assert len({tuple(texts) for texts in together}) > 1  # members do differ


def test_a_prompt_is_continued_as_without_the_others():
    model = lm.load("tiny-llama")
    whole = generation.generate(model, PROMPTS)
    assert [generation.generate(model, prompts_of(row))[0] for row in ([5, 6, 7, 8], [9, 10], [11, 12, 13])] == whole
    together = generation.write_members(model, PROMPTS, generation.greedy, of_one_copy)
    assert [[one.text for one in member] for member in together] == [whole]


@pytest.mark.parametrize("scheme", ["full", "lora"])
def test_settings_of_the_model_change_no_logits(scheme):
    """Chat models have penalties in their generation_config, which generate() takes for what it is not told."""
    model = schemes.apply(lm.load("tiny-llama"), scheme, seed=1)
    plain = generation.write(model, PROMPTS)
    settings = model.model.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 1
    settings.suppress_tokens, settings.do_sample = [plain[0].ids[0]], True
    try:
        assert generation.write(model, PROMPTS) == plain
        sampled = generation.sampler(1.0, 0, draws(3), NEW)
        (together,) = generation.write_members(model, PROMPTS, sampled, of_one_copy)
        assert generation.write(model, PROMPTS, sampled) == together
        assert model.model.generation_config is settings
    finally:
        for name in ("repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "do_sample"):
            setattr(settings, name, None)


def test_samples_follow_the_distribution():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    count = 20_000
    choose = generation.sampler(1.0, 5, draws(count, "many"), 1)
    tokens = choose(weights.log().expand(count, 4), 0)
    shares = torch.bincount(tokens, minlength=4) / count
    assert float((shares - weights).abs().max()) < 5 * math.sqrt(0.25 / count)
    cold = generation.sampler(0.5, 5, draws(count, "many"), 1)(weights.log().expand(count, 4), 0)
    squared = weights.square() / weights.square().sum()
    assert float((torch.bincount(cold, minlength=4) / count - squared).abs().max()) < 5 * math.sqrt(0.25 / count)


def test_members_share_their_random_numbers_and_steps_do_not():
    logits = torch.zeros(2, 50, 100)
    choose = generation.sampler(1.0, 0, draws(50, "step/0"), 2)
    first, second = choose(logits, 0)
    assert torch.equal(first, second)
    assert not torch.equal(first, choose(logits, 1)[0])
    assert not torch.equal(first, generation.sampler(1.0, 0, draws(50, "step/1"), 2)(logits, 0)[0])
    assert not torch.equal(first, generation.sampler(1.0, 1, draws(50, "step/0"), 2)(logits, 0)[0])


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((4000, 5), -torch.inf)
    logits[:, 2] = 0.0
    assert (generation.sampler(1.0, 0, draws(4000, "only"), 1)(logits, 0) == 2).all()


def test_a_stop_text_of_several_tokens_ends_a_text_alone_and_in_a_population():
    model = lm.load("tiny-llama")
    (whole,) = generation.generate(model, prompts_of([5, 6, 7, 8]))
    stop = whole[2:6]
    assert not generation.stop_tokens(model.tokenizer, stop)  # no single token holds it
    prompts = prompts_of([5, 6, 7, 8], stops=(stop, "not in it"))
    (alone,) = generation.write(model, prompts)
    assert alone.text == whole[: whole.index(stop)].strip()
    assert alone.tokens < NEW
    (unstopped,) = generation.write(model, prompts_of([5, 6, 7, 8]))
    assert unstopped.tokens == NEW
    assert generation.write_members(model, prompts, generation.greedy, of_one_copy) == [[alone]]


@pytest.mark.parametrize("stop", ["。", "é", "\t", "日。", "。\n", "#"])
def test_a_stop_text_ends_a_text_as_soon_as_it_is_written_in_whatever_tokens(stop):
    """The bytes of a character may be a token each; another text goes on and ends nothing."""
    model = lm.load("tiny-llama")
    written = [
        model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"a{stop}bbbbbbbbbbbbbb", "日本語")
    ]
    script = torch.tensor([row[:NEW] for row in written])
    prompts = prompts_of([5, 6, 7, 8], [9, 10], stops=(stop,))

    def choose(logits, position):
        return script[:, position].expand(logits.shape[:-1])

    stopped, other = generation.write(model, prompts, choose)
    assert stopped.text == "a"
    assert stopped.ids == (*model.tokenizer(f"a{stop}", add_special_tokens=False)["input_ids"],)
    assert other.tokens == NEW
    assert generation.write_members(model, prompts, choose, of_one_copy) == [[stopped, other]]
    calls = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    script = script[:1].expand(2, -1)
    for write in (generation.write, lambda *given: generation.write_members(*given, of_one_copy)):
        calls.clear()
        write(model, prompts, choose)
        assert len(calls) == stopped.tokens


class Bytes:
    """A tokenizer of bytes to which a run of them is unreadable whole, as to SentencePiece."""

    def batch_decode(self, rows, skip_special_tokens):
        return [self.decode(bytes(row)) for row in rows]

    def decode(self, run):
        try:
            return run.decode()
        except UnicodeDecodeError:
            return generation.BROKEN * len(run)


def test_a_stop_text_is_read_where_the_last_tokens_begin_within_a_character():
    model = SimpleNamespace(tokenizer=Bytes())
    texts = ("日本é".encode(), "日本ab".encode(), "日本語".encode()[:8])  # the last one ends within a character
    rows = torch.tensor([list(text) for text in texts])
    assert generation.stopped_by(model, rows, ("é",)).tolist() == [True, False, False]
    assert generation.stopped_by(model, rows, ("é", "本ab")).tolist() == [True, True, False]


def test_decoding_ends_where_all_texts_have_ended():
    model = lm.load("tiny-llama")
    (whole,) = generation.generate(model, prompts_of([5, 6, 7, 8]))
    calls = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    (one,) = generation.write(model, prompts_of([5, 6, 7, 8], stops=(whole[2:6],)))
    assert len(calls) == one.tokens
    calls.clear()
    generation.write_members(model, prompts_of([5, 6, 7, 8], stops=(whole[2:6],)), generation.greedy, of_one_copy)
    assert len(calls) == one.tokens


def test_logits_that_are_nan_are_refused():
    model = lm.load("tiny-llama")
    model.head.weight.data[:] = torch.nan
    with pytest.raises(NotFinite, match="not finite"):
        generation.generate(model, PROMPTS)
    with pytest.raises(NotFinite, match="not finite"):
        generation.write_members(model, PROMPTS, generation.greedy, of_one_copy)


def of_one_copy(function, *arguments):
    """What `BatchedForward.call` returns where there is one copy of the weights."""
    own = tree_map(lambda tensor: tensor[0], arguments)
    return tree_map(lambda tensor: tensor.unsqueeze(0), function(*own))
