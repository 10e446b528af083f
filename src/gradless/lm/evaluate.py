"""Evaluation: zero-shot, in-context and calibrated, batched and bucketed by length.

The protocol is MeZO's (arXiv 2305.17333): the prediction is the option with the highest mean token
log-probability; calibrated, the highest ``sum log p(option | prompt) - sum log p(option | prompt without
content)``; in context, 32 solved examples drawn anew for every test example stand in front of it; generation
is greedy. The forward that predicts also gives the training loss, by which models are selected on dev data.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from gradless.errors import BadInput, pick
from gradless.lm.batching import collate_options, collate_prompts, groups, has_label_head
from gradless.lm.encode import Encoded, content_free, encode, task_options
from gradless.lm.metrics import SCORES, compute
from gradless.lm.objectives import Objective, default_for, negative_f1
from gradless.lm.scoring import generate, scores
from gradless.ranks import Ranks
from gradless.rng import permutation
from gradless.tasks.base import Example

if TYPE_CHECKING:
    from gradless.lm.loading import LanguageModel
    from gradless.tasks.base import Task

Mode = Literal["zero-shot", "icl", "calibrated"]
MODES: dict[str, str] = {
    "zero-shot": "the prompt alone",
    "icl": "solved examples in front of the prompt",
    "calibrated": "minus the score that an option has after a prompt without content",
}
Progress = Callable[[int, int], None]


class Evaluation(NamedTuple):
    """What an evaluation found, in the order of the rows."""

    metrics: dict[str, float]  # names of `Task.metrics`; empty if nothing was predicted
    loss: float | None  # mean training objective
    predictions: list[int | str]  # option indices, or generated texts
    correct: list[bool]
    forwards: int  # calls of the model
    seconds: float
    probabilities: Sequence[float] = ()  # of the predicted options: softmax of what options are compared by


class _Found(NamedTuple):
    """The outcome of one pass over all examples."""

    predictions: list[int | str]
    losses: _Mean
    probabilities: Sequence[float] = ()


def evaluate(
    lm: LanguageModel,
    task: Task,
    rows: Sequence[Mapping[str, Any] | Example],
    *,
    mode: str = "zero-shot",
    demonstrations: Sequence[Mapping[str, Any] | Example] = (),
    num_demonstrations: int = 32,
    fixed: bool = False,
    seed: int = 0,
    max_length: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    objective: Objective | None = None,
    predict: bool = True,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate a model on rows of a task, or on rendered examples.

    Args:
        lm: the model; its training mode is restored.
        task: how rows become prompts, and which metrics count.
        rows: what to predict.
        mode: a key of `MODES`.
        demonstrations: training rows to draw from, for ``icl`` only.
        num_demonstrations: solved examples in front of each prompt.
        fixed: draw one set of demonstrations for all rows instead of one for each.
        seed: of the draw of demonstrations.
        max_length: most tokens of a sequence (see `gradless.lm.encode.encode`).
        batch_size: most examples of a batch (default: only ``batch_tokens`` counts).
        batch_tokens: most tokens of a batch, padding included (default: 1024 on a CPU, whose caches larger
            activations do not fit, else 16384).
        objective: what ``loss`` is (default: the task's own).
        predict: False skips generation, where the loss does not need it.
        progress: called with the numbers of finished and of all examples.
        ranks: processes that share the batches; all of them get the result that one would have found, to the bit.

    Raises:
        BadInput: the mode does not fit the task or the model, or there are too few demonstrations.

    Cost: one forward per batch; generation adds one per new token, calibration one per distinct prompt
    without content, which is one in all for most tasks.
    """
    started = time.perf_counter()
    pick("mode", mode, MODES)
    if not rows:
        raise BadInput("there is nothing to evaluate: give at least one row")
    examples = render(lm, task, rows)
    settings = task_options(lm, task, max_length)
    batch_tokens = batch_tokens or (1024 if lm.device.type == "cpu" else 16384)
    shown = _drawn(render(lm, task, demonstrations), len(examples), num_demonstrations, seed, fixed, mode)
    objective = objective or default_for(task)
    text = task.kind == "generation"
    with _quiet(lm) as calls:
        encoded = [encode(lm, row, **settings, demonstrations=d) for row, d in zip(examples, shown, strict=True)]
        baseline = None
        if mode == "calibrated":
            baseline = _baseline(lm, task, examples, settings, batch_tokens)
        buckets = list(groups(lm, encoded, batch_size=batch_size, batch_tokens=batch_tokens))
        own = buckets if ranks is None else ranks.own(buckets)
        ticked = _ticked(own, sum(map(len, own)), progress)
        if text:
            found = _generation(lm, task, encoded, ticked, objective, predict)
        else:
            found = _options(lm, encoded, ticked, objective, baseline)
    if ranks is not None:
        found, calls[0] = _together(found, calls[0], buckets, ranks)
    golds = [row.answers if text else row.correct for row in examples] if found.predictions else []
    score = SCORES["exact_match" if text else "accuracy"]
    return Evaluation(
        metrics=compute(task.metrics, found.predictions, golds) if golds else {},
        loss=found.losses.value(),
        predictions=found.predictions,
        correct=(score(found.predictions, golds) == 1.0).tolist(),
        forwards=calls[0],
        seconds=time.perf_counter() - started,
        probabilities=found.probabilities,
    )


def render(lm: LanguageModel, task: Task, rows: Sequence[Mapping[str, Any] | Example]) -> list[Example]:
    """Rows as text for this kind of model; rendered examples pass through."""
    function = task.render_masked if lm.masked else task.render
    examples = []
    for row in rows:
        if not isinstance(row, Example):
            if function is None:
                wanted, other = ("masked", "causal") if lm.masked else ("causal", "masked")
                raise BadInput(f"task '{task.name}' has no prompt for {wanted} models: choose a {other} one")
            row = function(dict(row))
        examples.append(row)
    return examples


# --------------------------------------------------------------------------------------------------------
# the two kinds of pass


def _options(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    buckets: Iterable[list[int]],
    objective: Objective,
    baseline: Sequence[torch.Tensor] | None,
) -> _Found:
    """Choose among options; the same forward gives the loss if the objective can be read off the scores."""
    predictions: list[int | str] = [-1] * len(encoded)
    probabilities = [math.nan] * len(encoded)
    losses = _Mean()
    for group in buckets:
        rows = [encoded[i] for i in group]
        batch = collate_options(lm, rows)
        found = scores(lm, batch, normalised=objective.normalised or baseline is not None)
        value = found.mean
        if baseline is not None:
            value = found.total.clone()
            for place, i in enumerate(group):
                value[place, : len(baseline[i])] -= baseline[i]
        chosen = value.argmax(1, keepdim=True)
        sure = value.softmax(1).gather(1, chosen)
        for i, best, share in zip(group, chosen[:, 0].tolist(), sure[:, 0].tolist(), strict=True):
            predictions[i], probabilities[i] = best, share
        if objective.from_scores is not None:
            losses.add(objective.from_scores(found, batch), objective.weigh(rows))
        else:
            losses.add(objective.loss(lm, objective.prepare(lm, rows)), objective.weigh(rows))
    return _Found(predictions, losses, probabilities)


def _generation(
    lm: LanguageModel,
    task: Task,
    encoded: Sequence[Encoded],
    buckets: Iterable[list[int]],
    objective: Objective,
    predict: bool,
) -> _Found:
    """Generate answers; a differentiable loss takes a forward of its own over the first accepted answer."""
    texts: list[int | str] = [""] * len(encoded)
    losses = _Mean()
    for group in buckets:
        rows = [encoded[i] for i in group]
        if objective.differentiable:
            losses.add(objective.loss(lm, objective.prepare(lm, rows)), objective.weigh(rows))
        if predict or not objective.differentiable:
            found = generate(lm, collate_prompts(lm, rows, task.stop, task.max_new_tokens))
            for i, text in zip(group, found, strict=True):
                texts[i] = text
            if not objective.differentiable:
                value = torch.tensor(negative_f1(found, [row.answers for row in rows]))
                losses.add(value, objective.weigh(rows))
    return _Found(texts if predict else [], losses)


def _together(found: _Found, calls: int, buckets: Sequence[list[int]], ranks: Ranks) -> tuple[_Found, int]:
    """What all ranks found, each in its own buckets; losses are added up in the order of the buckets."""
    places = [i for bucket in ranks.own(buckets) for i in bucket]
    mine = {
        "predictions": [found.predictions[i] for i in places] if found.predictions else [],
        "probabilities": [found.probabilities[i] for i in places] if found.probabilities else [],
        "losses": [float(part.double()) for part in found.losses.parts],
        "weight": found.losses.weight,
        "calls": calls,
    }
    said = [json.loads(text) for text in ranks.exchange(json.dumps(mine).encode())]
    predictions, probabilities = list(found.predictions), list(found.probabilities)
    losses = _Mean()
    for number, bucket in enumerate(buckets):
        theirs, turn = said[number % ranks.size], number // ranks.size
        losses.parts.append(torch.tensor(theirs["losses"][turn], dtype=torch.float64))
        for name, whole in (("predictions", predictions), ("probabilities", probabilities)):
            part, theirs[name] = theirs[name][: len(bucket)], theirs[name][len(bucket) :]
            for i, value in zip(bucket, part, strict=bool(whole)):
                whole[i] = value
    losses.weight = sum(theirs["weight"] for theirs in said)
    return _Found(predictions, losses, probabilities), sum(theirs["calls"] for theirs in said)


def _baseline(
    lm: LanguageModel, task: Task, examples: Sequence[Example], settings: Mapping[str, Any], batch_tokens: int
) -> list[torch.Tensor]:
    """Log-probabilities ``[O]`` of each example's options after its prompt without content.

    Most tasks have one such prompt and one set of options, so each distinct pair is scored once.
    """
    if task.kind == "generation" or has_label_head(lm):
        raise BadInput("calibration needs options scored by the model's own output layer: use --mode zero-shot")
    bare = [content_free(example)._replace(correct=(0,), answers=(), first=None) for example in examples]
    distinct = {(row.prompt, row.options): row for row in bare}
    encoded = [encode(lm, row, **settings) for row in distinct.values()]
    found: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
    for group in groups(lm, encoded, batch_tokens=batch_tokens):
        rows = [encoded[i] for i in group]
        total = scores(lm, collate_options(lm, rows), normalised=True).total
        for place, i in enumerate(group):
            found[i] = total[place, : len(rows[place].options)]
    by_prompt = dict(zip(distinct, found, strict=True))
    return [by_prompt[row.prompt, row.options] for row in bare]


def _drawn(
    pool: Sequence[Example], num: int, shots: int, seed: int, fixed: bool, mode: str
) -> list[tuple[Example, ...]]:
    """Demonstrations of each example: a set of its own, or one for all."""
    if mode != "icl":
        return [()] * num
    if not 0 < shots <= len(pool):
        raise BadInput(
            f"in-context learning needs {shots} demonstrations but {len(pool)} training rows are given: "
            "raise --num-train or lower --num-demonstrations"
        )
    streams = ["demonstrations" if fixed else f"demonstrations/{i}" for i in range(num)]
    return [tuple(pool[int(i)] for i in permutation(len(pool), seed, stream)[:shots]) for stream in streams]


# --------------------------------------------------------------------------------------------------------
# small parts


class _Mean:
    """A weighted mean that reads the device once."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []
        self.weight = 0.0

    def add(self, value: torch.Tensor, weight: float) -> None:
        self.parts.append(value.double().cpu() * weight if value.device.type != "cuda" else value * weight)
        self.weight += weight

    def value(self) -> float | None:
        return float(torch.stack(self.parts).double().cpu().sum()) / self.weight if self.parts else None


def _ticked(buckets: Sequence[list[int]], total: int, progress: Progress | None) -> Iterator[list[int]]:
    done = 0
    for group in buckets:
        yield group
        done += len(group)
        if progress is not None:
            progress(done, total)


@contextlib.contextmanager
def _quiet(lm: LanguageModel) -> Iterator[list[int]]:
    """Evaluation mode without gradients; yields a one-element count of the model's forwards."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    training = lm.model.training
    hook = lm.head.register_forward_pre_hook(count)  # every forward calls the output layer exactly once
    lm.model.eval()
    try:
        with torch.no_grad():
            yield calls
    finally:
        hook.remove()
        lm.model.train(training)
