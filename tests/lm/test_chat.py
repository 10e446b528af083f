"""Prompts as messages of a chat: the tokens are those of the template, which is never cut."""

from __future__ import annotations

from typing import Any

import pytest

from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import chat
from gradless.lm.batching import collate_prompts
from gradless.lm.encode import encode, encode_all, prompt_text
from gradless.lm.evaluate import evaluate
from gradless.lm.generation import generate
from gradless.lm.loading import LanguageModel
from gradless.tasks import get
from gradless.tasks.base import Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
REASONING = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}\n" + CHATML
LONG = "so " * 200
ROW = Example("a joy It was", (" terrible", " great"), (1,), content_free=" It was", contents=((0, 5),))


def model(template: str, source: str = "tiny-llama") -> LanguageModel:
    """A tiny model with a chat template and its special tokens."""
    lm = models.load(source)
    tokens = [token for token in ("<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|end|>") if token in template]
    lm.tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)  # type: ignore[operator]
    lm.tokenizer.chat_template = template
    lm.chat = chat.read(lm.tokenizer, source)
    return lm


def expected(lm: LanguageModel, *messages: str, ask: bool = True, **options: Any) -> list[int]:
    """Tokens of a chat by transformers."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    encoding = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=ask, return_dict=True, **options)
    return list(encoding["input_ids"])


TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "thinking": THINKING}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_are_those_of_the_template(name: str) -> None:
    lm = model(TEMPLATES[name])
    encoded = encode(lm, ROW)
    assert list(encoded.prompt) == expected(lm, "a joy It was", enable_thinking=False)
    assert prompt_text(lm, ROW) == lm.tokenizer.decode(encoded.prompt)
    assert encoded.prompt.count(lm.tokenizer.bos_token_id) == TEMPLATES[name].count("bos_token")
    for label, option in zip(("terrible", "great"), range(2), strict=True):
        whole = [*encoded.context(option), *encoded.options[option]]
        assert lm.tokenizer.decode(encoded.options[option]) == label
        assert expected(lm, "a joy It was", label, ask=False)[: len(whole)] == whole
    with_examples = encode(lm, ROW, None, [ROW._replace(prompt="bad It was", correct=(0,)), ROW])
    turns = ("bad It was", "terrible", "a joy It was", "great", "a joy It was")
    assert list(with_examples.prompt) == expected(lm, *turns, enable_thinking=False)


@pytest.mark.parametrize("contents", [((0, len(LONG)),), ()])
def test_only_what_the_user_says_is_cut(contents: tuple[tuple[int, int], ...]) -> None:
    lm = model(CHATML)
    row = ROW._replace(prompt=f"{LONG}fine It was", contents=contents)
    encoded = encode(lm, row, 80)
    text = lm.tokenizer.decode(encoded.prompt)
    assert encoded.cut
    assert text.startswith("<|im_start|>user\nso ")
    assert text.endswith("fine It was<|im_end|>\n<|im_start|>assistant\n")
    assert 70 < encoded.longest < 80
    with pytest.raises(BadInput, match="shorter than the template and an option"):
        encode(lm, row, 20)


def test_examples_that_do_not_fit_are_left_out_whole() -> None:
    lm = model(CHATML)
    bad = ROW._replace(prompt="bad It was", correct=(0,))
    whole = len(expected(lm, "a joy It was", "great", "a joy It was")) + 10
    encoded = encode(lm, ROW, whole, [bad, ROW])
    assert list(encoded.prompt) == expected(lm, "a joy It was", "great", "a joy It was")
    assert encoded.cut


def test_a_thought_or_a_channel_is_over_before_the_answer() -> None:
    assert prompt_text(model(REASONING), ROW) == "<s><|user|>a joy It was<|assistant|>"
    assert prompt_text(model(CHANNELS), ROW).endswith("<|start|>assistant<|channel|>final<|message|>")
    assert model(CHANNELS).chat is not None
    assert model(CHANNELS).chat.end_text == "<|end|>"  # type: ignore[union-attr]
    with pytest.raises(BadInput, match="opens a thought before every answer"):
        model(CHATML.replace("assistant\n", "assistant\n<think>\n").replace("role'] }}\n", "role'] }}\n<think>\n"))


def test_a_template_with_a_date_says_the_same_every_day() -> None:
    assert prompt_text(model(DATED), ROW).startswith("Today is 26 Jul 2024\n")


def test_generated_answers_end_with_the_turn() -> None:
    lm = model(CHATML)
    assert lm.chat is not None
    question = Example("What is it?", (), (), answers=("a cat",))
    encoded = encode(lm, question)
    text = lm.tokenizer.decode(encoded.context(0) + encoded.options[0])
    assert text.endswith("<|im_start|>assistant\na cat<|im_end|>")
    end = lm.chat.end
    prompts = collate_prompts(lm, [encoded], new_tokens=8)
    spoken: list[int] = []
    original = lm.model.generate

    def watched(**options: Any) -> Any:
        spoken.extend(options["generation_config"].eos_token_id)
        return original(**options)  # type: ignore[operator]

    lm.model.generate = watched  # type: ignore[assignment]
    generate(lm, prompts)
    assert end in spoken


def test_a_long_question_leaves_room_for_its_answer() -> None:
    lm = model(CHATML)
    task = get("squad")
    row = Example(f"{LONG}What?", (), (), answers=("x",), contents=((0, len(LONG)),))
    (encoded,) = encode_all(lm, task, [row])
    prompts = collate_prompts(lm, [encoded], task.stops, task.max_new_tokens)
    assert lm.tokenizer.decode(prompts.input_ids[0]).startswith("<|im_start|>user\n")
    assert prompts.input_ids.shape[1] + task.max_new_tokens <= 256


def test_all_ways_of_evaluation_go_through_the_template() -> None:
    lm, plain = model(CHATML), models.load("tiny-llama")
    rows = [{"sentence": f"a joy {i} .", "label": i % 2} for i in range(4)]
    for mode in ("zero-shot", "icl", "calibrated"):
        options: dict[str, Any] = {"mode": mode, "demonstrations": rows, "num_demonstrations": 2}
        with_chat = evaluate(lm, get("sst2"), rows, **options)
        assert with_chat.loss != evaluate(plain, get("sst2"), rows, **options).loss


@pytest.mark.parametrize(
    ("source", "template", "words"),
    [
        ("tiny-llama", None, r"the tokenizer of tiny-llama has no chat template: leave out --chat, or choose"),
        ("tiny-roberta", CHATML, "tiny-roberta is a masked model"),
        ("tiny-llama", "{{ raise_exception('no users here') }}", r"cannot be used \(no users here\)"),
        ("tiny-llama", "{% for m in messages %", "cannot be used"),
        ("tiny-llama", "hello", "leaves out what the user says"),
        ("tiny-llama", "{{ messages[0]['content'] }}", "leaves out what the assistant says"),
        ("tiny-llama", "{{ messages[0]['content'] | upper }}", "leaves out what the user says"),
    ],
)
def test_what_is_no_chat(source: str, template: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = models.load(source)
    lm.tokenizer.chat_template = template
    monkeypatch.setattr("gradless.lm.loading._loaded", lambda *_: lm)
    with pytest.raises(BadInput, match=words) as caught:
        models.load(source, chat=True)
    assert "\n" not in str(caught.value)


def test_a_template_of_one_turn_has_no_examples() -> None:
    lm = model("{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML)
    encode(lm, ROW)
    with pytest.raises(BadInput, match="does not take several turns"):
        encode(lm, ROW, None, [ROW])


def test_the_same_model_is_loaded_without_a_chat_again() -> None:
    assert models.load("tiny-qwen", chat=True).chat is not None
    assert models.load("tiny-qwen").chat is None
