"""Prompts and options as token ids: truncation, masked prompts, demonstrations, length limits and batching."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import normalizers

from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import objectives
from gradless.lm.batching import collate_options, groups
from gradless.lm.encode import completed, encode, encode_all, length_limit
from gradless.lm.evaluate import num_cut
from gradless.tasks.base import MASK, Example
from gradless.tasks.own import own_task
from gradless.tasks.own_prompts import prompt_task
from scoring_helpers import SENTENCES, questions, several, shared, single, task, words


def ids(lm, text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer(text)["input_ids"])


def test_options_are_the_difference_of_token_counts():
    lm = shared("opt")
    example = Example("the film so ", (" a movie", " no"), (1,))
    row = encode(lm, example)
    assert row.prompt == ids(lm, "the film so")  # the space at the end is stripped
    for i, option in enumerate(example.options):
        assert row.context(i) + row.options[i] == ids(lm, "the film so " + option)
    assert row.gold == 1


def test_spaces_are_stripped_but_newlines_are_not():
    lm = shared("opt")
    row = encode(lm, Example("  the film\n", ("Yes",), (0,)))
    assert row.prompt == ids(lm, "the film\n")
    assert row.context(0) + row.options[0] == ids(lm, "the film\nYes")


def test_single_needs_one_token_and_one_context():
    lm = shared("opt")
    assert all(encode(lm, example).single for example in single(lm))
    assert not any(encode(lm, example).single for example in several(lm))


def test_left_truncation_keeps_bos_and_the_options():
    lm = shared("opt")
    bos = lm.tokenizer.bos_token_id
    example = Example("it was a movie " * 10, (" good film", " bad"), (0,))
    whole = encode(lm, example)
    row = encode(lm, example, max_length=12)
    assert whole.prompt[0] == bos  # this tokenizer has one, or the test shows nothing
    for i in range(2):
        tokens = row.context(i) + row.options[i]
        assert len(tokens) == 12
        assert tokens[0] == bos
        assert tokens[1:] == (whole.context(i) + whole.options[i])[-11:]
        assert row.options[i] == whole.options[i]
    assert len(row.prompt) == 12


def own(lm, template: str, **columns: str):
    """A row of a task of own files: what is cut, and what the prompt is then."""
    from gradless.tasks.own import _render, parse_template

    example = _render(parse_template(template), words(lm, 2), {"columns": columns, "label": 0})
    return example, lambda limit: encode(lm, example, max_length=limit)


@pytest.mark.parametrize("name", ["opt", "qwen", "roberta"])
def test_the_longest_column_is_cut_and_the_template_stays(name):
    lm = shared(name)
    mask = MASK if lm.masked else ""
    template = "So, {title}! Read: {text} It was" + (" {mask}." if mask else "")
    example, cut_to = own(lm, template, title="the film", text="first " + "good movie " * 30 + "last")
    whole = cut_to(None)
    assert not whole.cut
    for limit in (len(whole.prompt) - 1, 60, 45):
        row = cut_to(limit)
        assert row.cut
        assert limit - 5 <= row.longest + (0 if lm.masked else 1) <= limit
        text = lm.tokenizer.decode(row.prompt, skip_special_tokens=True)
        assert text.startswith("So, the film! Read: ")
        assert ("first" in text, "last" in text) == ((True, False) if lm.masked else (False, True))
        assert text.endswith("It was." if lm.masked else " It was")
    with pytest.raises(BadInput, match="max_length 9 is shorter than the template"):
        cut_to(9)
    assert example.content_free.startswith("So, ! Read:")


def test_a_prompt_without_columns_loses_its_beginning_and_is_counted():
    lm = shared("opt")
    example = Example("it was a movie " * 10, (" good film", " bad"), (0,))
    assert not encode(lm, example).cut
    assert encode(lm, example, max_length=12).cut


def test_truncation_without_bos(monkeypatch):
    lm = shared("opt")
    example = Example("it was a movie " * 10, (" good film",), (0,))
    monkeypatch.setattr(type(lm.tokenizer), "bos_token_id", property(lambda self: None), raising=False)
    row = encode(lm, example, max_length=12)
    assert row.context(0) + row.options[0] == ids(lm, (example.prompt + " good film").strip(" "))[-12:]


def test_bad_options_are_refused():
    lm = shared("opt")
    with pytest.raises(BadInput, match="no token of its own"):
        encode(lm, Example("the film", ("",), (0,)))
    with pytest.raises(BadInput, match="raise max_length"):
        encode(lm, Example("so", (" the film" * 10,), (0,)), max_length=8)
    with pytest.raises(BadInput, match="no room"):
        encode(lm, Example("so", (" no",), (0,)), max_length=1)


def test_generation_trains_on_the_first_answer_with_its_stop():
    lm = shared("opt")
    example = questions(1)[0]
    row = encode(lm, example)
    assert row.context(0) + row.options[0] == ids(lm, example.prompt + " the film\n")
    assert row.gold == 0
    assert row.answers == ("the film", "a movie")
    bare = encode(lm, example._replace(answers=()))
    assert bare.options == ()
    assert bare.prompt == row.prompt


def test_demonstrations_are_stripped_joined_and_in_front():
    lm = shared("opt")
    shown = [Example("\n the film so", (" no", " okay"), (1,), tail=" !"), questions(1)[0]]
    assert completed(shown[0]) == "the film so okay !"
    assert completed(shown[1]) == f"Question: {SENTENCES[0]}\nAnswer: the film"
    example = Example(" it was", (" good",), (0,))
    row = encode(lm, example, demonstrations=shown)
    text = completed(shown[0]) + "\n\n" + completed(shown[1]) + "\n\nit was"
    assert row.prompt == ids(lm, text)
    assert row.context(0) + row.options[0] == ids(lm, text + " good")


def test_an_empty_prompt_without_bos_still_has_a_position():
    lm = shared("qwen")
    assert ids(lm, "") == ()
    row = encode(lm, Example("", ("Yes it was",), (0,)))
    assert row.prompt == row.context(0) == (lm.tokenizer.eos_token_id,)
    assert row.options[0] == ids(lm, "Yes it was")


def test_masked_prompt_and_words():
    lm = shared("roberta")
    example = single(lm)[0]
    row = encode(lm, example)
    assert row.prompt == ids(lm, example.prompt.replace(MASK, lm.tokenizer.mask_token))
    assert row.prompt[row.mask] == lm.tokenizer.mask_token_id
    assert [lm.tokenizer.decode(option) for option in row.options] == list(example.options)
    assert row.single


def test_masked_refusals():
    lm = shared("roberta")
    labels = words(lm, 2)
    with pytest.raises(BadInput, match=" notoneword"):
        encode(lm, Example(f"so{MASK}", (labels[0], " notoneword"), (0,)))
    with pytest.raises(BadInput, match="exactly once"):
        encode(lm, Example("so", labels, (0,)))
    with pytest.raises(BadInput, match="do not generate"):
        encode(lm, Example(f"so{MASK}", (), (), ("x",)))
    with pytest.raises(BadInput, match="causal"):
        encode(lm, single(lm)[0], demonstrations=[single(lm)[1]])


def test_masked_truncation_cuts_the_sentence_not_the_template():
    lm = shared("roberta")
    labels = words(lm, 2)
    sentence = "the film was good " * 12
    example = Example(f"{sentence}So it was{MASK}.", labels, (0,), content_free=f"So it was{MASK}.")
    whole, row = encode(lm, example), encode(lm, example, max_length=20)
    assert len(row.prompt) == 20
    assert row.prompt[row.mask] == lm.tokenizer.mask_token_id
    # BOS and the sentence's beginning stay, and so does everything from the template's first word on.
    words_kept = len(lm.tokenizer(f"So it was{MASK}.", add_special_tokens=False)["input_ids"]) + 1
    assert row.prompt[-words_kept:] == whole.prompt[-words_kept:]
    assert row.prompt[: 20 - words_kept] == whole.prompt[: 20 - words_kept]


def test_masked_truncation_cuts_the_longer_of_two_sentences():
    lm = shared("roberta")
    labels = words(lm, 2)
    start, second = ("the film was good " * 6).strip(), ", no it was"
    example = Example(f"{start}?{MASK}{second}", labels, (0,), content_free=f"?{MASK},", first=(0, len(start)))
    whole = encode(lm, example)
    tail = whole.prompt[whole.mask - 1 :]  # from the question mark on
    limit = 2 * len(tail)
    row = encode(lm, example, max_length=limit)
    assert limit < len(whole.prompt)
    assert row.prompt == whole.prompt[: limit - len(tail)] + tail
    swapped = Example(f"no?{MASK}, {start}", labels, (0,), content_free=f"?{MASK},", first=(0, 2))
    whole, row = encode(lm, swapped), encode(lm, swapped, max_length=16)
    assert row.prompt == whole.prompt[:15] + whole.prompt[-1:]
    with pytest.raises(BadInput, match="template"):
        encode(lm, swapped, max_length=4)


def test_first_limit_counts_tokens_of_the_first_sentence():
    lm = shared("roberta")
    labels = words(lm, 2)
    text = "the film was good and so it was a movie"
    example = Example(f"{text} so{MASK}.", labels, (0,), first=(0, len(text)))
    toy_task = task("classification", first_limit=3, max_length=60)
    row = encode_all(lm, toy_task, [example])[0]
    kept = lm.tokenizer(text, add_special_tokens=False)["input_ids"][:3]
    rest = lm.tokenizer(f" so{lm.tokenizer.mask_token}.", add_special_tokens=False)["input_ids"]
    assert list(row.prompt[1:-1]) == kept + rest


def test_limit_is_the_models_own():
    lm = shared("roberta")
    assert length_limit(lm, 10**6) == lm.model.config.max_position_embeddings - lm.model.config.pad_token_id - 1
    full = "good film " * 500
    example = Example(f"{full} so{MASK}", words(lm, 2), (0,), content_free=f" so{MASK}")
    with torch.no_grad():
        row = encode(lm, example)
        assert lm.model(input_ids=torch.tensor([row.prompt])).logits.shape[1] == length_limit(lm)


def test_a_model_without_a_limit_reads_as_much_as_is_asked_for(monkeypatch):
    lm = shared("opt")
    for limits, most in (({}, 5000), ({"max_position_embeddings": -1}, 5000), ({"max_seq_len": 4096}, 4096)):
        monkeypatch.setattr(type(lm), "config", SimpleNamespace(model_type="bloom", **limits))
        assert length_limit(lm) == 2048
        assert length_limit(lm, 5000) == most


def test_a_prompt_longer_than_by_default_is_written_behind_if_that_is_asked_for(monkeypatch):
    lm = shared("opt")
    monkeypatch.setattr(type(lm), "config", SimpleNamespace(model_type="opt", max_position_embeddings=8192))
    toy_task = task("generation", max_new_tokens=50)
    rows = [Example("good film " * 500, (), (), answers=("yes",))]
    whole = len(encode(lm, rows[0], 8192).prompt)
    for asked, read in ((None, 2048 - 50), (whole - 200, whole - 200 - 50), (8192, whole)):
        encoded = encode_all(lm, toy_task, rows, asked)
        assert num_cut(lm, toy_task, encoded, asked) == (read < whole)
        chosen = objectives.choose(toy_task, "f1", max_length=asked)
        assert chosen.prepare(lm, encoded).input_ids.shape == (1, read)


def test_what_is_written_has_room_without_cutting_the_template():
    lm = shared("opt")
    toy_task = replace(prompt_task("Say in one word: {text} It is"), max_new_tokens=30)
    limit = length_limit(lm)
    (row,) = encode_all(lm, toy_task, [toy_task.render({"columns": {"text": "good film " * limit}})])
    prompts = objectives.collate_prompts(lm, [row], (), 30)
    text = lm.tokenizer.decode(prompts.input_ids[0], skip_special_tokens=True)
    assert text.startswith("Say in one word:")
    assert text.endswith("It is")
    assert prompts.input_ids.shape[1] + 30 <= limit
    assert row.cut


@pytest.mark.parametrize("architecture", ["opt", "roberta"])
def test_classes_that_are_the_same_to_a_model_are_refused(architecture):
    lm = models.tiny(architecture)
    lm.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # as of an uncased model
    tail = " {mask}." if lm.masked else ""
    toy_task = own_task(f"{{text}} It was{tail}", "x=good,y=Good")
    rows = [(toy_task.render_masked or toy_task.render)({"columns": {"text": "a film"}, "label": 0})] * 2
    with pytest.raises(BadInput, match=r"'x' and 'y' are the same to tiny-.*reads ' good' for both"):
        encode_all(lm, toy_task, rows)


def test_a_mask_in_the_text_of_a_row_is_not_the_one_to_fill():
    lm = models.tiny("roberta")
    lm.tokenizer.mask_token = lm.tokenizer.unk_token  # spelled otherwise than in templates, as [MASK] of BERT is
    toy_task = own_task("{text} so {mask}.", "0=good,1=bad")
    texts = [f"my {lm.tokenizer.mask_token} name {lm.tokenizer.mask_token}", "my  name "]
    rows = [toy_task.render_masked({"columns": {"text": text}, "label": 0}) for text in texts]
    marked, plain = encode_all(lm, toy_task, rows)
    assert marked.prompt.count(lm.tokenizer.mask_token_id) == 1
    assert lm.tokenizer.decode(marked.prompt[marked.mask + 1 :]).startswith(".")
    assert lm.tokenizer.decode(marked.prompt).split() == lm.tokenizer.decode(plain.prompt).split()


def test_a_tokenizer_written_in_python_gives_the_same_tokens():
    lm = models.tiny("opt")
    toy_task, rows = task("classification"), single(lm)
    expected = encode_all(lm, toy_task, rows)

    class Slow:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, *texts, **options):
            return self.inner(*texts, **options)

        def __getattr__(self, name):
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self.inner, name)

    lm.tokenizer = Slow(lm.tokenizer)
    assert encode_all(lm, toy_task, rows) == expected


@pytest.mark.parametrize("size", [None, 1, 3])
def test_groups_hold_every_index_once_within_their_bounds(size):
    lm = shared("opt")
    encoded = [encode(lm, example) for example in (*single(lm, 9), *several(lm, 7))]
    index_groups = list(groups(lm, encoded, batch_size=size, batch_tokens=60))
    assert sorted(i for group in index_groups for i in group) == list(range(16))
    for group in index_groups:
        assert len({encoded[i].single for i in group}) == 1
        assert size is None or len(group) <= size
        batch = collate_options(lm, [encoded[i] for i in group])
        assert len(group) == 1 or batch.input_ids.numel() <= 60
    lengths = [encoded[i].longest for group in index_groups for i in group if encoded[i].single]
    assert lengths == sorted(lengths, reverse=True)
