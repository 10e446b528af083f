"""Training objectives: the losses that a forward-only step measures.

An objective is two functions: ``prepare`` converts encoded examples to a batch once, ``loss`` is the closure
that every query of a step calls. Values are means over ``batch.weight`` examples or tokens, so micro-batches
combine exactly. Differentiable objectives serve the backprop baselines as well; only forward-only training can
optimise accuracy and F1 directly (Malladi et al. 2023, arXiv 2305.17333, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gradless import plugins
from gradless.errors import BadInput, NotFinite, pick
from gradless.forward.populations import mean
from gradless.lm.batching import Batch, Prompts, collate_gold, collate_options, collate_prompts, collate_text
from gradless.lm.encode import Encoded
from gradless.lm.generation import Written, write
from gradless.lm.loading import LanguageModel
from gradless.lm.metrics import token_f1s
from gradless.lm.scoring import Scores, scores
from gradless.rewards import Rewards
from gradless.tasks.base import Task

REWARD: Final = "reward"
OfTexts = Callable[[Prompts, Sequence[Written]], NDArray[np.float64]]
"""Prompts and what is written behind each -> the loss of each, float64 ``[N]``; NaN where there is none."""


class Objective(NamedTuple):
    """One row of `OBJECTIVES`."""

    name: str
    doc: str
    kinds: tuple[str, ...]  # kinds of task that it fits
    differentiable: bool
    prepare: Callable[[LanguageModel, Sequence[Encoded]], Any]  # -> Batch or Prompts, with a weight
    loss: Callable[[LanguageModel, Any], Tensor]  # -> float32 scalar, the mean over the weight
    weigh: Callable[[Sequence[Encoded]], float]  # the weight of these examples
    from_scores: Callable[[Scores, Batch], Tensor] | None = None  # the same value from scores of all options
    normalised: bool = False  # whether from_scores needs true log-probabilities
    of_texts: OfTexts | None = None  # of what the model writes; such an objective generates
    passes: float | None = None  # least reward of a text that counts as right; None: by the task's answers


def option_ce(options: Scores, batch: Batch) -> Tensor:
    """Return the cross-entropy over options of their mean token log-probability: MeZO's loss for classification.

    For single-token options it is the cross-entropy over the candidates' logits.
    """
    return functional.cross_entropy(options.mean, batch.gold)


def token_ce(options: Scores, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the tokens of gold options (teacher forcing)."""
    gold = batch.gold.unsqueeze(1)
    return -options.total.gather(1, gold).sum() / options.lengths.gather(1, gold).sum()


def negative_accuracy(options: Scores, batch: Batch) -> Tensor:
    """Return minus the share of examples whose best option is right; NaN if a score is NaN or infinite."""
    best = options.mean.argmax(1, keepdim=True)
    usable = options.mean.detach().softmax(1).gather(1, best)  # NaN where a score is
    return -(batch.correct.gather(1, best).float() + 0.0 * usable).mean()


def negative_f1(prompts: Prompts, written: Sequence[Written]) -> NDArray[np.float64]:
    """Return minus the token F1 of texts against their accepted answers (the best one counts)."""
    return -token_f1s([one.text for one in written], prompts.answers)


def _scored(value: Callable[[Scores, Batch], Tensor]) -> Callable[[LanguageModel, Batch], Tensor]:
    def loss(lm: LanguageModel, batch: Batch) -> Tensor:
        return value(scores(lm, batch), batch)

    return loss


def _written(of_texts: OfTexts) -> Callable[[LanguageModel, Prompts], Tensor]:
    """Return the mean loss of what the model writes greedily, over the rows that have one; NaN without any."""

    def loss(lm: LanguageModel, prompts: Prompts) -> Tensor:
        try:
            value = mean(of_texts(prompts, write(lm, prompts)))
        except NotFinite:
            value = math.nan
        return torch.tensor(value, device=prompts.input_ids.device)

    return loss


def _unrewarded(lm: LanguageModel, prompts: Prompts) -> Tensor:
    raise BadInput("the objective 'reward' needs a reward function: name one with --reward")


def _examples(encoded: Sequence[Encoded]) -> float:
    return float(len(encoded))


def _gold_tokens(encoded: Sequence[Encoded]) -> float:
    return float(sum(len(row.options[row.gold]) for row in encoded))


def _text_tokens(encoded: Sequence[Encoded]) -> float:
    return float(sum(len(row.context(row.gold)) + len(row.options[row.gold]) - 1 for row in encoded))


CHOICES = ("classification", "choice")
ALL = (*CHOICES, "generation")

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(
            "option_ce",
            "cross-entropy over an example's options of their mean token log-probability",
            CHOICES,
            differentiable=True,
            prepare=collate_options,
            loss=_scored(option_ce),
            weigh=_examples,
            from_scores=option_ce,
        ),
        Objective(
            "gold",
            "teacher forcing: mean cross-entropy of the tokens of the gold option or first answer",
            ALL,
            differentiable=True,
            prepare=collate_gold,
            loss=_scored(token_ce),
            weigh=_gold_tokens,
            from_scores=token_ce,
            normalised=True,
        ),
        Objective(
            "lm",
            "language modelling: mean cross-entropy of every token of prompt and gold option",
            ALL,
            differentiable=True,
            prepare=collate_text,
            loss=_scored(token_ce),
            weigh=_text_tokens,
        ),
        Objective(
            "accuracy",
            "minus the accuracy over options; forward-only methods alone can train on it",
            CHOICES,
            differentiable=False,
            prepare=collate_options,
            loss=_scored(negative_accuracy),
            weigh=_examples,
            from_scores=negative_accuracy,
        ),
        Objective(
            "f1",
            "minus the token F1 of greedily generated answers; forward-only methods alone can train on it",
            ("generation",),
            differentiable=False,
            prepare=collate_prompts,
            loss=_written(negative_f1),
            weigh=_examples,
            of_texts=negative_f1,
        ),
        Objective(
            REWARD,
            "minus the reward of generated texts, by functions of your own (--reward); forward-only methods alone",
            ("generation",),
            differentiable=False,
            prepare=collate_prompts,
            loss=_unrewarded,
            weigh=_examples,
        ),
    )
}


def rewarded(rewards: Rewards, passes: float) -> Objective:
    """Return the objective of reward functions: minus what they give for generated texts.

    Args:
        rewards: the functions; they are told the prompt, the text and the columns of each row, as messages of a chat
            where the model has one.
        passes: least reward of a text that counts as right.
    """

    def of_texts(prompts: Prompts, written: Sequence[Written]) -> NDArray[np.float64]:
        rows = prompts.rows
        names = dict.fromkeys(name for row in rows for name in row.columns)
        columns = {name: [row.columns.get(name) for row in rows] for name in names}
        if any(row.answers for row in rows):
            columns["answers"] = [list(row.answers) for row in rows]
        asked: list[Any] = [row.text for row in rows]
        answered: list[Any] = [one.text for one in written]
        if prompts.chat:
            asked = [[{"role": "user", "content": text}] for text in asked]
            answered = [[{"role": "assistant", "content": text}] for text in answered]
        return -rewards(asked, answered, {**columns, "completion_ids": [list(one.ids) for one in written]})

    return OBJECTIVES[REWARD]._replace(loss=_written(of_texts), of_texts=of_texts, passes=passes)


def default_for(task: Task) -> Objective:
    """Return MeZO's objective for a task: `option_ce` for classification, `gold` for choice and generation."""
    return OBJECTIVES["option_ce" if task.kind == "classification" else "gold"]


def choose(
    task: Task,
    name: str | None = None,
    *,
    backprop: bool = False,
    rewards: Objective | None = None,
    max_length: int | None = None,
) -> Objective:
    """Return the objective of a name, checked against the task.

    Args:
        task: the task to train on.
        name: a key of `OBJECTIVES` (default: `default_for`).
        backprop: whether the method needs a gradient.
        rewards: what `rewarded` made of reward functions, which the objective ``reward`` stands for.
        max_length: most tokens of a sequence, as it was asked for.

    Raises:
        BadInput: the name is unknown, or the objective and the task or method do not go together.
    """
    if name is None:
        return default_for(task)
    plugins.find("objectives", name)
    objective = pick("objective", name, OBJECTIVES)
    if task.kind not in objective.kinds:
        fits = ", ".join(entry.name for entry in OBJECTIVES.values() if task.kind in entry.kinds)
        raise BadInput(f"objective '{name}' does not fit the {task.kind} task '{task.name}': use one of {fits}")
    if backprop and not objective.differentiable:
        raise BadInput(f"objective '{name}' has no gradient: use a zeroth-order method or another objective")
    if name == REWARD and rewards is not None:
        objective = rewards
    if objective.prepare is collate_prompts:
        new = task.max_new_tokens
        prompts = partial(collate_prompts, stops=task.stops, new_tokens=new, max_length=max_length)
        return objective._replace(prepare=prompts)
    return objective


def prepare(
    lm: LanguageModel, objective: Objective, encoded: Sequence[Encoded], micro_batch_size: int | None = None
) -> list[Any]:
    """Return batches of at most ``micro_batch_size`` examples (default: one batch), for `loss_over`.

    Raises:
        BadInput: no examples, or some that the objective cannot score.
    """
    if not encoded:
        raise BadInput("a batch needs at least one example: lower num_dev or give more data")
    size = micro_batch_size or len(encoded)
    return [objective.prepare(lm, encoded[start : start + size]) for start in range(0, len(encoded), size)]


def loss_over(lm: LanguageModel, objective: Objective, batches: Sequence[Any]) -> Tensor:
    """Return the loss of all batches together: their mean weighted by ``batch.weight``, float32 scalar.

    Cost: one forward per batch.
    """
    total = sum(batch.weight for batch in batches)
    parts = [objective.loss(lm, batch) * (batch.weight / total) for batch in batches]
    return torch.stack(parts).sum()


def loss_of(
    lm: LanguageModel, objective: Objective, encoded: Sequence[Encoded], micro_batch_size: int | None = None
) -> Tensor:
    """Return the loss of examples, computed in micro-batches; equal to one batch's up to rounding."""
    return loss_over(lm, objective, prepare(lm, objective, encoded, micro_batch_size))
