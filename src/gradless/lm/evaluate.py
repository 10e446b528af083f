"""Evaluation: zero-shot, in-context and calibrated, batched and bucketed by length.

The protocol is MeZO's (arXiv 2305.17333): the prediction is the option with the highest mean token
log-probability; calibrated, the highest ``sum log p(option | prompt) - sum log p(option | prompt without
content)``; in context, 32 solved examples drawn anew for every test example precede it; generation
is greedy. The forward that predicts also gives the training loss, by which models are selected on dev data.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch

from gradless.errors import BadInput, NotFinite, pick
from gradless.lm.batching import collate_options, collate_prompts, groups
from gradless.lm.encode import Encoded, check_told_apart, encode, encode_all, length_limit, task_options, writing_limit
from gradless.lm.generation import write
from gradless.lm.loading import LanguageModel
from gradless.lm.metrics import SCORES, SHARES, compute, reward_metrics
from gradless.lm.objectives import Objective, default_for
from gradless.lm.predict import compared, content_free_scores, default_batch_tokens, not_finite, quiet
from gradless.ranks import Ranks
from gradless.rng import permutation
from gradless.tasks.base import Example, Task, check_one_mask

Mode = Literal["zero-shot", "icl", "calibrated"]
MODES: dict[str, str] = {
    "zero-shot": "the prompt alone",
    "icl": "solved examples in front of the prompt",
    "calibrated": "minus the score that an option has after a prompt without content",
}
Progress = Callable[[int, int], None]


class Evaluation(NamedTuple):
    """Result of an evaluation, in the order of the rows."""

    metrics: dict[str, float]  # names of `Task.metrics`; empty if nothing was predicted
    loss: float | None  # mean training objective
    predictions: list[int | str]  # option indices, or generated texts
    correct: list[bool]
    forwards: int  # calls of the model
    seconds: float
    probabilities: Sequence[float] = ()  # of the predicted options: softmax of what options are compared by
    cut: int = 0  # rows of which some text was left out
    limit: int = 0  # tokens that were read at most
    rewards: Sequence[float] = ()  # of each row, if the objective is a reward; NaN where it has none
    tokens: float | None = None  # new tokens of a text, on the mean


class Shown(NamedTuple):
    """What precedes each example, and how much of it all is read; fields as the arguments of `evaluate`."""

    mode: str = "zero-shot"
    demonstrations: Sequence[Mapping[str, Any] | Example] = ()
    num_demonstrations: int = 32
    fixed: bool = False
    seed: int = 0
    max_length: int | None = None


PER_ROW: Final = ("predictions", "probabilities", "rewards", "lengths")
"""Fields of a pass that hold a value for each row, or nothing."""


class _Pass(NamedTuple):
    """Result of one pass over all examples."""

    predictions: list[int | str]
    losses: _Mean
    probabilities: Sequence[float] = ()
    rewards: Sequence[float] = ()
    lengths: Sequence[int] = ()


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
    encoded: Sequence[Encoded] | None = None,
) -> Evaluation:
    """Return the evaluation of a model on rows of a task, or on rendered examples.

    Args:
        lm: the model; its training mode is restored.
        task: the task, whose prompts and metrics are used.
        rows: the examples to predict.
        mode: a key of `MODES`.
        demonstrations: training rows to draw from, for ``icl`` only.
        num_demonstrations: solved examples in front of each prompt.
        fixed: draw one set of demonstrations for all rows instead of one for each.
        seed: of the draw of demonstrations.
        max_length: most tokens of a sequence (see `gradless.lm.encode.encode`).
        batch_size: most examples of a batch (default: only ``batch_tokens`` counts).
        batch_tokens: most tokens of a batch, padding included (default: 1024, which fits a CPU's caches, else 16384).
        objective: the loss to report (default: the task's own).
        predict: False skips generation if the loss does not need it.
        progress: called with the numbers of finished and of all examples.
        ranks: processes that share the batches; all of them return the result of one process, bit for bit.
        encoded: what `encode_shown` returned of the same rows, to save doing it again.

    Raises:
        BadInput: the mode does not fit the task or the model, or there are too few demonstrations.
        NotFinite: logits of the model are NaN or infinite.

    Cost: one forward per batch; generation adds one per new token, calibration one per distinct prompt
    without content, which is one in all for most tasks.
    """
    started = time.perf_counter()
    if not rows:
        raise BadInput("there is nothing to evaluate: give at least one row")
    examples = render(lm, task, rows)
    settings = task_options(lm, task, max_length)
    batch_tokens = batch_tokens or default_batch_tokens(lm)
    if encoded is None:
        shown = Shown(mode, demonstrations, num_demonstrations, fixed, seed, max_length)
        encoded = encode_shown(lm, task, examples, shown)
    with quiet(lm) as calls:
        baseline = content_free_scores(lm, task, examples, settings, batch_tokens) if mode == "calibrated" else None
        writing = partial(_generation, task=task, predict=predict, max_length=max_length)
        run = writing if task.kind == "generation" else partial(_options, baseline=baseline)
        buckets = list(groups(lm, encoded, batch_size=batch_size, batch_tokens=batch_tokens))
        own = _ticked(buckets if ranks is None else ranks.own(buckets), progress)
        result = run(lm, encoded, own, objective or default_for(task))
    limit = length_limit(lm, settings["max_length"])
    result, forwards = _gathered(result, calls[0], buckets, ranks)
    _check_finite(result, lm)
    seconds = time.perf_counter() - started
    evaluation = _scored(task, examples, result, (objective or default_for(task)).passes)
    cut, limit = num_cut(lm, task, encoded, max_length), min(limit, _room(lm, task, max_length))
    return evaluation._replace(forwards=forwards, seconds=seconds, cut=cut, limit=limit)


def encode_shown(
    lm: LanguageModel, task: Task, rows: Sequence[Mapping[str, Any] | Example], shown: Shown
) -> list[Encoded]:
    """Return rows as tokens, behind their demonstrations in the mode ``icl``.

    Raises:
        BadInput: the mode does not fit the model, or there are too few demonstrations.
    """
    examples, settings = render(lm, task, rows), task_options(lm, task, shown.max_length)
    drawn = _drawn(render(lm, task, shown.demonstrations), len(examples), shown)
    if not any(drawn):
        return encode_all(lm, task, examples, shown.max_length)
    encoded = [encode(lm, row, **settings, demonstrations=d) for row, d in zip(examples, drawn, strict=True)]
    check_told_apart(lm, task, encoded)
    return encoded


def num_cut(lm: LanguageModel, task: Task, encoded: Sequence[Encoded], max_length: int | None = None) -> int:
    """Return how many rows lose some of their text in an evaluation."""
    room = _room(lm, task, max_length)
    return sum(row.cut or len(row.prompt) > room for row in encoded)


def _room(lm: LanguageModel, task: Task, max_length: int | None) -> int:
    """Return the most tokens of a prompt: what the model takes, less the answer where one is generated."""
    return writing_limit(lm, task.max_new_tokens if task.kind == "generation" else 0, max_length)


def _scored(task: Task, examples: Sequence[Example], result: _Pass, passes: float | None) -> Evaluation:
    """Return the evaluation of predictions, without its costs.

    Texts are right that have a reward of ``passes``; if that is None, those that are an accepted answer.
    """
    text = task.kind == "generation"
    known = bool(result.predictions) and (not text or all(row.answers for row in examples))
    golds = [row.answers if text else row.correct for row in examples] if known else []
    measured = compute(task.metrics, result.predictions, golds) if golds else {}
    if passes is not None and result.predictions:
        right = [reward >= passes for reward in result.rewards]
        measured = reward_metrics(result.rewards, right) | measured
    else:
        score = SCORES[next((name for name in task.metrics if name in SHARES), "exact_match" if text else "accuracy")]
        right = (score(result.predictions, golds) == 1.0).tolist() if golds else [False] * len(result.predictions)
    return Evaluation(
        metrics=measured,
        loss=result.losses.value(),
        predictions=result.predictions,
        correct=right,
        forwards=0,
        seconds=0.0,
        probabilities=result.probabilities,
        rewards=result.rewards if passes is not None else (),
        tokens=statistics.fmean(result.lengths) if result.lengths else None,
    )


def _check_finite(result: _Pass, lm: LanguageModel) -> None:
    """Refuse to score what comes of logits that are not finite: the best of several NaN is always the first.

    The probability of the best option is NaN then, whichever logit it was, and so is the loss of generated text.
    """
    loss = result.losses.value()
    bad = [row for row, probability in enumerate(result.probabilities) if math.isnan(probability)]
    if bad or (loss is not None and not math.isfinite(loss)):
        raise not_finite(lm, f"for {len(bad)} of {len(result.probabilities)} rows" if bad else "for some rows")


def render(lm: LanguageModel, task: Task, rows: Sequence[Mapping[str, Any] | Example]) -> list[Example]:
    """Return rows as text for this kind of model; rendered examples are returned as they are.

    Raises:
        BadInput: the task has no prompt for this kind of model, or rows hold a mask that the prompt has as well.
    """
    function = task.render_masked if lm.masked else task.render
    examples = []
    for row in rows:
        if not isinstance(row, Example):
            if function is None:
                kind, other = ("masked", "causal") if lm.masked else ("causal", "masked")
                raise BadInput(f"task '{task.name}' has no prompt for {kind} models: choose a {other} one")
            example = function(dict(row))
            columns = row.get("columns", row)
            row = example._replace(columns=columns if isinstance(columns, Mapping) else row)
        examples.append(row)
    if lm.masked:
        read = [(row, one.prompt) for row, one in zip(rows, examples, strict=True) if not isinstance(row, Example)]
        check_one_mask([row for row, _ in read], [prompt for _, prompt in read])
    return examples


# --------------------------------------------------------------------------------------------------------
# the two kinds of pass


def _options(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    buckets: Iterable[list[int]],
    objective: Objective,
    *,
    baseline: Sequence[torch.Tensor] | None,
) -> _Pass:
    """Choose among options; the same forward gives the loss if the objective is a function of the scores."""
    predictions: list[int | str] = [-1] * len(encoded)
    probabilities = [math.nan] * len(encoded)
    losses = _Mean()
    for group in buckets:
        rows = [encoded[i] for i in group]
        batch = collate_options(lm, rows)
        base = None if baseline is None else [baseline[i] for i in group]
        options, values = compared(lm, batch, base, normalised=objective.normalised)
        best = values.argmax(1, keepdim=True)
        likely = values.softmax(1).gather(1, best)
        for i, option, probability in zip(group, best[:, 0].tolist(), likely[:, 0].tolist(), strict=True):
            predictions[i], probabilities[i] = option, probability
        if objective.from_scores is not None:
            losses.add(objective.from_scores(options, batch), objective.weigh(rows))
        else:
            losses.add(objective.loss(lm, objective.prepare(lm, rows)), objective.weigh(rows))
    return _Pass(predictions, losses, probabilities)


def _generation(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    buckets: Iterable[list[int]],
    objective: Objective,
    *,
    task: Task,
    predict: bool,
    max_length: int | None,
) -> _Pass:
    """Generate answers; a differentiable loss takes a forward of its own over the first accepted answer."""
    texts: list[int | str] = [""] * len(encoded)
    lengths, rewards = [0] * len(encoded), [math.nan] * len(encoded)
    losses = _Mean()
    for group in buckets:
        rows = [encoded[i] for i in group]
        if objective.differentiable:
            losses.add(objective.loss(lm, objective.prepare(lm, rows)), objective.weigh(rows))
        if predict or not objective.differentiable:
            prompts = collate_prompts(lm, rows, task.stops, task.max_new_tokens, max_length)
            try:
                written = write(lm, prompts)
            except NotFinite:  # which all ranks must come to know
                losses.add(torch.tensor(math.nan), objective.weigh(rows))
                continue
            for i, one in zip(group, written, strict=True):
                texts[i], lengths[i] = one.text, one.tokens
            if objective.of_texts is not None:
                values = objective.of_texts(prompts, written)
                for i, value in zip(group, values.tolist(), strict=True):
                    rewards[i] = 0.0 - value
                known = values[~np.isnan(values)]
                losses.add(torch.tensor(known.mean() if known.size else 0.0), float(known.size))
    done = predict or not objective.differentiable
    return _Pass(texts if predict else [], losses, (), rewards if objective.of_texts else (), lengths if done else ())


def _gathered(result: _Pass, calls: int, buckets: Sequence[list[int]], ranks: Ranks | None) -> tuple[_Pass, int]:
    """Return the results and the forwards of all ranks; losses are added up in the order of the buckets."""
    if ranks is None:
        return result, calls
    indices = [i for bucket in ranks.own(buckets) for i in bucket]
    mine = {
        **{name: [values[i] for i in indices] if (values := getattr(result, name)) else [] for name in PER_ROW},
        "losses": [float(part.double()) for part in result.losses.parts],
        "weight": result.losses.weight,
        "calls": calls,
    }
    results = [json.loads(text) for text in ranks.exchange(json.dumps(mine).encode())]
    whole_of: dict[str, list[Any]] = {name: list(getattr(result, name)) for name in PER_ROW}
    losses = _Mean()
    for number, bucket in enumerate(buckets):
        theirs, turn = results[number % ranks.size], number // ranks.size
        losses.parts.append(torch.tensor(theirs["losses"][turn], dtype=torch.float64))
        for name, whole in whole_of.items():
            part, theirs[name] = theirs[name][: len(bucket)], theirs[name][len(bucket) :]
            for i, value in zip(bucket, part, strict=bool(whole)):
                whole[i] = value
    losses.weight = sum(theirs["weight"] for theirs in results)
    return _Pass(losses=losses, **whole_of), sum(theirs["calls"] for theirs in results)


def _drawn(pool: Sequence[Example], num: int, shown: Shown) -> list[tuple[Example, ...]]:
    """Return the demonstrations of each example: a set of its own, or one for all."""
    pick("mode", shown.mode, MODES)
    if shown.mode != "icl":
        return [()] * num
    shots = shown.num_demonstrations
    if not 0 < shots <= len(pool):
        raise BadInput(
            f"in-context learning needs {shots} demonstrations but {len(pool)} training rows are given: "
            "raise --num-train or lower --num-demonstrations"
        )
    streams = ["demonstrations" if shown.fixed else f"demonstrations/{i}" for i in range(num)]
    return [tuple(pool[int(i)] for i in permutation(len(pool), shown.seed, stream)[:shots]) for stream in streams]


# --------------------------------------------------------------------------------------------------------
# small parts


class _Mean:
    """Weighted mean that is copied from the device once."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []
        self.weight = 0.0

    def add(self, value: torch.Tensor, weight: float) -> None:
        self.parts.append(value.cpu().double() * weight if value.device.type != "cuda" else value * weight)
        self.weight += weight

    def value(self) -> float | None:
        return float(torch.stack(self.parts).double().cpu().sum()) / self.weight if self.weight else None


def _ticked(buckets: Sequence[list[int]], progress: Progress | None) -> Iterator[list[int]]:
    """Yield the buckets; report progress after each."""
    done, total = 0, sum(map(len, buckets))
    for group in buckets:
        yield group
        done += len(group)
        if progress is not None:
            progress(done, total)
