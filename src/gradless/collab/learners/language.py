"""Peers with a language model: LoRA weights by backpropagation, or coefficients by forward passes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradless import lm, tasks
from gradless.collab.config import CollabConfig
from gradless.collab.data.splits import Batches
from gradless.collab.learners.assignment import own_share, shares
from gradless.collab.learners.coefficients import Member
from gradless.errors import BadInput, NotFinite
from gradless.forward.evaluator import Closure
from gradless.lm import encode, evaluate, objectives, schemes
from gradless.lm.encode import Encoded
from gradless.runs import build
from gradless.runs.build import Model
from gradless.runs.config import TuneConfig
from gradless.runs.fixed_engine import fixed_engine
from gradless.runs.scheme_settings import STORED
from gradless.system import terminal
from gradless.tasks.base import Splits, Task

NOWHERE = Path("/nonexistent")  # these models have no run directory to take initial values from


class Text:
    """A task's rows, encoded and divided among peers.

    Args:
        config: names task, rows, model, method and seed.
        peers: H, among whom training rows are dealt.
        mine: the peers of this process; None: all.
        own: whether the training rows are those of the one peer ``mine`` alone, and are not dealt.

    Raises:
        BadInput: rows or a model that cannot be used.
    """

    def __init__(
        self, config: CollabConfig, peers: int, *, mine: Sequence[int] | None = None, own: bool = False
    ) -> None:
        if config.scheme in STORED:
            raise BadInput(
                f"a group tunes adapters or float weights, not the {config.scheme} of a GGUF file: use --scheme lora"
            )
        settings = TuneConfig(
            model=str(config.model),
            task=config.task,
            own=config.own,
            data=config.data,
            method=config.method,
            scheme=config.scheme,
            lr=config.lr,
            eps=config.eps,
            queries=config.queries,
            batch_size=config.batch_size,
            seed=config.seed,
            num_train=config.num_train or 0,
            num_dev=0,
            num_test=config.num_test or 0,
            freeze=config.freeze,
            device=config.device,
            dtype=weights_dtype(config),
            steps=config.steps,
            weight_decay=config.weight_decay,
            zero_shot=False,
        )
        self.tune = dataclasses.replace(settings, engine=fixed_engine(settings)).resolved()
        self.task, self.rows = _loaded(self.tune, test=not own)
        self.objective = objectives.choose(self.task)
        self.model, self.label_tokens = self._built()
        self.encoded = build.encode_rows(self.model.lm, self.task, self.rows.train, None)
        if cut := sum(row.cut for row in self.encoded):
            limit = encode.length_limit(self.model.lm)
            _say(encode.cut_sentence(self.model.lm, "training", cut, len(self.encoded), limit))
        labels = torch.tensor([row.gold for row in self.encoded])
        self.shares = own_share(config, len(labels), (mine or [0])[0]) if own else shares(config, labels, peers, mine)

    def build(self) -> build.Model:
        """Return a model of its own at the base weights."""
        return self._built()[0]

    def _built(self) -> tuple[Model, tuple[int, ...]]:
        return build.build_for(self.tune, NOWHERE, self.task, self.rows.train, say=lambda line: None)

    def batch(self, stream: Batches, step: int) -> list[Encoded]:
        """Return the rows that a peer reads in a step."""
        return [self.encoded[i] for i in stream.at(step).tolist()]

    def poison(self, step: int) -> list[Encoded]:
        """Return the rows that attackers read, with flipped labels."""
        return [flipped(row) for row in self.batch(self.shares.poison, step)]

    def loss(self, model: lm.LanguageModel, rows: Sequence[Encoded]) -> Closure:
        """Return the loss of a batch, to be evaluated at any weights."""
        batches = objectives.prepare(model, self.objective, list(rows))
        return lambda: objectives.loss_over(model, self.objective, batches)

    def accuracy(self, model: lm.LanguageModel, rows: int | None) -> float:
        """Return the task's main metric on test rows; NaN without any."""
        if not self.rows.test:
            return math.nan
        try:
            evaluation = evaluate.evaluate(model, self.task, self.rows.test[:rows])
        except NotFinite:  # as of other models, whose rows without finite logits are wrong
            return 0.0
        return evaluation.metrics[self.task.metrics[0]]


def weights_dtype(config: CollabConfig) -> str | None:
    """Return the type that weights are loaded in: all weights of a GGUF are tuned as float32 ones."""
    return "float32" if config.scheme == "full" and lm.is_gguf(str(config.model)) else None


@functools.cache
def _say(line: str) -> None:
    """Print a line about the data, once and not for every run of a study."""
    terminal.say(line)


def _loaded(tune: TuneConfig, test: bool) -> tuple[Task, Splits]:
    if tune.task and tasks.get(tune.task).kind == "generation":  # before its data are fetched
        raise BadInput(f"task '{tune.task}' has no options to choose from: take a classification task")
    task, rows = build.load_task(tune, _say)
    if not rows.train or (test and not rows.test):
        both = "a group needs training and test rows: raise num_train and num_test"
        raise BadInput(both if test else "there are no training rows: give a file that has some")
    return task, rows


def flipped(row: Encoded) -> Encoded:
    """Return the row with its label turned round: option l becomes the last minus l."""
    return row._replace(correct=(len(row.options) - 1 - row.gold,))


def members(text: Text, peers: int, *, shared: bool) -> list[Member]:
    """Peers for `coefficients.CoefficientPeers`; with ``shared`` they have one set of weights."""
    models = [text.model] * peers if shared else [text.model, *(text.build() for _ in range(peers - 1))]
    return [_member(text, peer, model) for peer, model in enumerate(models)]


def _member(text: Text, peer: int, model: build.Model) -> Member:
    return Member(
        model.optimizer,
        closure=lambda step: text.loss(model.lm, text.batch(text.shares.streams[peer], step)),
        poisoned=lambda step: text.loss(model.lm, text.poison(step)),
        accuracy=lambda rows: text.accuracy(model.lm, rows),
    )


class TextGradients:
    """A workload with gradients: one model in memory, whose tuned weights are each peer's in turn.

    Cost of a step: a backpropagation for each peer.
    """

    def __init__(self, text: Text, peers: int) -> None:
        self.text, self.peers = text, peers
        self.lm = text.model.lm
        self.tuned = [param for _, param in schemes.trainable(self.lm)]
        self.dimension = sum(param.numel() for param in self.tuned)

    def start(self) -> Tensor:
        """Return the tuned weights as the scheme begins with them, once for each peer."""
        row = torch.cat([param.detach().reshape(-1).float() for param in self.tuned])
        return row.expand(self.peers, -1).clone()

    def gradients(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See `gradless.collab.learners.parameters.Workload`."""
        gradients = torch.empty_like(theta)
        losses = torch.empty(self.peers)
        for peer, stream in enumerate(self.text.shares.streams):
            losses[peer] = self._gradient(theta[peer], self.text.batch(stream, step), gradients[peer])
        return gradients, losses

    def poisoned(self, theta: Tensor, step: int) -> Tensor:
        """See `gradless.collab.learners.parameters.Workload`."""
        gradient = torch.empty_like(theta)
        self._gradient(theta[0], self.text.poison(step), gradient[0])
        return gradient

    def accuracy(self, theta: Tensor, rows: int | None) -> list[float]:
        """See `gradless.collab.learners.parameters.Workload`."""
        accuracies = []
        for row in theta:
            self._load(row)
            accuracies.append(self.text.accuracy(self.lm, rows))
        return accuracies

    def state(self) -> dict[str, Any]:
        """See `gradless.collab.learners.parameters.Workload`."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See `gradless.collab.learners.parameters.Workload`."""

    def _gradient(self, row: Tensor, batch: Sequence[Encoded], out: Tensor) -> float:
        self._load(row)
        with torch.enable_grad():
            loss = torch.as_tensor(self.text.loss(self.lm, batch)())
            parts = torch.autograd.grad(loss, self.tuned, allow_unused=True)
        out.copy_(
            torch.cat(
                [
                    param.new_zeros(param.numel(), dtype=torch.float32) if part is None else part.reshape(-1).float()
                    for param, part in zip(self.tuned, parts, strict=True)
                ]
            )
        )
        return float(loss.detach())

    @torch.no_grad()
    def _load(self, row: Tensor) -> None:
        start = 0
        for param in self.tuned:
            param.copy_(row[start : start + param.numel()].view(param.shape))
            start += param.numel()
