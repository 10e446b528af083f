"""Encoding of rendered examples as tokens.

The encoding is MeZO's (Malladi et al. 2023, arXiv 2305.17333): spaces, not newlines, are stripped at both
ends of a prompt and of a prompt with an option before they are tokenised; an option's length is the
difference of the two token counts; only an option's tokens are scored. Texts that are too long lose their
beginning, but not their first special token. Where the example says which parts are the row's own text
(`gradless.tasks.base.Example.contents`), the longest of these is shortened and the words around them stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from gradless.errors import BadInput
from gradless.lm.chat import Chat
from gradless.lm.encoded import Encoded as Encoded
from gradless.lm.encoded import Tokens as Tokens
from gradless.lm.loading import LanguageModel
from gradless.lm.shortening import fit_around, fitted, shorten_first, template_tokens
from gradless.tasks.base import MASK, Example, Task

DEFAULT_MAX_LENGTH = 2048
SEPARATOR = "\n\n"  # between demonstrations, as in MeZO
POSITIONS = ("max_position_embeddings", "max_seq_len")  # names in configurations; MPT has the second
TOKENIZED = 1024  # examples whose texts go to the tokenizer in one call


# ------------------------------------------------------------------------------------------------------------
# one example


def length_limit(lm: LanguageModel, max_length: int | None = None) -> int:
    """Return the most tokens of a sequence: ``max_length`` (default 2048), or fewer if the model takes fewer.

    Raises:
        BadInput: fewer than two.
    """
    config = lm.config
    known = (getattr(config, name, None) for name in POSITIONS)  # none, or -1 (XLNet): there is no limit
    positions = next((number for number in known if number and number > 0), max_length or DEFAULT_MAX_LENGTH)
    if lm.masked and getattr(config, "pad_token_id", None) is not None and "roberta" in config.model_type:
        positions -= config.pad_token_id + 1  # RoBERTa's positions start behind the padding index
    if lm.masked:  # the limit of a causal tokenizer often says nothing about the model
        positions = min(positions, lm.tokenizer.model_max_length)
    positions -= max((getattr(adapter, "num_virtual_tokens", None) or 0 for adapter in lm.adapters), default=0)
    limit = min(max_length or DEFAULT_MAX_LENGTH, positions)
    if limit < 2:
        raise BadInput(f"max_length {max_length} leaves no room for a prompt and an option: raise it")
    return limit


def writing_limit(lm: LanguageModel, new_tokens: int, max_length: int | None = None) -> int:
    """Return the most tokens of a prompt behind which so many new ones are written.

    Together they may be what `length_limit` says without ``max_length``, or with it if that is more.
    """
    return max(length_limit(lm), length_limit(lm, max_length)) - new_tokens


def completed(example: Example, stop: str = "\n") -> str:
    """Return prompt and gold completion as one text without outer white space: a demonstration."""
    return (example.prompt + _completions(example, stop)[_gold(example)]).strip()


def encode(
    lm: LanguageModel,
    example: Example,
    max_length: int | None = None,
    demonstrations: Sequence[Example] = (),
    *,
    first_limit: int | None = None,
    stop: str = "\n",
) -> Encoded:
    """Return the tokens of an example, behind its demonstrations if there are any.

    Args:
        lm: the model, whose tokenizer and limits count.
        example: a rendered example.
        max_length: most tokens of a sequence (default: 2048 or what the model takes).
        demonstrations: solved examples in front of the prompt (in-context learning).
        first_limit: masked models: most tokens of the first sentence.
        stop: generation: the text that ends an answer.

    Raises:
        BadInput: an option has no token of its own or does not fit, or a masked model's label word is not one
            token.
    """
    limit = length_limit(lm, max_length)
    if lm.masked:
        if demonstrations:
            raise BadInput("in-context learning needs a causal model: use zero-shot with a masked one")
        return _encode_masked(lm, example, limit, first_limit)
    texts = _causal_texts(lm, demonstrations, example.prompt, completions_of(lm, example, stop), stop)
    tokens = _tokenize(lm, texts)
    _check_known(lm, tokens)
    return _encode_causal(lm, example, limit, demonstrations, stop, tokens)


def _encode_causal(
    lm: LanguageModel,
    example: Example,
    limit: int,
    demonstrations: Sequence[Example],
    stop: str,
    tokens: list[list[int]],
) -> Encoded:
    """`encode` of an example of which `_causal_texts` are tokens already."""
    completions = completions_of(lm, example, stop)
    prompt, wholes = _with_start(lm, tokens)
    lengths = [len(whole) - len(prompt) for whole in wholes]
    for completion, length in zip(completions, lengths, strict=True):
        _check_option(completion, length, limit)
    cut = max(map(len, (prompt, *wholes))) > limit
    if cut:
        example, demonstrations = _fitted_causal(lm, example, demonstrations, completions, limit, stop)
        prompt, wholes = _causal_rows(lm, demonstrations, example.prompt, completions, stop)
        lengths = [len(whole) - len(prompt) for whole in wholes]
    pairs = list(zip(wholes, lengths, strict=True))
    contexts = [shorten(whole[:-length], limit - length, lm.tokenizer) for whole, length in pairs]
    options = tuple(tuple(whole[-length:]) for whole, length in pairs)
    shared = tuple(contexts[:1]) if len(set(contexts)) == 1 else tuple(contexts)
    correct = (0,) if example.answers and not example.options else example.correct
    prompt_tokens = shorten(prompt, limit, lm.tokenizer)
    return Encoded(
        prompt_tokens,
        shared,
        options,
        None,
        correct,
        tuple(example.answers),
        cut,
        example.prompt,
        example.columns,
    )


def _causal_texts(
    lm: LanguageModel, demonstrations: Sequence[Example], prompt: str, completions: Sequence[str], stop: str
) -> list[str]:
    """Return a prompt behind its demonstrations, and it with each completion."""
    if lm.chat is not None:
        asked = _asked(lm.chat, lm, demonstrations, prompt, stop)
        return [asked, *(asked + completion for completion in completions)]
    solved = "".join(completed(shown, stop) + SEPARATOR for shown in demonstrations)
    texts = [solved + prompt.strip(" "), *(solved + (prompt + completion).strip(" ") for completion in completions)]
    return [text.strip(" ") for text in texts]


def _causal_rows(
    lm: LanguageModel, demonstrations: Sequence[Example], prompt: str, completions: Sequence[str], stop: str
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens of a prompt behind its demonstrations, and of it with each completion."""
    return _with_start(lm, _tokenize(lm, _causal_texts(lm, demonstrations, prompt, completions, stop)))


def _with_start(lm: LanguageModel, rows: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Return the tokens of a prompt, of which there is one at least, and of it with each completion."""
    prompt, *wholes = rows
    if prompt:
        return prompt, wholes
    start = _document_start(lm.tokenizer)  # some token must stand where the first option token is predicted
    return [start], [[start, *whole] for whole in wholes]


def _asked(chat: Chat, lm: LanguageModel, demonstrations: Sequence[Example], prompt: str, stop: str) -> str:
    """Return a prompt behind its demonstrations as a chat."""
    solved = [
        (shown.prompt.strip(), completions_of(lm, shown, stop)[_gold(shown)].removesuffix(chat.end_text))
        for shown in demonstrations
    ]
    return chat.text(solved, prompt.strip())


def prompt_text(lm: LanguageModel, example: Example) -> str:
    """Return the prompt of an example as the model reads it: within its chat template, if it has to use one."""
    return example.prompt if lm.chat is None else lm.chat.text((), example.prompt.strip())


def _fitted_causal(
    lm: LanguageModel,
    example: Example,
    demonstrations: Sequence[Example],
    completions: Sequence[str],
    limit: int,
    stop: str,
) -> tuple[Example, Sequence[Example]]:
    """Return an example whose text is too long with its contents shortened, and the demonstrations that stay.

    In front of a chat demonstrations are left out whole, the first ones first, and all that the user says may be
    shortened. Elsewhere they lose their beginning, and so does a prompt that does not know its contents.
    """

    def measure(prompt: str) -> int:
        bare, continued = _causal_rows(lm, demonstrations if lm.chat else (), prompt, completions, stop)
        return max(map(len, (bare, *continued)))

    if lm.chat is not None:
        while demonstrations and measure(example.prompt) > limit:
            demonstrations = demonstrations[1:]
        if not example.contents and example.prompt:
            example = example._replace(contents=((0, len(example.prompt)),))
    if example.contents:
        example = fitted(lm.tokenizer, example, limit, measure, keep_end=True)
    return example, demonstrations


def encode_all(
    lm: LanguageModel, task: Task, examples: Sequence[Example], max_length: int | None = None
) -> list[Encoded]:
    """Return `encode` of many examples without demonstrations, with the task's own limits and stop text.

    Cost: one call of the tokenizer for `TOKENIZED` examples, which is several times faster than one for each.
    """
    settings = task_options(lm, task, max_length)
    if lm.masked:
        masked = [encode(lm, example, **settings) for example in examples]
        check_told_apart(lm, task, masked)
        return masked
    limit, stop = length_limit(lm, settings["max_length"]), settings["stop"]
    encoded = []
    for first in range(0, len(examples), TOKENIZED):
        some = examples[first : first + TOKENIZED]
        texts = [_causal_texts(lm, (), one.prompt, completions_of(lm, one, stop), stop) for one in some]
        rows = iter(tokens := _tokenize(lm, [text for group in texts for text in group]))
        _check_known(lm, tokens)
        for example, group in zip(some, texts, strict=True):
            encoded.append(_encode_causal(lm, example, limit, (), stop, list(itertools.islice(rows, len(group)))))
    check_told_apart(lm, task, encoded)
    return encoded


def check_told_apart(lm: LanguageModel, task: Task, rows: Sequence[Encoded]) -> None:
    """Refuse classes whose words are the same tokens to a model, such as words in capitals to one without.

    Raises:
        BadInput: with two of them.
    """
    for options in {row.options for row in rows} if task.kind == "classification" else ():
        for index, option in enumerate(options):
            if (other := options.index(option)) < index:
                names = [task.labels[i] if task.labels else str(i) for i in (other, index)]
                raise BadInput(
                    f"the words of the labels {names[0]!r} and {names[1]!r} are the same to {lm.name}, which reads "
                    f"{lm.tokenizer.decode(list(option))!r} for both: give them words that it tells apart"
                )


def task_options(lm: LanguageModel, task: Task, max_length: int | None = None) -> dict[str, Any]:
    """Return the keyword arguments of `encode` that a task sets: its limits count for masked models only."""
    if lm.masked:
        return {"max_length": max_length or task.max_length, "first_limit": task.first_limit}
    if task.kind == "generation" and (lm.chat is not None or not task.metrics):
        # What is written must have room without cutting the template, or a prompt with nothing behind it.
        room = writing_limit(lm, task.max_new_tokens, max_length)
        max_length = min(length_limit(lm, max_length), max(2, room))
    return {"max_length": max_length, "stop": task.stop}


def cut_side(lm: LanguageModel) -> str:
    """Return which end of a text that is too long is left out: ``beginning`` or, of masked models, ``end``."""
    return "end" if lm.masked else "beginning"


def cut_sentence(lm: LanguageModel, what: str, count: int, total: int, limit: int) -> str:
    """Return a line about texts that were cut, such as ``4 of 9 training rows are longer than 256 tokens ...``."""
    return (
        f"{count} of {total} {what} rows are longer than {limit} tokens (--max-length, or what the model takes): "
        f"the {cut_side(lm)} of their text is left out"
    )


def content_free(example: Example) -> Example:
    """Return the example with its prompt's content removed, which calibration compares with."""
    return example._replace(prompt=example.content_free, contents=())


def completions_of(lm: LanguageModel, example: Example, stop: str = "\n") -> tuple[str, ...]:
    """Return what is scored behind the prompt: the options, or the first answer with what ends it.

    In a chat it is what the assistant says: without the space in front, and an answer ends with its turn.
    """
    texts = _completions(example, stop if lm.chat is None else lm.chat.end_text)
    return texts if lm.chat is None else tuple(text.lstrip(" ") for text in texts)


def _completions(example: Example, stop: str) -> tuple[str, ...]:
    if example.options:
        return tuple(option + example.tail for option in example.options)
    return tuple(f" {answer}{stop}" for answer in example.answers[:1])


def _gold(example: Example) -> int:
    if not example.options and example.answers:
        return 0
    if not example.correct:
        raise BadInput(f"the example {example.prompt[:60]!r} has no right option: give it a label")
    return example.correct[0]


def _check_option(text: str, length: int, limit: int) -> None:
    if length < 1:
        raise BadInput(f"option {text!r} has no token of its own after the prompt: begin it with a space")
    if length >= limit:
        raise BadInput(f"option {text[:40]!r} takes {length} of at most {limit} tokens: raise max_length")


def _check_known(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
    """Refuse texts with a token that the tokenizer has and the model does not."""
    largest = max(map(max, filter(None, rows)), default=0)
    if largest >= lm.num_embeddings:
        token = lm.tokenizer.convert_ids_to_tokens(largest)
        raise BadInput(
            f"a text holds the token {token!r}, and {lm.source} has no embedding of it (its tokenizer has "
            f"{len(lm.tokenizer)} tokens, the model {lm.num_embeddings}): choose the tokenizer that belongs to it"
        )


def _tokenize(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of `_causal_texts`: with BOS if the tokenizer adds one, without EOS.

    The text of a chat is taken as it stands, since its special tokens are in it.
    """
    tokenizer, plain = lm.tokenizer, lm.chat is None
    rows = _ids(tokenizer, list(texts), special=plain)
    if not plain:
        return rows
    end = tokenizer.eos_token_id
    ended = tokenizer.eos_token or ""
    return [
        row[:-1] if len(row) > 1 and row[-1] == end and not text.endswith(ended) else row
        for row, text in zip(rows, texts, strict=True)
    ]


def _ids(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
    """Return the token ids of texts, of several from the tokenizer's core, which is faster without offsets."""
    # The first text goes through the tokenizer itself: this sets the core's options, and tells whether both agree.
    core = getattr(tokenizer, "backend_tokenizer", None)  # none of those that are written in Python, such as CTRL's
    first = texts if core is None else texts[:1]
    rows: list[list[int]] = tokenizer(first, add_special_tokens=special, verbose=False)["input_ids"]
    if len(texts) == 1 or core is None:
        return rows
    fast = [one.ids for one in core.encode_batch_fast(texts, add_special_tokens=special)]
    return fast if fast[0] == rows[0] else tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]


def _document_start(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    raise BadInput("an empty prompt needs a tokenizer with a BOS, EOS or padding token: set one of them")


def shorten(tokens: Sequence[int], limit: int, tokenizer: Any) -> Tokens:
    """Return the last ``limit`` tokens; a BOS in front stays and counts."""
    if len(tokens) <= limit:
        return tuple(tokens)
    bos = tuple(tokens[:1]) if tokens[0] == tokenizer.bos_token_id else ()
    kept = limit - len(bos)
    return bos + tuple(tokens[len(tokens) - kept :] if kept else ())


def _encode_masked(lm: LanguageModel, example: Example, limit: int, first_limit: int | None) -> Encoded:
    tokenizer = lm.tokenizer
    if not example.options:
        raise BadInput("masked models do not generate text: use a causal model for this task")
    if example.prompt.count(MASK) != 1:
        raise BadInput(f"a prompt for a masked model must hold {MASK} exactly once: {example.prompt[:60]!r} does not")
    whole_prompt = example.prompt
    if first_limit and example.first:
        example = shorten_first(tokenizer, example, first_limit)

    def tokenized(prompt: str) -> list[int]:
        mask = tokenizer.mask_token
        parts = (part.replace(mask, "") for part in prompt.split(MASK))  # a row may speak of a [MASK] itself
        ids: list[int] = tokenizer(mask.join(parts).strip(" "), verbose=False)["input_ids"]
        return ids

    tokens = tokenized(example.prompt)
    _check_known(lm, [tokens])
    if example.contents and len(tokens) > limit:
        example = fitted(tokenizer, example, limit, lambda prompt: len(tokenized(prompt)), keep_end=False)
        tokens = tokenized(example.prompt)
    cut = len(tokens) > limit or example.prompt != whole_prompt
    position = tokens.index(tokenizer.mask_token_id)
    if len(tokens) > limit:
        tokens, position = fit_around(tokens, position, limit, template_tokens(tokenizer, example), tokenizer)
    options = []
    for option in example.options:
        pieces = tokenizer(option, add_special_tokens=False, verbose=False)["input_ids"]
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
            raise BadInput(
                f"label word {option!r} is {len(pieces)} tokens or unknown to the model: choose a word of one token"
            )
        options.append(tuple(pieces))
    whole = tuple(tokens)
    return Encoded(whole, (whole,), tuple(options), position, example.correct, tuple(example.answers), cut)
