"""Predictions for rows whose answer is not known: the scores of all options, or a generated text.

`gradless.lm.evaluate` computes the same with the same functions, in the same batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gradless.errors import BadInput, NotFinite
from gradless.kernels import products
from gradless.lm.batching import Batch, collate_options, collate_prompts, groups, has_label_head
from gradless.lm.encode import Encoded, content_free, encode, encode_all, length_limit, task_options, writing_limit
from gradless.lm.generation import generate
from gradless.lm.loading import LanguageModel
from gradless.lm.scoring import Scores, scores
from gradless.tasks.base import Example, Task


class Answer(NamedTuple):
    """What a model answers to one example."""

    best: int
    """Index of the option with the highest score; -1 for a generated text."""
    probabilities: tuple[float, ...]
    """Softmax over the options of what they are compared by; empty for a generated text."""
    text: str
    """The best option without outer white space, or what was generated."""
    options: tuple[str, ...]
    """All of them, without outer white space."""
    cut: bool
    """Whether some text was left out because all of it is longer than the limit."""


def predict(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    *,
    calibrated: bool = False,
    normalised: bool = False,
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Return the answers to rendered examples, in their order.

    Args:
        lm: the model; its training mode is restored.
        task: of the examples.
        examples: from `gradless.lm.evaluate.render`. The right option may be any; it plays no part.
        calibrated: subtract what options score after the prompt without content (`gradless.lm.evaluate`).
        normalised: true log-probabilities also where logits serve, as an objective that needs them does: the last bit
            may depend on it.
        max_length: most tokens of a sequence (see `gradless.lm.encode.encode`).
        batch_size: most examples of a batch; by default only their tokens count, as in an evaluation.
        progress: called with the number of finished examples.

    Raises:
        BadInput: an example does not fit the model, or calibration does not fit it.
        NotFinite: logits are NaN or infinite.

    Cost: one forward a batch; generation one per new token.
    """
    if not examples:
        return []
    tokens = default_batch_tokens(lm)
    encoded = encode_all(lm, task, examples, max_length)
    with quiet(lm):
        buckets = groups(lm, encoded, batch_size=batch_size, batch_tokens=tokens)
        if task.kind == "generation":
            return _generated(lm, task, encoded, _ticked(buckets, progress), max_length)
        baseline = None
        if calibrated:
            settings = task_options(lm, task, max_length)
            baseline = content_free_scores(lm, task, examples, settings, tokens)
        chosen: list[Answer | None] = [None] * len(examples)
        for group in _ticked(buckets, progress):
            batch = collate_options(lm, [encoded[i] for i in group])
            base = None if baseline is None else [baseline[i] for i in group]
            _, values = compared(lm, batch, base, normalised=normalised)
            best, shares = values.argmax(1).tolist(), values.softmax(1).tolist()
            for i, option, share in zip(group, best, shares, strict=True):
                options = tuple(text.strip() for text in examples[i].options)
                chosen[i] = Answer(option, tuple(share[: len(options)]), options[option], options, encoded[i].cut)
    answers = [answer for answer in chosen if answer is not None]
    bad = sum(answer.probabilities[answer.best] != answer.probabilities[answer.best] for answer in answers)
    if bad:
        raise not_finite(lm, f"for {bad} of {len(answers)} rows")
    return answers


def _generated(
    lm: LanguageModel, task: Task, encoded: Sequence[Encoded], buckets: Iterable[list[int]], max_length: int | None
) -> list[Answer]:
    """Return generated texts; a prompt loses its beginning if the new tokens would not fit behind it."""
    room = writing_limit(lm, task.max_new_tokens, max_length)
    answers = [Answer(-1, (), "", (), False)] * len(encoded)
    for group in buckets:
        rows = [encoded[i] for i in group]
        texts = generate(lm, collate_prompts(lm, rows, task.stops, task.max_new_tokens, max_length))
        for i, text in zip(group, texts, strict=True):
            answers[i] = Answer(-1, (), text, (), encoded[i].cut or len(encoded[i].prompt) > room)
    return answers


def _ticked(buckets: Iterable[list[int]], progress: Callable[[int], None] | None) -> Iterator[list[int]]:
    """Yield the buckets; report progress after each."""
    done = 0
    for group in buckets:
        yield group
        done += len(group)
        if progress is not None:
            progress(done)


def reading_limit(lm: LanguageModel, task: Task, max_length: int | None = None) -> int:
    """Return the most tokens that `predict` reads of an example."""
    limit = length_limit(lm, task_options(lm, task, max_length)["max_length"])
    return min(limit, writing_limit(lm, task.max_new_tokens, max_length)) if task.kind == "generation" else limit


# --------------------------------------------------------------------------------------------------------
# what an evaluation does in the same way


def compared(
    lm: LanguageModel, batch: Batch, baseline: Sequence[torch.Tensor] | None, *, normalised: bool
) -> tuple[Scores, torch.Tensor]:
    """Return the scores of a batch's options, and the values ``[N, O]`` whose largest is the prediction.

    Args:
        lm: the model.
        batch: of `gradless.lm.batching.collate_options`.
        baseline: of each row, from `content_free_scores`; None without calibration.
        normalised: whether true log-probabilities are needed (see `gradless.lm.scoring.scores`).

    Cost: one forward.
    """
    options = scores(lm, batch, normalised=normalised or baseline is not None)
    if baseline is None:
        return options, options.mean
    values = options.total.clone()
    for row, bare in enumerate(baseline):
        values[row, : len(bare)] -= bare
    return options, values


def content_free_scores(
    lm: LanguageModel, task: Task, examples: Sequence[Example], settings: Mapping[str, Any], batch_tokens: int
) -> list[torch.Tensor]:
    """Return the log-probabilities ``[O]`` of each example's options after its prompt without content.

    Most tasks have one such prompt and one set of options, so each distinct pair is scored once.
    """
    if task.kind == "generation" or has_label_head(lm):
        raise BadInput("calibration needs options scored by the model's own output layer: use --mode zero-shot")
    bare = [content_free(example)._replace(correct=(0,), answers=(), first=None) for example in examples]
    distinct = {(row.prompt, row.options): row for row in bare}
    encoded = [encode(lm, row, **settings) for row in distinct.values()]
    keys, by_prompt = list(distinct), {}
    for group in groups(lm, encoded, batch_tokens=batch_tokens):
        total = scores(lm, collate_options(lm, [encoded[i] for i in group]), normalised=True).total
        for row, i in enumerate(group):
            by_prompt[keys[i]] = total[row, : len(encoded[i].options)]
    return [by_prompt[row.prompt, row.options] for row in bare]


def not_finite(lm: LanguageModel, rows: str) -> NotFinite:
    """Return the error about logits that are NaN or infinite; ``rows`` says for how many rows."""
    dtype = str(lm.dtype).removeprefix("torch.")
    return NotFinite(
        f"the model's logits are not finite {rows}: its weights hold NaN or infinities, or overflow in {dtype}; "
        "use another model, a lower learning rate, or float32"
    )


def default_batch_tokens(lm: LanguageModel) -> int:
    """Return the most tokens of a batch: what fits a CPU's caches, elsewhere what keeps a device busy."""
    return 1024 if lm.device.type == "cpu" else 16384


@contextlib.contextmanager
def quiet(lm: LanguageModel) -> Iterator[list[int]]:
    """Evaluation mode without gradients; yields the number of the model's forwards as a list of one."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    training = lm.model.training
    hook = lm.head.register_forward_pre_hook(count)  # every forward calls the output layer exactly once
    lm.model.eval()
    try:
        with torch.no_grad(), products.faster():
            yield calls
    finally:
        hook.remove()
        lm.model.train(training)
